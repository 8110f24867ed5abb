"""Batch norm keeps gradients from vanishing or exploding (Raschka; Ioffe & Szegedy 2015).

Networks of 5 to 50 hidden layers of one width, with sigmoid, tanh or ReLU, with and without batch
norm, are trained from the same weights on the same mini-batches by gradient descent with one
learning rate. Before, meanwhile and after, the norm of the gradient of every layer's weights is
taken, for a batch of test images that batch norm normalises by their own statistics, as in
training.

Weights start as usual, with a variance of one over the number of inputs (LeCun's rule, Flax's
default), whatever the activation. He's rule, twice that, would suit ReLU better and let gradients
neither vanish nor explode without batch norm. What the lectures leave out: at the first step batch
norm with ReLU makes gradients explode with depth (Yang et al. 2019, "A mean field theory of batch
normalization": a factor of sqrt(pi / (pi - 1)) = 1.21 a layer), which is why 50 layers need
skip connections too. That disproves the conjecture of Ioffe & Szegedy for the first step. The
judgement therefore asks which network is the nearer to a gradient that does not depend on depth:

    change = log10(norm of the first layer in the deepest / in the shallowest network)

and compares the absolute values. With batch norm it must be below 2 itself for the claim to hold in
full.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter, ScalarFormatter

from bnjax.linen import BatchNorm
from bnjax.training import TrainState
from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_percent,
    paired_interval,
    provided,
    verdict,
    with_interval,
)
from experiments.common.data import NUM_CLASSES, Dataset
from experiments.common.histories import final_mean
from experiments.common.loop import Batch, Metrics
from experiments.common.loss import make_loss_fn
from experiments.common.metrics import evaluate
from experiments.common.plots import BLUE, GREY, ORANGE, WIDTH_INCHES, data_and_seeds, draw_band
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial, training

PLAIN, NORMALISED = NETWORKS = ("without batch norm", "with batch norm")
COLORS = {PLAIN: ORANGE, NORMALISED: BLUE}
ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": nn.tanh, "ReLU": nn.relu}
GRADIENT_BATCH = 250  # test images
TINY = float(np.finfo(np.float32).tiny)  # stands for a gradient that float32 cannot tell from 0
FLOOR = 1e-14  # of the norms in the figure; what is below is as good as 0
LARGE_CHANGE = 2.0  # powers of ten
TARGET_ACCURACY = {"digits": 0.8, "mnist": 0.8, "cifar10": 0.25}


@dataclass(frozen=True)
class DepthSettings(Settings):
    """Settings of all networks."""

    depths: tuple[int, ...] = (5, 20, 50)  # numbers of hidden layers
    width: int = 64  # units of each

    @property
    def target_accuracy(self) -> float:
        """The test accuracy from which a network counts as trained."""
        return TARGET_ACCURACY[self.data]


PRESETS = {
    "quick": DepthSettings(steps=300, eval_every=30),
    "paper": DepthSettings(
        data="mnist", steps=2000, eval_every=100, depths=(5, 10, 20, 30, 40, 50), width=100
    ),
}


class Layer(nn.Module):
    """`activation(W x + b)`, or with batch norm `activation(BN(W x))`."""

    width: int
    activation: Callable[[jax.Array], jax.Array]
    batch_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        """Maps (batch, features) to (batch, width); None is what `nn.scan` collects."""
        x = nn.Dense(self.width, use_bias=not self.batch_norm)(x)
        if self.batch_norm:
            x = BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return self.activation(x), None


class DeepNet(nn.Module):
    """Hidden layers of one width, all but the first in a scan: depth costs no compile time."""

    depth: int
    width: int
    activation: Callable[[jax.Array], jax.Array]
    batch_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, pixels) to logits (batch, classes)."""
        options = (self.width, self.activation, self.batch_norm)
        x, _ = Layer(*options, name="first")(x, train)
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=cast(Any, nn.broadcast),  # legal, though not annotated so
            length=self.depth - 1,
        )
        x, _ = scanned(*options, name="others")(x, train)
        return nn.Dense(NUM_CLASSES)(x)


def trials(settings: DepthSettings, data: Dataset) -> list[Trial]:
    """One trial a network."""
    optimizer = optax.sgd(settings.learning_rate)
    made = []
    for (activation, function), depth, network in product(
        ACTIVATIONS.items(), settings.depths, NETWORKS
    ):
        model = DeepNet(depth, settings.width, function, network == NORMALISED)
        name = trial_name(activation, network, depth)
        made.append(
            training(name, model, optimizer, data, settings, evaluate=evaluate_with_gradients)
        )
    return made


