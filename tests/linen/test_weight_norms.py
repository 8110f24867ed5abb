"""Weight norm and spectral norm around linen layers: Flax's surface and values, not its faults."""

import dataclasses
import functools

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.linen import BatchNorm, SpectralNorm, WeightNorm
from bnjax.testing import relative_error

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 8, 3)), jnp.float32)
V = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)), jnp.float32)
PAIRS = {"weight": (WeightNorm, nn.WeightNorm), "spectral": (SpectralNorm, nn.SpectralNorm)}


class Net(nn.Module):
    """A model in which `norm` wraps one convolution, one dense layer and one block."""

    norm: type
    call: tuple = ()
    fields: tuple = ()

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(self.norm, **dict(self.fields))
        call = dict(self.call)
        x = nn.relu(norm(nn.Conv(4, (3, 3), strides=2))(x, **call))
        x = norm(Block())(x.reshape(len(x), -1), **call)
        return norm(nn.Dense(2), name="last")(x, **call)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.gelu(nn.Dense(7, name="inner")(x))


def call(kind, update_stats=True):
    return {} if kind == "weight" else {"update_stats": update_stats}


@pytest.mark.parametrize("kind", PAIRS)
def test_fields_and_defaults_are_those_of_flax(kind):
    ours, theirs = PAIRS[kind]

    def default(f):
        made = f.default_factory is not dataclasses.MISSING
        return f.default_factory() if made else f.default

    ours_fields, theirs_fields = (
        [(f.name, default(f), f.kw_only) for f in dataclasses.fields(c)] for c in (ours, theirs)
    )
    assert ours_fields == theirs_fields


CASES = {
    "weight": {},
    "weight, no scale": {"use_scale": False, "epsilon": 0.1},
    "weight, two axes": {"feature_axes": (-1, -2), "variable_filter": ("kernel",)},
    "weight, one norm": {"feature_axes": None, "scale_init": nn.initializers.constant(2.0)},
    "weight, by name": {"variable_filter": ("Conv", "inner")},
    "weight, everything": {"variable_filter": None},
    "spectral": {},
    "spectral, four steps": {"n_steps": 4, "collection_name": "spectral"},
    "spectral, no step": {"n_steps": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_variables_outputs_and_gradients_are_those_of_flax(case, relaxed):
    kind, fields = case.partition(",")[0], CASES[case]
    models = [Net(c, tuple(call(kind).items()), tuple(fields.items())) for c in PAIRS[kind]]
    theirs = jax.jit(models[1].init)(jax.random.key(0), X)
    shapes = [
        {"/".join(map(str, p)): (v.shape, v.dtype) for p, v in flat(variables)}
        for variables in (jax.eval_shape(models[0].init, jax.random.key(0), X), theirs)
    ]
    assert shapes[0] == shapes[1]

    # Flax's start, moved by a step of training so that no weight is normalised any more.
    start = jax.tree.map(lambda v: v * 1.5 + 0.1, theirs)
    stats = {k: v for k, v in start.items() if k != "params"}
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(6, 2)), jnp.float32)

    def run(model):
        def loss(params, x):
            y, updates = model.apply({"params": params, **stats}, x, mutable=list(stats))
            return jnp.sum(weights * y), (y, updates)

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(start["params"], X)

    got, want = run(models[0]), run(models[1])
    assert jax.tree.structure(got) == jax.tree.structure(want)
    errors = jax.tree.map(lambda g, w: relative_error(g, w) if np.any(w) else g.max(), got, want)
    assert max(jax.tree.leaves(errors)) < 1e-5, errors


def flat(tree):
    return flax.traverse_util.flatten_dict(tree).items()


@pytest.mark.parametrize("kind", PAIRS)
def test_flax_5576_parameters_are_left_alone_even_where_they_are_mutable(kind):
    # Flax's linen modules write the normalised weights back in init; spectral norm in apply too.
    dense = nn.Dense(4, kernel_init=nn.initializers.constant(3.0))
    model = PAIRS[kind][0](dense)
    variables = model.init(jax.random.key(0), V, **call(kind))
    assert np.all(variables["params"]["layer_instance"]["kernel"] == 3)
    y, updates = model.apply(variables, V, **call(kind), mutable=True)
    jax.tree.map(np.testing.assert_array_equal, updates["params"], variables["params"])
    np.testing.assert_allclose(y, model.apply(variables, V, **call(kind, False)), rtol=1e-5)
    assert not np.allclose(y, dense.apply({"params": variables["params"]["layer_instance"]}, V))


