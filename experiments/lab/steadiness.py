"""Batch norm trains more smoothly (Raschka), and later layers mind less what earlier ones do (Ng).

Two networks of three hidden layers of ReLUs, one with batch norm, are trained from the same weights
at every rate of a grid; each is seen at the rate that is best on images held out. Weights start at
He's scale.

Neither lecture says how smoothness is measured. Here it is the loss in training, the mean of a few
mini-batches, about its own running mean over 9 such values, the first tenth of training left out::

    absolute    root mean square of  loss - running mean
    relative    the same of          log(loss) - running mean

One network's loss is far smaller than the other's in the end, and what is small fluctuates little:
the claim is judged by both. The loss on test images stands beside it.

Robustness: Gaussian noise N is added to the weights of the first layer, without any training after
it, and of the network before and after is told::

    noise       |N| = s |W|,  s from 0.1 to 1
    change      |h' - h| / |h - mean of h|,  h the input (images, units) of the last ReLU
    lost        accuracy before - accuracy after

with the statistics of the batch, as in training, where Ng's argument is that mean and variance stay
the same. In use the running statistics stay what they were, and the argument does not hold: that is
a control. That twice the weights give the same output is arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from bnjax.training import TrainState
from experiments.common.data import Dataset, hold_out
from experiments.common.histories import final
from experiments.common.loop import Examples, Metrics
from experiments.common.metrics import accuracy, evaluate
from experiments.common.models import MLP
from experiments.common.plots import (
    COLORS,
    OPAQUE,
    STYLES,
    draw_band,
    draw_dots,
    entitle,
    narrow,
    percent_axis,
    set_ticks,
)
from experiments.common.records import Record, series
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN, MLPSettings
from experiments.common.sweep import at_rate, best_rate, draw_sweep, rate_in_words, trained_at
from experiments.common.trials import Trial
from experiments.common.verdicts import TIMES, Row, Test, claim, control, identity

WINDOW = 9  # evaluations of a running mean
IMAGES = 200  # of the test set, to see what noise does
SIZES = (0.1, 0.3, 1.0)  # of the noise, relative to the weights
SHOWN_SEEDS = 3  # of the losses drawn
MARKERS = {PLAIN: "s", NORMALISED: "o"}


@dataclass(frozen=True)
class Settings(MLPSettings):
    """Settings of both networks."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    init_std: float = 0.18  # He's scale for a ReLU with 64 inputs