def trial_name(activation: str, network: str, depth: int) -> str:
    """Such as "tanh with batch norm, 50 layers"."""
    return f"{activation} {network}, {depth} layers"


def evaluate_with_gradients(state: TrainState, test: Batch, *, model: nn.Module) -> Metrics:
    """Test metrics, and for each hidden layer the norm of the gradient of its weights."""
    images, labels = test
    batch = images[:GRADIENT_BATCH], labels[:GRADIENT_BATCH]
    norms = gradient_norms(state, batch, model=model)
    return evaluate(state, test, model=model) | {
        gradient_name(layer): norm for layer, norm in enumerate(norms, 1)
    }


def gradient_name(layer: int) -> str:
    """Of layer 1 to depth in the records."""
    return f"gradient_{layer}"


def gradient_norms(state: TrainState, batch: Batch, *, model: nn.Module) -> jax.Array:
    """Norms of the loss's gradient with respect to each hidden layer's weights, (depth,)."""
    images, labels = batch
    loss_fn = partial(make_loss_fn(model), train=True)
    collections = {"batch_stats": state.batch_stats}
    grads, _ = jax.grad(loss_fn, has_aux=True)(
        state.params, collections, batch={"images": images, "labels": labels}
    )
    first, others = (grads[name]["Dense_0"]["kernel"] for name in ("first", "others"))
    norms = jnp.linalg.norm(others, axis=(1, 2))
    return jnp.concatenate([jnp.linalg.norm(first)[None], norms])


def judge(records: Sequence[Record], settings: DepthSettings) -> list[Claim]:
    """The rows of the closing table."""
    return [
        *(judge_gradient(records, settings, activation) for activation in ACTIVATIONS),
        *(judge_training(records, settings, activation) for activation in ACTIVATIONS),
    ]


def change_with_depth(
    records: Sequence[Record], settings: DepthSettings, activation: str, network: str
) -> np.ndarray:
    """`change` of the module's docstring before the first step, (seeds,)."""
    norms = [
        gradients(records, settings, activation, network, depth)[0, 0]
        for depth in (min(settings.depths), max(settings.depths))
    ]
    return np.log10(norms[1] / norms[0])


def gradients(
    records: Sequence[Record], settings: DepthSettings, activation: str, network: str, depth: int
) -> np.ndarray:
    """Norms of one network, (evaluations, layers, seeds), at least `TINY`."""
    name = trial_name(activation, network, depth)
    norms = [series(records, name, gradient_name(layer))[1].T for layer in range(1, depth + 1)]
    return np.maximum(np.stack(norms, 1), TINY)


def judge_gradient(records: Sequence[Record], settings: DepthSettings, activation: str) -> Claim:
    """Whether the first gradient of the first layer hangs less on depth with batch norm."""
    without, with_norm = (
        change_with_depth(records, settings, activation, network) for network in NETWORKS
    )
    interval = paired_interval(np.abs(without) - np.abs(with_norm))
    small = paired_interval(LARGE_CHANGE - np.abs(with_norm))
    low, high = min(settings.depths), max(settings.depths)
    return Claim(
        claim=f"{activation}: gradients neither vanish nor explode with depth",
        paper="Ioffe & Szegedy 3.3: batch norm may make gradients keep their size (a conjecture)",
        found=(
            f"gradient of the first layer, {high} against {low} layers, before training: times "
            f"{10 ** with_norm.mean():.2g} with, {10 ** without.mean():.2g} without; nearer to 1 "
            f"by {with_interval(interval, '.1f')} powers of ten"
        ),
        verdict=provided(verdict(interval), small),
        test=(
            "|log10 of the change| without minus with, the change being the ratio of norms of the "
            f"first layer's gradient at {high} and {low} layers. {VERDICT_RULE}. In part at most, "
            f"unless |log10 of the change| with batch norm is below {LARGE_CHANGE:g} by the same "
            "rule"
        ),
        numbers={
            "log10_change_without": without.tolist(),
            "log10_change_with": with_norm.tolist(),
            "nearer_by": interval.mean,
            "interval": [interval.low, interval.high],
        },
    )


