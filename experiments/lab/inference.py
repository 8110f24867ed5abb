"""At test time running averages stand in for the batch (Lee; Ng; Wu & Johnson 2021).

A prediction should hang on its own input and not on what else is in the batch, so population
statistics replace those of the batch. Here one network is trained and evaluated in three ways:

    running        exponential averages kept in training, the usual ones
    recalibrated   moments of training images under the weights as they are (`recalibrate`)
    test batch     those of the test batch itself, of several sizes

at every step of training, and at the end for test batches of 2 images up to the whole test set,
shuffled or with one class a batch. The weight of the old value is 0.99, Flax's and Keras's default:
the averages then look back on about 100 steps, and lag behind the weights for as long. Wu & Johnson
train ResNet-50 on ImageNet; what they call precise statistics is `recalibrate`.
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
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from bnjax.training import recalibrate
from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    Interval,
    paired_interval,
    verdict,
    verdict_same,
    with_interval,
)
from experiments.common.data import NUM_CLASSES, Dataset, Split
from experiments.common.metrics import accuracy
from experiments.common.models import MLP
from experiments.common.plots import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    WIDTH_INCHES,
    draw_band,
    spread_over_seeds,
)
from experiments.common.population import OverSeeds, evaluated, running_accuracy, train_variables
from experiments.common.progress import Reporter
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial

RUNNING, RECALIBRATED, BATCH = "running averages", "recalibrated", "test batch"
SHUFFLED, ONE_CLASS = "shuffled", "one class a batch"
COLORS = {RUNNING: BLUE, RECALIBRATED: GREEN, SHUFFLED: ORANGE, ONE_CLASS: PINK}
SMALL, LARGE = 2, 64  # sizes of test batches that are judged
MARGIN = 0.01  # accuracies that differ by less are the same here: five digits of 500


@dataclass(frozen=True)
class InferenceSettings(Settings):
    """Settings of the network and its statistics."""

    hidden: tuple[int, ...] = (64, 64, 64)
    momentum: float = 0.99  # weight of the old value in the running averages
    images: int = 1000  # training images for recalibration, in two batches

    @property
    def memory(self) -> float:
        """Steps that the running averages look back on."""
        return 1 / (1 - self.momentum)


PRESETS = {
    "quick": InferenceSettings(steps=1000, batch_size=32, eval_every=20),
    "paper": InferenceSettings(
        data="mnist",
        steps=4000,
        batch_size=32,
        eval_every=50,
        hidden=(100, 100, 100),
        images=10_000,
    ),
}


def trials(settings: InferenceSettings, data: Dataset) -> list[Trial]:
    """One network, evaluated in all ways."""
    return [Trial("batch norm", settings.steps, partial(_measure, settings, data))]


def _measure(settings: InferenceSettings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    model = MLP(
        hidden=settings.hidden, batch_norm=True, activation=nn.relu, momentum=settings.momentum
    )
    reporter.say("batch norm: compiling")
    images = jnp.asarray(data.train.images[: settings.images])
    batches, over_seeds = jnp.array_split(images, 2), OverSeeds()
    variables: Any = None
    for step, variables, loss in train_variables(
        model, optax.sgd(settings.learning_rate), data, settings
    ):
        fresh = recalibrate(model, variables, batches, call=evaluated, transform=over_seeds)
        found = {
            RUNNING: running_accuracy(model, variables, *data.test),
            RECALIBRATED: running_accuracy(model, fresh, *data.test),
            BATCH: batch_accuracy(model, variables, shuffled(data.test), LARGE),
        }
        yield from _records(step, found)
        if step > 0:
            reporter.show("batch norm", step, loss, float(found[RUNNING].mean()))
    for size in sizes(len(data.test.labels)):
        found = {SHUFFLED: batch_accuracy(model, variables, shuffled(data.test), size)}
        if size <= np.bincount(data.test.labels).min():
            found[ONE_CLASS] = batch_accuracy(model, variables, by_class(data.test, size), size)
        yield from _records(size, found)


def sizes(images: int) -> list[int]:
    """2, 4, 8 and so on as far as they fit into a quarter of the images, and all of them."""
    powers = [2**k for k in range(1, 20) if 2**k <= images / 4]
    return [*powers, images]


def shuffled(split: Split) -> Split:
    """The images in a random order, the same each time."""
    order = np.random.default_rng(0).permutation(len(split.labels))
    return Split(split.images[order], split.labels[order])


def by_class(split: Split, size: int) -> Split:
    """As many images of each class, one class after the other, as fill batches of `size`."""
    rows = [np.flatnonzero(split.labels == label) for label in range(NUM_CLASSES)]
    order = np.concatenate([each[: len(each) // size * size] for each in rows])
    return Split(split.images[order], split.labels[order])


def batch_accuracy(model: nn.Module, variables: Any, split: Split, size: int) -> jax.Array:
    """Accuracy if each `size` images, in their order, are normalised by themselves, (seeds,).

    What does not fill a batch at the end is left out. The running statistics are not touched.
    """
    number = max(len(split.labels) // size, 1)
    images, labels = (array[: number * size] for array in split)
    return _accuracy_by_batch(model, variables, images.reshape(number, -1, images.shape[1]), labels)


@partial(jax.jit, static_argnames="model")
def _accuracy_by_batch(model: nn.Module, variables: Any, batches: Any, labels: Any) -> jax.Array:
    def logits(variables: Any, images: jax.Array) -> jax.Array:
        applied: Any = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return applied[0]

    def one_seed(variables: Any) -> jax.Array:
        each = jax.vmap(partial(logits, variables))(batches)
        return accuracy(each.reshape(-1, each.shape[-1]), labels)

    return jax.vmap(one_seed)(variables)


def _records(step: int, found: dict[str, jax.Array]) -> Iterator[Record]:
    for name, accuracies in found.items():
        for seed, value in enumerate(accuracies.tolist()):
            yield {"network": name, "seed": seed, "step": step, "test_accuracy": value}


def judge(records: Sequence[Record], settings: InferenceSettings) -> list[Claim]:
    """Running averages at the end, against small batches, and early in training."""
    steps, running = series(records, RUNNING, "test_accuracy")
    _, fresh = series(records, RECALIBRATED, "test_accuracy")
    sizes, by_batch = series(records, SHUFFLED, "test_accuracy")
    _, one_class = series(records, ONE_CLASS, "test_accuracy")
    early = (steps > 0) & (steps <= 2 * settings.memory)
    late = running[:, -1]
    return [
        _claim(
            "running averages do as well as the batch of all test images",
            "Lee, Ng: averages of training stand in for the batch",
            {"running": late, f"all {sizes[-1]:,} images": by_batch[:, -1]},
            margin=MARGIN,
        ),
        _claim(
            f"statistics of a test batch of {SMALL} do worse than running averages",
            "Ng: one example at a time has no statistics of its own",
            {"running": late, f"batches of {SMALL}": by_batch[:, 0]},
        ),
        _claim(
            "statistics of a test batch of one class do worse, at any size",
            "Wu & Johnson: batches made up otherwise than in training hurt",
            {"running": late, "best size": one_class.max(1)},
        ),
        _claim(
            f"early on ({2 * settings.memory:.0f} steps) running averages lag; recalibrated do not",
            "Wu & Johnson, section 3: precise statistics do better early in training",
            {"recalibrated": fresh[:, early].mean(1), "running": running[:, early].mean(1)},
        ),
        _claim(
            "at the end it makes no difference",
            "Wu & Johnson, section 3: little difference in the end, but for small batches",
            {"recalibrated": fresh[:, -1], "running": late},
            margin=MARGIN,
        ),
    ]


def _claim(
    claim: str, paper: str, accuracies: dict[str, np.ndarray], *, margin: float | None = None
) -> Claim:
    """The first of two accuracies (seeds,) is larger, or with `margin` the same."""
    (first, a), (second, b) = accuracies.items()
    interval = paired_interval(a - b)
    points = with_interval(Interval(*(100 * value for value in interval)), "+.2f")
    rule = VERDICT_RULE
    if margin is not None:
        rule = f"holds: the 95 % t-interval over seeds lies within +-{100 * margin:g} points; "
        rule += "in part: only the mean does; does not hold here: neither"
    return Claim(
        claim=claim,
        paper=paper,
        found=f"{a.mean():.1%} {first}, {b.mean():.1%} {second}; {points} points",
        verdict=verdict(interval) if margin is None else verdict_same(interval, margin),
        test=f"accuracy of {first} - {second}. {rule}",
        numbers={
            first: a.tolist(),
            second: b.tolist(),
            "difference": interval.mean,
            "interval": [interval.low, interval.high],
        },
    )


def draw(records: Sequence[Record], settings: InferenceSettings) -> Figure:
    """Accuracy against training step on the left, against size of the test batch on the right."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_training(left, records, settings)
    _draw_sizes(right, records)
    left.set_title(f"a   in training on {settings.data_name}", loc="left", fontweight="bold")
    right.set_title(
        f"b   after training ({spread_over_seeds(settings)})", loc="left", fontweight="bold"
    )
    figure.suptitle(
        "Running averages stand in for the batch at test time", fontsize=13, fontweight="bold"
    )
    return figure


