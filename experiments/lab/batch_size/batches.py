"""Batches that are not independent draws."""

import jax
import jax.numpy as jnp


def few_classes(key: jax.Array, labels: jax.Array, *, size: int) -> jax.Array:
    """An order of all images in which runs of `size` are of the same class, as far as they go.

    Images and runs are in random order, so a batch of k runs has k classes or fewer, but for runs
    across the border of two classes. What does not fill a run comes last.

    Args:
      key: random key.
      labels: (n,).
      size: images of a run.

    Returns:
      Indices (n,).
    """
    images, runs = jax.random.split(key)
    order = jax.random.permutation(images, len(labels))
    order = order[jnp.argsort(labels[order], stable=True)]
    whole = len(labels) // size * size
    mixed = jax.random.permutation(runs, order[:whole].reshape(-1, size), axis=0)
    return jnp.concatenate([mixed.ravel(), order[whole:]])
