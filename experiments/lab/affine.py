"""Scale and shift give back what zero mean and unit variance take (Lee; Ng; Raschka).

Batch norm stands before each sigmoid of a network of three hidden layers::

    y = scale * (x - mean) / sqrt(var + epsilon) + shift

with both of scale and shift, with one of them, and with neither: from the same weights, on the same
mini-batches, at every rate of a grid. Test accuracies are compared at the rate that suits each best
on images held out, and training losses where each is lowest. Sigmoids are where the lectures mean
it: inputs of mean 0 and variance 1 keep to the part of a sigmoid that is almost a straight line,
and only a larger scale lets the network use its bends.

Two more sentences of the lectures are true by arithmetic, and shown up to rounding. With scale =
sqrt(var + epsilon) and shift = mean, y is x. And a bias before batch norm is taken away with the
mean: its gradient is 0, and a network with such biases trains as the one without. That pair is seen
at the smallest rate, since a larger one blows differences of rounding up to any size in the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnjax.linen import BatchNorm
from bnjax.training import TrainState
from experiments.common.data import Dataset, hold_out
from experiments.common.histories import final, last
from experiments.common.loop import Examples, Metrics
from experiments.common.metrics import evaluate, gradient
from experiments.common.models import MLP
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
)
from experiments.common.records import Record, series
from experiments.common.scales import draw_percentiles, norm_names, percentiles
from experiments.common.settings import Settings as CommonSettings
from experiments.common.sweep import (
    at_rate,
    best_trials,
    by_accuracy,
    by_fit,
    draw_fits,
    trained_at,
)
from experiments.common.trials import Trial, once
from experiments.common.verdicts import TIMES, Row, Test, claim, control, identity

BOTH, SCALE, SHIFT, NEITHER = "scale and shift", "scale only", "shift only", "neither"
AFFINE = (BOTH, SCALE, SHIFT, NEITHER)
COLORS: dict[str, str] = dict(zip(AFFINE, (BLUE, GREEN, PINK, ORANGE), strict=True))
STYLES: dict[str, str] = dict(zip(AFFINE, ("-", "--", "-.", ":"), strict=True))
REDUNDANT, UNDONE = "scale, shift and a bias before", "normalisation undone"
ROUNDING = 2.0**-24  # largest relative error of rounding to float32
GRADIENT_IMAGES = 500  # of the test set: the gradient of a bias is a sum over them


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings of all networks."""

    unused: ClassVar[tuple[str, ...]] = ("learning_rate",)
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    hidden: tuple[int, ...] = (64, 64, 64)
    momentum: float = 0.9  # weight of the old value in batch norm's running averages


