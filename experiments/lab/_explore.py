"""What the loss and its gradient are like around some weights, and what histories of that come to.

Of `experiments.lab.landscape`; Santurkar et al. (2018), Fig. 4 and Definition 2.1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.training import TrainState
from experiments.common.loop import Examples, Metrics
from experiments.common.loss import make_loss_fn
from experiments.common.metrics import evaluate
from experiments.common.records import Record, series
from experiments.common.sweep import at_rate

LossAndGrad = Callable[[Any], tuple[jax.Array, Any]]


def explore(
    state: TrainState,
    test: Examples,
    *,
    model: nn.Module,
    probe: Examples,
    batch_size: int,
    reach: tuple[float, float, int],
    shifts: bool,
) -> Metrics:
    """What is measured around the weights of `state`, and the test metrics.

    Args:
      state: weights and running statistics.
      test: images (n, pixels) and labels (n,), for the test accuracy.
      model: the network, an `experiments.common.models.MLP`.
      probe: training images and labels, from which a mini-batch is drawn anew for every step.
      batch_size: of that mini-batch.
      reach: the shortest and longest step along the gradient, in learning rates, and how many.
      shifts: whether to measure covariate shift as well.
    """
    images, labels = probe
    key = jax.random.fold_in(jax.random.key(0), state.step)
    size = min(batch_size, len(labels))
    rows = jax.random.choice(key, len(labels), (size,), replace=False)
    batch = {"images": images[rows], "labels": labels[rows]}
    loss_fn, collections = make_loss_fn(model), {"batch_stats": state.batch_stats}

    @jax.jit  # traced once
    @jax.value_and_grad
    def loss_and_grad(params: Any) -> jax.Array:
        return loss_fn(params, collections, batch, True)[0]

    _, grads = loss_and_grad(state.params)
    rate: Any = optax.tree.get(state.opt_state, "learning_rate")
    etas = rate * jnp.geomspace(*reach)
    found = along_gradient(loss_and_grad, state.params, grads, etas)
    found |= evaluate(state, test, model=model)
    if shifts:
        around = (loss_and_grad, state.params, grads, rate)
        found |= covariate_shift(*around, layers(state.params), kernels)
    return found


def along_gradient(loss_and_grad: LossAndGrad, params: Any, grads: Any, etas: jax.Array) -> Metrics:
    """Range of the loss, largest change of the gradient, and its largest slope (effective beta).

    Args:
      loss_and_grad: of parameters.
      params, grads: where to start, and the gradient there.
      etas: (points,) steps along it.

    Returns:
      `loss_low`, `loss_high`, `change` and `beta`.
    """

    def at(eta: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, there = loss_and_grad(step(params, grads, eta))
        return loss, optax.tree.norm(optax.tree.sub(there, grads))

    losses, changes = jax.lax.map(at, etas)
    return {
        "loss_low": losses.min(),
        "loss_high": losses.max(),
        "change": changes.max(),
        "beta": (changes / (etas * optax.tree.norm(grads))).max(),
    }


def covariate_shift(
    loss_and_grad: LossAndGrad,
    params: Any,
    grads: Any,
    rate: jax.Array,
    layer: Any,
    kernels: Callable[[Any], list[jax.Array]],
) -> Metrics:
    """Change of each layer's gradient by the step of the layers before it, mean over layers.

    Args:
      loss_and_grad, params, grads: as above.
      rate: learning rate of the step.
      layer: a tree like `params` that tells of each entry the layer it belongs to, from 0 at the
        input; each leaf broadcasts to the parameter.
      kernels: of a tree like `params`, the weights of every layer, from the input on, in arrays
        (layers, numbers).

    Returns:
      `shift`, the l2 distance of both gradients, and `shift_cosine`, that of their angle.
    """
    taken, before = step(params, grads, rate), kernels(grads)

    def compare(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of all layers, once those before layer `i` have moved."""
        mixed = jax.tree.map(lambda of, new, now: jnp.where(of < i, new, now), layer, taken, params)
        after = kernels(loss_and_grad(mixed)[1])
        pairs = list(zip(before, after, strict=True))
        cosine = optax.losses.cosine_similarity
        distances = jnp.concatenate([jnp.linalg.norm(a - b, axis=1) for a, b in pairs])
        return distances, jnp.concatenate([cosine(a, b) for a, b in pairs])

    of = jnp.arange(1, sum(map(len, before)))  # before the first layer there is none
    distances, cosines = jax.lax.map(compare, of)
    return {
        "shift": distances[of - 1, of].mean(),
        "shift_cosine": cosines[of - 1, of].mean(),
    }


def step(params: Any, grads: Any, eta: jax.Array) -> Any:
    """The parameters after a step of gradient descent."""
    return jax.tree.map(lambda p, g: p - eta * g, params, grads)


def layers(params: Any) -> Any:
    """The layer, from 0 at the input, of every parameter; a norm belongs to that it follows."""
    return jax.tree.map_with_path(lambda path, _: _number(path[0].key), params)


def kernels(params: Any) -> list[jax.Array]:
    """The weights of every layer, from the input on, each (1, numbers)."""
    dense = [name for name in params if name.startswith("Dense")]
    return [params[name]["kernel"].reshape(1, -1) for name in sorted(dense, key=_number)]


def _number(name: str) -> int:
    """3 of Flax's "Dense_3"."""
    return int(name.rpartition("_")[2])


def _histories(
    records: Sequence[Record], network: str, metric: str, rates: Sequence[float]
) -> list[np.ndarray]:
    """Of each rate what comes after the first step, (seeds, evaluations)."""
    if metric == "loss_range":
        ends = (_histories(records, network, f"loss_{m}", rates) for m in ("high", "low"))
        return [high - low for high, low in zip(*ends, strict=True)]
    found = (series(records, at_rate(network, rate), metric) for rate in rates)
    return [values[:, steps > 0] for steps, values in found]


def means(
    records: Sequence[Record], network: str, metric: str, rates: Sequence[float]
) -> np.ndarray:
    """Over evaluations, (seeds, rates)."""
    histories = _histories(records, network, metric, rates)
    return np.stack([values.mean(1) for values in histories], 1)


def log_ratios(
    records: Sequence[Record], over: str, under: str, metric: str, rates: Sequence[float]
) -> np.ndarray:
    """Means of log(over / under), (seeds, rates)."""
    pairs = (_histories(records, network, metric, rates) for network in (over, under))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([(np.log(a) - np.log(b)).mean(1) for a, b in zip(*pairs, strict=True)], 1)
