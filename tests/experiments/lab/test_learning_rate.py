"""Verdicts on made-up sweeps, each way they can come out."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import TrainState
from experiments.common import rates
from experiments.common.records import per_seed
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import learning_rate
from experiments.lab.learning_rate import RELU, SIGMOID
from tests.experiments.lab._made import judged, seeds

SEEDS = 10  # fewer can not decide as many tests at once
SETTINGS = learning_rate.RateSettings(steps=100)
BEST = 0.139  # without batch norm, where all below 0.2 is usable


def history(name, rate, final, reached):
    for step in (0, 50, 100):
        accuracy = np.where(step >= reached, final, 0.1) * seeds(1, 0.001, SEEDS)
        values = {"test_accuracy": accuracy, "validation_accuracy": accuracy}
        yield from per_seed(step, at_rate(name, rate), values)


def made(plain, normalised, sigmoid_plain, sigmoid, gain=0.02):
    """Networks that end at 95 % below a rate and at chance above, with batch norm at 97 %.

    The larger the rate, the more accurate; from a fifth of that rate on, the target is reached
    after 50 steps, and after 100 below.
    """
    kinds = product((RELU, SIGMOID), NETWORKS)
    tops = dict(zip(kinds, (plain, normalised, sigmoid_plain, sigmoid), strict=True))
    records = []
    for (activation, network), top in tops.items():
        for rate in SETTINGS.grid(activation):
            best = 0.95 + gain * (network == NORMALISED) + 1e-4 * np.log(rate)
            reached = 50 if rate > top / 5 else 100
            final = best if rate < top else 0.1
            records += history(f"{activation} {network}", rate, final, reached)
    return records


def verdicts(records):
    return {short: row.verdict for short, row in judged(learning_rate, records, SETTINGS).items()}


def test_all_that_is_claimed():
    records = made(0.2, 10.0, 0.0, 10.0)
    slow = at_rate(f"{RELU} {PLAIN}", BEST)  # reaches the target at the end
    records = [r for r in records if r["network"] != slow]
    records += history(f"{RELU} {PLAIN}", BEST, 0.96, 100)
    found = verdicts(records)
    assert found.pop("faster, same rate") == FAILS
    assert found.pop("faster, rate ×5") == FAILS  # both take 100 steps there
    assert set(found.values()) == {HOLDS}


def test_no_advantage_at_all():
    found = verdicts(made(0.2, 0.2, 0.2, 0.0, gain=0.0))
    assert found.pop("×5 breaks it without") == HOLDS  # and it with
    assert set(found.values()) == {FAILS}


def test_nothing_trains_at_any_rate():
    found = verdicts(made(0.0, 0.0, 0.0, 0.0))
    assert found.pop("×5 breaks it without") == HOLDS
    assert found.pop("sigmoids train") == IN_PART  # at chance without
    assert set(found.values()) == {FAILS}


def test_sigmoids_that_train_either_way_hold_in_part():
    assert verdicts(made(0.2, 10.0, 10.0, 10.0))["sigmoids train"] == IN_PART


def test_five_times_a_rate_far_from_the_largest_breaks_nothing():
    records = made(10.0, 10.0, 0.0, 10.0)
    for record in records:  # the images held out choose a small one
        if record["network"] == at_rate(f"{RELU} {PLAIN}", BEST) and record["step"] == 100:
            record["validation_accuracy"] = 1.0
    assert verdicts(records)["×5 breaks it without"] == FAILS


def test_how_many_times_larger_is_a_bound_between_rates_of_the_grid():
    rows = judged(learning_rate, made(0.2, 10.0, 0.0, 10.0), SETTINGS)
    (test,) = rows["larger rates"].tests
    np.testing.assert_allclose(np.exp(test.differences), 8.48 / 0.316, rtol=0.01)
    assert "at least" in rows["larger rates"].found and "[" not in rows["larger rates"].found


@pytest.mark.parametrize("factor, rate", [(1, BEST), (5, 0.72), (30, 3.73), (10_000, 100.0)])
def test_factors_of_the_best_rate_are_of_the_grid(factor, rate):
    found = learning_rate.sweep(made(0.2, 10.0, 0.0, 10.0), SETTINGS, RELU, PLAIN)
    assert found.best == BEST
    assert found.grid[learning_rate.times(found, factor)] == rate


def test_a_speed_that_is_never_reached_is_a_bound():
    rows = judged(learning_rate, made(0.0, 10.0, 0.0, 10.0), SETTINGS)
    assert f"never in {SEEDS} of {SEEDS} seeds" in rows["faster, same rate"].found


def test_the_rate_is_set_of_every_seed():
    def create(params):
        return TrainState.create(params=params, batch_stats={}, tx=rates.SGD)

    states = rates.set_rate(0.25)(jax.vmap(create)({"w": jnp.ones((3, 2))}))  # three seeds
    moved = jax.vmap(lambda s: s.apply_gradients({"w": jnp.ones(2)}, {}))(states)
    np.testing.assert_allclose(moved.params["w"], 0.75)
