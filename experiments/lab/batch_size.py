"""Small batches hurt batch norm; other norms do not mind (Wu & He 2018; Ioffe 2017; Hoffer 2017).

The same network is trained with batches of 2 to 64 images, with batch norm, group norm or batch
renorm, and on larger ones with batch norm over virtual batches of 16 images ("ghost batch norm").
As in Wu & He, every batch size sees the same number of images, and its learning rate is in
proportion to it. The running averages look back on the same number of images as well: a fixed
weight of the old value would average 20 images at batch size 2, and their noise be blamed on the
norm. The limits of batch renorm grow from those of batch norm, r = 1 and d = 0, to Ioffe's r = 3
and d = 5 over the first quarter of training, about as in his section 4.

Batches that are not independent draws hold images of two classes only, 16 of each. They train all
norms worse; the question is whether batch renorm suffers less than batch norm.

On digits the network is fully connected: in a convolution of 8x8 pixels even a batch of 2 has 128
values a channel, and batch norm loses nothing (tried). On CIFAR-10 it is a small ResNet, whose
last stage has 16 values an image and channel, 49 in Wu & He's; their statistics are of one GPU.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

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

from experiments.common.claims import VERDICT_RULE, Claim, paired_interval, verdict, with_interval
from experiments.common.data import Dataset
from experiments.common.errors import UserError
from experiments.common.histories import final_mean
from experiments.common.loop import one_by_one, shuffled
from experiments.common.models import MLP, Norm, OfPixels
from experiments.common.norms import batch_norm, batch_renorm, group_norm
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
    draw_dots,
)
from experiments.common.records import Record, series
from experiments.common.resnet import ResNet
from experiments.common.settings import Settings
from experiments.common.trials import Trial, training

BATCH, GROUP, RENORM, VIRTUAL = "batch norm", "group norm", "batch renorm", "virtual batches"
COLORS = {BATCH: BLUE, GROUP: GREEN, RENORM: ORANGE, VIRTUAL: PINK}
STYLES = {BATCH: "-", GROUP: "--", RENORM: "-.", VIRTUAL: ":"}
VIRTUAL_SIZE = 16
SMALLEST, IOFFES, FEW_CLASSES_AT = 2, 4, 32  # batch sizes that are judged
CLASSES = 2  # of a batch that is not an independent draw
GROUPS = 4
R_MAX, D_MAX = 3.0, 5.0
RAMP = 0.25  # of training, until batch renorm's limits have these values
MARGIN = 1.0  # percentage point of error: whoever loses less does not mind


@dataclass(frozen=True)
class BatchSizeSettings(Settings):
    """`steps`, `learning_rate` and `eval_every` are those of batches of `batch_size`, the largest
    that all norms get; a batch of half the size takes twice the steps at half the rate."""

    resnet: bool = False
    momentum: float = 0.9  # weight of the old value in running averages, likewise

    def at(self, size: int) -> "BatchSizeSettings":
        """The settings for batches of `size` images."""
        share = size / self.batch_size
        return dataclasses.replace(
            self,
            batch_size=size,
            steps=max(1, round(self.steps / share)),
            eval_every=max(1, round(self.eval_every / share)),
            learning_rate=self.learning_rate * share,
            momentum=self.momentum**share,
        )

    @property
    def sizes(self) -> list[int]:
        """2, 4, 8 and so on up to `batch_size`."""
        return [2**k for k in range(1, self.batch_size.bit_length())]

    @property
    def huge(self) -> int:
        """The size of large batches, for batch norm with and without virtual ones."""
        return 4 * self.batch_size


PRESETS = {
    "quick": BatchSizeSettings("digits", 5, 200, 64, learning_rate=0.1, eval_every=10),
    "paper": BatchSizeSettings(
        "cifar10", 5, 624, 64, learning_rate=0.1, eval_every=78, resnet=True
    ),
}


def trials(settings: BatchSizeSettings, data: Dataset) -> list[Trial]:
    """One trial a norm and batch size."""
    images = len(data.train.labels)
    if settings.batch_size < FEW_CLASSES_AT or settings.huge > images:
        raise UserError(
            f"--batch-size {settings.batch_size}: the largest common batch is {FEW_CLASSES_AT} or "
            f"more, and a quarter of the {images} training images or less"
        )
    few = partial(few_classes, size=FEW_CLASSES_AT // CLASSES)
    virtual = [size for size in settings.sizes if size > VIRTUAL_SIZE]
    return [
        *(
            _trial(norm, size, settings, data)
            for norm in (BATCH, GROUP, RENORM)
            for size in settings.sizes
        ),
        *(_trial(VIRTUAL, size, settings, data) for size in [*virtual, settings.huge]),
        _trial(BATCH, settings.huge, settings, data),
        *(_trial(norm, FEW_CLASSES_AT, settings, data, few) for norm in (BATCH, GROUP, RENORM)),
    ]


def _trial(
    norm: str, size: int, settings: BatchSizeSettings, data: Dataset, shuffle=shuffled
) -> Trial:
    at = settings.at(size)
    layer = make_norm(norm, at.steps)
    if settings.resnet:
        network = ResNet(layer, stem_stride=2, blocks=1, momentum=at.momentum)
        model: nn.Module = OfPixels(network, data.shape)
    else:
        model = MLP((64, 64), batch_norm=True, norm=layer, activation=nn.relu, momentum=at.momentum)
    return training(
        name(norm, size, few=shuffle is not shuffled),
        model,
        optax.sgd(at.learning_rate, momentum=0.9),
        data,
        at,
        shuffle=shuffle,
        across_seeds=one_by_one if settings.resnet else jax.vmap,
    )


def name(norm: str, size: int, *, few: bool = False) -> str:
    """Of a trial."""
    return f"{norm}, {size}" + (", few classes" if few else "")


def make_norm(norm: str, steps: int) -> Norm:
    """The layer called `norm`, for a training of `steps` steps."""
    ramp = partial(optax.linear_schedule, transition_steps=max(1, round(RAMP * steps)))
    return {
        BATCH: batch_norm(),
        GROUP: group_norm(GROUPS),
        RENORM: batch_renorm(r_max=ramp(1.0, R_MAX), d_max=ramp(0.0, D_MAX)),
        VIRTUAL: batch_norm(virtual_batch_size=VIRTUAL_SIZE),
    }[norm]


def few_classes(key: jax.Array, labels: jax.Array, *, size: int) -> jax.Array:
    """An order of all images in which runs of `size` are of the same class, as far as they go.

    Images and runs are in random order, so a batch of k runs has k classes or fewer, but for runs
    across the border of two classes. What does not fill a run comes last.

    Args:
      key: random key.
      labels: (n,).
      size: images of a run.

    Returns:
      Indices (n,).
    """
    images, runs = jax.random.split(key)
    order = jax.random.permutation(images, len(labels))
    order = order[jnp.argsort(labels[order], stable=True)]
    whole = len(labels) // size * size
    mixed = jax.random.permutation(runs, order[:whole].reshape(-1, size), axis=0)
    return jnp.concatenate([mixed.ravel(), order[whole:]])


def judge(records: Sequence[Record], settings: BatchSizeSettings) -> list[Claim]:
    """The rows of the closing table."""
    large, huge = settings.batch_size, settings.huge

    def at(norm: str, size: int, words: str, **options: bool) -> tuple[str, np.ndarray]:
        return words, error(records, name(norm, size, **options))

    return [
        judge_worse(
            "small batches hurt batch norm",
            "Wu & He, Table 2: error 34.7 % at 2, 23.6 % at 32",
            at(BATCH, SMALLEST, f"at {SMALLEST}"),
            at(BATCH, large, f"at {large}"),
        ),
        judge_unharmed(
            "group norm does not mind",
            "Wu & He, Table 2: error 24.1 % at 2 and at 32",
            at(GROUP, SMALLEST, f"at {SMALLEST}"),
            at(GROUP, large, f"at {large}"),
        ),
        judge_unharmed(
            "batch renorm does not mind",
            "Ioffe 2017, section 4.2: helps at 4, not as good as at 32",
            at(RENORM, SMALLEST, f"at {SMALLEST}"),
            at(RENORM, large, f"at {large}"),
        ),
        judge_worse(
            "small batches hurt it less than batch norm",
            "Ioffe 2017, section 4.2: error 23.5 % against 25.8 % at 4",
            at(BATCH, IOFFES, f"with batch norm at {IOFFES}"),
            at(RENORM, IOFFES, "with batch renorm"),
        ),
        judge_worse(
            "virtual batches help large ones",
            "Hoffer et al. 2017, Table 1: they close a part of the gap",
            at(BATCH, huge, f"with statistics of {huge}"),
            at(VIRTUAL, huge, f"of {VIRTUAL_SIZE}"),
        ),
        judge_worse(
            "batch renorm copes with batches of few classes",
            "Ioffe 2017, section 4.3: as good as with independent draws",
            at(BATCH, FEW_CLASSES_AT, "with batch norm", few=True),
            at(RENORM, FEW_CLASSES_AT, "with batch renorm", few=True),
        ),
    ]


def judge_worse(
    claim: str, paper: str, worse: tuple[str, np.ndarray], better: tuple[str, np.ndarray]
) -> Claim:
    """Whether errors (seeds,) in percent are larger than others."""
    return _claim(claim, paper, worse, better, 0.0, f"{worse[0]} minus {better[0]}. {VERDICT_RULE}")


def judge_unharmed(
    claim: str, paper: str, small: tuple[str, np.ndarray], large: tuple[str, np.ndarray]
) -> Claim:
    """Whether small batches cost less than `MARGIN`."""
    return _claim(
        claim,
        paper,
        small,
        large,
        MARGIN,
        f"{MARGIN:g} point minus the rise of the error. {VERDICT_RULE}",
    )


def _claim(
    claim: str,
    paper: str,
    first: tuple[str, np.ndarray],
    second: tuple[str, np.ndarray],
    margin: float,
    test: str,
) -> Claim:
    """Of the difference of two errors (seeds,); with a margin it has to stay below that."""
    difference = first[1] - second[1]
    points = paired_interval(difference)
    return Claim(
        claim,
        paper,
        f"error {first[1].mean():.1f} % {first[0]}, {second[1].mean():.1f} % {second[0]}; "
        f"difference {with_interval(points, '+.2f')} points",
        verdict(paired_interval(margin - difference) if margin else points),
        f"test error over the last tenth of training: {test}",
        {first[0]: first[1].tolist(), second[0]: second[1].tolist(), "points": list(points)},
    )


def error(records: Sequence[Record], network: str) -> np.ndarray:
    """Test error in percent, mean over the last tenth of training, (seeds,)."""
    return 100 * (1 - final_mean(*series(records, network, "test_accuracy")))


def draw(records: Sequence[Record], settings: BatchSizeSettings) -> Figure:
    """Error against batch size, and what batches of few classes do to it."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.6), layout="constrained")
    sizes, few = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    draw_sizes(sizes, records, settings)
    draw_few(few, records)
    _percent_axis(sizes)
    figure.suptitle(
        "Small batches hurt batch norm, not group norm or batch renorm",
        fontsize=13,
        fontweight="bold",
    )
    return figure


