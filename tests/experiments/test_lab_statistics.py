"""Verdicts and arithmetic of the experiments on statistics, and scale and shift."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnjax.training import TrainState
from experiments.common.claims import FAILS, HOLDS
from experiments.common.data import Dataset, Split
from experiments.common.loop import one_by_one, train_seeds
from experiments.common.metrics import evaluate
from experiments.common.models import MLP
from experiments.common.norms import batch_norm
from experiments.lab import affine, feature_scaling
from experiments.lab.affine.identity import undo
from experiments.lab.affine.networks import evaluate_bias
from experiments.lab.affine.settings import BOTH, IDENTITY, MOST_ROUNDINGS, NEITHER, REDUNDANT
from experiments.lab.feature_scaling.bowl import Bowl, largest_stable_rate
from experiments.lab.feature_scaling.problem import prepare
from experiments.lab.feature_scaling.settings import INPUTS
from experiments.lab.feature_scaling.verdict import arrival

SEEDS = range(4)


def made_up(
    network: str, seeds: Any = SEEDS, steps: Any = (0, 50, 100), **metrics: float
) -> list[dict]:
    """Records whose metrics are nearly the same in all seeds and evaluations."""
    return [
        {"network": network, "seed": seed, "step": step}
        | {name: value * (1 + 0.001 * seed) for name, value in metrics.items()}
        for seed in seeds
        for step in steps
    ]


def verdicts(module, records) -> list[str]:
    return [claim.verdict for claim in module.judge(records, module.PRESETS["quick"])]


# feature_scaling


def bowl_and_start(rng, scale: float = 30.0):
    x = rng.standard_normal((50, 2)) * (1, scale)
    return Bowl(x, rng.standard_normal(50)), rng.standard_normal(2)


def test_the_bowl_is_the_loss(rng):
    x, t = rng.standard_normal((50, 2)), rng.standard_normal(50)
    bowl = Bowl(x, t)

    def loss(w):
        return ((x @ w - t) ** 2).mean() / 2

    best, *_ = np.linalg.lstsq(x, t, rcond=None)
    w = rng.standard_normal(2)
    np.testing.assert_allclose(bowl.best, best)
    np.testing.assert_allclose(bowl.excess(w) * bowl.gain, loss(w) - loss(best))
    first, second = bowl.descend(w, 0.1, 1)
    np.testing.assert_array_equal(first, w)
    np.testing.assert_allclose(second, w - 0.1 * x.T @ (x @ w - t) / 50)


def test_the_rate_found_by_trying_is_two_by_the_largest_eigenvalue(rng):
    bowl, first = bowl_and_start(rng)
    found = largest_stable_rate(bowl, first)
    np.testing.assert_allclose(found, 2 / np.linalg.eigvalsh(bowl.hessian)[-1], rtol=0.01)


@pytest.mark.parametrize("inputs", INPUTS[1:])
def test_prepared_inputs_are_standardised(inputs, rng):
    x = prepare(inputs, rng.uniform(0, 1, (500, 2)) * (1, 100))
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-3)


def ravine(condition: float, rate: float, arrived: float | None, network: str) -> list[dict]:
    records = made_up(network, condition_number=condition, stable_rate=rate)
    return [record | {"arrived": arrived} for record in records]


def test_feature_scaling_holds_or_does_not():
    raw, standardised, normalised = INPUTS
    long, round_ = (1e4, 1e-3, None), (2.0, 1.0, 10.0)
    good = ravine(*long, raw) + ravine(*round_, standardised) + ravine(*round_, normalised)
    bad = ravine(*round_, raw) + ravine(*long, standardised) + ravine(*round_, normalised)
    assert verdicts(feature_scaling, good) == [HOLDS] * 4
    assert verdicts(feature_scaling, bad) == [FAILS] * 4
    # What has not arrived counts as arrived at the last step.
    np.testing.assert_array_equal(arrival(good, raw), [100] * len(SEEDS))


# affine


def test_undoing_the_normalisation_is_exact_to_rounding(rng):
    assert 0 < undo(rng.normal(3, 2, (64, 20)).astype(np.float32)) < MOST_ROUNDINGS


def test_a_bias_before_batch_norm_has_no_gradient_but_one_without_has():
    # Of data of its own: what is left of the gradient is rounding, 3e-6 to 2e-5 in twelve sets.
    images = np.random.default_rng(0).uniform(0, 1, (40, 6))
    data = (jnp.asarray(images, jnp.float32), jnp.arange(40) % 10)
    for after, limit in ((False, 5e-5), (True, None)):
        model = MLP((5, 5), batch_norm=True, use_bias=True, after_activation=after)
        variables = model.init(jax.random.key(0), data[0], train=False)
        state = TrainState.create(tx=optax.sgd(0.1), **variables)
        share = evaluate_bias(state, data, model=model)["bias_gradient"]
        assert share < limit if limit else share > 1e-3


def affine_records(better: bool, roundings: float, gradient: float, apart: float) -> list[dict]:
    good, bad = {"test_accuracy": 0.98, "train_loss": 0.01}, {"test_accuracy": 0.9, "train_loss": 1}
    both, neither = (good, bad) if better else (bad, good)
    redundant = both | {"train_loss": both["train_loss"] * (1 + apart), "bias_gradient": gradient}
    return [
        *made_up(BOTH, **both),
        *made_up(NEITHER, **neither),
        *made_up(REDUNDANT, **redundant),
        *made_up(IDENTITY, steps=(0,), roundings=roundings),
    ]


def test_affine_holds_or_does_not():
    assert verdicts(affine, affine_records(True, 3.0, 1e-6, 1e-6)) == [HOLDS] * 5
    assert verdicts(affine, affine_records(False, 50.0, 1e-2, 0.1)) == [FAILS] * 5


# the loop


def test_seeds_one_by_one_are_seeds_side_by_side(rng):
    split = Split(rng.uniform(0, 1, (24, 4)).astype(np.float32), np.arange(24, dtype=np.int32) % 3)
    data = Dataset("made up", split, split, (2, 2, 1))
    model = MLP((6,), 3, batch_norm=True, norm=batch_norm(), activation=nn.relu)
    sizes: dict[str, Any] = {"num_seeds": 2, "num_steps": 5, "batch_size": 8, "eval_every": 3}
    optimizer = optax.sgd(0.1, momentum=0.9)
    for one, other in zip(
        train_seeds(model, optimizer, evaluate, data, **sizes),
        train_seeds(model, optimizer, evaluate, data, across_seeds=one_by_one, **sizes),
        strict=True,
    ):
        assert one.step == other.step and one.metrics.keys() == other.metrics.keys()
        for metric, values in one.metrics.items():
            np.testing.assert_allclose(other.metrics[metric], values, rtol=1e-4)
