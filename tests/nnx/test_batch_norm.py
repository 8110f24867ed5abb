"""What is nnx's own about its batch norm. What linen promises too: tests/conformance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bnjax.nnx import BatchNorm

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)


def make(**options):
    return BatchNorm(5, rngs=nnx.Rngs(0), **options)


def test_attributes_are_those_of_flax_and_more():
    assert vars(nnx.BatchNorm(5, rngs=nnx.Rngs(0))).keys() <= vars(make()).keys()


def test_train_eval_call_and_view_choose_the_statistics():
    layer = make()
    layer.train()
    trained = layer(X)
    layer.eval()
    before = jax.tree.map(jnp.array, nnx.state(layer, nnx.BatchStat))
    evaluated = layer(X)
    assert not np.allclose(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(layer, nnx.BatchStat), before)
    np.testing.assert_array_equal(layer(X, use_running_average=False), trained)
    view = nnx.view(layer, use_running_average=False)
    np.testing.assert_array_equal(view(X), trained)


def test_no_flag_at_all_is_explained():
    with pytest.raises(ValueError, match="train"):
        make(use_running_average=None)(X)


def test_custom_promotion_reaches_input_and_parameters():
    seen = []

    def promote(arrays, dtype):
        seen.append(len(arrays))
        return tuple(None if a is None else jnp.asarray(a, jnp.float32) for a in arrays)

    assert make(promote_dtype=promote)(X.astype(jnp.bfloat16)).dtype == jnp.float32
    assert seen == [5]


# flax#4760, flax#4061, flax#4734.
def test_layers_made_by_vmap_are_mapped_and_scanned():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def stacked(rngs):
        return BatchNorm(5, rngs=rngs)

    layers = stacked(nnx.Rngs(0))
    assert layers.mean[...].shape == (3, 5)
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, X)
    assert y.shape == (3, *X.shape)
    assert np.all(layers.mean[...] != 0)
    y = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, X)
    assert y.shape == X.shape


def test_eval_shape():
    assert nnx.eval_shape(make).mean.get_value().shape == (5,)


def test_gradients_under_jit_and_the_state_moves():
    layer = make()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)

    @nnx.jit
    def grads(layer, x):
        return nnx.grad(lambda layer: jnp.sum(weights * layer(x)))(layer)

    assert np.abs(grads(layer, X).scale[...]).min() > 0
    assert np.all(layer.mean[...] != 0)
