"""Batch norm keeps gradients from vanishing or exploding (Raschka; Ioffe & Szegedy 2015).

Deep networks of one width, with and without batch norm, before training and after it. Weights start
by the rule that suits a network without batch norm: He's for ReLU, twice the variance of LeCun's,
which sigmoid and tanh get. Before training, the norm of the gradient of every layer's weights is
taken, for test images that batch norm normalises by their own statistics, as in training::

    change = log10(norm of the second layer / norm of the last layer)

Then each network is trained by gradient descent at every rate of a grid, and seen at the one that
suits it best on images held out.

What the lectures leave out: before the first step, batch norm with ReLU makes gradients explode
with depth, by a factor of sqrt(pi / (pi - 1)) = 1.21 a layer however weights are drawn (Yang et al.
2019), where He's rule without batch norm keeps their size. Residual connections are the remedy, and
so they stand beside it, as blocks x + W relu(BN(x)). Without batch norm such blocks would double
the variance each, so their branch is divided by the square root of the depth there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, ScalarFormatter

from experiments.common.data import Dataset, hold_out
from experiments.common.deep import LOOKS as RELU_LOOKS
from experiments.common.deep import RELU, RESIDUAL, YANG, DeepNet, first_gradients
from experiments.common.histories import final
from experiments.common.models import ACTIVATIONS
from experiments.common.plots import (
    BLUE,
    GREY,
    ORANGE,
    PINK,
    SKY,
    draw_band,
    entitle,
    narrow,
    percent_axis,
    set_ticks,
)
from experiments.common.records import Record, per_seed, series
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN, Settings
from experiments.common.sweep import (
    best_rate,
    best_trial,
    draw_sweep,
    rate_in_words,
    trained_at,
)
from experiments.common.trials import Trial, once
from experiments.common.verdicts import DECADES, Row, Test, claim, control

SIGMOID, TANH = "sigmoid", "tanh"
KINDS = (RELU, RESIDUAL, SIGMOID, TANH)
TRAINED = (RELU, RESIDUAL, SIGMOID)
GRADIENT_BATCH = 250  # test images
FLOOR = 1e-8  # of the norms in the picture; what is below is as good as 0
LOOKS = RELU_LOOKS | {  # in a panel of their own
    f"{SIGMOID} {PLAIN}": (ORANGE, "--"),
    f"{SIGMOID} {NORMALISED}": (BLUE, "-"),
    f"{TANH} {PLAIN}": (PINK, ":"),
    f"{TANH} {NORMALISED}": (SKY, "-."),
}


@dataclass(frozen=True)
class DepthSettings(Settings):
    """Settings of all networks."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    depths: tuple[int, ...] = (20, 50)  # numbers of hidden layers, rising
    width: int = 32  # units of each
    rates: tuple[float, ...] = (0.01, 0.04, 0.16, 0.64)


PRESETS = {
    "quick": DepthSettings(steps=150, eval_every=30),
    "long": DepthSettings(
        data="mnist", steps=500, eval_every=50, depths=(5, 20, 50), width=64, rates=(0.01, 0.1, 1.0)
    ),
}


def trials(settings: DepthSettings, data: Dataset) -> list[Trial]:
    """The gradients of every network, and the training of those of `TRAINED`."""
    data = hold_out(data)
    made = [_gradients(kind, network, settings, data) for kind in KINDS for network in NETWORKS]
    for kind in TRAINED:
        for network in NETWORKS:
            for depth in settings.depths:
                model = make_model(kind, network, depth, settings.width)
                made += trained_at(
                    _name(kind, network, depth), model, settings.rates, data, settings
                )
    return made


def make_model(kind: str, network: str, depth: int, width: int) -> DeepNet:
    """The network, of `depth` hidden layers of `width` units."""
    normalised = network == NORMALISED
    branch = (1.0 if normalised else depth**-0.5) if kind == RESIDUAL else None
    return DeepNet(depth, width, ACTIVATIONS.get(kind, ACTIVATIONS[RELU]), normalised, branch)


def _gradients(kind: str, network: str, settings: DepthSettings, data: Dataset) -> Trial:
    """Norms before training in the deepest network, a record a seed and layer."""

    def measure() -> Iterator[Record]:
        model = make_model(kind, network, settings.depths[-1], settings.width)
        batch = tuple(jnp.asarray(array[:GRADIENT_BATCH]) for array in data.test)
        by_layer = first_gradients(model, settings.seeds, (batch[0], batch[1])).T
        for layer, norms in enumerate(by_layer, 1):
            yield from per_seed(layer, f"{kind} {network}", {"gradient": norms})

    return once(f"{kind} {network}", measure)


