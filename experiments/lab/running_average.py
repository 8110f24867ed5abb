"""What the running averages of batch norm hold, and what their weight does (Long; Lee; Ng).

Every mini-batch moves the averages a little, from 0 and 1, where they start (the lectures leave
that out; `BatchNorm(debias=True)` corrects it)::

    mean <- p mean + (1 - p) mean of the batch
    var  <- p var  + (1 - p) variance of the batch

Lee's p is the weight of the old value, here and in Flax; PyTorch's `momentum` is 1 - p, 0.1 where
p is 0.9. PyTorch also stores the sample variance, n / (n - 1) times that of the batch of n.

First, Long's layer: 16 channels get uniform numbers in [0, 1) of shape (100, 16, 784). Once called,
its averages hold a tenth of the true mean, and nine tenths of the first variance, 1.

Then a network is trained. What normalises in training is the batch, so p changes nothing but the
test: one run, seed by seed, keeps averages of every p side by side. With exact(t) for the moments
of the training images under the weights of step t, an average errs in two ways::

    lag   = average_p(exact)(t) - exact(t)     weights have moved on, the start is not forgotten
    noise = average_p(batch)(t) - average_p(exact)(t)                   batches are not the whole

Both are of the means of all hidden units, in standard deviations of each unit, root mean square
over units. The exact moments under the weights of every step are those of `probe` images, which
the lag is the same for; those that the averages are compared with, and that "recalibrated" stands
for, are of up to `images`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bnjax.training import TrainState, train_step
from experiments.common.batches import batches_of_seeds
from experiments.common.data import Dataset
from experiments.common.histories import final, first, last
from experiments.common.loop import init_state, variables_of
from experiments.common.loss import make_loss_fn
from experiments.common.metrics import in_training
from experiments.common.models import relu_mlp
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    OPAQUE,
    ORANGE,
    PINK,
    draw_band,
    entitle,
    log_axis,
    narrow,
    stretch_accuracy,
    stretch_steps,
)
from experiments.common.population import running_accuracy
from experiments.common.progress import Reporter
from experiments.common.records import Record, per_seed, series
from experiments.common.settings import MLPSettings
from experiments.common.trials import Trial, once
from experiments.common.verdicts import TIMES, Row, Test, claim, control, identity
from experiments.lab._long_layer import (
    FEW,
    FLAX,
    LAYER,
    PYTORCH,
    SAMPLE,
    SHAPE,
    call_layers,
    expected_averages,
    layer,
    with_weight,
)

RECALIBRATED = "recalibrated"
JUDGED = (0.5, 0.9, 0.99, 0.999)
MARGIN = 0.01  # accuracies that differ by less are the same here
LOOKS = {0.5: (PINK, ":"), 0.9: (GREEN, "-."), 0.99: (BLUE, "-"), 0.999: (ORANGE, "--")}


@dataclass(frozen=True)
class Settings(MLPSettings):
    """Settings of the network, its averages, and Long's layer."""

    momentum: float = 0.0  # the statistics that a step leaves are those of its batch
    weights: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
    probe: int = 2000  # training images of the exact moments of each step, at most
    images: int = 10_000  # of those at an evaluation
    batches: int = 50  # of Long's layer


