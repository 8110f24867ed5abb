"""Does it help reusing a pretrained model, and what of its batch norm (Ng)?

A network learns one half of the classes, gets a new last layer, and learns the other half from a
few examples a class, in four ways::

    batch norm trains on   as in any training: batches normalise, running averages follow
    batch norm frozen      statistics, scale and shift stay as pretrained (`bnjax.surgery.freeze`)
    frozen, adapted        the same, with the statistics of the new examples; a control
    new weights            as the first, but not pretrained

All other weights learn in each of them. Every seed has its own halves of the ten classes, its own
pretrained network and its own examples, the same for all four. Two things are varied: the number of
examples, at mini-batches of `tune_batch`; and the size of the mini-batch, at `few` examples a
class. Each way goes at the rate that is best on images held out; whoever has five examples a class
has no such images, and would have to guess. At the tenth of the pretraining's rate that is usual,
new weights look worse than they are: they have not arrived after so few steps.

The lecture asks its question in one line, and shows no numbers. A small mini-batch is the usual
reason to freeze: memory is short where large models are fine-tuned. Wu & He (2018, section 4.2)
lose about 6 points of average precision at 2 images where batch norm trains on. Their networks were
pretrained on ImageNet, and have more to hand on than five digits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnjax.surgery import freeze, trained
from bnjax.training import TrainState, adapt, train_step
from experiments.common.batches import batches_of_seeds
from experiments.common.data import NUM_CLASSES, Dataset, hold_out
from experiments.common.histories import last
from experiments.common.loop import variables_of
from experiments.common.loss import LossFn, make_loss_fn
from experiments.common.models import relu_mlp
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    entitle,
    log_axis,
    narrow,
    stretch_accuracy,
)
from experiments.common.population import evaluated, over_seeds_and_batches
from experiments.common.progress import Reporter
from experiments.common.rates import SGD
from experiments.common.records import Record, per_seed
from experiments.common.settings import MLPSettings
from experiments.common.sweep import at_rate, best_rate, best_trial, best_trials, by_accuracy, ring
from experiments.common.trials import Trial
from experiments.common.verdicts import Row, Test, claim, control

TRAINED, FROZEN = "batch norm trains on", "batch norm frozen"
ADAPTED, SCRATCH = "frozen, adapted", "new weights"
LOOKS = {  # colour, line and marker
    TRAINED: (BLUE, "-", "o"),
    FROZEN: (ORANGE, "--", "s"),
    ADAPTED: (GREEN, "-.", "^"),
    SCRATCH: (GREY, ":", "D"),
}
HALF = NUM_CLASSES // 2


@dataclass(frozen=True)
class Settings(MLPSettings):
    """Pretraining takes `steps` of `batch_size`; fine-tuning `tune_steps` of `tune_batch`."""

    tune_steps: int = 150
    tune_batch: int = 16
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)  # of fine-tuning
    few: int = 5  # examples a class where the mini-batch is varied
    examples: tuple[int, ...] = (1, 2, 5, 20, 50)
    batches: tuple[int, ...] = (2, 4, 16)  # the last is `tune_batch`

    @property
    def tunings(self) -> list[tuple[int, int]]:
        """Examples a class and images of a mini-batch."""
        by_batch = [(self.few, size) for size in self.batches if size != self.tune_batch]
        return [(each, self.tune_batch) for each in self.examples] + by_batch


PRESETS = {
    "quick": Settings(steps=600, batch_size=32, eval_every=100),
    "long": Settings(
        data="mnist",
        steps=4000,
        batch_size=32,
        eval_every=500,
        hidden=(100, 100, 100),
        init_std=0.05,
        tune_steps=500,
        examples=(1, 2, 5, 20, 100, 1000),
    ),
}


def network_name(way: str, each: int, size: int) -> str:
    """Such as "batch norm frozen, 5 a class, batches of 16"."""
    return f"{way}, {each} a class, batches of {size}"


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial: pretraining, and everything that starts from it."""
    steps = settings.steps + len(LOOKS) * len(settings.tunings) * settings.tune_steps
    return [Trial("pretraining", steps, partial(_measure, settings, hold_out(data)))]


def halves(data: Dataset, seeds: int, which: int) -> list[np.ndarray]:
    """Of training, validation and test set the labels of one half of the classes, (seeds, n).

    Every seed divides the classes at random. Those of the first (0) or second (1) half are counted
    from 0; the others are -1.
    """
    order = [np.random.default_rng(seed).permutation(NUM_CLASSES) for seed in range(seeds)]
    place = np.argsort(np.stack(order), 1) - HALF * which  # of each class in its half
    place = np.where((place >= 0) & (place < HALF), place, -1).astype(np.int32)
    return [place[:, split.labels] for split in (data.train, data.validation, data.test) if split]


