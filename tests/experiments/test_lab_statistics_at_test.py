"""Inference, covariate shift and transfer: their formulas, and their verdicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import adapt
from experiments.common.claims import FAILS, HOLDS, UNDECIDED, Interval, verdict_same
from experiments.common.data import Dataset, Split
from experiments.common.models import MLP
from experiments.common.population import (
    evaluated,
    over_seeds,
    over_seeds_and_batches,
    running_accuracy,
)
from experiments.lab import covariate_shift, inference, transfer
from experiments.lab.covariate_shift.paint import paint
from experiments.lab.covariate_shift.settings import PAINTS, SHIFTS
from experiments.lab.inference.batches import batch_accuracy, by_class
from experiments.lab.inference.settings import BATCH, ONE_CLASS, RECALIBRATED, RUNNING, SHUFFLED
from experiments.lab.transfer.examples import draw_batches, draw_examples, half
from experiments.lab.transfer.settings import WAYS

SEEDS = 3
JITTER = np.array([-0.002, 0.0, 0.002])  # of the seeds around a made-up value


def records_of(network: str, step: int, value: float, name: str = "test_accuracy") -> list[dict]:
    """A record a seed, close to `value`."""
    return [
        {"network": network, "seed": seed, "step": step, name: value * (1 + JITTER[seed])}
        for seed in range(SEEDS)
    ]


def verdicts(experiment, records, seeds: int = SEEDS) -> list[str]:
    records = [record for record in records if record["seed"] < seeds]
    settings = experiment.PRESETS["quick"]
    with np.errstate(all="raise"):
        claims = experiment.judge(records, settings)
    assert experiment.draw(records, settings).axes
    return [claim.verdict for claim in claims]


def diverged(records: list[dict]) -> list[dict]:
    """The records with null in place of all that was measured, as read from a file."""
    return [
        {k: v if k in ("network", "seed", "step") else None for k, v in r.items()} for r in records
    ]


@pytest.mark.parametrize(
    "interval, expected",
    [
        (Interval(0.0, -0.4, 0.4), HOLDS),
        (Interval(-0.4, -0.6, -0.2), UNDECIDED),
        (Interval(0.6, 0.4, 0.8), UNDECIDED),
        (Interval(0.8, 0.6, 1.0), FAILS),
        (Interval(-0.8, -1.0, -0.6), FAILS),
        (Interval(0.1, float("nan"), float("nan")), UNDECIDED),
        (Interval(float("nan"), float("nan"), float("nan")), FAILS),
    ],
)
def test_the_same_within_a_margin(interval, expected):
    assert verdict_same(interval, 0.5) == expected


# Population statistics of several seeds at once


@pytest.fixture(scope="module")
def networks():
    """A model, and variables of three seeds."""
    model = MLP(hidden=(8,), batch_norm=True, init_std=0.7)
    variables = model.init(jax.random.key(0), jnp.zeros((2, 6)), train=False)
    rng = np.random.default_rng(0)

    def draw(collection: str, low: float):
        return jax.tree.map(
            lambda v: rng.uniform(low, 1.5, (SEEDS, *v.shape)).astype(v.dtype),
            variables[collection],
        )

    # Weights of either sign, and positive variances.
    return model, {"params": draw("params", -1.5), "batch_stats": draw("batch_stats", 0.5)}


def test_all_seeds_at_once_give_what_each_alone_gives(networks):
    model, variables = networks
    images = np.random.default_rng(0).normal(size=(SEEDS, 23, 6)).astype(np.float32)
    parts = [images[:, :5], images[:, 5:]]
    options = {"weight": 0.3, "call": evaluated}
    together = adapt(model, variables, parts, transform=over_seeds_and_batches, **options)
    for seed in (0, 2):
        own = jax.tree.map(lambda v, seed=seed: v[seed], variables)
        alone = adapt(model, own, [part[seed] for part in parts], **options)
        jax.tree.map(
            lambda m, o, seed=seed: np.testing.assert_allclose(m[seed], o, atol=1e-6),
            together["batch_stats"],
            alone["batch_stats"],
        )


# inference


def test_accuracy_by_batch_is_that_of_each_batch_by_itself(networks):
    model, variables = networks
    rng = np.random.default_rng(1)
    split = Split(rng.normal(size=(11, 6)).astype(np.float32), rng.integers(0, 10, 11))
    found = batch_accuracy(model, variables, split, 4)
    for seed in range(SEEDS):
        own = jax.tree.map(lambda v, seed=seed: v[seed], variables)
        logits = [
            model.apply(own, split.images[i : i + 4], train=True, mutable=["batch_stats"])[0]
            for i in (0, 4)
        ]
        expected = np.mean(np.concatenate(logits).argmax(-1) == split.labels[:8])
        assert found[seed] == pytest.approx(expected)


def test_batches_of_one_class():
    split = Split(np.arange(50, dtype=np.float32)[:, None], np.arange(50) % 10)
    chosen = by_class(split, 2)  # 5 images a class: the last one fills no batch
    pairs = chosen.labels.reshape(-1, 2)
    assert len(chosen.labels) == 40 and np.all(pairs[:, 0] == pairs[:, 1])
    np.testing.assert_array_equal(chosen.images[:, 0] % 10, chosen.labels)


def inference_records(running, fresh, batch_of_2, batch_of_all, one_class, early=0.5) -> list[dict]:
    records = []
    for step, value in ((0, 0.1), (100, early), (1000, running)):
        records += records_of(RUNNING, step, value)
        records += records_of(BATCH, step, 0.9)
    for step, value in ((0, 0.1), (100, 0.9), (1000, fresh)):
        records += records_of(RECALIBRATED, step, value)
    for size, value in ((2, batch_of_2), (500, batch_of_all)):
        records += records_of(SHUFFLED, size, value)
    return records + records_of(ONE_CLASS, 2, one_class)


def test_inference_holds_or_fails():
    good = inference_records(0.98, 0.98, 0.5, 0.98, 0.1)
    assert verdicts(inference, good) == [HOLDS] * 5
    bad = inference_records(0.8, 0.9, 0.9, 0.98, 0.9, early=0.95)
    assert verdicts(inference, bad) == [FAILS] * 5
    assert verdicts(inference, good, seeds=1) == [UNDECIDED] * 5
    assert verdicts(inference, diverged(good)) == [FAILS] * 5


# covariate_shift


def test_paint():
    grey = Split(np.array([[0.0, 0.5, 1.0, 0.25]], np.float32), np.zeros(1, np.int32))
    painted = paint(grey, (2, 2, 1), (0, 0, 0.5), (1, 0.5, 0))
    expected = [[0, 0, 0.5], [0.5, 0.25, 0.25], [1, 0.5, 0], [0.25, 0.125, 0.375]]
    np.testing.assert_allclose(painted.images.reshape(4, 3), expected)
    colours = Split(np.array([[0.1, 0.2, 0.3]], np.float32), np.zeros(1, np.int32))
    inverted = paint(colours, (1, 1, 3), *PAINTS["inverted"])
    np.testing.assert_allclose(inverted.images, [[0.9, 0.8, 0.7]], rtol=1e-6)


def test_adapting_undoes_low_contrast_and_not_inversion(networks):
    model, variables = networks
    shape, rng = (1, 2, 3), np.random.default_rng(2)
    images = rng.uniform(size=(200, 6)).astype(np.float32)
    known = adapt(model, variables, [images], call=evaluated, transform=over_seeds)
    labels = model.apply(jax.tree.map(lambda v: v[0], known), images, train=False).argmax(1)
    assert np.bincount(labels).max() < 150

    def accuracy(name: str) -> float:
        painted = paint(Split(images, labels), shape, *PAINTS[name]).images
        adapted = adapt(model, variables, [painted], call=evaluated, transform=over_seeds)
        return float(running_accuracy(model, adapted, painted, labels)[0])

    assert accuracy("low contrast") > 0.97
    assert accuracy("inverted") < 0.8


def shift_records(old: float, few: float, every: float) -> list[dict]:
    records = records_of("grey, as trained", 0, 0.98)
    for shift in SHIFTS:
        records += records_of(f"{shift}, as trained", 0, old)
        for number, value in ((4, 0.3), (64, few), (1024, every)):
            records += records_of(f"{shift}, adapted", number, value)
            records += records_of(f"{shift}, adapted, old weighted", number, value)
    return records


def test_covariate_shift_holds_or_fails():
    good = shift_records(old=0.2, few=0.94, every=0.95)
    assert verdicts(covariate_shift, good) == [HOLDS] * 6
    assert verdicts(covariate_shift, shift_records(0.99, 0.5, 0.98)) == [FAILS] * 6
    # Everything is regained, but not by 64 images.
    late = verdicts(covariate_shift, shift_records(old=0.2, few=0.8, every=0.95))
    assert late == [HOLDS] * 4 + [FAILS] * 2
    assert verdicts(covariate_shift, good, seeds=1) == [UNDECIDED] * 6
    assert verdicts(covariate_shift, diverged(good)) == [FAILS] * 6


# transfer


def test_the_other_half_of_the_classes():
    images = np.arange(20, dtype=np.float32)[:, None]
    split = Split(images, np.arange(20, dtype=np.int32) % 10)
    new = half(Dataset("made up", split, split), 5).train
    np.testing.assert_array_equal(new.labels, new.images[:, 0] % 10 - 5)
    assert len(new.labels) == 10


def test_examples_are_as_many_of_each_class_and_batches_go_through_them():
    labels = np.arange(100) % 5
    rows = draw_examples(labels, 3, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [3] * 5)
    assert set(rows) != set(draw_examples(labels, 3, seed=1))
    batches = draw_batches(rows, 5, 6, seed=0)  # 30 of 15 rows: two epochs
    assert batches.shape == (5, 6)
    assert sorted(batches.ravel()[:15]) == sorted(batches.ravel()[15:]) == sorted(rows)


def transfer_records(frozen: dict, adapted: dict, trained: dict, scratch: dict) -> list[dict]:
    """Accuracies at 5 and 50 examples, and at mini-batches of 2."""
    records = []
    ways = zip(WAYS, (frozen, adapted, trained, scratch), strict=True)
    for way, accuracy in ways:
        records += records_of(f"{way}, by examples", 5, accuracy["few"])
        records += records_of(f"{way}, by examples", 50, accuracy["many"])
        records += records_of(f"{way}, by batch", 2, accuracy["small"])
    return records


def test_transfer_holds_or_fails():
    best, good = {"few": 0.9, "many": 0.8, "small": 0.9}, {"few": 0.95, "many": 0.8, "small": 0.9}
    poor = {"few": 0.5, "many": 0.95, "small": 0.5}
    assert verdicts(transfer, transfer_records(best, good, poor, poor)) == [HOLDS] * 5
    assert verdicts(transfer, transfer_records(poor, poor, best, best)) == [FAILS] * 5
    records = transfer_records(best, good, poor, poor)
    assert verdicts(transfer, records, seeds=1) == [UNDECIDED] * 5
    assert verdicts(transfer, diverged(records)) == [FAILS] * 5
