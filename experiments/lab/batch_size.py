"""Small batches hurt batch norm (Wu & He 2018, Table 2; Ioffe 2017; Hoffer et al. 2017).

The same network is trained with batches of 2 to 64 images: with batch norm, group norm and batch
renorm. Every batch size sees the same number of images, as in Wu & He, so a batch of half the size
makes twice the updates: batch size and number of updates go together, and more updates alone lower
an error. So batch norm is judged by the rise of its error minus the rise of group norm's, which
makes the same updates and looks at no batch. A control takes the two apart: batches of 64 of which
every two images are normalised by themselves (virtual batches) make as many updates as batches of
64, with the statistics of 2.

Each norm is seen, at each batch size, at the best of several learning rates on images held out;
the grid is in proportion to the batch size. The running averages look back on the same number of
images at all sizes: a fixed weight of the old value would average 20 images at batch size 2, and
their noise be blamed on the norm.

Batch renorm has the limits of Ioffe, r = 3 and d = 5, which grow from those of batch norm, 1 and 0,
over the first quarter of training; and at 4 images also those that Wu & He found best, r = 1.5 and
d = 0.5. That batch renorm does not mind small batches is nobody's claim (Ioffe: it does better at
them than batch norm), so its own rise is a control.

Batches that are not independent draws are made as Ioffe's, of runs of two images of a class: 8 such
pairs here, 16 there. But there are 10 classes here and 1,000 there, so here a class often comes in
several pairs. Runs of 8 images, two classes in a batch, are a harder case of our own, a control.

The network is fully connected: in a convolution of 8x8 pixels even a batch of 2 has 128 values a
channel, and batch norm loses nothing. Wu & He's is a ResNet-50 on ImageNet, 100 epochs on 8 GPUs;
"long" makes a third of an epoch of MNIST: 300 steps of 64 images are 9,600 of 2.
"""

from collections.abc import Sequence
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
from matplotlib.ticker import FixedLocator, PercentFormatter

from experiments.common.data import Dataset, hold_out
from experiments.common.errors import UserError
from experiments.common.histories import final
from experiments.common.loop import Shuffle, shuffled
from experiments.common.models import MLP, Norm
from experiments.common.norms import batch_norm, batch_renorm, group_norm
from experiments.common.plots import (
    BLUE,
    GREEN,
    OPAQUE,
    ORANGE,
    PINK,
    draw_band,
    draw_dots,
    entitle,
    narrow,
    set_ticks,
)
from experiments.common.records import Record
from experiments.common.settings import SameImages
from experiments.common.sweep import (
    at_rate,
    best_rate,
    best_trial,
    by_accuracy,
    rate_in_words,
    trained_at,
)
from experiments.common.trials import Trial
from experiments.common.verdicts import Row, Test, claim, control

BATCH, GROUP, RENORM, NARROW = "batch norm", "group norm", "batch renorm", "batch renorm, narrow"
STATISTICS_OF_2, GHOST = "statistics of 2", "virtual batches"
SIZES = (2, 4, 16, 64)
SMALLEST, IOFFES, RUNS_AT, LARGE, HUGE = 2, 4, 16, 64, 256  # batch sizes that are judged
PAIRS, LONG_RUNS = 2, 8  # images of a class in a row
GHOSTS = 16  # images of a virtual batch
GROUPS = 4
RAMP = 0.25  # of training, until batch renorm's limits have reached Ioffe's
MARGIN = 0.01  # of accuracy: whose error changes less is stable

COLORS = {BATCH: BLUE, GROUP: GREEN, RENORM: ORANGE}
STYLES = {BATCH: "-", GROUP: "--", RENORM: "-."}
MARKERS = {BATCH: "o", GROUP: "s", RENORM: "^"}
ERRORS = (1, 2, 3, 5, 10, 20, 30, 50, 90)  # ticks, in percent


@dataclass(frozen=True)
class Settings(SameImages):
    """`steps`, `eval_every`, `rates` and `momentum` are those of batches of 64 images."""

    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)

    @property
    def steps_in_words(self) -> str:
        """Such as "10,240 images at every batch size"."""
        return f"{self.steps * LARGE:,} images at every batch size, at its best rate"


