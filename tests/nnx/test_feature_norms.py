"""What is nnx's own about its feature norms. What linen promises too: tests/conformance."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax.nnx
from bnjax.testing import relative_error
from tests._agree import assert_agree, relaxed
from tests.conformance._feature_norms import NORMS, SHAPE

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, SHAPE), jnp.float32)


def ours(norm, features=6, rngs=None, **fields):
    return getattr(bnjax.nnx, norm)(features, rngs=rngs or nnx.Rngs(0), **NORMS[norm] | fields)


def theirs(norm, **fields):
    fields = NORMS[norm] | {"use_fast_variance": False} | fields
    return getattr(nnx, norm)(6, rngs=nnx.Rngs(0), **fields)


def run(layer, x):
    return layer(x)


@pytest.mark.parametrize("norm", NORMS)
def test_attributes_are_those_of_flax(norm):
    assert vars(ours(norm)).keys() == vars(theirs(norm)).keys()


@pytest.mark.parametrize("axes", [(2, 3), -1, (0, 1, 2, 3)], ids=str)
def test_group_norm_over_other_axes_where_flax_mixes_up_the_groups(axes):
    # Flax repeats the statistics of a group along axis 1, whatever axis the groups are on.
    got = ours("GroupNorm", reduction_axes=axes)(X)
    module = flax.linen.GroupNorm(3, reduction_axes=axes, use_fast_variance=False)
    with relaxed():
        want = module.apply(module.init(jax.random.key(0), X), X)
    assert relative_error(got, want) < 1e-5  # sets of two values


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_by_nnx(norm):
    layer = ours(norm, scale_init=jax.nn.initializers.uniform(1.0))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
    grads = nnx.grad(lambda layer: jnp.sum(weights * layer(X)))(layer)
    graph, params = nnx.split(layer)
    loss = lambda params: jnp.sum(weights * nnx.merge(graph, params)(X))  # noqa: E731
    want = jax.grad(loss)(params)
    assert_agree(nnx.to_pure_dict(grads), nnx.to_pure_dict(want), 1e-6)
    assert all(np.abs(g).min() > 0 for g in jax.tree.leaves(grads))


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
def test_split_merge_jit_and_eval_shape(norm):
    layer = ours(norm)
    want = layer(X)
    graph, state = nnx.split(layer)
    np.testing.assert_array_equal(nnx.merge(graph, state)(X), want)
    assert_agree(nnx.jit(run)(layer, X), want, 1e-6)
    abstract = nnx.state(nnx.eval_shape(lambda: ours(norm)))
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize("norm", NORMS)
def test_layers_made_by_vmap_are_mapped_and_scanned(norm):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def stacked(rngs):
        return ours(norm, rngs=rngs, scale_init=jax.nn.initializers.uniform(1.0))

    layers = stacked(nnx.Rngs(0))
    scales = layers.scale[...]
    assert scales.shape == (3, 6)
    ys = nnx.vmap(run, in_axes=(0, None))(layers, X)
    assert_agree(ys, ours(norm)(X)[None] * scales[:, None, None, None], 1e-6)
    y = nnx.scan(run, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, X)
    assert y.shape == X.shape


@pytest.mark.parametrize("norm", NORMS)
def test_axis_name_under_nnx_vmap(norm):
    xs = jnp.stack([X, 2 * X + 1])
    mapped = nnx.vmap(run, in_axes=(None, 0), axis_name="lane")
    with relaxed():
        want = mapped(theirs(norm, axis_name="lane"), xs)
    assert relative_error(mapped(ours(norm, axis_name="lane"), xs), want) < 1e-5


def test_an_input_of_other_channels_is_refused():
    norm = ours("GroupNorm", use_scale=False, use_bias=False)
    with pytest.raises(ValueError, match="must have 6 channels"):
        norm(X[..., :3])


def test_parameters_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"scale has shape \(5,\)"):
        ours("LayerNorm", 5)(X)
