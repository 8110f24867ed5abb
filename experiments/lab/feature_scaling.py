"""Features of unlike scale make a ravine, and standardising them rounds it (Lee; Ng).

Two pixels tell whether a digit is even or odd, by a linear model of two weights whose loss is
mean((x w - t)^2) / 2, a parabola. **One of both pixels is multiplied by 100**, so that the features
are as unlike as the lectures have them; pixels as they are make a ravine too, a far shallower one,
which stands beside it. A seed is a pair of pixels and the weights at the start.

Descent on a parabola needs no loop: after k steps of rate r the weights are
best + (1 - r H)^k (first - best), H the Hessian. It comes closer with rates below
2 / (largest eigenvalue of H), of which each input gets the same share, and has arrived where the
loss above the least is 1 % of what the best weights gain over weights of zero.

Batch norm of the features is the same as standardising them, up to its epsilon: an identity.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import bnjax
from experiments.common.data import Dataset
from experiments.common.histories import first, geometric_mean
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    YELLOW,
    draw_dots,
    entitle,
    narrow,
    set_ticks,
)
from experiments.common.records import Record, series
from experiments.common.settings import Settings as CommonSettings
from experiments.common.trials import Trial, once
from experiments.common.verdicts import TIMES, Row, Test, claim, control, identity

RAVINE, RAW = "one pixel times 100", "pixels as they are"
STANDARDISED, NORMALISED = "standardised", "batch norm"
INPUTS = (RAVINE, RAW, STANDARDISED, NORMALISED)
LEAST_STD = 0.2  # of a pixel that may be drawn: one that is almost always white tells nothing
CLOSE = 0.01  # loss above the least, in units of what the best weights gain over zero weights
SHOWN_SEED = 0  # of the contours

COLORS = {RAVINE: ORANGE, RAW: YELLOW, STANDARDISED: GREEN, NORMALISED: BLUE}
STYLES = {RAVINE: "--", RAW: "-.", STANDARDISED: "-", NORMALISED: ":"}
MARKERS = {RAVINE: "s", RAW: "D", STANDARDISED: "o", NORMALISED: "^"}


@dataclass(frozen=True)
class Settings(CommonSettings):
    """`learning_rate` is a share of the largest stable one; `steps` are those drawn."""

    scale: float = 100.0  # of the second pixel

    @property
    def rate_in_words(self) -> str:
        """Such as "75% of the largest stable learning rate"."""
        return f"{self.learning_rate:.0%} of the largest stable learning rate"


PRESETS = {
    "quick": Settings("digits", 20, 100_000, 1000, learning_rate=0.75),
    "long": Settings("mnist", 50, 100_000, 10_000, learning_rate=0.75),
}


class Bowl:
    """The loss  mean((x w - t)^2) / 2  of two weights, and descent on it.

    Args:
      x: inputs (n, 2).
      t: targets (n,).
      first: weights at the start (2,).
    """

    def __init__(self, x: np.ndarray, t: np.ndarray, first: np.ndarray):
        x = x.astype(np.float64)
        self.hessian = x.T @ x / len(x)
        self.slopes, self._axes = np.linalg.eigh(self.hessian)
        self.best = np.linalg.solve(self.hessian, x.T @ t / len(x))
        self._away = (first - self.best) @ self._axes  # along the axes of the ellipses
        self.gain = quadratic(self.hessian, self.best)  # of the best weights over zero weights

    @property
    def stable_rate(self) -> float:
        """With larger rates descent moves away."""
        return 2 / float(self.slopes[-1])

    def weights(self, rate: float, steps: np.ndarray) -> np.ndarray:
        """After each of `steps` (n,) steps of gradient descent, (n, 2)."""
        left = (1 - rate * self.slopes) ** steps[:, None]
        return self.best + (left * self._away) @ self._axes.T

    def excess(self, rate: float, steps: np.ndarray) -> np.ndarray:
        """The loss above the least after each of `steps` (n,), in units of the gain."""
        return quadratic(self.hessian, self.weights(rate, steps) - self.best) / self.gain

    def arrival(self, rate: float) -> int:
        """The first step with an excess of at most `CLOSE`; from step to step it falls."""
        early, late = -1, 1
        while self.excess(rate, np.array([late]))[0] > CLOSE:
            early, late = late, 2 * late
        while late - early > 1:
            middle = (early + late) // 2
            there = self.excess(rate, np.array([middle]))[0] <= CLOSE
            early, late = (early, middle) if there else (middle, late)
        return late


def quadratic(hessian: np.ndarray, away: np.ndarray) -> np.ndarray:
    """The loss at a distance `away` (..., 2) from the minimum, (...)."""
    return (away @ hessian * away).sum(-1) / 2


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial an input."""
    return [once(inputs, partial(_descend, inputs, settings, data)) for inputs in INPUTS]


