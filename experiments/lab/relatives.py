"""Batch norm and its relatives on one task (Lee's reading list; Wu & He 2018, Table 1).

Batch, layer, instance, group, weight and spectral norm, batch renorm and no norm at all, each at
the best of several learning rates, chosen on images held out for it and for each batch size. All
start from the same weights and see the same batches of 2 and of 64 images, the same number of
images altogether; so batches of 2 make 32 times the updates. A norm is judged by the rise of its
error from 64 to 2 beside batch norm's.

The network takes patches of 2x2 pixels, then of 2x2 of what came of those, each through the same
weights at every position (convolutions whose patches do not overlap), then has a linear layer. On
digits that is 16 and 4 positions an image: enough for instance norm, and few enough for batch norm
to feel small batches. Whoever normalises over positions or features has to do with as few values:
instance norm with 4 an image in the second layer, which takes a good part of what they say. Weight
norm starts every unit at length g = 1; its authors set g and b from a first batch, which is left
out, as it looks at a batch. Batch renorm has Ioffe's limits, r = 3 and d = 5, from the first step
on. Spectral norm was made for the critics of generative networks; nobody said it would help here.

Wu & He's numbers are of a ResNet-50 on ImageNet with 32 images a GPU: group norm has an error of
24.1 %, layer norm 25.3 %, instance norm 28.4 %, batch norm 23.6 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from bnjax.linen import (
    BatchNorm,
    BatchRenorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    SpectralNorm,
    WeightNorm,
)
from experiments.common.data import NUM_CLASSES, Dataset, hold_out
from experiments.common.histories import count_steps, final, log_speed_up, steps_to_target
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    draw_dots,
    entitle,
    narrow,
    set_ticks,
)
from experiments.common.records import Record, series
from experiments.common.settings import SameImages, TargetSettings
from experiments.common.sweep import (
    at_rate,
    best_rate,
    best_trial,
    by_accuracy,
    by_speed,
    trained_at,
)
from experiments.common.trials import Trial
from experiments.common.verdicts import TIMES, Row, Test, claim, control

NONE, BATCH, RENORM, GROUP = "no norm", "batch", "renorm", "group"
LAYER, INSTANCE, WEIGHT, SPECTRAL = "layer", "instance", "weight", "spectral"
NORMS = (NONE, BATCH, RENORM, GROUP, LAYER, INSTANCE, WEIGHT, SPECTRAL)
NO_BATCH = (GROUP, LAYER, INSTANCE, WEIGHT)  # made to look at no batch
SMALL, LARGE = 2, 64  # images of a batch
PATCH = 2  # pixels, a side
GROUPS = 4

LOOKS = {  # colour, line style, marker
    NONE: (GREY, ":", "x"),
    BATCH: (BLUE, "-", "o"),
    RENORM: (ORANGE, "-.", "^"),
    GROUP: (GREEN, "--", "s"),
    LAYER: (PINK, "-", "v"),
    INSTANCE: (SKY, "--", "D"),
    WEIGHT: (YELLOW, "-.", "P"),
    SPECTRAL: ("#000000", ":", "*"),
}
ERRORS = (1, 2, 3, 4, 5, 7, 10, 20, 30, 50, 90)  # ticks, in percent


@dataclass(frozen=True)
class Settings(SameImages, TargetSettings):
    """`steps`, `eval_every`, `rates` and `momentum` are those of batches of 64 images."""

    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.9, "cifar10": 0.4}
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    widths: tuple[int, ...] = (32, 64)

    @property
    def steps_in_words(self) -> str:
        """Such as "12,800 images in batches of 2 and of 64"."""
        return f"{self.steps * LARGE:,} images in batches of {SMALL} and of {LARGE}"


PRESETS = {
    "quick": Settings(steps=80, eval_every=4),
    # A fifth of an epoch, seen five times: batches of 2 make 32 steps of one, and to see 16,000
    # test and validation images with ten networks takes as long as 2,500 of those.
    "long": Settings(data="mnist", steps=200, eval_every=50, rates=(0.1, 0.3, 1.0)),
}


class PatchNet(nn.Module):
    """Patches through shared weights, a norm and a ReLU, twice; then a linear layer.

    Attributes:
      norm: one of `NORMS`.
      shape: (height, width, channels) of an image.
      widths: features of each layer of patches.
      momentum: weight of the old value in running averages.
    """

    norm: str
    shape: tuple[int, ...]
    widths: tuple[int, ...]
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps rows (batch, pixels) to logits (batch, classes)."""
        x = x.reshape(-1, *self.shape)
        for number, width in enumerate(self.widths):
            dense = nn.Dense(
                width,
                use_bias=self.norm in (NONE, WEIGHT, SPECTRAL),  # the others have their own shift
                kernel_init=nn.initializers.he_normal(),
                name=f"layer{number}",
            )
            x = nn.relu(self._normalised(dense, patches(x), train))
        return nn.Dense(NUM_CLASSES, name="out")(x.reshape(len(x), -1))

    @nn.nowrap
    def _normalised(self, dense: nn.Dense, x: jax.Array, train: bool) -> jax.Array:
        if self.norm == NONE:
            return dense(x)
        if self.norm == WEIGHT:
            return WeightNorm(dense)(x)
        if self.norm == SPECTRAL:
            return SpectralNorm(dense)(x, update_stats=train)
        average: Any = {"use_running_average": not train, "momentum": self.momentum}
        layer = {
            BATCH: partial(BatchNorm, **average),
            RENORM: partial(BatchRenorm, r_max=3.0, d_max=5.0, **average),
            GROUP: partial(GroupNorm, GROUPS),
            LAYER: partial(LayerNorm, reduction_axes=(1, 2, 3)),
            INSTANCE: InstanceNorm,
        }[self.norm]
        return layer()(dense(x))


