r"""A deep linear network, in which Santurkar et al. (2018) measured covariate shift as well.

.. math::
    \min_{W_1 \dots W_{25}} \; \tfrac1n \sum_x \| W_{25} \cdots W_1 x - A x \|^2

for Gaussian inputs x and a Gaussian matrix A, both of 10 numbers a side, by gradient descent on all
inputs at once: neither activations nor the choice of a mini-batch blur what batch norm, after every
layer but the last, does. Linear layers start at Glorot's scale.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bnjax
from experiments.common.records import Record, per_seed
from experiments.common.sweep import at_rate
from experiments.lab._explore import covariate_shift, step

DEPTH, WIDTH, INPUTS = 25, 10, 100


def descend(
    name: str, normalised: bool, rates: Sequence[float], seeds: int, steps: int
) -> Iterator[Record]:
    """Trains with every rate from every seed; yields the records of five evaluations of each.

    A record has `loss` and what `covariate_shift` measures.
    """
    every = max(steps // 4, 1)
    run = partial(_run, normalised=normalised, steps=steps, every=every)
    of_seeds = jax.vmap(run, (0, None))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    found = jax.jit(jax.vmap(of_seeds, (None, 0)))(keys, jnp.asarray(rates, jnp.float32))
    found = jax.tree.map(np.asarray, found)  # (rates, seeds, evaluations)
    for i, rate in enumerate(rates):
        for j in range(steps // every + 1):
            metrics = {name: values[i, :, j] for name, values in found.items()}
            yield from per_seed(j * every, at_rate(name, rate), metrics)


def output(params: Any, x: jax.Array) -> jax.Array:
    """Of inputs (n, 10), normalised where `params` have a scale and a shift."""

    def layer(h: jax.Array, of_layer: Any) -> tuple[jax.Array, None]:
        h = h @ of_layer["kernel"]
        if "scale" in of_layer:
            stats = bnjax.init_batch_stats(WIDTH)
            h, _ = bnjax.batch_norm(h, of_layer["scale"], of_layer["bias"], stats, train=True)
        return h, None

    hidden = {name: values[: DEPTH - 1] for name, values in params.items()}
    h, _ = jax.lax.scan(layer, x, hidden)
    return h @ params["kernel"][-1]


def _run(key: jax.Array, rate: jax.Array, normalised: bool, steps: int, every: int):
    """The metrics of one seed and rate, each (evaluations,)."""
    params, x, targets = _draw(key, normalised)

    def loss(params: Any) -> jax.Array:
        return jnp.square(output(params, x) - targets).sum(-1).mean()

    loss_and_grad = jax.jit(jax.value_and_grad(loss))  # traced once
    layer = {
        name: jnp.arange(len(v)).reshape(-1, *(1,) * (v.ndim - 1)) for name, v in params.items()
    }

    def evaluate(params: Any) -> dict[str, jax.Array]:
        now, grads = loss_and_grad(params)
        around = (loss_and_grad, params, grads, rate)
        return covariate_shift(*around, layer, _kernels) | {"loss": now}

    def one_step(params: Any, _: None) -> tuple[Any, None]:
        return step(params, loss_and_grad(params)[1], rate), None

    def chunk(params: Any, _: None) -> tuple[Any, Any]:
        found = evaluate(params)
        return jax.lax.scan(one_step, params, length=every)[0], found

    return jax.lax.scan(chunk, params, length=steps // every + 1)[1]


def _kernels(params: Any) -> list[jax.Array]:
    return [params["kernel"].reshape(DEPTH, -1)]


def _draw(key: jax.Array, normalised: bool) -> tuple[Any, jax.Array, jax.Array]:
    """First weights, inputs and what is to come of them."""
    weights, inputs, target = jax.random.split(key, 3)
    limit = (6 / (WIDTH + WIDTH)) ** 0.5
    shape = (DEPTH, WIDTH, WIDTH)
    params = {"kernel": jax.random.uniform(weights, shape, minval=-limit, maxval=limit)}
    if normalised:
        params |= {"scale": jnp.ones((DEPTH - 1, WIDTH)), "bias": jnp.zeros((DEPTH - 1, WIDTH))}
    x = jax.random.normal(inputs, (INPUTS, WIDTH))
    return params, x, x @ jax.random.normal(target, (WIDTH, WIDTH))