PRESETS = {
    "quick": Settings(steps=160, eval_every=16),
    "long": Settings(data="mnist", steps=300, eval_every=30, rates=(0.1, 0.3, 1.0)),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a norm, batch size, kind of batches and rate."""
    if len(data.train.labels) < 2 * HUGE:
        raise UserError(f"{data.name}: fewer than {2 * HUGE} training images")
    data = hold_out(data)
    made = [(norm, size, 1) for norm in (BATCH, GROUP, RENORM) for size in SIZES]
    made += [(NARROW, IOFFES, 1), (STATISTICS_OF_2, LARGE, 1), (BATCH, HUGE, 1), (GHOST, HUGE, 1)]
    made += [(norm, RUNS_AT, run) for norm in (BATCH, RENORM) for run in (PAIRS, LONG_RUNS)]
    return [trial for each in made for trial in _trained(*each, settings, data)]


def _trained(norm: str, size: int, run: int, settings: Settings, data: Dataset) -> list[Trial]:
    at = settings.at(size)
    layer = make_norm(norm, at.steps)
    model = MLP((64, 64), batch_norm=True, norm=layer, activation=nn.relu, momentum=at.momentum)
    shuffle: Shuffle = partial(in_runs, size=run) if run > 1 else shuffled
    return trained_at(name_of(norm, size, run), model, at.rates, data, at, shuffle=shuffle)


def name_of(norm: str, size: int, run: int = 1) -> str:
    """Such as "batch norm, 16, runs of 2"."""
    return f"{norm}, {size}" + (f", runs of {run}" if run > 1 else "")


def make_norm(norm: str, steps: int) -> Norm:
    """The layer called `norm`, for a training of `steps` steps."""
    ramp = partial(optax.linear_schedule, transition_steps=max(1, round(RAMP * steps)))
    return {
        BATCH: batch_norm(),
        GROUP: group_norm(GROUPS),
        RENORM: batch_renorm(r_max=ramp(1.0, 3.0), d_max=ramp(0.0, 5.0)),
        NARROW: batch_renorm(r_max=1.5, d_max=0.5),
        STATISTICS_OF_2: batch_norm(virtual_batch_size=SMALLEST),
        GHOST: batch_norm(virtual_batch_size=GHOSTS),
    }[norm]


def in_runs(key: jax.Array, labels: jax.Array, *, size: int) -> jax.Array:
    """An order of all images in which runs of `size` are of the same class, as far as they go.

    Images and runs are in random order. What does not fill a run comes last.
    """
    images, runs = jax.random.split(key)
    order = jax.random.permutation(images, len(labels))
    order = order[jnp.argsort(labels[order], stable=True)]
    whole = len(labels) // size * size
    mixed = jax.random.permutation(runs, order[:whole].reshape(-1, size), axis=0)
    return jnp.concatenate([mixed.ravel(), order[whole:]])


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    error = partial(_error, records, settings)

    def rise(norm: str) -> np.ndarray:
        return error(norm, SMALLEST) - error(norm, LARGE)

    def worse_with(norm: str, run: int) -> np.ndarray:
        return error(norm, RUNS_AT, run) - error(norm, RUNS_AT)

    def from_to(norm: str) -> str:
        return f"{norm} {error(norm, LARGE).mean():.1%} to {error(norm, SMALLEST).mean():.1%}"

    def costs(run: int) -> str:
        each = (f"{norm} {100 * worse_with(norm, run).mean():+.1f}" for norm in (BATCH, RENORM))
        return ", ".join(each)

    fours = ", ".join(f"{n} {error(n, IOFFES).mean():.1%}" for n in (BATCH, NARROW, GROUP))
    return [
        claim(
            "small batches hurt",
            '"BN\'s error increases rapidly when the batch size becomes smaller"',
            "Wu & He 2018, abstract; Table 2: 23.6 to 34.7 % from 32 to 2, group norm 24.1 to 24.1",
            Test(
                f"rise of the error from {LARGE} to {SMALLEST}, batch norm - group norm",
                rise(BATCH) - rise(GROUP),
            ),
            found=f"error from {LARGE} to {SMALLEST}: {from_to(BATCH)}, {from_to(GROUP)}",
        ),
        claim(
            "group norm is stable",
            '"its accuracy is stable in a wide range of batch sizes"',
            "Wu & He 2018, abstract",
            Test(
                f"rise of group norm's error from {LARGE} to {SMALLEST}, within 1 point",
                rise(GROUP),
                within=MARGIN,
            ),
            found=f"from {LARGE} to {SMALLEST}: {from_to(GROUP)}",
        ),
        claim(
            f"renorm is better at {IOFFES}",
            '"substantially better than batchnorm when training with small ... minibatches"',
            "Ioffe 2017, abstract",
            Test(
                f"error at {IOFFES}, batch norm - renorm",
                error(BATCH, IOFFES) - error(RENORM, IOFFES),
            ),
            found=f"{BATCH} {error(BATCH, IOFFES).mean():.1%}, "
            f"{RENORM} {error(RENORM, IOFFES).mean():.1%}",
        ),
        claim(
            "but not as group norm",
            "batch renorm at 4 images \"is better than BN's 27.3%, but still 2.1% higher than "
            "GN's 24.2%\"",
            "Wu & He 2018, section 4.1",
            Test(
                f"error at {IOFFES}, batch norm - renorm with r = 1.5, d = 0.5",
                error(BATCH, IOFFES) - error(NARROW, IOFFES),
            ),
            Test(
                f"error at {IOFFES}, renorm with r = 1.5, d = 0.5 - group norm",
                error(NARROW, IOFFES) - error(GROUP, IOFFES),
            ),
            found=fours,
        ),
        claim(
            "pairs hurt less",
            '"substantially better than batchnorm when training with ... non-i.i.d. minibatches"',
            "Ioffe 2017, abstract",
            Test(
                "rise of the error from independent draws to pairs of a class, batch norm - renorm",
                worse_with(BATCH, PAIRS) - worse_with(RENORM, PAIRS),
            ),
            found=f"points that pairs cost at {RUNS_AT}: {costs(PAIRS)}",
        ),
        claim(
            "virtual batches help",
            '"significant decrease in the generalization gap without increasing the number of '
            'updates"',
            "Hoffer et al. 2017, abstract (large batches)",
            Test(
                f"error at {HUGE}, statistics of {HUGE} - of {GHOSTS}",
                error(BATCH, HUGE) - error(GHOST, HUGE),
            ),
            found=f"{error(BATCH, HUGE).mean():.1%} and {error(GHOST, HUGE).mean():.1%}",
        ),
        control(
            "statistics alone",
            f"as many updates, with the statistics of {SMALLEST}: batches of {LARGE} in parts",
            f"error {error(BATCH, LARGE).mean():.1%} by statistics of {LARGE}, "
            f"{error(STATISTICS_OF_2, LARGE).mean():.1%} by those of {SMALLEST}; "
            f"batches of {SMALLEST}: {error(BATCH, SMALLEST).mean():.1%}",
        ),
        control(
            "best rates",
            "as given, for batches of 64; at an end of the grid a better one may lie beyond",
            "; ".join(
                f"{norm} {_best_in_words(records, settings, norm, LARGE)} at {LARGE}, "
                f"{_best_in_words(records, settings, norm, SMALLEST)} at {SMALLEST}"
                for norm in (BATCH, RENORM, GROUP)
            ),
        ),
        control("renorm's own rise", "what small batches cost batch renorm", from_to(RENORM)),
        control(
            "two classes in a batch",
            f"runs of {LONG_RUNS} images of a class, far from independent draws",
            f"points that they cost at {RUNS_AT}: {costs(LONG_RUNS)}",
        ),
    ]


def _best(records: Sequence[Record], settings: Settings, norm: str, size: int, run: int) -> str:
    """The name of the trial at the best rate."""
    name = name_of(norm, size, run)
    return best_trial(records, name, settings.at(size).rates)


def _best_in_words(records: Sequence[Record], settings: Settings, norm: str, size: int) -> str:
    """The best rate as it is given, for batches of 64."""
    chosen = best_rate(records, name_of(norm, size), settings.at(size).rates)
    place = settings.at(size).rates.index(chosen)
    return rate_in_words(settings.rates[place], settings.rates)


def _error(
    records: Sequence[Record], settings: Settings, norm: str, size: int, run: int = 1
) -> np.ndarray:
    """Test error at the best rate, over the last tenth of training, (seeds,)."""
    return 1 - final(records, _best(records, settings, norm, size, run), "test_accuracy")


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Error against batch size, the sweeps behind it, and batches of pairs and of two classes."""
    figure = narrow(6.6)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1))
    error = partial(_error, records, settings)
    _draw_sizes(figure.add_subplot(grid[0, :]), error)
    _draw_sweeps(figure.add_subplot(grid[1, 0]), records, settings)
    _draw_runs(figure.add_subplot(grid[1, 1]), error)
    return figure


