"""Averages of variables: EMA and SWA, and when their statistics must be recalibrated."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax.training import average_variables, recalibrate


def models(n):
    rng = np.random.default_rng(0)
    return [
        {
            "params": {"kernel": rng.normal(size=(3, 2)).astype(np.float32)},
            "batch_stats": {
                "mean": rng.normal(size=2).astype(np.float32),
                "var": rng.uniform(1, 2, 2).astype(np.float32),
                "count": np.int32(k),
            },
        }
        for k in range(n)
    ]


def test_swa_is_the_mean_of_all_models_and_counts_are_the_last():
    first, *rest = models(5)
    average = first
    for n, model in enumerate(rest, 1):
        average = average_variables(average, model, 1 / (n + 1))
    mean = jax.tree.map(lambda *v: np.mean(v, 0, dtype=np.float64), *models(5))
    mean["batch_stats"]["count"] = 4
    chex.assert_trees_all_close(average, mean, rtol=1e-6)


def test_ema_forgets_at_the_rate_it_was_told_and_compiles_once():
    first, *rest = models(4)
    step = jax.jit(chex.assert_max_traces(average_variables, 1))
    average = first
    for model in rest:
        average = step(average, model, jnp.float32(0.25))
    weights = [0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25]
    expected = sum(w * m["batch_stats"]["mean"] for w, m in zip(weights, models(4), strict=True))
    np.testing.assert_allclose(average["batch_stats"]["mean"], expected, rtol=1e-6)


def test_half_precision_models_are_averaged_in_the_precision_of_the_average():
    model = {"w": jnp.full(2, 1 + 1 / 128, jnp.bfloat16)}
    average = {"w": jnp.ones(2, jnp.float32)}
    for _ in range(100):
        average = average_variables(average, model, 0.01)
    np.testing.assert_allclose(average["w"], 1 + (1 - 0.99**100) / 128, rtol=1e-6)


def test_nnx_states_with_random_streams():
    model = nnx.Sequential(
        bnjax.nnx.BatchNorm(2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    )
    state = nnx.state(model)
    moved = jax.tree.map(lambda v: v + 1 if v.dtype == jnp.float32 else v, state)
    average = average_variables(state, moved, 0.5)
    np.testing.assert_array_equal(average["layers"][0]["mean"][...], np.full(2, 0.5))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = bnjax.linen.BatchNorm(True, name="norm")(nn.Dense(8, use_bias=False, name="dense")(x))
        return nn.relu(x)


@pytest.mark.parametrize("spread", [1e-3, 1.0])
def test_statistics_go_along_with_near_models_and_not_with_far_ones(spread):
    """The docstring's rule: variance averaged along is right for an EMA, too large for SWA."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8)).astype(np.float32)
    centre = rng.normal(size=(8, 8))
    variables = []
    for _ in range(8):
        kernel = (centre + spread * rng.normal(size=(8, 8))).astype(np.float32)
        model = jax.tree.map(jnp.asarray, Net().init(jax.random.key(0), x))
        model["params"]["dense"]["kernel"] = kernel
        variables.append(recalibrate(Net(), model, [x]))
    average = variables[0]
    for n, model in enumerate(variables[1:], 1):
        average = average_variables(average, model, 1 / (n + 1))
    right = recalibrate(Net(), average, [x])["batch_stats"]["norm"]["var"]
    ratio = np.mean(np.asarray(average["batch_stats"]["norm"]["var"] / right))
    assert abs(ratio - 1) < 1e-3 if spread < 1 else ratio > 1.5
