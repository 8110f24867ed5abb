"""A smoother loss, not less covariate shift (Santurkar et al. 2018).

Five networks of six layers of ReLUs are trained from the same weights on the same mini-batches, at
every rate of a grid: without batch norm; with it; with noise after it (section 2.1: every
activation is scaled and shifted at random, and otherwise at every step, so its distribution jumps
about); and with the mean absolute (l1) or the largest (l-infinity) deviation in place of the
standard deviation (section 3.3; there the norms are of values whose mean is still in them). Weights
start at He's scale, so that the network without batch norm has a fair chance.

Every so often the loss L of a fresh mini-batch, the same for all networks and seeds, is explored
from the weights w along its gradient g, with eta from 1/2 to 4 learning rates (Fig. 4)::

    loss            L(w - eta g)                            its range over eta
    predictiveness  |grad L(w - eta g) - g|                 the largest
    smoothness      |grad L(w - eta g) - g| / |eta g|       the largest: effective beta

Covariate shift is that of Definition 2.1 (Fig. 3), the mean over all layers but the first of::

    |G_i - G'_i|    and    cos(G_i, G'_i)

where G_i is the gradient of layer i's weights, and G'_i the same after the layers before it have
taken their step. The paper measures it in VGG, and in a deep linear network, where it says most:
that is `experiments.lab._deep_linear`, trained here as well.

All of this hangs on the rate. The paper has one for both networks; here both networks are compared
at the same rate too, and the verdict is on the mean over all rates at which both train. Speeds are
compared with each network at its own fastest rate, by images held out.

The paper's own setting is VGG on CIFAR-10, 15,000 steps of 128 images at rate 0.1, and 10,000 steps
of the deep linear network at rate 1e-6. That, at five rates and from ten seeds, is for an
accelerator; the preset "long" has the fully connected network on CIFAR-10.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatterMathtext, LogLocator

from bnjax.linen import BatchNorm
from bnjax.training import TrainState
from experiments.common.data import Dataset, hold_out
from experiments.common.histories import count_steps, steps_to_target
from experiments.common.loop import Examples, Metrics
from experiments.common.loss import make_loss_fn
from experiments.common.metrics import evaluate
from experiments.common.models import MLP, Norm
from experiments.common.plots import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    draw_band,
    entitle,
    narrow,
    set_ticks,
)
from experiments.common.records import Record, series
from experiments.common.settings import NETWORKS as PAIR
from experiments.common.settings import NORMALISED, PLAIN, TargetSettings
from experiments.common.sweep import at_rate, best_rate, by_speed, rate_in_words, trained_at
from experiments.common.trials import Trial, once
from experiments.common.verdicts import PLAIN_NUMBER, TIMES, Row, Test, claim
from experiments.lab._deep_linear import descend
from experiments.lab._explore import along_gradient, covariate_shift
from experiments.lab._landscape_norms import LpBatchNorm, NoisyBatchNorm

PAPER = "Santurkar et al. 2018"
NOISY, L1, LINF = "with noise after it", "l1 norm", "l-infinity norm"
NORMS: dict[str, Norm | None] = {
    PLAIN: None,
    NORMALISED: BatchNorm,
    NOISY: NoisyBatchNorm,
    L1: partial(LpBatchNorm, 1),
    LINF: partial(LpBatchNorm, inf),
}
LINEAR = {network: f"deep linear, {network}" for network in PAIR}
SIMILAR, SIMILAR_COSINE = 1.1, 0.05  # a factor, and a difference, that is similar
SAME_SPEED = 1.5  # a factor of steps

COLORS = {PLAIN: ORANGE, NORMALISED: BLUE, NOISY: PINK, L1: GREEN, LINF: SKY}
STYLES = {PLAIN: "--", NORMALISED: "-", NOISY: "-.", L1: ":", LINF: (0, (5, 1, 1, 1, 1, 1))}
MARKERS = {PLAIN: "s", NORMALISED: "o", NOISY: "D", L1: "^", LINF: "v"}


@dataclass(frozen=True)
class Settings(TargetSettings):
    """Settings of all networks, and of what is explored around them."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.95, "cifar10": 0.3}
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    hidden: tuple[int, ...] = (64,) * 6
    init_std: float = 0.18  # He's scale for a ReLU with 64 inputs
    momentum: float = 0.9
    shortest: float = 0.5  # step along the gradient, in learning rates
    longest: float = 4.0
    points: int = 3
    images: int = 1000  # training images that the explored mini-batches are taken from
    linear_rates: tuple[float, ...] = (1e-5, 1e-4, 1e-3)  # of the deep linear network
    linear_steps: int = 80


