"""Batch norm has a slight regularising effect, as dropout has (Ng, Why does batch norm work?).

The statistics of a batch are noisy, so what batch norm makes of one image depends by chance on
which others are in the batch; dropout makes it depend on which units are dropped. Here both are
measured by the same rule, and networks of the same noise are compared.

All networks have batch norm, start from the same weights and are trained on the same mini-batches
of 256 images at the same rate. In some, every 8, 16 or 64 images of a batch are normalised by
themselves (virtual batches): the statistics are noisier, the gradient is not. In the others, with
statistics of all 256, hidden units are dropped after the ReLU with probability p. The noise is that
of what the output layer gets from 64 training images, each seen several times in training mode, in
other company and with other units dropped::

    noise^2 = mean over images and units of the variance over passes / mean of the squared mean

The gap between test and training loss (both by running statistics, nothing dropped) is then drawn
against the noise. Between two probabilities the gap of dropout is read off a straight line over the
logarithm of the noise.

There are 400 training images of digits, or 1,000 of MNIST, so that the networks have something to
overfit. Too much dropout widens the gap, as 0.5 does here, though accuracy may gain all the same:
so the dropout to compare with is that which narrows the gap most.

Left out by the lecture: how far the likeness goes. Dropout's noise is independent in every unit and
image; batch norm's is one for all images of a batch, and adds as well as multiplies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from bnjax.linen import BatchNorm
from bnjax.training import TrainState
from experiments.common.data import NUM_CLASSES, Dataset
from experiments.common.errors import UserError
from experiments.common.gap import evaluate_gap, with_train_in_front
from experiments.common.histories import final
from experiments.common.loop import Examples, Metrics, variables_of
from experiments.common.panels import legend_above
from experiments.common.plots import (
    BLUE,
    ORANGE,
    entitle,
    narrow,
    percent_axis,
    set_ticks,
)
from experiments.common.rates import SGD, set_rate
from experiments.common.records import Record
from experiments.common.settings import Settings as Common
from experiments.common.trials import Trial, training
from experiments.common.verdicts import Row, Test, Unit, claim, control

NG = "Ng, Why does batch norm work?"
BATCH = 256
SIZES = (8, 16, 64, BATCH)  # images whose statistics normalise them
NGS, NOISIEST = 64, 8  # of those, which are judged
DROPPED = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)  # probabilities
LABELLED = (0.02, 0.2, 0.5)  # of those in the picture
WATCHED, PASSES = 64, 8  # images whose noise is measured, and how often they are seen
MARGIN = 0.1  # of the gap without noise
SHARES = Unit("of the gap without noise", "+.3f")
TICKS = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Settings(Common):
    """Settings of all networks."""

    unused: ClassVar[tuple[str, ...]] = ("batch_size",)
    batch_size: int = BATCH
    images: int = 400  # of the training set
    hidden: tuple[int, ...] = (64, 64)
    momentum: float = 0.9


PRESETS = {
    "quick": Settings(steps=200, learning_rate=0.5, eval_every=20),
    "long": Settings(data="mnist", steps=2000, learning_rate=0.5, eval_every=200, images=1000),
}


class Dropout(nn.Module):
    """Drops units in training with a probability that is a variable, so that all share a program.

    The key of the next draw is a variable as well: the loop hands out none.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Drops entries of `x` and makes up for it by the scale of the others."""
        rate = self.variable("batch_stats", "rate", jnp.zeros, ())
        stored = self.variable("batch_stats", "key", self._first_key)
        if not train:
            return x
        now, following = jax.random.split(jax.random.wrap_key_data(stored.value))
        stored.value = jax.random.key_data(following)
        kept = jax.random.bernoulli(now, 1 - rate.value, x.shape)
        return jnp.where(kept, x / (1 - rate.value), 0)

    @nn.nowrap
    def _first_key(self) -> jax.Array:
        return jax.random.key_data(self.make_rng("params"))


class NoisyMLP(nn.Module):
    """Linear layers with batch norm over virtual batches, ReLU and dropout.

    Sows what the output layer gets as `intermediates/last`.
    """

    hidden: tuple[int, ...]
    statistics_of: int
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps inputs (batch, pixels) to logits (batch, classes)."""
        for units in self.hidden:
            x = nn.Dense(units, use_bias=False, kernel_init=nn.initializers.normal(0.1))(x)
            norm = BatchNorm(
                not train, momentum=self.momentum, virtual_batch_size=self.statistics_of
            )
            x = Dropout()(nn.relu(norm(x)), train=train)
        self.sow("intermediates", "last", x)
        return nn.Dense(NUM_CLASSES, kernel_init=nn.initializers.normal(0.1))(x)


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """One trial a size of virtual batches, and one a probability of dropout."""
    if len(data.train.labels) < BATCH:
        raise UserError(f"{data.name}: fewer than {BATCH} training images")
    images = min(settings.images, len(data.train.labels))
    models = {size: NoisyMLP(settings.hidden, size, settings.momentum) for size in SIZES}
    train = partial(
        training,
        optimizer=SGD,
        data=with_train_in_front(data, images),
        settings=settings,
        evaluate=partial(measure, seen=images),
    )
    runs = [(name_of(size=size), models[size], 0.0) for size in SIZES]
    runs += [(name_of(dropped=p), models[BATCH], p) for p in DROPPED[1:]]
    prepare = partial(dropping, learning_rate=settings.learning_rate)
    return [train(name, model, prepare=prepare(p)) for name, model, p in runs]


