"""A small network with batch norm, and variables of several seeds in one tree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.models import MLP

SEEDS, PIXELS = 3, 6


def networks() -> tuple[MLP, Any]:
    """The network, and variables with the seeds on axis 0: weights of either sign, variances."""
    model = MLP(hidden=(8,), batch_norm=True, init_std=0.7)
    variables = model.init(jax.random.key(0), jnp.zeros((2, PIXELS)), train=False)
    rng = np.random.default_rng(0)

    def draw(collection: str, low: float) -> Any:
        return jax.tree.map(
            lambda v: rng.uniform(low, 1.5, (SEEDS, *v.shape)).astype(v.dtype),
            variables[collection],
        )

    return model, {"params": draw("params", -1.5), "batch_stats": draw("batch_stats", 0.5)}


def of_seed(variables: Any, seed: int) -> Any:
    """The variables of one seed."""
    return jax.tree.map(lambda v: v[seed], variables)
