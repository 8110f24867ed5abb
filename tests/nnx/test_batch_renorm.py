"""What is nnx's own about its batch renorm. What linen promises too: tests/conformance."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bnjax.nnx import BatchRenorm, one_update

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)
R_MAX, D_MAX = optax.linear_schedule(1.0, 3.0, 4), optax.linear_schedule(0.0, 5.0, 4)


def make(**options):
    return BatchRenorm(5, rngs=nnx.Rngs(0), **options)


def stats(layer):
    return nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))


def close(got, want, rtol=1e-6):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol), got, want)


def test_one_update_out_of_several_batches():
    layer, whole = (make(momentum=0.9, r_max=R_MAX, d_max=D_MAX) for _ in range(2))
    with one_update(nnx.Sequential(layer, nnx.relu)):
        layer(X[:4])
        layer(X[4:])
    whole(X)
    close(stats(layer), stats(whole), 1e-5)
    assert layer.count[...] == 1


def test_options_are_attributes():
    layer = make(epsilon=1e-3, debias=True)
    assert (layer.epsilon, layer.debias, layer.single_value) == (1e-3, True, "allow")


def test_layers_made_by_vmap_are_mapped_and_scanned():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def stacked(rngs):
        return BatchRenorm(5, r_max=R_MAX, d_max=D_MAX, rngs=rngs)

    layers = stacked(nnx.Rngs(0))
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, X)
    close(y[1], make(r_max=R_MAX, d_max=D_MAX)(X))
    y = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, X)
    assert y.shape == X.shape
    np.testing.assert_array_equal(layers.count[...], [2, 2, 2])


def test_eval_shape():
    assert nnx.eval_shape(make).count.get_value().shape == ()


def test_gradients_under_jit_and_the_count_moves():
    layer = make()

    @nnx.jit
    def grads(layer, x):
        return nnx.grad(lambda layer: jnp.sum(WEIGHTS * layer(x)))(layer)

    assert np.abs(grads(layer, X).scale[...]).min() > 0
    assert layer.count[...] == 1