PRESETS = {
    "quick": Settings(steps=600, eval_every=5),
    "long": Settings(data="mnist", steps=5000, eval_every=20),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a network and rate."""
    data = hold_out(data)
    made = []
    for network in NETWORKS:
        model = MLP(
            settings.hidden,
            batch_norm=network == NORMALISED,
            activation=nn.relu,
            init_std=settings.init_std,
            momentum=settings.momentum,
        )
        made += trained_at(network, model, settings.rates, data, settings, evaluate=perturb)
    return made


def perturb(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, and what noise in the weights of the first layer does.

    Returns:
      Of each of `SIZES` `change_`, `lost_`, and `kept_`, what is lost by running statistics; of
      twice the weights `doubled`, like `change_`.
    """
    images, labels = test[0][:IMAGES], test[1][:IMAGES]
    kernel = state.params["Dense_0"]["kernel"]
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), state.step), kernel.shape)
    noise *= jnp.linalg.norm(kernel) / jnp.linalg.norm(noise)

    def run(kernel: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """The input of the last ReLU (images, units), and the accuracy."""
        params = {**state.params, "Dense_0": {**state.params["Dense_0"], "kernel": kernel}}
        variables = {"params": params, "batch_stats": state.batch_stats}
        seen: Any = model.apply(
            variables, images, train=train, mutable=["batch_stats", "intermediates"]
        )
        return seen[1]["intermediates"]["activation_input"][-1], accuracy(seen[0], labels)

    before, in_use = run(kernel, True), run(kernel, False)
    found = {"doubled": relative_change(before[0], run(2 * kernel, True)[0])}
    for size in SIZES:
        after, kept = (run(kernel + size * noise, train) for train in (True, False))
        found[f"change_{size:g}"] = relative_change(before[0], after[0])
        found[f"lost_{size:g}"] = before[1] - after[1]
        found[f"kept_{size:g}"] = in_use[1] - kept[1]
    return found | evaluate(state, test, model=model)


def relative_change(before: jax.Array, after: jax.Array) -> jax.Array:
    """Of values (images, units), in units of how far they are from their mean over images."""
    return jnp.linalg.norm(after - before) / jnp.linalg.norm(before - before.mean(0, keepdims=True))


def fluctuation(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Root mean square of `values` (seeds, evaluations) about their running mean, (seeds,)."""
    values = values[:, steps >= 0.1 * steps[-1]]
    width = min(WINDOW, values.shape[1])
    windows = np.lib.stride_tricks.sliding_window_view(values, width, axis=1)
    middle = values[:, width // 2 : width // 2 + windows.shape[1]]
    return np.sqrt(np.square(middle - windows.mean(-1)).mean(1))


# Judgement


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    rates = _best_rates(records, settings)
    names = {n: at_rate(n, rate) for n, rate in rates.items()}
    chosen = ", ".join(f"{rate_in_words(r, settings.rates)} {n}" for n, r in rates.items())
    shared = {n: at_rate(n, rates[PLAIN]) for n in NETWORKS}
    return [
        claim(
            "trains more smoothly",
            'it "can increase training stability": training progresses more smoothly',
            "Raschka",
            *(
                Test(
                    f"log of the {kind} fluctuation of the training loss, without / with "
                    "batch norm",
                    _log_ratio({n: _fluctuations(records, names[n])[kind] for n in NETWORKS}),
                    TIMES,
                )
                for kind in ("absolute", "relative")
            ),
            found=f"{_both(records, names, 'train_loss')} ({chosen})",
        ),
        control(
            "the loss on test images",
            "fluctuation of the loss on images that are not trained on, each at its own rate",
            _both(records, names, "test_loss"),
        ),
        control(
            "at the same rate",
            f"fluctuation of the training loss, both at rate {rates[PLAIN]:g}",
            _both(records, shared, "train_loss"),
        ),
        _robust(records, names),
        control(
            "with running statistics",
            "points of accuracy lost to the same noise where statistics stay what they were",
            _lost(records, names, "kept"),
        ),
        identity(
            "twice the weights",
            "batch norm undoes a factor of the weights before it, up to its epsilon",
            "relative change of the last hidden layer: "
            + ", ".join(f"{final(records, names[n], 'doubled').mean():.1e} {n}" for n in NETWORKS),
            "Ioffe & Szegedy 2015, section 3.3",
        ),
    ]


def _robust(records: Sequence[Record], names: dict[str, str]) -> Row:
    changes = {n: _over_sizes(records, name, "change") for n, name in names.items()}
    lost = {n: _over_sizes(records, name, "lost").mean(1) for n, name in names.items()}
    sizes = f"mean over noise of {', '.join(f'{s:g}' for s in SIZES)} times the weights"
    return claim(
        "robust to earlier layers",
        'later weights are "more robust to changes to weights in earlier layers of the neural '
        'network"',
        "Ng",
        Test(
            f"log of the relative change of the last hidden layer, without / with batch norm, "
            f"{sizes}",
            _log_ratio(changes).mean(1),
            TIMES,
        ),
        Test(f"accuracy lost, without - with batch norm, {sizes}", lost[PLAIN] - lost[NORMALISED]),
        found="relative change "
        + "; ".join(f"{_list(changes[n].mean(0), '.2f')} {n}" for n in NETWORKS)
        + f"; points lost {_lost(records, names, 'lost')}",
    )


def _best_rates(records: Sequence[Record], settings: Settings) -> dict[str, float]:
    return {n: best_rate(records, n, settings.rates) for n in NETWORKS}


def _fluctuations(
    records: Sequence[Record], trial: str, loss: str = "train_loss"
) -> dict[str, np.ndarray]:
    """Absolute and relative ones, (seeds,)."""
    steps, values = series(records, trial, loss)
    steps, values = steps[1:], values[:, 1:]  # before the first step there is no training loss
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "absolute": fluctuation(steps, values),
            "relative": fluctuation(steps, np.log(values)),
        }


def _both(records: Sequence[Record], names: dict[str, str], loss: str) -> str:
    found = {n: _fluctuations(records, name, loss) for n, name in names.items()}
    return "; ".join(
        f"{kind} " + ", ".join(f"{found[n][kind].mean():.2g} {n}" for n in NETWORKS)
        for kind in ("absolute", "relative")
    )


def _log_ratio(values: dict[str, np.ndarray]) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(values[PLAIN]) - np.log(values[NORMALISED])


def _over_sizes(records: Sequence[Record], trial: str, name: str) -> np.ndarray:
    """Mean over the last tenth of training, (seeds, sizes)."""
    return np.stack([final(records, trial, f"{name}_{size:g}") for size in SIZES], 1)


def _lost(records: Sequence[Record], names: dict[str, str], name: str) -> str:
    points = {n: 100 * _over_sizes(records, trial, name).mean(0) for n, trial in names.items()}
    return "; ".join(f"{_list(values, '.1f')} {n}" for n, values in points.items())


def _list(values: np.ndarray, form: str) -> str:
    return ", ".join(f"{value:{form}}" for value in values)


# Drawing


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """The losses, how they fluctuate, the sweep, and what noise in the first layer does."""
    figure = narrow(8.4)
    grid = figure.add_gridspec(3, 2, height_ratios=(1.25, 1, 1))
    rates = _best_rates(records, settings)
    names = {n: at_rate(n, rate) for n, rate in rates.items()}
    _draw_losses(figure.add_subplot(grid[0, :]), records, names)
    _draw_fluctuation(figure.add_subplot(grid[1, 0]), records, names)
    sweep = figure.add_subplot(grid[1, 1])
    for n in NETWORKS:
        draw_sweep(sweep, records, n, settings.rates, COLORS[n], STYLES[n], rates[n])
    sweep.set_yscale("logit")
    set_ticks(
        sweep.yaxis, FixedLocator((0.1, 0.5, 0.9, 0.97, 0.99)), PercentFormatter(1, decimals=0)
    )
    entitle(sweep, "the sweep", "c")
    change, lost = figure.add_subplot(grid[2, 0]), figure.add_subplot(grid[2, 1])
    _draw_noise(change, records, names, "change", "change, last layer")
    _draw_noise(lost, records, names, "lost", "accuracy lost")
    percent_axis(lost.yaxis)
    entitle(change, "noise in layer 1: change", "d")
    entitle(lost, "accuracy it costs", "e")
    return figure


def _draw_losses(ax: Axes, records: Sequence[Record], names: dict[str, str]) -> None:
    for network, name in names.items():
        steps, losses = series(records, name, "train_loss")
        for seed, loss in enumerate(losses[:SHOWN_SEEDS]):
            label = name.replace(",", ":") if seed == 0 else None
            color, style = COLORS[network], STYLES[network]
            ax.plot(steps, loss, style, color=color, label=label, linewidth=1, alpha=0.8)
    ax.set_yscale("log")
    ax.set_xlabel("training step")
    ax.set_ylabel("training loss (log)")
    ax.legend(loc="upper right", **OPAQUE)
    entitle(ax, f"{SHOWN_SEEDS} seeds, each network at its best rate", "a")


def _draw_fluctuation(ax: Axes, records: Sequence[Record], names: dict[str, str]) -> None:
    """A dot a seed, of both ways to measure."""
    for network, name in names.items():
        beside = -0.2 if network == PLAIN else 0.2
        for place, values in enumerate(_fluctuations(records, name).values()):
            color, marker = COLORS[network], MARKERS[network]
            draw_dots(ax, place + beside, values, color, width=0.3, marker=marker)
    ax.set_yscale("log")
    set_ticks(ax.yaxis, FixedLocator((0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)), "{x:g}")
    ax.set_xticks((0, 1), ("absolute", "relative"))
    ax.set_ylabel("fluctuation (log)")
    entitle(ax, "loss fluctuates", "b")


def _draw_noise(
    ax: Axes, records: Sequence[Record], names: dict[str, str], metric: str, label: str
) -> None:
    for network, name in names.items():
        values = _over_sizes(records, name, metric)
        draw_band(ax, np.array(SIZES), values, COLORS[network], network, STYLES[network])
        ax.plot(SIZES, values.mean(0), MARKERS[network], color=COLORS[network], markersize=4)
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(list(SIZES)), "{x:g}")
    ax.set_xlabel("noise / weights")
    ax.set_ylabel(label)
