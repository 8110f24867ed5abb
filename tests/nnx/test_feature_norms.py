"""The nnx modules of layer, RMS, instance and group norm: drop-in for Flax's, and accurate."""

import inspect

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax
import bnjax.nnx
from bnjax.testing import relative_error
from tests import _feature_norms as shared
from tests._feature_norms import NORMS, SHAPE
from tests.parity._peers import relaxed

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, SHAPE), jnp.float32)
INITIALISERS = {"bias_init", "scale_init"}  # Flax makes new, equal functions for each default


def ours(norm, features=6, **fields):
    return getattr(bnjax.nnx, norm)(features, rngs=nnx.Rngs(0), **NORMS[norm] | fields)


def theirs(norm, features=6, **fields):
    fields = NORMS[norm] | {"use_fast_variance": False} | fields
    return getattr(nnx, norm)(features, rngs=nnx.Rngs(0), **fields)


def pure(module, mask=None):
    """The parameters of a module and a function of them."""
    graph, params = nnx.split(module)

    def function(params, x):
        return nnx.merge(graph, params)(x, mask=mask)

    return params, function


def features_of(case):
    axes = case.fields.get("feature_axes", -1)
    return int(np.prod(np.take(case.shape, axes)))


@pytest.mark.parametrize("norm", NORMS)
def test_signatures_and_attributes_are_those_of_flax(norm):
    a, b = getattr(bnjax.nnx, norm), getattr(nnx, norm)
    ours_, theirs_ = (dict(inspect.signature(cls.__init__).parameters) for cls in (a, b))
    assert list(ours_) == list(theirs_)
    for name in ours_.keys() - INITIALISERS:
        got, want = ours_[name], theirs_[name]
        assert (got.default, got.kind) == (want.default, want.kind), name
    got, want = (inspect.signature(cls.__call__).parameters.values() for cls in (a, b))
    assert [(p.name, p.default, p.kind) for p in got] == [(p.name, p.default, p.kind) for p in want]
    assert vars(ours(norm)).keys() == vars(theirs(norm)).keys()


@pytest.mark.parametrize("case", shared.cases("nnx"), ids=repr)
def test_variables_outputs_and_gradients_are_those_of_flax(case):
    x, dy, mask = shared.draw(case)
    features = features_of(case)
    with relaxed():
        want, flax = pure(theirs(case.norm, features, **case.fields), mask)
    got, fn = pure(ours(case.norm, features, **case.fields), mask)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    shared.assert_agree(got, want, tolerance=0)
    params = shared.perturb(want)
    with relaxed():
        want = shared.exam(flax, params, x, dy)
    shared.assert_agree(shared.exam(fn, params, x, dy), want, case.tolerance)


@pytest.mark.parametrize("axes", [(2, 3), -1, (0, 1, 2, 3)], ids=str)
def test_group_norm_over_other_axes_where_flax_mixes_up_the_groups(axes):
    # Flax repeats the statistics of a group along axis 1, whatever axis the groups are on.
    import flax.linen

    got = ours("GroupNorm", reduction_axes=axes)(X)
    module = flax.linen.GroupNorm(3, reduction_axes=axes, use_fast_variance=False)
    with relaxed():
        want = module.apply(module.init(jax.random.key(0), X), X)
    assert relative_error(got, want) < 1e-5  # sets of two values


@pytest.mark.parametrize("norm", NORMS)
def test_accurate_where_the_default_of_flax_is_wrong(norm):
    x, x_hat = shared.far_from_zero(norm)
    assert relative_error(ours(norm)(x), x_hat) < 1e-6
    if norm != "RMSNorm":  # it has no difference of large numbers to take
        with relaxed():
            flax = theirs(norm, use_fast_variance=True)(jnp.asarray(x))
        assert relative_error(flax, x_hat) > 0.1