def name_of(size: int = BATCH, dropped: float = 0.0) -> str:
    """Such as "statistics of 8", or "dropout 0.1"."""
    return f"dropout {dropped:g}" if dropped else f"statistics of {size}"


DROPOUT = [name_of(dropped=p) for p in DROPPED]


def dropping(dropped: float, *, learning_rate: float) -> Any:
    """A `prepare` of `train_seeds` that sets the probability and the learning rate."""
    at_rate = set_rate(learning_rate)

    def prepare(states: TrainState) -> TrainState:
        stats = jax.tree.map_with_path(
            lambda path, x: jnp.full_like(x, dropped) if path[-1].key == "rate" else x,
            states.batch_stats,
        )
        return at_rate(states.replace(batch_stats=stats))

    return prepare


def measure(state: TrainState, both: Examples, *, model: nn.Module, seen: int) -> Metrics:
    """The gap, and the noise of what the output layer gets in training."""
    train = both[0][:seen]
    keys = jax.random.split(jax.random.key(0), PASSES)
    passes = jax.lax.map(partial(_one_pass, state, model, train), keys)
    return evaluate_gap(state, both, model=model, seen=seen) | {"noise": noise_of(passes)}


def noise_of(passes: jax.Array) -> jax.Array:
    """As the module's docstring has it, of (passes, images, units)."""
    return jnp.sqrt(passes.var(0, ddof=1).mean() / (passes.mean(0) ** 2).mean())


def _one_pass(state: TrainState, model: nn.Module, train: jax.Array, key: jax.Array) -> jax.Array:
    """What the first images become in a batch with others, (images, units)."""
    company, places = jax.random.split(key)
    others = WATCHED + jax.random.permutation(company, len(train) - WATCHED)[: BATCH - WATCHED]
    batch = jnp.concatenate([jnp.arange(WATCHED), others])
    place = jax.random.permutation(places, BATCH)
    variables = variables_of(state)
    mutable = ["batch_stats", "intermediates"]
    outcome: Any = model.apply(variables, train[batch[place]], train=True, mutable=mutable)
    return outcome[1]["intermediates"]["last"][0][jnp.argsort(place)[:WATCHED]]


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    del settings
    gap = {name: final(records, name, "loss_gap") for name in _names()}
    noise = {name: final(records, name, "noise") for name in _names()}
    whole = gap[name_of(BATCH)]
    won = {name: (whole - gap[name]) / whole.mean() for name in gap}  # shares of the mean gap
    ngs = name_of(NGS)
    best = min(DROPOUT[1:], key=lambda name: gap[name].mean())
    apart = {size: like_dropout(records, name_of(size)) / whole.mean() for size in SIZES}

    dropped = _by_noise(records, DROPOUT, "noise")[0].mean(1)

    def equal(size: int) -> str:
        own = noise[name_of(size)].mean()
        return f"{size}: {own:.2f}, that of dropout {np.interp(own, dropped, DROPPED):.2f}"

    return [
        claim(
            "regularises slightly",
            '"similar to dropout, batch norm therefore has a slight regularization effect"',
            NG,
            Test(f"gap won by statistics of {NGS} in place of {BATCH}", won[ngs], SHARES),
            found=f"gap of the loss {whole.mean():.4f} by statistics of {BATCH}, "
            f"{gap[ngs].mean():.4f} of {NGS}",
        ),
        claim(
            "only slightly",
            '"a slight regularization effect": less than dropout can have',
            NG,
            Test(
                f"gap won by {best}, the dropout that wins most - by statistics of {NGS}",
                won[best] - won[ngs],
                SHARES,
            ),
            found=f"gap of the loss {gap[ngs].mean():.4f} by statistics of {NGS}, "
            f"{gap[best].mean():.4f} with {best}",
        ),
        claim(
            "as dropout of like noise",
            '"similar to dropout, it adds some noise to each hidden layer\'s activations"',
            NG,
            *(
                Test(
                    f"gap by statistics of {size} - with dropout of the same noise, within 10 %",
                    apart[size],
                    SHARES,
                    within=MARGIN,
                )
                for size in (NGS, NOISIEST)
            ),
            found=f"at {NGS} and at {NOISIEST}",
        ),
        control(
            "how much noise",
            "of what the output layer gets, by the size of virtual batches",
            ", ".join(equal(size) for size in SIZES),
        ),
        control(
            "what it is worth",
            "test accuracy",
            ", ".join(
                f"{name} {final(records, name, 'test_accuracy').mean():.2%}" for name in _names()
            ),
        ),
    ]