PRESETS = {
    "quick": Settings(steps=2000, batch_size=32, eval_every=40),
    "long": Settings(
        data="mnist", steps=2000, batch_size=32, eval_every=50, hidden=(100, 100, 100), probe=1000
    ),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """Long's layer, and one network with averages of every p."""
    return [
        once(LAYER, partial(call_layers, settings.seeds, settings.batches)),
        Trial("network", settings.steps, partial(_train, settings, data)),
    ]


class Run(NamedTuple):
    """A network in training, and two averages for each p; arrays have the seeds on axis 0."""

    states: TrainState
    averages: Any  # of the batches' moments, (seeds, weights, units) for each layer's mean and var
    exact: Any  # of the exact moments


def _train(settings: Settings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    reporter.say("network: compiling")
    model, optimizer = relu_mlp(settings), optax.sgd(settings.learning_rate)
    images, labels = (jnp.asarray(array) for array in data.train)
    keys = jax.vmap(jax.random.key)(jnp.arange(settings.seeds))
    create = partial(init_state, model=model, optimizer=optimizer, pixels=images.shape[1])
    states = jax.vmap(create)(keys)
    weights = jnp.array(settings.weights)
    start = jax.tree.map(lambda v: jnp.repeat(v[:, None], len(weights), 1), states.batch_stats)
    run = Run(states, start, start)
    rows, steps = [np.arange(len(labels))] * settings.seeds, settings.steps
    batches = batches_of_seeds(rows, steps, settings.batch_size).swapaxes(0, 1)
    loss_fn, probe = make_loss_fn(model), images[: settings.probe]
    for done in range(0, steps, settings.eval_every):
        chosen = batches[done : done + settings.eval_every]
        run, loss = advance(run, chosen, weights, images, labels, probe, model, loss_fn)
        step = done + len(chosen)
        yield from _evaluate(step, model, run, images[: settings.images], data, settings)
        reporter.show("network", step, float(loss.mean()), None)


@partial(jax.jit, static_argnames=("model", "loss_fn"))
def advance(run: Run, batches, weights, images, labels, probe, model, loss_fn):
    """A step for each of `batches` (steps, seeds, size), rows of `images`; and the mean losses."""

    def step(run: Run, rows: jax.Array) -> tuple[Run, jax.Array]:
        before = moments(model, run.states, probe)
        batch = {"images": images[rows], "labels": labels[rows]}
        state, metrics = train_step(run.states, batch, loss_fn)
        averages = _move(run.averages, state.batch_stats, weights)
        return Run(state, averages, _move(run.exact, before, weights)), metrics["loss"]

    run, losses = jax.lax.scan(jax.vmap(step), run, batches)
    return run, losses.mean(0)


def moments(model: nn.Module, state: TrainState, images: jax.Array) -> Any:
    """Means and variances of the inputs of each batch norm, if all `images` are one batch."""
    return in_training(model, variables_of(state), images)[1]  # with momentum 0


def _move(averages: Any, new: Any, weights: jax.Array) -> Any:
    """Averages (weights, units) after `new` (units,)."""
    p = weights[:, None]
    return jax.tree.map(lambda old, value: p * old + (1 - p) * value[None], averages, new)


def _evaluate(
    step: int, model: nn.Module, run: Run, images: jax.Array, data: Dataset, settings: Settings
) -> Iterator[Record]:
    now = _moments_of_seeds(model, run.states, images)
    lag = _distances(run.exact, _moments_of_seeds(model, run.states, images[: settings.probe]))
    error = _distances(run.averages, now)
    parts = {"lag": lag, "noise": error - lag, "error": error}

    def accurate(stats: Any) -> np.ndarray:
        variables = {"params": run.states.params, "batch_stats": stats}
        return np.asarray(running_accuracy(model, variables, *data.test))

    yield from per_seed(step, RECALIBRATED, {"test_accuracy": accurate(now)})
    for i, p in enumerate(settings.weights):
        accuracy = accurate(jax.tree.map(lambda v, i=i: v[:, i], run.averages))
        found = {name: np.sqrt(np.mean(part[:, i] ** 2, -1)) for name, part in parts.items()}
        yield from per_seed(step, with_weight(p), {"test_accuracy": accuracy} | found)


_moments_of_seeds = jax.jit(jax.vmap(moments, (None, 0, None)), static_argnums=0)


def _distances(averages: Any, exact: Any) -> np.ndarray:
    """Of the means, in standard deviations of each unit, (seeds, weights, units of all layers)."""
    parts = [
        (averages[layer]["mean"] - exact[layer]["mean"][:, None])
        / jnp.sqrt(exact[layer]["var"][:, None] + 1e-12)
        for layer in exact
    ]
    return np.asarray(jnp.concatenate(parts, -1))


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    exact = final(records, RECALIBRATED, "test_accuracy")
    accuracy = {p: final(records, with_weight(p), "test_accuracy") for p in JUDGED}
    early = {p: first(records, with_weight(p), "test_accuracy") for p in JUDGED}
    step, end = settings.eval_every, "mean of the last tenth of training"
    return [
        claim(
            "p hardly matters",
            '"any reasonable way to estimate the mean and variance of your hidden unit values Z '
            'should work fine"',
            "Ng",
            *(
                Test(f"test accuracy, p = {p:g} - recalibrated, {end}", a - exact, within=MARGIN)
                for p, a in accuracy.items()
            ),
            found=f"test accuracy {_by_weight(accuracy, exact, '.1%')}; differences",
        ),
        _larger_error(records, "large p: outdated", "with a large weight, outdated", 0.999),
        _larger_error(records, "small p: noisy", "with a small one, not of the population", 0.5),
        *_identities(records),
        control(
            "early on",
            f"test accuracy after {step} steps, where a large p still holds the start",
            _by_weight(early, first(records, RECALIBRATED, "test_accuracy"), ".0%"),
        ),
    ]


def _by_weight(accuracy: dict[float, np.ndarray], exact: np.ndarray, form: str) -> str:
    each = ", ".join(f"{values.mean():{form}} at {p:g}" for p, values in accuracy.items())
    return f"{each}; {exact.mean():{form}} recalibrated"


def _larger_error(records: Sequence[Record], short: str, said: str, p: float) -> Row:
    errors = {q: final(records, with_weight(q), "error") for q in (p, PYTORCH)}
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(errors[p]) - np.log(errors[PYTORCH])
    of = f"log of the error of the running means at the end, p = {p:g} / {PYTORCH}"
    parts = {name: final(records, with_weight(p), name).mean() for name in ("lag", "noise")}
    found = f"lag {parts['lag']:.2g}, noise {parts['noise']:.2g} standard deviations at p = {p:g}"
    source = "Wu & Johnson 2021, section 3"
    return claim(short, said, source, Test(of, ratios, TIMES), found=found)


def _identities(records: Sequence[Record]) -> list[Row]:
    steps, found = layer(records, PYTORCH)
    off = np.abs(found - expected_averages(steps, PYTORCH)[:, None]).max()
    means, of_flax = found.mean(1), layer(records, FLAX)[1].mean(1)
    ratio = last(records, SAMPLE, "ratio")
    return [
        identity(
            "layer(x): a tenth",
            "uniform numbers have mean 1/2 and variance 1/12; of one batch the averages hold 1 - p",
            f"after one batch {means[0, 0]:.4f} and {means[1, 0]:.4f} "
            f"(start 0 and 1, p = {PYTORCH}), never more than {off:.0e} from the formula",
            "Long",
        ),
        identity(
            f"after {steps[-1]} batches",
            "p to the power of the number of batches is what is left of the start",
            f"{means[0, -1]:.3f} and {means[1, -1]:.4f} at p = {PYTORCH}, "
            f"{of_flax[0, -1]:.3f} and {of_flax[1, -1]:.4f} at {FLAX}",
        ),
        identity(
            "PyTorch's variance",
            f"the sample variance is n / (n - 1) times that of a batch: {FEW / (FEW - 1):.4f} of "
            f"{FEW} rows, and nothing to speak of in Long's {SHAPE[0] * SHAPE[2]:,}",
            f"{ratio.mean():.4f} times as much is stored with ddof=1",
        ),
    ]


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Accuracy by p, the two errors by p, and Long's layer."""
    figure = narrow(6.8)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.3, 1))
    _draw_accuracy(figure.add_subplot(grid[0, :]), records, settings)
    _draw_errors(figure.add_subplot(grid[1, 0]), records, settings)
    _draw_layer(figure.add_subplot(grid[1, 1]), records)
    return figure