PRESETS = {
    "quick": Settings(steps=200, batch_size=64, eval_every=10),
    "long": Settings(data="cifar10", steps=800, batch_size=64, eval_every=25, linear_steps=300),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a network and rate, and one of each deep linear network."""
    held = hold_out(data)
    made = []
    for network, norm in NORMS.items():
        options = {"evaluate": measure(network, settings, held)} if network != NOISY else {}
        model = make_model(norm, settings)
        made += trained_at(network, model, settings.rates, held, settings, **options)
    return made + [once(LINEAR[n], partial(_linear, n, settings)) for n in PAIR]


def make_model(norm: Norm | None, settings: Settings) -> MLP:
    """Six layers of ReLUs."""
    return MLP(
        hidden=settings.hidden,
        batch_norm=norm is not None,
        norm=norm or BatchNorm,
        activation=nn.relu,
        init_std=settings.init_std,
        momentum=settings.momentum,
    )


def measure(network: str, settings: Settings, data: Dataset) -> Any:
    """An `evaluate` of training: what the claims about this network need, and no more."""
    rows = slice(settings.images)
    probe = jnp.asarray(data.train.images[rows]), jnp.asarray(data.train.labels[rows])
    return partial(explore, probe=probe, settings=settings, shifts=network in PAIR)


def explore(
    state: TrainState,
    test: Examples,
    *,
    model: nn.Module,
    probe: Examples,
    settings: Settings,
    shifts: bool = True,
) -> Metrics:
    """What is measured around the weights of `state`, and the test metrics.

    Args:
      state: weights and running statistics.
      test: images (n, pixels) and labels (n,), for the test accuracy.
      model: the network.
      probe: training images and labels, from which a mini-batch is drawn anew for every step.
      settings: sizes and steps.
      shifts: whether to measure covariate shift as well.
    """
    images, labels = probe
    key = jax.random.fold_in(jax.random.key(0), state.step)
    size = min(settings.batch_size, len(labels))
    rows = jax.random.choice(key, len(labels), (size,), replace=False)
    batch = {"images": images[rows], "labels": labels[rows]}
    loss_fn, collections = make_loss_fn(model), {"batch_stats": state.batch_stats}

    @jax.jit  # traced once
    @jax.value_and_grad
    def loss_and_grad(params: Any) -> jax.Array:
        return loss_fn(params, collections, batch, True)[0]

    _, grads = loss_and_grad(state.params)
    rate: Any = optax.tree.get(state.opt_state, "learning_rate")
    etas = rate * jnp.geomspace(settings.shortest, settings.longest, settings.points)
    found = along_gradient(loss_and_grad, state.params, grads, etas) | evaluate(
        state, test, model=model
    )
    if shifts:
        around = (loss_and_grad, state.params, grads, rate)
        found |= covariate_shift(*around, layers(state.params), kernels)
    return found


def layers(params: Any) -> Any:
    """The layer, from 0 at the input, of every parameter; a norm belongs to that it follows."""
    return jax.tree.map_with_path(lambda path, _: _number(path[0].key), params)


def kernels(params: Any) -> list[jax.Array]:
    """The weights of every layer, from the input on, each (1, numbers)."""
    dense = [name for name in params if name.startswith("Dense")]
    return [params[name]["kernel"].reshape(1, -1) for name in sorted(dense, key=_number)]


def _number(name: str) -> int:
    """3 of Flax's "Dense_3"."""
    return int(name.rpartition("_")[2])


def _linear(network: str, settings: Settings):
    steps, rates = settings.linear_steps, settings.linear_rates
    every = max(steps // 4, 1)
    for rate, record in descend(network == NORMALISED, rates, settings.seeds, steps, every):
        yield record | {"network": at_rate(LINEAR[network], rate)}


# Judgement


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    both = [r for r in settings.rates if all(_trains(records, n, r, settings) for n in PAIR)]
    linear = [r for r in settings.linear_rates if all(_descends(records, n, r) for n in PAIR)]
    both, linear = both or list(settings.rates), linear or list(settings.linear_rates)
    return [
        _smoother("smoother loss", records, both),
        _predictive("predictive gradients", records, both),
        _shift("shift, deep linear", LINEAR, records, linear),
        _shift("shift, ReLU", dict(zip(PAIR, PAIR, strict=True)), records, both),
        *_speeds(records, settings),
        _smoother("others smooth as well", records, both, (L1, LINF)),
    ]


def _smoother(
    short: str,
    records: Sequence[Record],
    rates: Sequence[float],
    networks: Sequence[str] = (NORMALISED,),
) -> Row:
    said = '"it makes the optimization landscape significantly smoother"'
    names = {NORMALISED: "batch norm", L1: "the l1 norm", LINF: "the l-infinity norm"}
    own = networks == (NORMALISED,)
    parts = {"loss_range": "range of the loss along the gradient"} if own else {}
    parts |= {"beta": "effective beta"}
    tests, found = [], []
    for network in networks:
        for metric, words in parts.items():
            logs = _log_ratios(records, PLAIN, network, metric, rates)
            of = f"log of the {words}, without / with {names[network]}, {_mean_over(rates)}"
            tests.append(Test(of, logs.mean(1), TIMES))
            found.append(f"{words} {_spread(logs)} times smaller with {names[network]}")
    if not own:
        said = (
            '"an improved smoothness of the landscape that is similar to the effect of BatchNorm"'
        )
    source = f"{PAPER}, {'abstract, Fig. 4a, c' if own else 'section 3.3'}"
    return claim(short, said, source, *tests, found="; ".join(found))


def _predictive(short: str, records: Sequence[Record], rates: Sequence[float]) -> Row:
    logs = _log_ratios(records, PLAIN, NORMALISED, "change", rates)
    of = "log of the largest change of the gradient along itself, without / with batch norm"
    return claim(
        short,
        '"a more predictive and stable behavior of the gradients"',
        f"{PAPER}, abstract, Fig. 4b",
        Test(f"{of}, {_mean_over(rates)}", logs.mean(1), TIMES),
        found=f"{_spread(logs)} times smaller",
    )


def _shift(
    short: str, names: dict[str, str], records: Sequence[Record], rates: Sequence[float]
) -> Row:
    """Whether batch norm leaves as much covariate shift as there is without it, or more."""
    cosine = {n: _means(records, names[n], "shift_cosine", rates) for n in PAIR}
    logs = _log_ratios(records, names[NORMALISED], names[PLAIN], "shift", rates)
    margin = f", plus {SIMILAR_COSINE:g} for what is similar"
    found = [
        f"cos(G, G') {' to '.join(_ends(cosine[n].mean(0), '.2f'))} {n}" for n in reversed(PAIR)
    ]
    found += [f"|G - G'| {_spread(logs)} times as large with batch norm"]
    return claim(
        short,
        '"models with BatchNorm have similar, or even worse, internal covariate shift"',
        f"{PAPER}, Fig. 3",
        Test(
            f"cos(G, G'), without - with batch norm{margin}, {_mean_over(rates)}",
            (cosine[PLAIN] - cosine[NORMALISED]).mean(1) + SIMILAR_COSINE,
            PLAIN_NUMBER,
        ),
        Test(
            f"log of |G - G'|, with / without batch norm, plus log {SIMILAR:g} for what is similar,"
            f" {_mean_over(rates)}",
            logs.mean(1) + np.log(SIMILAR),
            TIMES,
        ),
        found=", ".join(found),
    )


def _speeds(records: Sequence[Record], settings: Settings) -> list[Row]:
    """Noise after batch norm, and other norms, each at its own fastest rate."""
    target = settings.target_accuracy
    rates = {n: best_rate(records, n, settings.rates, by_speed(target)) for n in NORMS}
    last = float(settings.steps)
    steps = {n: _steps(records, n, rate, target) for n, rate in rates.items()}
    found = {
        n: f"{count_steps(steps[n], last)} {n}, {rate_in_words(rates[n], settings.rates)}"
        for n in NORMS
    }
    of = f"log of steps to {target:.0%} test accuracy"
    most = float(np.log(SAME_SPEED))

    def faster(network: str, than: str) -> np.ndarray:
        """A network that is never there is not fast, however slow the other is."""
        there = np.where(np.isinf(steps[network]), np.nan, steps[network])
        return np.log(np.minimum(steps[than], last)) - np.log(there)

    as_fast = [
        Test(
            f"{of}, batch norm / {n}, plus log {SAME_SPEED:g}", faster(n, NORMALISED) + most, TIMES
        )
        for n in (L1, LINF)
    ]
    still_faster = Test(
        f"{of}, without batch norm / with noise",
        faster(NOISY, PLAIN),
        TIMES,
        capped=bool(np.isinf(steps[PLAIN]).any()),
    )
    return [
        claim(
            "noise: still faster",
            'with noise after it, batch norm "still performs better in terms of training"',
            f"{PAPER}, section 2.1, Fig. 2",
            still_faster,
            found=f"steps to {target:.0%}: {found[NOISY]}; {found[PLAIN]}",
        ),
        claim(
            "noise: as fast",
            "\"the performance difference between models with BatchNorm layers, and 'noisy' "
            'BatchNorm layers is almost non-existent"',
            f"{PAPER}, section 2.1, Fig. 2",
            Test(f"{of}, without noise / with noise", faster(NOISY, NORMALISED), TIMES, most),
            found=f"steps to {target:.0%}: {found[NOISY]}; {found[NORMALISED]}",
        ),
        claim(
            "others as fast",
            '"all the normalization strategies offer comparable performance to BatchNorm"',
            f"{PAPER}, section 3.3",
            *as_fast,
            found=f"steps to {target:.0%}: {'; '.join(found[n] for n in (L1, LINF, NORMALISED))}",
        ),
    ]


def _trains(records: Sequence[Record], network: str, rate: float, settings: Settings) -> bool:
    _, accuracy = series(records, at_rate(network, rate), "test_accuracy")
    return bool(accuracy[:, -1].mean() >= settings.target_accuracy / 2)


def _descends(records: Sequence[Record], network: str, rate: float) -> bool:
    _, loss = series(records, at_rate(LINEAR[network], rate), "loss")
    return bool((loss[:, -1] < loss[:, 0]).all())


def _steps(records: Sequence[Record], network: str, rate: float, target: float) -> np.ndarray:
    history = series(records, at_rate(network, rate), "test_accuracy")
    return np.maximum(steps_to_target(*history, target), 1)


def _history(records: Sequence[Record], trial: str, metric: str) -> np.ndarray:
    """Of one trial after the first step, (seeds, evaluations)."""
    if metric == "loss_range":
        high, low = (_history(records, trial, f"loss_{end}") for end in ("high", "low"))
        return high - low
    steps, values = series(records, trial, metric)
    return values[:, steps > 0]


def _means(
    records: Sequence[Record], network: str, metric: str, rates: Sequence[float]
) -> np.ndarray:
    """Mean over evaluations, (seeds, rates)."""
    found = [_history(records, at_rate(network, rate), metric).mean(1) for rate in rates]
    return np.stack(found, 1)


def _log_ratios(
    records: Sequence[Record], over: str, under: str, metric: str, rates: Sequence[float]
) -> np.ndarray:
    """Mean over evaluations of log(over / under), (seeds, rates)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [
            np.log(_history(records, at_rate(over, rate), metric))
            - np.log(_history(records, at_rate(under, rate), metric))
            for rate in rates
        ]
    return np.stack([values.mean(1) for values in logs], 1)


def _mean_over(rates: Sequence[float]) -> str:
    return f"mean over rates {', '.join(f'{rate:g}' for rate in rates)}"


def _ends(values: np.ndarray, form: str) -> list[str]:
    return [f"{values.min():{form}}", f"{values.max():{form}}"]


def _spread(logs: np.ndarray) -> str:
    """Over rates, such as "2.1 to 8.3"."""
    return " to ".join(_ends(np.exp(logs.mean(0)), ".3g"))


# Drawing


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Everything against the rate: smoothness, covariate shift, and speed."""
    figure = narrow(8.2)
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 1.25))
    places = [grid[0, 0], grid[0, 1], grid[1, 0], grid[1, 1], grid[2, :]]
    loss, beta, linear, relu, speed = (figure.add_subplot(place) for place in places)
    own = {n: (COLORS[n], STYLES[n], MARKERS[n]) for n in PAIR}
    for ax, metric in ((loss, "loss_range"), (beta, "beta"), (relu, "shift_cosine")):
        for network, look in own.items():
            _draw_means(ax, records, network, metric, settings.rates, look)
    for network, look in own.items():
        _draw_means(linear, records, LINEAR[network], "shift_cosine", settings.linear_rates, look)
    for ax in (loss, beta):
        ax.set_yscale("log")
        set_ticks(ax.yaxis, LogLocator(subs=(1, 2, 5), numticks=20), "{x:g}")
    linear.xaxis.set_major_formatter(LogFormatterMathtext())
    loss.set_ylabel("range of the loss")
    beta.set_ylabel("effective beta")
    for ax in (linear, relu):
        ax.set_ylabel("cos(G, G')")
    _draw_speed(speed, records, settings)
    entitle(loss, "loss along its gradient", "a")
    entitle(beta, "slope of the gradient", "b")
    entitle(linear, "shift, deep linear", "c")
    entitle(relu, "shift, ReLU", "d")
    entitle(speed, "steps to the target, all norms", "e")
    speed.legend(loc="upper center", bbox_to_anchor=(0.45, -0.28), ncols=2, frameon=False)
    return figure


