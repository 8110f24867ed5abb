"""Epsilon: verdicts on made-up records, and the layer against its formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.data import Dataset, Split
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS
from experiments.lab import epsilon
from experiments.lab.epsilon import DEFAULT, EPSILONS, HIDDEN, PIXELS, SPREADS, Net
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = dataclasses.replace(epsilon.PRESETS["quick"], rates=(0.1, 1.0), steps=100)


def made(without, with_epsilon):
    """Accuracies at the better of two rates."""
    records = list(logged(PIXELS, 0, always=4.0, in_batch=9.0, pixels=64.0))
    for e in EPSILONS:
        for i, spread in enumerate((*SPREADS, 0.0)):
            output = spread / np.sqrt(spread**2 + e) if spread or e else np.nan
            records += logged(epsilon.layer_name(e), i, spread=spread, output=output, gradient=1.0)
        for place in (PIXELS, HIDDEN):
            accuracy = without if e == 0 else with_epsilon
            for rate, worse in zip(SETTINGS.rates, (0.0, 0.05), strict=True):
                trial = at_rate(epsilon.network_name(place, e), rate)
                found = seeds(accuracy - worse)
                for step in (0, 100):
                    seen = {"test_accuracy": found, "validation_accuracy": found}
                    records += logged(trial, step, **seen)
    return records


@pytest.mark.parametrize(("without", "verdict"), [(0.1, HOLDS), (0.99, FAILS)])
def test_holds_or_fails(without, verdict):
    rows = judged(epsilon, made(without, 0.95), SETTINGS)
    assert rows["against division by 0"].verdict == verdict
    assert f"95.0% with {DEFAULT:g} at rate 0.1" in rows["which epsilon"].found
    assert rows["a constant feature"].found.endswith("without NaN")


@pytest.mark.parametrize("e", EPSILONS)
def test_a_layer_follows_the_formula(e):
    found = list(epsilon.measure(e, dataclasses.replace(SETTINGS, seeds=1)))
    spread, output, gradient = (
        np.array([r[name] for r in found]) for name in ("spread", "output", "gradient")
    )
    *wanted, constant = spread / np.sqrt(spread**2 + e) if e else [*np.ones(len(SPREADS)), np.nan]
    np.testing.assert_allclose(output[:-1], wanted, rtol=1e-5)
    np.testing.assert_array_equal(output[-1], constant)
    # Of a normalised feature, the gradient has no part along the mean nor along the feature.
    np.testing.assert_allclose(gradient[:-1], wanted / spread[:-1], rtol=0.1)


@pytest.mark.parametrize("place", [PIXELS, HIDDEN])
def test_a_constant_pixel_is_0_by_0_where_pixels_are_normalised(place, rng):
    x = jnp.asarray(rng.uniform(size=(20, 4)) * [1, 1, 1, 0], jnp.float32)

    def logits(e):
        model = Net(e, place, hidden=8, momentum=0.9)
        variables = model.init(jax.random.key(0), x, train=False)
        return np.asarray(model.apply(variables, x, train=True, mutable=["batch_stats"])[0])

    assert np.isfinite(logits(DEFAULT)).all()
    assert np.isnan(logits(0.0)).all() if place == PIXELS else np.isfinite(logits(0.0)).all()


def test_constant_pixels_are_counted():
    images = np.zeros((200, 3), np.float32)
    images[0, 1] = 1  # in hardly any mini-batch
    images[::2, 2] = 1
    split = Split(images, np.zeros(200, np.int32))
    settings = dataclasses.replace(SETTINGS, seeds=5, batch_size=20)
    found = list(epsilon._count_constant(Dataset("made up", split, split), settings))
    assert {r["always"] for r in found} == {1} and {r["pixels"] for r in found} == {3}
    assert min(r["in_batch"] for r in found) >= 1 and 2 in {r["in_batch"] for r in found}
