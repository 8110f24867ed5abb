"""One view of linen's variables and nnx's states."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bnjax import _variables
from bnjax.nnx import BatchNorm


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(3, 2, rngs=rngs), BatchNorm(2, rngs=rngs)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.mask = jnp.ones(2)  # no variable, as in Flax's own nnx.WeightNorm


LINEN = {
    "params": {"Dense_0": {"kernel": np.ones((3, 2))}, "BatchNorm_0": {"scale": np.ones(2)}},
    "batch_stats": {"BatchNorm_0": {"mean": np.zeros(2), "var": np.ones(2)}},
}


@pytest.mark.parametrize("tree", [LINEN, nnx.state(Net())], ids=["linen", "nnx"])
def test_a_tree_comes_back_as_it_was(tree):
    flat, rebuild = _variables.flatten(tree)
    again = rebuild(flat)
    assert type(again) is type(tree)
    chex.assert_trees_all_equal(again, tree)


def test_both_kinds_are_seen_by_collection_and_path():
    assert ("params", "Dense_0", "kernel") in _variables.flatten(LINEN)[0]
    flat, _ = _variables.flatten(nnx.state(Net()))
    assert ("params", "layers", 1, "scale") in flat and ("batch_stats", "layers", 1, "var") in flat
    assert _variables.norms(flat) == [("layers", 1)]
    assert _variables.name(("layers", 1)) == "layers/1"


def test_an_nnx_state_takes_new_variables_and_loses_old_ones():
    model = Net()
    graphdef, state = nnx.split(model)
    flat, rebuild = _variables.flatten(state)
    flat["params", "layers", 0, "bias"] = jnp.full(2, 7.0)
    flat["batch_stats", "layers", 0, "mean"] = jnp.ones(2)
    del flat["params", "layers", 1, "scale"]
    new = rebuild(flat)
    assert isinstance(new["layers"][0]["bias"], nnx.Param)
    assert isinstance(new["layers"][0]["mean"], nnx.BatchStat)
    assert "scale" not in new["layers"][1]
    np.testing.assert_array_equal(model.layers[0].bias[...], np.zeros(2))  # the model is untouched
    assert nnx.merge(graphdef, state).layers[1].scale is not None


def test_layers_are_chosen_by_pattern():
    paths = [("a", "norm"), ("b", "norm"), ()]
    assert _variables.choose(paths, "^b") == [("b", "norm")]
    assert _variables.choose(paths, "") == paths
    with pytest.raises(ValueError, match=r"layers='c/' is found in no layer.*a/norm, b/norm"):
        _variables.choose(paths, "c/")


@pytest.mark.parametrize("tree", [3, {"scale": np.ones(2)}], ids=["number", "params alone"])
def test_what_is_no_tree_of_variables_is_refused(tree):
    with pytest.raises(TypeError, match=r"variables must be linen's variables by collection"):
        _variables.flatten(tree)
