"""The loss, its gradient and its covariate shift around the weights of one step."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from bnjax.training import TrainState
from experiments.common.loop import Examples, Metrics
from experiments.common.loss import make_loss_fn
from experiments.common.metrics import evaluate
from experiments.lab.landscape.settings import LandscapeSettings

Over = Callable[[Callable[..., Any], jax.Array], Any]  # runs a function for each entry of an array
# The name that Flax gives to a layer: Conv_0, Dense_0, BatchNorm_0, ...
NAME = re.compile(r"(Conv|Dense|\w*Norm)_(\d+)")


def explore(
    state: TrainState,
    test: Examples,
    *,
    model: nn.Module,
    probe: Examples,
    settings: LandscapeSettings,
    over: Over = jax.lax.map,
) -> Metrics:
    """What is measured around the weights of `state`; see the package for the formulas.

    Args:
      state: weights and running statistics.
      test: images (n, pixels) and labels (n,), for the test accuracy.
      model: the network.
      probe: training images and labels, from which a mini-batch is drawn anew for every step.
      settings: sizes and steps.
      over: `jax.lax.map`, or `unrolled` for a network with convolutions.

    Returns:
      `loss_low`, `loss_high`, `change_low`, `change_high`, `beta`; `shift`, `shift_relative`,
      `shift_cosine`; and the test metrics.
    """
    batch = _draw(state.step, probe, min(settings.batch_size, len(probe[1])))
    loss_fn, collections = make_loss_fn(model), {"batch_stats": state.batch_stats}

    @jax.value_and_grad
    def loss_and_grad(params: Any) -> jax.Array:
        return loss_fn(params, collections, batch, True)[0]

    _, grads = loss_and_grad(state.params)
    etas = settings.learning_rate * jnp.geomspace(
        settings.shortest, settings.longest, settings.points
    )
    rate = settings.learning_rate
    found = along_gradient(loss_and_grad, state.params, grads, etas, over)
    found |= covariate_shift(loss_and_grad, state.params, grads, rate, over)
    return found | evaluate(state, test, model=model)


def unrolled(run: Callable[..., Any], values: jax.Array) -> Any:
    """Like `jax.lax.map` without a loop: in one, XLA's CPU convolutions are slow to differentiate.

    That is ten times slower in a loop, and many times longer to compile out of it.
    """
    return jax.tree.map(lambda *each: jnp.stack(each), *[run(value) for value in values])


def along_gradient(
    loss_and_grad: Any, params: Any, grads: Any, etas: jax.Array, over: Over = jax.lax.map
) -> Metrics:
    """Range of loss and of the gradient's change, and the largest slope of the gradient."""

    def at(eta: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, there = loss_and_grad(_step(params, grads, eta))
        return loss, optax.tree.norm(optax.tree.sub(there, grads))

    losses, changes = over(at, etas)
    return {
        "loss_low": losses.min(),
        "loss_high": losses.max(),
        "change_low": changes.min(),
        "change_high": changes.max(),
        "beta": (changes / (etas * optax.tree.norm(grads))).max(),
    }


def covariate_shift(
    loss_and_grad: Any, params: Any, grads: Any, rate: float, over: Over = jax.lax.map
) -> Metrics:
    """Change of each layer's gradient by the step of the layers before it, mean over layers."""
    flat: dict[Any, Any] = traverse_util.flatten_dict(params)
    layer = layers(flat)
    depth = traverse_util.unflatten_dict(layer)
    taken = _step(params, grads, jnp.asarray(rate))
    old: dict[Any, Any] = traverse_util.flatten_dict(grads)
    kernels = [path for path in flat if path[-1] == "kernel"]

    def kernel_gradients(i: jax.Array) -> Any:
        """Gradients once the layers before layer `i` have taken their step."""
        mixed = jax.tree.map(lambda d, new, now: jnp.where(d < i, new, now), depth, taken, params)
        new = traverse_util.flatten_dict(loss_and_grad(mixed)[1])
        return {path: new[path] for path in kernels}

    new = over(kernel_gradients, jnp.arange(len(kernels)))
    pairs = [(old[p].ravel(), new[p][layer[p]].ravel()) for p in kernels if layer[p] > 0]
    return {
        "shift": _mean(jnp.linalg.norm(a - b) for a, b in pairs),
        "shift_relative": _mean(jnp.linalg.norm(a - b) / jnp.linalg.norm(a) for a, b in pairs),
        "shift_cosine": _mean(optax.losses.cosine_similarity(a, b) for a, b in pairs),
    }


def layers(paths: Any) -> dict[Any, int]:
    """The number of the layer, from 0 at the input, of each parameter's path.

    A norm belongs to the layer that it follows; dense layers come after convolutions.
    """
    names = {path: _kind_and_index(path) for path in paths}
    convolutions = len({index for kind, index in names.values() if kind == "Conv"})
    return {p: i + (convolutions if kind == "Dense" else 0) for p, (kind, i) in names.items()}


def _kind_and_index(path: tuple[str, ...]) -> tuple[str, int]:
    match = next(found for part in path if (found := NAME.fullmatch(part)))
    return match[1], int(match[2])


def _draw(step: jax.Array, probe: Examples, size: int) -> dict[str, jax.Array]:
    """A mini-batch, another one at every step."""
    images, labels = probe
    key = jax.random.fold_in(jax.random.key(0), step)
    rows = jax.random.choice(key, len(labels), (size,), replace=False)
    return {"images": images[rows], "labels": labels[rows]}


def _step(params: Any, grads: Any, eta: jax.Array) -> Any:
    return jax.tree.map(lambda p, g: p - eta * g, params, grads)


def _mean(values: Any) -> jax.Array:
    return jnp.mean(jnp.stack(list(values)))