def _names() -> list[str]:
    return [*map(name_of, SIZES), *(name_of(dropped=p) for p in DROPPED[1:])]


def _by_noise(
    records: Sequence[Record], names: Sequence[str], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Noise and a metric of some networks, (networks, seeds) each."""
    noise, values = (
        np.stack([final(records, name, what) for name in names]) for what in ("noise", metric)
    )
    return noise, values


def like_dropout(records: Sequence[Record], name: str) -> np.ndarray:
    """The gap of a network minus that of dropout with the same noise, (seeds,)."""
    noise, gaps = _by_noise(records, DROPOUT, "loss_gap")
    at, own = final(records, name, "noise"), final(records, name, "loss_gap")
    dropout = [
        np.interp(np.log(at[seed]), np.log(noise[:, seed]), gaps[:, seed])
        for seed in range(len(own))
    ]
    return own - np.array(dropout)


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """Gap and accuracy against the noise, of dropout and of virtual batches."""
    figure = narrow(6.8)
    gap, accuracy = figure.subplots(2, 1, sharex=True, height_ratios=(1.3, 1))
    for ax, metric in ((gap, "loss_gap"), (accuracy, "test_accuracy")):
        _draw_against_noise(ax, records, metric)
    gap.set_ylabel("test minus training loss")
    legend_above(figure, gap, 2)
    gap.set_xlim(0.035, 1.9)  # room for the labels
    entitle(gap, "train-test gap against noise", "a")
    percent_axis(accuracy.yaxis)
    accuracy.set_ylabel("test accuracy")
    accuracy.set_xlabel("noise of what the output layer gets (log scale)")
    entitle(accuracy, "what it is worth", "b")
    return figure


def _draw_against_noise(ax: Axes, records: Sequence[Record], metric: str) -> None:
    statistics = _by_noise(records, [name_of(size) for size in SIZES], metric)
    dropout = _by_noise(records, DROPOUT, metric)
    _draw_line(ax, *dropout, ORANGE, "--", "s", "dropout")
    _draw_line(ax, *statistics, BLUE, "-", "o", "batch norm, statistics")
    if metric == "loss_gap":
        labels = [f"p = {p:g}" if p in LABELLED else "" for p in DROPPED]
        _label(ax, *dropout, *statistics, ORANGE, labels)
        _label(ax, *statistics, *dropout, BLUE, [f"of {size}" for size in SIZES])
    ax.set_xscale("log")
    set_ticks(ax.xaxis, FixedLocator(TICKS), "{x:g}")


def _draw_line(
    ax: Axes,
    noise: np.ndarray,
    values: np.ndarray,
    color: str,
    style: str,
    marker: str,
    label: str,
) -> None:
    """Means over seeds with the range of the seeds."""
    x = noise.mean(1)
    ax.fill_between(x, values.min(1), values.max(1), color=color, alpha=0.18, linewidth=0)
    ax.plot(x, values.mean(1), style, marker=marker, markersize=5, color=color, label=label)


def _label(
    ax: Axes,
    noise: np.ndarray,
    values: np.ndarray,
    other_noise: np.ndarray,
    other_values: np.ndarray,
    color: str,
    labels: Sequence[str],
) -> None:
    """Labels of the points of a line, on the side where the other line is not."""
    order = np.argsort(other_noise.mean(1))
    others = other_noise.mean(1)[order], other_values.mean(1)[order]
    for x, y, text in zip(noise.mean(1), values.mean(1), labels, strict=True):
        above = y > np.interp(np.log(x), np.log(others[0]), others[1])
        offset, side = ((0, 7), "bottom") if above else ((0, -7), "top")
        style: dict[str, Any] = {"ha": "center", "va": side, "color": color, "fontsize": 9}
        ax.annotate(text, (x, y), offset, textcoords="offset points", **style)
