"""The training loop: a chunk of steps inside `jit`, and several seeds side by side.

Data and weights stay on the device. A chunk of steps is one `lax.scan`, and all seeds are trained
together under `vmap`, so the host is asked once per evaluation and never per step.
"""

from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.training import TrainState, train_step
from experiments.common.data import Dataset
from experiments.common.errors import UserError
from experiments.common.loss import LossFn, make_loss_fn

Examples = tuple[jax.Array, jax.Array]  # images (batch, pixels), labels (batch,)
Metrics = dict[str, jax.Array]


Shuffle = Callable[[jax.Array, jax.Array], jax.Array]
AcrossSeeds = Callable[[Callable[..., Any]], Callable[..., Any]]


class Evaluation(NamedTuple):
    """What was measured after `step` steps; every value holds one number a seed, shape (seeds,)."""

    step: int
    metrics: dict[str, np.ndarray]


def shuffled(key: jax.Array, labels: jax.Array) -> jax.Array:
    """All images once, in random order."""
    return jax.random.permutation(key, len(labels))


def one_by_one(run: Callable[..., Any]) -> Callable[..., Any]:
    """Like `jax.vmap`, one seed after the other, and training one program a step.

    For convolutions: XLA does not bring those of the backward pass into the form that its CPU
    kernels need where they are inside of a `lax.scan`, and a step of a small ResNet takes 20 times
    as long there.
    """

    def runs(*args: Any) -> Any:
        seeds = range(len(jax.tree.leaves(args)[0]))
        results = [run(*jax.tree.map(itemgetter(seed), args)) for seed in seeds]
        return jax.tree.map(lambda *each: jnp.stack(each), *results)

    return runs


def init_state(
    key: jax.Array, model: nn.Module, optimizer: optax.GradientTransformation, pixels: int
) -> TrainState:
    """Draws the first weights of `model` for inputs of `pixels` numbers."""
    variables = model.init(key, jnp.zeros((2, pixels)), train=False)
    return TrainState.create(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=optimizer,
    )


def variables_of(state: TrainState) -> dict[str, Any]:
    """What the network of `state` is applied with."""
    return {"params": state.params, "batch_stats": state.batch_stats}


@lru_cache(maxsize=1)  # a sweep over rates asks again and again
def first_states(
    model: nn.Module, optimizer: optax.GradientTransformation, num_seeds: int, pixels: int
) -> TrainState:
    """The states that training starts from, seeds on axis 0; see `init_state`."""
    init = partial(init_state, model=model, optimizer=optimizer, pixels=pixels)
    # Not jitted: that takes longer to compile than to draw.
    return jax.vmap(init)(_keys(num_seeds)[0])


def _keys(num_seeds: int) -> jax.Array:
    """Of each seed one for its weights and one to shuffle by, (2, seeds)."""
    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    return jax.vmap(jax.random.split, out_axes=1)(keys)


def train_chunk(
    state: TrainState,
    order: jax.Array,
    key: jax.Array,
    train: Examples,
    first_step: jax.Array,
    *,
    loss_fn: LossFn,
    num_steps: int,
    batch_size: int,
    shuffle: Shuffle = shuffled,
) -> tuple[TrainState, jax.Array, jax.Array]:
    """Takes `num_steps` steps; each epoch goes through the training set in a new random order.

    Args:
      state: where to start.
      order: (n,) the order of the current epoch.
      key: the seed's key for shuffling.
      train: all training images (n, pixels) and labels (n,).
      first_step: number of steps taken before, (). The last n mod batch_size images of an epoch's
        order are left out of that epoch.
      loss_fn: of `bnjax.training`; it gets `images` and `labels`.
      num_steps, batch_size: whole numbers.
      shuffle: `(key, labels) -> order` of an epoch.

    Returns:
      The new state, the current order, and the mean loss of the chunk.
    """
    images, labels = train
    steps_per_epoch = len(images) // batch_size

    def body(carry: tuple[TrainState, jax.Array], step: jax.Array):
        state, order = carry
        epoch, position = step // steps_per_epoch, step % steps_per_epoch
        # The step is the same for all seeds, so under vmap this stays a branch, and sorting a
        # large training set is paid for once an epoch and not once a step.
        order = jax.lax.cond(
            position == 0,
            lambda: shuffle(jax.random.fold_in(key, epoch), labels),
            lambda: order,
        )
        chosen = jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
        batch = {"images": images[chosen], "labels": labels[chosen]}
        state, metrics = train_step(state, batch, loss_fn)
        return (state, order), metrics["loss"]

    steps = first_step + jnp.arange(num_steps)
    if num_steps == 1:  # no loop, not even an unrolled one: see `one_by_one`
        (state, order), loss = body((state, order), steps[0])
        return state, order, loss
    (state, order), losses = jax.lax.scan(body, (state, order), steps)
    return state, order, losses.mean()