def _draw_sizes(ax: Axes, error: Any) -> None:
    for norm in COLORS:
        errors = np.stack([error(norm, size) for size in SIZES], 1)
        draw_band(ax, np.array(SIZES), 100 * errors, COLORS[norm], norm, STYLES[norm])
        ax.plot(SIZES, 100 * errors.mean(0), MARKERS[norm], color=COLORS[norm], markersize=5)
    same_updates = 100 * error(STATISTICS_OF_2, LARGE).mean()
    ax.plot(LARGE, same_updates, "D", color=PINK, label=f"{LARGE}, statistics of 2")
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(SIZES), "{x:.0f}")
    ax.set_yscale("log")
    set_ticks(ax.yaxis, FixedLocator(ERRORS), PercentFormatter(100, decimals=0))
    ax.set_xlabel("images of a batch (log scale)")
    ax.set_ylabel("test error (log scale)")
    ax.set_ylim(0.9, 60)  # the legend goes above
    ax.legend(loc="upper center", ncols=2, **OPAQUE)
    entitle(ax, "error by batch size, at each one's best rate", "a")


def _draw_sweeps(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """Validation error against the rate, in shares of the size, at the smallest and at 64."""
    for norm in COLORS:
        for size, filled in ((SMALLEST, COLORS[norm]), (LARGE, "white")):
            rates = settings.at(size).rates
            scores = [by_accuracy(records, at_rate(name_of(norm, size), r)).mean() for r in rates]
            look = {"color": COLORS[norm], "markerfacecolor": filled, "markersize": 5}
            style = STYLES[norm]
            errors = 100 * (1 - np.array(scores))
            ax.plot(settings.rates, errors, style, marker=MARKERS[norm], linewidth=1.3, **look)
    ax.set(xscale="log", yscale="log", xlabel=f"rate × {LARGE} / size (log scale)")
    set_ticks(ax.xaxis, FixedLocator(settings.rates), "{x:g}")
    set_ticks(ax.yaxis, FixedLocator(ERRORS), PercentFormatter(100, decimals=0))
    ax.set_ylabel("validation error (log scale)")
    entitle(ax, f"by rate: {SMALLEST} filled, {LARGE} open", "b")


def _draw_runs(ax: Axes, error: Any) -> None:
    """Every seed's rise of the error from independent draws to runs of a class."""
    for place, run in enumerate((PAIRS, LONG_RUNS)):
        for beside, norm in ((-0.2, BATCH), (0.2, RENORM)):
            rise = 100 * (error(norm, RUNS_AT, run) - error(norm, RUNS_AT))
            draw_dots(ax, place + beside, rise, COLORS[norm], width=0.3, marker=MARKERS[norm])
    ax.set_xticks((0, 1), ("pairs of\na class", f"runs\nof {LONG_RUNS}"))
    ax.set_ylabel("rise of the error (points)")
    entitle(ax, "few classes in a batch", "c")
