"""Verdicts on made-up accuracies by scale and rate; only weights are multiplied."""

import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import TrainState
from experiments.common.rates import SGD
from experiments.common.settings import NORMALISED, PLAIN
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import initial_scale
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = initial_scale.ScaleSettings(steps=100, scales=(0.1, 1.0, 10.0), rates=(0.1, 1.0))
SENSITIVE, ROBUST = (0.1, 0.95, 0.1), (0.975, 0.976, 0.974)


def made(plain, normalised):
    """Accuracies by scale, at the better of two rates, which is another one for each network."""
    records = []
    for network, tops, best in ((PLAIN, plain, 0.1), (NORMALISED, normalised, 1.0)):
        for scale, top in zip(SETTINGS.scales, tops, strict=True):
            for rate in SETTINGS.rates:
                accuracy = top * (1.0 if rate == best else 0.5) * seeds(1, 0.002)
                name = at_rate(f"{network}, weights ×{scale:g}", rate)
                records += logged(name, 100, test_accuracy=accuracy, validation_accuracy=accuracy)
    return records


@pytest.mark.parametrize(
    "plain, normalised, expected",
    [
        (SENSITIVE, ROBUST, [HOLDS, HOLDS]),
        (ROBUST, SENSITIVE, [FAILS, FAILS]),
        (SENSITIVE, (0.975, 0.976, 0.85), [HOLDS, IN_PART]),
        (SENSITIVE, (0.975, 0.976, np.nan), [HOLDS, IN_PART]),
    ],
)
def test_verdicts(plain, normalised, expected):
    rows = judged(initial_scale, made(plain, normalised), SETTINGS)
    assert [rows[short].verdict for short in ("less care at the start", "robust")] == expected


def test_each_scale_is_seen_at_its_best_rate():
    found = initial_scale.accuracies(made(SENSITIVE, ROBUST), SETTINGS, NORMALISED)
    np.testing.assert_allclose(found.mean(0), ROBUST, rtol=0.01)


def test_weights_are_multiplied_and_biases_are_not():
    params = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones((2,))}}
    states = TrainState.create(params=params, batch_stats={}, tx=SGD)
    found = initial_scale.scaled(3.0, lambda states: states)(states).params["Dense_0"]
    np.testing.assert_array_equal(found["kernel"], 3 * np.ones((2, 3)))
    np.testing.assert_array_equal(found["bias"], np.ones(2))
