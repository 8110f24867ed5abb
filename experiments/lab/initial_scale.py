"""With batch norm, the scale of the first weights matters less (Ioffe & Szegedy 2015; Long).

A perceptron of ReLUs starts from weights drawn by He's rule, which suits it without batch norm, all
of them multiplied by 0.01 to 10. With and without batch norm it is trained by gradient descent at
every rate of a grid, and each network and scale is seen at the rate that suits it best on images
held out: weights of another scale ask for another rate.

Without batch norm a factor counts once a layer: four layers at 0.1 leave a ten-thousandth of the
input and of the gradient, and larger rates do not make up for it. Four layers at 10 ask for rates
some thousand times smaller, which the grid has: without them that network stays at chance. Batch
norm divides the factor out in the hidden layers (`scale_invariance`). What it cannot help is the
last layer, which has none: ten times its usual weights make a network too sure of what it has not
learned yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnjax.training import TrainState
from experiments.common.data import Dataset, hold_out
from experiments.common.histories import final
from experiments.common.models import ACTIVATIONS, MLP
from experiments.common.plots import (
    COLORS,
    STYLES,
    draw_band,
    entitle,
    log_axis,
    narrow,
    stretch_accuracy,
)
from experiments.common.rates import SGD, set_rate
from experiments.common.records import Record
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN, Settings
from experiments.common.sweep import (
    at_rate,
    best_rate,
    best_trial,
    by_accuracy,
    rate_in_words,
)
from experiments.common.trials import Trial, training
from experiments.common.verdicts import Row, Test, claim, control

ROBUST = 0.02  # accuracy within that of the usual scale is as good
ACCURACY_TICKS = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class ScaleSettings(Settings):
    """Settings of both networks."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    hidden: tuple[int, ...] = (64,) * 4
    scales: tuple[float, ...] = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)  # 1 among them
    rates: tuple[float, ...] = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)


PRESETS = {
    "quick": ScaleSettings(steps=300, eval_every=30),
    "long": ScaleSettings(data="mnist", steps=2000, eval_every=100, hidden=(100,) * 4),
}


def trials(settings: ScaleSettings, data: Dataset) -> list[Trial]:
    """One trial a network, scale and rate."""
    data = hold_out(data)
    he = (2 / settings.hidden[0]) ** 0.5
    made = []
    for network in NETWORKS:
        activation, normalised = ACTIVATIONS["ReLU"], network == NORMALISED
        model = MLP(settings.hidden, batch_norm=normalised, activation=activation, init_std=he)
        for scale in settings.scales:
            for rate in settings.rates:
                name = at_rate(_name(network, scale), rate)
                prepare = scaled(scale, set_rate(rate))
                made.append(training(name, model, SGD, data, settings, prepare=prepare))
    return made


def scaled(
    scale: float, then: Callable[[TrainState], TrainState]
) -> Callable[[TrainState], TrainState]:
    """A `prepare` of `train_seeds` that multiplies all weights, not biases, by `scale`."""

    def prepare(states: TrainState) -> TrainState:
        def larger(path: tuple, leaf: jax.Array) -> jax.Array:
            return scale * leaf if path[-1].key == "kernel" else leaf

        params = jax.tree_util.tree_map_with_path(larger, states.params)
        return then(states.replace(params=params))

    return prepare


def _name(network: str, scale: float) -> str:
    return f"{network}, weights ×{scale:g}"


def accuracies(records: Sequence[Record], settings: ScaleSettings, network: str) -> np.ndarray:
    """Test accuracy of each scale at its best rate, (seeds, scales); NaN counts as 0."""
    found = []
    for scale in settings.scales:
        name = _name(network, scale)
        best = best_trial(records, name, settings.rates)
        found.append(np.nan_to_num(final(records, best, "test_accuracy")))
    return np.stack(found, 1)


