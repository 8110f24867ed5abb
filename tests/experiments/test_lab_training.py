"""Judges of placement and optimizers on made-up records; their arithmetic."""

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
from experiments.common.rates import SGD
from experiments.common.records import without_nan
from experiments.common.settings import NETWORKS, NORMALISED
from experiments.lab import optimizers, placement
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