def test_to_iterate_the_state_has_to_be_mutable():
    model = SpectralNorm(nn.Dense(4))
    variables = model.init(jax.random.key(0), V, update_stats=False)
    with pytest.raises(Exception, match="immutable"):
        model.apply(variables, V, update_stats=True)


class Normed(nn.Module):
    """A block whose batch norm has names that match and matrices that are no weights."""

    @nn.compact
    def __call__(self, x):
        x = BatchNorm(use_running_average=False, axis=(1, 2), name="kernel")(x[:, None])
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=False)(x[:, 0]))


@pytest.mark.parametrize("kind", PAIRS)
def test_other_collections_of_the_layer_live_on(kind):
    # Flax normalises the running statistics too, or refuses to let them change.
    model = PAIRS[kind][0](Normed())
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = model.init(rngs, V, **call(kind, False))
    stats = variables["batch_stats"]["layer_instance"]["kernel"]
    np.testing.assert_array_equal(stats["var"], 1)
    _, updates = model.apply(
        variables, V, **call(kind), mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
    )
    stats = updates["batch_stats"]["layer_instance"]["kernel"]
    np.testing.assert_allclose(stats["mean"][0], 0.01 * V.mean(0), rtol=1e-4)


def test_partitioned_parameters_keep_their_boxes():
    # Flax's spectral norm does not know them.
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    for kind, (ours, _) in PAIRS.items():
        model = ours(nn.Dense(4, kernel_init=boxed))
        variables = model.init(jax.random.key(0), V, **call(kind))
        assert variables["params"]["layer_instance"]["kernel"].names == (None, "model")
        y, updates = model.apply(variables, V, **call(kind), mutable=["params", "batch_stats"])
        assert updates["params"]["layer_instance"]["kernel"].names == (None, "model")
        plain = ours(nn.Dense(4))
        bare = plain.init(jax.random.key(0), V, **call(kind))
        want = plain.apply(bare, V, **call(kind), mutable=["batch_stats"])[0]
        np.testing.assert_allclose(y, want, rtol=1e-5)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(
    ("kernel", "fields", "output"),
    [
        (jnp.bfloat16, {"param_dtype": jnp.bfloat16}, jnp.bfloat16),
        (jnp.bfloat16, {}, jnp.float32),
        (jnp.float32, {"dtype": jnp.bfloat16}, jnp.bfloat16),
    ],
    ids=str,
)
def test_dtypes_are_those_of_flax(kind, kernel, fields, output, relaxed):
    dtypes = []

    class Spy(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("kernel", nn.initializers.lecun_normal(), (5, 4), kernel)
            dtypes.append(w.dtype)
            return x.astype(w.dtype) @ w

    values = []
    for norm in PAIRS[kind]:
        model = norm(Spy(), **fields)
        variables = model.init(jax.random.key(0), V, **call(kind, False))
        values.append(model.apply(variables, V, **call(kind, False)).astype(jnp.float32))
        assert dtypes[-1] == output
    rtol = float(jnp.finfo(output).eps) * 8
    assert relative_error(*values) < (rtol if kernel == jnp.float32 else 0.05)


@pytest.mark.parametrize("kind", PAIRS)
def test_scan_of_remat_over_layers(kind):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return PAIRS[kind][0](nn.Dense(5))(x, **call(kind)), None

    axes = {"params": 0, "batch_stats": 0}
    layers = nn.scan(nn.remat(Layer), axes, split_rngs={"params": True}, length=3)()
    variables = layers.init(jax.random.key(0), V, None)
    assert variables["params"]["Dense_0"]["kernel"].shape == (3, 5, 5)
    (y, _), _ = layers.apply(variables, V, None, mutable=["batch_stats"])
    assert y.shape == V.shape


def test_what_is_no_matrix_is_refused_where_asked_for():
    with pytest.raises(ValueError, match=r"Conv_0/kernel has shape .*error_on_non_matrix"):
        Net(SpectralNorm, (("update_stats", False),), (("error_on_non_matrix", True),)).init(
            jax.random.key(0), X
        )
