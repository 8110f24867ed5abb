"""Scale and shift help, can undo the normalisation, and replace the bias before (Raschka; Ng).

What is this experiment's own: networks of three hidden layers of 100 sigmoid units, with batch norm

    y = scale * (x - mean) / sqrt(var + epsilon) + shift

before each sigmoid, with both of scale and shift, with one of them, and with neither. All start
from the same weights and see the same mini-batches. Sigmoids are where the lectures mean it: inputs
of mean 0 and variance 1 keep to the part of a sigmoid that is almost a straight line, and only a
scale lets the network use the rest.

Two more things are measured. With scale = sqrt(var + epsilon) and shift = mean, y should be x, but
for rounding. And a bias before batch norm is taken away with the mean: its gradient should be 0,
but for rounding, and a network that has such biases should train as the one without.
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
from matplotlib.ticker import PercentFormatter

from bnjax.linen import BatchNorm
from bnjax.training import TrainState
from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_factor,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.data import Dataset
from experiments.common.histories import final_mean
from experiments.common.loop import Batch, Metrics
from experiments.common.loss import make_loss_fn
from experiments.common.metrics import evaluate
from experiments.common.models import MLP
from experiments.common.norms import batch_norm
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    WIDTH_INCHES,
    draw_band,
    draw_dots,
)
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial, once, training

BOTH, SCALE, SHIFT, NEITHER = "scale and shift", "scale only", "shift only", "neither"
REDUNDANT = "scale, shift and a bias before"
IDENTITY = "identity"
COLORS = {BOTH: BLUE, SCALE: GREEN, SHIFT: PINK, NEITHER: ORANGE}
STYLES = {BOTH: "-", SCALE: "--", SHIFT: ":", NEITHER: "-"}
ROUNDING = 2.0**-24  # largest relative error of rounding to float32
MOST_ROUNDINGS = 8  # two for each of the four operations of batch norm: -, /, *, +
GRADIENT_IMAGES = 500  # of the test set: the gradient of a bias is a sum over them
LEAST = 1e-9  # that is drawn
SAME = 0.01  # of the training loss: a difference that would matter


@dataclass(frozen=True)
class AffineSettings(Settings):
    """Settings of all networks."""

    hidden: tuple[int, ...] = (100, 100, 100)
    momentum: float = 0.9


PRESETS = {
    "quick": AffineSettings("digits", 10, 2000, 60, learning_rate=0.3, eval_every=40),
    "paper": AffineSettings("mnist", 10, 10_000, 60, learning_rate=0.3, eval_every=200),
}


def trials(settings: AffineSettings, data: Dataset) -> list[Trial]:
    """One trial a network, and one for the identity."""
    optimizer = optax.sgd(settings.learning_rate)
    affine = {
        BOTH: batch_norm(),
        SCALE: batch_norm(use_bias=False),
        SHIFT: batch_norm(use_scale=False),
        NEITHER: batch_norm(use_scale=False, use_bias=False),
    }
    network = partial(MLP, settings.hidden, batch_norm=True, momentum=settings.momentum)
    return [
        *(
            training(name, network(norm=norm), optimizer, data, settings)
            for name, norm in affine.items()
        ),
        training(
            REDUNDANT,
            network(norm=affine[BOTH], use_bias=True),
            optimizer,
            data,
            settings,
            evaluate=evaluate_bias,
        ),
        once(IDENTITY, partial(_identity, settings, data)),
    ]


def evaluate_bias(state: TrainState, test: Batch, *, model: nn.Module) -> Metrics:
    """Test metrics, and the largest gradient of a bias before batch norm.

    It is a share of the largest gradient of the shift in the same layer, which is what the bias'
    would be without the normalisation between them, up to the scale; the largest of all layers.
    """
    loss_fn = make_loss_fn(model)
    batch = {"images": test[0][:GRADIENT_IMAGES], "labels": test[1][:GRADIENT_IMAGES]}

    def loss(params: Any) -> jax.Array:
        return loss_fn(params, {"batch_stats": state.batch_stats}, batch, train=True)[0]

    grads = jax.grad(loss)(state.params)
    layers = [name for name in grads if name.startswith("BatchNorm")]
    shares = [
        jnp.abs(grads[name.replace("BatchNorm", "Dense")]["bias"]).max()
        / jnp.abs(grads[name]["bias"]).max()
        for name in layers
    ]
    return evaluate(state, test, model=model) | {"bias_gradient": jnp.stack(shares).max()}


def _identity(settings: AffineSettings, data: Dataset) -> Iterator[Record]:
    for seed in range(settings.seeds):
        rng = np.random.default_rng(seed)
        images = rng.choice(data.train.images, settings.batch_size, replace=False)
        weights = rng.standard_normal((images.shape[1], settings.hidden[0]))
        x = (images @ weights / np.sqrt(images.shape[1])).astype(np.float32)
        yield {"seed": seed, "step": 0, "roundings": undo(x)}


def undo(x: np.ndarray) -> float:
    """How far batch norm with scale = sqrt(var + epsilon), shift = mean is from leaving x as it is.

    Args:
      x: (batch, features), float32.

    Returns:
      The largest error, in roundings to float32 of the largest |x| of the same feature.
    """
    layer = BatchNorm(use_running_average=False)
    mean, var = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    params = {"scale": np.sqrt(var + layer.epsilon), "bias": mean}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    stats = {"mean": jnp.zeros(x.shape[1]), "var": jnp.ones(x.shape[1])}
    y, _ = layer.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    error = np.abs(np.asarray(y, np.float64) - x)
    return float((error.max(0) / (ROUNDING * np.abs(x).max(0))).max())


def judge(records: Sequence[Record], settings: AffineSettings) -> list[Claim]:
    """The rows of the closing table."""
    return [
        judge_accuracy(records),
        judge_loss(records),
        judge_identity(records),
        judge_gradient(records),
        judge_bias(records),
    ]


def judge_accuracy(records: Sequence[Record]) -> Claim:
    """Whether the network with scale and shift ends at a higher test accuracy."""
    both, neither = (final(records, network, "test_accuracy") for network in (BOTH, NEITHER))
    points = paired_interval(100 * (both - neither))
    return Claim(
        "scale and shift help: higher test accuracy",
        "Raschka, Ng: mean and variance are the network's to choose",
        f"{both.mean():.2%} with, {neither.mean():.2%} without; "
        f"{with_interval(points, '+.2f')} points",
        verdict(points),
        f"difference of accuracy over the last tenth of training. {VERDICT_RULE}",
        {"with": both.tolist(), "without": neither.tolist(), "points": list(points)},
    )


def judge_loss(records: Sequence[Record]) -> Claim:
    """Whether the network with scale and shift fits the training set better."""
    both, neither = (final(records, network, "train_loss") for network in (BOTH, NEITHER))
    logs = paired_interval(np.log(neither) - np.log(both))
    factor = as_factor(logs)
    return Claim(
        "scale and shift help: lower training loss",
        "Raschka, Ng: mean and variance are the network's to choose",
        f"{both.mean():.2g} with, {neither.mean():.2g} without; "
        f"{with_interval(factor, '.2f')} times lower",
        verdict(logs),
        f"log ratio of the loss over the last tenth of training. {VERDICT_RULE}",
        {"with": both.tolist(), "without": neither.tolist(), "factor": list(factor)},
    )


def judge_identity(records: Sequence[Record]) -> Claim:
    """Whether scale and shift can undo the normalisation."""
    roundings = series(records, IDENTITY, "roundings")[1][:, 0]
    return _judge_below(
        "scale and shift can undo the normalisation",
        "Ng: with scale = sqrt(var + epsilon), shift = mean, output = input",
        f"largest error {roundings.max():.1f} roundings of float32",
        "largest error of any feature, in roundings of its largest value",
        roundings,
        MOST_ROUNDINGS,
    )


def judge_gradient(records: Sequence[Record]) -> Claim:
    """Whether a bias before batch norm has no gradient, whenever one looks."""
    shares = series(records, REDUNDANT, "bias_gradient")[1].max(1)
    return _judge_below(
        "a bias before batch norm has no gradient",
        "Ng: subtracting the mean cancels it",
        f"at most {shares.max():.1e} of the shift's gradient",
        f"largest share of the shift's gradient at any evaluation ({GRADIENT_IMAGES} terms, "
        "which should sum to 0, each rounded)",
        shares,
        GRADIENT_IMAGES * ROUNDING,
    )


def judge_bias(records: Sequence[Record]) -> Claim:
    """Whether a network trains the same with and without biases before batch norm."""
    without, with_bias = (series(records, n, "train_loss")[1][:, 1:] for n in (BOTH, REDUNDANT))
    apart = np.abs(with_bias / without - 1).max(1)
    return _judge_below(
        "without that bias the network trains the same",
        "Ng: leave it out; the shift stands in for it",
        f"training losses differ by {apart.max():.1e} of their size at most",
        "largest relative difference of the training loss at any evaluation",
        apart,
        SAME,
    )


def _judge_below(
    claim: str, paper: str, found: str, what: str, values: np.ndarray, limit: float
) -> Claim:
    """Whether `values` (seeds,) are below a limit that was set before they were seen."""
    return Claim(
        claim,
        paper,
        found,
        verdict(paired_interval(limit - values)),
        f"{limit:.2g} minus the {what}. {VERDICT_RULE}",
        {"values": values.tolist(), "limit": limit},
    )


def final(records: Sequence[Record], network: str, name: str) -> np.ndarray:
    """Mean of a metric over the last tenth of training, (seeds,)."""
    return final_mean(*series(records, network, name))


def draw(records: Sequence[Record], settings: AffineSettings) -> Figure:
    """What scale and shift are worth above; what they replace and undo below."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 5)
    where = f"{settings.data_name}, {settings.seeds_in_words}"
    draw_loss(figure.add_subplot(grid[0, :3]), records, f"training loss ({where})")
    draw_errors(figure.add_subplot(grid[0, 3:]), records, "test error, every seed")
    draw_bias(figure.add_subplot(grid[1, :3]), records, "a bias before batch norm does nothing")
    draw_identity(figure.add_subplot(grid[1, 3:]), records, "the identity, every seed")
    title = "Scale and shift help, and can undo the normalisation"
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def draw_loss(ax: Axes, records: Sequence[Record], title: str) -> None:
    """Training loss with both, one and neither of scale and shift."""
    for network, color in COLORS.items():
        steps, loss = series(records, network, "train_loss")
        draw_band(ax, steps[1:], loss[:, 1:], color, network, STYLES[network])
    ax.set(yscale="log", xlabel="training step", ylabel="cross-entropy")
    ax.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=1)
    ax.set_title(title, loc="left", fontweight="bold")


