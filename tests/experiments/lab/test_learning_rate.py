"""Verdicts on made-up sweeps, each way they can come out."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import TrainState
from experiments.common import rates
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import learning_rate
from experiments.lab.learning_rate import RELU, SIGMOID
from tests.experiments.lab._made import SEEDS, judged, logged, seeds

SETTINGS = learning_rate.RateSettings(steps=100)
BEST = 0.139  # without batch norm, where all below 0.2 is usable


def history(name, rate, final, reached):
    for step in (0, 50, 100):
        accuracy = np.where(step >= reached, final, 0.1) * seeds(1, 0.001)
        values = {"test_accuracy": accuracy, "validation_accuracy": accuracy}
        yield from logged(at_rate(name, rate), step, **values)


def made(plain, normalised, sigmoid_plain, sigmoid, gain=0.02):
    """Networks that end at 95 % below a rate and at chance above, with batch norm at 97 %.

    The larger the rate, the more accurate; from a fifth of that rate on, the target is reached
    after 50 steps, and after 100 below.
    """
    tops = dict(
        zip(product((RELU, SIGMOID), NETWORKS), (plain, normalised, sigmoid_plain, sigmoid), strict=True)
    )
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
    assert found.pop("faster at the same rate") == FAILS
    assert found.pop("faster at 5 times the rate") == FAILS  # both take 100 steps there
    assert set(found.values()) == {HOLDS}


def test_no_advantage_at_all():
    assert set(verdicts(made(0.2, 0.2, 0.2, 0.0, gain=0.0)).values()) == {FAILS}


def test_nothing_trains_at_any_rate():
    found = verdicts(made(0.0, 0.0, 0.0, 0.0))
    assert found.pop("5 times breaks one") == IN_PART  # it does break
    assert found.pop("sigmoids train") == IN_PART  # at chance without
    assert set(found.values()) == {FAILS}


def test_sigmoids_that_train_either_way_hold_in_part():
    assert verdicts(made(0.2, 10.0, 10.0, 10.0))["sigmoids train"] == IN_PART


def test_a_rate_that_both_stand_breaks_neither():
    assert verdicts(made(1.0, 10.0, 0.0, 10.0))["5 times breaks one"] == IN_PART


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
    assert f"never in {SEEDS} of {SEEDS} seeds" in rows["faster at the same rate"].found


def test_at_rate_sets_the_rate_of_every_seed():
    def create(params):
        return TrainState.create(params=params, batch_stats={}, tx=rates.SGD)

    states = rates.at_rate(0.25)(jax.vmap(create)({"w": jnp.ones((3, 2))}))  # three seeds
    moved = jax.vmap(lambda s: s.apply_gradients({"w": jnp.ones(2)}, {}))(states)
    np.testing.assert_allclose(moved.params["w"], 0.75)