def _name(kind: str, network: str, depth: int) -> str:
    return f"{kind} {network}, {depth} layers"


def gradients(records: Sequence[Record], kind: str, network: str) -> np.ndarray:
    """Norms by layer, (seeds, layers); what float32 cannot tell from 0 is its smallest number."""
    tiny = float(np.finfo(np.float32).tiny)
    return np.maximum(series(records, f"{kind} {network}", "gradient")[1], tiny)


def change(records: Sequence[Record], kind: str, network: str) -> np.ndarray:
    """`change` of the module's docstring, (seeds,)."""
    norms = gradients(records, kind, network)
    return np.log10(norms[:, 1] / norms[:, -1])


def accuracies(
    records: Sequence[Record], settings: DepthSettings, kind: str, network: str
) -> np.ndarray:
    """Test accuracy at the best rate of each depth, (seeds, depths); NaN counts as 0."""
    found = []
    for depth in settings.depths:
        name = _name(kind, network, depth)
        best = best_trial(records, name, settings.rates)
        found.append(np.nan_to_num(final(records, best, "test_accuracy")))
    return np.stack(found, 1)


def judge(records: Sequence[Record], settings: DepthSettings) -> list[Row]:
    """The rows of the closing table."""
    deepest = settings.depths[-1]
    reached = {
        (kind, network): accuracies(records, settings, kind, network)
        for kind in TRAINED
        for network in NETWORKS
    }
    last = {key: values[:, -1] for key, values in reached.items()}
    trained = {n: ", ".join(_percent(k, reached[k, n]) for k in TRAINED) for n in NETWORKS}
    layers = " and ".join(map(str, settings.depths))
    return [
        _judge_gradients(records, deepest),
        claim(
            "deep networks train",
            '"I think you\'ll be able to train much deeper networks"',
            "Ng, Batch norm at test time",
            *(
                Test(
                    f"{kind}: test accuracy of {deepest} layers, with - without batch norm, each "
                    "at its best rate",
                    last[kind, NORMALISED] - last[kind, PLAIN],
                )
                for kind in (SIGMOID, RELU)
            ),
            found=f"{layers} layers: {trained[NORMALISED]} with; {trained[PLAIN]} without",
        ),
        claim(
            "needs skip connections",
            '"vanilla batch-normalized networks without skip connections are not trainable at '
            'large depths"',
            "Yang et al. 2019, abstract",
            Test(
                f"ReLU with batch norm, test accuracy of {deepest} layers, residual - plain",
                last[RESIDUAL, NORMALISED] - last[RELU, NORMALISED],
            ),
            found=f"{last[RESIDUAL, NORMALISED].mean():.0%} with skip connections, "
            f"{last[RELU, NORMALISED].mean():.0%} without",
        ),
        control(
            "residual",
            "residual connections alone, their branch divided by the root of the depth",
            f"{deepest} layers: {last[RESIDUAL, PLAIN].mean():.0%} without batch norm, "
            f"{last[RESIDUAL, NORMALISED].mean():.0%} with",
            numbers={f"residual {n}": last[RESIDUAL, n].tolist() for n in NETWORKS},
        ),
        control(
            "rates",
            f"the best rate of {deepest} layers",
            "; ".join(
                f"{kind} {n}: "
                + rate_in_words(_best(records, settings, kind, n, deepest), settings.rates)
                for kind in TRAINED
                for n in NETWORKS
            ),
        ),
    ]


def _judge_gradients(records: Sequence[Record], deepest: int) -> Row:
    changes = {(k, n): change(records, k, n) for k in (SIGMOID, TANH, RELU) for n in NETWORKS}
    kept = [
        Test(
            f"{kind}: |log10 of the change of the gradient|, without - with batch norm",
            np.abs(changes[kind, PLAIN]) - np.abs(changes[kind, NORMALISED]),
            DECADES,
        )
        for kind in (SIGMOID, TANH, RELU)
    ]
    factors = ", ".join(
        f"{kind} ×{10 ** changes[kind, NORMALISED].mean():.2g} with, "
        f"×{10 ** changes[kind, PLAIN].mean():.2g} without"
        for kind in (SIGMOID, TANH, RELU)
    )
    growth = 10 ** (changes[RELU, NORMALISED].mean() / (deepest - 2))
    return claim(
        "gradients keep size",
        '"helps with exploding/vanishing gradient problems"; may lead the layer Jacobians "to '
        'have singular values close to 1" (a conjecture)',
        "Raschka; Ioffe & Szegedy 2015, section 3.3",
        *kept,
        found=f"second against last of {deepest} layers, before training: {factors}; nearer "
        "to 1, in this order, by",
        numbers={"growth_a_layer": growth, "growth_yang": YANG},
    )


