"""Does it help reusing a pretrained model, and what of its batch norm (Ng)?

A network learns one half of the classes, gets a new last layer, and learns the other half from a
few examples a class, in four ways::

    batch norm trains on   as in any training: batches normalise, running averages follow
    batch norm frozen      statistics, scale and shift stay as pretrained (`bnjax.surgery.freeze`;
                           `trained` tells the optimizer to leave them alone)
    frozen, adapted        the same, with the statistics of the new examples
                           (`bnjax.training.adapt`); a control
    new weights            as the first, but not pretrained

All other weights learn in each of them. Every seed divides the ten classes into halves of its own,
and has its own pretrained network and its own examples, the same for all four. Two things are
varied: the number of examples, at mini-batches of `tune_batch`; and the size of the mini-batch, at
`few` examples a class. Each way goes at the rate that suits it best there, the one with the best
mean accuracy on images held out; whoever has five examples a class has no such images, and would
have to guess. At the tenth of the pretraining's rate that is usual, new weights look worse than
they are: they have not arrived after so few steps.

The lecture asks its question in one line, and shows no numbers. A small mini-batch is the usual
reason to freeze: memory is short where large models are fine-tuned (Wu & He 2018, section 4.2).
Their networks were pretrained on ImageNet, and have more to hand on than five digits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from bnjax.surgery import freeze, trained
from bnjax.training import TrainState, adapt, train_step
from experiments.common.batches import draw_batches
from experiments.common.data import NUM_CLASSES, Dataset, Split, hold_out
from experiments.common.loss import LossFn, make_loss_fn
from experiments.common.models import relu_mlp
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    entitle,
    narrow,
    set_ticks,
    stretch_accuracy,
)
from experiments.common.population import evaluated, over_seeds_and_batches
from experiments.common.progress import Reporter
from experiments.common.rates import SGD
from experiments.common.records import Record, per_seed, series
from experiments.common.settings import MLPSettings
from experiments.common.sweep import at_rate, best_rate, by_accuracy
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


class Halves(NamedTuple):
    """Labels of the classes of one half, counted from 0; -1 those of the other; (seeds, n)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def halves(data: Dataset, seeds: int, which: int) -> Halves:
    """The first (0) or second (1) half of the classes, which every seed divides at random."""
    order = [np.random.default_rng(seed).permutation(NUM_CLASSES) for seed in range(seeds)]
    place = np.argsort(np.stack(order), 1) - HALF * which  # of each class in its half
    place = np.where((place >= 0) & (place < HALF), place, -1).astype(np.int32)
    assert data.validation is not None
    splits = (data.train, data.validation, data.test)
    return Halves(*(place[:, split.labels] for split in splits))


