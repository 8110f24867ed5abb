"""The modules of batch renorm: batch norm with limits and a count. Values: tests/core."""

import inspect

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bnjax

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)
SCHEDULE = {
    "r_max": optax.linear_schedule(1.0, 3.0, 4),
    "d_max": optax.linear_schedule(0.0, 5.0, 4),
}


def make(library, norm="BatchRenorm", **options):
    return library.make(norm, X, **options)


def close(got, want, rtol=1e-6):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol), got, want)


def test_limits_are_taken_by_keyword_with_the_defaults_of_the_core(library):
    ours = inspect.signature(library.ours.BatchRenorm.__init__).parameters
    limits = {"r_max": 3.0, "d_max": 5.0, "single_value": "allow"}
    assert {name: ours[name].default for name in limits} == limits
    assert {ours[name].kind for name in limits} == {inspect.Parameter.KEYWORD_ONLY}


def test_it_takes_what_batch_norm_takes(library):
    given = inspect.signature(library.ours.BatchNorm.__init__).parameters.values()
    options = {p.name: p.default for p in given if p.default is not p.empty}
    options |= {"epsilon": 0.3, "momentum": 0.0, "ddof": 1}
    layer = make(library, **options, r_max=1.0, d_max=0.0)
    np.testing.assert_allclose(layer.state(X)["var"], X.var(0, ddof=1), rtol=1e-5)
    close(layer.y(X), make(library, "BatchNorm", **options).y(X))


def test_a_misspelt_option_is_refused(library):
    with pytest.raises(TypeError, match="moment"):
        make(library, moment=0.9)


def test_the_count_is_always_kept(library):
    layer = make(library)
    stats, params = {"mean": (5,), "var": (5,), "count": ()}, {"scale": (5,), "bias": (5,)}
    shapes = {"params": params, "batch_stats": stats}
    assert jax.tree.map(jnp.shape, layer.variables) == shapes
    count = layer.variables["batch_stats"]["count"]
    assert (count.dtype, count, layer.state(X)["count"]) == (jnp.int32, 0, 1)


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"momentum": None}, {"ddof": 1}])
def test_the_module_is_the_core(library, options):
    layer, state = make(library, r_max=1.5, d_max=0.5, **options), bnjax.init_batch_stats(5)
    core = {"r_max": 1.5, "d_max": 0.5, "decay": options.get("momentum", 0.99)}
    core |= {name: value for name, value in options.items() if name != "momentum"}
    variables, params = layer.variables, (jnp.ones(5), jnp.zeros(5))
    for x in (X, X + 1):
        y, variables = layer.apply(variables, x)
        want, state = bnjax.batch_renorm(x, *params, state, train=True, **core)
        np.testing.assert_array_equal(y, want)
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], state._asdict())
    want, _ = bnjax.batch_renorm(X, *params, state, train=False)
    np.testing.assert_array_equal(layer.apply(variables, X, train=False)[0], want)


@pytest.mark.parametrize("options", [{}, {"mask": True}, {"virtual_batch_size": 4}])
def test_tight_limits_make_it_batch_norm(library, options):
    mask = jnp.arange(8)[:, None] % 3 > 0 if "mask" in options else None
    fields = {name: value for name, value in options.items() if name != "mask"}

    def run(layer):
        def loss(params):
            y, after = layer.apply({**layer.variables, "params": params}, X, mask=mask)
            return jnp.sum(WEIGHTS * y), (y, after["batch_stats"]["mean"])

        return jax.value_and_grad(loss, has_aux=True)(layer.variables["params"])

    tight = make(library, r_max=1.0, d_max=0.0, **fields)
    close(run(tight), run(make(library, "BatchNorm", **fields)), 1e-5)


def test_a_batch_of_one_is_allowed_and_learns_something(library):
    y = make(library).y(X[:1])
    close(y, jnp.clip(X[:1], -5, 5), 1e-4)  # running mean 0, variance 1; d_max 5


def test_a_batch_of_one_can_be_an_error(library):
    with pytest.raises(ValueError, match="one value a feature"):
        make(library, single_value="error").y(X[:1])


def test_evaluating_before_any_update_warns(library):
    with pytest.warns(UserWarning, match="count is 0"):
        make(library).y(X, train=False)


@pytest.fixture
def scheduled(library):
    """A layer in the middle of its schedule: its step, the batches, and variables after three."""
    layer = make(library, momentum=0.5, **SCHEDULE)
    step, variables = jax.jit(layer.apply), layer.variables
    batches = [X * (1 + i) + i for i in range(6)]
    for x in batches[:3]:
        variables = step(variables, x)[1]
    return step, batches, variables


def test_a_schedule_survives_a_checkpoint_and_goes_on(library, scheduled):
    step, batches, variables = scheduled
    saved = flax.serialization.to_bytes(variables)
    loaded = flax.serialization.from_bytes(make(library).variables, saved)
    assert loaded["batch_stats"]["count"] == 3
    for x in batches[3:]:
        want, variables = step(variables, x)
        y, loaded = step(loaded, x)
        close(y, want)


def test_a_schedule_begins_again_where_the_count_is_lost(scheduled):
    step, _, variables = scheduled
    lost = variables | {"batch_stats": variables["batch_stats"] | {"count": jnp.int32(0)}}
    assert np.abs(step(lost, X + 9)[0] - step(variables, X + 9)[0]).max() > 0.5


def test_axis_name_merges_devices(library):
    limits = {"r_max": 1.5, "d_max": 0.5}
    layer, alone = make(library, axis_name="devices", **limits), make(library, **limits)
    run = lambda x: layer.apply(alone.variables, x)  # noqa: E731
    y, after = jax.vmap(run, axis_name="devices", out_axes=(0, None))(X.reshape(2, 4, 5))
    close((y.reshape(8, 5), after), alone.apply(alone.variables, X), 1e-5)


def test_with_a_schedule_jit_changes_nothing(library):
    layer = make(library, **SCHEDULE)
    want = layer.apply(layer.variables, X)
    close(jax.jit(layer.apply)(layer.variables, X), want)
    shape = lambda tree: jax.tree.map(lambda v: (v.shape, v.dtype), tree)  # noqa: E731
    assert shape(jax.eval_shape(layer.apply, layer.variables, X)) == shape(want)


def test_with_a_schedule_vmap_and_scan_are_loops(library):
    layer = make(library, **SCHEDULE)
    fn, variables, xs = layer.apply, layer.variables, jnp.stack([X, 2 * X + 1])
    first, after = fn(variables, xs[0])
    close(jax.vmap(layer.y)(xs), jnp.stack([first, layer.y(xs[1])]))
    second, after = fn(after, xs[1])
    end, ys = jax.lax.scan(lambda v, x: fn(v, x)[::-1], variables, xs)
    close((end, ys), (after, jnp.stack([first, second])), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_statistics_in_float32(library, dtype):
    layer = make(library, dtype=dtype)
    y, variables = layer.apply(layer.variables, X.astype(dtype))
    assert (y.dtype, variables["batch_stats"]["var"].dtype) == (dtype, jnp.float32)
    want = make(library).y(X.astype(dtype).astype(jnp.float32))
    close(y.astype(jnp.float32), want, float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("limits", [{"r_max": 0.5}, {"d_max": -1.0}])
def test_limits_that_make_no_sense_are_refused(library, limits):
    (name,) = limits
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        make(library, **limits).y(X)
