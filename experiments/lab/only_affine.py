"""Scale and shift alone train a network whose weights stay random (Frankle et al. 2021).

Networks of three hidden ReLU layers with batch norm start from usual random weights, and gradient
descent changes a part of them only: the scales and shifts of batch norm; as many weights, two drawn
at random of those into each unit; the output layer; or everything. Each part is trained at its own
best rate, chosen on images held out, for every width. The paper: "sufficiently deep ResNets reach
82% (CIFAR-10) and 32% (ImageNet, top-5) accuracy in this configuration, far higher than when
training an equivalent number of randomly chosen parameters elsewhere in the network", and "around a
third of the random features" is disabled.

Counted as disabled is a unit that no test image gets through its ReLU, or whose scale is below 0.01
in size. Here networks are small and trained for seconds: with 1,024 units a layer they would take
a good half hour on two cores, and the paper's own setting, ResNets of up to hundreds of layers on
CIFAR-10, weeks.

**It was shortened, to save time, after its outcome had been looked at once**: the quick preset had
400 steps and has 200, and every grid had four rates and has three.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from bnjax.training import TrainState
from experiments.common.data import NUM_CLASSES, Dataset, hold_out
from experiments.common.histories import final
from experiments.common.loop import Examples, Metrics, variables_of
from experiments.common.metrics import test_metrics
from experiments.common.models import lecun_mlp
from experiments.common.panels import legend_above, near_best
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    draw_band,
    entitle,
    narrow,
    set_ticks,
    stretch_accuracy,
)
from experiments.common.rates import SGD, set_rate
from experiments.common.records import Record, series
from experiments.common.scales import draw_percentiles, norm_names, percentiles
from experiments.common.settings import Settings as CommonSettings
from experiments.common.sweep import at_rate, best_rate, best_trial, draw_sweep, rate_in_words
from experiments.common.trials import Trial, training
from experiments.common.verdicts import PLAIN_NUMBER, Row, Test, claim, control

AFFINE, WEIGHTS, OUTPUT, ALL = "scale, shift", "random weights", "output layer", "everything"
FAR = 0.05  # of test accuracy, for what is "far higher"
PARTS = (AFFINE, WEIGHTS, OUTPUT, ALL)
COLORS: dict[str, str] = dict(zip(PARTS, (BLUE, ORANGE, GREEN, GREY), strict=True))
STYLES: dict[str, str] = dict(zip(PARTS, ("-", "--", "-.", ":"), strict=True))
MARKERS: dict[str, str] = dict(zip(PARTS, "osD^", strict=True))
HIDDEN_LAYERS = 3
A_UNIT = 2  # weights in place of one scale and one shift
ACCURACY_TICKS = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
DISABLED = 0.01  # a scale below that
SOURCE = "Frankle, Schwab & Morcos 2021"


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings of all networks."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    widths: tuple[int, ...] = (64, 256)
    rates: tuple[float, ...] = (0.1, 0.5, 2.5)  # of the output layer and everything
    few_rates: tuple[float, ...] = (4.0, 20.0, 100.0)  # of as few as scale and shift

    def rates_of(self, part: str) -> tuple[float, ...]:
        """The grid that a part's rate is chosen from."""
        return self.few_rates if part in (AFFINE, WEIGHTS) else self.rates


