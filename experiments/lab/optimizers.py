"""Scale and shift learn under every optimizer (Ng).

Batch norm's scale and shift are parameters like the weights, so whatever optimizer trains those can
train these. A network of three hidden ReLU layers is trained with and without batch norm by
gradient descent, with momentum, by RMSprop and by Adam, from the same weights, on the same
mini-batches. Every pair of optimizer and network is seen at the rate of its own that gets it
soonest to the target accuracy on images held out. Judged is how far scale and shift move from the
ones and zeros they start at, and whether batch norm speeds up training under each optimizer. That
it ends as accurate is shown, but nobody claims it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bnjax.training import TrainState
from experiments.common.data import Dataset, hold_out
from experiments.common.histories import count_steps, final, last, log_speed_up, steps_to_target
from experiments.common.loop import Examples, Metrics
from experiments.common.metrics import evaluate
from experiments.common.models import lecun_mlp
from experiments.common.panels import legend_above
from experiments.common.plots import (
    BLUE,
    COLORS,
    GREEN,
    ORANGE,
    PINK,
    STYLES,
    draw_band,
    draw_dots,
    entitle,
    narrow,
    percent_axis,
    set_ticks,
    stretch_accuracy,
    stretch_steps,
)
from experiments.common.rates import set_rate
from experiments.common.records import Record, series
from experiments.common.scales import norm_names
from experiments.common.settings import NETWORKS, NORMALISED, TargetSettings
from experiments.common.sweep import at_rate, best_rate, by_speed, rate_in_words, ring
from experiments.common.trials import Trial, training
from experiments.common.verdicts import PLAIN_NUMBER, TIMES, Row, Test, claim, control

# Each with the rates it is tried at.
OPTIMIZERS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "SGD": (optax.sgd, (0.03, 0.1, 0.3, 1.0)),
    "momentum": (partial(optax.sgd, momentum=0.9), (0.01, 0.03, 0.1, 0.3)),
    "RMSprop": (optax.rmsprop, (0.001, 0.003, 0.01, 0.03)),
    "Adam": (optax.adam, (0.001, 0.003, 0.01, 0.03)),
}
OWN_COLORS: dict[str, str] = dict(
    zip(OPTIMIZERS, (BLUE, ORANGE, GREEN, PINK), strict=True)
)  # colours
STARTS = {"scale": 1.0, "bias": 0.0}  # Flax's names and first values of scale and shift
MOVED = 0.01  # a root mean square change below this is none
LEAST = 0.8  # accuracy that is drawn


@dataclass(frozen=True)
class Settings(TargetSettings):
    """Settings of all networks, but for the learning rate."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    targets: ClassVar[dict[str, float]] = {"digits": 0.95, "mnist": 0.95, "cifar10": 0.3}
    hidden: tuple[int, ...] = (64, 64, 64)


PRESETS = {
    "quick": Settings(steps=300, eval_every=5),
    "long": Settings(data="mnist", steps=1000, eval_every=50, hidden=(100, 100, 100)),
}


def trial_name(optimizer: str, network: str) -> str:
    """Such as "Adam with batch norm"."""
    return f"{optimizer} {network}"


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial an optimizer, network and rate."""
    data, made = hold_out(data), []
    for (optimizer, (make, rates)), network in product(OPTIMIZERS.items(), NETWORKS):
        model = lecun_mlp(settings.hidden, batch_norm=network == NORMALISED, activation=nn.relu)
        update = optax.inject_hyperparams(make)(learning_rate=0.0)
        for rate in rates:
            name = at_rate(trial_name(optimizer, network), rate)
            options = {"evaluate": evaluate_with_moves, "prepare": set_rate(rate)}
            made.append(training(name, model, update, data, settings, **options))
    return made


def evaluate_with_moves(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, and with batch norm `moved_scale` and `moved_bias`: see `moves`."""
    return evaluate(state, test, model=model) | moves(state.params)


def moves(params: dict[str, dict[str, jax.Array]]) -> Metrics:
    """Root mean square distance of all scales, and of all shifts, from where they started."""
    norms = [params[name] for name in norm_names(params)]
    if not norms:
        return {}
    distances = {n: jnp.concatenate([layer[n] for layer in norms]) - s for n, s in STARTS.items()}
    return {f"moved_{name}": jnp.sqrt(jnp.mean(d**2)) for name, d in distances.items()}


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    names = _best_trials(records, settings)
    return [
        _judge_moves(records, names),
        _judge_speed(records, names, settings),
        _compare_accuracy(records, names, settings),
    ]


def _judge_moves(records: Sequence[Record], names: dict[tuple[str, str], str]) -> Row:
    moved = {o: [_moved(records, names, o, kind) for kind in STARTS] for o in OPTIMIZERS}
    words = (f"{o} {scale.mean():.2f}, {shift.mean():.2f}" for o, (scale, shift) in moved.items())
    tests = (
        Test(
            f"{o}: the smaller root mean square change, of scales or of shifts, - {MOVED}",
            np.minimum(scale, shift) - MOVED,
            PLAIN_NUMBER,
        )
        for o, (scale, shift) in moved.items()
    )
    return claim(
        "all four learn them",
        '"you can also use Adam or RMSprop or momentum in order to update the parameters Beta and '
        'Gamma, not just gradient descent"',
        "Ng",
        *tests,
        found=f"scales and shifts change by {'; '.join(words)}",
    )


def _moved(
    records: Sequence[Record], names: dict[tuple[str, str], str], optimizer: str, kind: str
) -> np.ndarray:
    return last(records, names[optimizer, NORMALISED], f"moved_{kind}")