def _draw_means(
    ax: Axes,
    records: Sequence[Record],
    trial: str,
    metric: str,
    rates: Sequence[float],
    look: tuple[str, Any, str],
) -> None:
    """The mean over training of every seed, against the rate."""
    color, style, marker = look
    values = _means(records, trial, metric, rates)
    kept = np.isfinite(values).all(0)
    draw_band(ax, np.array(rates)[kept], values[:, kept], color, trial, style)
    ax.plot(np.array(rates)[kept], values[:, kept].mean(0), marker, color=color, markersize=4)
    _rate_axis(ax, rates)


def _draw_speed(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """Geometric means; a network that does not get there counts as there at the end."""
    rates, last = np.array(settings.rates), settings.steps
    target = settings.target_accuracy
    for network in NORMS:
        steps = np.stack([_steps(records, network, rate, target) for rate in rates], 1)
        mean = np.exp(np.log(np.minimum(steps, last)).mean(0))
        look = {"color": COLORS[network], "linestyle": STYLES[network], "marker": MARKERS[network]}
        ax.plot(rates, mean, **look, label=network, linewidth=1.8, markersize=5)
    ax.set_yscale("log")
    set_ticks(ax.yaxis, LogLocator(subs=(1, 2, 5)))
    ax.set_ylabel(f"steps to {target:.0%}")
    _rate_axis(ax, settings.rates)
    ax.set_xlabel(f"learning rate (at {last:,} steps: never there)")


def _rate_axis(ax: Axes, rates: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.set_xlim(min(rates) / 1.3, max(rates) * 1.3)
    set_ticks(ax.xaxis, FixedLocator(list(rates)), "{x:g}")
    ax.set_xlabel("learning rate")
