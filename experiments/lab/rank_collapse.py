"""Batch norm keeps deep networks from collapsing to rank one (Daneshmand et al. 2020).

Networks of 50 layers before any training, by He's rule with ReLUs and by LeCun's without activation
("linear"). With every layer the images become more alike, until all of them point in one
direction. How many directions what an activation gets still has, H of (images, units), is measured
as in the paper's proof by::

    M              = H^T H / images
    effective rank = trace(M)^2 / sum of the squares of all entries of M

which is 1 where one direction is all there is, and the number of units where all count alike. No
mean is taken away; how much of the collapse is that of the mean is a row of its own.

The price: gradients explode, by sqrt(pi / (pi - 1)) = 1.21 a layer with ReLU (Yang et al. 2019).
And what batch norm does in networks with skip connections (De & Smith 2020): in a block
x + W relu(BN(x)) the branch keeps its size while x grows with every block. So it weighs less and
less beside the skip connection, by the square root of the number of blocks before; without batch
norm (and bias) both grow alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator

from experiments.common.data import Dataset
from experiments.common.deep import LOOKS as RELU_LOOKS
from experiments.common.deep import (
    RELU,
    RESIDUAL,
    YANG,
    DeepNet,
    first_gradients,
    first_intermediates,
    linear,
)
from experiments.common.histories import last
from experiments.common.plots import (
    GREY,
    OPAQUE,
    PINK,
    SKY,
    draw_band,
    entitle,
    narrow,
    set_ticks,
)
from experiments.common.records import Record, per_seed, series
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN, Settings
from experiments.common.trials import Trial, once
from experiments.common.verdicts import PLAIN_NUMBER, TIMES, Row, Test, claim, control

LINEAR = "linear"
KINDS = (RELU, LINEAR, RESIDUAL)
GROWTH_MARGIN = np.log(1.02)  # a layer; 2.6 times after 48
SLOPE_MARGIN = 0.1  # of the power 1/2
FIRST_BLOCK = 5  # from which on the power is fitted
BELOW: dict[str, Any] = {"bbox_to_anchor": (-0.15, -0.2), "fontsize": 8.5, "frameon": False}
LOOKS = RELU_LOOKS | {f"{LINEAR} {PLAIN}": (PINK, ":"), f"{LINEAR} {NORMALISED}": (SKY, "-.")}


@dataclass(frozen=True)
class RankSettings(Settings):
    """Settings of all networks; `batch_size` images are seen, and nothing is trained."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate", "steps", "eval_every")
    steps: int = 1  # of which only the gradient is taken
    batch_size: int = 256
    depth: int = 50
    width: int = 128

    @property
    def steps_in_words(self) -> str:
        """In place of training steps."""
        return f"{self.batch_size:,} images, before training"


PRESETS = {
    "quick": RankSettings(),
    "long": RankSettings(data="cifar10", batch_size=1000, width=512),
}


def trials(settings: RankSettings, data: Dataset) -> list[Trial]:
    """One trial a network."""
    return [_trial(kind, network, settings, data) for kind in KINDS for network in NETWORKS]


def _trial(kind: str, network: str, settings: RankSettings, data: Dataset) -> Trial:
    name = f"{kind} {network}"

    def measure() -> Iterator[Record]:
        activation = linear if kind == LINEAR else nn.relu
        branch = 1.0 if kind == RESIDUAL else None
        model = DeepNet(settings.depth, settings.width, activation, network == NORMALISED, branch)
        batch = tuple(jnp.asarray(array[: settings.batch_size]) for array in data.train)
        seen = first_intermediates(model, settings.seeds, batch[0])
        found = of_blocks(seen) if kind == RESIDUAL else of_layers(seen["activation_input"])
        if kind != LINEAR:
            found["gradient"] = first_gradients(model, settings.seeds, (batch[0], batch[1]))[:, 1:]
        for index in range(settings.depth - 1):
            metrics = {key: np.asarray(value)[:, index] for key, value in found.items()}
            yield from per_seed(index + 2, name, metrics)

    return once(name, measure)