def patches(x: jax.Array) -> jax.Array:
    """(batch, height, width, channels) to (batch, height / 2, width / 2, 4 channels)."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // PATCH, width // PATCH, -1)


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a norm, batch size and rate."""
    data, made = hold_out(data), []
    for norm in NORMS:
        for size in (SMALL, LARGE):
            at = settings.at(size)
            model = PatchNet(norm, data.shape, settings.widths, at.momentum)
            made += trained_at(name_of(norm, size), model, at.rates, data, at)
    return made


def name_of(norm: str, size: int) -> str:
    """Such as "layer, 64"."""
    return f"{norm}, {size}"


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    errors = {
        size: {norm: _error(records, settings, norm, size) for norm in NORMS}
        for size in (SMALL, LARGE)
    }
    at_2, at_64 = errors[SMALL], errors[LARGE]
    rise = {norm: at_2[norm] - at_64[norm] for norm in NORMS}
    in_order = (BATCH, GROUP, LAYER, INSTANCE)
    rates = settings.at(SMALL).rates
    best = {norm: best_rate(records, name_of(norm, SMALL), rates) for norm in NORMS}
    at_the_end = ", ".join(norm for norm in NORMS if best[norm] == max(rates))
    return [
        claim(
            "unlike batch norm",
            '"several normalization methods ... have been proposed to avoid exploiting the batch '
            'dimension"',
            "Wu & He 2018, section 2 (layer, instance, weight norm; and theirs, group norm)",
            *(
                Test(
                    f"rise of the error from {LARGE} to {SMALL}, batch - {norm}",
                    rise[BATCH] - rise[norm],
                )
                for norm in NO_BATCH
            ),
            found="points of rise: "
            + ", ".join(f"{n} {100 * rise[n].mean():+.1f}" for n in (BATCH, *NO_BATCH)),
        ),
        claim(
            f"the order at {LARGE}",
            "at a large batch, batch norm is best, then group, then layer, then instance norm",
            "Wu & He 2018, Table 1: error 23.6, 24.1, 25.3, 28.4 %",
            *(
                Test(f"error at {LARGE}, {worse} - {better}", at_64[worse] - at_64[better])
                for better, worse in pairwise(in_order)
            ),
            found=", ".join(f"{norm} {at_64[norm].mean():.1%}" for norm in in_order),
        ),
        _weight_norm_is_faster(records, settings),
        control(
            "the others",
            f"test error at {LARGE} and at {SMALL}",
            "; ".join(
                f"{norm} {at_64[norm].mean():.1%} and {at_2[norm].mean():.1%}"
                for norm in (NONE, RENORM, WEIGHT, SPECTRAL)
            )
            + f"; at {SMALL}, best at the largest rate tried: {at_the_end or 'none'}",
        ),
    ]


