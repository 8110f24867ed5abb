"""Scale and shift learn under every optimizer (Ng).

Batch norm's scale and shift are parameters like the weights, so whatever optimizer trains those can
train these. A multilayer perceptron of ReLUs is trained with and without batch norm by gradient
descent, gradient descent with momentum, RMSprop and Adam, from the same weights, on the same
mini-batches. Judged is how far scale and shift move from the ones and zeros they start at, and
whether the network is as accurate as without batch norm, and gets there sooner.

Each optimizer has its own usual learning rate, the same with and without batch norm: 0.1 for
gradient descent; 0.01 with a momentum of 0.9, which adds up to ten times that; and 0.001, the
default of most libraries, for RMSprop and Adam.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from bnjax.training import TrainState
from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    Interval,
    as_factor,
    as_percent,
    overall,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.data import Dataset
from experiments.common.histories import final_mean, log_speed_up, steps_to_target
from experiments.common.loop import Batch, Metrics
from experiments.common.metrics import evaluate
from experiments.common.models import MLP
from experiments.common.plots import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    WIDTH_INCHES,
    data_and_seeds,
    draw_band,
)
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial, training

PLAIN, NORMALISED = NETWORKS = ("without batch norm", "with batch norm")
COLORS, STYLES = {PLAIN: ORANGE, NORMALISED: BLUE}, {PLAIN: "--", NORMALISED: "-"}
OPTIMIZERS: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    "SGD": (optax.sgd, 0.1),
    "momentum": (partial(optax.sgd, momentum=0.9), 0.01),
    "RMSprop": (optax.rmsprop, 0.001),
    "Adam": (optax.adam, 0.001),
}
STARTS = {"scale": 1.0, "bias": 0.0}  # Flax's names and first values of scale and shift
MOVES = (("scale", "scale, from 1", GREEN, "-"), ("bias", "shift, from 0", PINK, "--"))
MOVED = 0.01  # a root mean square change below this is none
MARGIN = 0.005  # of accuracy, within which one network is as good as another
TARGET_ACCURACY = {"digits": 0.9, "mnist": 0.95, "cifar10": 0.3}


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """Settings of all networks; `learning_rate` has no effect here."""

    hidden: tuple[int, ...] = (64, 64, 64)

    @property
    def target_accuracy(self) -> float:
        """The test accuracy for which steps are counted."""
        return TARGET_ACCURACY[self.data]


PRESETS = {
    "quick": OptimizerSettings(steps=1500, eval_every=10),
    "paper": OptimizerSettings(data="mnist", steps=10_000, eval_every=50, hidden=(100, 100, 100)),
}


def trials(settings: OptimizerSettings, data: Dataset) -> list[Trial]:
    """One trial an optimizer and network."""
    made = []
    for (name, (make, rate)), network in product(OPTIMIZERS.items(), NETWORKS):
        model = MLP(
            settings.hidden,
            batch_norm=network == NORMALISED,
            activation=nn.relu,
            init_std=settings.hidden[0] ** -0.5,
        )
        made.append(
            training(
                trial_name(name, network),
                model,
                make(rate),
                data,
                settings,
                evaluate=evaluate_with_moves,
            )
        )
    return made


def trial_name(optimizer: str, network: str) -> str:
    """Such as "Adam with batch norm"."""
    return f"{optimizer} {network}"


def evaluate_with_moves(state: TrainState, test: Batch, *, model: nn.Module) -> Metrics:
    """Test metrics, and with batch norm `moved_scale` and `moved_bias`: see `moves`."""
    return evaluate(state, test, model=model) | moves(state.params)


def moves(params: dict[str, dict[str, jax.Array]]) -> Metrics:
    """Root mean square distance of all scales, and of all shifts, from where they started."""
    norms = [layer for name, layer in params.items() if name.startswith("BatchNorm")]
    if not norms:
        return {}
    distances = {n: jnp.concatenate([layer[n] for layer in norms]) - s for n, s in STARTS.items()}
    return {f"moved_{name}": jnp.sqrt(jnp.mean(d**2)) for name, d in distances.items()}


def judge(records: Sequence[Record], settings: OptimizerSettings) -> list[Claim]:
    """The rows of the closing table."""
    return [judge_moves(records), judge_accuracy(records), judge_speed(records, settings)]


def histories(
    records: Sequence[Record], optimizer: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps (evaluations,) and test accuracy (seeds, evaluations) without and with batch norm."""
    steps, plain = series(records, trial_name(optimizer, PLAIN), "test_accuracy")
    _, normalised = series(records, trial_name(optimizer, NORMALISED), "test_accuracy")
    return steps, plain, normalised


def judge_moves(records: Sequence[Record]) -> Claim:
    """Whether scale and shift leave their first values under every optimizer."""
    names = product(OPTIMIZERS, STARTS)
    moved = {(o, n): _last(records, o, f"moved_{n}") for o, n in names}
    found = ", ".join(
        f"{o} {moved[o, 'scale'].mean():.2f} and {moved[o, 'bias'].mean():.2f}" for o in OPTIMIZERS
    )
    return Claim(
        claim="scale and shift move away from 1 and 0 under every optimizer",
        paper="gradient descent, momentum, RMSprop and Adam update them like weights (Ng)",
        found=f"root mean square change of scale and shift: {found}",
        verdict=overall(verdict(paired_interval(each - MOVED)) for each in moved.values()),
        test=f"each change minus {MOVED}. {VERDICT_RULE}. In part, if that differs between them",
        numbers={f"{o}, {name}": each.tolist() for (o, name), each in moved.items()},
    )


