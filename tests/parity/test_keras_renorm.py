"""Live parity of batch renorm with Keras' ``renorm=True``, on its JAX backend.

Keras keeps two sets of running statistics, one for training and one for evaluation; with one
momentum for both they agree, and are ours.
"""

import os

import jax.numpy as jnp
import numpy as np
import pytest

import bnjax

from . import _peers

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")

LIMITS = {"tight": (1.0, 0.0), "clipped": (1.3, 0.4), "free": (None, None)}


@pytest.fixture(autouse=True)
def jax_backend():
    if keras.backend.backend() != "jax":
        pytest.skip("Keras was imported with another backend")


def start(inputs):
    """Running mean and variance: neither those of the data nor 0 and 1."""
    rng = np.random.default_rng(9)
    mean, var = rng.normal(size=inputs.scale.shape), rng.uniform(0.5, 3, inputs.scale.shape)
    return jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32)


def run_ours(inputs, r_max, d_max, mask):
    options = {"epsilon": inputs.epsilon, "axis": inputs.axis, "decay": inputs.decay}
    options |= {"r_max": r_max or 1e9, "d_max": 1e9 if d_max is None else d_max}

    def train(x, scale, bias, stats):
        return bnjax.batch_renorm(x, scale, bias, stats, train=True, mask=mask, **options)

    def evaluate(x, stats):
        return bnjax.batch_renorm(x, scale, bias, stats, train=False, **options)[0]

    scale, bias = jnp.asarray(inputs.scale), jnp.asarray(inputs.bias)
    stats = bnjax.BatchStats(*start(inputs), jnp.int32(1))
    return _peers._experiment(inputs, train, evaluate, stats, scale, bias)


def run_keras(inputs, r_max, d_max, mask):
    limits = {} if r_max is None else {"rmin": 1 / r_max, "rmax": r_max, "dmax": d_max}
    layer = keras.layers.BatchNormalization(
        axis=inputs.axis,
        momentum=inputs.decay,
        epsilon=inputs.epsilon,
        renorm=True,
        renorm_clipping=limits,
        renorm_momentum=inputs.decay,
        dtype=str(inputs.x.dtype),
    )
    layer.build(inputs.x[0].shape)
    names = [v.name for v in layer.non_trainable_variables]
    mean, var = start(inputs)
    # The deviation has epsilon inside, like ours; Keras begins with 1 instead.
    std = jnp.sqrt(var + inputs.epsilon)
    values = {"mean": mean, "variance": var, "stddev": std}
    state = [values[name.partition("_")[2]] for name in names]
    assert len(state) == 5

    def train(x, scale, bias, stats):
        return layer.stateless_call([scale, bias], stats, x, training=True, mask=mask)

    def evaluate(x, stats):
        return layer.stateless_call([scale, bias], stats, x, training=False)[0]

    def read(stats):
        stats = dict(zip(names, stats, strict=True))
        np.testing.assert_array_equal(stats["renorm_mean"], stats["moving_mean"])
        return stats["moving_mean"], stats["moving_variance"]

    scale, bias = jnp.asarray(inputs.scale), jnp.asarray(inputs.bias)
    return _peers._experiment(inputs, train, evaluate, state, scale, bias, read)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("case", _peers.CASES, ids=_peers.name)
def test_batch_renorm(case, limits):
    inputs = _peers.draw(case, np.dtype(np.float32))
    got = run_ours(inputs, *LIMITS[limits], None)
    with _peers.relaxed():
        want = run_keras(inputs, *LIMITS[limits], None)
    assert want.keys() == set(_peers.KEYS)
    errors = _peers.relative_errors(got, want)
    assert max(errors.values()) < 1e-5, errors


def test_batch_renorm_with_a_mask():
    inputs = _peers.draw(_peers.Case("mask", (4, 6, 5)), np.dtype(np.float32))
    mask = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 6)) < 0.6)
    got = run_ours(inputs, 1.3, 0.4, mask[..., None])
    with _peers.relaxed():
        want = run_keras(inputs, 1.3, 0.4, mask)
    errors = _peers.relative_errors(got, want)
    assert max(errors.values()) < 1e-5, errors  # Keras adds 1e-7 to the count


def test_half_precision():
    # Keras keeps running statistics of bfloat16 layers in bfloat16, ours stay float32.
    inputs = _peers.draw(_peers.CASES[1], jnp.dtype(jnp.bfloat16))
    got = run_ours(inputs, 1.3, 0.4, None)
    with _peers.relaxed():
        want = run_keras(inputs, 1.3, 0.4, None)
    errors = _peers.relative_errors(got, want)
    assert max(errors.values()) < 2e-2, errors
    assert got["y"].dtype == got["dx"].dtype == jnp.bfloat16


def test_the_limits_of_the_test_do_clip():
    inputs = _peers.draw(_peers.CASES[0], np.dtype(np.float32))
    y = [run_ours(inputs, *limits, None)["y"] for limits in LIMITS.values()]
    assert min(np.abs(a - b).max() for a, b in [(y[0], y[1]), (y[1], y[2])]) > 0.1
    assert np.isfinite(y[2]).all()