def train_seeds(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    evaluate: Callable[..., Metrics],
    data: Dataset,
    *,
    num_seeds: int,
    num_steps: int,
    batch_size: int,
    eval_every: int,
    prepare: Callable[[TrainState], TrainState] = lambda states: states,
    shuffle: Shuffle = shuffled,
    across_seeds: AcrossSeeds = jax.vmap,
) -> Iterator[Evaluation]:
    """Trains seeds 0 to `num_seeds - 1` side by side, with an evaluation every `eval_every` steps.

    Seed s fixes both the first weights and the order of the mini-batches, so two models with
    layers of the same names and shapes start from the same weights and see the same batches.

    Args:
      model: the network.
      optimizer: an optax optimizer.
      evaluate: `(state, test, model=model) -> metrics`, scalars by name, traced once.
      data: training and test set.
      num_seeds, num_steps, batch_size, eval_every: whole numbers.
      prepare: changes the states before the first step; their arrays have the seeds on axis 0.
      shuffle: `(key, labels) -> order` of an epoch, (n,).
      across_seeds: `jax.vmap`, or `one_by_one` for networks with convolutions.

    Yields:
      An evaluation before the first step, when all that the steps need is compiled, after every
      `eval_every` steps, and after the last. It holds what `evaluate` measures, `train_loss`, the
      mean since the evaluation before, and where images are held out
      (`experiments.common.data.hold_out`) `validation_accuracy`.
    """
    if batch_size > len(data.train.labels):
        raise UserError(
            f"batches of {batch_size} are more than the {len(data.train.labels)} images to train on"
        )
    train = _on_device(data.train.images, data.train.labels)
    test = _on_device(data.test.images, data.test.labels)
    states = prepare(first_states(model, optimizer, num_seeds, train[0].shape[1]))
    _, shuffle_keys = _keys(num_seeds)
    orders = jnp.zeros((num_seeds, len(train[1])), jnp.int32)  # drawn anew at step 0

    if data.validation is not None:
        evaluate = _validated(evaluate)
        test = test, _on_device(*data.validation)
    evaluate_seeds = partial(_evaluate_seeds, evaluate, model, across_seeds)
    options = {
        "loss_fn": _loss_fn(model),
        "batch_size": batch_size,
        "shuffle": shuffle,
        "across_seeds": across_seeds,
    }
    before = jax.device_get(evaluate_seeds(states, test))
    lengths = {min(eval_every, num_steps), num_steps % eval_every} - {0}
    _compile(states, orders, shuffle_keys, train, lengths, **options)
    yield Evaluation(0, before)
    for first in range(0, num_steps, eval_every):
        length = min(eval_every, num_steps - first)
        states, orders, loss = _train_seeds_chunk(
            states, orders, shuffle_keys, train, first, num_steps=length, **options
        )
        metrics = jax.device_get(evaluate_seeds(states, test) | {"train_loss": loss})
        yield Evaluation(first + length, metrics)


# One program for all trials with the same model, optimizer and sizes.
_loss_fn = cache(make_loss_fn)


@cache
def _validated(evaluate: Callable[..., Metrics]) -> Callable[..., Metrics]:
    """Measures on the images held out as well."""

    def both(state: TrainState, test: tuple[Examples, Examples], *, model: nn.Module) -> Metrics:
        images, labels = test[1]
        variables = variables_of(state)
        logits: Any = model.apply(variables, images, train=False)
        accuracy = jnp.mean(logits.argmax(-1) == labels)
        return evaluate(state, test[0], model=model) | {"validation_accuracy": accuracy}

    return both


_SIZES = ("loss_fn", "num_steps", "batch_size", "shuffle")


def _compile(states, orders, keys, train, lengths, across_seeds, **static):
    """Has the programs for chunks of these `lengths` ready, where JAX finds them when called."""
    if across_seeds is one_by_one:
        first = jax.tree.map(itemgetter(0), (states, orders, keys))
        _train_chunk.lower(*first, train, 0, num_steps=1, **static).compile()
        return
    for length in lengths:
        args = states, orders, keys, train, 0, across_seeds
        _train_together.lower(*args, num_steps=length, **static).compile()


def _train_seeds_chunk(states, orders, keys, train, first_step, across_seeds, **static):
    if across_seeds is one_by_one:
        options = {"train": train, "first_step": first_step, **static}
        return one_by_one(partial(_train_step_by_step, **options))(states, orders, keys)
    return _train_together(states, orders, keys, train, first_step, across_seeds, **static)


@partial(jax.jit, static_argnames=(*_SIZES, "across_seeds"))
def _train_together(states, orders, keys, train, first_step, across_seeds, **static):
    def chunk(state, order, key):
        return train_chunk(state, order, key, train, first_step, **static)

    return across_seeds(chunk)(states, orders, keys)


def _train_step_by_step(state, order, key, *, train, first_step, num_steps, **static):
    losses = []
    for step in range(first_step, first_step + num_steps):
        state, order, loss = _train_chunk(state, order, key, train, step, num_steps=1, **static)
        losses.append(loss)
    return state, order, jnp.stack(losses).mean()


_train_chunk = jax.jit(train_chunk, static_argnames=_SIZES)


def _evaluate_seeds(evaluate, model, across_seeds, states, test):
    if across_seeds is one_by_one:
        return one_by_one(lambda state: _evaluate(evaluate, model, state, test))(states)
    return _evaluate_together(evaluate, model, across_seeds, states, test)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _evaluate_together(evaluate, model, across_seeds, states, test):
    return across_seeds(lambda state: evaluate(state, test, model=model))(states)


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate(evaluate, model, state, test):
    return evaluate(state, test, model=model)


def _on_device(images: np.ndarray, labels: np.ndarray) -> Examples:
    return jnp.asarray(images), jnp.asarray(labels)