def draw_examples(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Rows of `each` random examples of every class, fewer where there are not as many."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == c][:each] for c in range(HALF)])


def _measure(settings: Settings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    reporter.say("pretraining: compiling")
    model = relu_mlp(settings, HALF)
    loss_fn = make_loss_fn(model)
    images, seeds = jnp.asarray(data.train.images), range(settings.seeds)
    (old, *_), (new, *held_out) = (halves(data, settings.seeds, which) for which in (0, 1))
    first, fresh = (_init(model, settings.seeds, images.shape[1], base) for base in (0, 1000))

    rows = [np.flatnonzero(labels >= 0) for labels in old]
    batches = batches_of_seeds(rows, settings.steps, settings.batch_size)
    rates = jnp.array([settings.learning_rate])
    found = fine_tune(SGD, loss_fn, first, batches, images, old, rates)
    pretrained = _with_new_head(jax.tree.map(lambda v: v[0], found), fresh)

    held = optax.masked(SGD, trained(freeze(pretrained)))
    done = settings.steps
    for each, size in settings.tunings:
        chosen = [draw_examples(new[seed], each, seed) for seed in seeds]
        batches = batches_of_seeds(chosen, settings.tune_steps, size)
        for way, (start, tx) in {
            TRAINED: (pretrained, SGD),
            FROZEN: (freeze(pretrained), held),
            ADAPTED: (freeze(_adapted(model, pretrained, images, chosen)), held),
            SCRATCH: (fresh, SGD),
        }.items():
            name = network_name(way, each, size)
            reporter.say(name)
            rates = jnp.array(settings.rates)
            tuned = fine_tune(tx, loss_fn, start, batches, images, new, rates)
            yield from _records(name, model, tuned, data, held_out, settings)
            done += settings.tune_steps
            reporter.show(name, done, None, None)


def _init(model: nn.Module, seeds: int, pixels: int, base: int) -> Any:
    """First variables, with the seeds on axis 0."""
    keys = jax.vmap(jax.random.key)(base + jnp.arange(seeds))
    return jax.vmap(lambda key: model.init(key, jnp.zeros((2, pixels)), train=False))(keys)


def _with_new_head(variables: Any, fresh: Any) -> Any:
    """`variables` with the last layer of `fresh`."""
    head = max(name for name in fresh["params"] if name.startswith("Dense"))
    return {**variables, "params": {**variables["params"], head: fresh["params"][head]}}


def _adapted(model: nn.Module, variables: Any, images: jax.Array, rows: list[np.ndarray]) -> Any:
    """`variables` with the statistics of the images of these rows, each seed's own."""
    fewest = min(len(each) for each in rows)
    few = images[np.stack([each[:fewest] for each in rows])]
    return adapt(model, variables, [few], call=evaluated, transform=over_seeds_and_batches)


@partial(jax.jit, static_argnums=(0, 1))
def fine_tune(
    tx: Any, loss_fn: LossFn, variables: Any, batches: Any, images: Any, labels: Any, rates: Any
) -> Any:
    """The variables (rates, seeds, ...) after a step of `tx` for each of `batches`.

    `batches` are rows of `images` and of `labels` (seeds, n), (seeds, steps, size).
    """

    def one(rate, variables, batches, labels):
        parts = {key: variables[key] for key in ("params", "batch_stats")}
        state = TrainState.create(**parts, tx=tx)
        state = state.replace(opt_state=optax.tree.set(state.opt_state, learning_rate=rate))

        def step(state, rows):
            return train_step(state, {"images": images[rows], "labels": labels[rows]}, loss_fn)

        return variables_of(jax.lax.scan(step, state, batches)[0])

    seeds = jax.vmap(one, (None, 0, 0, 0))
    return jax.vmap(seeds, (0, None, None, None))(rates, variables, batches, labels)


@partial(jax.jit, static_argnames="model")
def accuracy_of_half(model: nn.Module, variables: Any, images: Any, labels: Any) -> jax.Array:
    """Accuracy on the images with a label (seeds, n) that is not -1, (rates, seeds)."""

    def one(variables: Any, labels: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, images, train=False)
        return jnp.sum(logits.argmax(-1) == labels) / jnp.sum(labels >= 0)

    return jax.vmap(jax.vmap(one), (0, None))(variables, labels)


def _records(
    name: str, model: nn.Module, tuned: Any, data: Dataset, labels: Any, settings: Settings
) -> Iterator[Record]:
    """Of every rate, for the `labels` of the images held out and of the test set."""
    splits: Any = data.validation, data.test
    validation, test = (
        np.asarray(accuracy_of_half(model, tuned, split.images, own))
        for split, own in zip(splits, labels, strict=True)
    )
    for rate, held_out, tested in zip(settings.rates, validation, test, strict=True):
        values = {"validation_accuracy": held_out, "test_accuracy": tested}
        yield from per_seed(settings.tune_steps, at_rate(name, rate), values)


def accuracy_at_best(
    records: Sequence[Record], settings: Settings, way: str, each: int, size: int
) -> np.ndarray:
    """Test accuracy (seeds,) at the rate that suits this way best."""
    trial = best_trial(records, network_name(way, each, size), settings.rates)
    return last(records, trial, "test_accuracy")


def better_way(records: Sequence[Record], settings: Settings, each: int, size: int) -> str:
    """To leave batch norm training or to freeze it, whichever does better on images held out."""
    names = {network_name(way, each, size): way for way in (TRAINED, FROZEN)}
    trials = best_trials(records, names, settings.rates)
    return names[max(names, key=lambda name: by_accuracy(records, trials[name]).mean())]


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    few, size, smallest = settings.few, settings.tune_batch, min(settings.batches)

    def accuracies(each: int, size: int) -> dict[str, np.ndarray]:
        return {way: accuracy_at_best(records, settings, way, each, size) for way in LOOKS}

    at_few, at_small = accuracies(few, size), accuracies(few, smallest)
    return [
        _pretraining(records, settings),
        claim(
            f"batches of {smallest}: freeze",
            'where mini-batches are small it is frozen; to fine-tune batch norm as well "works '
            'poorly"',
            "Wu & He 2018, section 4.2",
            Test(
                f"test accuracy, mini-batches of {smallest}, frozen - trains on",
                at_small[FROZEN] - at_small[TRAINED],
            ),
            found=_in_words(at_small, FROZEN, TRAINED),
        ),
        control(
            f"batches of {size}",
            f"to freeze or not, {few} examples a class",
            _in_words(at_few, FROZEN, TRAINED),
        ),
        control(
            "adapted statistics",
            f"frozen, but with the statistics of the new classes, {few} examples of each",
            _in_words(at_few, ADAPTED, FROZEN),
        ),
    ]


def _pretraining(records: Sequence[Record], settings: Settings) -> Row:
    """The better of two pretrained networks against new weights, by number of examples."""
    tests, found, size = [], [], settings.tune_batch
    for each in sorted({min(settings.examples), settings.few, max(settings.examples)}):
        way = better_way(records, settings, each, size)
        old, new = (accuracy_at_best(records, settings, w, each, size) for w in (way, SCRATCH))
        tests.append(Test(f"test accuracy, {each} a class, pretrained - new weights", old - new))
        found.append(f"{each:,} a class: {old.mean():.1%} ({way}), {new.mean():.1%} new")
    said = "does it help reusing a pre-trained model?"
    return claim("pretraining helps", said, "Ng", *tests, found="; ".join(found))


def _in_words(accuracies: dict[str, np.ndarray], *ways: str) -> str:
    return ", ".join(f"{accuracies[way].mean():.1%} {way}" for way in ways)


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Accuracy by examples and by mini-batch, and the sweep that chose the rates."""
    figure = narrow(6.2)
    axes = figure.subplots(2, 2)
    by_examples = {each: (each, settings.tune_batch) for each in settings.examples}
    by_batch = {size: (settings.few, size) for size in settings.batches}
    _draw_ways(axes[0, 0], records, settings, by_examples)
    _draw_ways(axes[0, 1], records, settings, by_batch)
    axes[0, 1].set_ylabel("")
    axes[0, 0].set_xlabel("examples a class")
    axes[0, 1].set_xlabel("images in a mini-batch")
    entitle(axes[0, 0], f"mini-batches of {settings.tune_batch}", "a")
    entitle(axes[0, 1], f"{settings.few} examples a class", "b")
    _draw_sweeps(axes[1, 0], records, settings)
    entitle(axes[1, 0], f"{settings.few} a class, by rate", "c")
    axes[1, 1].axis("off")
    axes[1, 1].legend(*axes[0, 0].get_legend_handles_labels(), loc="center", frameon=False)
    return figure


def _draw_ways(
    ax: Axes, records: Sequence[Record], settings: Settings, tunings: dict[int, tuple[int, int]]
) -> None:
    """Means, and bars for the ranges, a little beside each other."""
    places = np.array(list(tunings))
    for number, (way, (color, style, marker)) in enumerate(LOOKS.items()):
        found = [accuracy_at_best(records, settings, way, *t) for t in tunings.values()]
        values, mean = np.stack(found), np.mean(found, 1)
        x = places * (places.max() / places.min()) ** (0.02 * (number - 1.5))
        ranges = np.stack([mean - values.min(1), values.max(1) - mean])
        look: dict[str, Any] = {"color": color, "linestyle": style, "marker": marker}
        ax.errorbar(x, mean, ranges, label=way, markersize=5, elinewidth=1, linewidth=1.6, **look)
    log_axis(ax, list(tunings))
    stretch_accuracy(ax, 0.2, 0.995)


def _draw_sweeps(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """Means on the images held out, and a ring about the rate that was chosen."""
    for way, (color, style, marker) in LOOKS.items():
        name = network_name(way, settings.few, settings.tune_batch)
        means = [by_accuracy(records, at_rate(name, rate)).mean() for rate in settings.rates]
        ax.plot(settings.rates, means, color=color, linestyle=style, marker=marker, markersize=4)
        chosen = best_rate(records, name, settings.rates)
        ring(ax, chosen, means[settings.rates.index(chosen)], color)
    log_axis(ax, settings.rates, "{x:g}")
    stretch_accuracy(ax, 0.18, 0.97)
    ax.set_xlabel("rate of fine-tuning (log scale)")
    ax.set_ylabel("validation accuracy")
