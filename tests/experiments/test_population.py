"""Population statistics of several seeds at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import adapt
from experiments.common.models import MLP
from experiments.common.population import evaluated, over_seeds_and_batches

SEEDS = 3


@pytest.fixture(scope="module")
def networks():
    """A model, and variables of three seeds."""
    model = MLP(hidden=(8,), batch_norm=True, init_std=0.7)
    variables = model.init(jax.random.key(0), jnp.zeros((2, 6)), train=False)
    rng = np.random.default_rng(0)

    def draw(collection: str, low: float):
        return jax.tree.map(
            lambda v: rng.uniform(low, 1.5, (SEEDS, *v.shape)).astype(v.dtype),
            variables[collection],
        )

    # Weights of either sign, and positive variances.
    return model, {"params": draw("params", -1.5), "batch_stats": draw("batch_stats", 0.5)}


def test_all_seeds_at_once_give_what_each_alone_gives(networks):
    model, variables = networks
    images = np.random.default_rng(0).normal(size=(SEEDS, 23, 6)).astype(np.float32)
    parts = [images[:, :5], images[:, 5:]]
    options = {"weight": 0.3, "call": evaluated}
    together = adapt(model, variables, parts, transform=over_seeds_and_batches, **options)
    for seed in (0, 2):
        own = jax.tree.map(lambda v, seed=seed: v[seed], variables)
        alone = adapt(model, own, [part[seed] for part in parts], **options)
        jax.tree.map(
            lambda m, o, seed=seed: np.testing.assert_allclose(m[seed], o, atol=1e-6),
            together["batch_stats"],
            alone["batch_stats"],
        )
