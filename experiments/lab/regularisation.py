"""The noise of batch statistics regularises, that of large batches less (Ng).

Mean and variance of a batch are those of the population and noise, of a spread that falls as
1 / sqrt(batch size). It is measured on inputs of batch norm, of images drawn independently; for
such draws it is arithmetic, a row that is an identity.

A network is then trained with batches of 64 and of 512, at the same learning rate and for the same
number of steps, and the gap between test and training loss at the end is compared (both by running
statistics). The training set is small enough to be fitted by both. But a larger batch also takes
the noise out of the gradient, so a smaller gap at 64 need not be batch norm's doing. Two more
comparisons tell the noises apart: batches of 512 of which every 64 images are normalised by
themselves (virtual batches), with the gradient's noise of 512 and the statistics' noise of 64; and
networks without batch norm, where only the gradient's noise can differ.

A gap hangs on which images are in the training set, and the seeds of one split share it. So the
comparison is made on three splits of the same images; a seed's difference is the mean over splits,
and what each split says stands beside it. A gap hangs on the learning rate as well, which is
therefore the same for all networks; a control repeats the comparison at twice the rate. Left out
by the lecture: whether a smaller gap is worth anything. So the test accuracy stands beside it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from experiments.common.data import Dataset, resplit
from experiments.common.errors import UserError
from experiments.common.gap import evaluate_gap, with_train_in_front
from experiments.common.histories import final
from experiments.common.models import MLP
from experiments.common.norms import batch_norm
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    OPAQUE,
    ORANGE,
    draw_band,
    draw_dots,
    entitle,
    narrow,
    set_ticks,
)
from experiments.common.rates import SGD, set_rate
from experiments.common.records import Record, series
from experiments.common.settings import Settings as Common
from experiments.common.trials import Trial, once, training
from experiments.common.verdicts import PLAIN_NUMBER, Row, Test, claim, control, identity

SMALL, LARGE, VIRTUAL = "batch norm, small", "batch norm, large", "batch norm, large virtual"
PLAIN_SMALL, PLAIN_LARGE = "no norm, small", "no norm, large"
TRAINED = (SMALL, LARGE, VIRTUAL, PLAIN_SMALL, PLAIN_LARGE)
SPREAD = "spread"
SIZES = (16, 32, 64, 128, 256, 512)  # of which the spread is measured
DRAWN, UNITS = 200, 100  # batches of each size, and random units
FASTER = 2  # times the rate, in the control
NG = "Ng, Why does batch norm work?"

COLORS = {SMALL: BLUE, VIRTUAL: GREEN, LARGE: "#000000", PLAIN_SMALL: ORANGE, PLAIN_LARGE: GREY}
STYLES = {SMALL: "-", VIRTUAL: "-.", LARGE: "--", PLAIN_SMALL: "-", PLAIN_LARGE: "--"}
BOTH_NOISES, STATISTICS = "batch\nnorm", "statistics\nalone"
# What differs between two networks of a pair: the one with less noise, the one with more.
PAIRS = {
    BOTH_NOISES: (LARGE, SMALL),
    STATISTICS: (LARGE, VIRTUAL),
    "no\nnorm": (PLAIN_LARGE, PLAIN_SMALL),
}


@dataclass(frozen=True)
class Settings(Common):
    """`batch_size` is that of small batches."""

    images: int = 1297  # of the training set: all digits
    hidden: tuple[int, ...] = (64, 64)
    momentum: float = 0.9
    splits: int = 3

    @property
    def large(self) -> int:
        """Images of a large batch."""
        return 8 * self.batch_size

    @property
    def runs(self) -> list[tuple[float, int]]:
        """Rate and split of all trainings of a network; the control has the first split alone."""
        rate = self.learning_rate
        return [*((rate, split) for split in range(self.splits)), (FASTER * rate, 0)]


PRESETS = {
    "quick": Settings("digits", 10, 240, 64, learning_rate=0.5, eval_every=24),
    "long": Settings("mnist", 10, 2000, 64, learning_rate=0.5, eval_every=100, images=5000),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a network, rate and split, and one for the spread."""
    if settings.large > settings.images:
        raise UserError(
            f"--batch-size {settings.batch_size}: the experiment also trains with 8 times as many "
            f"images, and has {settings.images}"
        )
    network = partial(
        MLP, settings.hidden, activation=nn.relu, init_std=0.1, momentum=settings.momentum
    )
    plain, normalised = network(), network(batch_norm=True, norm=batch_norm())
    virtual = network(batch_norm=True, norm=batch_norm(virtual_batch_size=settings.batch_size))
    networks = (
        (SMALL, normalised, settings.batch_size),
        (LARGE, normalised, settings.large),
        (VIRTUAL, virtual, settings.large),
        (PLAIN_SMALL, plain, settings.batch_size),
        (PLAIN_LARGE, plain, settings.large),
    )
    train = partial(training, optimizer=SGD, settings=settings)
    evaluated = partial(evaluate_gap, seen=settings.images)  # one object for all: compiled once
    splits = [
        with_train_in_front(resplit(data, k), settings.images) for k in range(settings.splits)
    ]
    return [
        once(SPREAD, partial(spreads, settings, data)),
        *(
            train(
                name_of(name, rate, split),
                model,
                data=splits[split],
                batch_size=size,
                evaluate=evaluated,
                prepare=set_rate(rate),
            )
            for name, model, size in networks
            for rate, split in settings.runs
        ),
    ]


