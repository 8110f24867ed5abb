"""At test time running averages stand in for the batch (Lee; Ng; Wu & Johnson 2021).

A prediction should hang on its own input and not on what else is in the batch, so population
statistics replace those of the batch. One network is trained and evaluated in three ways::

    running        exponential averages kept in training, the usual ones
    recalibrated   moments of training images under the weights as they are
                   (`bnjax.training.recalibrate`)
    test batch     those of the test batch itself, of several sizes

at every evaluation while it trains, and at the end for test batches of 2 images up to the whole
test set, shuffled or with one class a batch. A batch of a single image is not tried: its mean is
the image itself, so that every image would get the same output.

The weight of the old value is 0.99, Flax's and Keras's default: the averages then look back on
about 100 steps, and lag behind the weights for as long. `running_average` varies it. Wu & Johnson
train ResNet-50 on ImageNet, in mini-batches of 8,192; what they call PreciseBN is `recalibrate`.
The lectures leave out that the averages lag, and that they can be had anew after training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator

from bnjax.training import recalibrate
from experiments.common.data import NUM_CLASSES, Dataset, Split
from experiments.common.metrics import accuracy, in_training
from experiments.common.models import relu_mlp
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    OPAQUE,
    ORANGE,
    PINK,
    draw_band,
    entitle,
    narrow,
    set_ticks,
    stretch_accuracy,
    stretch_steps,
)
from experiments.common.population import (
    accuracy_records,
    evaluated,
    over_seeds,
    running_accuracy,
    train_variables,
)
from experiments.common.progress import Reporter
from experiments.common.records import Record, series
from experiments.common.settings import MLPSettings
from experiments.common.trials import Trial
from experiments.common.verdicts import Row, Test, claim, control

RUNNING, RECALIBRATED, BATCH = "running averages", "recalibrated", "test batch"
SHUFFLED, ONE_CLASS = "shuffled", "one class a batch"
SMALL, LARGE = 2, 64  # sizes of test batches that are judged, and drawn in training
MARGIN = 0.01  # accuracies that differ by less are the same here: five digits of 500
LOOKS = {  # colour, line and marker
    RUNNING: (BLUE, "-", ""),
    RECALIBRATED: (GREEN, "--", ""),
    BATCH: (ORANGE, ":", ""),
    SHUFFLED: (ORANGE, ":", "o"),
    ONE_CLASS: (PINK, "-.", "s"),
}


@dataclass(frozen=True)
class Settings(MLPSettings):
    """Settings of the network and its statistics."""

    momentum: float = 0.99  # weight of the old value in the running averages
    images: int = 1000  # training images for recalibration, in two batches

    @property
    def memory(self) -> float:
        """Steps that the running averages look back on."""
        return 1 / (1 - self.momentum)


PRESETS = {
    "quick": Settings(steps=1000, batch_size=32, eval_every=20),
    "long": Settings(
        data="mnist",
        steps=4000,
        batch_size=32,
        eval_every=50,
        hidden=(100, 100, 100),
        images=10_000,
    ),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One network, evaluated in all ways."""
    return [Trial("batch norm", settings.steps, partial(_measure, settings, data))]