def _best(
    records: Sequence[Record], settings: DepthSettings, kind: str, network: str, depth: int
) -> float:
    return best_rate(records, _name(kind, network, depth), settings.rates)


def _percent(kind: str, accuracy: np.ndarray) -> str:
    """Means over seeds of accuracy (seeds, depths)."""
    return f"{kind} {', '.join(f'{mean:.0%}' for mean in accuracy.mean(0))}"


def draw(records: Sequence[Record], settings: DepthSettings) -> Figure:
    """Gradients by layer, accuracy by depth, and the sweeps; ReLU on the left."""
    figure = narrow(8.4)
    axes = figure.subplots(3, 2, sharey="row", height_ratios=(1.3, 1, 1))
    for column, kinds in enumerate(((RELU, RESIDUAL), (SIGMOID, TANH))):
        for kind in kinds:
            for network in NETWORKS:
                _draw_gradients(axes[0, column], records, kind, network)
                if kind in TRAINED:
                    _draw_accuracy(axes[1, column], records, settings, kind, network)
                    _draw_rates(axes[2, column], records, settings, kind, network)
    _draw_yang(axes[0, 0], records, settings.depths[-1])
    _label(axes, settings)
    return figure


def _draw_gradients(ax: Axes, records: Sequence[Record], kind: str, network: str) -> None:
    color, line = LOOKS[f"{kind} {network}"]
    norms = gradients(records, kind, network)
    layers = np.arange(1, norms.shape[1] + 1)
    short = f"{kind}, {network.replace('batch norm', 'BN')}"
    draw_band(ax, layers, norms, color, short, line)


def _draw_yang(ax: Axes, records: Sequence[Record], depth: int) -> None:
    """Yang's growth from the last layer backwards."""
    layers = np.arange(2, depth + 1)
    last = gradients(records, RELU, NORMALISED)[:, -1].mean()
    theory = last * YANG ** (depth - layers)
    ax.plot(layers, 4 * theory, color=GREY, linewidth=1.2)
    third = depth // 3
    place = layers[third], 4 * theory[third]
    words = f"×{YANG:.2f} a layer\n(Yang)"
    ax.annotate(words, place, (2, 8), color=GREY, textcoords="offset points", fontsize=9)


def _draw_accuracy(
    ax: Axes, records: Sequence[Record], settings: DepthSettings, kind: str, network: str
) -> None:
    color, line = LOOKS[f"{kind} {network}"]
    found = accuracies(records, settings, kind, network)
    draw_band(ax, np.array(settings.depths), found, color, f"{kind} {network}", line)
    ax.plot(settings.depths, found.mean(0), "o", color=color, markersize=4)


def _draw_rates(
    ax: Axes, records: Sequence[Record], settings: DepthSettings, kind: str, network: str
) -> None:
    color, line = LOOKS[f"{kind} {network}"]
    name = _name(kind, network, settings.depths[-1])
    draw_sweep(ax, records, name, settings.rates, color, line)


def _label(axes: np.ndarray, settings: DepthSettings) -> None:
    deepest = settings.depths[-1]
    for column, what in enumerate(("ReLU", "sigmoid, tanh")):
        gradient, accuracy, rates = axes[:, column]
        entitle(gradient, f"gradients: {what}", "ab"[column])
        gradient.legend(
            loc="upper left", bbox_to_anchor=(-0.05, -0.22), fontsize=8.5, frameon=False
        )
        gradient.set_xlabel(f"layer, of {deepest}")
        entitle(accuracy, "accuracy by depth", "cd"[column])
        accuracy.set_xscale("log")
        set_ticks(accuracy.xaxis, FixedLocator(settings.depths), ScalarFormatter())
        accuracy.set_xlabel("hidden layers (log scale)")
        entitle(rates, f"{deepest} layers, by rate", "ef"[column])
        rates.set_ylabel("")
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylim(FLOOR, 1e6)
    axes[0, 0].yaxis.set_major_locator(LogLocator(numticks=8))
    axes[0, 0].set_ylabel("norm of a layer's gradient\n(log scale)")
    axes[1, 0].set_ylabel("test accuracy")
    axes[2, 0].set_ylabel("validation accuracy")
    for ax in axes[1:, 0]:
        ax.set_ylim(0, 1.02)
        percent_axis(ax.yaxis)
