"""Pretrained models and batch norm: freeze, adapt or train the statistics (Ng).

A network learns one half of the classes (0 to 4), gets a new last layer, and learns the other half
(5 to 9) from a few examples a class, in four ways:

    frozen    statistics, scale and shift stay as pretrained (`bnjax.surgery.freeze`; `trained`
              tells the optimizer to leave them alone)
    adapted   the same, after `bnjax.training.adapt` has taken the statistics of the new examples
    trained   batch norm as in any training: batches normalise, running averages follow
    scratch   as trained, but from new weights: what pretraining is worth

All weights learn, at a tenth of the learning rate of the pretraining, as is usual. Each seed has
its own pretrained network and its own examples, the same for all four. Two things are varied: the
number of examples, at mini-batches of `batch_size`; and the size of the mini-batch, at `few`
examples a class. A small mini-batch is the usual reason to freeze: memory is short where large
models are fine-tuned. The lecture shows no numbers; its networks were pretrained on ImageNet, and
have more to hand on than five digits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from bnjax.surgery import freeze, trained
from bnjax.training import TrainState, adapt, train_step
from experiments.common.claims import (
    VERDICT_RULE,
    Claim,
    Interval,
    paired_interval,
    verdict,
    with_interval,
)
from experiments.common.data import NUM_CLASSES, Dataset, Split
from experiments.common.loss import LossFn, make_loss_fn
from experiments.common.models import MLP
from experiments.common.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    WIDTH_INCHES,
    draw_band,
    spread_over_seeds,
)
from experiments.common.population import OverSeeds, evaluated, running_accuracy, train_to_end
from experiments.common.progress import Reporter
from experiments.common.records import Record, series
from experiments.common.settings import Settings
from experiments.common.trials import Trial

FROZEN, ADAPTED, TRAINED, SCRATCH = WAYS = ("frozen", "adapted", "trained", "scratch")
STYLES = {
    FROZEN: (ORANGE, "--"),
    ADAPTED: (GREEN, "-."),
    TRAINED: (BLUE, "-"),
    SCRATCH: (GREY, ":"),
}
HALF = NUM_CLASSES // 2
BY_EXAMPLES, BY_BATCH = "examples", "batch"


@dataclass(frozen=True)
class TransferSettings(Settings):
    """Pretraining takes `steps` of `batch_size`; fine-tuning `tune_steps` at `tune_rate`."""

    hidden: tuple[int, ...] = (64, 64, 64)
    init_std: float = 0.1
    momentum: float = 0.9
    tune_steps: int = 300
    tune_rate: float = 0.01
    few: int = 5  # examples a class where the mini-batch is varied
    examples: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    batches: tuple[int, ...] = (2, 4, 8, 16, 32)


PRESETS = {
    "quick": TransferSettings(steps=600, batch_size=32, eval_every=100),
    "paper": TransferSettings(
        data="mnist",
        steps=4000,
        batch_size=32,
        eval_every=500,
        hidden=(100, 100, 100),
        init_std=0.05,
        tune_steps=500,
        examples=(1, 2, 5, 10, 20, 50, 200, 1000),
    ),
}


def trials(settings: TransferSettings, data: Dataset) -> list[Trial]:
    """One trial: pretraining, and everything that starts from it."""
    return [Trial("pretraining", settings.steps, partial(_measure, settings, data))]


def half(data: Dataset, first: int) -> Dataset:
    """The images of the `HALF` classes from `first` on, their labels counted from 0."""

    def choose(split: Split) -> Split:
        rows = (split.labels >= first) & (split.labels < first + HALF)
        return Split(split.images[rows], split.labels[rows] - np.int32(first))

    return data._replace(train=choose(data.train), test=choose(data.test))


def draw_examples(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Rows of `each` random examples of every class, fewer where there are not as many."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == c][:each] for c in range(HALF)])


def draw_batches(rows: np.ndarray, steps: int, size: int, seed: int) -> np.ndarray:
    """Mini-batches (steps, size) that go through `rows` in a new order in each epoch."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * size // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(epochs)])[: steps * size].reshape(
        steps, size
    )