def draw_problem(
    seed: int, settings: Settings, data: Dataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two pixels x (n, 2) of n images, targets (n,) and first weights (2,)."""
    rng = np.random.default_rng(seed)
    images, labels = data.train
    chosen = rng.choice(len(images), settings.batch_size, replace=False)
    pixels = rng.choice(np.flatnonzero(images.std(0) > LEAST_STD), 2, replace=False)
    return images[chosen][:, pixels], 1.0 - 2 * (labels[chosen] % 2), rng.standard_normal(2)


def prepare(inputs: str, x: np.ndarray, scale: float) -> np.ndarray:
    """What the linear model gets to see of the pixels x (n, 2)."""
    if inputs == RAW:
        return x
    x = x * np.array([1, scale])
    if inputs == STANDARDISED:
        return (x - x.mean(0)) / x.std(0)
    if inputs == NORMALISED:
        stats = bnjax.init_batch_stats(2)
        return np.asarray(bnjax.batch_norm(x.astype(np.float32), None, None, stats, train=True)[0])
    return x


def _descend(inputs: str, settings: Settings, data: Dataset) -> Iterator[Record]:
    shown = np.unique([0, *np.geomspace(1, settings.steps, 100).astype(int)])
    for seed in range(settings.seeds):
        x, t, first = draw_problem(seed, settings, data)
        bowl = Bowl(prepare(inputs, x, settings.scale), t, first)
        rate = settings.learning_rate * bowl.stable_rate
        facts = {
            "condition_number": float(np.linalg.cond(bowl.hessian)),
            "stable_rate": bowl.stable_rate,
            "arrived": max(bowl.arrival(rate), 1),
            "hessian": bowl.hessian.tolist(),
            "best": bowl.best.tolist(),
            "gain": float(bowl.gain),
        }
        path = zip(shown, bowl.weights(rate, shown), bowl.excess(rate, shown), strict=True)
        for step, w, excess in path:
            record = {"step": int(step), "w1": float(w[0]), "w2": float(w[1])}
            yield {"seed": seed, "excess": float(excess)} | record | (facts if step == 0 else {})


# Judgement


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    times = f"one of two pixels times {settings.scale:g}"
    condition = {inputs: fact(records, inputs, "condition_number") for inputs in INPUTS}
    rate = {inputs: fact(records, inputs, "stable_rate") for inputs in INPUTS}
    steps = {inputs: fact(records, inputs, "arrived") for inputs in INPUTS}

    def ratio(of: str, values: dict[str, np.ndarray], over: str, under: str) -> Test:
        what = {RAVINE: times, STANDARDISED: STANDARDISED}
        of = f"log of {of}, {what[over]} / {what[under]}"
        return Test(of, np.log(values[over] / values[under]), TIMES)

    def found(values: dict[str, np.ndarray], unit: str = "") -> str:
        rounded, ravine = _mean(values[STANDARDISED]), _mean(values[RAVINE])
        return f"{rounded} {unit}standardised, {ravine} with one pixel times {settings.scale:g}"

    return [
        claim(
            "standardising rounds it",
            "unlike slopes make a landscape hard to descend; normalised, contours are round",
            "Lee; Ng",
            ratio("the condition number of the Hessian", condition, RAVINE, STANDARDISED),
            found=f"condition number {found(condition)}",
        ),
        claim(
            "larger rates are stable",
            "a much larger learning rate can be used",
            "Ng",
            ratio("the largest stable rate", rate, STANDARDISED, RAVINE),
            found=found(rate),
        ),
        claim(
            "arrives sooner",
            "normalising inputs speeds up learning",
            "Ng; Lee",
            ratio(
                f"steps at {settings.learning_rate:.0%} of that rate", steps, RAVINE, STANDARDISED
            ),
            found=found(steps, "steps "),
        ),
        control(
            "pixels as they are",
            f"the same pixels, none of them multiplied by {settings.scale:g}",
            f"condition number {_mean(condition[RAW])}, {_mean(steps[RAW])} steps",
        ),
        identity(
            "batch norm: the same",
            "batch norm of the features standardises them, up to its epsilon",
            f"condition number {_mean(condition[NORMALISED])}, {_mean(steps[NORMALISED])} steps; "
            f"in {int((steps[NORMALISED] == steps[STANDARDISED]).sum())} of {settings.seeds} pairs "
            "there in the same step as standardised features",
            "Lee",
        ),
    ]


def fact(records: Sequence[Record], inputs: str, name: str) -> np.ndarray:
    """What was logged once a seed, (seeds,)."""
    return first(records, inputs, name)


def _mean(values: np.ndarray) -> str:
    """The geometric mean, to three digits."""
    return f"{float(f'{geometric_mean(values):.3g}'):,g}"


# Drawing


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Contours and paths above; how the loss falls and the condition numbers below."""
    figure = narrow(6.6)
    axes = figure.subplots(2, 2)
    for ax, inputs, letter in zip(axes[0], (RAVINE, STANDARDISED), "ab", strict=True):
        _draw_contours(ax, records, inputs, settings, letter)
    _draw_descent(axes[1, 0], records)
    _draw_condition(axes[1, 1], records)
    return figure


def _draw_contours(
    ax: Axes, records: Sequence[Record], inputs: str, settings: Settings, letter: str
) -> None:
    """The loss over both weights, on axes of the same unit, and the path of one seed."""
    chosen = [r for r in records if (r["network"], r["seed"]) == (inputs, SHOWN_SEED)]
    hessian, best = (np.array(chosen[0][name]) for name in ("hessian", "best"))
    path = np.array([(r["w1"], r["w2"]) for r in chosen])
    half = 1.2 * np.abs(path - best).max()
    first, second = (np.linspace(b - half, b + half, 300) for b in best)
    loss = quadratic(hessian, np.stack(np.meshgrid(first, second), -1) - best)
    levels = np.geomspace(1e-3, 1e7, 21)  # above the least
    ax.contour(first, second, loss / chosen[0]["gain"], levels, colors=[GREY], linewidths=0.6)
    ax.plot(*path.T, ".-", color=COLORS[inputs], linewidth=1.2, markersize=5)
    ax.plot(*path[0], "o", color=COLORS[inputs], markersize=8)
    ax.plot(*best, "*", color="black", markersize=11)
    ax.set(aspect="equal", xlabel="weight $w_1$", ylabel="weight $w_2$")
    ax.grid(False)
    name = inputs.replace("100", f"{settings.scale:g}")
    entitle(ax, f"{name}:\n{chosen[0]['arrived']:,} steps to the star", letter)


def _draw_descent(ax: Axes, records: Sequence[Record]) -> None:
    """The loss against steps, the geometric mean over seeds in their range."""
    for inputs in INPUTS:
        steps, excess = series(records, inputs, "excess")
        later = steps > 0
        steps, excess = steps[later], np.maximum(excess[:, later], 1e-6)
        color, style = COLORS[inputs], STYLES[inputs]
        ax.fill_between(steps, excess.min(0), excess.max(0), color=color, alpha=0.15, linewidth=0)
        mean = np.exp(np.log(excess).mean(0))
        width = 3 if inputs == NORMALISED else 1.8  # it lies on another line
        ax.plot(steps, mean, style, color=color, linewidth=width)
    ax.axhline(CLOSE, color=GREY, linewidth=0.9, linestyle=":")
    ax.set(xscale="log", yscale="log", ylim=(1e-4, None))
    set_ticks(ax.xaxis, LogLocator(numticks=4))
    ax.set_xlabel("step (log scale)")
    ax.set_ylabel("loss above the least (log)")
    entitle(ax, "the loss falls", "c")


def _draw_condition(ax: Axes, records: Sequence[Record]) -> None:
    """The condition number of every seed; its marks are the legend of the lines beside it."""
    for place, inputs in enumerate(INPUTS):
        values = fact(records, inputs, "condition_number")
        draw_dots(ax, place, values, COLORS[inputs], marker=MARKERS[inputs])
    ax.set(yscale="log", ylim=(0.8, None))
    labels = ("one\n× 100", "as it\nis", "stan-\ndard-\nised", "batch\nnorm")
    ax.set_xticks(range(len(INPUTS)), labels, fontsize=9)
    for label, inputs in zip(ax.get_xticklabels(), INPUTS, strict=True):
        label.set(color=COLORS[inputs], fontweight="bold")
    ax.set_ylabel("condition number (log)")
    entitle(ax, "length of the ravine", "d")
