"""Features of unlike scale make a ravine of the loss; standardising rounds it (Lee; Ng).

What is this experiment's own: a linear model of two weights, so that all of its loss can be drawn.
It tells even digits from odd ones, t = +1 or -1, by two pixels, of which the second is counted in
hundredths, as a price may be in cents:

    y = w1 x1 + w2 x2,   x1 in [0, 1],   x2 in [0, 100],     loss = mean (y - t)^2 / 2

The loss is a bowl with the Hessian  H = mean x x^T.  The square root of its condition number
(largest by smallest eigenvalue) says how many times longer than wide the bowl is, and gradient
descent is stable below the learning rate  2 / largest eigenvalue.  A seed draws the two pixels,
the images and the first weights. The same is done to the standardised pixels, and to what a
batch-norm layer makes of the raw ones.

The lectures name no learning rate. Here the largest stable one is found by trying, and every input
is given the same share of its own, so none is slow for a rate that suits another. All images are
one batch: the statistics of batch norm have no noise, and only the shape of the bowl differs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import bnjax
from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    as_factor,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.data import Dataset
from experiments.common.plots import BLUE, GREEN, GREY, ORANGE, WIDTH_INCHES
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial, once

RAW, STANDARDISED, NORMALISED = INPUTS = ("raw pixels", "standardised", "batch norm")
COLORS = {RAW: ORANGE, STANDARDISED: GREEN, NORMALISED: BLUE}
STYLES = {RAW: "-", STANDARDISED: "-", NORMALISED: "--"}
LEAST_STD = 0.2  # of a pixel that may be drawn: one that is almost always white tells nothing
TRIED_STEPS = 300  # to find out whether a learning rate is stable
CLOSE = 0.01  # loss above the least, as a share of what the best weights gain over zero weights
SHOWN_SEED = 0  # of the contours
LEVELS = np.geomspace(1e-3, 1e7, 21)  # of the loss above the least


@dataclass(frozen=True)
class FeatureScalingSettings(Settings):
    """`learning_rate` is a share of the largest stable one; a batch is all images there are."""

    scale: float = 100.0  # of the second pixel


PRESETS = {
    "quick": FeatureScalingSettings("digits", 20, 100_000, 1000, learning_rate=0.75),
    "paper": FeatureScalingSettings("mnist", 50, 100_000, 10_000, learning_rate=0.75),
}


class Bowl:
    """The loss  mean (x w - t)^2 / 2  of two weights.

    Args:
      x: inputs (n, 2).
      t: targets (n,).
    """

    def __init__(self, x: np.ndarray, t: np.ndarray):
        x = x.astype(np.float64)
        self.hessian = x.T @ x / len(x)
        self._pull = x.T @ t / len(x)
        self.best = np.linalg.solve(self.hessian, self._pull)
        self.gain = _quadratic(self.hessian, self.best)  # of the best weights over zero weights

    def excess(self, w: np.ndarray) -> float:
        """The loss at w (2,) above the least, in units of the gain."""
        return float(_quadratic(self.hessian, w - self.best) / self.gain)

    def descend(self, w: np.ndarray, rate: float, steps: int) -> Iterator[np.ndarray]:
        """The weights before each step of gradient descent, and after the last."""
        yield w
        for _ in range(steps):
            w = w - rate * (self.hessian @ w - self._pull)
            yield w


def trials(settings: FeatureScalingSettings, data: Dataset) -> list[Trial]:
    """One trial an input."""
    return [once(inputs, partial(_descend, inputs, settings, data)) for inputs in INPUTS]


def _descend(inputs: str, settings: FeatureScalingSettings, data: Dataset) -> Iterator[Record]:
    for seed in range(settings.seeds):
        x, t, first = draw_problem(seed, settings, data)
        bowl = Bowl(prepare(inputs, x), t)
        stable = largest_stable_rate(bowl, first)
        facts = {
            "condition_number": float(np.linalg.cond(bowl.hessian)),
            "stable_rate": stable,
            "stable_rate_by_hessian": 2 / float(np.linalg.eigvalsh(bowl.hessian)[-1]),
            "hessian": bowl.hessian.tolist(),
            "best": bowl.best.tolist(),
            "gain": float(bowl.gain),
        }
        path = bowl.descend(first, settings.learning_rate * stable, settings.steps)
        for record in _log_path(bowl, path, settings.steps):
            yield {"seed": seed} | record | (facts if record["step"] == 0 else {})


def _log_path(bowl: Bowl, path: Iterator[np.ndarray], steps: int) -> Iterator[Record]:
    """Weights and loss at ever rarer steps; the last record tells when it was `CLOSE`."""
    logged = {0, steps, *np.geomspace(1, steps, 150).astype(int).tolist()}
    arrived = None
    for step, w in enumerate(path):
        if arrived is None and bowl.excess(w) <= CLOSE:
            arrived = step
        if step in logged:
            last = {"arrived": arrived} if step == steps else {}
            yield {"step": step, "w1": w[0], "w2": w[1], "excess": bowl.excess(w)} | last


def draw_problem(
    seed: int, settings: FeatureScalingSettings, data: Dataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two pixels x (n, 2) of n images, targets (n,) and first weights (2,)."""
    rng = np.random.default_rng(seed)
    images, labels = data.train
    chosen = rng.choice(len(images), settings.batch_size, replace=False)
    pixels = rng.choice(np.flatnonzero(images.std(0) > LEAST_STD), 2, replace=False)
    x = images[chosen][:, pixels] * np.array([1, settings.scale])
    return x, 1.0 - 2 * (labels[chosen] % 2), rng.standard_normal(2)


