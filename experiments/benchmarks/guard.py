"""Second passes in real training: how often the running mean is too far from a batch.

On TPU batch norm sums about its running mean, and once more where that lies too far from the mean
of the batch (`bnjax.core._centre`). Here networks are trained, and a layer-step is counted if any
feature of that layer is too far in that step, by the condition of the library itself. Nothing
depends on the machine. The digits come with scikit-learn; MNIST and CIFAR-10 take part where
$BNJAX_DATA_DIR holds them.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from bnjax.core._shift import too_far
from bnjax.linen import BatchNorm
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.panels import Panel
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings
from experiments.benchmarks.timing import Estimate
from experiments.common import data
from experiments.common.errors import UserError
from experiments.common.models import MLP, ConvNet, OfPixels
from experiments.common.records import Record
from experiments.common.resnet import ResNet

SHAPES = {"quick": ((32,),), "full": ((128,),)}  # images in a batch
DEFAULTS = Settings(SHAPES["full"], rounds=500)  # training steps
FIRST = 10  # steps that do not count: the running mean starts at 0
EPSILON = 1e-5
MOMENTA = (0.9, 0.99)  # of He et al.'s networks, and Flax's default

CLAIMS = (Claim(f"rare after {FIRST} steps", "layer-steps with a second pass", 0.01),)


def _mlp(shape: tuple[int, ...], momentum: float) -> nn.Module:
    return MLP(batch_norm=True, activation=nn.relu, momentum=momentum)


def _convolutions(shape: tuple[int, ...], momentum: float) -> nn.Module:
    return OfPixels(ConvNet(BatchNorm, momentum=momentum), shape)


def _resnet(shape: tuple[int, ...], momentum: float) -> nn.Module:
    return OfPixels(ResNet(BatchNorm, stem_stride=2, momentum=momentum), shape)


SGD, ADAM = optax.sgd(0.1, momentum=0.9), optax.adam(1e-3)
NETWORKS = (("MLP", _mlp, SGD), ("convolutions", _convolutions, ADAM), ("ResNet", _resnet, SGD))


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """One record a step and network: layers, and in how many of them a feature was too far."""
    runs = itertools.product(settings.shapes, MOMENTA, _at_hand(progress), NETWORKS)
    for (batch,), momentum, dataset, (name, make, optimizer) in runs:
        network = make(dataset.shape, momentum)
        where = {"contestant": f"{name}, {dataset.name}", "batch": batch, "momentum": momentum}
        steps = train(network, momentum, optimizer, dataset.train, batch, settings.rounds)
        doing = f"{where['contestant']}, {batch} images, momentum {momentum}"
        for step, far in enumerate(progress.track(steps, settings.rounds, doing)):
            yield where | {"step": step, "layers": len(far), "far": int(far.sum())}


def _at_hand(progress: Progress) -> Iterator[data.Dataset]:
    yield data.load("digits")
    for name in ("mnist", "cifar10"):
        try:
            if not os.environ.get(data.DATA_DIR_VARIABLE):
                raise UserError(f"{data.DATA_DIR_VARIABLE} names no folder")
            yield data.load(name)
        except UserError as error:
            progress.say(f"without {name}: {error}")


def train(
    network: nn.Module,
    momentum: float,
    optimizer: optax.GradientTransformation,
    split: data.Split,
    batch: int,
    steps: int,
) -> Iterator[np.ndarray]:
    """Of each step, whether any feature of each layer was too far."""
    variables = network.init(jax.random.key(0), split.images[:2], train=True)
    params, stats = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    step = jax.jit(partial(_step, network, momentum, optimizer))
    for _ in range(steps):
        chosen = rng.integers(len(split.labels), size=batch)
        images, labels = split.images[chosen], split.labels[chosen]
        params, stats, state, far = step(params, stats, state, images, labels)
        yield np.asarray(far)


def _step(
    network: nn.Module, momentum: float, optimizer: Any, params, stats, state, images, labels
):
    def loss(params):
        variables = {"params": params, "batch_stats": stats}
        logits, changed = network.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed["batch_stats"]

    gradients, after = jax.grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), after, state, far_layers(momentum, stats, after)


def far_layers(momentum: float, before: Any, after: Any) -> jax.Array:
    """Whether any feature of each layer was too far, from the running statistics around a step.

    What a batch had is what the running average was moved towards.
    """
    before, after = (traverse_util.flatten_dict(tree) for tree in (before, after))
    layers = sorted({path[:-1] for path in before})

    def of_batch(path):
        return before[path] + (after[path] - before[path]) / (1 - momentum)

    return jnp.stack(
        [
            jnp.any(
                too_far(
                    of_batch((*layer, "mean")) - before[(*layer, "mean")],
                    of_batch((*layer, "var")),
                    EPSILON,
                )
            )
            for layer in layers
        ]
    )


def share(records: Sequence[Record], **where: Any) -> float:
    """Of all layer-steps after the first, those with a second pass."""
    chosen = [r for r in records if all(r[key] == value for key, value in where.items())]
    late = [r for r in chosen if r["step"] >= FIRST]
    return sum(r["far"] for r in late) / sum(r["layers"] for r in late)


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """The share of all networks together, and the range over them."""
    names = {(r["contestant"], r["batch"], r["momentum"]) for r in records}
    each = [share(records, contestant=n, batch=b, momentum=m) for n, b, m in names]
    return {"layer-steps with a second pass": Estimate(share(records), min(each), max(each))}


def panels(records: Sequence[Record]) -> list[Panel]:
    """The share of each network."""
    names = sorted({r["contestant"] for r in records})
    return [
        Panel(
            f"second passes after {FIRST} steps, momentum {momentum}",
            "% of layer-steps",
            {n: Estimate(100 * share(records, contestant=n, momentum=momentum)) for n in names},
        )
        for momentum in MOMENTA
    ]
