"""The verdicts on made-up numbers, each way they can come out."""

import json
from itertools import product

import numpy as np
import pytest

from experiments.common.claims import FAILS, HOLDS, UNDECIDED, paired_interval, verdict
from experiments.common.histories import steps_to_target
from experiments.common.records import to_json
from experiments.common.settings import NORMALISED, PLAIN
from experiments.lab.convergence.figure import draw
from experiments.lab.convergence.settings import PRESETS
from experiments.lab.convergence.verdict import judge

STEPS = np.arange(0, 1001, 50)


def make_records(plain: dict, normalised: dict, seeds: int = 4) -> list[dict]:
    """Accuracy `1 - exp(-step / time)` up to `top`, and percentiles that swing by `swing`."""
    records = []
    for (network, shape), seed in product(((PLAIN, plain), (NORMALISED, normalised)), range(seeds)):
        slower = 1 + shape.get("unequal", 0.1) * (seed - (seeds - 1) / 2)
        for step in STEPS.tolist():
            swing = shape["swing"] * slower * np.sin(step)
            records.append(
                {
                    "network": network,
                    "seed": seed,
                    "step": step,
                    "test_accuracy": shape["top"] * (1 - np.exp(-step / shape["time"] / slower)),
                    "input_p15": swing - 1,
                    "input_p50": swing,
                    "input_p85": swing + 1,
                }
            )
    return records


SLOW = {"time": 200.0, "top": 0.95, "swing": 1.0}
FAST = {"time": 30.0, "top": 0.99, "swing": 0.1}


def verdicts(records) -> list[str]:
    return [claim.verdict for claim in judge(records, PRESETS["quick"])]


def test_a_clear_advantage_holds():
    assert verdicts(make_records(SLOW, FAST)) == [HOLDS] * 4


def test_a_clear_disadvantage_does_not_hold():
    assert verdicts(make_records(FAST, SLOW)) == [FAILS] * 4


def test_the_same_twice_does_not_hold():
    assert verdicts(make_records(SLOW, SLOW)) == [FAILS] * 4


def test_one_seed_decides_nothing():
    claims = judge(make_records(SLOW, FAST, seeds=1), PRESETS["quick"])
    assert [claim.verdict for claim in claims] == [UNDECIDED] * 4
    assert all("one seed, no interval" in claim.found for claim in claims)


def test_seeds_that_disagree_decide_nothing():
    # Batch norm's seeds differ so much that some are slower: faster on average only.
    records = make_records(SLOW | {"unequal": 0.0}, SLOW | {"time": 120.0, "unequal": 0.6})
    assert verdicts(records)[0] == UNDECIDED


def test_a_network_that_never_gets_there_counts_as_there_at_the_end():
    claim = judge(make_records(SLOW | {"top": 0.5}, FAST), PRESETS["quick"])[0]
    assert claim.verdict == HOLDS
    assert "over 1,000 (never in 4 of 4 seeds) without" in claim.found
    assert json.loads(to_json(claim.numbers))["steps_without"] == [None] * 4


def test_neither_gets_there():
    stuck = SLOW | {"top": 0.1}
    assert verdicts(make_records(stuck, stuck))[0] == FAILS


def test_divergence_supports_nothing():
    records = make_records(SLOW, FAST)
    for record in records:
        if record["network"] == NORMALISED:
            record |= {"test_accuracy": None, "input_p15": None, "input_p50": None}
    assert verdicts(records) == [FAILS] * 4
    assert draw(records, PRESETS["quick"]).axes  # and can still be drawn


def test_steps_to_target():
    accuracy = np.array([[0.1, 0.9, 0.2, 0.95], [0.1, 0.2, np.nan, 0.89]])
    reached = steps_to_target(np.array([0, 10, 20, 30]), accuracy, 0.9)
    np.testing.assert_array_equal(reached, [10, np.inf])


def test_interval_is_students():
    interval = paired_interval([1.0, 2.0, 3.0])
    # mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.30265
    np.testing.assert_allclose(interval, (2.0, 2.0 - 2.48414, 2.0 + 2.48414), rtol=1e-5)


@pytest.mark.parametrize(
    "differences, expected",
    [
        ([1.0, 1.1, 0.9], HOLDS),
        ([3.0, -1.0, 0.5], UNDECIDED),
        ([-3.0, 1.0, -0.5], UNDECIDED),
        ([1.0], UNDECIDED),
        ([-np.inf, 1.0], FAILS),
        ([-1.0, -1.1], FAILS),
        ([0.0, 0.0], FAILS),
        ([np.nan, 1.0], FAILS),
    ],
)
def test_verdict(differences, expected):
    assert verdict(paired_interval(differences)) == expected