@jax.jit
def of_layers(hidden: jax.Array) -> dict[str, jax.Array]:
    """Effective ranks (seeds, layers) of representations (seeds, layers, images, units)."""
    centred = hidden - hidden.mean(2, keepdims=True)
    return {"rank": effective_rank(hidden), "centred_rank": effective_rank(centred)}


def effective_rank(hidden: jax.Array) -> jax.Array:
    """Of matrices (..., images, units), as the module's docstring has it, (...)."""
    largest = jnp.abs(hidden).max((-1, -2), keepdims=True)
    hidden = hidden / jnp.maximum(largest, jnp.finfo(hidden.dtype).tiny)
    moments = jnp.swapaxes(hidden, -1, -2) @ hidden / hidden.shape[-2]
    return jnp.trace(moments, axis1=-2, axis2=-1) ** 2 / jnp.sum(moments**2, (-1, -2))


@jax.jit
def of_blocks(seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """How many times as large as the branch the skip connection is, (seeds, blocks)."""
    size = {key: jnp.sqrt(jnp.mean(value**2, (-1, -2))) for key, value in seen.items()}
    return {"skip_to_branch": size["skip"] / size["branch"]}


def growth(records: Sequence[Record], name: str) -> np.ndarray:
    """Logarithm of the gradient's growth a layer, from the last back to the second, (seeds,)."""
    layers, norms = series(records, name, "gradient")
    return np.log(norms[:, 0] / norms[:, -1]) / (layers[-1] - layers[0])


def power(records: Sequence[Record], name: str) -> np.ndarray:
    """With which power of the block's number the skip connection outgrows the branch, (seeds,)."""
    layers, ratios = series(records, name, "skip_to_branch")
    blocks = layers - 1
    kept = blocks >= FIRST_BLOCK
    if not np.isfinite(ratios).all():
        return np.full(len(ratios), np.nan)
    return np.polyfit(np.log(blocks[kept]), np.log(ratios[:, kept].T), 1)[0]


def judge(records: Sequence[Record], settings: RankSettings) -> list[Row]:
    """The rows of the closing table."""
    depth, powers = settings.depth, {n: power(records, f"{RESIDUAL} {n}") for n in NETWORKS}
    grown = {n: growth(records, f"{RELU} {n}") for n in NETWORKS}
    return [
        claim(
            "avoids rank collapse",
            '"an effective strategy to avoid rank collapse for both linear and ReLU networks"',
            "Daneshmand et al. 2020, abstract",
            *(_higher_rank(records, kind) for kind in (RELU, LINEAR)),
            found=f"effective rank of {settings.width} units after {depth} layers: "
            f"{_ranks(records, 'rank')}",
        ),
        claim(
            f"explodes ×{YANG:.2f} a layer",
            '"gradient signals grow exponentially in depth", with ReLU by sqrt(pi / (pi - 1)) a '
            "layer",
            "Yang et al. 2019, abstract",
            Test(
                f"log of the growth a layer with batch norm, less that of {YANG:.3f}",
                grown[NORMALISED] - np.log(YANG),
                TIMES,
                within=float(GROWTH_MARGIN),
            ),
            found=f"ReLU: ×{np.exp(grown[NORMALISED].mean()):.3f} a layer with, "
            f"×{np.exp(grown[PLAIN].mean()):.3f} without; beside theory",
        ),
        claim(
            "scales branches down",
            '"downscales the residual branch relative to the skip connection, by a normalizing '
            'factor on the order of the square root of the network depth"',
            "De & Smith 2020, abstract",
            Test(
                "power of the block's number, of the skip connection over the branch, less 1/2",
                powers[NORMALISED] - 0.5,
                PLAIN_NUMBER,
                within=SLOPE_MARGIN,
            ),
            found=f"power {powers[NORMALISED].mean():.2f} with, {powers[PLAIN].mean():.2f} "
            "without; beside 1/2",
        ),
        control(
            "without the mean",
            "effective rank after the mean over images is taken away",
            _ranks(records, "centred_rank"),
        ),
    ]


def _last(records: Sequence[Record], kind: str, network: str, metric: str) -> np.ndarray:
    return last(records, f"{kind} {network}", metric)


def _higher_rank(records: Sequence[Record], kind: str) -> Test:
    ranks = {network: _last(records, kind, network, "rank") for network in NETWORKS}
    return Test(
        f"{kind}: log of the effective rank of the last layer, with / without batch norm",
        np.log(ranks[NORMALISED]) - np.log(ranks[PLAIN]),
        TIMES,
    )


def _ranks(records: Sequence[Record], metric: str) -> str:
    return ", ".join(
        f"{kind} {_last(records, kind, NORMALISED, metric).mean():.1f} with, "
        f"{_last(records, kind, PLAIN, metric).mean():.1f} without"
        for kind in (RELU, LINEAR)
    )


def draw(records: Sequence[Record], settings: RankSettings) -> Figure:
    """Ranks by layer above; gradients, and skip connections against branches, below."""
    figure = narrow(6.6)
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.15))
    _draw_ranks(figure.add_subplot(grid[0, :]), records, settings)
    _draw_gradients(figure.add_subplot(grid[1, 0]), records)
    _draw_branches(figure.add_subplot(grid[1, 1]), records)
    return figure


