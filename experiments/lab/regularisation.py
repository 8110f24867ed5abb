"""The noise of batch statistics regularises, that of large batches less (Ng).

Mean and variance of a batch are those of the population and noise, of a spread that should fall as
1 / sqrt(batch size). It is measured on inputs of batch norm, of images drawn independently.

A network is then trained with batches of 64 and of 512, with the same learning rate and for the
same number of steps, and the gap between test and training loss at the end is compared (both by
running statistics). The training set is small enough to be fitted by both. But a larger batch also
takes the noise out of the gradient, so that a smaller gap at 64 may not be batch norm's doing.
Two more comparisons tell the noises apart: batches of 512 of which every 64 images are normalised
by themselves (virtual batches), with the gradient's noise of 512 and the statistics' noise of 64;
and networks without batch norm, where only the gradient's noise can differ.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from bnjax.training import TrainState
from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    paired_interval,
    verdict,
    verdict_same,
    with_interval,
)
from experiments.common.data import Dataset, Split
from experiments.common.errors import UserError
from experiments.common.histories import final_mean
from experiments.common.loop import Batch, Metrics
from experiments.common.metrics import evaluate
from experiments.common.models import MLP
from experiments.common.norms import batch_norm
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    WIDTH_INCHES,
    YELLOW,
    draw_band,
    draw_dots,
)
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial, once, training

SMALL, LARGE, VIRTUAL = "batch norm, small", "batch norm, large", "batch norm, large virtual"
PLAIN_SMALL, PLAIN_LARGE = "no norm, small", "no norm, large"
SPREAD = "spread"
SIZES = (16, 32, 64, 128, 256, 512)
DRAWN = 200  # batches of each size
UNITS = 100
MARGIN = 0.05  # about the slope of -1/2
COLORS = {SMALL: BLUE, LARGE: GREEN, VIRTUAL: SKY, PLAIN_SMALL: ORANGE, PLAIN_LARGE: YELLOW}
STYLES = {SMALL: "-", LARGE: "-", VIRTUAL: "--", PLAIN_SMALL: "-", PLAIN_LARGE: "--"}


@dataclass(frozen=True)
class RegularisationSettings(Settings):
    """`batch_size` is that of small batches."""

    images: int = 1297  # of the training set: all digits
    hidden: tuple[int, ...] = (100, 100)
    momentum: float = 0.9

    @property
    def large(self) -> int:
        """Images of a large batch."""
        return 8 * self.batch_size


PRESETS = {
    "quick": RegularisationSettings("digits", 10, 500, 64, learning_rate=0.05, eval_every=50),
    "paper": RegularisationSettings(
        "mnist", 10, 2000, 64, learning_rate=0.05, eval_every=100, images=5000
    ),
}


def trials(settings: RegularisationSettings, data: Dataset) -> list[Trial]:
    """One trial a network, and one for the spread."""
    train = Split(*(array[: settings.images] for array in data.train))
    if settings.large > len(train.labels):
        raise UserError(
            f"--batch-size {settings.batch_size}: the experiment also trains with 8 times as many "
            f"images, and has {len(train.labels)}"
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
    options = {
        "optimizer": optax.sgd(settings.learning_rate, momentum=0.9),
        "data": data._replace(train=train),
        "settings": settings,
        "evaluate": partial(
            evaluate_gap, train=(jnp.asarray(train.images), jnp.asarray(train.labels))
        ),
    }
    return [
        once(SPREAD, partial(_spreads, settings, data)),
        *(training(name, model, batch_size=size, **options) for name, model, size in networks),
    ]


def evaluate_gap(state: TrainState, test: Batch, *, model: nn.Module, train: Batch) -> Metrics:
    """Test metrics, and how much larger loss and error are on the test than on the training set."""
    unseen = evaluate(state, test, model=model)
    seen = evaluate(state, train, model=model)
    return unseen | {
        "loss_gap": unseen["test_loss"] - seen["test_loss"],
        "error_gap": seen["test_accuracy"] - unseen["test_accuracy"],
    }


def _spreads(settings: RegularisationSettings, data: Dataset) -> Iterator[Record]:
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


def judge(records: Sequence[Record], settings: RegularisationSettings) -> list[Claim]:
    """The rows of the closing table."""
    small, large = settings.batch_size, settings.large
    return [
        judge_slope(records, "mean_spread", "means"),
        judge_slope(records, "std_spread", "standard deviations"),
        judge_gap(
            records,
            "batches regularise, large ones less",
            "Ng: 512 in place of 64 reduces the regularisation",
            (LARGE, f"at {large}"),
            (SMALL, f"at {small}"),
        ),
        judge_gap(
            records,
            "and that is the noise of the statistics",
            "Ng: noise in mean and variance, as of dropout",
            (LARGE, f"statistics of {large}"),
            (VIRTUAL, f"of {small}, gradients of {large}"),
        ),
    ]


def slopes(records: Sequence[Record], name: str) -> np.ndarray:
    """The slope of log(spread) over log(batch size), (seeds,)."""
    sizes, spreads = series(records, SPREAD, name)
    return np.polyfit(np.log(sizes), np.log(spreads).T, 1)[0]


def judge_slope(records: Sequence[Record], name: str, what: str) -> Claim:
    """Whether a spread falls as one over the square root of the batch size."""
    values = slopes(records, name)
    interval = paired_interval(values)
    return Claim(
        f"{what} of a batch spread as 1 / sqrt(its size)",
        "Ng: larger batches are less noisy (statistics: slope -1/2)",
        f"slope {with_interval(interval, '.3f')} from {SIZES[0]} to {SIZES[-1]}",
        verdict_same(paired_interval(values + 0.5), MARGIN),
        f"holds: the 95 % t-interval of the slope lies within {MARGIN} of -1/2; in part: only its "
        "mean does; does not hold here: neither",
        {"slopes": values.tolist(), "interval": list(interval)},
    )


def judge_gap(
    records: Sequence[Record],
    claim: str,
    paper: str,
    wide: tuple[str, str],
    narrow: tuple[str, str],
) -> Claim:
    """Whether the gap of the one network is wider than that of the other: (network, words)."""
    gaps = [gap(records, network) for network, _ in (wide, narrow)]
    errors = [final_mean(*series(records, network, "error_gap")) for network, _ in (wide, narrow)]
    interval = paired_interval(gaps[0] - gaps[1])
    found = (
        f"gap of the loss {gaps[0].mean():.4f} {wide[1]}, {gaps[1].mean():.4f} {narrow[1]}; "
        f"difference {with_interval(interval, '+.4f')} (of the error {errors[0].mean():.2%}, "
        f"{errors[1].mean():.2%})"
    )
    return Claim(
        claim,
        paper,
        found,
        verdict(interval),
        f"difference of test minus training loss over the last tenth of training. {VERDICT_RULE}",
        {wide[0]: gaps[0].tolist(), narrow[0]: gaps[1].tolist(), "difference": list(interval)},
    )


def gap(records: Sequence[Record], network: str) -> np.ndarray:
    """Test minus training loss over the last tenth of training, (seeds,)."""
    return final_mean(*series(records, network, "loss_gap"))


def draw(records: Sequence[Record], settings: RegularisationSettings) -> Figure:
    """The spread and what it does to the gap, above; the gap in the course of training below."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.8), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    draw_spread(figure.add_subplot(grid[0, 0]), records)
    draw_differences(figure.add_subplot(grid[0, 1]), records, settings)
    draw_gaps(figure.add_subplot(grid[1, :]), records, settings)
    title = "The noise of batches regularises, that of large ones less"
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def draw_spread(ax: Axes, records: Sequence[Record]) -> None:
    """Both spreads against batch size, and a line of slope -1/2."""
    for name, label, color in (("mean", "mean", BLUE), ("std", "standard deviation", GREEN)):
        sizes, spreads = series(records, SPREAD, f"{name}_spread")
        slope = slopes(records, f"{name}_spread").mean()
        draw_band(ax, sizes, spreads, color, f"{label}: slope {slope:.2f}")
    ax.plot(SIZES, np.array(SIZES) ** -0.5, ":", color=GREY, label="1 / sqrt(size)")
    ax.set(xscale="log", yscale="log", xlabel="batch size (images)", ylim=(0.01, None))
    ax.xaxis.set_major_locator(FixedLocator(SIZES))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    ax.yaxis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2]))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.set_ylabel("spread over batches\n(standard deviations of the data)")
    ax.legend(loc="lower left", facecolor="white", edgecolor="none", framealpha=1)
    ax.set_title("noise of the statistics", loc="left", fontweight="bold")


