"""The table of layers, whose entries `tests/conformance` examines: what they start from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.testing import LAYERS


def make(layer):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(2.0, 3.0, layer.input_shape), jnp.float32)
    return layer.init(jax.random.key(1), x), x


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_variables_are_drawn_at_random(layer):
    variables, _ = make(layer)
    assert set(variables) == {"params", "batch_stats"}
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    for path, leaf in leaves:
        assert path[-1].key == "count" or np.ptp(leaf) > 0, path
    scales = [leaf for path, leaf in leaves if path[-1].key in {"scale", "var"}]
    assert all(leaf.min() > 0 for leaf in scales)


def test_names_are_distinct():
    assert len({layer.name for layer in LAYERS}) == len(LAYERS)