def _draw(ax: Axes, records: Sequence[Record], name: str, metric: str, before: int = 0) -> None:
    color, line = LOOKS[name]
    layers, values = series(records, name, metric)
    draw_band(ax, layers - before, values, color, name.replace("batch norm", "BN"), line)


def _draw_ranks(ax: Axes, records: Sequence[Record], settings: RankSettings) -> None:
    for kind in (RELU, LINEAR):
        for network in NETWORKS:
            _draw(ax, records, f"{kind} {network}", "rank")
    ax.set_yscale("log")
    set_ticks(ax.yaxis, FixedLocator((1, 2, 5, 10, 20, 50)))
    ax.set_ylabel("effective rank\n(log scale)")
    ax.set_xlabel(f"layer, of {settings.depth}")
    ax.set_ylim(0.9, 6 * ax.dataLim.y1)  # the legend goes above
    ax.legend(loc="upper center", ncols=2, fontsize=9, **OPAQUE)
    entitle(ax, "directions left by layer", "a")


def _draw_gradients(ax: Axes, records: Sequence[Record]) -> None:
    for name in (f"{RELU} {PLAIN}", f"{RELU} {NORMALISED}", f"{RESIDUAL} {NORMALISED}"):
        _draw(ax, records, name, "gradient")
    layers, norms = series(records, f"{RELU} {NORMALISED}", "gradient")
    theory = 3 * norms[:, -1].mean() * YANG ** (layers[-1] - layers)
    ax.plot(layers, theory, color=GREY, linewidth=1.2, label=f"×{YANG:.2f} a layer")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(numticks=6))
    ax.set_xlabel("layer")
    ax.set_ylabel("norm of the gradient (log scale)")
    ax.legend(loc="upper left", **BELOW)
    entitle(ax, "gradients by layer", "b")


def _draw_branches(ax: Axes, records: Sequence[Record]) -> None:
    for network in NETWORKS:
        _draw(ax, records, f"{RESIDUAL} {network}", "skip_to_branch", before=1)
    layers, _ = series(records, f"{RESIDUAL} {NORMALISED}", "skip_to_branch")
    blocks = layers - 1
    ax.plot(blocks, 1.3 * np.sqrt(blocks), color=GREY, linewidth=1.2, label="square root")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(0.5, 12)
    set_ticks(ax.xaxis, FixedLocator((1, 5, 20, 50)))
    set_ticks(ax.yaxis, FixedLocator((0.5, 1, 2, 5, 10, 20)), "{x:g}")
    ax.set_xlabel("block (log scale)")
    ax.set_ylabel("skip / branch (log scale)")
    ax.legend(loc="upper left", **BELOW)
    entitle(ax, "skip over branch", "c")
