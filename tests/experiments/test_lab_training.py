"""Judges of learning_rate and depth on made-up records; their arithmetic."""

from functools import partial
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import TrainState
from experiments.common import plots
from experiments.common.claims import FAILS, HOLDS, IN_PART, UNDECIDED, Interval, overall, provided
from experiments.common.histories import log_speed_up
from experiments.common.loop import init_state
from experiments.common.models import ACTIVATIONS
from experiments.common.rates import SGD, at_rate
from experiments.common.records import without_nan
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.lab import depth, learning_rate
from experiments.lab.depth.gradients import gradient_norms, norms
from experiments.lab.depth.networks import DeepNet
from experiments.lab.depth.settings import DepthSettings, gradient_name
from experiments.lab.depth.settings import trial_name as depth_name
from experiments.lab.learning_rate.settings import RELU, SIGMOID, LearningRateSettings
from experiments.lab.learning_rate.settings import trial_name as rate_name

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


# depth

DEPTHS = DepthSettings(steps=100, depths=(2, 4))


def depth_records(change: dict, final: dict, seeds: int = SEEDS) -> list[dict]:
    """The gradient of the first layer at four layers is `change` times that at two."""
    records = []
    for activation, network in product(ACTIVATIONS, NETWORKS):
        for layers, norm in ((2, 1.0), (4, change[network])):
            gradients = {gradient_name(layer): norm for layer in range(1, layers + 1)}
            name = depth_name(activation, network, layers)
            records += history(name, final[network], 50, seeds, **gradients)
    return records


def both(plain, normalised) -> dict:
    return {PLAIN: plain, NORMALISED: normalised}


@pytest.mark.parametrize(
    "plain, normalised, expected",
    [
        (1e-6, 2.0, HOLDS),
        (1e6, 0.5, HOLDS),
        (1e-6, 1e3, IN_PART),  # explodes, if by less
        (0.5, 10.0, FAILS),
        (0.0, 1.0, HOLDS),  # underflow
        (1e-6, float("nan"), FAILS),
    ],
)
def test_gradients_near_to_no_change_hold(plain, normalised, expected):
    records = depth_records(both(plain, normalised), both(0.1, 0.9))
    assert verdicts(depth, records, DEPTHS) == [expected] * 3 + [HOLDS] * 3


@pytest.mark.parametrize(
    "plain, normalised, expected",
    [(0.1, 0.9, HOLDS), (0.1, 0.5, IN_PART), (0.9, 0.9, FAILS), (0.9, 0.1, FAILS)],
)
def test_the_deepest_trains(plain, normalised, expected):
    records = depth_records(both(1.0, 1.0), both(plain, normalised))
    assert verdicts(depth, records, DEPTHS)[3:] == [expected] * 3


def test_depth_with_one_seed_is_undecided():
    records = depth_records(both(1e-6, 1.0), both(0.1, 0.9), seeds=1)
    assert verdicts(depth, records, DEPTHS) == [UNDECIDED] * 6


@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradient_norms_are_those_of_the_weights(batch_norm):
    """Against the network written out layer by layer, differentiated by central differences."""
    model = DeepNet(3, 5, nn.tanh, batch_norm)
    init = jax.jit(partial(init_state, model=model, optimizer=SGD, pixels=6))
    state = init(jax.random.key(1))
    images = jax.random.normal(jax.random.key(2), (8, 6))
    labels = jnp.arange(8) % 10
    norms = jax.jit(partial(gradient_norms, model=model))(state, (images, labels))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    kernels = [params["first"]["Dense_0"]["kernel"], *params["others"]["Dense_0"]["kernel"]]
    for layer, kernel in enumerate(kernels):
        gradient = np.zeros_like(kernel)
        for place in np.ndindex(kernel.shape):
            losses = []
            for step in (1e-5, -1e-5):
                moved = [each.copy() for each in kernels]
                moved[layer][place] += step
                losses.append(written_out(moved, params, images, labels, batch_norm))
            gradient[place] = (losses[0] - losses[1]) / 2e-5
        np.testing.assert_allclose(norms[layer], np.linalg.norm(gradient), rtol=2e-4)


def test_depth_compares_networks_with_the_same_first_weights():
    """And bias: what nn.scan draws must not hang on what else there is in a layer."""
    plain, normalised = (
        init_state(jax.random.key(0), DeepNet(4, 5, nn.tanh, batch_norm), SGD, pixels=6).params
        for batch_norm in (False, True)
    )
    for name in ("first", "others"):
        np.testing.assert_array_equal(
            plain[name]["Dense_0"]["kernel"], normalised[name]["Dense_0"]["kernel"]
        )
    np.testing.assert_array_equal(plain["Dense_0"]["kernel"], normalised["Dense_0"]["kernel"])
    assert plain["others"]["bias"].shape == (3, 5)


def test_norms_do_not_underflow():
    matrices = np.float32([1e-30, 0.0, 1e20])[:, None, None] * np.ones((3, 4, 5), np.float32)
    np.testing.assert_allclose(
        norms(jnp.asarray(matrices)), [20**0.5 * 1e-30, 0, 20**0.5 * 1e20], rtol=1e-5
    )


def written_out(kernels, params, images, labels, batch_norm) -> float:
    """Mean cross-entropy in float64; biases, shifts and scales are as they start."""
    x = np.asarray(images, np.float64)
    for kernel in kernels:
        x = x @ kernel
        if batch_norm:
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = np.tanh(x)
    logits = x @ params["Dense_0"]["kernel"]
    chosen = logits[np.arange(len(labels)), np.asarray(labels)]
    return float(np.mean(np.log(np.exp(logits).sum(1)) - chosen))


# What they share


NAN = float("nan")
DIVERGED = {
    learning_rate: (sweep_records(tops(0.0, 0.0, 0.0, 0.0), 1), RATES),
    depth: (depth_records(both(0.0, NAN), both(0.1, NAN), 1), DEPTHS),
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