def draw_errors(ax: Axes, records: Sequence[Record], title: str) -> None:
    """Test error at the end, a dot a seed and a line for their mean."""
    for place, (network, color) in enumerate(COLORS.items()):
        error = 1 - final(records, network, "test_accuracy")
        draw_dots(ax, place, error, color)
    ax.set_xticks(range(len(COLORS)), ["scale\n+ shift", "scale\nonly", "shift\nonly", "neither"])
    ax.set_ylim(0, None)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    ax.set_title(title, loc="left", fontweight="bold")


def draw_bias(ax: Axes, records: Sequence[Record], title: str) -> None:
    """The bias' gradient, and how far apart training is with and without the bias."""
    steps, shares = series(records, REDUNDANT, "bias_gradient")
    _, with_bias = series(records, REDUNDANT, "train_loss")
    _, without = series(records, BOTH, "train_loss")
    apart = np.abs(with_bias / without - 1)[:, 1:]
    draw_band(ax, steps, shares, PINK, "gradient of the bias / of the shift")
    # Equal to the last bit is 0, which a logarithmic axis cannot show.
    draw_band(ax, steps[1:], np.maximum(apart, LEAST), GREEN, "change of the training loss", "--")
    ax.axhline(1, color=GREY, linewidth=0.9, linestyle=":")
    ax.text(0, 0.5, "1: a bias that does something", va="top", color=GREY)
    ax.set(yscale="log", ylim=(LEAST, 10), xlabel="training step", ylabel="share")
    ax.legend(loc="upper right", bbox_to_anchor=(1, 0.75), facecolor="white", edgecolor="none")
    ax.set_title(title, loc="left", fontweight="bold")


def draw_identity(ax: Axes, records: Sequence[Record], title: str) -> None:
    """How far the output is from the input where scale and shift undo the normalisation."""
    roundings = series(records, IDENTITY, "roundings")[1][:, 0]
    draw_dots(ax, 0, roundings, BLUE)
    ax.axhline(MOST_ROUNDINGS, color=GREY, linewidth=0.9, linestyle=":")
    ax.set(xlim=(-1, 1), xticks=[], ylim=(0, None))
    ax.set_ylabel("largest |output - input|\n(roundings of float32)")
    ax.set_xlabel("dotted: two for each of -, /, *, +")
    ax.set_title(title, loc="left", fontweight="bold")