def judge(records: Sequence[Record], settings: ScaleSettings) -> list[Row]:
    """The rows of the closing table."""
    reached = {network: accuracies(records, settings, network) for network in NETWORKS}
    scales = settings.scales
    usual = scales.index(1.0)
    lost = {n: values[:, [usual]] - values for n, values in reached.items()}
    words = {n: ", ".join(f"{mean:.0%}" for mean in v.mean(0)) for n, v in reached.items()}
    return [
        claim(
            "less care at the start",
            'allows us to "be less careful about initialization"',
            "Ioffe & Szegedy 2015, abstract",
            Test(
                "points of test accuracy lost beside the usual scale, mean over scales, without - "
                "with batch norm",
                lost[PLAIN].mean(1) - lost[NORMALISED].mean(1),
            ),
            found=f"weights × {', '.join(f'{scale:g}' for scale in scales)}: {words[NORMALISED]} "
            f"with, {words[PLAIN]} without; lost less",
        ),
        claim(
            "robust",
            f"robust: not {ROBUST:.0%} of test accuracy lost at the smallest and largest scale",
            "Long",
            *(
                Test(
                    f"with batch norm, test accuracy with weights × 1 less × {scales[index]:g}",
                    lost[NORMALISED][:, index],
                    within=ROBUST,
                )
                for index in (0, -1)
            ),
            found=f"× {scales[0]:g} and × {scales[-1]:g} lose",
        ),
        control("best rates", "the rate of each scale", _rates(records, settings)),
    ]


def _rates(records: Sequence[Record], settings: ScaleSettings) -> str:
    def best(network: str, scale: float) -> str:
        rate = best_rate(records, _name(network, scale), settings.rates)
        return f"× {scale:g} {rate_in_words(rate, settings.rates)}"

    return "; ".join(f"{n}: {', '.join(best(n, s) for s in settings.scales)}" for n in NETWORKS)


def draw(records: Sequence[Record], settings: ScaleSettings) -> Figure:
    """Accuracy by scale, and below the sweep of either network."""
    figure = narrow(6.2)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.2, 1))
    top = figure.add_subplot(grid[0, :])
    for network in NETWORKS:
        found, color = accuracies(records, settings, network), COLORS[network]
        found = found.clip(ACCURACY_TICKS[0] / 2)  # 0 is nowhere on a logit axis
        draw_band(top, np.array(settings.scales), found, color, network, STYLES[network])
        top.plot(settings.scales, found.mean(0), "o", color=color, markersize=4)
    log_axis(top, settings.scales, "{x:g}")
    top.set_xlabel("first weights, times He's (log scale)")
    stretch_accuracy(top, 0.07, 0.995, ticks=ACCURACY_TICKS)
    top.legend(loc="upper left", ncols=2)
    entitle(top, "each at its best rate", "a")
    for column, network in enumerate(NETWORKS):
        ax = figure.add_subplot(grid[1, column])
        _draw_sweep(ax, records, settings, network)
        entitle(ax, network, "bc"[column])
        if column == 0:
            ax.set_ylabel("learning rate")
    return figure


def _draw_sweep(ax: Axes, records: Sequence[Record], settings: ScaleSettings, network: str) -> None:
    """Accuracy on the images held out, in per cent; a frame about the best rate of each scale."""
    scales, rates = settings.scales, settings.rates
    names = [_name(network, scale) for scale in scales]
    scores = np.array(
        [[by_accuracy(records, at_rate(name, rate)).mean() for name in names] for rate in rates]
    )
    ax.imshow(scores, cmap="Blues", vmin=0, vmax=1.5, aspect="auto", origin="lower")
    for (row, column), score in np.ndenumerate(scores):
        chosen = rates[row] == best_rate(records, names[column], rates)
        frame = {"boxstyle": "square,pad=0.2", "fill": False, "linewidth": 1.3 * chosen}
        style = {"ha": "center", "va": "center", "fontsize": 9, "bbox": frame}
        ax.text(column, row, f"{100 * score:.0f}", fontweight="bold" if chosen else None, **style)
    ax.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    ax.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    ax.set_xlabel("weights, times He's")
    ax.grid(False)
