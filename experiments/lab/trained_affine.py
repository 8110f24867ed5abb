"""What scale and shift become, and whether they are more than so many more parameters (Raschka).

Batch norm standardises (step 1), then scales and shifts (step 2). Step 2 *can* undo step 1: with
scale = standard deviation, shift = mean, a layer hands its input on as it was. Raschka: whether it
does depends. Ng's quiz: those values are not the optimal ones. Measured is how much is undone::

                sum over units of (scale - sd)^2 + (shift - mean)^2
    share = 1 - ---------------------------------------------------
                     sum over units of (1 - sd)^2 + mean^2

of sd and mean the running averages: 1 if output = input, 0 if scale and shift are as they started,
and below 0 if they moved elsewhere. Once in a classifier of three hidden ReLU layers, at the end of
its training; once in a layer with fixed weights about it, which is to imitate the same layer
without batch norm, so that undoing is what is asked for.

Step 1 + 2 is said to work better than step 1 alone, perhaps for its higher capacity. So a third
network has step 1 alone and as many parameters elsewhere: three more units in the middle layer have
2 x 3 x width weights, as three layers have scales and shifts. A fourth has one scale and one shift
a layer. Test accuracies are compared at the rate that suits each network best on images held out,
and training losses where each is lowest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from bnjax.linen import BatchNorm
from bnjax.training import TrainState
from experiments.common.data import Dataset, hold_out
from experiments.common.histories import final, last
from experiments.common.loop import Examples, Metrics
from experiments.common.metrics import evaluate
from experiments.common.models import lecun_mlp
from experiments.common.norms import batch_norm
from experiments.common.panels import legend_above
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    draw_dots,
    entitle,
    narrow,
    percent_axis,
    set_ticks,
)
from experiments.common.records import Record, per_seed
from experiments.common.scales import draw_percentiles, norm_names, percentiles
from experiments.common.settings import Settings as CommonSettings
from experiments.common.sweep import (
    best_trials,
    by_accuracy,
    by_fit,
    draw_fits,
    trained_at,
)
from experiments.common.trials import Trial, once
from experiments.common.verdicts import PLAIN_NUMBER, TIMES, Row, Test, claim, control, identity

BOTH, ALONE, WIDER = "steps 1 + 2", "step 1 alone", "step 1, wider"
PAIR = "one pair a layer"
NETWORKS = (BOTH, ALONE, WIDER, PAIR)
COLORS: dict[str, str] = dict(zip(NETWORKS, (BLUE, ORANGE, GREEN, PINK), strict=True))
STYLES: dict[str, str] = dict(zip(NETWORKS, ("-", "--", ":", "-."), strict=True))
MORE_UNITS = 3  # in the middle of three layers: as many weights as scales and shifts in all
IMITATOR = "imitator"
IMITATED_IMAGES, IMITATION_STEPS, IMITATION_RATE = 500, 1000, 0.03


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings of all classifiers; all hidden layers have as many units."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    width: int = 16  # narrow: a network that can fit everything is not short of capacity


PRESETS = {
    "quick": Settings(steps=600, eval_every=20),
    "long": Settings(data="mnist", steps=2000, eval_every=100, width=32),
}


class OnePair(nn.Module):
    """Batch norm with one scale and one shift for all units."""

    use_running_average: bool
    momentum: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `x` (batch, units)."""
        options = {"use_running_average": self.use_running_average, "momentum": self.momentum}
        step1 = BatchNorm(use_scale=False, use_bias=False, dtype=self.dtype, **options)
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * step1(x) + self.param("bias", nn.initializers.zeros, ())


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a network and rate, and the imitator."""
    alone = batch_norm(use_scale=False, use_bias=False)
    norms = {BOTH: batch_norm(), ALONE: alone, WIDER: alone, PAIR: OnePair}
    made = []
    for name, norm in norms.items():
        hidden = _hidden(name, settings.width)
        model = lecun_mlp(hidden, batch_norm=True, activation=nn.relu, norm=norm)
        measure = evaluate_with_undone if name == BOTH else evaluate_with_parameters
        held_out = hold_out(data)
        made += trained_at(name, model, settings.rates, held_out, settings, evaluate=measure)
    return [*made, once(IMITATOR, partial(imitate, settings, data))]


def _hidden(network: str, width: int) -> tuple[int, ...]:
    return width, width + MORE_UNITS * (network == WIDER), width


def evaluate_with_parameters(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, and the number of parameters."""
    number = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return evaluate(state, test, model=model) | {"parameters": jnp.float32(number)}


