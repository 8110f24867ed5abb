"""Verdicts on made-up gaps, and what the spread and the gap are."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnjax.training import TrainState
from experiments.common.data import Dataset, Split
from experiments.common.errors import UserError
from experiments.common.gap import evaluate_gap, with_train_in_front
from experiments.common.models import MLP
from experiments.common.verdicts import FAILS, HOLDS, UNDECIDED
from experiments.lab import regularisation
from experiments.lab.regularisation import (
    LARGE,
    PLAIN_LARGE,
    PLAIN_SMALL,
    SIZES,
    SMALL,
    SPREAD,
    VIRTUAL,
    name_of,
)
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = regularisation.PRESETS["quick"]
GAPS = {LARGE: 0.3, SMALL: 0.1, VIRTUAL: 0.1, PLAIN_SMALL: 0.2, PLAIN_LARGE: 0.2}


def verdicts(gaps, spread=0.01):
    records = []
    for size in SIZES:
        records += logged(SPREAD, size, mean_spread=size**-0.5, std_spread=size**-0.5)
    for network, gap in gaps.items():
        for rate, split in SETTINGS.runs:
            values = seeds(gap + 0.003 * split, spread)
            metrics = {"loss_gap": values, "error_gap": values, "test_accuracy": 0.9}
            records += logged(name_of(network, rate, split), 100, **metrics)
    rows = judged(regularisation, records, SETTINGS).values()
    assert regularisation.slopes(records, "std_spread") == pytest.approx(-0.5)
    return [row.verdict for row in rows if row.verdict]


def test_smaller_batches_narrow_the_gap_or_do_not():
    assert verdicts(GAPS) == [HOLDS] * 2
    assert verdicts(GAPS | {LARGE: 0.05}) == [FAILS] * 2
    assert verdicts(GAPS | {LARGE: 0.101}, spread=0.5) == [UNDECIDED] * 2


def test_the_noise_of_the_gradient_is_not_that_of_the_statistics():
    assert verdicts(GAPS | {VIRTUAL: 0.35}) == [HOLDS, FAILS]


def test_the_spread_of_means_is_that_of_independent_draws(rng):
    x = rng.standard_normal((3000, 40)).astype(np.float32) * 7 + 100
    found = regularisation.measure_spread(x, 64, np.random.default_rng(1))
    np.testing.assert_allclose(found["mean_spread"], 1 / 8, rtol=0.05)
    # Of normal numbers: sqrt(1 / (2 n)).
    np.testing.assert_allclose(found["std_spread"], np.sqrt(1 / 128), rtol=0.05)


def test_the_gap_is_that_of_the_training_images_in_front(rng):
    train, test = (
        Split(rng.uniform(0, 1, (n, 6)).astype(np.float32), np.arange(n, dtype=np.int32) % 10)
        for n in (30, 20)
    )
    data = with_train_in_front(Dataset("made up", train, test, (2, 3, 1)), 25)
    assert len(data.train.labels) == 25 and len(data.test.labels) == 45
    model = MLP((5,), activation=nn.relu)
    variables = model.init(jax.random.key(0), jnp.asarray(train.images), train=False)
    state = TrainState.create(params=variables["params"], tx=optax.sgd(0.1))
    both = (jnp.asarray(data.test.images), jnp.asarray(data.test.labels))
    found = evaluate_gap(state, both, model=model, seen=25)

    def loss(split):
        logits = np.asarray(model.apply(variables, jnp.asarray(split.images), train=False))
        chosen = logits[np.arange(len(logits)), split.labels]
        return (np.log(np.exp(logits).sum(1)) - chosen).mean()

    np.testing.assert_allclose(found["loss_gap"], loss(test) - loss(data.train), rtol=1e-4)
    np.testing.assert_allclose(found["test_loss"], loss(test), rtol=1e-5)


def test_too_large_batches_are_refused():
    settings = dataclasses.replace(SETTINGS, images=100)
    split = Split(np.zeros((100, 4), np.float32), np.zeros(100, np.int32))
    with pytest.raises(UserError, match="--batch-size 64"):
        regularisation.trials(settings, Dataset("digits", split, split, (2, 2, 1)))