@pytest.mark.parametrize("norm", NORMS)
def test_input_is_not_rounded_to_the_dtype_of_the_output(norm):
    # Flax casts first: of 1,000 with a spread of 1, bfloat16 keeps steps of 4.
    x = jnp.asarray(np.random.default_rng(1).normal(1e3, 1, SHAPE), jnp.float32)
    got = ours(norm, dtype=jnp.bfloat16)(x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, ours(norm)(x).astype(jnp.bfloat16))


@pytest.mark.parametrize("norm", NORMS)
def test_split_merge_jit_vmap_scan_and_eval_shape(norm):
    layer = ours(norm)
    want = layer(X)
    graph, state = nnx.split(layer)
    np.testing.assert_array_equal(nnx.merge(graph, state)(X), want)
    run = lambda layer, x: layer(x)  # noqa: E731
    shared.assert_agree(nnx.jit(run)(layer, X), want, 1e-6)
    shapes = {name: (6,) for name in ("scale", "bias") if name in nnx.to_pure_dict(state)}
    abstract = nnx.eval_shape(lambda: ours(norm))
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(abstract))) == shapes

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def stacked(rngs):
        options = {"rngs": rngs, "scale_init": jax.nn.initializers.uniform(1.0)}
        return getattr(bnjax.nnx, norm)(6, **NORMS[norm], **options)

    layers = stacked(nnx.Rngs(0))
    ys = nnx.vmap(run, in_axes=(0, None))(layers, X)
    scales = layers.scale[...]
    assert scales.shape == (3, 6)
    shared.assert_agree(ys, want[None] * scales[:, None, None, None], 1e-6)
    y = nnx.scan(run, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, X)
    assert y.shape == X.shape


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_by_nnx(norm):
    layer = ours(norm, scale_init=jax.nn.initializers.uniform(1.0))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
    grads = nnx.grad(lambda layer: jnp.sum(weights * layer(X)))(layer)
    params, fn = pure(layer)
    want = jax.grad(lambda params: jnp.sum(weights * fn(params, X)))(params)
    shared.assert_agree(nnx.to_pure_dict(grads), nnx.to_pure_dict(want), 1e-6)
    assert all(np.abs(g).min() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("norm", NORMS)
def test_axis_name_under_vmap(norm):
    xs = jnp.stack([X, 2 * X + 1])
    mask = np.random.default_rng(3).random(SHAPE) < 0.8

    def mapped(layer):
        call = lambda layer, x: layer(x, mask=mask)  # noqa: E731
        return nnx.vmap(call, in_axes=(None, 0), axis_name="lane")(layer, xs)

    with relaxed():
        want = mapped(theirs(norm, axis_name="lane"))
    got = mapped(ours(norm, axis_name="lane"))
    assert relative_error(got, want) < 1e-5
    assert relative_error(mapped(ours(norm)), got) > 0.01


@pytest.mark.parametrize("direction", ["from Flax", "to Flax"])
@pytest.mark.parametrize("norm", NORMS)
def test_checkpoint_moves(norm, direction):
    source, target = ours(norm), theirs(norm)
    if direction == "from Flax":
        source, target = target, source
    saved = shared.perturb(nnx.to_pure_dict(nnx.state(source)))
    template = nnx.to_pure_dict(nnx.state(target))
    loaded = flax.serialization.from_bytes(template, flax.serialization.to_bytes(saved))
    shared.assert_agree(loaded, saved, 0)
    for layer, tree in ((source, saved), (target, loaded)):
        state = nnx.state(layer)
        nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, tree))
        nnx.update(layer, state)
    with relaxed():
        assert relative_error(target(X), source(X)) < 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_custom_promotion_reaches_input_and_parameters(norm):
    seen = []

    def promote(arrays, dtype):
        seen.append([jnp.shape(a) for a in arrays])
        return tuple(jnp.asarray(a, jnp.float32) for a in arrays)

    layer = ours(norm, promote_dtype=promote, param_dtype=jnp.bfloat16)
    assert layer(X.astype(jnp.bfloat16)).dtype == jnp.float32
    assert seen == [[SHAPE, (6,), (6,)][: 2 if norm == "RMSNorm" else 3]]


