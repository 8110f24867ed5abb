"""Each network at its own best learning rate: a fair comparison, and the sweep it comes from.

Every network is trained with every rate of a grid, from the same weights on the same mini-batches.
Images held out of the training set (`experiments.common.data.hold_out`) choose the rate; test
images then judge what came of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from experiments.common.data import Dataset
from experiments.common.histories import final, steps_to_target
from experiments.common.panels import near_best
from experiments.common.plots import draw_band, entitle, set_ticks
from experiments.common.rates import SGD, set_rate
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial, training

VALIDATION = "validation_accuracy"
Score = Callable[[Sequence[Record], str], np.ndarray]  # of a trial: (seeds,), the larger the better


def at_rate(network: str, rate: float) -> str:
    """The name of a trial, such as "with batch norm, rate 0.3"."""
    return f"{network}, rate {rate:g}"


def trained_at(
    network: str,
    model: nn.Module,
    rates: Sequence[float],
    data: Dataset,
    settings: Settings,
    **kw: Any,
) -> list[Trial]:
    """One trial a rate, by gradient descent; they share their compiled programs.

    `data` should have images held out; `kw` are options of `experiments.common.trials.training`.
    """
    return [
        training(at_rate(network, rate), model, SGD, data, settings, prepare=set_rate(rate), **kw)
        for rate in rates
    ]


def by_accuracy(records: Sequence[Record], trial: str) -> np.ndarray:
    """Accuracy on the images held out, over the last tenth of training; NaN counts as 0."""
    return np.nan_to_num(final(records, trial, VALIDATION))


def by_fit(records: Sequence[Record], trial: str) -> np.ndarray:
    """Training loss over the last tenth of training, -log; the least of all where it diverged."""
    with np.errstate(divide="ignore"):
        return np.nan_to_num(-np.log(final(records, trial, "train_loss")), nan=-np.inf)


def by_speed(target: float) -> Score:
    """How soon the images held out are classified as well as `target`, -log(steps)."""

    def score(records: Sequence[Record], trial: str) -> np.ndarray:
        steps, accuracy = series(records, trial, VALIDATION)
        return -np.log(np.minimum(steps_to_target(steps, accuracy, target), 2 * steps[-1]))

    return score


def best_rate(
    records: Sequence[Record], network: str, rates: Sequence[float], score: Score = by_accuracy
) -> float:
    """The rate with the best mean score over seeds."""
    means = [float(score(records, at_rate(network, rate)).mean()) for rate in rates]
    return rates[int(np.argmax(means))]


def best_trial(
    records: Sequence[Record], network: str, rates: Sequence[float], score: Score = by_accuracy
) -> str:
    """The name of the trial at the best rate."""
    return at_rate(network, best_rate(records, network, rates, score))


def best_trials(
    records: Sequence[Record],
    networks: Iterable[str],
    rates: Sequence[float],
    score: Score = by_accuracy,
) -> dict[str, str]:
    """Of each network the trial at the rate that `score` finds best."""
    return {network: best_trial(records, network, rates, score) for network in networks}


def draw_fits(
    loss: Axes,
    accuracy: Axes,
    records: Sequence[Record],
    rates: Sequence[float],
    looks: Mapping[str, tuple[str, str]],
) -> None:
    """Training loss where each network fits best, and beside it accuracy by rate.

    `looks` are a colour and a line style by network.
    """
    for network, trial in best_trials(records, looks, rates, by_fit).items():
        color, style = looks[network]
        steps, values = series(records, trial, "train_loss")
        draw_band(loss, steps[1:], values[:, 1:], color, network, style)
        draw_sweep(accuracy, records, network, rates, color, style)
    loss.set(yscale="log", xlabel="training step", ylabel="training loss (log scale)")
    set_ticks(loss.yaxis, LogLocator(subs=(1, 2, 5)), "{x:g}")
    entitle(loss, "each where it fits best", "a")
    near_best(accuracy)
    entitle(accuracy, "accuracy by rate", "b")


def rate_in_words(rate: float, rates: Sequence[float]) -> str:
    """Such as "rate 0.3", or "rate 3 (the largest tried)": then a better one may lie beyond."""
    ends = {min(rates): " (the smallest tried)", max(rates): " (the largest tried)"}
    return f"rate {rate:g}{ends.get(rate, '')}"


def draw_sweep(
    ax: Axes,
    records: Sequence[Record],
    network: str,
    rates: Sequence[float],
    color: str,
    linestyle: str = "-",
    chosen: float | None = None,
) -> None:
    """Accuracy on the images held out against the rate, and a ring about the one chosen.

    That is by default the most accurate.
    """
    scores = np.stack([by_accuracy(records, at_rate(network, rate)) for rate in rates], 1)
    draw_band(ax, np.array(rates), scores, color, network, linestyle)
    best = best_rate(records, network, rates) if chosen is None else chosen
    mean = scores.mean(0)[list(rates).index(best)]
    ring(ax, best, mean, color, 9, 2)
    ax.set_xscale("log")
    set_ticks(ax.xaxis, LogLocator(numticks=6), "{x:g}")
    ax.set_xlabel("learning rate (log scale)")
    ax.set_ylabel("validation accuracy")


def ring(
    ax: Axes, x: float, y: float, color: str, size: float = 11, linewidth: float = 1.5
) -> None:
    """About the rate that was chosen."""
    look: dict[str, Any] = {"markerfacecolor": "none", "markeredgewidth": linewidth}
    ax.plot(x, y, "o", color=color, markersize=size, **look)
