"""A contrastive task at which a network may cheat through the statistics of its batch.

Of `experiments.lab.batch_dependence`; He et al. (2020, MoCo), section 3.3.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.linen import BatchNorm
from bnjax.training import TrainState, train_step
from experiments.common.data import NUM_CLASSES, Dataset
from experiments.common.loop import Examples, Metrics
from experiments.common.metrics import accuracy
from experiments.common.records import Record, per_seed

SAME, SHUFFLED = "same parts", "shuffled parts"
CANDIDATES, PART = 64, 4  # images of a contrastive batch, and of a part of it
DRAWS = 16  # batches of an evaluation
SHOWN = 0.5  # of the pixels in a view
TEMPERATURE, ADAM = 0.2, 0.003  # the rate of Adam is the usual one times three


class Encoder(nn.Module):
    """Linear layers with batch norm over parts of a batch, and a linear layer to a unit vector."""

    hidden: tuple[int, ...]
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps images (batch, pixels) to vectors (batch, 32) and features (batch, units)."""
        for units in self.hidden:
            norm = BatchNorm(not train, momentum=self.momentum, virtual_batch_size=PART)
            x = nn.relu(norm(nn.Dense(units, use_bias=False)(x)))
        vector = nn.Dense(32)(x)
        return vector / jnp.linalg.norm(vector, axis=-1, keepdims=True), x


def contrasted(
    model: Encoder, data: Dataset, seeds: int, steps: int, eval_every: int
) -> Iterator[Record]:
    """Trains with parts of both kinds side by side, and logs how well each does at the task."""
    every = min(eval_every, steps)
    train, test = (tuple(map(jnp.asarray, split)) for split in (data.train, data.test))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    one = partial(_contrast, model, train, test, steps // every, every)
    over_ways = jax.vmap(one, (None, 0))
    found = jax.jit(jax.vmap(over_ways, (0, None)))(keys, jnp.array([False, True]))
    found = {name: np.asarray(values) for name, values in found.items()}
    for way, name in enumerate((SAME, SHUFFLED)):
        for at in range(steps // every):
            metrics = {metric: values[:, way, at] for metric, values in found.items()}
            yield from per_seed((at + 1) * every, name, metrics)


def _contrast(model, train, test, evaluations, every, key, shuffles) -> Metrics:
    """One network's history, each (evaluations,), with shuffled parts or not."""
    init_key, key = jax.random.split(key)
    variables = model.init(init_key, train[0][:PART], train=False)
    state = TrainState.create(**variables, tx=optax.adam(ADAM))
    loss_fn = partial(_loss, model)

    def step(state: TrainState, key: jax.Array):
        batch = _batch(key, train[0], shuffles)
        return train_step(state, batch, loss_fn)[0], None

    def chunk(state: TrainState, key: jax.Array):
        state, _ = jax.lax.scan(step, state, jax.random.split(key, every))
        return state, _measured(model, state, train, test)

    return jax.lax.scan(chunk, state, jax.random.split(key, evaluations))[1]


def _batch(key: jax.Array, images: jax.Array, shuffles: jax.Array) -> dict[str, jax.Array]:
    """Two views of some images, and the order in which the second ones are normalised."""
    chosen, first, second, parts = jax.random.split(key, 4)
    x = images[jax.random.permutation(chosen, len(images))[:CANDIDATES]]
    views = (jnp.where(jax.random.bernoulli(k, SHOWN, x.shape), x, 0) for k in (first, second))
    shuffled = jax.random.permutation(parts, CANDIDATES)
    order = jnp.where(shuffles, shuffled, jnp.arange(CANDIDATES))
    return dict(zip(("first", "second"), views, strict=True)) | {"order": order}


def _similarities(model, params, collections, batch, train) -> tuple[jax.Array, Any]:
    """Of each first view (rows) and each second one, over the temperature."""

    def vectors(x: jax.Array, collections: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, **collections}
        (vector, _), new = model.apply(variables, x, train=train, mutable=["batch_stats"])
        return vector, new

    first, collections = vectors(batch["first"], collections)
    second, collections = vectors(batch["second"][batch["order"]], collections)
    return first @ second[jnp.argsort(batch["order"])].T / TEMPERATURE, collections


def _loss(model, params, collections, batch, train) -> Any:
    similar, collections = _similarities(model, params, collections, batch, train)
    same = jnp.arange(CANDIDATES)
    losses = optax.softmax_cross_entropy_with_integer_labels(similar, same)
    return losses.mean(), (collections, {})


def _measured(model, state: TrainState, train: Examples, test: Examples) -> Metrics:
    """Accuracy of the task with parts of both kinds, and of the nearest mean of a class."""
    collections = {"batch_stats": state.batch_stats}

    def found(key: jax.Array, shuffles: bool) -> jax.Array:
        batch = _batch(key, test[0], jnp.array(shuffles))
        similar, _ = _similarities(model, state.params, collections, batch, True)
        return accuracy(similar, jnp.arange(CANDIDATES))

    keys = jax.random.split(jax.random.key(0), DRAWS)
    of_train, of_test = (
        model.apply({"params": state.params, **collections}, images, train=False)[1]
        for images in (train[0], test[0])
    )
    return {
        "task_same": jax.vmap(partial(found, shuffles=False))(keys).mean(),
        "task_shuffled": jax.vmap(partial(found, shuffles=True))(keys).mean(),
        "class_accuracy": nearest_mean(of_train, train[1], of_test, test[1]),
    }


def nearest_mean(features, labels, of_test, test_labels) -> jax.Array:
    """Accuracy of the class whose mean of `features` is the nearest."""
    of_class = jax.nn.one_hot(labels, NUM_CLASSES)
    means = of_class.T @ features / of_class.sum(0)[:, None]
    return accuracy(of_test @ means.T - (means**2).sum(1)[None] / 2, test_labels)