def draw_sizes(ax: Axes, records: Sequence[Record], settings: BatchSizeSettings) -> None:
    """Error against batch size, the mean over seeds in the range of the seeds."""
    every = [*settings.sizes, settings.huge]
    present = {record["network"] for record in records}
    for norm, color in COLORS.items():
        sizes = [size for size in every if name(norm, size) in present]
        errors = np.stack([error(records, name(norm, size)) for size in sizes], 1)
        label = f"{norm} of {VIRTUAL_SIZE}" if norm == VIRTUAL else norm
        draw_band(ax, np.array(sizes), errors, color, label, STYLES[norm])
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(every))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("batch size (images; the learning rate in proportion)")
    ax.set_ylabel("test error (log scale)")
    ax.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=1)
    title = data_and_seeds(settings)
    ax.set_title(title, loc="left", fontweight="bold")


def draw_few(ax: Axes, records: Sequence[Record]) -> None:
    """Every seed's error with batches of all and of few classes, side by side."""
    for place, norm in enumerate((BATCH, RENORM, GROUP)):
        for few, color in ((False, GREY), (True, COLORS[norm])):
            values = error(records, name(norm, FEW_CLASSES_AT, few=few))
            draw_dots(ax, 2 * place + 0.8 * few, values, color)
    ax.set_xticks(
        [2 * place + 0.4 for place in range(3)], ["batch\nnorm", "batch\nrenorm", "group\nnorm"]
    )
    ax.set_xlabel(f"grey: all classes in a batch, colour: {CLASSES}")
    ax.set_title(f"few classes, batches of {FEW_CLASSES_AT}", loc="left", fontweight="bold")


def _percent_axis(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    ax.yaxis.set_minor_locator(NullLocator())
