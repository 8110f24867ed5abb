"""Trained on black cats, tested on coloured ones (Ng; Li et al. 2016).

A network with batch norm is trained on images in grey, and then sees the same kind of image in
other paint::

    x  ->  ground + (ink - ground) x        one colour for 0, one for 1, in each of three channels

    low contrast   grey ground, slightly lighter ink
    coloured       blue ground, yellow ink
    inverted       white ground, black ink: a control

Nothing is learned again. `bnjax.training.adapt` replaces the running statistics by those of images
in the new paint, without their labels: all of the new statistics (Li et al.'s AdaBN), or a weighted
mean with the old ones, which then count like `prior` images (Schneider et al. 2020). The images to
adapt to are painted training images, so none that is tested has been seen.

What to expect: batch norm after a linear layer undoes a change of mean and of scale. Low contrast
is no more than that. Inverted images change the sign of every input, which no mean and no positive
scale can undo; nobody said that they would be restored. Colours are in between: each channel has
its own scale, and blue changes its sign. Li et al. adapt from one collection of photos to another,
which is a milder shift than these: 76.7 against 75.5 % on average (Office). The lecture tells of
the shift, and not of new statistics.
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
from matplotlib.ticker import FixedLocator

from bnjax.training import adapt
from experiments.common.data import Dataset, Split
from experiments.common.histories import first
from experiments.common.models import relu_mlp
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    draw_band,
    entitle,
    narrow,
    percent_axis,
    set_ticks,
)
from experiments.common.population import (
    accuracy_records,
    evaluated,
    over_seeds_and_batches,
    running_accuracy,
    train_to_end,
)
from experiments.common.progress import Reporter
from experiments.common.records import Record, series
from experiments.common.settings import MLPSettings
from experiments.common.trials import Trial
from experiments.common.verdicts import Row, Test, claim, control

Colour = tuple[float, float, float]  # red, green and blue in [0, 1]
SOURCE = "grey"
PAINTS: dict[str, tuple[Colour, Colour]] = {  # ground and ink
    SOURCE: ((0, 0, 0), (1, 1, 1)),
    "low contrast": ((0.4, 0.4, 0.4), (0.6, 0.6, 0.6)),
    "coloured": ((0, 0, 0.5), (1, 0.8, 0)),
    "inverted": ((1, 1, 1), (0, 0, 0)),
}
JUDGED, UNDONE = ("low contrast", "coloured"), "inverted"
OLD, NEW, MIXED = "as trained", "adapted", "adapted, old weighted"
SAMPLE, SHOWN = "sample", (0, 2, 6)  # the classes of the images that a picture shows
FEW = 64  # unlabelled images that are said to be enough
SHARE = 0.9  # of what all of them would give


@dataclass(frozen=True)
class Settings(MLPSettings):
    """Settings of the network and the adaptation."""

    images: int = 1024  # unlabelled images of the new paint, at most
    prior: int = 16  # images that the old statistics count for when weighted


PRESETS = {
    "quick": Settings(steps=800, batch_size=32, eval_every=100),
    "long": Settings(
        data="mnist",
        steps=6000,
        batch_size=60,
        eval_every=500,
        hidden=(100, 100, 100),
        init_std=0.05,
        images=4096,
    ),
}


def trial_name(paint: str, statistics: str) -> str:
    """Such as "coloured, adapted"."""
    return f"{paint}, {statistics}"


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One network; its records are named by paint and by what was adapted."""
    return [Trial("batch norm", settings.steps, partial(_measure, settings, data))]


def paint(split: Split, shape: tuple[int, ...], ground: Colour, ink: Colour) -> Split:
    """The images with 0 painted in the colour `ground`, 1 in `ink`; three channels, (n, pixels)."""
    images = split.images.reshape(len(split.images), -1, shape[-1])  # 1 channel or 3
    low, high = (np.asarray(colour, np.float32) for colour in (ground, ink))
    return split._replace(images=(low + (high - low) * images).reshape(len(images), -1))


