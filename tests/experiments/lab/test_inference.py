"""Accuracy by batch against each batch by itself, and verdicts on made-up accuracies."""

import numpy as np
import pytest

from experiments.common.data import Split
from experiments.common.verdicts import CLAIM, FAILS, HOLDS
from experiments.lab import inference
from experiments.lab.inference import BATCH, ONE_CLASS, RECALIBRATED, RUNNING, SHUFFLED
from tests.experiments.lab._made import judged, logged, seeds
from tests.experiments.lab._networks import PIXELS, SEEDS, networks, of_seed


def test_accuracy_by_batch_is_that_of_each_batch_by_itself():
    model, variables = networks()
    rng = np.random.default_rng(1)
    split = Split(rng.normal(size=(11, PIXELS)).astype(np.float32), rng.integers(0, 10, 11))
    found = inference.batch_accuracy(model, variables, split, 4)
    for seed in range(SEEDS):
        own = of_seed(variables, seed)
        logits = [
            model.apply(own, split.images[i : i + 4], train=True, mutable=["batch_stats"])[0]
            for i in (0, 4)
        ]
        expected = np.mean(np.concatenate(logits).argmax(-1) == split.labels[:8])
        assert found[seed] == pytest.approx(expected)


def test_batches_of_one_class():
    split = Split(np.arange(50, dtype=np.float32)[:, None], np.arange(50) % 10)
    chosen = inference.by_class(split, 2)  # 5 images a class: the last one fills no batch
    pairs = chosen.labels.reshape(-1, 2)
    assert len(chosen.labels) == 40 and np.all(pairs[:, 0] == pairs[:, 1])
    np.testing.assert_array_equal(chosen.images[:, 0] % 10, chosen.labels)


def test_sizes_fill_the_test_set():
    assert inference.sizes(100) == [2, 4, 8, 16, 100]


def made(running=0.98, fresh=0.98, batch_of_2=0.5, batch_of_all=0.98, early=0.5):
    def accuracies(trial, **by_step):
        for step, value in by_step.items():
            yield from logged(trial, int(step[1:]), test_accuracy=seeds(value, 0.001))

    return [
        *accuracies(RUNNING, _0=0.1, _100=early, _1000=running),
        *accuracies(RECALIBRATED, _0=0.1, _100=0.9, _1000=fresh),
        *accuracies(BATCH, _0=0.1, _100=0.9, _1000=0.9),
        *accuracies(SHUFFLED, _2=batch_of_2, _500=batch_of_all),
        *accuracies(ONE_CLASS, _2=0.1),
    ]


def verdicts(records):
    return [row.verdict for row in judged(inference, records).values() if row.kind == CLAIM]


def test_verdicts():
    assert verdicts(made()) == [HOLDS] * 4
    bad = made(running=0.8, fresh=0.9, batch_of_2=0.9, early=0.95)
    assert verdicts(bad) == [FAILS] * 4
    # Each verdict hangs on its own figures.
    assert verdicts(made(early=0.95)) == [HOLDS, HOLDS, FAILS, HOLDS]
    assert verdicts(made(batch_of_all=0.9)) == [FAILS, HOLDS, HOLDS, HOLDS]


def test_divergence_supports_nothing():
    records = made()
    for record in records:
        record["test_accuracy"] = None
    assert verdicts(records) == [FAILS] * 4
