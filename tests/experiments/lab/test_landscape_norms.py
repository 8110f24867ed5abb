"""Batch norm with noise after it, and by the mean absolute or the largest deviation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from experiments.lab._landscape_norms import (
    LpBatchNorm,
    NoisyBatchNorm,
    disturb,
    lp_batch_norm,
)
from tests._derivatives import check_derivatives

MEASURES = {1: lambda d: np.abs(d).mean(0), math.inf: lambda d: np.abs(d).max(0)}


@pytest.mark.parametrize("p", MEASURES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_output_is_that_of_the_definition(p, offset):
    rng = np.random.default_rng(0)
    x = rng.normal(offset, 2, (50, 4)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 4)).astype(np.float32)
    y, batch = lp_batch_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), p=p)
    d = x.astype(float) - x.mean(0, dtype=float)
    size = MEASURES[p](d)
    want = d / np.sqrt(size**2 + 1e-5) * scale + bias
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(batch.var(), size**2, rtol=1e-5)
    stats = bnjax.update_batch_stats(bnjax.init_batch_stats(4), batch, decay=0.0)
    evaluated, _ = bnjax.batch_norm(x, scale, bias, stats, train=False)
    np.testing.assert_allclose(evaluated, want, rtol=1e-3, atol=1e-3 * (1 + offset / 1e3))


@pytest.mark.parametrize("p", MEASURES)
def test_derivatives(p):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, scale, bias = rng.normal(3, 2, (8, 3)), *rng.normal(size=(2, 3))
        fn = lambda *args: jnp.sin(lp_batch_norm(*args, p=p)[0])  # noqa: E731
        check_derivatives(fn, (x, scale, bias), order=2)


@pytest.mark.parametrize("p", MEASURES)
def test_the_module_trains_and_evaluates(p):
    x = np.random.default_rng(0).normal(2, 3, size=(16, 3)).astype(np.float32)
    layer = LpBatchNorm(p, use_running_average=False, momentum=0.0)
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["batch_stats"]["stats"].mean, 0)
    y, updated = layer.apply(variables, x, mutable=["batch_stats"])
    d = x - x.mean(0, dtype=np.float64)
    np.testing.assert_allclose(y, d / MEASURES[p](d), rtol=1e-3, atol=1e-4)
    running = LpBatchNorm(p, use_running_average=True, momentum=0.0)
    later = np.asarray(running.apply({**variables, **updated}, x))
    np.testing.assert_allclose(later, y, rtol=1e-5, atol=1e-6)


def test_a_batch_of_images_in_half_precision():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2, 2, 3)), jnp.bfloat16)
    layer = LpBatchNorm(1, use_running_average=False, momentum=0.9)
    variables = layer.init(jax.random.key(0), x)
    y, updated = layer.apply(variables, x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {v.dtype.name for v in updated["batch_stats"]["stats"]} == {"float32", "int32"}
    mean = np.abs(np.asarray(y, np.float32)).mean((0, 1, 2))
    np.testing.assert_allclose(mean, 1, rtol=1e-2)


def test_the_noise_has_another_mean_and_scale_in_each_channel_and_step():
    y = np.random.default_rng(0).normal(size=(3000, 6)).astype(np.float32)
    first, second = (np.asarray(disturb(jax.random.key(k), jnp.asarray(y))) for k in (0, 1))
    for z in (first, second):
        assert np.all(np.abs(z.mean(0)) < 0.55) and np.abs(z.mean(0)).max() > 0.1
        assert np.all((z.std(0) > 0.95) & (z.std(0) < 1.3)) and z.std(0).max() > 1.05
    assert np.abs(first.mean(0) - second.mean(0)).max() > 0.1


def test_noise_is_of_training_only_and_new_at_every_step():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    train, evaluate = (NoisyBatchNorm(use, momentum=0.9) for use in (False, True))
    variables = train.init(jax.random.key(0), x)
    once, updated = train.apply(variables, x, mutable=["batch_stats"])
    again, _ = train.apply(variables, x, mutable=["batch_stats"])
    later, _ = train.apply({**variables, **updated}, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - later).max() > 0.01
    np.testing.assert_allclose(np.asarray(evaluate.apply(variables, x)), x, rtol=1e-4)
