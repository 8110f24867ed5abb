"""Programs that leave the process: traced for any batch, serialised, read back and called."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax import export

import bnjax.linen
import bnjax.nnx
from bnjax.surgery import fold, freeze
from bnjax.training import TrainState, train_step
from tests.surgery.networks import X, linen_network, nnx_network, trained, variables_of

ANY_BATCH = jax.ShapeDtypeStruct(export.symbolic_shape("b, 6, 6, 3"), jnp.float32)
PLATFORMS = ("cpu", "cuda", "tpu")
NORMS = ("BatchNorm", "BatchRenorm", "LayerNorm", "RMSNorm", "InstanceNorm", "GroupNorm")


def round_trip(function, *args, platforms=None):
    exported = export.export(jax.jit(function), platforms=platforms)(*args)
    return export.deserialize(exported.serialize())


def of_linen():
    network, variables = linen_network()
    return functools.partial(network.apply, variables)


def of_linen_frozen():
    network, variables = linen_network()
    return functools.partial(network.apply, freeze(variables), train=True)


def of_linen_folded():
    folded = fold(*linen_network(), X)
    return functools.partial(folded.model.apply, folded.variables)


def of_nnx():
    return nnx.merge(*nnx_network())


def of_nnx_frozen():
    network = freeze(nnx.merge(*nnx_network()))
    network.train()
    return network


def of_nnx_folded():
    folded = fold(*nnx_network(), X)
    return nnx.merge(folded.model, folded.variables)


@pytest.mark.parametrize(
    "make", [of_linen, of_linen_frozen, of_linen_folded, of_nnx, of_nnx_frozen, of_nnx_folded]
)
def test_a_network_in_evaluation(make):
    network = make()
    exported = round_trip(network, ANY_BATCH, platforms=PLATFORMS)
    assert exported.platforms == PLATFORMS
    assert "stablehlo.convolution" in exported.mlir_module()
    for x in (X, X[:1]):
        np.testing.assert_allclose(exported.call(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_each_norm(name):
    options = {"use_running_average": True} if name.startswith("Batch") else {}
    options |= {"num_groups": 3} if name == "GroupNorm" else {}
    module = getattr(bnjax.linen, name)(**options)
    graph, state = nnx.split(getattr(bnjax.nnx, name)(3, rngs=nnx.Rngs(0), **options))
    of_nnx = nnx.merge(graph, trained(state))
    for function in (functools.partial(module.apply, variables_of(module, X)), of_nnx):
        exported = round_trip(function, ANY_BATCH, platforms=PLATFORMS)
        np.testing.assert_allclose(exported.call(X), function(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_variables_as_an_argument(frozen):
    """Those of a frozen model hold switches in the structure of the tree."""
    network, variables = linen_network()
    variables = freeze(variables) if frozen else variables
    apply = functools.partial(network.apply, train=frozen)
    exported = round_trip(apply, variables, ANY_BATCH)
    np.testing.assert_allclose(exported.call(variables, X), apply(variables, X), rtol=1e-5)
    thawed = linen_network()[1]
    if frozen:
        with pytest.raises(ValueError, match="structure"):
            exported.call(thawed, X)


def test_switches_are_read_back_as_they_were():
    stats = freeze(linen_network()[1])["batch_stats"]
    _, tree = jax.tree.flatten(stats)
    exported = round_trip(lambda stats: stats, stats)
    assert exported.out_tree == tree


def test_states_as_arguments_and_results():
    w, spectral = jnp.eye(3), bnjax.init_spectral_norm(jax.random.key(0), (3, 3))
    stats = bnjax.init_batch_stats(3)
    norm = functools.partial(bnjax.batch_norm, train=True)
    for function, args in (
        (lambda x, state: norm(x, None, None, state), (X, stats)),
        (lambda x, state: norm(x, None, None, state), (X, bnjax.begin_update(stats))),
        (bnjax.merge, (bnjax.moments(X[:1], (0, 1, 2)), bnjax.moments(X[1:], (0, 1, 2)))),
        (bnjax.spectral_norm, (w, spectral)),
    ):
        want, got = function(*args), round_trip(function, *args).call(*args)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), got, want)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = bnjax.linen.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(1)(nn.relu(x))


def loss(params, collections, batch, train):
    x, y = batch
    variables = {"params": params, **collections}
    predicted, collections = Net().apply(variables, x, train, mutable=list(collections))
    return ((predicted - y) ** 2).mean(), (collections, {})


def test_a_training_step():
    """The state holds functions of the optimiser: its arrays leave, and its structure stays."""
    x, y = X.reshape(36, 6), X.reshape(36, 6).sum(1, keepdims=True)
    variables = Net().init(jax.random.key(0), x, train=True)
    state = TrainState.create(
        params=variables["params"], tx=optax.sgd(1e-2, 0.9), batch_stats=variables["batch_stats"]
    )
    arrays, structure = jax.tree.flatten(state)

    def step(arrays, batch):
        state, metrics = train_step(jax.tree.unflatten(structure, arrays), batch, loss)
        return jax.tree.leaves(state), metrics

    (b,) = export.symbolic_shape("b")
    batch = tuple(jax.ShapeDtypeStruct((b, v.shape[1]), v.dtype) for v in (x, y))
    exported = round_trip(step, arrays, batch, platforms=PLATFORMS)
    assert "stablehlo.dot_general" in exported.mlir_module()
    for rows in (36, 7):
        got, want = exported.call(arrays, (x[:rows], y[:rows])), step(arrays, (x[:rows], y[:rows]))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)