def _draw_accuracy(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    for p, (color, style) in LOOKS.items():
        steps, values = series(records, with_weight(p), "test_accuracy")
        draw_band(ax, steps, values, color, with_weight(p), style)
    steps, values = series(records, RECALIBRATED, "test_accuracy")
    ax.plot(steps, values.mean(0), color=GREY, linewidth=1, label=RECALIBRATED)
    stretch_steps(ax, settings, LogLocator(subs=(1, 2, 5)))
    stretch_accuracy(ax, 0.08, 0.993)
    ax.set_xlabel("training step (log scale)")
    ax.legend(loc="lower right", **OPAQUE)
    entitle(ax, "one network, tested by averages of each p", "a")


def _draw_errors(ax: Axes, records: Sequence[Record], settings: Settings) -> None:
    memory = 1 / (1 - np.array(settings.weights))
    for name, color, style, marker in (("lag", ORANGE, "--", "s"), ("noise", BLUE, "-", "o")):
        values = [final(records, with_weight(p), name) for p in settings.weights]
        draw_band(ax, memory, np.stack(values, 1), color, name, style, marker)
    log_axis(ax, (2, 10, 100, 1000))
    ax.set_yscale("log")
    ax.set_xlabel("1 / (1 - p), in steps")
    ax.set_ylabel("error of the means (std)")
    ax.legend(loc="upper center", **OPAQUE)
    entitle(ax, "lag and noise at the end", "b")


def _draw_layer(ax: Axes, records: Sequence[Record]) -> None:
    for p in (PYTORCH, FLAX):
        color, style = LOOKS[p]
        steps, found = layer(records, p)
        ax.plot(steps, found.mean(1).T, color=color, linestyle=style, linewidth=1.8)
    for truth, words, side in ((1 / 2, "mean", "bottom"), (1 / 12, "variance", "top")):
        ax.axhline(truth, color=GREY, linewidth=0.9, linestyle=":")
        ax.text(steps[-1], truth, f"true {words}", color=GREY, fontsize=9, ha="right", va=side)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("batches of uniform numbers")
    ax.set_ylabel("running mean and variance")
    entitle(ax, "Long's layer(x)", "c")
