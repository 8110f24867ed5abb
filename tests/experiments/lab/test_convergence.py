"""Verdicts on made-up histories, each way they can come out."""

import numpy as np
import pytest

from experiments.common.histories import steps_to_target
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.common.sweep import at_rate, best_rate, by_accuracy, by_speed
from experiments.common.verdicts import FAILS, HOLDS, UNDECIDED
from experiments.lab import convergence
from tests.experiments.lab._made import SEEDS, judged, logged, seeds

STEPS = np.arange(0, 1001, 50).tolist()
SLOW = {"time": 200.0, "top": 0.95, "drift": 1.0}
FAST = {"time": 30.0, "top": 0.99, "drift": 0.1}
RATES = (0.1, 1.0)
SETTINGS = convergence.Settings(rates=RATES, steps=1000)


def history(trial, time, top, drift, unequal=0.1):
    """Accuracy `1 - exp(-step / time)` up to `top`."""
    slower = 1 + unequal * (seeds(1, 1) - 1)
    for step in STEPS:
        accuracy = np.broadcast_to(top * (1 - np.exp(-step / time / slower)), SEEDS)
        values = {"test_accuracy": accuracy, "validation_accuracy": accuracy}
        if step == STEPS[-1]:
            values |= {"drift": drift * slower, "relative_drift": drift * slower}
        yield from logged(trial, step, **values)


def made(plain, normalised, worse=0.5):
    """The networks at rate 1, and less accurate at rate 0.1."""
    records = []
    for network, kind in zip(NETWORKS, (plain, normalised), strict=True):
        records += history(at_rate(network, 1.0), **kind)
        records += history(at_rate(network, 0.1), **kind | {"top": worse * kind["top"]})
    return records


def verdicts(records):
    return [row.verdict for row in judged(convergence, records, SETTINGS).values()]


def test_a_clear_advantage_holds_and_a_disadvantage_does_not():
    assert verdicts(made(SLOW, FAST)) == [HOLDS] * 4
    assert verdicts(made(FAST, SLOW)) == [FAILS] * 4
    assert verdicts(made(SLOW, SLOW)) == [FAILS] * 4


def test_seeds_that_disagree_decide_nothing():
    records = made(SLOW | {"unequal": 0.0}, SLOW | {"time": 190.0, "unequal": 0.9})
    assert verdicts(records)[0] == UNDECIDED


def test_a_network_that_never_gets_there_is_a_bound():
    row = judged(convergence, made(SLOW | {"top": 0.5}, FAST), SETTINGS)["trains faster"]
    assert row.verdict == HOLDS
    assert f"over 1,000 (never in {SEEDS} of {SEEDS} seeds) without" in row.found
    assert "at least" in row.found and "[" not in row.found


def test_divergence_supports_nothing():
    records = made(SLOW, FAST)
    for record in records:
        if record["network"] == at_rate(NORMALISED, 1.0):
            record |= dict.fromkeys(("test_accuracy", "drift", "relative_drift"))
    assert verdicts(records) == [FAILS] * 4


@pytest.mark.parametrize("score", [by_accuracy, by_speed(0.5)])
def test_each_network_is_seen_at_its_own_best_rate(score):
    records = made(SLOW, FAST, worse=0.1)
    assert [best_rate(records, n, RATES, score) for n in NETWORKS] == [1.0, 1.0]
    records = made(SLOW, FAST)
    for record in records:  # no matter how well it does on the images that judge
        if record["network"] == at_rate(PLAIN, 0.1):
            record["test_accuracy"] = 1.0
    assert best_rate(records, PLAIN, RATES, by_accuracy) == 1.0


def test_steps_to_target():
    accuracy = np.array([[0.1, 0.9, 0.2, 0.95], [0.1, 0.2, np.nan, 0.89]])
    reached = steps_to_target(np.array([0, 10, 20, 30]), accuracy, 0.9)
    np.testing.assert_array_equal(reached, [10, np.inf])


def test_drift_is_that_of_all_units_after_the_first_tenth():
    steps = np.arange(0, 101, 10)
    percentiles = np.zeros((len(steps), 1, 3, 2))
    percentiles[..., 0, :], percentiles[..., 2, :] = -1, 3  # 4 apart
    percentiles[0] = 1000  # before the first tenth is over
    percentiles[1:, 0, :, 0] += np.resize([0.0, 2.0], len(steps) - 1)[:, None]  # one unit swings
    found = convergence.drift(steps, {"percentiles": percentiles})
    assert found["drift"] == pytest.approx(0.5) and found["relative_drift"] == pytest.approx(0.125)
