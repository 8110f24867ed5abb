"""Biases before batch norm: gone, and nobody can tell, in evaluation and in training."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax import _variables
from bnjax.surgery import drop_redundant_biases, fold, verify
from tests.surgery.networks import X, linen_network, nnx_network, variables_of

HEAD = "output goes to the output"


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), a, b)


def test_of_a_linen_resnet():
    model, variables = linen_network(nn.BatchNorm, use_bias=True)
    dropped = drop_redundant_biases(model, variables, X)
    assert dropped.left_alone == {("head",): HEAD} and len(dropped.changed) == 7
    assert dropped.difference.max_relative < 1e-5
    left = [p[1:-1] for p in _variables.flatten(dropped.variables)[0] if p[-1] == "bias"]
    assert ("block1", "conv1") not in left and ("head",) in left and ("block1", "bn1") in left


def test_training_goes_on_as_before_in_the_model_without_biases():
    model, variables = linen_network(use_bias=True)
    dropped, (bare, _) = drop_redundant_biases(model, variables, X), linen_network()
    options = {"train": True, "mutable": ["batch_stats"]}
    y, updates = jax.jit(lambda v: model.apply(v, X, **options))(variables)
    z, others = jax.jit(lambda v: bare.apply(v, X, **options))(dropped.variables)
    close(y, z)
    stats, others = (u["batch_stats"]["block1"]["bn1"] for u in (updates, others))
    close(stats["var"], others["var"])
    close(stats["mean"] - variables["params"]["block1"]["conv1"]["bias"], others["mean"])


def test_of_an_nnx_resnet():
    model, variables = nnx_network(use_bias=True)
    dropped = drop_redundant_biases(model, variables, X)
    assert dropped.left_alone == {("head",): HEAD} and len(dropped.changed) == 7
    assert dropped.difference.max_relative < 1e-5
    conv = nnx.merge(dropped.model, dropped.variables).block1.convs[0]
    assert conv.bias is None and not conv.use_bias


@pytest.mark.parametrize("network", [linen_network, nnx_network])
def test_a_call_in_training_mode_finds_the_same(network):
    if network is linen_network:
        model, variables = network(use_bias=True)
        options = {"train": True, "mutable": ["batch_stats"]}
    else:
        model, variables = network(train=True, use_bias=True)
        options = {}
    dropped = drop_redundant_biases(model, variables, X, **options)
    assert len(dropped.changed) == 7 and dropped.difference.max_relative < 1e-4


def test_then_fold():
    for model, variables in (linen_network(use_bias=True), nnx_network(use_bias=True)):
        dropped = drop_redundant_biases(model, variables, X)
        folded = fold(dropped.model, dropped.variables, X)
        assert len(folded.changed) == 7
        after = folded.model, folded.variables
        assert verify((model, variables), after, [X], tolerance=1e-5)
        again = drop_redundant_biases(*after, X)
        assert not again.changed and again.left_alone["head",] == HEAD


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        def norm(name, axis=-1):
            return bnjax.linen.BatchNorm(True, axis, name=name)

        x = nn.relu(nn.Dense(3, name="to_relu")(x))
        y = nn.Dense(3, name="used_twice")(x)
        x = norm("norm1")(y) + y
        x = nn.relu(norm("norm2", 1)(nn.Dense(3, name="other_axis")(x)))
        x = nn.relu(norm("norm3")(nn.Dense(3, use_bias=False, name="unbiased")(x)))
        dense = nn.Dense(3, name="again")
        return norm("norm4")(dense(nn.relu(dense(x))))


def test_what_is_left_alone_and_why():
    model = Net()
    dropped = drop_redundant_biases(model, variables_of(model, X), X)
    assert not dropped.changed
    assert dropped.left_alone == {
        ("to_relu",): "output goes to relu",
        ("used_twice",): "output goes to add and norm1",
        ("other_axis",): "norm2 after it normalises along axis 1, not the features of other_axis",
        ("again",): "is called 2 times",
    }


def test_layers_are_chosen_by_path():
    model, variables = linen_network(use_bias=True)
    dropped = drop_redundant_biases(model, variables, X, layers="block1/conv1")
    assert [*dropped.changed] == [("block1", "conv1")]
    with pytest.raises(ValueError, match="layers='stage' is found in no layer"):
        drop_redundant_biases(model, variables, X, layers="stage")