def prepare(inputs: str, x: np.ndarray) -> np.ndarray:
    """What the linear model gets to see of the pixels x (n, 2)."""
    if inputs == STANDARDISED:
        return (x - x.mean(0)) / x.std(0)
    if inputs == NORMALISED:
        y, _ = bnjax.batch_norm(
            x.astype(np.float32), None, None, bnjax.init_batch_stats(2), train=True
        )
        return np.asarray(y)
    return x


def largest_stable_rate(bowl: Bowl, first: np.ndarray) -> float:
    """The largest learning rate, to 0.1 %, with which descent from `first` ends lower."""
    low, high = 1e-9, 1e3
    with np.errstate(over="ignore", invalid="ignore"):
        while high > 1.001 * low:
            middle = np.sqrt(low * high)
            *_, last = bowl.descend(first, middle, TRIED_STEPS)
            stable = bowl.excess(last) < bowl.excess(first)
            low, high = (middle, high) if stable else (low, middle)
    return float(low)


def _quadratic(hessian: np.ndarray, away: np.ndarray) -> np.ndarray:
    """The loss at a distance `away` (..., 2) from the minimum, (...)."""
    return (away @ hessian * away).sum(-1) / 2


def judge(records: Sequence[Record], settings: FeatureScalingSettings) -> list[Claim]:
    """The rows of the closing table."""
    condition = {inputs: _fact(records, inputs, "condition_number") for inputs in INPUTS}
    rate = {inputs: _fact(records, inputs, "stable_rate") for inputs in INPUTS}
    steps = {inputs: arrival(records, inputs) for inputs in INPUTS}
    share = f"steps at {settings.learning_rate:.0%} of that rate"
    return [
        judge_factor(
            "standardising rounds the ravine",
            "Lee, Ng: contours turn from long ellipses into circles",
            ("condition number", RAW, condition[RAW]),
            (STANDARDISED, condition[STANDARDISED]),
        ),
        judge_factor(
            "a larger learning rate is stable",
            "Ng: larger steps without swinging to and fro",
            ("largest stable rate", STANDARDISED, rate[STANDARDISED]),
            (RAW, rate[RAW]),
        ),
        judge_factor(
            "gradient descent arrives sooner",
            "Lee, Ng: straight at the minimum, wherever it starts",
            (share, RAW, steps[RAW]),
            (STANDARDISED, steps[STANDARDISED]),
        ),
        judge_factor(
            "a batch-norm layer on raw pixels does the same",
            "Lee: normalise the features inside the network",
            (share, RAW, steps[RAW]),
            (NORMALISED, steps[NORMALISED]),
        ),
    ]


def judge_factor(
    claim: str,
    paper: str,
    large: tuple[str, str, np.ndarray],
    small: tuple[str, np.ndarray],
) -> Claim:
    """Whether a quantity is larger for one input than for another: (quantity, input, values)."""
    quantity, above, numerator = large
    below, denominator = small
    interval = paired_interval(np.log(numerator) - np.log(denominator))
    factor = as_factor(interval)
    found = (
        f"{quantity}: {_mean(denominator)} {below}, {_mean(numerator)} {above}; "
        f"a factor of {with_interval(factor, ',.0f')}"
    )
    return Claim(
        claim,
        paper,
        found,
        verdict(interval),
        test=f"log ratio of {quantity}, {above} by {below}. {VERDICT_RULE}",
        numbers={
            above: numerator.tolist(),
            below: denominator.tolist(),
            "factor": factor.mean,
            "interval": [factor.low, factor.high],
        },
    )


def arrival(records: Sequence[Record], inputs: str) -> np.ndarray:
    """The first step close to the best weights, (seeds,); the last step where none was."""
    steps, arrived = series(records, inputs, "arrived")
    # Not arrived counts as arrived at the end: too soon for the raw pixels, so against the claim.
    return np.where(np.isnan(arrived[:, -1]), steps[-1], np.maximum(arrived[:, -1], 1))


