"""In training, the whole batch is one large network: what an image becomes hangs on its company.

Lee: with batch norm, mean and deviation have to be seen as parts of the network, so a batch of
images goes through one large network together. Two networks, with and without batch norm, are
trained on digits. Then 448 test images are put into batches at random, again and again, and it is
asked how the logit of an image's own class varies with its company, and whether the class it is
given changes. In evaluation, and without batch norm, nothing may change but the rounding: two
identities. The gradient of an image's logit over the pixels of a batch tells how much of it lies on
other images.

That a network may use such a way between images was found by He et al. (MoCo, 2020, section 3.3):
it cheats at a contrastive task. A toy of that: two views of an image each show a part of its
pixels, and the network has to find, among the views of 64 images, the other one of the same image.
Batch norm normalises parts of 4 images by themselves, as each of several GPUs does. If the second
views are in the same parts as the first, statistics tell which part an image is in. If they are
shuffled before and put back in order after (MoCo's remedy), they do not. Both networks are asked
with parts of either kind, and the class of a test image is read off the features by the nearest
mean of a class, by running statistics.

MoCo's own setting, a ResNet-50 with 32 images on each of 8 GPUs, is far out of reach; without
shuffling its accuracy of the task in training rises above 99.9 % (section A.9).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnjax.training import TrainState
from experiments.common.data import Dataset
from experiments.common.errors import UserError
from experiments.common.histories import final
from experiments.common.loop import Examples, Metrics, variables_of
from experiments.common.metrics import evaluate, in_training
from experiments.common.models import MLP
from experiments.common.plots import (
    BLUE,
    OPAQUE,
    ORANGE,
    draw_band,
    draw_dots,
    entitle,
    log_axis,
    narrow,
    percent_axis,
)
from experiments.common.rates import SGD, set_rate
from experiments.common.records import Record, series
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.common.settings import Settings as Common
from experiments.common.trials import Trial, once, training
from experiments.common.verdicts import POINTS, TIMES, Row, Test, claim, identity
from experiments.lab._contrastive import SAME, SHUFFLED, Encoder, contrasted

SIZES = (2, 4, 16, 64)  # images of a batch
FEW, NGS = 4, 64  # of those, which are judged
WATCHED, DRAWS = 448, 16  # images, and batches that each of them is seen in
ROUNDING = 1e-5  # of a logit, beside what logits spread
COLORS = {SAME: ORANGE, SHUFFLED: BLUE}
MARKERS = {SAME: "s", SHUFFLED: "o"}


@dataclass(frozen=True)
class Settings(Common):
    """Settings of the classifiers; the contrastive networks take as many steps."""

    hidden: tuple[int, ...] = (64, 64)
    momentum: float = 0.9


PRESETS = {
    "quick": Settings(steps=200, batch_size=64, learning_rate=0.5, eval_every=20),
    "long": Settings(data="mnist", steps=2000, batch_size=64, learning_rate=0.3, eval_every=200),
}


def trials(settings: Settings, data: Dataset) -> list[Trial]:
    """The two classifiers, and both contrastive networks in one."""
    if len(data.test.labels) < WATCHED:
        raise UserError(f"{data.name}: fewer than {WATCHED} test images")
    classifiers = (
        training(
            network,
            MLP(settings.hidden, batch_norm=network == NORMALISED, activation=nn.relu),
            SGD,
            data,
            settings,
            evaluate=in_company,
            prepare=set_rate(settings.learning_rate),
        )
        for network in NETWORKS
    )
    encoder = Encoder(settings.hidden, settings.momentum)
    sizes = settings.seeds, settings.steps, settings.eval_every
    toy = partial(contrasted, encoder, data, *sizes)
    return [*classifiers, once("contrastive networks", toy)]


def in_company(state: TrainState, test: Examples, *, model: nn.Module) -> Metrics:
    """Test metrics, and how what a network says of an image varies with its company.

    By size of the batch: `spread_...` of the logit of an image's own class, as a share of the
    deviation of all logits, and `changed_...`, the share of images not always given the same class;
    `spread_evaluated`, the same in evaluation; and `elsewhere`, the share of the squared gradient
    of a logit that lies on the pixels of other images, in batches of 64.
    """
    images, labels = (array[:WATCHED] for array in test)
    variables = variables_of(state)

    def trained(batch: jax.Array) -> jax.Array:
        return in_training(model, variables, batch)[0]

    def evaluated(batch: jax.Array) -> Any:
        return model.apply(variables, batch, train=False)

    def once(key: jax.Array, logits: Any, size: int) -> jax.Array:
        order = jax.random.permutation(key, WATCHED)
        said = jax.vmap(logits)(images[order].reshape(WATCHED // size, size, -1))
        return said.reshape(WATCHED, -1)[jnp.argsort(order)]

    keys = jax.random.split(jax.random.key(0), DRAWS)
    scale, found = evaluated(images).std(), {}
    for size in SIZES:
        said = jax.lax.map(partial(once, logits=trained, size=size), keys)
        found[f"spread_{size}"], found[f"changed_{size}"] = variation(said, labels, scale)
    said = jax.lax.map(partial(once, logits=evaluated, size=NGS), keys)
    found["spread_evaluated"] = variation(said, labels, scale)[0]

    def own(batch: jax.Array, label: jax.Array) -> jax.Array:
        return trained(batch)[0, label]

    batches = images.reshape(-1, NGS, images.shape[1])
    slopes = jax.vmap(jax.grad(own))(batches, labels[::NGS]) ** 2
    found["elsewhere"] = slopes[:, 1:].sum() / slopes.sum()
    return evaluate(state, test, model=model) | found


def variation(said: jax.Array, labels: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of logits (draws, images, classes): deviation of an image's own, and share that changes."""
    own = jnp.take_along_axis(said, labels[None, :, None], axis=2)[..., 0]
    classes = said.argmax(-1)
    return jnp.sqrt(own.var(0).mean()) / scale, (classes != classes[:1]).any(0).mean()