PRESETS = {
    "quick": Settings(steps=200, eval_every=10),
    "long": Settings(data="mnist", steps=500, eval_every=50, widths=(64, 256, 512)),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a width, part and rate; those of one width share their compiled programs."""
    data, made = hold_out(data), []
    for width in settings.widths:
        model = lecun_mlp((width,) * HIDDEN_LAYERS, batch_norm=True, activation=nn.relu)
        for part in PARTS:
            for rate in settings.rates_of(part):
                name = at_rate(trial_name(part, width), rate)
                options = {"evaluate": evaluate_with_features, "prepare": train_part(part, rate)}
                made.append(training(name, model, MASKED_SGD, data, settings, **options))
    return made


def trial_name(part: str, width: int) -> str:
    """Such as "output layer, width 64"."""
    return f"{part}, width {width}"


class Masked(NamedTuple):
    """Which parameters are trained."""

    mask: Any  # like the parameters, 1 where they are trained and 0 elsewhere


def masked() -> optax.GradientTransformation:
    """Gradients times a mask that is part of the state, and ones at first."""

    def init(params: Any) -> Masked:
        return Masked(jax.tree.map(jnp.ones_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Masked]:
        del params
        return jax.tree.map(jnp.multiply, updates, state.mask), state

    return optax.GradientTransformation(init, update)


MASKED_SGD = optax.chain(masked(), SGD)


def train_part(part: str, rate: float) -> Callable[[TrainState], TrainState]:
    """A `prepare` of `train_seeds`: only `part` of the parameters is trained, at this rate."""

    def prepare(states: TrainState) -> TrainState:
        states = set_rate(rate)(states)
        keys = jax.random.split(jax.random.key(0), len(states.step))
        mask = jax.vmap(partial(mask_of, part))(keys, states.params)
        opt_state: Any = states.opt_state
        return states.replace(opt_state=(Masked(mask), *opt_state[1:]))

    return prepare


def mask_of(part: str, key: jax.Array, params: dict[str, Any]) -> dict[str, Any]:
    """1 where a parameter belongs to the part, 0 elsewhere; `key` draws the random weights."""
    ours = {AFFINE: "BatchNorm", OUTPUT: f"Dense_{HIDDEN_LAYERS}", ALL: ""}.get(part)
    if ours is None:
        return _two_a_unit(key, params)
    return {
        layer: jax.tree.map(jnp.ones_like if layer.startswith(ours) else jnp.zeros_like, leaves)
        for layer, leaves in params.items()
    }


def _two_a_unit(key: jax.Array, params: dict[str, Any]) -> dict[str, Any]:
    """1 at two weights into each hidden unit, in place of one scale and one shift."""
    mask = jax.tree.map(jnp.zeros_like, params)
    for number in range(HIDDEN_LAYERS):
        kernel = params[f"Dense_{number}"]["kernel"]
        order = jax.random.uniform(jax.random.fold_in(key, number), kernel.shape)
        ranks = order.argsort(0).argsort(0)
        mask[f"Dense_{number}"]["kernel"] = (ranks < A_UNIT).astype(kernel.dtype)
    return mask


def evaluate_with_features(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, the share of units that are `disabled`, and the scales of the layers."""
    images, labels = test
    variables = variables_of(state)
    applied: Any = model.apply(variables, images, train=False, mutable=["intermediates"])
    logits, seen = applied
    found, off = test_metrics(logits, labels), []
    inputs = seen["intermediates"]["activation_input"]
    for number, (name, before) in enumerate(zip(norm_names(state.params), inputs, strict=True), 1):
        scale = state.params[name]["scale"]
        off.append((jnp.abs(scale) < DISABLED) | (before <= 0).all(0))
        found |= percentiles(f"scale_{number}", scale)
    return found | {"disabled": jnp.mean(jnp.concatenate(off))}


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    narrowest, widest = min(settings.widths), max(settings.widths)
    names = best_trials(records, settings, widest)
    accuracy = {p: final(records, names[p], "test_accuracy") for p in PARTS}
    chance = 1 / NUM_CLASSES
    small = final(records, best_trials(records, settings, narrowest)[AFFINE], "test_accuracy")
    disabled = {p: series(records, names[p], "disabled")[1] for p in (AFFINE, ALL)}
    scored = {p: f"{accuracy[p].mean():.1%}" for p in PARTS}
    return [
        claim(
            "surprisingly accurate",
            '"freezing all weights at their random initializations ... leads to surprisingly high '
            'performance"',
            f"{SOURCE}, abstract",
            Test(
                "test accuracy of scale and shift - the middle of chance and everything",
                accuracy[AFFINE] - (chance + accuracy[ALL]) / 2,
            ),
            found=f"width {widest}: {scored[AFFINE]}, {scored[ALL]} with everything trained, "
            f"{scored[OUTPUT]} with the {OUTPUT} alone",
        ),
        claim(
            "more than other weights",
            '"far higher than when training an equivalent number of randomly chosen parameters '
            'elsewhere in the network"',
            f"{SOURCE}, abstract",
            Test(
                "test accuracy of scale and shift - of as many random weights",
                accuracy[AFFINE] - accuracy[WEIGHTS],
            ),
            Test(
                f"the same, less {100 * FAR:g} points", accuracy[AFFINE] - accuracy[WEIGHTS] - FAR
            ),
            found=f"width {widest}: {scored[AFFINE]}, {scored[WEIGHTS]}",
        ),
        claim(
            "better with more units",
            "more random features to scale and shift, in wider networks, give a higher accuracy",
            SOURCE,
            Test(
                f"test accuracy of scale and shift, width {widest} - width {narrowest}",
                accuracy[AFFINE] - small,
            ),
            found=f"{accuracy[AFFINE].mean():.1%} at width {widest}, {small.mean():.1%} at "
            f"{narrowest}",
        ),
        claim(
            "disables a third",
            '"by naturally learning to disable around a third of the random features"',
            f"{SOURCE}, abstract",
            Test(
                "share of units disabled at the end - 1/3, within 1/10",
                disabled[AFFINE][:, -1] - 1 / 3,
                PLAIN_NUMBER,
                within=0.1,
            ),
            found=f"width {widest}: {disabled[AFFINE][:, -1].mean():.0%} disabled, "
            f"{disabled[AFFINE][:, 0].mean():.0%} at first; "
            f"{disabled[ALL][:, -1].mean():.0%} with everything trained",
        ),
        _best_of_each(records, settings),
    ]


def _best_of_each(records: Sequence[Record], settings: Settings) -> Row:
    found = []
    for width in settings.widths:
        names = best_trials(records, settings, width)
        scores = [final(records, names[part], "test_accuracy").mean() for part in PARTS]
        words = (f"{part} {score:.1%}" for part, score in zip(PARTS, scores, strict=True))
        found.append(f"width {width}: {', '.join(words)}")
    rates = (_rate_in_words(records, settings, part) for part in PARTS)
    what = "the output layer alone, and everything, for comparison"
    return control("other parts", what, f"{'; '.join(found)}; at the widest {', '.join(rates)}")


def _rate_in_words(records: Sequence[Record], settings: Settings, part: str) -> str:
    rates = settings.rates_of(part)
    best = best_rate(records, trial_name(part, max(settings.widths)), rates)
    return f"{rate_in_words(best, rates)} for {part}"


def best_trials(records: Sequence[Record], settings: Settings, width: int) -> dict[str, str]:
    """Of each part the trial at its best rate."""
    return {
        part: best_trial(records, trial_name(part, width), settings.rates_of(part))
        for part in PARTS
    }


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Accuracy by step and by width, the sweeps at the widest, and what scales became."""
    figure = narrow(6.2)
    axes = figure.subplots(2, 2)
    widest = max(settings.widths)
    names = best_trials(records, settings, widest)
    for part, name in names.items():
        steps, accuracy = series(records, name, "test_accuracy")
        draw_band(axes[0, 0], steps, accuracy, COLORS[part], part, STYLES[part])
        network, rates = trial_name(part, widest), settings.rates_of(part)
        draw_sweep(axes[1, 0], records, network, rates, COLORS[part], STYLES[part])
    stretch_accuracy(axes[0, 0], 0.09, 0.992)
    axes[0, 0].set_xlabel("training step")
    entitle(axes[0, 0], f"width {widest}", "a")
    legend_above(figure, axes[0, 0], 4)
    near_best(axes[1, 0])
    entitle(axes[1, 0], f"by rate, width {widest}", "c")
    _draw_widths(axes[0, 1], records, settings)
    _draw_scales(axes[1, 1], records, names)
    return figure


def _draw_widths(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    for part in PARTS:
        trials = [best_trials(records, settings, width)[part] for width in settings.widths]
        accuracy = np.stack([final(records, name, "test_accuracy") for name in trials], 1)
        draw_band(ax, np.array(settings.widths), accuracy, COLORS[part], part, STYLES[part])
        ax.plot(settings.widths, accuracy.mean(0), MARKERS[part], color=COLORS[part])
    ax.set(xscale="log", yscale="logit", xlabel="units a layer", ylabel="accuracy (logit scale)")
    set_ticks(ax.xaxis, FixedLocator(settings.widths), "{x:,.0f}")
    set_ticks(ax.yaxis, FixedLocator(ACCURACY_TICKS), PercentFormatter(1, decimals=0))
    entitle(ax, "at the end, by width", "b")


def _draw_scales(ax: Axes, records: Sequence[Record], names: dict[str, str]) -> None:
    for layer in range(1, HIDDEN_LAYERS + 1):
        for beside, part in ((-0.15, AFFINE), (0.15, ALL)):
            metric, color = f"scale_{layer}", COLORS[part]
            options = {"marker": MARKERS[part]}
            draw_percentiles(ax, layer + beside, records, names[part], metric, color, **options)
    for level in (0, 1):
        ax.axhline(level, color=GREY, linewidth=0.9, linestyle=":")
    ax.set_xticks(range(1, HIDDEN_LAYERS + 1))
    ax.set(xlim=(0.5, HIDDEN_LAYERS + 0.5), xlabel="hidden layer", ylabel="scale, 1 at first")
    entitle(ax, "trained scales", "d")