def _draw_training(ax: Axes, records: Sequence[Record], settings: InferenceSettings) -> None:
    for name, color, style in (
        (BATCH, ORANGE, ":"),
        (RECALIBRATED, GREEN, "--"),
        (RUNNING, BLUE, "-"),
    ):
        steps, values = series(records, name, "test_accuracy")
        label = f"test batches of {LARGE}" if name == BATCH else name
        draw_band(ax, steps[1:], values[:, 1:], color, label, style)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel(f"training step (averages look back on {settings.memory:.0f})")
    ax.set_ylabel("test accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend(loc="lower right", frameon=False, title="statistics")


def _draw_sizes(ax: Axes, records: Sequence[Record]) -> None:
    for name, style in ((SHUFFLED, "-"), (ONE_CLASS, "--")):
        sizes, values = series(records, name, "test_accuracy")
        draw_band(ax, sizes, values, COLORS[name], f"test batch, {name}", style)
    sizes, _ = series(records, SHUFFLED, "test_accuracy")
    _, running = series(records, RUNNING, "test_accuracy")
    level = np.repeat(running[:, -1:], len(sizes), axis=1)
    draw_band(ax, sizes, level, BLUE, f"{RUNNING}, any size")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sizes[::2].tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("images in a test batch")
    ax.legend(loc="center right", frameon=False, title="statistics")
