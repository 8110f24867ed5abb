"""Verdicts on made-up histories, and which weights are enlarged."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import TrainState
from experiments.common.rates import SGD
from experiments.common.records import per_seed
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import placement
from experiments.lab.placement import AFTER, BEFORE, KINDS, NONE, PLACES, trial_name
from tests.experiments.lab._made import judged, seeds

SEEDS = 10  # as many as eight tests need
SETTINGS = placement.Settings(steps=100, rates=(1.0, 3.0))


def history(kind, place, top, reached):
    """`top` from step `reached` on, 10 steps later in every other seed; never at rate 3."""
    for rate, step in product(SETTINGS.rates, range(0, 101, 10)):
        there = rate == 1 and step >= reached + 10 * (np.arange(SEEDS) % 2)
        accuracy = np.where(there, seeds(top, number=SEEDS), 0.1)
        values = {"test_accuracy": accuracy, "validation_accuracy": accuracy}
        yield from per_seed(step, at_rate(trial_name(kind, place), rate), values)


def made(numbers):
    """Accuracy at the end and steps to the target, of each place."""
    records = []
    for kind, place in product(KINDS, PLACES):
        records += history(kind, place, *numbers[place])
    return records


def each(none, before, after):
    return {NONE: none, BEFORE: before, AFTER: after}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (each((0.95, 80), (0.99, 30), (0.97, 30)), [HOLDS, HOLDS, HOLDS, HOLDS]),
        (each((0.95, 30), (0.97, 20), (0.99, 60)), [FAILS, HOLDS, FAILS, FAILS]),
        (each((0.1, 30), (0.99, 20), (0.1, 60)), [FAILS, HOLDS, HOLDS, HOLDS]),  # never trains
    ],
)
def test_verdicts(numbers, expected):
    rows = judged(placement, made(numbers), SETTINGS)
    assert [row.verdict for row in rows.values() if row.tests] == expected


def test_a_place_that_suits_some_activations_holds_in_part():
    records = made(each((0.95, 80), (0.99, 30), (0.97, 30)))
    slow = trial_name("tanh", AFTER)
    records = [r for r in records if not r["network"].startswith(slow)]
    records += history("tanh", AFTER, 0.97, 90)
    assert judged(placement, records, SETTINGS)["after: works"].verdict == IN_PART


def test_enlarge_spares_all_but_the_hidden_weights():
    dense = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    norm = {"scale": jnp.ones(2)}
    params = {"Dense_0": dense, "Dense_1": dense, "Dense_2": dense, "BatchNorm_0": norm}
    states = TrainState.create(params=params, tx=SGD)
    larger = {"kernel": jnp.full((2, 2), 16.0), "bias": jnp.ones(2)}
    expected = params | {"Dense_0": larger, "Dense_1": larger}
    found = placement.enlarge(16.0, 2)(states).params
    jax.tree.map(np.testing.assert_array_equal, found, expected)