def name_of(network: str, rate: float, split: int) -> str:
    """Such as "no norm, small, rate 0.5, split 1"."""
    return f"{network}, rate {rate:g}, split {split}"


def spreads(settings: Settings, data: Dataset) -> Iterator[Record]:
    """The spread of batch statistics of random linear units, a record a batch size."""
    for seed in range(settings.seeds):
        rng = np.random.default_rng(seed)
        images = data.train.images[: settings.images]
        x = images @ rng.standard_normal((images.shape[1], UNITS)).astype(np.float32)
        for size in SIZES:
            yield {"seed": seed, "step": size} | measure_spread(x, size, rng)


def measure_spread(x: np.ndarray, size: int, rng: np.random.Generator) -> dict[str, float]:
    """Standard deviations of the mean and of the standard deviation of a batch.

    Args:
      x: the population (n, units).
      size: number of rows of a batch, drawn independently.
      rng: draws `DRAWN` batches.

    Returns:
      `mean_spread` and `std_spread`, in standard deviations of the population, mean over units.
    """
    batches = (x[rng.integers(len(x), size=size)] for _ in range(DRAWN))
    means, stds = zip(*((batch.mean(0), batch.std(0)) for batch in batches), strict=True)
    scale = x.std(0)
    return {
        "mean_spread": float((np.std(means, 0) / scale).mean()),
        "std_spread": float((np.std(stds, 0) / scale).mean()),
    }


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    small, large = settings.batch_size, settings.large
    more = {what: _by_split(records, settings, *pair) for what, pair in PAIRS.items()}
    with_, alone, without = (each.mean(0) for each in more.values())

    def gaps(wide: str, narrow: str) -> str:
        values = (_mean(records, settings, n, "loss_gap") for n in (wide, narrow))
        return "gap of the loss {:.4f} and {:.4f}".format(*values)

    def split_by_split(what: str) -> str:
        return "split by split " + ", ".join(f"{each:+.4f}" for each in more[what].mean(1))

    accuracy = {n: _mean(records, settings, n, "test_accuracy") for n in TRAINED}
    twice = {
        what: _gap(records, wide, *settings.runs[-1]) - _gap(records, narrow, *settings.runs[-1])
        for what, (wide, narrow) in PAIRS.items()
    }
    return [
        claim(
            "large ones do so less",
            "\"512 instead of 64, by using a larger mini-batch size, you're reducing this noise "
            'and therefore also reducing this regularization effect"',
            NG,
            Test(f"gap of the loss, batches of {large} - of {small}", with_, PLAIN_NUMBER),
            found=f"{gaps(LARGE, SMALL)} at {large} and {small} ({split_by_split(BOTH_NOISES)})",
        ),
        claim(
            "by their statistics",
            '"scaled by the mean and variance computed on just that one mini-batch. ... that mean '
            'and variance has a little bit of noise in it"',
            NG,
            Test(
                f"gap of the loss, batches of {large}, statistics of {large} - of {small}",
                alone,
                PLAIN_NUMBER,
            ),
            found=f"{gaps(LARGE, VIRTUAL)} by statistics of {large} and {small}, gradients of "
            f"{large} ({split_by_split(STATISTICS)})",
        ),
        control(
            "without batch norm",
            "a larger batch takes the noise out of the gradient too",
            f"{gaps(PLAIN_LARGE, PLAIN_SMALL)} at {large} and {small}: wider by "
            f"{without.mean():+.4f}, with batch norm by {with_.mean():+.4f}",
        ),
        control(
            "at twice the rate",
            "the differences of the gaps, on the first split",
            "; ".join(f"{' '.join(w.split())} {v.mean():+.4f}" for w, v in twice.items()),
        ),
        control(
            "what it is worth",
            "test accuracy",
            "; ".join(f"{name} {value:.2%}" for name, value in accuracy.items()),
        ),
        *(
            identity(
                f"{what} spread",
                f"{what}s of a batch spread as 1 / sqrt(its size), of independent draws",
                f"log-log slope {slopes(records, f'{what}_spread').mean():.3f} "
                f"from {SIZES[0]} to {SIZES[-1]}, for -0.5",
                "Ng: less noise at 512 than at 64",
            )
            for what in ("mean", "std")
        ),
    ]