def _measure(settings: Settings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    model = relu_mlp(settings)
    reporter.say("batch norm: compiling")
    images = jnp.asarray(data.train.images[: settings.images])
    batches, mixed = jnp.array_split(images, 2), shuffled(data.test)
    variables: Any = None
    for step, variables, loss in train_variables(model, data, settings):
        fresh = recalibrate(model, variables, batches, call=evaluated, transform=over_seeds)
        found = {
            RUNNING: running_accuracy(model, variables, *data.test),
            RECALIBRATED: running_accuracy(model, fresh, *data.test),
            BATCH: batch_accuracy(model, variables, mixed, LARGE),
        }
        yield from _records(step, found)
        if step > 0:
            reporter.show("batch norm", step, loss, float(found[RUNNING].mean()))
    for size in sizes(len(data.test.labels)):
        found = {SHUFFLED: batch_accuracy(model, variables, mixed, size)}
        if size <= np.bincount(data.test.labels).min():
            found[ONE_CLASS] = batch_accuracy(model, variables, by_class(data.test, size), size)
        yield from _records(size, found)


def _records(step: int, found: dict[str, jax.Array]) -> Iterator[Record]:
    for name, accuracies in found.items():
        yield from accuracy_records(step, name, accuracies)


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
    def one_seed(variables: Any) -> jax.Array:
        each, _ = jax.vmap(partial(in_training, model, variables))(batches)
        return accuracy(each.reshape(-1, each.shape[-1]), labels)

    return jax.vmap(one_seed)(variables)


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    steps, running = series(records, RUNNING, "test_accuracy")
    _, fresh = series(records, RECALIBRATED, "test_accuracy")
    batch_sizes, by_batch = series(records, SHUFFLED, "test_accuracy")
    _, one_class = series(records, ONE_CLASS, "test_accuracy")
    early, late = (steps > 0) & (steps <= 2 * settings.memory), running[:, -1]
    lag = {RECALIBRATED: fresh[:, early].mean(1), RUNNING: running[:, early].mean(1)}
    return [
        _compared(
            "stand in for the batch",
            "at test time, moving averages of training take the place of the batch's statistics",
            "Lee; Ng",
            {RUNNING: late, f"all {batch_sizes[-1]:,} test images": by_batch[:, -1]},
            MARGIN,
        ),
        _compared(
            f"batches of {SMALL} do not",
            '"taking the mean and variance of that one example, doesn\'t make sense"; here of '
            f"{SMALL}",
            "Ng",
            {RUNNING: late, f"batches of {SMALL}": by_batch[:, 0]},
        ),
        _compared(
            "averages lag early on",
            "precise statistics do better while the weights still move fast",
            "Wu & Johnson 2021, section 3",
            lag,
            when=f", mean of the first {2 * settings.memory:.0f} steps",
        ),
        _compared(
            "no gap in the end",
            "in the end there is little difference",
            "Wu & Johnson 2021, section 3",
            {RECALIBRATED: fresh[:, -1], RUNNING: late},
            MARGIN,
        ),
        control(
            "one class a batch",
            "test batches of a single class, normalised by themselves, at the best size",
            f"{one_class.max(1).mean():.1%}, and {late.mean():.1%} by running averages",
        ),
    ]


def _compared(
    short: str,
    said: str,
    source: str,
    accuracies: dict[str, np.ndarray],
    within: float | None = None,
    when: str = "",
) -> Row:
    """That the first of two accuracies (seeds,) is larger, or that they are the same."""
    (first, a), (second, b) = accuracies.items()
    test = Test(f"test accuracy, {first} - {second}{when}", a - b, within=within)
    return claim(
        short, said, source, test, found=f"{a.mean():.1%} {first}, {b.mean():.1%} {second}"
    )


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Accuracy against training step above, against size of the test batch below."""
    figure = narrow(6.6)
    above, below = figure.subplots(2, 1)
    _draw_training(above, records, settings)
    _draw_sizes(below, records)
    return figure


def _draw_training(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    for name in (RECALIBRATED, BATCH, RUNNING):
        steps, values = series(records, name, "test_accuracy")
        color, style, _ = LOOKS[name]
        label = f"test batches of {LARGE}" if name == BATCH else name
        draw_band(ax, steps[1:], values[:, 1:], color, label, style)
    stretch_steps(ax, settings, LogLocator(subs=(1, 2, 5)))
    stretch_accuracy(ax, 0.3, 0.993)
    ax.axvline(settings.memory, color=GREY, linewidth=0.9, linestyle=(0, (1, 3)))
    late = settings.memory > 4 * settings.eval_every  # there is room before it
    look_back = f" averages look back \n on {settings.memory:.0f} steps "
    written: dict[str, Any] = {"color": GREY, "fontsize": 9, "ha": "right" if late else "left"}
    # Clipped, for a run may be shorter than that.
    ax.text(settings.memory, 0.98, look_back, clip_on=True, **written)
    ax.set_xlabel("training step (log scale)")
    ax.legend(loc="lower right", **OPAQUE)
    entitle(ax, "while it trains, by statistics", "a")


def _draw_sizes(ax: Axes, records: Sequence[Record]) -> None:
    batch_sizes, _ = series(records, SHUFFLED, "test_accuracy")
    _, running = series(records, RUNNING, "test_accuracy")
    level = np.repeat(running[:, -1:], len(batch_sizes), axis=1)
    draw_band(ax, batch_sizes, level, LOOKS[RUNNING][0], f"{RUNNING}, any size")
    for name in (SHUFFLED, ONE_CLASS):
        given, values = series(records, name, "test_accuracy")
        color, style, marker = LOOKS[name]
        draw_band(ax, given, values, color, f"test batch, {name}", style, marker)
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(batch_sizes[::2].tolist()))
    stretch_accuracy(ax, 0.05, 0.993)
    ax.set_xlabel("images in a test batch (log scale)")
    ax.legend(loc="center right", **OPAQUE)
    entitle(ax, "after training, by size of the test batch", "b")
