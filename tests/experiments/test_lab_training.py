"""Judges of learning_rate, placement and optimizers on made-up records; their arithmetic."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import TrainState
from experiments.common import plots
from experiments.common.claims import FAILS, HOLDS, IN_PART, UNDECIDED, Interval, overall, provided
from experiments.common.histories import log_speed_up
from experiments.common.models import ACTIVATIONS
from experiments.common.rates import SGD, at_rate
from experiments.common.records import without_nan
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.lab import learning_rate, optimizers, placement
from experiments.lab.learning_rate.settings import RELU, SIGMOID, LearningRateSettings
from experiments.lab.learning_rate.settings import trial_name as rate_name
from experiments.lab.optimizers.networks import moves
from experiments.lab.optimizers.settings import OPTIMIZERS
from experiments.lab.optimizers.settings import trial_name as optimizer_name
from experiments.lab.placement.networks import enlarge
from experiments.lab.placement.settings import AFTER, PLACES, STARTS, USUAL, PlacementSettings
from experiments.lab.placement.settings import trial_name as place_name

SEEDS, STEPS = 4, (0, 50, 100)


def history(network: str, final: float, reached: int, seeds: int = SEEDS, **values) -> list[dict]:
    """Test accuracy that is 0.1 before step `reached` and then `final`, a bit off by seed."""
    return [
        {
            "network": network,
            "seed": seed,
            "step": step,
            "test_accuracy": (final if step >= reached else 0.1) + 0.001 * seed,
        }
        | {name: value * (1 + 0.01 * seed) for name, value in values.items()}
        for seed, step in product(range(seeds), STEPS)
    ]


def verdicts(module, records, settings=None) -> list[str]:
    settings = settings or module.PRESETS["quick"]
    claims = module.judge(records, settings)
    assert all(claim.found and claim.test for claim in claims)
    return [claim.verdict for claim in claims]


# learning_rate

RATES = LearningRateSettings(steps=100, rates=15)


def sweep_records(top: dict, seeds: int = SEEDS) -> list[dict]:
    """Networks that end at 95 % below a rate of `top` and at chance above.

    The nearer to `top`, the more accurate; from `top` / 5 on the target is reached after 50 steps,
    and after 100 below.
    """
    records = []
    for activation, network in product((RELU, SIGMOID), NETWORKS):
        for rate in RATES.grid:
            usable = rate < top[activation, network]
            final = 0.95 + 1e-4 * np.log(rate) if usable else 0.1
            reached = 50 if rate > top[activation, network] / 5 else 100
            name = rate_name(activation, network, rate)
            records += history(name, final, reached, seeds)
    return records


def tops(plain: float, normalised: float, sigmoid_plain: float, sigmoid: float) -> dict:
    keys = product((RELU, SIGMOID), NETWORKS)
    return dict(zip(keys, (plain, normalised, sigmoid_plain, sigmoid), strict=True))


def test_learning_rate_holds():
    # Best without: 0.139 at 50 steps. 26.8 times that is 3.7, near the top with batch norm.
    records = sweep_records(tops(0.2, 10.0, 0.0, 1.0))
    found = verdicts(learning_rate, records, RATES)
    assert found == [HOLDS, FAILS, FAILS, HOLDS, HOLDS]


def test_learning_rate_without_any_advantage():
    records = sweep_records(tops(0.2, 0.2, 0.2, 0.0))
    assert verdicts(learning_rate, records, RATES) == [FAILS] * 5


def test_sigmoids_that_train_either_way_hold_in_part():
    records = sweep_records(tops(0.2, 10.0, 1.0, 1.0))
    assert verdicts(learning_rate, records, RATES)[-1] == IN_PART


def test_one_seed_decides_nothing_about_larger_rates():
    records = sweep_records(tops(0.2, 10.0, 0.0, 1.0), seeds=1)
    assert verdicts(learning_rate, records, RATES)[0] == UNDECIDED


def test_nothing_trains_at_any_rate():
    records = sweep_records(tops(0.0, 0.0, 0.0, 0.0))
    assert verdicts(learning_rate, records, RATES) == [FAILS] * 5


def test_speed_is_taken_at_five_and_thirty_times_the_best_rate():
    records = sweep_records(tops(0.2, 3.0, 0.0, 1.0))
    # Without batch norm the best rate, 0.139, now needs 100 steps; with it 0.72 needs 50, and 3.7
    # is too large.
    slow = rate_name(RELU, PLAIN, RATES.grid[6])
    records = [r for r in records if r["network"] != slow] + history(slow, 0.96, 100)
    claims = learning_rate.judge(records, RATES)[1:3]
    rates = [claim.numbers["rate_with"] / claim.numbers["rate_without"] for claim in claims]
    np.testing.assert_allclose(rates, [5.18, 26.8], rtol=0.01)
    assert claims[0].numbers["rate_without"] == pytest.approx(RATES.grid[6])
    assert [claim.verdict for claim in claims] == [HOLDS, FAILS]
    assert "never in 4 of 4 seeds" in claims[1].found


def test_at_rate_sets_the_rate_of_every_seed():
    def create(params):
        return TrainState.create(params=params, batch_stats={}, tx=SGD)

    states = at_rate(0.25)(jax.vmap(create)({"w": jnp.ones((3, 2))}))  # three seeds
    moved = jax.vmap(lambda s: s.apply_gradients({"w": jnp.ones(2)}, {}))(states)
    np.testing.assert_allclose(moved.params["w"], 0.75)


# placement


def placement_records(final: dict, reached: dict, seeds: int = SEEDS) -> list[dict]:
    kinds = product(ACTIVATIONS, PLACES, STARTS)
    records = []
    for activation, place, start in kinds:
        name = place_name(activation, place, start)
        records += history(name, final[place], reached[place], seeds)
    return records


def places(none, before, after) -> dict:
    return dict(zip(PLACES, (none, before, after), strict=True))


@pytest.mark.parametrize(
    "final, reached, expected",
    [
        ((0.95, 0.99, 0.98), (100, 50, 50), [HOLDS, HOLDS, HOLDS, HOLDS]),
        ((0.95, 0.98, 0.99), (100, 50, 100), [HOLDS, FAILS, FAILS, FAILS]),
        ((0.1, 0.95, 0.1), (0, 50, 0), [HOLDS, FAILS, HOLDS, HOLDS]),
        ((0.95, 0.1, 0.1), (50, 0, 0), [FAILS, FAILS, FAILS, FAILS]),
    ],
)
def test_placement(final, reached, expected):
    settings = PlacementSettings(steps=100)
    records = placement_records(places(*final), places(*reached))
    assert verdicts(placement, records, settings) == expected


def test_a_place_that_suits_some_activations_holds_in_part():
    settings = PlacementSettings(steps=100)
    records = placement_records(places(0.95, 0.95, 0.95), places(100, 50, 50))
    slow = place_name("tanh", AFTER, USUAL)
    records = [r for r in records if r["network"] != slow] + history(slow, 0.95, 100)
    assert verdicts(placement, records, settings)[:2] == [HOLDS, IN_PART]


def test_enlarge_spares_all_but_the_hidden_weights():
    dense = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    norm = {"scale": jnp.ones(2)}
    params = {"Dense_0": dense, "Dense_1": dense, "Dense_2": dense, "BatchNorm_0": norm}
    states = TrainState.create(params=params, tx=SGD)
    larger = {"kernel": jnp.full((2, 2), 16.0), "bias": jnp.ones(2)}
    expected = params | {"Dense_0": larger, "Dense_1": larger}
    found = enlarge(16.0, 2)(states).params
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# optimizers


def optimizer_records(accuracy: tuple, reached: tuple, moved: float, seeds: int = SEEDS):
    records = []
    for optimizer in OPTIMIZERS:
        plain, normalised = (optimizer_name(optimizer, n) for n in NETWORKS)
        records += history(plain, accuracy[0], reached[0], seeds)
        moved_by = {"moved_scale": moved, "moved_bias": moved}
        records += history(normalised, accuracy[1], reached[1], seeds, **moved_by)
    return records


@pytest.mark.parametrize(
    "accuracy, reached, moved, expected",
    [
        ((0.95, 0.97), (100, 50), 0.2, [HOLDS, HOLDS, HOLDS]),
        ((0.95, 0.948), (100, 100), 0.001, [FAILS, HOLDS, FAILS]),  # within the margin
        ((0.95, 0.94), (50, 100), 0.0, [FAILS, FAILS, FAILS]),
        ((0.95, float("nan")), (50, 50), float("nan"), [FAILS, FAILS, FAILS]),
    ],
)
def test_optimizers(accuracy, reached, moved, expected):
    assert verdicts(optimizers, optimizer_records(accuracy, reached, moved)) == expected


def test_one_optimizer_that_leaves_the_scale_makes_it_part():
    records = optimizer_records((0.95, 0.97), (100, 50), 0.2)
    for record in records:
        if record["network"] == optimizer_name("Adam", NORMALISED):
            record["moved_scale"] = 0.0
    assert verdicts(optimizers, records)[0] == IN_PART


def test_moves_are_root_mean_squares_over_all_layers():
    params = {
        "BatchNorm_0": {"scale": jnp.array([1.0, 4.0]), "bias": jnp.array([0.0, 0.0])},
        "BatchNorm_1": {"scale": jnp.array([1.0, -3.0]), "bias": jnp.array([2.0, 0.0])},
        "Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.full(2, 9.0)},
    }
    found = moves(params)
    np.testing.assert_allclose(found["moved_scale"], 2.5)  # sqrt((9 + 16) / 4)
    np.testing.assert_allclose(found["moved_bias"], 1.0)
    assert moves({"Dense_0": params["Dense_0"]}) == {}


# What they share


NAN = float("nan")
DIVERGED = {
    learning_rate: (sweep_records(tops(0.0, 0.0, 0.0, 0.0), 1), RATES),
    placement: (
        placement_records(places(NAN, 0.1, 0.1), places(0, 0, 0), 1),
        PlacementSettings(steps=100),
    ),
    optimizers: (optimizer_records((0.95, NAN), (50, 50), NAN, 1), optimizers.PRESETS["quick"]),
}


@pytest.mark.parametrize("module", DIVERGED, ids=lambda module: module.__name__.split(".")[-1])
def test_one_seed_that_diverged_can_be_drawn(module, tmp_path):
    records, settings = DIVERGED[module]
    records = [without_nan(record) for record in records]  # as they are read from JSON
    plots.save(module.draw(records, settings), tmp_path / "figure.png")
    assert all(claim.verdict in (FAILS, UNDECIDED) for claim in module.judge(records, settings))


def test_overall():
    assert overall([HOLDS, HOLDS]) == HOLDS
    assert overall([HOLDS, FAILS]) == overall([HOLDS, UNDECIDED]) == IN_PART
    assert overall([FAILS, UNDECIDED]) == FAILS
    assert overall(iter([FAILS, FAILS])) == FAILS


@pytest.mark.parametrize("outcome", [HOLDS, IN_PART, FAILS, UNDECIDED])
def test_provided(outcome):
    met, missed = Interval(1.0, 0.5, 1.5), Interval(1.0, -0.5, 2.5)
    assert provided(outcome, met) == outcome
    assert provided(outcome, met, missed) == (IN_PART if outcome == HOLDS else outcome)


def test_log_speed_up_counts_never_as_the_last_step():
    found = log_speed_up(np.array([40.0, np.inf]), np.array([10.0, 20.0]), 80)
    np.testing.assert_allclose(np.exp(found), [4.0, 4.0])