def _last(records: Sequence[Record], optimizer: str, name: str) -> np.ndarray:
    """The metric `name` with batch norm at the end, (seeds,)."""
    return series(records, trial_name(optimizer, NORMALISED), name)[1][:, -1]


def judge_accuracy(records: Sequence[Record]) -> Claim:
    """Whether batch norm ends as accurate as none, or more, under every optimizer."""
    gains = {optimizer: _gain(records, optimizer) for optimizer in OPTIMIZERS}
    found = ", ".join(
        f"{optimizer} {with_interval(as_percent(paired_interval(gain)), '+.1f')}"
        for optimizer, gain in gains.items()
    )
    return Claim(
        claim="as accurate as without batch norm or more, under every optimizer",
        paper="it works with all of them (Ng)",
        found=f"points of test accuracy with minus without: {found}",
        verdict=overall(verdict(paired_interval(gain + MARGIN)) for gain in gains.values()),
        test=(
            "difference of accuracy over the last tenth of training, with minus without, plus the "
            f"{100 * MARGIN:g} points that count as equal. {VERDICT_RULE}. In part, if that "
            "differs between optimizers"
        ),
        numbers={optimizer: gain.tolist() for optimizer, gain in gains.items()},
    )


def _gain(records: Sequence[Record], optimizer: str) -> np.ndarray:
    """Accuracy with minus without batch norm at the end, (seeds,)."""
    steps, plain, normalised = histories(records, optimizer)
    return final_mean(steps, normalised) - final_mean(steps, plain)


def judge_speed(records: Sequence[Record], settings: OptimizerSettings) -> Claim:
    """Whether batch norm needs fewer steps under every optimizer."""
    target = settings.target_accuracy
    speeds: dict[str, Interval] = {}
    for optimizer in OPTIMIZERS:
        steps, *accuracies = histories(records, optimizer)
        plain, normalised = (steps_to_target(steps, each, target) for each in accuracies)
        speeds[optimizer] = paired_interval(log_speed_up(plain, normalised, steps[-1]))
    found = ", ".join(
        f"{optimizer} {with_interval(as_factor(logs), '#.3g')}"
        for optimizer, logs in speeds.items()
    )
    return Claim(
        claim="faster than without batch norm, under every optimizer",
        paper="it speeds learning up (Ng)",
        found=f"times fewer steps to {target:.0%}: {found}",
        verdict=overall(verdict(logs) for logs in speeds.values()),
        test=(
            f"log ratio of steps to {target:.0%} test accuracy without and with, never reached "
            f"counting as the last. {VERDICT_RULE}. In part, if that differs between optimizers"
        ),
        numbers={optimizer: list(as_factor(logs)) for optimizer, logs in speeds.items()},
    )


def draw(records: Sequence[Record], settings: OptimizerSettings) -> Figure:
    """Accuracy above, how far scale and shift have moved below; a column an optimizer."""
    figure = Figure(figsize=(WIDTH_INCHES, 5.2), layout="constrained")
    axes = figure.subplots(2, len(OPTIMIZERS), sharex=True, sharey="row")
    for column, (optimizer, (_, rate)) in enumerate(OPTIMIZERS.items()):
        steps, *accuracies = histories(records, optimizer)
        for network, accuracy in zip(NETWORKS, accuracies, strict=True):
            draw_band(axes[0, column], steps, accuracy, COLORS[network], network, STYLES[network])
        for name, label, color, style in MOVES:
            _, moved = series(records, trial_name(optimizer, NORMALISED), f"moved_{name}")
            draw_band(axes[1, column], steps, moved, color, label, style)
        axes[0, column].set_title(f"{optimizer}, rate {rate:g}", fontweight="bold", loc="left")
    _label(axes, settings)
    figure.suptitle("Scale and shift learn under every optimizer", fontsize=13, fontweight="bold")
    figure.supxlabel(f"training step, log scale ({data_and_seeds(settings)})", fontsize=10)
    return figure


def _label(axes: np.ndarray, settings: OptimizerSettings) -> None:
    corner = axes[0, 0]
    corner.set_xscale("log")
    corner.set_xlim(min(settings.eval_every, settings.steps / 2), settings.steps)
    corner.xaxis.set_major_locator(LogLocator())
    corner.xaxis.set_minor_locator(NullLocator())
    corner.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    corner.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    corner.set_ylim(0, 1)
    corner.set_ylabel("test accuracy")
    axes[1, 0].set_ylim(0, None)
    axes[1, 0].set_ylabel("change since the start\n(root mean square)")
    for ax in axes[:, 0]:
        ax.legend(loc=("lower right" if ax is corner else "upper left"), fontsize=8, framealpha=1)