def evaluate_with_undone(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """The same, and what scale and shift became, in every layer and in all."""
    found, layers = evaluate_with_parameters(state, test, model=model), list[Any]()
    for number, name in enumerate(norm_names(state.params), 1):
        stats = state.batch_stats[name]
        layers.append((state.params[name], stats["mean"], stats["var"]))
        found |= _spread(state.params[name], stats["var"], number)
        found[f"undone_{number}"] = undone(*layers[-1])
    joined: Any = jax.tree.map(lambda *each: jnp.concatenate(each), *layers)
    return found | {"undone": undone(*joined)}


def undone(params: dict[str, jax.Array], mean: jax.Array, var: jax.Array) -> jax.Array:
    """The share of the normalisation that is undone: see the docstring of the module."""
    sd = jnp.sqrt(var + BatchNorm.epsilon)
    left = jnp.sum((params["scale"] - sd) ** 2 + (params["bias"] - mean) ** 2)
    return 1 - left / jnp.sum((1 - sd) ** 2 + mean**2)


def _spread(params: dict[str, jax.Array], var: jax.Array, number: int) -> Metrics:
    sd = jnp.sqrt(var + BatchNorm.epsilon)
    values = {"scale": params["scale"], "bias": params["bias"], "sd": sd}
    found: Metrics = {}
    for name, each in values.items():
        found |= percentiles(f"{name}_{number}", each)
    return found


def imitate(settings: Settings, data: Dataset) -> Iterator[Record]:
    """What scale and shift of the imitator become, a record a seed."""
    images = jnp.asarray(data.train.images[:IMITATED_IMAGES])
    keys = jax.vmap(jax.random.key)(jnp.arange(settings.seeds))
    found = jax.jit(jax.vmap(partial(_imitate, images, settings.width)))(keys)
    yield from per_seed(IMITATION_STEPS, IMITATOR, jax.device_get(found))


def _imitate(images: jax.Array, units: int, key: jax.Array) -> Metrics:
    """Fits scale and shift of  relu(BN(x W)) V  to  relu(x W) V,  W and V random and fixed.

    The columns of W differ up to 16-fold in size, so that there is something to undo.
    """
    keys = jax.random.split(key, 3)
    sizes = 4 ** jax.random.uniform(keys[0], (1, units), minval=-1.0, maxval=1.0)
    first = jax.random.normal(keys[1], (images.shape[1], units)) * sizes
    x = images @ (first * images.shape[1] ** -0.5)
    last = jax.random.normal(keys[2], (units, 10))
    goal = nn.relu(x) @ last
    layer = BatchNorm(use_running_average=False)
    variables = layer.init(key, x)
    optimizer = optax.adam(IMITATION_RATE)

    def loss(params: Any) -> jax.Array:
        y: Any = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.mean((nn.relu(y[0]) @ last - goal) ** 2)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = variables["params"], optimizer.init(variables["params"])
    (params, _), _ = jax.lax.scan(step, start, length=IMITATION_STEPS)
    left = undone(params, x.mean(0), x.var(0))
    return {"undone": left} | _spread(params, x.var(0), 0)


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    best = best_trials(records, NETWORKS, settings.rates, by_accuracy)
    accuracy = {n: final(records, name, "test_accuracy") for n, name in best.items()}
    fitted = best_trials(records, NETWORKS, settings.rates, by_fit)
    loss = {n: np.log(final(records, name, "train_loss")) for n, name in fitted.items()}
    found = {
        n: f"{best[n]}: test accuracy {accuracy[n].mean():.2%}; "
        f"{fitted[n]}: training loss {np.exp(loss[n].mean()):.2g}"
        for n in NETWORKS
    }
    gain = loss[ALONE] - loss[BOTH]  # where it is none, there is nothing to explain
    return [
        claim(
            "1 + 2 beat 1 alone",
            "steps 1 + 2 work better than step 1 alone",
            "Raschka",
            Test(
                "test accuracy over the last tenth of training, steps 1 + 2 - step 1 alone",
                accuracy[BOTH] - accuracy[ALONE],
            ),
            Test(
                "log of the training loss over the last tenth, step 1 alone / steps 1 + 2",
                gain,
                TIMES,
            ),
            found=f"{found[BOTH]}; {found[ALONE]}",
        ),
        claim(
            "for its parameters",
            "perhaps for more parameters, a higher capacity",
            "Raschka",
            Test(
                "log of the training loss, step 1 alone / with as many parameters, less half of "
                "what step 2 brings, or what it brings if that is less",
                np.minimum(loss[ALONE] - loss[WIDER] - gain / 2, gain),
                TIMES,
            ),
            found=found[WIDER],
        ),
        _judge_undone(records, best[BOTH]),
        control("one pair a layer", "one scale and shift for all units of a layer", found[PAIR]),
        _count(records, best),
    ]


def _judge_undone(records: Sequence[Record], classifier: str) -> Row:
    classified, imitated = (last(records, n, "undone") for n in (classifier, IMITATOR))
    return claim(
        "whether undone depends",
        "scale and shift can undo step 1; whether they do depends; those values are not optimal",
        "Raschka; Ng's quiz",
        Test("share undone by the imitator - 1/2", imitated - 0.5, PLAIN_NUMBER),
        Test("1/2 - share undone by the classifier", 0.5 - classified, PLAIN_NUMBER),
        found=f"undone {imitated.mean():.0%} where undoing is asked for, "
        f"{classified.mean():.0%} in the classifier",
    )


def _count(records: Sequence[Record], names: dict[str, str]) -> Row:
    """Two vectors of the size of a bias a layer, and three units that have as many weights."""
    numbers = {n: int(last(records, name, "parameters")[0]) for n, name in names.items()}
    words = ", ".join(f"{network}: {number:,}" for network, number in numbers.items())
    what = "two vectors of the size of the bias are added a layer; one pair a unit"
    return identity("parameters", what, words, "Raschka; Ng's quiz")


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Loss at the best rates, their sweeps; what scales became, and how much they undo."""
    figure = narrow(6.2)
    axes = figure.subplots(2, 2)
    looks = {n: (COLORS[n], STYLES[n]) for n in NETWORKS}
    draw_fits(axes[0, 0], axes[0, 1], records, settings.rates, looks)
    legend_above(figure, axes[0, 0], 4)
    classifier = best_trials(records, NETWORKS, settings.rates, by_accuracy)[BOTH]
    _draw_scales(axes[1, 0], records, classifier)
    _draw_undone(axes[1, 1], records, classifier)
    return figure


PLACES = ("asked\nto", "layer\n1", "layer\n2", "layer\n3")


def _draw_scales(ax: Axes, records: Sequence[Record], classifier: str) -> None:
    """Scales beside the standard deviations that would undo step 1, all but a tenth of them."""
    for place in range(len(PLACES)):
        trial = classifier if place else IMITATOR
        sd, scale = f"sd_{place}", f"scale_{place}"
        draw_percentiles(ax, place - 0.15, records, trial, sd, GREY, marker="s")
        draw_percentiles(ax, place + 0.15, records, trial, scale, BLUE)
    ax.axhline(1, color=GREY, linewidth=0.9, linestyle=":")
    ax.set_xticks(range(len(PLACES)), PLACES)
    ax.set_yscale("log")
    set_ticks(ax.yaxis, FixedLocator((0.1, 0.2, 0.5, 1, 2, 5, 10)), "{x:g}")
    ax.set_ylabel("scale, sd (dotted: first)")
    entitle(ax, "dots: scale, squares: sd", "c")


def _draw_undone(ax: Axes, records: Sequence[Record], classifier: str) -> None:
    for place in range(len(PLACES)):
        trial, metric = (classifier, f"undone_{place}") if place else (IMITATOR, "undone")
        draw_dots(ax, place, last(records, trial, metric), BLUE if place else GREEN)
    for level in (0, 1):
        ax.axhline(level, color=GREY, linewidth=0.9, linestyle=":")
    ax.set_xticks(range(len(PLACES)), PLACES)
    percent_axis(ax.yaxis)
    ax.set_ylabel("normalisation undone")
    entitle(ax, "undone if asked to", "d")
