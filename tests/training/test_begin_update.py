"""One update of a whole linen model out of several calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bnjax import linen as bnn
from bnjax import nnx as bnnx
from bnjax.training import begin_update


class Net(nn.Module):
    """Two norms, one of which is called twice a forward pass."""

    @nn.compact
    def __call__(self, x, train=True):
        first = bnn.BatchNorm(use_running_average=not train, debias=True)
        shared = bnn.BatchNorm(use_running_average=not train, momentum=0.5)
        x = first(x)
        return shared(x) + shared(2 * x + 1)


def draw(seed=0, examples=12):
    return jnp.asarray(np.random.default_rng(seed).normal(3, 2, (examples, 4)), jnp.float32)


def open_variables(variables):
    return {**variables, "batch_moments": begin_update(variables["batch_stats"])}


def test_a_layer_called_twice_updates_once_by_both():
    x, net = draw(), Net()
    variables = net.init(jax.random.key(0), x)
    _, new = net.apply(open_variables(variables), x, mutable=["batch_stats", "batch_moments"])
    normal = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
    both = jnp.concatenate([normal, 2 * normal + 1])
    stats = new["batch_stats"]["BatchNorm_1"]
    np.testing.assert_allclose(stats["mean"], 0.5 * both.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.5 + 0.5 * both.var(0), rtol=1e-4)
    assert new["batch_stats"]["BatchNorm_0"]["count"] == 1


def test_without_the_collection_nothing_changes():
    x, net = draw(), Net()
    variables = net.init(jax.random.key(0), x)
    assert set(variables) == {"params", "batch_stats"}
    _, everything = net.apply(variables, x, mutable=True)
    assert set(everything) == {"params", "batch_stats"}


def test_an_update_cannot_get_lost_in_an_immutable_collection():
    x, net = draw(), Net()
    variables = open_variables(net.init(jax.random.key(0), x))
    with pytest.raises(Exception, match="batch_moments"):
        net.apply(variables, x, mutable=["batch_stats"])


def test_evaluation_reads_the_statistics_before_the_step():
    x, net = draw(), Net()
    variables = net.init(jax.random.key(0), x)
    _, new = net.apply(variables, x, mutable=["batch_stats"])
    variables = {**variables, **new}
    got = net.apply(open_variables(variables), x, train=False)
    np.testing.assert_array_equal(got, net.apply(variables, x, train=False))


def test_other_collections_are_refused_with_the_way_out():
    norm = bnnx.BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"got BatchStat.*one_update"):
        begin_update(nnx.state(norm, nnx.BatchStat))
    with pytest.raises(TypeError, match=r"got list"):
        begin_update([1])


def test_other_layers_of_the_collection_are_left_alone():
    stats = {"SpectralNorm_0": {"kernel/u": jnp.ones(3)}, "Block_0": {"mean": {"mean": 1.0}}}
    assert begin_update({"Sown": {"values": (jnp.ones(1),)}}) == {"Sown": {}}
    with pytest.raises(KeyError):
        begin_update(stats)["Block_0"]["pending"]


class Scanned(nn.Module):
    """Two layers under a scan; ``open``: whether that maps the open update."""

    open: bool

    @nn.compact
    def __call__(self, x, train=True):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, train):
                return bnn.BatchNorm(not train, momentum=0.9, name="norm")(x) + x, None

        axes = {"params": 0, "batch_stats": 0} | ({"batch_moments": 0} if self.open else {})
        lifted = nn.scan(
            Block, variable_axes=axes, split_rngs={"params": True}, length=2, in_axes=nn.broadcast
        )
        return lifted(name="blocks")(x, train)[0]


# flax#4760, #4061: layers under lifted transformations; k calls were k updates, silently.
def test_an_update_that_does_not_reach_a_layer_is_an_error():
    x = draw()
    variables = Scanned(True).init(jax.random.key(0), x)
    opened = open_variables(variables)
    for part in jnp.split(x, 2):
        _, new = Scanned(True).apply(opened, part, mutable=["batch_stats", "batch_moments"])
        opened |= new
    np.testing.assert_allclose(
        opened["batch_stats"]["blocks"]["norm"]["mean"][0], 0.1 * x.mean(0), rtol=1e-5
    )
    opened = open_variables(variables)
    with pytest.raises(ValueError, match=r'blocks/norm .* variable_axes=\{"batch_moments": 0\}'):
        Scanned(False).apply(opened, x, mutable=["batch_stats", "batch_moments"])
    got = Scanned(False).apply(opened, x, train=False)
    np.testing.assert_array_equal(got, Scanned(True).apply(variables, x, train=False))
