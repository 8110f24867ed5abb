"""The table of layers: each entry computes what it says, and nothing is imported too early."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.testing import LAYERS, relative_error


def make(layer):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(2.0, 3.0, layer.input_shape), jnp.float32)
    return layer.init(jax.random.key(1), x), x


@pytest.mark.parametrize("train", [True, False], ids=["train", "evaluate"])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_layer_computes_its_reference(layer, train):
    variables, x = make(layer)
    y, changed = layer.apply(variables, x, train)
    assert relative_error(y, layer.reference(variables, x, train)) < 1e-6
    assert jax.tree.structure(changed) == jax.tree.structure(variables)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (changed, variables)), strict=True)
    ]
    assert sum(moved) == (len(variables["batch_stats"]) if train else 0)


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


def test_import_does_not_load_flax():
    code = "import sys, bnjax.testing; sys.exit('flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
