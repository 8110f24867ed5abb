"""A smoother loss, not less covariate shift (Santurkar et al. 2018).

Five networks of six layers of ReLUs are trained from the same weights on the same mini-batches, at
every rate of a grid: without batch norm; with it; with noise after it (section 2.1: every
activation is scaled and shifted at random, and otherwise at every step); and with the mean absolute
(l1) or the largest (l-infinity) deviation in place of the standard deviation (section 3.3; there
the norms are of values whose mean is still in them). Weights start at He's scale, so that the
network without batch norm has a fair chance.

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

All of this hangs on the rate. The paper has one; here networks are compared at the same rate too,
by the mean over all rates at which both train. Speeds are compared with each network at its own
fastest rate, by images held out.

The paper's own setting is VGG on CIFAR-10, 15,000 steps of 128 images at rate 0.1, and 10,000 steps
of the deep linear network at rate 1e-6. That, at five rates and from ten seeds, is for an
accelerator; the preset "long" has the fully connected network on CIFAR-10.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterMathtext, LogLocator

from experiments.common.data import Dataset, hold_out
from experiments.common.histories import count_steps, first, last, steps_to_target
from experiments.common.metrics import evaluate
from experiments.common.models import relu_mlp
from experiments.common.plots import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    draw_band,
    entitle,
    log_axis,
    narrow,
    set_ticks,
)
from experiments.common.records import Record, series
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN, MLPSettings, TargetSettings
from experiments.common.sweep import at_rate, best_rate, by_speed, rate_in_words, trained_at
from experiments.common.trials import Trial, once
from experiments.common.verdicts import PLAIN_NUMBER, TIMES, Row, Test, claim
from experiments.lab._deep_linear import descend
from experiments.lab._explore import explore, log_ratios, means
from experiments.lab._landscape_norms import L1, LINF, NOISY, NORMS

PAPER = "Santurkar et al. 2018"
RELU = {network: network for network in NETWORKS}
LINEAR = {network: f"deep linear, {network}" for network in NETWORKS}
SIMILAR, SIMILAR_COSINE = 1.1, 0.05  # a factor, and a difference, that is similar
SAME_SPEED = 1.5  # a factor of steps

BRIEFLY = {NORMALISED: "batch norm", L1: "the l1 norm", LINF: "the l-infinity norm"}
WORDS = {
    "loss_range": "range of the loss along the gradient",
    "change": "largest change of the gradient along itself",
    "beta": "effective beta",
}
LOOKS: dict[str, tuple[str, Any, str]] = {  # colour, line and marker
    PLAIN: (ORANGE, "--", "s"),
    NORMALISED: (BLUE, "-", "o"),
    NOISY: (PINK, "-.", "D"),
    L1: (GREEN, ":", "^"),
    LINF: (SKY, (0, (5, 1, 1, 1, 1, 1)), "v"),
}
LOOKS |= {LINEAR[n]: LOOKS[n] for n in NETWORKS}


@dataclass(frozen=True)
class Settings(MLPSettings, TargetSettings):
    """Settings of all networks, and of what is explored around them."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    targets: ClassVar[dict[str, float]] = {"digits": 0.9, "mnist": 0.95, "cifar10": 0.3}
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    hidden: tuple[int, ...] = (64,) * 6
    init_std: float = 0.18  # He's scale for a ReLU with 64 inputs
    shortest: float = 0.5  # step along the gradient, in learning rates
    longest: float = 4.0
    points: int = 3
    images: int = 1000  # training images that the explored mini-batches are taken from
    linear_rates: tuple[float, ...] = (1e-5, 1e-4, 1e-3)  # of the deep linear network
    linear_steps: int = 80


