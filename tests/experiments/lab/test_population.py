"""Population statistics of several seeds at once."""

import jax
import numpy as np

from bnjax.training import adapt
from experiments.common.population import evaluated, over_seeds_and_batches
from tests.experiments.lab._networks import PIXELS, SEEDS, networks, of_seed


def test_all_seeds_at_once_give_what_each_alone_gives():
    model, variables = networks()
    images = np.random.default_rng(0).normal(size=(SEEDS, 23, PIXELS)).astype(np.float32)
    parts = [images[:, :5], images[:, 5:]]
    options = {"weight": 0.3, "call": evaluated}
    together = adapt(model, variables, parts, transform=over_seeds_and_batches, **options)
    for seed in (0, 2):
        own = of_seed(variables, seed)
        alone = adapt(model, own, [part[seed] for part in parts], **options)
        jax.tree.map(
            lambda m, o, seed=seed: np.testing.assert_allclose(m[seed], o, atol=1e-6),
            together["batch_stats"],
            alone["batch_stats"],
        )
