"""Long's layer(x): what running averages hold after batches of uniform numbers.

Of `experiments.lab.running_average`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bnjax
from experiments.common.records import Record, per_seed, series

SHAPE = (100, 16, 784)  # of Long's batch; 16 channels
PYTORCH, FLAX = 0.9, 0.99  # the defaults, as weights of the old value
FEW = 4  # rows of a batch, where the sample variance is another
LAYER, SAMPLE = "layer(x)", "sample variance"


def with_weight(p: float) -> str:
    """The name of an average, such as "p = 0.9"."""
    return f"p = {p:g}"


def layer_name(p: float) -> str:
    """The name of a layer, such as "layer(x), p = 0.9"."""
    return f"{LAYER}, {with_weight(p)}"


def call_layers(seeds: int, batches: int) -> Iterator[Record]:
    """Means over channels of the averages after each batch, for a layer of each default p."""
    for p in (PYTORCH, FLAX):
        found = np.stack([call_layer(seed, batches, p) for seed in range(seeds)])
        for batch, (mean, var) in enumerate(np.moveaxis(found, 0, -1), 1):
            yield from per_seed(batch, layer_name(p), {"mean": mean, "var": var})
    rows = jax.random.uniform(jax.random.key(0), (seeds, FEW, SHAPE[1]))
    biased, unbiased = (jax.vmap(partial(call_once, ddof=ddof))(rows) for ddof in (0, 1))
    ratio = (unbiased - PYTORCH) / (biased - PYTORCH)  # less what is left of the start
    yield from per_seed(FEW, SAMPLE, {"ratio": np.asarray(ratio.mean(1))})


def call_once(x: jax.Array, ddof: int) -> jax.Array:
    """The running variance (channels,) after one batch."""
    start = bnjax.init_batch_stats(x.shape[-1])
    return bnjax.batch_norm(x, None, None, start, train=True, decay=PYTORCH, ddof=ddof)[1].var


@partial(jax.jit, static_argnums=(1, 2))
def call_layer(seed: int, batches: int, p: float) -> jax.Array:
    """Mean over channels of the running mean and variance, (batches, 2)."""

    def call(stats: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        x = jax.random.uniform(key, SHAPE)
        _, stats = bnjax.batch_norm(x, None, None, stats, train=True, decay=p, axis=1)
        return stats, jnp.stack([stats.mean.mean(), stats.var.mean()])

    keys = jax.random.split(jax.random.key(seed), batches)
    return jax.lax.scan(call, bnjax.init_batch_stats(SHAPE[1]), keys)[1]


def layer(records: Sequence[Record], p: float) -> tuple[np.ndarray, np.ndarray]:
    """Batches, and the running means and variances after them, (2, seeds, batches)."""
    (steps, mean), (_, var) = (series(records, layer_name(p), m) for m in ("mean", "var"))
    return steps, np.stack([mean, var])


def expected_averages(batches: np.ndarray, p: float) -> np.ndarray:
    """Of Long's layer, (2, batches): the start, and what `batches` of uniform numbers leave."""
    left = p**batches
    return np.stack([(1 - left) / 2, left + (1 - left) / 12])