PRESETS = {
    "quick": Settings(steps=600, eval_every=20),
    "long": Settings(data="mnist", steps=1500, eval_every=100, hidden=(100, 100, 100)),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a network and rate, one with redundant biases, and one without training."""
    undone = once(UNDONE, partial(undo_all, settings, data))
    data = hold_out(data)
    norms = {
        BOTH: batch_norm(),
        SCALE: batch_norm(use_bias=False),
        SHIFT: batch_norm(use_scale=False),
        NEITHER: batch_norm(use_scale=False, use_bias=False),
    }
    network = partial(MLP, settings.hidden, batch_norm=True, momentum=settings.momentum)
    made = []
    for name, norm in norms.items():
        measure = evaluate_with_scales if name == BOTH else evaluate
        model = network(norm=norm)
        made += trained_at(name, model, settings.rates, data, settings, evaluate=measure)
    biased = network(norm=norms[BOTH], use_bias=True)
    rate = settings.rates[:1]
    made += trained_at(REDUNDANT, biased, rate, data, settings, evaluate=evaluate_bias)
    return [*made, undone]


def evaluate_with_scales(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, root mean squares of scale and shift, and each layer's in percentiles.

    Those are `scale_1_5` to `bias_3_95`.
    """
    layers = [state.params[name] for name in norm_names(state.params)]
    found = evaluate(state, test, model=model)
    for name in ("scale", "bias"):
        found[f"rms_{name}"] = jnp.sqrt(jnp.mean(jnp.stack([each[name] for each in layers]) ** 2))
    for number, layer in enumerate(layers, 1):
        found |= percentiles(f"scale_{number}", layer["scale"])
        found |= percentiles(f"bias_{number}", layer["bias"])
    return found


def evaluate_bias(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, and the largest gradient of a bias before batch norm.

    It is a share of the largest gradient of the shift in the same layer, which is what the bias'
    would be without the normalisation between them, up to the scale; the largest of all layers.
    """
    images, labels = test
    batch = images[:GRADIENT_IMAGES], labels[:GRADIENT_IMAGES]
    grads = gradient(state, batch, model=model)
    shares = [
        jnp.abs(grads[name.replace("BatchNorm", "Dense")]["bias"]).max()
        / jnp.abs(grads[name]["bias"]).max()
        for name in norm_names(grads)
    ]
    return evaluate(state, test, model=model) | {"bias_gradient": jnp.stack(shares).max()}


def undo_all(settings: Settings, data: Dataset) -> Iterator[Record]:
    """What `undo` finds for random linear units, a record a seed."""
    for seed in range(settings.seeds):
        rng = np.random.default_rng(seed)
        images = rng.choice(data.train.images, settings.batch_size, replace=False)
        weights = rng.standard_normal((images.shape[1], settings.hidden[0]))
        x = (images @ weights / np.sqrt(images.shape[1])).astype(np.float32)
        yield {"seed": seed, "step": 0, "roundings": undo(x)}


def undo(x: np.ndarray) -> float:
    """How far batch norm with scale = sqrt(var + epsilon), shift = mean is from leaving x as it is.

    Args:
      x: (batch, features), float32.

    Returns:
      The largest error, in roundings to float32 of the largest |x| of the same feature.
    """
    layer = BatchNorm(use_running_average=False)
    mean, var = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    params = {"scale": np.sqrt(var + layer.epsilon), "bias": mean}
    params = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), params)
    stats = {"mean": jnp.zeros(x.shape[1]), "var": jnp.ones(x.shape[1])}
    y, _ = layer.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    error = np.abs(np.asarray(y, np.float64) - x)
    return float((error.max(0) / (ROUNDING * np.abs(x).max(0))).max())


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    best = best_trials(records, AFFINE, settings.rates, by_accuracy)
    accuracy = {n: final(records, name, "test_accuracy") for n, name in best.items()}
    fitted = best_trials(records, AFFINE, settings.rates, by_fit)
    loss = {n: final(records, name, "train_loss") for n, name in fitted.items()}
    words = {
        n: f"{best[n]}: test accuracy {accuracy[n].mean():.2%}; "
        f"{fitted[n]}: training loss {loss[n].mean():.2g}"
        for n in AFFINE
    }
    return [
        _judge_help(accuracy, loss, f"{words[BOTH]}; {words[NEITHER]}"),
        _judge_spread(records, best[BOTH]),
        control("one of them", "scale or shift alone", f"{words[SCALE]}; {words[SHIFT]}"),
        *_identities(records, settings),
    ]


def _judge_help(accuracy: dict[str, np.ndarray], loss: dict[str, np.ndarray], found: str) -> Row:
    return claim(
        "scale and shift help",
        "zero mean and unit variance restrict the network, so scale and shift are added",
        "Lee",
        Test(
            "test accuracy over the last tenth of training, with scale and shift - with neither",
            accuracy[BOTH] - accuracy[NEITHER],
        ),
        Test(
            "log of the training loss over the last tenth, with neither / with scale and shift",
            np.log(loss[NEITHER]) - np.log(loss[BOTH]),
            TIMES,
        ),
        found=found,
    )


def _judge_spread(records: Sequence[Record], trial: str) -> Row:
    scale, shift = (last(records, trial, f"rms_{name}") for name in ("scale", "bias"))
    return claim(
        "wider sigmoid inputs",
        "hidden values may want \"a larger variance or have a mean that's different than 0, in "
        'order to better take advantage of the nonlinearity of the sigmoid function"',
        "Ng",
        Test("log of the root mean square of all scales, 1 at first", np.log(scale), TIMES),
        found=f"root mean square of scales {scale.mean():.2f}, of shifts {shift.mean():.2f}",
    )


def _identities(records: Sequence[Record], settings: Settings) -> list[Row]:
    rate = settings.rates[0]
    roundings = last(records, UNDONE, "roundings")
    shares = series(records, at_rate(REDUNDANT, rate), "bias_gradient")[1].max(1)
    losses = (series(records, at_rate(n, rate), "train_loss")[1][:, 1:] for n in (BOTH, REDUNDANT))
    without, with_bias = losses
    apart = np.abs(with_bias / without - 1).max(1)
    return [
        identity(
            "they can undo step 1",
            "with scale = sqrt(var + epsilon) and shift = mean, output = input",
            f"largest error {roundings.max():.1f} roundings of float32",
            "Ng; Raschka",
            {"roundings": roundings.tolist()},
        ),
        identity(
            "no gradient for a bias",
            "subtracting the mean cancels a bias before batch norm",
            f"at most {shares.max():.1e} of the gradient of the shift",
            "Ng; Raschka",
            {"share": shares.tolist()},
        ),
        identity(
            "both ways work",
            "with such a bias or without, the network trains the same",
            f"training losses at rate {rate:g} differ by {apart.max():.1e} of their size at most",
            "Raschka",
            {"relative_difference": apart.tolist()},
        ),
    ]


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Loss and error at the best rates, the sweeps that chose them, and what scales become."""
    figure = narrow(6.0)
    axes = figure.subplots(2, 2)
    looks = {n: (COLORS[n], STYLES[n]) for n in AFFINE}
    draw_fits(axes[0, 0], axes[0, 1], records, settings.rates, looks)
    legend_above(figure, axes[0, 0], 4)
    best = best_trials(records, AFFINE, settings.rates, by_accuracy)
    _draw_errors(axes[1, 0], records, best)
    _draw_scales(axes[1, 1], records, best[BOTH], len(settings.hidden))
    return figure


def _draw_errors(ax: Axes, records: Sequence[Record], trials: dict[str, str]) -> None:
    for place, (name, trial) in enumerate(trials.items()):
        draw_dots(ax, place, 1 - final(records, trial, "test_accuracy"), COLORS[name])
    ax.set_xticks(range(len(AFFINE)), ("both", "scale", "shift", "neither"))
    ax.set_ylim(0, None)
    percent_axis(ax.yaxis)
    ax.set_ylabel("test error")
    entitle(ax, "test error, every seed", "c")


def _draw_scales(ax: Axes, records: Sequence[Record], trial: str, layers: int) -> None:
    """Middle, quarters and all but a tenth of the scales of every layer, mean over seeds."""
    for layer in range(1, layers + 1):
        draw_percentiles(ax, layer, records, trial, f"scale_{layer}", BLUE)
    ax.axhline(1, color=GREY, linewidth=1.2, linestyle=":")
    ax.text(layers + 0.9, 1, "start", color=GREY, ha="right", va="bottom", fontsize=9)
    ax.set_xticks(range(1, layers + 1))
    ax.set(xlim=(0.5, layers + 0.9), xlabel="hidden layer", ylabel="scale")
    entitle(ax, "trained scales", "d")
