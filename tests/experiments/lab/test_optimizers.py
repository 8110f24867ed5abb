"""Verdicts on made-up histories, and how far scales and shifts have moved."""

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.records import per_seed
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import optimizers
from experiments.lab.optimizers import OPTIMIZERS, trial_name
from tests.experiments.lab._made import judged, seeds

SEEDS = 10  # as many as eight tests need
SETTINGS = optimizers.Settings(steps=100)


def made(plain, normalised, moved):
    """The target is reached after `plain` and `normalised` steps, at other rates never."""
    reached, records = {PLAIN: plain, NORMALISED: normalised}, []
    for (optimizer, (_, rates)), network in product(OPTIMIZERS.items(), NETWORKS):
        for rate, step in product(rates, range(0, 101, 10)):
            there = rate == rates[1] and step >= reached[network] + 10 * (np.arange(SEEDS) % 2)
            accuracy = np.where(there, seeds(0.97, number=SEEDS), 0.5)
            values = {"test_accuracy": accuracy, "validation_accuracy": accuracy}
            if network == NORMALISED:
                values |= {
                    "moved_scale": seeds(moved, number=SEEDS),
                    "moved_bias": seeds(moved, number=SEEDS),
                }
            name = at_rate(trial_name(optimizer, network), rate)
            records += per_seed(step, name, values)
    return records


@pytest.mark.parametrize(
    ("plain", "normalised", "moved", "expected"),
    [
        (80, 20, 0.2, [HOLDS, HOLDS]),
        (20, 80, 0.001, [FAILS, FAILS]),
        (200, 20, 0.2, [HOLDS, HOLDS]),  # never without
        (200, 200, 0.0, [FAILS, FAILS]),
    ],
)
def test_verdicts(plain, normalised, moved, expected):
    rows = judged(optimizers, made(plain, normalised, moved), SETTINGS)
    assert [row.verdict for row in rows.values() if row.tests] == expected
    assert ("at least" in rows["faster under all of them"].found) == (plain > SETTINGS.steps)


def test_one_optimizer_that_leaves_the_shift_makes_it_part():
    records = made(80, 20, 0.2)
    for record in records:
        if record["network"].startswith(trial_name("Adam", NORMALISED)):
            record["moved_bias"] = 0.0
    assert judged(optimizers, records, SETTINGS)["all four learn them"].verdict == IN_PART


def test_moves_are_root_mean_squares_over_all_layers():
    params = {
        "BatchNorm_0": {"scale": jnp.array([1.0, 4.0]), "bias": jnp.array([0.0, 0.0])},
        "BatchNorm_1": {"scale": jnp.array([1.0, -3.0]), "bias": jnp.array([2.0, 0.0])},
        "Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.full(2, 9.0)},
    }
    found = optimizers.moves(params)
    np.testing.assert_allclose(found["moved_scale"], 2.5)  # sqrt((9 + 16) / 4)
    np.testing.assert_allclose(found["moved_bias"], 1.0)
    assert optimizers.moves({"Dense_0": params["Dense_0"]}) == {}