def _measure(settings: TransferSettings, data: Dataset, reporter: Reporter) -> Iterator[Record]:
    model = MLP(
        hidden=settings.hidden,
        num_classes=HALF,
        batch_norm=True,
        activation=nn.relu,
        init_std=settings.init_std,
        momentum=settings.momentum,
    )
    old, new = half(data, 0), half(data, HALF)
    optimizer = optax.sgd(settings.learning_rate)
    pretrained = train_to_end("pretraining", reporter, model, optimizer, old, settings)
    fresh = _init(model, settings.seeds, new.train.images.shape[1])
    tuning = _Tuning(model, settings, new, _with_new_head(pretrained, fresh), fresh)
    for way in WAYS:
        reporter.say(f"fine-tuning: {way}")
        for each in settings.examples:
            yield from tuning.records(way, BY_EXAMPLES, each, each, settings.batch_size)
        for size in settings.batches:
            yield from tuning.records(way, BY_BATCH, size, settings.few, size)


def _init(model: nn.Module, seeds: int, pixels: int) -> Any:
    """Variables of other seeds than those of the pretraining."""
    keys = jax.vmap(jax.random.key)(1000 + jnp.arange(seeds))
    return jax.vmap(lambda key: model.init(key, jnp.zeros((2, pixels)), train=False))(keys)


def _with_new_head(variables: Any, fresh: Any) -> Any:
    """`variables` with the last layer of `fresh`."""
    head = max(name for name in fresh["params"] if name.startswith("Dense"))
    return {**variables, "params": {**variables["params"], head: fresh["params"][head]}}


class _Tuning:
    """Fine-tunes from the same pretrained networks again and again."""

    def __init__(self, model, settings: TransferSettings, data: Dataset, pretrained, fresh):
        self._model, self._settings, self._data = model, settings, data
        self._pretrained, self._fresh = pretrained, fresh
        self._train = (jnp.asarray(data.train.images), jnp.asarray(data.train.labels))
        self._loss_fn = make_loss_fn(model)
        # One object for all ways that learn the same: they share compiled programs.
        self._free = optax.sgd(settings.tune_rate)
        self._held = optax.masked(self._free, trained(freeze(pretrained)))

    def records(self, way: str, varied: str, value: int, each: int, size: int) -> Iterator[Record]:
        """One record a seed: test accuracy after tuning on `each` examples in batches of `size`."""
        settings, labels = self._settings, self._data.train.labels
        rows = [draw_examples(labels, each, seed) for seed in range(settings.seeds)]
        batches = [draw_batches(r, settings.tune_steps, size, s) for s, r in enumerate(rows)]
        variables = self._start(way, np.stack(rows))
        tx = self._held if way in (FROZEN, ADAPTED) else self._free
        tuned = fine_tune(tx, self._loss_fn, variables, np.stack(batches), *self._train)
        accuracies = running_accuracy(self._model, tuned, *self._data.test)
        for seed, accuracy in enumerate(accuracies.tolist()):
            record = {"network": f"{way}, by {varied}", "seed": seed, "step": value}
            yield record | {"test_accuracy": accuracy}

    def _start(self, way: str, rows: np.ndarray) -> Any:
        """The variables to start from, with the seeds on axis 0."""
        if way in (TRAINED, SCRATCH):
            return self._pretrained if way == TRAINED else self._fresh
        if way == FROZEN:
            return freeze(self._pretrained)
        images = self._data.train.images[rows]
        over_seeds = OverSeeds(per_seed=True)
        return freeze(
            adapt(self._model, self._pretrained, [images], call=evaluated, transform=over_seeds)
        )