def _weight_norm_is_faster(records: Sequence[Record], settings: Settings) -> Row:
    target, reached = settings.target_accuracy, {}
    for norm in (NONE, WEIGHT):
        name = name_of(norm, LARGE)
        fastest = best_trial(records, name, settings.rates, by_speed(target))
        reached[norm] = steps_to_target(*series(records, fastest, "test_accuracy"), target)
    return claim(
        "weight norm is faster",
        '"we speed up convergence of stochastic gradient descent"',
        "Salimans & Kingma 2016, abstract",
        Test(
            f"log of steps to {target:.0%} test accuracy at {LARGE}, no norm / weight norm",
            log_speed_up(reached[NONE], reached[WEIGHT], settings.steps),
            TIMES,
            capped=bool(np.isinf(reached[NONE]).any()),
        ),
        found=f"steps to {target:.0%}: {count_steps(reached[WEIGHT], settings.steps)} with, "
        f"{count_steps(reached[NONE], settings.steps)} without",
    )


def _error(records: Sequence[Record], settings: Settings, norm: str, size: int) -> np.ndarray:
    """Test error at the best rate, over the last tenth of training, (seeds,)."""
    name = name_of(norm, size)
    chosen = best_rate(records, name, settings.at(size).rates)
    return 1 - final(records, at_rate(name, chosen), "test_accuracy")


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """The error of every norm at both batch sizes, and the sweeps behind it."""
    figure = narrow(7.2)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.2, 1))
    _draw_errors(figure.add_subplot(grid[0, :]), records, settings)
    first: Axes | None = None
    for column, size in enumerate((SMALL, LARGE)):
        first = _draw_sweep(
            figure.add_subplot(grid[1, column], sharey=first), records, settings, size
        )
    return figure


def _draw_errors(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """A dot a seed: batches of 64 on the left of each norm, of 2 on the right."""
    for place, norm in enumerate(NORMS):
        color, _, marker = LOOKS[norm]
        for beside, size in ((-0.22, LARGE), (0.22, SMALL)):
            errors = 100 * _error(records, settings, norm, size)
            draw_dots(ax, place + beside, errors, color, width=0.34, marker=marker)
    ax.set_yscale("log")
    set_ticks(ax.yaxis, FixedLocator(ERRORS), PercentFormatter(100, decimals=0))
    ax.set_xticks(range(len(NORMS)), NORMS, rotation=35)
    for label, norm in zip(ax.get_xticklabels(), NORMS, strict=True):  # the legend of all panels
        label.set(color=LOOKS[norm][0], fontweight="bold")
    ax.set_ylabel("test error (log scale)")
    entitle(ax, f"batches of {LARGE} left, of {SMALL} right", "a")


def _draw_sweep(ax: Axes, records: Sequence[Record], settings: Settings, size: int) -> Axes:
    rates = settings.at(size).rates
    for norm in NORMS:
        color, style, marker = LOOKS[norm]
        names = [at_rate(name_of(norm, size), rate) for rate in rates]
        errors = [100 * (1 - by_accuracy(records, name).mean()) for name in names]
        ax.plot(rates, errors, style, color=color, marker=marker, markersize=4)
    ax.set(xscale="log", yscale="log", xlabel="learning rate (log scale)")
    set_ticks(ax.xaxis, FixedLocator(rates), "{x:.1g}")
    set_ticks(ax.yaxis, FixedLocator(ERRORS), PercentFormatter(100, decimals=0))
    if size == SMALL:
        ax.set_ylabel("validation error (log scale)")
    entitle(ax, f"by rate, batches of {size}", "b" if size == SMALL else "c")
    return ax