PRESETS = {
    "quick": Settings(steps=200, batch_size=64, eval_every=10),
    # Without batch norm this network diverges on CIFAR-10 from 0.1 on, in some seeds from 0.03.
    "long": Settings(
        "cifar10", 10, 800, 64, eval_every=25, linear_steps=300, rates=(0.003, 0.01, 0.03, 0.3, 1.0)
    ),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a network and rate, and one of each deep linear network."""
    held = hold_out(data)
    made = []
    for network, norm in NORMS.items():
        model = relu_mlp(settings, norm=norm)
        options = {"evaluate": _measure(network, settings, held)}
        made += trained_at(network, model, settings.rates, held, settings, **options)
    linear = settings.linear_rates, settings.seeds, settings.linear_steps
    return made + [
        once(name, partial(descend, name, n == NORMALISED, *linear)) for n, name in LINEAR.items()
    ]


def _measure(network: str, settings: Settings, data: Dataset) -> Any:
    """An `evaluate` of training: what the claims about this network need, and no more."""
    if network == NOISY:
        return evaluate
    probe = tuple(jnp.asarray(array[: settings.images]) for array in data.train)
    size, reach = settings.batch_size, (settings.shortest, settings.longest, settings.points)
    options = {"batch_size": size, "reach": reach, "shifts": network in NETWORKS}
    return partial(explore, probe=probe, **options)


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    least = settings.target_accuracy / 2
    both = [r for r in settings.rates if all(_end(records, n, r) >= least for n in NETWORKS)]
    linear = [r for r in settings.linear_rates if all(_falls(records, n, r) for n in LINEAR)]
    smaller = partial(_smaller, records, both or settings.rates)
    return [
        smaller(
            "smoother loss",
            '"it makes the optimization landscape significantly smoother"',
            "abstract, Fig. 4a, c",
            ("loss_range", NORMALISED),
            ("beta", NORMALISED),
        ),
        smaller(
            "predictive gradients",
            '"a more predictive and stable behavior of the gradients"',
            "abstract, Fig. 4b",
            ("change", NORMALISED),
        ),
        _shift("shift, deep linear", LINEAR, records, linear or settings.linear_rates),
        _shift("shift, ReLU", RELU, records, both or settings.rates),
        *_speeds(records, settings),
        smaller(
            "others smooth as well",
            '"an improved smoothness of the landscape that is similar to the effect of BatchNorm"',
            "section 3.3",
            ("beta", L1),
            ("beta", LINF),
        ),
    ]


def _end(records: Sequence[Record], network: str, rate: float) -> float:
    return float(last(records, at_rate(network, rate), "test_accuracy").mean())


def _falls(records: Sequence[Record], network: str, rate: float) -> bool:
    history = records, at_rate(LINEAR[network], rate), "loss"
    return bool((last(*history) < first(*history)).all())


def _smaller(
    records: Sequence[Record],
    rates: Sequence[float],
    short: str,
    said: str,
    where: str,
    *pairs: tuple[str, str],
) -> Row:
    """That each metric is smaller with its network than without batch norm."""
    tests, found = [], []
    for metric, network in pairs:
        logs = log_ratios(records, PLAIN, network, metric, rates)
        words, norm = WORDS[metric], BRIEFLY[network]
        of = f"log of the {words}, without / with {norm}, {_mean_over(rates)}"
        tests.append(Test(of, logs.mean(1), TIMES))
        found.append(f"{words} {_spread(np.exp(logs.mean(0)))} times as large without {norm}")
    return claim(short, said, f"{PAPER}, {where}", *tests, found="; ".join(found))


def _shift(
    short: str, names: dict[str, str], records: Sequence[Record], rates: Sequence[float]
) -> Row:
    """Whether batch norm leaves as much covariate shift as there is without it, or more."""
    cosine = {n: means(records, names[n], "shift_cosine", rates) for n in NETWORKS}
    logs = log_ratios(records, names[NORMALISED], names[PLAIN], "shift", rates)
    found = [f"cos(G, G') {_spread(cosine[n].mean(0), '.2f')} {n}" for n in reversed(NETWORKS)]
    found += [f"|G - G'| {_spread(np.exp(logs.mean(0)))} times as large with batch norm"]
    similar = f"for what is similar, {_mean_over(rates)}"
    return claim(
        short,
        '"models with BatchNorm have similar, or even worse, internal covariate shift"',
        f"{PAPER}, Fig. 3",
        Test(
            f"cos(G, G'), without - with batch norm, plus {SIMILAR_COSINE:g} {similar}",
            (cosine[PLAIN] - cosine[NORMALISED]).mean(1) + SIMILAR_COSINE,
            PLAIN_NUMBER,
        ),
        Test(
            f"log of |G - G'|, with / without batch norm, plus log {SIMILAR:g} {similar}",
            logs.mean(1) + np.log(SIMILAR),
            TIMES,
        ),
        found=", ".join(found),
    )


def _speeds(records: Sequence[Record], settings: Settings) -> list[Row]:
    """Noise after batch norm, and other norms, each at its own fastest rate."""
    target, end, same = settings.target_accuracy, settings.steps, float(np.log(SAME_SPEED))
    rates = {n: best_rate(records, n, settings.rates, by_speed(target)) for n in NORMS}
    steps = {n: _steps(records, n, rate, target) for n, rate in rates.items()}

    def faster(what: str, network: str, than: str, more: float = 0.0, **options: Any) -> Test:
        """A network that is never there is not fast, however slow the other is."""
        there = np.where(np.isinf(steps[network]), np.nan, steps[network])
        logs = np.log(np.minimum(steps[than], end)) - np.log(there)
        of = f"log of steps to {target:.0%} test accuracy, {what}"
        return Test(of, logs + more, TIMES, **options)

    def found(*networks: str) -> str:
        words = {n: rate_in_words(rates[n], settings.rates) for n in networks}
        each = (f"{count_steps(steps[n], end)} {n}, {rate}" for n, rate in words.items())
        return f"steps to {target:.0%}: {'; '.join(each)}"

    never = bool(np.isinf(steps[PLAIN]).any())
    return [
        claim(
            "noise: still faster",
            'with noise after it, batch norm "still performs better in terms of training"',
            f"{PAPER}, section 2.1, Fig. 2",
            faster("without batch norm / with noise", NOISY, PLAIN, capped=never),
            found=found(NOISY, PLAIN),
        ),
        claim(
            "noise: as fast",
            "\"the performance difference between models with BatchNorm layers, and 'noisy' "
            'BatchNorm layers is almost non-existent"',
            f"{PAPER}, section 2.1, Fig. 2",
            faster("without noise / with noise", NOISY, NORMALISED, within=same),
            found=found(NOISY, NORMALISED),
        ),
        claim(
            "others as fast",
            '"all the normalization strategies offer comparable performance to BatchNorm"',
            f"{PAPER}, section 3.3",
            *(
                faster(f"batch norm / {n}, plus log {SAME_SPEED:g}", n, NORMALISED, same)
                for n in (L1, LINF)
            ),
            found=found(L1, LINF, NORMALISED),
        ),
    ]


def _steps(records: Sequence[Record], network: str, rate: float, target: float) -> np.ndarray:
    history = series(records, at_rate(network, rate), "test_accuracy")
    return np.maximum(steps_to_target(*history, target), 1)


def _mean_over(rates: Sequence[float]) -> str:
    return f"mean over rates {', '.join(f'{rate:g}' for rate in rates)}"


def _spread(values: np.ndarray, form: str = ".3g") -> str:
    """Such as "2.1 to 8.3", of one mean over seeds a rate."""
    return f"{values.min():{form}} to {values.max():{form}}"


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Everything against the rate: smoothness, covariate shift, and speed."""
    figure = narrow(8.2)
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 1.25))
    panels = (
        ("loss along its gradient", "range of the loss", "loss_range", RELU, settings.rates),
        ("slope of the gradient", "effective beta", "beta", RELU, settings.rates),
        ("shift, deep linear", "cos(G, G')", "shift_cosine", LINEAR, settings.linear_rates),
        ("shift, ReLU", "cos(G, G')", "shift_cosine", RELU, settings.rates),
    )
    for number, (title, label, metric, names, rates) in enumerate(panels):
        ax = figure.add_subplot(grid[number // 2, number % 2])
        for name in names.values():
            _draw_means(ax, records, name, metric, rates)
        if metric != "shift_cosine":
            ax.set_yscale("log")
            set_ticks(ax.yaxis, LogLocator(subs=(1, 2, 5), numticks=20), "{x:g}")
        if names is LINEAR:
            ax.xaxis.set_major_formatter(LogFormatterMathtext())
        ax.set_ylabel(label)
        entitle(ax, title, "abcd"[number])
    _draw_speed(figure.add_subplot(grid[2, :]), records, settings)
    return figure


def _draw_means(
    ax: Axes, records: Sequence[Record], network: str, metric: str, rates: Sequence[float]
) -> None:
    """The mean over training of every seed, against the rate."""
    color, style, marker = LOOKS[network]
    values = means(records, network, metric, rates)
    kept = np.isfinite(values).all(0)
    draw_band(ax, np.array(rates)[kept], values[:, kept], color, network, style)
    ax.plot(np.array(rates)[kept], values[:, kept].mean(0), marker, color=color, markersize=4)
    _rate_axis(ax, rates)


def _draw_speed(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    """Geometric means; a network that does not get there counts as there at the end."""
    rates, end = np.array(settings.rates), settings.steps
    target = settings.target_accuracy
    for network in NORMS:
        color, style, marker = LOOKS[network]
        steps = np.stack([_steps(records, network, rate, target) for rate in rates], 1)
        mean = np.exp(np.log(np.minimum(steps, end)).mean(0))
        look = {"color": color, "linestyle": style, "marker": marker, "label": network}
        ax.plot(rates, mean, **look, linewidth=1.8, markersize=5)
    ax.set_yscale("log")
    set_ticks(ax.yaxis, LogLocator(subs=(1, 2, 5)))
    ax.set_ylabel(f"steps to {target:.0%}")
    _rate_axis(ax, settings.rates)
    ax.set_xlabel(f"learning rate (at {end:,} steps: never there)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.28), ncols=2, frameon=False)
    entitle(ax, "steps to the target, all norms", "e")


def _rate_axis(ax: Axes, rates: Sequence[float]) -> None:
    log_axis(ax, rates, "{x:g}")
    ax.set_xlim(min(rates) / 1.3, max(rates) * 1.3)
    ax.set_xlabel("learning rate")
