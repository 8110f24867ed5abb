"""Trained on black cats, tested on coloured ones (Ng; Li et al. 2016).

A network is trained on images in grey, and then sees the same kind of image in other paint::

    x  ->  ground + (ink - ground) x        one colour for 0, one for 1, in each of three channels

    inverted       white ground, black ink
    coloured       blue ground, yellow ink
    low contrast   grey ground, slightly lighter ink

Nothing is learned again. `bnjax.training.adapt` replaces the running statistics by those of images
in the new paint, without their labels: all of the new statistics (AdaBN), or a weighted mean with
the old ones, which then count like `prior` images (Schneider et al. 2020). The images to
adapt to are painted training images, so none that is tested has been seen.

What to expect: batch norm after a linear layer undoes a change of mean and of scale. Low contrast
is no more than that. Inverted images change the sign of every input, which no mean and no positive
scale can undo. Colours are in between: each channel has its own scale, and blue changes its sign.
Li et al. adapt mostly from one photo collection to another, which is a milder shift than these.
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
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from bnjax.training import adapt
from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    Interval,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.data import Dataset, Split
from experiments.common.models import MLP
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
)
from experiments.common.population import OverSeeds, evaluated, running_accuracy, train_to_end
from experiments.common.progress import Reporter
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial

Colour = tuple[float, float, float]  # red, green and blue in [0, 1]
SOURCE = "grey"
PAINTS: dict[str, tuple[Colour, Colour]] = {  # ground and ink
    SOURCE: ((0, 0, 0), (1, 1, 1)),
    "inverted": ((1, 1, 1), (0, 0, 0)),
    "coloured": ((0, 0, 0.5), (1, 0.8, 0)),
    "low contrast": ((0.4, 0.4, 0.4), (0.6, 0.6, 0.6)),
}
SHIFTS = tuple(name for name in PAINTS if name != SOURCE)
OLD, NEW, MIXED = "as trained", "adapted", "adapted, old weighted"
FEW = 64  # unlabelled images that are said to be enough
SHARE = 0.9  # of what all of them would give


@dataclass(frozen=True)
class CovariateShiftSettings(Settings):
    """Settings of the network and the adaptation."""

    hidden: tuple[int, ...] = (64, 64, 64)
    init_std: float = 0.1
    momentum: float = 0.9
    images: int = 1024  # unlabelled images of the new paint, at most
    prior: int = 16  # images that the old statistics count for when weighted


PRESETS = {
    "quick": CovariateShiftSettings(steps=800, batch_size=32, eval_every=100),
    "paper": CovariateShiftSettings(
        data="mnist",
        steps=6000,
        batch_size=60,
        eval_every=500,
        hidden=(100, 100, 100),
        init_std=0.05,
        images=4096,
    ),
}


def trials(settings: CovariateShiftSettings, data: Dataset) -> list[Trial]:
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


def _measure(
    settings: CovariateShiftSettings, data: Dataset, reporter: Reporter
) -> Iterator[Record]:
    model = MLP(
        hidden=settings.hidden,
        batch_norm=True,
        activation=nn.relu,
        init_std=settings.init_std,
        momentum=settings.momentum,
    )
    grey = paint_all(data, *PAINTS[SOURCE])
    optimizer = optax.sgd(settings.learning_rate)
    variables = train_to_end("batch norm", reporter, model, optimizer, grey, settings)
    over_seeds = OverSeeds(per_seed=True)
    for name, colours in PAINTS.items():
        painted = paint_all(data, *colours)
        measured = _adapt(model, variables, painted.train, painted.test, settings, over_seeds)
        for which, number, accuracies in measured:
            for seed, value in enumerate(accuracies.tolist()):
                record = {"network": f"{name}, {which}", "seed": seed, "step": number}
                yield record | {"test_accuracy": value}


def _adapt(
    model: nn.Module,
    variables: Any,
    train: Split,
    test: Split,
    settings: CovariateShiftSettings,
    over_seeds: OverSeeds,
) -> Iterator[tuple[str, int, jax.Array]]:
    """What was done, number of images and test accuracy (seeds,)."""
    yield OLD, 0, running_accuracy(model, variables, *test)
    rng = np.random.default_rng(0)
    rows = [rng.permutation(len(train.labels)) for _ in range(settings.seeds)]
    for number in counts(min(settings.images, len(train.labels))):
        unlabelled = jnp.asarray(train.images[[order[:number] for order in rows]])
        weights = {NEW: 1.0, MIXED: number / (settings.prior + number)}
        for which, weight in weights.items():
            adapted = adapt(
                model,
                variables,
                [unlabelled],
                weight=weight,
                call=evaluated,
                transform=over_seeds,
            )
            yield which, number, running_accuracy(model, adapted, *test)


def judge(records: Sequence[Record], settings: CovariateShiftSettings) -> list[Claim]:
    """The damage of each shift, what adapting gives back, and how many images that takes."""
    grey = _old(records, SOURCE)
    damage = grey - np.mean([_old(records, shift) for shift in SHIFTS], axis=0)
    return [
        _claim(
            "new paint breaks a trained network",
            "Ng: trained on black cats, a network does poorly on coloured ones",
            damage,
            f"{grey.mean():.1%} in grey, {(grey - damage).mean():.1%} in new paint",
            "accuracy in grey - mean accuracy of the three shifts, statistics as trained",
        ),
        *(_judge_shift(records, shift) for shift in SHIFTS),
        *(_judge_few(records, shift) for shift in SHIFTS if shift != "inverted"),
    ]


def _judge_shift(records: Sequence[Record], shift: str) -> Claim:
    old, new, grey = _old(records, shift), _new(records, shift)[1][:, -1], _old(records, SOURCE)
    found = f"{old.mean():.1%} as trained, {new.mean():.1%} adapted ({grey.mean():.1%} in grey)"
    return _claim(
        f"statistics of the new data help: {shift}",
        "Li et al., section 4.2: 76.7 against 75.5 % on average (Office), without labels",
        new - old,
        found,
        f"accuracy on {shift} images, adapted - as trained",
    )


def _judge_few(records: Sequence[Record], shift: str) -> Claim:
    old, (numbers, new) = _old(records, shift), _new(records, shift)
    few = int(np.argmin(np.abs(numbers - FEW)))
    gained, possible = new[:, few] - old, new[:, -1] - old
    found = f"{gained.mean():.1%} of {possible.mean():.1%} gained by {numbers[few]} images"
    return _claim(
        f"{FEW} unlabelled images are enough: {shift}",
        "Li et al., section 4.3: a small part of the target images is enough",
        gained - SHARE * possible,
        found,
        f"gain by {numbers[few]} images - {SHARE:.0%} of the gain by {numbers[-1]}",
    )


def _old(records: Sequence[Record], paint: str) -> np.ndarray:
    """Accuracy (seeds,) by the statistics of training."""
    return series(records, f"{paint}, {OLD}", "test_accuracy")[1][:, 0]


def _new(records: Sequence[Record], paint: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of images, and accuracy (seeds, numbers) adapted to them."""
    return series(records, f"{paint}, {NEW}", "test_accuracy")


