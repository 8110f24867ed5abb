"""Weight norm and spectral norm around nnx layers: Flax's surface and values, not its faults."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bnjax.nnx import SpectralNorm, WeightNorm
from bnjax.testing import relative_error
from tests._modules import signature

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 3)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4)), jnp.float32)
PAIRS = {"weight": (WeightNorm, nnx.WeightNorm), "spectral": (SpectralNorm, nnx.SpectralNorm)}


def make(norm, layer=None, **options):
    layer = layer or nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    return norm(layer, rngs=nnx.Rngs(1), **options)


def ours(kind, layer=None, **options):
    return make(PAIRS[kind][0], layer, **options)


def values(node, *filters):
    return jax.tree.map(jnp.array, nnx.to_pure_dict(nnx.state(node, *filters)))


def same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def loss(model):
    return jnp.sum(WEIGHTS * model(X))


@pytest.mark.parametrize("kind", PAIRS)
def test_constructor_attributes_and_variables_are_those_of_flax(kind):
    mine, theirs = PAIRS[kind]
    assert list(signature(mine.__init__).items()) == list(signature(theirs.__init__).items())
    mine, theirs = make(mine), make(theirs)
    assert vars(theirs).keys() == vars(mine).keys()
    shapes = [jax.tree.map(lambda v: (v.shape, v.dtype), values(m)) for m in (mine, theirs)]
    assert shapes[0] == shapes[1]
    stats = [nnx.to_flat_state(nnx.state(m, nnx.BatchStat)) for m in (mine, theirs)]
    assert [path for path, _ in stats[0]] == [path for path, _ in stats[1]]


CASES = {
    "weight": {},
    "weight, no scale": {"use_scale": False, "epsilon": 0.1},
    "weight, two axes": {"feature_axes": (-1, -2)},
    "weight, one norm": {"feature_axes": None, "scale_init": nnx.initializers.constant(2.0)},
    "weight, everything": {"variable_filter": nnx.Param},
    "spectral": {},
    "spectral, four steps": {"n_steps": 4},
    "spectral, no step": {"n_steps": 0},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("conv", [False, True])
def test_the_first_output_is_that_of_flax(case, conv, relaxed):
    norms = PAIRS[case.partition(",")[0]]
    x = IMAGES if conv else X

    def layer():
        rngs = nnx.Rngs(0)
        return nnx.Conv(3, 4, (3, 3), rngs=rngs) if conv else nnx.Linear(5, 4, rngs=rngs)

    mine, theirs = (make(norm, layer(), **CASES[case]) for norm in norms)
    if theirs.batch_stats if "spectral" in case else False:
        theirs.batch_stats["kernel", "u"][...] *= 100  # theirs starts with 0.01 times ours
    assert relative_error(mine(x), theirs(x)) < 1e-5
    for path, value in nnx.to_flat_state(nnx.state(mine, nnx.BatchStat)):
        want = theirs.batch_stats[path[-1]]
        np.testing.assert_allclose(value[...], want[...], rtol=1e-5, atol=1e-5)


# https://github.com/google/flax/issues/5576
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("how", ["eager", "jit", "grad", "vmap", "scan", "raise"])
def test_flax_5576_a_call_leaves_the_parameters_alone(kind, how):
    def call(model, x):
        return model(x)

    layer = nnx.Linear(5, 5, rngs=nnx.Rngs(0))
    model = ours(kind, layer)
    model.layer_instance.kernel[...] *= 3
    before, identity = values(model, nnx.Param), model.layer_instance.kernel
    if how == "eager":
        call(model, X)
    elif how == "jit":
        nnx.jit(call)(model, X)
    elif how == "grad":
        nnx.jit(nnx.grad(lambda model: jnp.sum(model(X))))(model)
    elif how == "vmap":
        nnx.vmap(call, in_axes=(None, 0))(ours_frozen(model), X[:, None])
    elif how == "scan":
        nnx.scan(call, in_axes=(None, nnx.Carry), out_axes=nnx.Carry, length=2)(
            ours_frozen(model), X
        )
    else:
        with pytest.raises(TypeError):
            model(jnp.ones((2, 7)))
    same(values(model, nnx.Param), before)
    assert model.layer_instance.kernel is identity


def ours_frozen(model):
    """Broadcast state must not change under vmap and scan."""
    model.eval()
    return model


@pytest.mark.parametrize("kind", PAIRS)
def test_a_closed_over_model_can_be_transformed(kind):
    # Nothing is written, so nothing leaks out of the transformation.
    model = ours(kind)
    model.eval()
    want = model(X)
    np.testing.assert_allclose(jax.jit(lambda x: model(x))(X), want, rtol=1e-5, atol=1e-6)
    got = jax.vmap(lambda x: model(x[None]))(X)[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_calls_modes_and_views_choose_whether_the_iteration_moves():
    model = ours("spectral")
    start = values(model, nnx.BatchStat)
    model(X, update_stats=False)
    same(values(model, nnx.BatchStat), start)
    model.eval()
    model(X)
    nnx.view(model, use_running_average=True)(X)
    same(values(model, nnx.BatchStat), start)
    nnx.view(model, use_running_average=False)(X)
    u = ("kernel", "u")
    assert not np.allclose(model.batch_stats[u][...], start["batch_stats"][u])


def test_an_optimizer_trains_weights_and_scales():
    # Flax keeps the scales as plain arrays: an optimizer of nnx.Param passes them by.
    model = ours("weight")
    before = values(model, nnx.Param)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(loss)(model))
    after = values(model, nnx.Param)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, before)
    assert all(jax.tree.leaves(moved)), moved
    # The gradient is orthogonal to the weights: Salimans & Kingma (2016), section 2.1.
    kernel, start = (v["layer_instance"]["kernel"] for v in (after, before))
    np.testing.assert_allclose(jnp.sum((kernel - start) * start, 0), 0, atol=1e-5)


class Block(nnx.Module):
    """Everything a layer may do in its call."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(5, 4, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.linear(x)
        self.made = nnx.Intermediate(x)
        self.sow(nnx.Intermediate, "sown", x)
        return self.dropout(self.norm(x))


