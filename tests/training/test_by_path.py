"""Labels and masks by the path of a parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from bnjax import linen as bnn
from bnjax import nnx as bnnx
from bnjax.training import label_by_path, weight_decay_mask


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = bnn.BatchNorm(use_running_average=False)(nn.Dense(3)(x))
        return nn.Dense(2, name="scale_head")(x)


def params():
    return Net().init(jax.random.key(0), jnp.ones((2, 4)))["params"]


def test_optax_25_weight_decay_leaves_scale_and_bias_alone():
    decay = optax.add_decayed_weights(0.5, mask=weight_decay_mask)
    tx = optax.chain(decay, optax.sgd(0.1))
    before = jax.tree.map(jnp.ones_like, params())
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, before), tx.init(before), before)
    assert float(updates["BatchNorm_0"]["scale"].max()) == 0
    assert float(updates["BatchNorm_0"]["bias"].max()) == 0
    assert float(updates["Dense_0"]["bias"].max()) == 0
    assert (updates["Dense_0"]["kernel"] < 0).all()
    assert (updates["scale_head"]["kernel"] < 0).all()  # a layer's name is not a parameter's


def test_nnx_states_are_masked_too():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), bnnx.BatchNorm(3, rngs=rngs)])

    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    flat = nnx.to_flat_state(weight_decay_mask(state))
    decayed = {path: leaf.get_value() for path, leaf in flat}
    assert decayed == {
        ("layers", 0, "bias"): False,
        ("layers", 0, "kernel"): True,
        ("layers", 1, "bias"): False,
        ("layers", 1, "scale"): False,
    }


def test_the_first_match_wins():
    labels = label_by_path(params(), [("BatchNorm_0/scale", 1), ("BatchNorm", 2), (".*", 3)])
    assert labels["BatchNorm_0"] == {"scale": 1, "bias": 2}
    assert set(jax.tree.leaves(labels["Dense_0"])) == {3}


def test_labels_serve_multi_transform():
    labels = label_by_path(params(), [("BatchNorm", "frozen"), (".*", "trained")])
    tx = optax.multi_transform({"frozen": optax.set_to_zero(), "trained": optax.sgd(1.0)}, labels)
    p = params()
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, p), tx.init(p), p)
    np.testing.assert_array_equal(updates["BatchNorm_0"]["scale"], 0)
    np.testing.assert_array_equal(updates["Dense_0"]["kernel"], -1)


def test_every_parameter_is_accounted_for():
    with pytest.raises(ValueError, match=r"no rule matches .*scale_head/bias.*last rule"):
        label_by_path(params(), [("BatchNorm", 1), ("kernel", 2), ("Dense_0/bias", 3)])


def test_every_rule_is_accounted_for():
    with pytest.raises(ValueError, match=r"first match of no parameter: Btchnorm.*Dense_0/kernel"):
        label_by_path(params(), [("Btchnorm", 1), (".*", 2)])
    with pytest.raises(ValueError, match="first match of no parameter: scale"):
        label_by_path(params(), [("BatchNorm|head", 1), ("scale", 2), (".*", 3)])