def final_accuracy(
    records: Sequence[Record], settings: DepthSettings, activation: str, network: str
) -> np.ndarray:
    """Test accuracy over the last tenth of training, (seeds, depths); NaN counts as 0."""
    names = [trial_name(activation, network, depth) for depth in settings.depths]
    histories = [series(records, name, "test_accuracy") for name in names]
    return np.stack([final_mean(steps, np.nan_to_num(a)) for steps, a in histories], 1)


def judge_training(records: Sequence[Record], settings: DepthSettings, activation: str) -> Claim:
    """Whether the deepest network trains with batch norm, and better than without."""
    plain, normalised = (final_accuracy(records, settings, activation, n) for n in NETWORKS)
    gain = paired_interval(normalised[:, -1] - plain[:, -1])
    trained = paired_interval(normalised[:, -1] - settings.target_accuracy)
    depths, deepest, target = settings.depths, settings.depths[-1], settings.target_accuracy
    return Claim(
        claim=f"{activation}: {deepest} layers train",
        paper="deep networks train that did not (Raschka)",
        found=(
            f"accuracy at {', '.join(map(str, depths))} layers: {_percent(normalised)} with, "
            f"{_percent(plain)} without; {with_interval(as_percent(gain), '+.1f')} points at "
            f"{deepest}"
        ),
        verdict=provided(verdict(gain), trained),
        test=(
            f"difference of test accuracy of {deepest} layers over the last tenth of training. "
            f"{VERDICT_RULE}. In part at most, unless it is above {target:.0%} with batch norm by "
            "the same rule"
        ),
        numbers={
            "accuracy_without": plain[:, -1].tolist(),
            "accuracy_with": normalised[:, -1].tolist(),
            "difference": gain.mean,
            "interval": [gain.low, gain.high],
        },
    )


def _percent(accuracy: np.ndarray) -> str:
    """Means over seeds of accuracy (seeds, depths)."""
    return ", ".join(f"{mean:.0%}" for mean in accuracy.mean(0))


def draw(records: Sequence[Record], settings: DepthSettings) -> Figure:
    """Gradients by layer above, accuracy by depth below; a column an activation."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.4), layout="constrained")
    axes = figure.subplots(2, len(ACTIVATIONS), sharey="row")
    for column, activation in enumerate(ACTIVATIONS):
        draw_gradients(axes[0, column], records, settings, activation)
        draw_accuracy(axes[1, column], records, settings, activation)
        for row, what in enumerate(("gradient", "training")):
            title = f"{'abcdef'[3 * row + column]}   {activation}: {what}"
            axes[row, column].set_title(title, fontweight="bold", loc="left")
    axes[0, 0].set_ylabel("norm of a layer's gradient\n(log scale)")
    axes[1, 0].set_ylabel(f"test accuracy\nafter {settings.steps:,} steps")
    axes[1, 0].set_ylim(0, 1)
    axes[1, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set_ylim(FLOOR, 1e5)
    axes[0, 1].legend(loc="lower center", fontsize=8, framealpha=1)
    figure.suptitle(
        "Batch norm keeps gradients from vanishing or exploding", fontsize=13, fontweight="bold"
    )
    figure.supxlabel(
        f"layers of {settings.width} units; {data_and_seeds(settings)}", fontsize=9, color=GREY
    )
    return figure


def draw_gradients(
    ax: Axes, records: Sequence[Record], settings: DepthSettings, activation: str
) -> None:
    """Norms in the deepest network, before training and at its end."""
    depth = max(settings.depths)
    layers = np.arange(1, depth + 1)
    for network in NETWORKS:
        norms = gradients(records, settings, activation, network, depth)
        for moment, when, linestyle in ((0, "start", "-"), (-1, "end", ":")):
            label = f"{network}, {when}"
            draw_band(ax, layers, norms[moment].T, COLORS[network], label, linestyle)
    ax.set_yscale("log")
    ax.set_xlabel(f"layer, of {depth}")


def draw_accuracy(
    ax: Axes, records: Sequence[Record], settings: DepthSettings, activation: str
) -> None:
    """Accuracy at the end of training against depth."""
    for network in NETWORKS:
        accuracy = final_accuracy(records, settings, activation, network)
        draw_band(ax, np.array(settings.depths), accuracy, COLORS[network], network)
    ax.set_xscale("log")
    ax.set_xticks(settings.depths)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("hidden layers (log scale)")