def _judge_speed(
    records: Sequence[Record], names: dict[tuple[str, str], str], settings: Settings
) -> Row:
    target, end, found, tests = settings.target_accuracy, settings.steps, [], []
    for optimizer in OPTIMIZERS:
        histories = (series(records, names[optimizer, n], "test_accuracy") for n in NETWORKS)
        plain, normalised = (steps_to_target(*history, target) for history in histories)
        what = f"{optimizer}: log of steps to {target:.0%} test accuracy, without / with batch norm"
        ratio, capped = log_speed_up(plain, normalised, end), bool(np.isinf(plain).any())
        tests.append(Test(what, ratio, TIMES, capped=capped))
        found.append(f"{optimizer} {count_steps(normalised, end)}, {count_steps(plain, end)}")
    return claim(
        "faster under all of them",
        'it "also works with gradient descent with momentum, or RMSprop, or Adam", and has "the '
        'effect of speeding up of learning in the whole network"',
        "Ng",
        *tests,
        found=f"steps to {target:.0%} with and without: {'; '.join(found)}",
    )


def _compare_accuracy(
    records: Sequence[Record], names: dict[tuple[str, str], str], settings: Settings
) -> Row:
    found = []
    for optimizer, (_, rates) in OPTIMIZERS.items():
        plain, normalised = (
            f"{final(records, names[optimizer, network], 'test_accuracy').mean():.1%} "
            f"({rate_in_words(_best(records, optimizer, network, settings), rates)})"
            for network in NETWORKS
        )
        found.append(f"{optimizer} {normalised} with, {plain} without")
    return control("accuracy", "test accuracy at the end, with and without", "; ".join(found))


def _best(records: Sequence[Record], optimizer: str, network: str, settings: Settings) -> float:
    score = by_speed(settings.target_accuracy)
    return best_rate(records, trial_name(optimizer, network), OPTIMIZERS[optimizer][1], score)


def _best_trials(records: Sequence[Record], settings: Settings) -> dict[tuple[str, str], str]:
    """The trial at the best rate of every optimizer and network."""
    pairs = product(OPTIMIZERS, NETWORKS)
    return {pair: at_rate(trial_name(*pair), _best(records, *pair, settings)) for pair in pairs}


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Accuracy under each optimizer; the sweeps, and how far scale and shift have moved."""
    figure = narrow(8.2)
    axes = figure.subplots(3, 2, height_ratios=(1, 1, 1.1))
    names = _best_trials(records, settings)
    for optimizer, ax, letter in zip(OPTIMIZERS, axes.flat, "abcd", strict=False):
        for network in NETWORKS:
            steps, accuracy = series(records, names[optimizer, network], "test_accuracy")
            draw_band(ax, steps, accuracy, COLORS[network], network, STYLES[network])
        _label_accuracy(ax, settings)
        entitle(ax, optimizer, letter)
    legend_above(figure, axes[0, 0], 2)
    for ax in axes[:2, 0]:
        ax.set_ylabel("test accuracy (logit)")
    for ax in axes[1]:
        ax.set_xlabel("training step (log scale)")
    _draw_sweeps(axes[2, 0], records, settings)
    _draw_moves(axes[2, 1], records, names)
    return figure


def _label_accuracy(ax: Axes, settings: Settings) -> None:
    """From 80 % on; CIFAR-10 is not as easy."""
    stretch_steps(ax, settings, LogLocator(subs=(1, 3)))
    if settings.target_accuracy > LEAST:
        stretch_accuracy(ax, LEAST, 0.992, "")
    else:
        percent_axis(ax.yaxis)


def _draw_sweeps(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """In the colours of the panel beside; a ring about the rate that is chosen."""
    score = by_speed(settings.target_accuracy)
    for (optimizer, (_, rates)), network in product(OPTIMIZERS.items(), NETWORKS):
        trial, color = trial_name(optimizer, network), OWN_COLORS[optimizer]
        steps = [np.exp(-score(records, at_rate(trial, rate)).mean()) for rate in rates]
        ax.plot(rates, steps, STYLES[network], color=color, marker=".")
        best = int(np.argmin(steps))
        ring(ax, rates[best], steps[best], color, 9)
    ax.set(xscale="log", yscale="log", xlabel="learning rate (log scale)")
    set_ticks(ax.xaxis, LogLocator(numticks=6), "{x:g}")
    set_ticks(ax.yaxis, LogLocator(subs=(1, 2, 5)))
    ax.set_ylabel(f"steps to {settings.target_accuracy:.0%} (log scale)")
    entitle(ax, "rings: fastest; top: never", "e")


def _draw_moves(ax: Axes, records: Sequence[Record], names: dict[tuple[str, str], str]) -> None:
    for place, (optimizer, color) in enumerate(OWN_COLORS.items()):
        for beside, kind, marker in ((-0.2, "scale", "o"), (0.2, "bias", "D")):
            values = _moved(records, names, optimizer, kind)
            draw_dots(ax, place + beside, values, color, width=0.35, marker=marker)
    ax.set_xticks(range(len(OPTIMIZERS)), OPTIMIZERS, rotation=30, ha="right")
    for label, color in zip(ax.get_xticklabels(), OWN_COLORS.values(), strict=True):
        label.set(color=color, fontweight="bold")
    ax.set_ylim(0, None)
    ax.set_ylabel("root mean square change")
    entitle(ax, "scale (●) and shift (◆)", "f")