def judge(records: Sequence[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table."""
    del settings

    def of(network: str, metric: str) -> np.ndarray:
        return final(records, network, metric)

    def company(metric: str) -> str:
        each = (f"{of(NORMALISED, f'{metric}_{size}').mean():.2g}" for size in SIZES)
        return f"{', '.join(each)} in batches of {', '.join(map(str, SIZES))}"

    task = {way: of(way, "task_same") - of(way, "task_shuffled") for way in (SAME, SHUFFLED)}
    return [
        claim(
            "one large network",
            "the whole batch becomes one large network",
            "Lee",
            Test(
                f"share of images whose class changes with the company, in batches of {FEW} - 1/2",
                of(NORMALISED, f"changed_{FEW}") - 0.5,
            ),
            found=f"share that changes: {company('changed')}; of a logit's squared gradient, "
            f"{of(NORMALISED, 'elsewhere').mean():.1%} lies on other images of {NGS}",
        ),
        claim(
            "less so in large batches",
            '"by using a larger mini-batch size, you\'re reducing this noise"',
            "Ng, Why does batch norm work?",
            Test(
                f"log of a logit's spread, in batches of {FEW} / of {NGS}",
                np.log(of(NORMALISED, f"spread_{FEW}") / of(NORMALISED, f"spread_{NGS}")),
                TIMES,
            ),
            found=f"spread of a logit, as a share of that of all logits: {company('spread')}; "
            f"{FEW} against {NGS}",
        ),
        claim(
            "cheats through the batch",
            'the model cheats at the task: "the intra-batch communication among samples (caused '
            'by BN) leaks information"',
            "He et al. 2020 (MoCo), section 3.3",
            Test(
                "accuracy of the task, asked with the same parts - with shuffled ones",
                task[SAME],
                POINTS,
            ),
            Test(
                "the same difference, trained with the same parts - with shuffled ones",
                task[SAME] - task[SHUFFLED],
                POINTS,
            ),
            found=f"{of(SAME, 'task_same').mean():.1%} and "
            f"{of(SAME, 'task_shuffled').mean():.1%}; trained with shuffled parts "
            f"{of(SHUFFLED, 'task_same').mean():.1%} and "
            f"{of(SHUFFLED, 'task_shuffled').mean():.1%}",
        ),
        claim(
            "and learns less by it",
            '"using BN prevents the model from learning good representations"',
            "He et al. 2020 (MoCo), section 3.3",
            Test(
                "accuracy of the nearest mean of a class, trained with shuffled - with same parts",
                of(SHUFFLED, "class_accuracy") - of(SAME, "class_accuracy"),
            ),
            found=f"{of(SHUFFLED, 'class_accuracy').mean():.1%} and "
            f"{of(SAME, 'class_accuracy').mean():.1%}",
        ),
        *(
            identity(
                short,
                "an image's logit does not vary with its company",
                f"spread at most {values.max():.1e} of that of all logits (rounding: {ROUNDING:g})",
                source,
            )
            for short, values, source in (
                ("in evaluation", of(NORMALISED, "spread_evaluated"), "Lee; Ng"),
                ("without batch norm", of(PLAIN, f"spread_{NGS}"), ""),
            )
        ),
    ]


def draw(records: Sequence[Record], settings: Settings) -> Figure:
    """What the company changes, above; the contrastive task below."""
    figure = narrow(6.4)
    (spread, changed), (task, classes) = figure.subplots(2, 2)
    for ax, metric in ((spread, "spread"), (changed, "changed")):
        values = [final(records, NORMALISED, f"{metric}_{size}") for size in SIZES]
        draw_band(ax, np.array(SIZES), np.stack(values, 1), BLUE, "in training")
        ax.plot(SIZES, [v.mean() for v in values], "o", color=BLUE, markersize=5)
        ax.axhline(0, color=ORANGE, linestyle="--", linewidth=1.8, label="in evaluation")
        log_axis(ax, SIZES)
        ax.set_xlabel("images of a batch")
    spread.legend(loc="lower center", bbox_to_anchor=(0.5, 0.12), **OPAQUE)
    spread.set_ylabel("spread of a logit\n(share of that of all)")
    entitle(spread, "company moves logits", "a")
    percent_axis(changed.yaxis)
    changed.set_ylabel("images whose class changes")
    entitle(changed, "and classes", "b")
    _draw_task(task, records)
    for place, way in enumerate((SAME, SHUFFLED)):
        found = final(records, way, "class_accuracy")
        draw_dots(classes, place, found, COLORS[way], marker=MARKERS[way])
    classes.set_xticks((0, 1), ("same\nparts", "shuffled\nparts"))
    percent_axis(classes.yaxis)
    classes.set_ylabel("class from features")
    entitle(classes, "what was learned", "d")
    return figure


def _draw_task(ax: Axes, records: Sequence[Record]) -> None:
    """Accuracy of the task in training, and when the parts are of the other kind."""
    for way in (SAME, SHUFFLED):
        for asked, style in (("same", "-"), ("shuffled", "--")):
            steps, values = series(records, way, f"task_{asked}")
            draw_band(ax, steps, values, COLORS[way], f"{way.split()[0]}, asked {asked}", style)
    ax.set_ylim(0, 2.3 * ax.get_ylim()[1])  # the legend goes above
    percent_axis(ax.yaxis)
    ax.set(xlabel="training step", ylabel="task accuracy")
    ax.legend(loc="upper left", title="parts in training", fontsize=9, **OPAQUE)
    entitle(ax, "finding the other view", "c")