def _claim(claim: str, paper: str, difference: np.ndarray, found: str, test: str) -> Claim:
    interval = paired_interval(difference)
    points = with_interval(Interval(*(100 * value for value in interval)), "+.2f")
    return Claim(
        claim=claim,
        paper=paper,
        found=f"{found}; {points} points",
        verdict=verdict(interval),
        test=f"{test}. {VERDICT_RULE}",
        numbers={"difference": interval.mean, "interval": [interval.low, interval.high]},
    )


def draw(records: Sequence[Record], settings: CovariateShiftSettings) -> Figure:
    """Accuracy against the number of unlabelled images, a panel a shift."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
    axes = figure.subplots(1, len(SHIFTS), sharey=True)
    for letter, ax, shift in zip("abc", axes, SHIFTS, strict=True):
        _draw_shift(ax, records, shift)
        ax.set_title(f"{letter}   {shift}", loc="left", y=1.02, fontweight="bold")
        _draw_sample(ax, *PAINTS[shift])
    axes[0].set_ylabel("test accuracy")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylim(-0.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"Statistics adapted to new data restore the accuracy\n({data_and_seeds(settings)})",
        fontsize=13,
        fontweight="bold",
    )
    return figure


def _draw_sample(ax: Axes, ground: Colour, ink: Colour) -> None:
    """A blot of ink on the ground, at the right end of the title."""
    sample = ax.inset_axes((0.87, 1.02, 0.13, 0.09))
    sample.set(xticks=[], yticks=[], facecolor=ground)
    sample.plot(0, 0, "o", color=ink, markersize=9)
    for side in sample.spines.values():
        side.set(visible=True, color=GREY, linewidth=0.8)


def _draw_shift(ax: Axes, records: Sequence[Record], shift: str) -> None:
    numbers, adapted = _new(records, shift)
    _, mixed = series(records, f"{shift}, {MIXED}", "test_accuracy")

    def level(paint: str) -> np.ndarray:
        return np.repeat(_old(records, paint)[:, None], len(numbers), axis=1)

    draw_band(ax, numbers, level(SOURCE), GREY, "grey, as trained", ":")
    draw_band(ax, numbers, level(shift), ORANGE, "new paint, as trained", "--")
    draw_band(ax, numbers, adapted, BLUE, "adapted")
    draw_band(ax, numbers, mixed, GREEN, "adapted, old weighted in", "-.")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(numbers[::2].tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlabel("unlabelled images")