def fine_tune(tx, loss_fn: LossFn, variables: Any, batches: Any, images: Any, labels: Any) -> Any:
    """The variables of all seeds after a step of `tx` for each of `batches`.

    `batches` are rows of `images` and `labels`, (seeds, steps, size).
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    states = jax.vmap(lambda p, s: TrainState.create(params=p, batch_stats=s, tx=tx))
    tuned = _fine_tune(states(params, batch_stats), batches, images, labels, loss_fn)
    return {"params": tuned.params, "batch_stats": tuned.batch_stats}


@partial(jax.jit, static_argnames="loss_fn")
def _fine_tune(states, batches, images, labels, loss_fn):
    def step(state, rows):
        return train_step(state, {"images": images[rows], "labels": labels[rows]}, loss_fn)

    return jax.vmap(lambda state, rows: jax.lax.scan(step, state, rows)[0])(states, batches)


def judge(records: Sequence[Record], settings: TransferSettings) -> list[Claim]:
    """What pretraining, adapting, freezing and training are worth, and when."""
    few, smallest, most = settings.few, min(settings.batches), max(settings.examples)
    return [
        _claim(
            f"{few} examples a class: a pretrained network, frozen, does better than a new one",
            "Ng: with little data of your own, start from a trained network and freeze",
            _accuracies(records, (FROZEN, SCRATCH), BY_EXAMPLES, few),
        ),
        _claim(
            f"{few} examples a class: freezing does better than training the statistics",
            "Ng: with little data, train little of the network",
            _accuracies(records, (FROZEN, TRAINED), BY_EXAMPLES, few),
        ),
        _claim(
            f"{few} examples a class: frozen statistics should be those of the new classes",
            "Li et al. 2016: statistics belong to the data, weights to the task",
            _accuracies(records, (ADAPTED, FROZEN), BY_EXAMPLES, few),
        ),
        _claim(
            f"mini-batches of {smallest}: freezing does better than training the statistics",
            "Wu & He 2018, section 4.2: detectors freeze, since their mini-batches are small",
            _accuracies(records, (FROZEN, TRAINED), BY_BATCH, smallest),
        ),
        _claim(
            f"{most:,} examples a class: training the statistics does better than freezing",
            "Ng: with more data, train more of the network",
            _accuracies(records, (TRAINED, FROZEN), BY_EXAMPLES, most),
        ),
    ]


def _accuracies(
    records: Sequence[Record], ways: tuple[str, str], varied: str, value: int
) -> dict[str, np.ndarray]:
    """Test accuracies (seeds,) of two ways."""
    found = {}
    for way in ways:
        values, accuracy = series(records, f"{way}, by {varied}", "test_accuracy")
        found[way] = accuracy[:, values.tolist().index(value)]
    return found


def _claim(claim: str, paper: str, accuracies: dict[str, np.ndarray]) -> Claim:
    """The first of two ways is more accurate."""
    (first, a), (second, b) = accuracies.items()
    interval = paired_interval(a - b)
    points = with_interval(Interval(*(100 * value for value in interval)), "+.2f")
    return Claim(
        claim=claim,
        paper=paper,
        found=f"{a.mean():.1%} {first}, {b.mean():.1%} {second}; {points} points",
        verdict=verdict(interval),
        test=f"test accuracy of {first} - {second}. {VERDICT_RULE}",
        numbers={
            first: a.tolist(),
            second: b.tolist(),
            "difference": interval.mean,
            "interval": [interval.low, interval.high],
        },
    )


def draw(records: Sequence[Record], settings: TransferSettings) -> Figure:
    """Accuracy against examples a class on the left, against the mini-batch on the right."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_ways(left, records, BY_EXAMPLES)
    _draw_ways(right, records, BY_BATCH)
    left.set_title(f"a   mini-batches of {settings.batch_size}", loc="left", fontweight="bold")
    right.set_title(f"b   {settings.few} examples a class", loc="left", fontweight="bold")
    left.set_xlabel("examples a class")
    right.set_xlabel("images in a mini-batch")
    left.set_ylabel("test accuracy on the new classes")
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        "A pretrained model's statistics: freeze, adapt or train them\n"
        f"({settings.data_name}, classes 0-4 to 5-9, {spread_over_seeds(settings)})",
        fontsize=13,
        fontweight="bold",
    )
    return figure


def _draw_ways(ax: Axes, records: Sequence[Record], varied: str) -> None:
    values = np.array([])
    for way, (color, style) in STYLES.items():
        values, accuracy = series(records, f"{way}, by {varied}", "test_accuracy")
        draw_band(ax, values, accuracy, color, way, style)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(values.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