def paint_all(data: Dataset, ground: Colour, ink: Colour) -> Dataset:
    """Training and test images painted."""
    train, test = (paint(split, data.shape, ground, ink) for split in (data.train, data.test))
    return data._replace(train=train, test=test, shape=(*data.shape[:2], 3))


def counts(images: int) -> list[int]:
    """4, 8, 16 and so on up to `images`: how many to adapt to."""
    return [2**k for k in range(2, 20) if 2**k <= images]


def _measure(settings: Settings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    yield from _sample(data)
    model = relu_mlp(settings)
    grey = paint_all(data, *PAINTS[SOURCE])
    variables = train_to_end("batch norm", reporter, model, grey, settings)
    for name, colours in PAINTS.items():
        painted = paint_all(data, *colours)
        measured = _adapt(model, variables, painted.train, painted.test, settings)
        for which, number, accuracies in measured:
            yield from accuracy_records(number, trial_name(name, which), accuracies)


def _sample(data: Dataset) -> Iterator[Record]:
    """A test image of some classes, as pixels in a list: the picture shows it in every paint."""
    for label in SHOWN:
        image = data.test.images[data.test.labels == label][0]
        values = {"shape": list(data.shape), "pixels": [round(float(v), 3) for v in image]}
        yield {"network": SAMPLE, "seed": 0, "step": label} | values


def _adapt(
    model: nn.Module, variables: Any, train: Split, test: Split, settings: Settings
) -> Iterator[tuple[str, int, jax.Array]]:
    """What was done, number of images and test accuracy (seeds,)."""
    yield OLD, 0, running_accuracy(model, variables, *test)
    rng = np.random.default_rng(0)
    rows = [rng.permutation(len(train.labels)) for _ in range(settings.seeds)]
    options = {"call": evaluated, "transform": over_seeds_and_batches}
    for number in counts(min(settings.images, len(train.labels))):
        unlabelled = jnp.asarray(train.images[[order[:number] for order in rows]])
        weights = {NEW: 1.0, MIXED: number / (settings.prior + number)}
        for which, weight in weights.items():
            adapted = adapt(model, variables, [unlabelled], weight=weight, **options)
            yield which, number, running_accuracy(model, adapted, *test)


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    grey = accuracy_as_trained(records, SOURCE)
    old = {shift: accuracy_as_trained(records, shift) for shift in (*JUDGED, UNDONE)}
    new = {shift: accuracy_adapted(records, shift)[1][:, -1] for shift in old}
    before_after = "; ".join(f"{s} {old[s].mean():.1%} to {new[s].mean():.1%}" for s in JUDGED)
    broken = ", ".join(f"{old[s].mean():.1%} {s}" for s in JUDGED)
    return [
        claim(
            "new statistics help",
            '"by modulating the statistics in all Batch Normalization layers ..., our approach '
            'achieves deep adaptation effect"',
            "Li et al. 2016, abstract, section 4.2",
            *(
                Test(f"test accuracy on {s} images, adapted - as trained", new[s] - old[s])
                for s in JUDGED
            ),
            found=before_after,
        ),
        claim(
            "new paint breaks it",
            'trained on black cats, a network "might not do very well" on coloured ones',
            "Ng",
            Test("test accuracy as trained, grey - coloured", grey - old["coloured"]),
            found=f"{grey.mean():.1%} in grey, {broken}",
        ),
        _few_are_enough(records),
        _old_weighed_in(records, settings),
        control(
            UNDONE,
            "no mean and no positive scale changes the sign of every input",
            f"{old[UNDONE].mean():.1%} as trained, {new[UNDONE].mean():.1%} adapted",
        ),
    ]


def _few_are_enough(records: Sequence[Record]) -> Row:
    tests, found = [], []
    for shift in JUDGED:
        old, (numbers, new) = accuracy_as_trained(records, shift), accuracy_adapted(records, shift)
        few = int(np.argmin(np.abs(numbers - FEW)))
        gained, possible = new[:, few] - old, new[:, -1] - old
        of = f"{shift}: gain by {numbers[few]} images - {SHARE:.0%} of the gain by {numbers[-1]}"
        tests.append(Test(of, gained - SHARE * possible))
        found.append(f"{shift} {100 * gained.mean():.1f} of {100 * possible.mean():.1f} points")
    words = f"gained: {', '.join(found)}; above {SHARE:.0%} of it"
    said = '"good results when using only a small part of the target examples"'
    source = "Li et al. 2016, section 4.3"
    return claim(f"{FEW} images are enough", said, source, *tests, found=words)


def _old_weighed_in(records: Sequence[Record], settings: Settings) -> Row:
    tests, found = [], []
    for shift in JUDGED:
        numbers, new = accuracy_adapted(records, shift)
        _, mixed = series(records, trial_name(shift, MIXED), "test_accuracy")
        of = f"{shift}: accuracy by {numbers[0]} images, old statistics weighed in - not"
        tests.append(Test(of, mixed[:, 0] - new[:, 0]))
        found.append(f"{shift} {mixed[:, 0].mean():.1%}, {new[:, 0].mean():.1%} without")
    said = f"of few images, weigh the old statistics in; here like {settings.prior} images"
    words = "; ".join(found)
    return claim("of 4, weigh the old in", said, "Schneider et al. 2020", *tests, found=words)


def accuracy_as_trained(records: Sequence[Record], paint: str) -> np.ndarray:
    """Accuracy (seeds,) by the statistics of training."""
    return first(records, trial_name(paint, OLD), "test_accuracy")


def accuracy_adapted(records: Sequence[Record], paint: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of images, and accuracy (seeds, numbers) adapted to them."""
    return series(records, trial_name(paint, NEW), "test_accuracy")


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Accuracy against the number of unlabelled images, a panel a paint, and what is seen there."""
    figure = narrow(5.4)
    axes = figure.subplots(2, 2)
    for letter, ax, shift in zip("abc", axes.flat, (*JUDGED, UNDONE), strict=False):
        _draw_shift(ax, records, shift)
        entitle(ax, shift, letter, y=1.03)
        _draw_sample(ax, records, shift, (0.68, 1.02, 0.32, 0.2))
    legend = axes[1, 1]
    legend.axis("off")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    legend.legend(handles, labels, loc="center", frameon=False)
    legend.set_title("     trained on", loc="left", fontweight="bold", y=1.03)
    _draw_sample(legend, records, SOURCE, (0.68, 1.02, 0.32, 0.2))
    return figure


def _draw_sample(
    ax: Axes, records: Sequence[Record], colours: str, where: tuple[float, float, float, float]
) -> None:
    """Some digits side by side in this paint."""
    shown = [record for record in records if record["network"] == SAMPLE]
    shape = tuple(shown[0]["shape"])
    images = Split(np.array([r["pixels"] for r in shown], np.float32), np.zeros(len(shown)))
    painted = paint(images, shape, *PAINTS[colours]).images.reshape(-1, *shape[:2], 3)
    sample = ax.inset_axes(where)
    sample.imshow(np.concatenate(painted, 1), interpolation="nearest", vmin=0, vmax=1)
    sample.set(xticks=[], yticks=[], anchor="SE")
    for side in sample.spines.values():
        side.set(visible=True, color=GREY, linewidth=0.8)


def _draw_shift(ax: Axes, records: Sequence[Record], shift: str) -> None:
    numbers, adapted = accuracy_adapted(records, shift)
    _, mixed = series(records, trial_name(shift, MIXED), "test_accuracy")

    def level(paint: str) -> np.ndarray:
        return np.repeat(accuracy_as_trained(records, paint)[:, None], len(numbers), axis=1)

    draw_band(ax, numbers, level(SOURCE), GREY, "grey, as trained", ":")
    draw_band(ax, numbers, adapted, BLUE, "adapted", "-", "o")
    draw_band(ax, numbers, mixed, GREEN, "old weighed in", "-.", "s")
    draw_band(ax, numbers, level(shift), ORANGE, "new paint, as trained", "--")
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator([4, 32, 256, 2048]))
    ax.set_xlabel("unlabelled images (log scale)")
    ax.set_ylim(-0.03, 1.03)
    percent_axis(ax.yaxis)
    ax.set_ylabel("test accuracy")
