"""Feature scaling: descent on a parabola, and verdicts on made-up records."""

import numpy as np
import pytest

from experiments.common.verdicts import CLAIM, FAILS, HOLDS
from experiments.lab import feature_scaling
from experiments.lab.feature_scaling import (
    CLOSE,
    INPUTS,
    NORMALISED,
    RAVINE,
    RAW,
    STANDARDISED,
    Bowl,
    prepare,
)
from tests.experiments.lab._made import judged, logged, seeds


@pytest.fixture
def problem(rng):
    x = rng.standard_normal((50, 2)) * (1, 10)
    return x, rng.standard_normal(50), rng.standard_normal(2)


def descend(x, t, w, rate, steps):
    for _ in range(steps):
        w = w - rate * x.T @ (x @ w - t) / len(x)
    return w


def test_the_bowl_is_the_loss_and_descent_goes_down_it(problem):
    x, t, first = problem
    bowl = Bowl(x, t, first)
    best, *_ = np.linalg.lstsq(x, t, rcond=None)
    np.testing.assert_allclose(bowl.best, best)
    steps, rate = np.array([0, 1, 7]), 0.9 * bowl.stable_rate
    wanted = np.array([descend(*problem, rate, step) for step in steps])
    np.testing.assert_allclose(bowl.weights(rate, steps), wanted, rtol=1e-6)
    losses = [((x @ w - t) ** 2).mean() / 2 for w in (*wanted, best, np.zeros(2))]
    gain = losses[-1] - losses[-2]
    np.testing.assert_allclose(
        bowl.excess(rate, steps), (np.array(losses[:3]) - losses[-2]) / gain, rtol=1e-6
    )


def test_arrival_is_the_first_close_step(problem):
    bowl = Bowl(*problem)
    rate = 0.75 * bowl.stable_rate
    arrived = bowl.arrival(rate)
    before, there = bowl.excess(rate, np.array([arrived - 1, arrived]))
    assert arrived > 20 and there <= CLOSE < before
    assert Bowl(*problem[:2], bowl.best).arrival(rate) == 0


def test_rates_above_the_stable_one_lead_away(problem):
    bowl = Bowl(*problem)
    below, above = (
        bowl.excess(share * bowl.stable_rate, np.array([0, 2000])) for share in (0.99, 1.01)
    )
    assert below[1] < below[0] and above[1] > above[0]


def test_inputs_are_standardised_or_one_is_stretched(rng):
    pixels = rng.uniform(0, 1, (500, 2))
    for inputs in (STANDARDISED, NORMALISED):
        x = prepare(inputs, pixels, 100)
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(0), 1, rtol=1e-3)
    np.testing.assert_array_equal(prepare(RAVINE, pixels, 100), pixels * (1, 100))
    np.testing.assert_array_equal(prepare(RAW, pixels, 100), pixels)


def made(ravine, standardised):
    """Each is (condition number, largest stable rate, steps)."""
    facts = dict.fromkeys(INPUTS, standardised) | {RAVINE: ravine}
    records = []
    for inputs, (condition, rate, steps) in facts.items():
        known = {
            "condition_number": seeds(condition),
            "stable_rate": seeds(rate),
            "arrived": seeds(steps),
        }
        for step in (0, 10):
            records += logged(inputs, step, w1=0.1 * step, w2=0.5, excess=1.0, **known)
    shape = {"hessian": [[1.0, 0.0], [0.0, 2.0]], "best": [0.0, 0.0], "gain": 1.0}
    return [record | shape for record in records]


@pytest.mark.parametrize("turned", [False, True])
def test_holds_or_fails(turned):
    long, round_ = (1e4, 1e-3, 1e5), (2.0, 1.0, 10.0)
    records = made(round_, long) if turned else made(long, round_)
    rows = judged(feature_scaling, records).values()
    verdicts = [row.verdict for row in rows if row.kind == CLAIM]
    assert verdicts == [FAILS if turned else HOLDS] * 3