@pytest.mark.parametrize("norm", NORMS)
def test_metadata_reaches_the_parameters(norm):
    names = {"scale", "bias"} - ({"bias"} if norm == "RMSNorm" else set())
    layer = ours(norm, **{f"{name}_metadata": {"wiring": name} for name in names})
    assert all(getattr(layer, name).wiring == name for name in names)


@pytest.mark.parametrize("norm", NORMS)
def test_integer_input_is_computed_in_float32(norm):
    x = jnp.arange(4 * 3 * 6).reshape(4, 3, 6) * 7919 % 10007  # not whole in bfloat16
    for dtype in (None, jnp.bfloat16):
        y = ours(norm, dtype=dtype)(x)
        assert y.dtype == (dtype or jnp.float32)
        want = ours(norm, dtype=dtype)(x.astype(jnp.float32))
        np.testing.assert_array_equal(y.astype(jnp.float32), want.astype(jnp.float32))


@pytest.mark.parametrize("norm", NORMS)
def test_a_mask_hides_and_nothing_to_count_gives_bias(norm):
    mask = np.random.default_rng(1).random(SHAPE) < 0.8
    mask[0] = False
    layer = ours(norm)
    y, quiet = layer(jnp.where(mask, X, jnp.nan), mask=mask), layer(X, mask=mask)
    np.testing.assert_array_equal(np.where(mask, y, 0), np.where(mask, quiet, 0))
    np.testing.assert_array_equal(y[0], jnp.zeros(SHAPE[1:]))
    np.testing.assert_array_equal(layer(X, mask=mask.astype(int)), quiet)


def test_the_modules_are_the_core():
    layers = {norm: ours(norm) for norm in NORMS}
    for layer in layers.values():
        layer.scale[...] = jnp.arange(6.0)
    scale, bias = jnp.arange(6.0), jnp.zeros(6)
    np.testing.assert_array_equal(layers["LayerNorm"](X), bnjax.layer_norm(X, scale, bias))
    np.testing.assert_array_equal(layers["RMSNorm"](X), bnjax.rms_norm(X, scale))
    np.testing.assert_array_equal(layers["InstanceNorm"](X), bnjax.instance_norm(X, scale, bias))
    want = bnjax.group_norm(X, scale, bias, num_groups=3)
    np.testing.assert_array_equal(layers["GroupNorm"](X), want)


def test_errors_name_argument_and_remedy():
    group = lambda **fields: bnjax.nnx.GroupNorm(6, rngs=nnx.Rngs(0), **fields)  # noqa: E731
    for groups in ({"num_groups": 3, "group_size": 2}, {"num_groups": None}, {"group_size": 2}):
        with pytest.raises(ValueError, match="num_groups=None as well"):
            group(**groups)
    with pytest.raises(ValueError, match="num_groups=4 does not divide the 6 channels"):
        group(num_groups=4)
    with pytest.raises(ValueError, match="group_size=4 does not divide the 6 channels"):
        group(num_groups=None, group_size=4)
    with pytest.raises(ValueError, match="must have 6 channels"):
        group(num_groups=3, use_scale=False, use_bias=False)(X[..., :3])
    with pytest.raises(ValueError, match="must hold the channel axis"):
        group(num_groups=2, reduction_axes=(1, 2))(X)
    with pytest.raises(ValueError, match=r"scale has shape \(5,\)"):
        ours("LayerNorm", 5)(X)
    with pytest.raises(ValueError, match="keeps axis 0"):
        ours("InstanceNorm", feature_axes=0)(X)
    with pytest.raises(ValueError, match="mask of shape"):
        ours("RMSNorm")(X, jnp.ones((5,), bool))
    with pytest.warns(UserWarning, match="that of one value"):
        ours("InstanceNorm")(X[:, :1, :1])
