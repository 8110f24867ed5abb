"""One exam for every layer: each transformation of JAX, in train and evaluation mode."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax import testing
from bnjax.testing import LAYERS
from tests._derivatives import check_derivatives

# A layer that has no modes sits the exam once.
EXAMS = [
    (layer, train) for layer in LAYERS for train in ((True, False) if layer.modes else (True,))
]
IDS = [f"{layer}-{'train' if train else 'eval'}" for layer, train in EXAMS]


# Of the module, so that the tests of a layer are neighbours and share its compiled programs.
@pytest.fixture(params=EXAMS, ids=IDS, scope="module")
def exam(request):
    if request.param[0].needs:
        pytest.importorskip(request.param[0].needs)
    return request.param


@pytest.fixture
def layer(exam):
    return exam[0]


@pytest.fixture
def train(exam):
    return exam[1]


@functools.cache
def setup(layer, dtype=jnp.float32):
    x = np.random.default_rng(0).normal(2, 3, layer.input_shape)
    x = jnp.asarray(x, dtype)
    return x, layer.init(jax.random.key(0), x)


def close(got, want, rtol=2e-6):
    chex.assert_trees_all_close(got, want, rtol=rtol, atol=rtol)


@pytest.mark.compiled("as users do")
def test_values_match_the_oracle_under_jit(layer, train):
    x, variables = setup(layer)
    y, _ = jax.jit(layer.apply, static_argnums=2)(variables, x, train)
    assert testing.relative_error(y, layer.reference(variables, np.asarray(x), train)) < 1e-6


def test_values_match_the_oracle_eager(layer, train):
    x, variables = setup(layer)
    y, _ = layer.apply(variables, x, train)
    assert testing.relative_error(y, layer.reference(variables, np.asarray(x), train)) < 1e-6


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float8_e4m3fn])
def test_half_precision_matches_the_oracle_on_the_rounded_input(layer, train, dtype):
    x, variables = setup(layer, dtype)
    y, _ = layer.apply(variables, x, train)
    want = layer.reference(variables, np.asarray(x, np.float64), train)
    got = np.asarray(y.astype(jnp.float32), np.float64)
    assert testing.relative_error(got, want) < float(jnp.finfo(dtype).eps)


def test_float64(layer, train, x64):
    x, variables = setup(layer, jnp.float64)
    variables = jax.tree.map(
        lambda v: v.astype(jnp.float64) if v.dtype == jnp.float32 else v, variables
    )
    y, _ = jax.jit(layer.apply, static_argnums=2)(variables, x, train)
    assert y.dtype == jnp.float64
    assert testing.relative_error(y, layer.reference(variables, np.asarray(x), train)) < 1e-13


def test_only_training_moves_the_state(layer, train):
    x, variables = setup(layer)
    _, after = layer.apply(variables, x, train)
    assert jax.tree.structure(after) == jax.tree.structure(variables)
    same = [
        bool(jnp.all(a == b))
        for a, b in zip(
            jax.tree.leaves(after["batch_stats"]),
            jax.tree.leaves(variables["batch_stats"]),
            strict=True,
        )
    ]
    assert not any(same) if train and same else all(same)
    close(after["params"], variables["params"], rtol=0)


def test_gradients_of_the_input_and_the_parameters(layer, train, x64):
    x, variables = setup(layer, jnp.float64)

    def fn(x, params):
        return layer.apply({**variables, "params": params}, x, train)[0]

    params = jax.tree.map(lambda p: p.astype(jnp.float64), variables["params"])
    check_derivatives(fn, (x, params))


def test_vmap_is_a_loop(layer, train):
    x, variables = setup(layer)
    xs = jnp.stack([x, 2 * x + 1, -x])
    fn = lambda x: layer.apply(variables, x, train)  # noqa: E731
    want = jax.tree.map(lambda *v: jnp.stack(v), *[fn(x) for x in xs])
    close(jax.jit(jax.vmap(fn))(xs), want)


def test_scan_is_a_loop(layer, train):
    x, variables = setup(layer)
    xs = jnp.stack([x, 2 * x + 1, -x])

    def step(variables, x):
        y, variables = layer.apply(variables, x, train)
        return variables, y

    state, ys = jax.jit(lambda *args: jax.lax.scan(step, *args))(variables, xs)
    want = []
    for x in xs:
        variables, y = step(variables, x)
        want.append(y)
    close((state, ys), (variables, jnp.stack(want)))


def test_remat_changes_nothing(layer, train):
    x, variables = setup(layer)
    loss = lambda x: jnp.sum(jnp.sin(layer.apply(variables, x, train)[0]))  # noqa: E731
    got, want = (jax.jit(jax.grad(fn))(x) for fn in (jax.checkpoint(loss), loss))
    close(got, want, rtol=1e-5)


def test_eval_shape_agrees(layer, train):
    x, variables = setup(layer)
    abstract = jax.eval_shape(lambda v, x: layer.apply(v, x, train), variables, x)
    concrete = layer.apply(variables, x, train)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, concrete)


def test_no_second_trace(layer, train):
    x, variables = setup(layer)
    traces = []

    @jax.jit
    def step(variables, x):
        traces.append(1)
        return layer.apply(variables, x, train)[1]

    for _ in range(3):
        variables = step(variables, x)
    assert len(traces) == 1


@pytest.mark.several_devices
def test_plain_jit_over_a_sharded_batch_equals_one_device(layer, train):
    x, variables = setup(layer)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    fn = jax.jit(layer.apply, static_argnums=2)
    close(fn(variables, sharded, train), fn(variables, x, train))