def draw_differences(ax: Axes, records: Sequence[Record], settings: RegularisationSettings) -> None:
    """By how much the gap is wider for large batches, seed by seed."""
    differences = (
        (f"batch norm,\n{settings.large}\nagainst {settings.batch_size}", LARGE, SMALL),
        (f"its statistics,\nof {settings.large}\nagainst {settings.batch_size}", LARGE, VIRTUAL),
        (
            f"no norm,\n{settings.large}\nagainst {settings.batch_size}",
            PLAIN_LARGE,
            PLAIN_SMALL,
        ),
    )
    for place, (_, wide, narrow) in enumerate(differences):
        draw_dots(ax, place, gap(records, wide) - gap(records, narrow), COLORS[narrow])
    ax.axhline(0, color=GREY, linewidth=0.9)
    ax.set_xticks(range(len(differences)), [label for label, *_ in differences])
    ax.set_ylabel("difference of the gaps")
    title = f"gap wider for large batches, {settings.seeds_in_words}"
    ax.set_title(title, loc="left", fontweight="bold")


def draw_gaps(ax: Axes, records: Sequence[Record], settings: RegularisationSettings) -> None:
    """Test minus training loss against steps."""
    small, large = settings.batch_size, settings.large
    labels = {
        SMALL: f"batch norm, batches of {small}",
        LARGE: f"batch norm, {large}",
        VIRTUAL: f"batch norm, {large}, statistics of {small}",
        PLAIN_SMALL: f"no norm, {small}",
        PLAIN_LARGE: f"no norm, {large}",
    }
    for network, label in labels.items():
        steps, gaps = series(records, network, "loss_gap")
        draw_band(ax, steps, gaps, COLORS[network], label, STYLES[network])
    rate = f"learning rate {settings.learning_rate:g} throughout"
    ax.set(xlabel=f"training step ({rate})", ylabel="test minus training loss")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.3 * (high - low))  # the legend goes above
    ax.legend(loc="upper left", facecolor="white", edgecolor="none", framealpha=1, ncols=2)
    title = f"gap in training on {settings.images:,} images of {settings.data_name}"
    ax.set_title(title, loc="left", fontweight="bold")