@pytest.mark.parametrize("kind", PAIRS)
def test_what_else_the_layer_holds_lives_on(kind):
    model = ours(kind, Block(nnx.Rngs(0)))
    block = model.layer_instance
    outputs, means = [], []
    for count in (1, 2):
        y, captured = nnx.capture(model, nnx.Intermediate)(X)
        assert block.dropout.rngs.count[...] == count
        np.testing.assert_array_equal(block.made[...], captured["layer_instance"]["sown"][0])
        outputs.append(y)
        means.append(block.made[...].mean(0))
    assert np.any((outputs[0] == 0) != (outputs[1] == 0))  # another draw
    want = 0.01 * (0.99 * means[0] + means[1])
    np.testing.assert_allclose(block.norm.mean[...], want, rtol=1e-4)
    model.eval()
    assert block.norm.use_running_average
    assert block.dropout.deterministic


def test_one_inside_the_other():
    model = WeightNorm(ours("spectral"), rngs=nnx.Rngs(0))
    before = values(model, nnx.Param)
    model(X)
    assert model.layer_instance.batch_stats["kernel", "sigma"][...] != 1
    same(values(model, nnx.Param), before)


def test_a_checkpoint_goes_on():
    model = ours("spectral")
    model(X)
    graph, state = nnx.split(ours("spectral"))
    nnx.replace_by_pure_dict(state, jax.tree.map(np.asarray, values(model)))
    restored = nnx.merge(graph, state)
    np.testing.assert_array_equal(restored(X), model(X))


@pytest.mark.parametrize("kind", PAIRS)
def test_vmap_scan_and_eval_shape(kind):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def stacked(rngs):
        return PAIRS[kind][0](nnx.Linear(5, 5, rngs=rngs), rngs=rngs)

    layers = stacked(nnx.Rngs(0))
    before = values(layers, nnx.Param)
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, X)
    assert y.shape == (3, *X.shape)
    y = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, X)
    assert y.shape == X.shape
    same(values(layers, nnx.Param), before)
    abstract = nnx.eval_shape(lambda: ours(kind))
    assert abstract.layer_instance.kernel.get_value().shape == (5, 4)
    shape = jax.eval_shape(lambda x: ours_frozen(ours(kind))(x), X)
    assert (shape.shape, shape.dtype) == ((6, 4), jnp.float32)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(
    ("kernel", "options", "output"),
    [
        (jnp.bfloat16, {"param_dtype": jnp.bfloat16}, jnp.bfloat16),
        (jnp.bfloat16, {}, jnp.float32),
        (jnp.float32, {"dtype": jnp.bfloat16}, jnp.bfloat16),
    ],
    ids=str,
)
def test_dtypes_follow_flax(kind, kernel, options, output):
    class Spy(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.ones((5, 4), kernel))

        def __call__(self, x):
            assert self.kernel[...].dtype == output
            return x.astype(output) @ self.kernel[...]

    model = ours(kind, Spy(), **options)
    y = model(X).astype(jnp.float32)
    want = X.sum(-1, keepdims=True) / np.sqrt(5 if kind == "weight" else 20)
    np.testing.assert_allclose(y, jnp.broadcast_to(want, y.shape), rtol=0.02, atol=0.02)
    assert model.layer_instance.kernel[...].dtype == kernel


def test_what_is_no_matrix_is_refused_where_asked_for():
    conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"kernel has shape .*error_on_non_matrix"):
        ours("spectral", conv, error_on_non_matrix=True)


@pytest.mark.parametrize("kind", PAIRS)
def test_weights_that_came_later_are_refused(kind):
    model = ours(kind, nnx.Sequential(nnx.Linear(5, 4, rngs=nnx.Rngs(0))))
    model.layer_instance.layers[0].late_kernel = nnx.Param(jnp.ones((2, 2)))
    if kind == "weight":
        model.variable_filter = lambda path, _: "kernel" in path[-1]
    with pytest.raises(ValueError, match=r"late_kernel .*Wrap it again"):
        model(X)
