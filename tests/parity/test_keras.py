"""Live parity with Keras on its JAX backend. Its defaults: momentum 0.99, epsilon 1e-3."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.testing import relative_error

from . import _peers

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")

# Statistics are rounded to the dtype of the input by Keras, ours stay float32.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


@pytest.fixture(autouse=True)
def jax_backend():
    if keras.backend.backend() != "jax":
        pytest.skip("Keras was imported with another backend")


@pytest.mark.parametrize(("case", "dtype"), _peers.pairs(TOLERANCE), ids=_peers.name)
def test_batch_norm(case, dtype):
    inputs = _peers.draw(case, jnp.dtype(dtype))
    got = _peers.run_bnjax(inputs)
    with _peers.relaxed():
        want = _peers.run_keras(inputs)
    errors = _peers.relative_errors(got, want)
    assert max(errors.values()) < TOLERANCE[dtype], errors
    assert got["y"].dtype == dtype


def test_mask_has_one_dimension_less():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 6, 5)), jnp.float32)
    dy = jnp.asarray(rng.normal(size=(4, 6, 5)), jnp.float32)
    mask = jnp.asarray(rng.uniform(size=(4, 6)) < 0.6)
    layer = keras.layers.BatchNormalization(momentum=0.9)
    layer.build(x.shape)
    start = [v.value for v in layer.non_trainable_variables]

    def theirs(x):
        params = [v.value for v in layer.trainable_variables]
        y, state = layer.stateless_call(params, start, x, mask=mask, training=True)
        return (y * dy).sum(), (y, state)

    def ours(x):
        options = {"train": True, "decay": 0.9, "epsilon": 1e-3, "mask": mask[..., None]}
        y, stats = bnjax.batch_norm(x, None, None, bnjax.init_batch_stats(5), **options)
        return (y * dy).sum(), (y, stats)

    with _peers.relaxed():
        dx_want, (y_want, (mean, var)) = jax.jit(jax.grad(theirs, has_aux=True))(x)
    dx, (y, stats) = jax.jit(jax.grad(ours, has_aux=True))(x)
    # Keras adds 1e-7 to the count.
    for got, want in ((y, y_want), (dx, dx_want), (stats.mean, mean), (stats.var, var)):
        assert relative_error(got, want) < 1e-5