def draw_examples(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Rows of `each` random examples of every class, fewer where there are not as many."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == c][:each] for c in range(HALF)])


def _measure(settings: Settings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    reporter.say("pretraining: compiling")
    model, loss_fn = relu_mlp(settings, HALF), make_loss_fn(relu_mlp(settings, HALF))
    images, seeds = jnp.asarray(data.train.images), range(settings.seeds)
    old, new = (halves(data, settings.seeds, which) for which in (0, 1))
    first, fresh = (_init(model, settings.seeds, images.shape[1], base) for base in (0, 1000))

    rows = [np.flatnonzero(labels >= 0) for labels in old.train]
    batches = _batches(rows, settings.steps, settings.batch_size)
    rate = jnp.array([settings.learning_rate])
    found = fine_tune(SGD, loss_fn, first, batches, images, old.train, rate)
    pretrained = _with_new_head(jax.tree.map(lambda v: v[0], found), fresh)

    held = optax.masked(SGD, trained(freeze(pretrained)))
    done = settings.steps
    for each, size in settings.tunings:
        chosen = [draw_examples(new.train[seed], each, seed) for seed in seeds]
        batches = _batches(chosen, settings.tune_steps, size)
        for way, (start, tx) in {
            TRAINED: (pretrained, SGD),
            FROZEN: (freeze(pretrained), held),
            ADAPTED: (freeze(_adapted(model, pretrained, images, chosen)), held),
            SCRATCH: (fresh, SGD),
        }.items():
            name = network_name(way, each, size)
            reporter.say(name)
            rates = jnp.array(settings.rates)
            tuned = fine_tune(tx, loss_fn, start, batches, images, new.train, rates)
            yield from _records(name, model, tuned, data, new, settings)
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
    options = {"call": evaluated, "transform": over_seeds_and_batches}
    fewest = min(len(each) for each in rows)
    chosen = np.stack([each[:fewest] for each in rows])
    return adapt(model, variables, [images[chosen]], **options)


def _batches(rows: list[np.ndarray], steps: int, size: int) -> np.ndarray:
    return np.stack([draw_batches(own, steps, size, seed) for seed, own in enumerate(rows)])


def fine_tune(
    tx: Any, loss_fn: LossFn, variables: Any, batches: Any, images: Any, labels: Any, rates: Any
) -> Any:
    """The variables (rates, seeds, ...) after a step of `tx` for each of `batches`.

    `batches` are rows of `images` and of `labels` (seeds, n), (seeds, steps, size).
    """
    return _fine_tune(variables, batches, images, labels, rates, tx, loss_fn)


@partial(jax.jit, static_argnames=("tx", "loss_fn"))
def _fine_tune(variables, batches, images, labels, rates, tx, loss_fn):
    def one(rate, variables, batches, labels):
        params, batch_stats = variables["params"], variables["batch_stats"]
        state = TrainState.create(params=params, batch_stats=batch_stats, tx=tx)
        state = state.replace(opt_state=optax.tree.set(state.opt_state, learning_rate=rate))

        def step(state, rows):
            return train_step(state, {"images": images[rows], "labels": labels[rows]}, loss_fn)

        state = jax.lax.scan(step, state, batches)[0]
        return {"params": state.params, "batch_stats": state.batch_stats}

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
    name: str, model: nn.Module, tuned: Any, data: Dataset, new: Halves, settings: Settings
) -> Iterator[Record]:
    def accuracies(split: Split | None, labels: np.ndarray) -> np.ndarray:
        assert split is not None
        return np.asarray(accuracy_of_half(model, tuned, split.images, labels))

    validation = accuracies(data.validation, new.validation)
    test = accuracies(data.test, new.test)
    for rate, held_out, tested in zip(settings.rates, validation, test, strict=True):
        values = {"validation_accuracy": held_out, "test_accuracy": tested}
        yield from per_seed(settings.tune_steps, at_rate(name, rate), values)


def accuracy_at_best(
    records: Sequence[Record], settings: Settings, way: str, each: int, size: int
) -> np.ndarray:
    """Test accuracy (seeds,) at the rate that suits this way best."""
    name = network_name(way, each, size)
    rate = best_rate(records, name, settings.rates)
    return series(records, at_rate(name, rate), "test_accuracy")[1][:, -1]


def better_way(records: Sequence[Record], settings: Settings, each: int, size: int) -> str:
    """To leave batch norm training or to freeze it, whichever does better on images held out."""

    def score(way: str) -> float:
        name = network_name(way, each, size)
        trial = at_rate(name, best_rate(records, name, settings.rates))
        return float(by_accuracy(records, trial).mean())

    return max((TRAINED, FROZEN), key=score)


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
            "where mini-batches are small, batch norm is frozen in fine-tuning",
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
    by_examples = [(each, settings.tune_batch) for each in settings.examples]
    by_batch = [(settings.few, size) for size in settings.batches]
    _draw_ways(axes[0, 0], records, settings, list(settings.examples), by_examples)
    _draw_ways(axes[0, 1], records, settings, list(settings.batches), by_batch)
    axes[0, 1].set_ylabel("")
    axes[0, 0].set_xlabel("examples a class")
    axes[0, 1].set_xlabel("images in a mini-batch")
    entitle(axes[0, 0], f"mini-batches of {settings.tune_batch}", "a")
    entitle(axes[0, 1], f"{settings.few} examples a class", "b")
    _draw_sweeps(axes[1, 0], records, settings)
    entitle(axes[1, 0], f"{settings.few} a class, by rate", "c")
    axes[1, 1].axis("off")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 1].legend(handles, labels, loc="center", frameon=False)
    return figure


def _draw_ways(
    ax: Axes,
    records: Sequence[Record],
    settings: Settings,
    places: list[int],
    tunings: list[tuple[int, int]],
) -> None:
    """Means, and bars for the ranges, a little beside each other."""
    for number, (way, (color, style, marker)) in enumerate(LOOKS.items()):
        values = np.stack([accuracy_at_best(records, settings, way, *t) for t in tunings])
        mean = values.mean(1)
        x = np.array(places) * (max(places) / min(places)) ** (0.02 * (number - 1.5))
        ranges = np.stack([mean - values.min(1), values.max(1) - mean])
        look: dict[str, Any] = {"color": color, "linestyle": style, "marker": marker}
        ax.errorbar(x, mean, ranges, label=way, markersize=5, elinewidth=1, linewidth=1.6, **look)
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(places))
    stretch_accuracy(ax, 0.2, 0.995)


def _draw_sweeps(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """Means on the images held out, and a ring about the rate that was chosen."""
    for way, (color, style, marker) in LOOKS.items():
        name = network_name(way, settings.few, settings.tune_batch)
        means = [by_accuracy(records, at_rate(name, rate)).mean() for rate in settings.rates]
        ax.plot(settings.rates, means, color=color, linestyle=style, marker=marker, markersize=4)
        chosen = best_rate(records, name, settings.rates)
        look: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.5}
        ax.plot(chosen, means[settings.rates.index(chosen)], "o", color=color, **look)
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(settings.rates), "{x:g}")
    stretch_accuracy(ax, 0.18, 0.97)
    ax.set_xlabel("rate of fine-tuning (log scale)")
    ax.set_ylabel("validation accuracy")
