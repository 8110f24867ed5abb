"""Test batches that are normalised by their own statistics."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.common.data import NUM_CLASSES, Split
from experiments.common.metrics import accuracy


def sizes(images: int) -> list[int]:
    """2, 4, 8 and so on as far as they fit into a quarter of the images, and all of them."""
    powers = [2**k for k in range(1, 20) if 2**k <= images / 4]
    return [*powers, images]


def shuffled(split: Split) -> Split:
    """The images in a random order, the same each time."""
    order = np.random.default_rng(0).permutation(len(split.labels))
    return Split(split.images[order], split.labels[order])


def by_class(split: Split, size: int) -> Split:
    """As many images of each class, one class after the other, as fill batches of `size`."""
    rows = [np.flatnonzero(split.labels == label) for label in range(NUM_CLASSES)]
    order = np.concatenate([each[: len(each) // size * size] for each in rows])
    return Split(split.images[order], split.labels[order])


def batch_accuracy(model: nn.Module, variables: Any, split: Split, size: int) -> jax.Array:
    """Accuracy if each `size` images, in their order, are normalised by themselves, (seeds,).

    What does not fill a batch at the end is left out. The running statistics are not touched.
    """
    number = max(len(split.labels) // size, 1)
    images, labels = (array[: number * size] for array in split)
    return _accuracy_by_batch(model, variables, images.reshape(number, -1, images.shape[1]), labels)


@partial(jax.jit, static_argnames="model")
def _accuracy_by_batch(model: nn.Module, variables: Any, batches: Any, labels: Any) -> jax.Array:
    def logits(variables: Any, images: jax.Array) -> jax.Array:
        applied: Any = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return applied[0]

    def one_seed(variables: Any) -> jax.Array:
        each = jax.vmap(partial(logits, variables))(batches)
        return accuracy(each.reshape(-1, each.shape[-1]), labels)

    return jax.vmap(one_seed)(variables)
