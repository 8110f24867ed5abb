"""Halves, examples, fine-tuning step by step, and verdicts on made-up accuracies."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.data import Dataset, Split, hold_out
from experiments.common.loss import make_loss_fn
from experiments.common.rates import SGD
from experiments.common.sweep import at_rate
from experiments.common.verdicts import CLAIM, FAILS, HOLDS, IN_PART
from experiments.lab import transfer
from experiments.lab.transfer import ADAPTED, FROZEN, HALF, SCRATCH, TRAINED, network_name
from tests.experiments.lab._made import judged, logged, seeds
from tests.experiments.lab._networks import PIXELS, SEEDS, networks, of_seed

SETTINGS = transfer.PRESETS["quick"]


def test_every_seed_has_halves_of_its_own_and_no_class_is_in_both():
    split = Split(np.zeros((100, 1), np.float32), np.arange(100, dtype=np.int32) % 10)
    data = hold_out(Dataset("made up", split, split))
    old, new = (transfer.halves(data, 3, which)[-1] for which in (0, 1))
    assert np.all((old >= 0) != (new >= 0))
    for labels in (*old, *new):
        np.testing.assert_array_equal(np.unique(labels), np.arange(-1, HALF))
        for label in range(HALF):  # of one class, and all of it
            assert len(set(split.labels[labels == label])) == 1 and sum(labels == label) == 10
    assert np.any(old[0] != old[1])


def test_examples_are_as_many_of_each_class_and_none_of_the_others():
    labels = np.arange(100) % 10 - HALF  # negative: the other half
    labels = np.maximum(labels, -1)
    rows = transfer.draw_examples(labels, 3, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[rows]), [3] * HALF)
    assert set(rows) != set(transfer.draw_examples(labels, 3, seed=1))


def test_a_step_of_each_rate_and_seed_is_down_its_own_gradient():
    model, variables = networks()
    rng, rates = np.random.default_rng(0), (0.1, 1.0)
    images = jnp.asarray(rng.normal(size=(12, PIXELS)), jnp.float32)
    labels = rng.integers(0, 10, (SEEDS, 12)).astype(np.int32)
    batches = rng.integers(0, 12, (SEEDS, 1, 6))
    loss_fn = make_loss_fn(model)
    tuned = transfer.fine_tune(SGD, loss_fn, variables, batches, images, labels, jnp.array(rates))
    for seed in range(SEEDS):
        own, rows = of_seed(variables, seed), batches[seed, 0]
        batch = {"images": images[rows], "labels": labels[seed, rows]}
        stats = {"batch_stats": own["batch_stats"]}
        gradient = jax.grad(lambda p, s=stats, b=batch: loss_fn(p, s, b, train=True)[0])
        slope = gradient(own["params"])["Dense_0"]["kernel"]
        for i, rate in enumerate(rates):
            moved = (
                tuned["params"]["Dense_0"]["kernel"][i, seed] - own["params"]["Dense_0"]["kernel"]
            )
            np.testing.assert_allclose(moved, -rate * slope, rtol=1e-3, atol=1e-6)


def test_only_images_of_the_half_are_counted():
    model, variables = networks()
    images = np.random.default_rng(0).normal(size=(20, PIXELS)).astype(np.float32)
    said = np.stack([
        model.apply(of_seed(variables, seed), images, train=False).argmax(-1)
        for seed in range(SEEDS)
    ])  # fmt: skip
    labels = np.where(np.arange(20) < 5, said, -1).astype(np.int32)  # right about five of five
    labels[:, 0] = (labels[:, 0] + 1) % 10
    tree = jax.tree.map(lambda v: v[None], variables)
    np.testing.assert_allclose(transfer.accuracy_of_half(model, tree, images, labels), 0.8)


def made(few: dict, small: dict):
    """Accuracies at rate 0.1 with mini-batches of 16 and of 2; at the other rates less."""
    records = []
    for each, size in SETTINGS.tunings:
        for way, accuracy in (small if size == 2 else few).items():
            for rate in SETTINGS.rates:
                top = seeds(accuracy if rate == 0.1 else 0.5 * accuracy, 0.001)
                name = at_rate(network_name(way, each, size), rate)
                records += logged(name, 150, test_accuracy=top, validation_accuracy=top)
    return records


def verdicts(records):
    rows = judged(transfer, records, SETTINGS).values()
    assert sum(row.kind != CLAIM for row in rows) == 2  # freezing at 16, and adapting
    return [row.verdict for row in rows if row.kind == CLAIM]


GOOD = {TRAINED: 0.8, FROZEN: 0.9, ADAPTED: 0.85, SCRATCH: 0.7}
BAD = {TRAINED: 0.8, FROZEN: 0.7, ADAPTED: 0.85, SCRATCH: 0.9}


def test_verdicts():
    assert verdicts(made(GOOD, GOOD)) == [HOLDS] * 2
    assert verdicts(made(BAD, BAD)) == [FAILS] * 2
    assert verdicts(made(GOOD, BAD)) == [HOLDS, FAILS]


def test_help_with_few_examples_alone_is_a_part():
    records = made(GOOD, GOOD)
    for record in records:
        if record["network"].startswith(network_name(SCRATCH, 50, 16)):
            record["test_accuracy"] = 0.99
    assert verdicts(records) == [IN_PART, HOLDS]


def test_divergence_supports_nothing():
    records = made(GOOD, GOOD)
    for record in records:
        record["test_accuracy"] = record["validation_accuracy"] = None
    assert verdicts(records) == [FAILS] * 2