def _fact(records: Sequence[Record], inputs: str, name: str) -> np.ndarray:
    return series(records, inputs, name)[1][:, 0]


def _mean(values: Sequence[float] | np.ndarray) -> str:
    """The geometric mean, to three digits."""
    return f"{float(f'{np.exp(np.log(values).mean()):.3g}'):,g}"


def draw(records: Sequence[Record], settings: FeatureScalingSettings) -> Figure:
    """Contours and paths above; how the loss falls and the condition numbers below."""
    figure = Figure(figsize=(WIDTH_INCHES, 6.8), layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=(1.15, 1))
    for column, inputs in enumerate(INPUTS):
        ax = figure.add_subplot(grid[0, 2 * column : 2 * column + 2])
        draw_contours(ax, records, inputs, settings)
        if inputs == RAW:
            ax.legend(loc="upper left", facecolor="white", edgecolor="none", framealpha=1)
    draw_descent(figure.add_subplot(grid[1, :4]), records, settings)
    draw_condition(figure.add_subplot(grid[1, 4:]), records)
    figure.suptitle(
        "Features of unlike scale make a ravine; standardising rounds it",
        fontsize=13,
        fontweight="bold",
    )
    return figure


def draw_contours(
    ax: Axes, records: Sequence[Record], inputs: str, settings: FeatureScalingSettings
) -> None:
    """The loss over both weights, on axes of the same unit, and the path of one seed."""
    chosen = [r for r in records if (r["network"], r["seed"]) == (inputs, SHOWN_SEED)]
    hessian, best = (np.array(chosen[0][name]) for name in ("hessian", "best"))
    path = np.array([(r["w1"], r["w2"]) for r in chosen])
    half = 1.15 * np.abs(path - best).max()
    first, second = (np.linspace(b - half, b + half, 400) for b in best)
    loss = _quadratic(hessian, np.stack(np.meshgrid(first, second), -1) - best)
    ax.contour(first, second, loss / chosen[0]["gain"], LEVELS, colors=[GREY], linewidths=0.6)
    ax.plot(*path.T, ".-", color=COLORS[inputs], linewidth=1.2, markersize=5)
    ax.plot(*path[0], "o", color=COLORS[inputs], markersize=8, label="start")
    ax.plot(*best, "*", color="black", markersize=11, label="minimum", linestyle="none")
    ax.set(aspect="equal", xlabel="weight $w_1$", ylabel="weight $w_2$")
    ax.grid(False)
    arrived = chosen[-1]["arrived"]
    when = f"not there after {settings.steps:,}" if arrived is None else f"there after {arrived:,}"
    condition = _mean([chosen[0]["condition_number"]])
    title = f"{inputs}\ncondition number {condition},\n{when} steps"
    ax.set_title(title, loc="left", fontweight="bold")


def draw_descent(ax: Axes, records: Sequence[Record], settings: FeatureScalingSettings) -> None:
    """The loss against steps, a line a seed and their geometric mean."""
    for inputs in INPUTS:
        steps, excess = series(records, inputs, "excess")
        later = steps > 0
        steps, excess = steps[later], np.maximum(excess[:, later], 1e-6)
        color = COLORS[inputs]
        ax.fill_between(steps, excess.min(0), excess.max(0), color=color, alpha=0.15, linewidth=0)
        middle = np.exp(np.log(excess).mean(0))
        ax.plot(steps, middle, STYLES[inputs], color=color, label=inputs, linewidth=1.8)
    ax.axhline(CLOSE, color=GREY, linewidth=0.9, linestyle=":")
    ax.set(xscale="log", yscale="log", ylim=(1e-4, None))
    share = f"{settings.learning_rate:.0%} of the largest stable rate"
    ax.set_xlabel(f"step of gradient descent, at {share}")
    ax.set_ylabel("loss above the least\n(1: that of zero weights)")
    ax.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=1)
    title = f"{settings.data_name}: geometric mean and range of {settings.seeds} pairs of pixels"
    ax.set_title(title, loc="left", fontweight="bold")


def draw_condition(ax: Axes, records: Sequence[Record]) -> None:
    """The condition number of every seed."""
    for place, inputs in enumerate(INPUTS):
        values = _fact(records, inputs, "condition_number")
        spread = place + np.linspace(-0.2, 0.2, len(values))
        ax.plot(spread, values, "o", color=COLORS[inputs], alpha=0.6, markersize=5)
    ax.set(yscale="log", xlim=(-0.5, 2.5), ylim=(0.8, None))
    ax.set_xticks(range(len(INPUTS)), ["raw", "standard-\nised", "batch\nnorm"])
    ax.set_ylabel("condition number of the Hessian")
    ax.set_title("every pair", loc="left", fontweight="bold")