def slopes(records: Sequence[Record], name: str) -> np.ndarray:
    """The slope of log(spread) over log(batch size), (seeds,)."""
    sizes, values = series(records, SPREAD, name)
    return np.polyfit(np.log(sizes), np.log(values).T, 1)[0]


def _gap(records: Sequence[Record], network: str, rate: float, split: int) -> np.ndarray:
    """Test minus training loss over the last tenth of training, (seeds,)."""
    return final(records, name_of(network, rate, split), "loss_gap")


def _by_split(records: Sequence[Record], settings: Settings, wide: str, narrow: str) -> np.ndarray:
    """By how much the gap of `wide` is wider than that of `narrow`, (splits, seeds)."""
    return np.stack(
        [
            _gap(records, wide, rate, split) - _gap(records, narrow, rate, split)
            for rate, split in settings.runs[: settings.splits]
        ]
    )


def _mean(records: Sequence[Record], settings: Settings, network: str, metric: str) -> float:
    """Over splits and seeds."""
    runs = settings.runs[: settings.splits]
    return float(np.mean([final(records, name_of(network, *run), metric) for run in runs]))


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """The gap in the course of training above; the differences and the spread below."""
    figure = narrow(6.8)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1))
    _draw_gaps(figure.add_subplot(grid[0, :]), records, settings)
    _draw_differences(figure.add_subplot(grid[1, 0]), records, settings)
    _draw_spread(figure.add_subplot(grid[1, 1]), records)
    return figure


def _draw_gaps(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """Test minus training loss against steps, on the first split."""
    small, large = settings.batch_size, settings.large
    labels = {
        SMALL: f"batch norm, {small}",
        VIRTUAL: f"batch norm, {large},\nstatistics of {small}",
        LARGE: f"batch norm, {large}",
        PLAIN_SMALL: f"no norm, {small}",
        PLAIN_LARGE: f"no norm, {large}",
    }
    for network, label in labels.items():
        name = name_of(network, settings.learning_rate, 0)
        steps, gaps = series(records, name, "loss_gap")
        if network in (PLAIN_SMALL, PLAIN_LARGE):  # whose bands would hide the others
            gaps = gaps.mean(0, keepdims=True)
        draw_band(ax, steps, gaps, COLORS[network], label, STYLES[network])
    ax.set(xlabel="training step", ylabel="test minus training loss")
    ax.set_ylim(0, 1.7 * ax.get_ylim()[1])  # the legend goes above
    ax.legend(loc="upper left", **OPAQUE, ncols=2)
    entitle(ax, "train-test gap on the first split", "a")


def _draw_differences(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """By how much the gap is wider for large batches, a dot a seed, side by side by split."""
    for place, pair in enumerate(PAIRS.values()):
        for split, differences in enumerate(_by_split(records, settings, *pair)):
            beside = 0.27 * (split - (settings.splits - 1) / 2)
            draw_dots(ax, place + beside, differences, COLORS[pair[1]], width=0.22)
    ax.axhline(0, color=GREY, linewidth=0.9)
    ax.set_xticks(range(len(PAIRS)), list(PAIRS))
    ax.set_ylabel(f"gap at {settings.large}\nminus gap at {settings.batch_size}")
    entitle(ax, f"wider, in {settings.splits} splits", "b")


def _draw_spread(ax: Axes, records: Sequence[Record]) -> None:
    """Both spreads against batch size, and a line of slope -1/2."""
    looks = {"mean": (BLUE, "-", "o"), "std": (ORANGE, "--", "s")}
    for what, (color, style, marker) in looks.items():
        sizes, values = series(records, SPREAD, f"{what}_spread")
        ax.plot(sizes, values.mean(0), style, marker=marker, markersize=4, color=color, label=what)
    ax.plot(SIZES, np.array(SIZES) ** -0.5, ":", color=GREY, label="1 / √size")
    ax.set(xscale="log", yscale="log", xlabel="images of a batch")
    set_ticks(ax.xaxis, FixedLocator(SIZES[::2]), "{x:.0f}")
    set_ticks(ax.yaxis, FixedLocator((0.02, 0.05, 0.1, 0.2)), "{x:g}")
    ax.set_ylabel("spread (deviations)")
    ax.legend(loc="upper right", **OPAQUE)
    entitle(ax, "noise of statistics", "c")
