"""Freezing by path: three switches, the optax mask that agrees, and no stale programs."""

import copy

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import linen as nn
from flax import nnx, serialization, traverse_util

import bnjax.linen
import bnjax.nnx
from bnjax.diagnostics import report
from bnjax.interop import from_torch, load_variables, save_safetensors, to_torch
from bnjax.surgery import drop_redundant_biases, fold, freeze, swap, trained, unfreeze
from bnjax.training import TrainState, average_variables, train_step

X = np.random.default_rng(0).normal(2, 3, (16, 4)).astype(np.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        for i in range(2):
            x = nn.Dense(4, name=f"dense{i}")(x)
            x = bnjax.linen.BatchNorm(not train, momentum=0.9, name=f"norm{i}")(x)
        return x


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense0, self.dense1 = (nnx.Linear(4, 4, rngs=rngs) for _ in range(2))
        self.norm0, self.norm1 = (bnjax.nnx.BatchNorm(4, momentum=0.9, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        return self.norm1(self.dense1(self.norm0(self.dense0(x))))


def linen_variables():
    return Linen().init(jax.random.key(0), X)


def step_linen(variables):
    """Gradients and new statistics of a training call."""

    def loss(params):
        y, new = Linen().apply({**variables, "params": params}, X, mutable=["batch_stats"])
        return jnp.mean((y - 1) ** 2), new["batch_stats"]

    return jax.grad(loss, has_aux=True)(variables["params"])


def moved(old, new):
    return not np.array_equal(old["mean"], new["mean"]) or not np.array_equal(
        old["var"], new["var"]
    )


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("mode", [False, True])
def test_three_switches_of_linen(affine, statistics, mode):
    start = linen_variables()
    stats = {"mean": jnp.full(4, 0.5), "var": jnp.full(4, 4.0)}
    start["batch_stats"]["norm1"] = stats
    variables = freeze(start, "norm1", affine=affine, statistics=statistics, mode=mode)
    grads, new = step_linen(variables)
    free_grads, _ = step_linen(start)

    assert np.any(np.asarray(free_grads["norm1"]["scale"]))
    assert np.any(np.asarray(grads["norm1"]["scale"])) != affine
    assert np.any(np.asarray(grads["norm1"]["bias"])) != affine
    assert moved(stats, new["norm1"]) != statistics
    assert moved(start["batch_stats"]["norm0"], new["norm0"])  # the other layer is as ever

    y, _ = Linen().apply(variables, X, mutable=["batch_stats"])
    mean = np.asarray(y).mean(0)
    assert np.allclose(mean, 0, atol=1e-5) != mode  # only the batch's own mean makes it 0


def test_a_frozen_layer_is_what_evaluation_computes_in_both_modes():
    variables = linen_variables()
    variables["batch_stats"]["norm0"] = {"mean": jnp.arange(4.0), "var": jnp.full(4, 3.0)}
    frozen = freeze(variables)
    y, new = Linen().apply(frozen, X, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, Linen().apply(variables, X, train=False))
    chex.assert_trees_all_equal(new["batch_stats"], frozen["batch_stats"])


@pytest.mark.compiled("as users do")
def test_a_frozen_layer_has_no_reduction_forward_or_backward():
    layer = bnjax.linen.BatchNorm(use_running_average=False)
    variables = freeze(layer.init(jax.random.key(0), X))

    def program(variables, x, dy):
        y, pull = jax.vjp(lambda x: layer.apply(variables, x, mutable=["batch_stats"])[0], x)
        return y, pull(dy)

    lowered = jax.jit(program).lower(variables, X, X).compile().as_text()
    assert " reduce(" not in lowered
    live = jax.jit(program).lower(unfreeze(variables), X, X).compile().as_text()
    assert " reduce(" in live


def test_unfreeze_restores_the_tree_and_some_switches_only():
    variables = linen_variables()
    frozen = freeze(variables)
    chex.assert_trees_all_equal(unfreeze(frozen), variables)
    grads, new = step_linen(unfreeze(frozen, "norm0", mode=False, statistics=False))
    assert np.any(np.asarray(grads["norm0"]["scale"]))
    assert not np.any(np.asarray(grads["norm1"]["scale"]))
    assert not moved(variables["batch_stats"]["norm0"], new["norm0"])


def test_the_optimizer_mask_agrees_and_holds_against_decay_and_momentum():
    variables = freeze(linen_variables(), "norm1", statistics=False, mode=False)
    mask = trained(variables)
    assert mask["norm1"] == {"scale": False, "bias": False}
    assert all(jax.tree.leaves([mask["norm0"], mask["dense0"], mask["dense1"]]))
    decay = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    tx = optax.masked(decay, mask)
    params, state = variables["params"], tx.init(variables["params"])
    for _ in range(2):
        grads, _ = step_linen({**variables, "params": params})
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal(params["norm1"], variables["params"]["norm1"])
    assert np.any(params["norm0"]["scale"] != variables["params"]["norm0"]["scale"])


def loss_fn(params, collections, batch, train):
    variables = {"params": params, **collections}
    y, new = Linen().apply(variables, batch, train, mutable=list(collections))
    return jnp.mean((y - 1) ** 2), (new, {})


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_keras_22104_a_freeze_after_the_first_step_is_not_ignored(micro_batches):
    step = jax.jit(train_step, static_argnums=2, static_argnames="micro_batches")
    state = TrainState.create(**linen_variables(), tx=optax.sgd(0.1))
    state, _ = step(state, X, loss_fn, micro_batches=micro_batches)
    tree = freeze({"batch_stats": state.batch_stats}, "norm0")
    frozen, _ = step(state.replace(**tree), X, loss_fn, micro_batches=micro_batches)
    chex.assert_trees_all_equal(frozen.batch_stats["norm0"], tree["batch_stats"]["norm0"])
    chex.assert_trees_all_equal(frozen.params["norm0"], state.params["norm0"])
    assert moved(state.batch_stats["norm1"], frozen.batch_stats["norm1"])


def test_checkpoints_hold_the_arrays_and_not_the_switches(tmp_path):
    variables = linen_variables()
    frozen = freeze(variables)
    data = serialization.to_bytes(frozen)
    chex.assert_trees_all_equal(serialization.from_bytes(frozen, data), frozen)
    save = orbax.checkpoint.StandardCheckpointer()
    save.save(tmp_path / "orbax", frozen)
    save.wait_until_finished()
    for bare in (serialization.msgpack_restore(data), save.restore(tmp_path / "orbax")):
        _, new = Linen().apply(bare, X, mutable=["batch_stats"])  # trains, as if never frozen
        assert moved(new["batch_stats"]["norm0"], variables["batch_stats"]["norm0"])
        np.testing.assert_array_equal(
            Linen().apply(freeze(bare), X, mutable=["batch_stats"])[0],
            Linen().apply(frozen, X, mutable=["batch_stats"])[0],
        )


def trees(variables):
    """The same variables, plain, partly frozen, and in the containers that Flax has."""
    frozen = freeze(variables, "norm1")
    return {
        "plain": variables,
        "frozen": frozen,
        "FrozenDict": nn.FrozenDict(frozen),
        "unfrozen FrozenDict": flax.core.unfreeze(nn.FrozenDict(frozen)),
        "jitted": jax.jit(lambda tree: tree)(frozen),
        "trained": frozen | Linen().apply(frozen, X, mutable=["batch_stats"])[1],
        "copied": copy.deepcopy(frozen),
    }


KINDS = list(trees(linen_variables()))


# https://github.com/keras-team/keras/issues/12470: a partly frozen model is a model
@pytest.mark.parametrize("kind", KINDS)
def test_keras_12470_checkpoints_of_frozen_and_plain_variables_are_the_same(kind, tmp_path):
    plain = linen_variables()
    tree = trees(plain)[kind]
    there = serialization.from_bytes(plain, serialization.to_bytes(tree))
    back = serialization.from_bytes(tree, serialization.to_bytes(plain))
    save = orbax.checkpoint.StandardCheckpointer()
    save.save(tmp_path / "tree", tree)
    save.save(tmp_path / "plain", plain)
    save.wait_until_finished()
    for found in (there, save.restore(tmp_path / "tree", plain)):
        assert jax.tree.structure(found) == jax.tree.structure(plain)
        for leaf, saved in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(leaf, saved)
    for found in (back, save.restore(tmp_path / "plain", tree)):
        assert jax.tree.structure(found) == jax.tree.structure(tree)
        for leaf, saved in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(leaf, saved)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_keras_12470_containers_keep_a_layer_frozen(kind):
    tree = trees(linen_variables())[kind]
    _, new = Linen().apply(tree, X + 1, mutable=["batch_stats"])
    assert moved(tree["batch_stats"]["norm0"], new["batch_stats"]["norm0"])
    assert not moved(tree["batch_stats"]["norm1"], new["batch_stats"]["norm1"])
    assert trained(tree)["norm1"] == {"scale": False, "bias": False}


def test_keras_12470_a_tree_rebuilt_from_its_entries_stays_frozen():
    frozen = freeze(linen_variables(), "norm1")
    flat = traverse_util.flatten_dict(frozen)
    _, new = Linen().apply(traverse_util.unflatten_dict(flat), X, mutable=["batch_stats"])
    assert not moved(frozen["batch_stats"]["norm1"], new["batch_stats"]["norm1"])


def test_keras_12470_a_partly_frozen_model_is_saved_converted_averaged_and_folded(tmp_path):
    plain = linen_variables()
    frozen = freeze(plain, "norm1")
    save_safetensors(frozen, tmp_path / "frozen.safetensors")
    chex.assert_trees_all_equal(load_variables(tmp_path / "frozen.safetensors"), plain)
    norm = ("weight", "bias", "running_mean", "running_var")
    like = {f"norm1.{leaf}": np.zeros(4) for leaf in norm}
    like |= {"dense1.weight": np.zeros((4, 4)), "dense1.bias": np.zeros(4)}
    state = to_torch(frozen, like, ignore="norm0|dense0")
    again = from_torch(state, frozen, ignore="norm0|dense0")
    assert jax.tree.structure(again) == jax.tree.structure(frozen)
    for average, other in ((frozen, plain), (plain, frozen), (frozen, nn.FrozenDict(frozen))):
        chex.assert_trees_all_equal(average_variables(average, other, 0.5), average)
    assert report(frozen).headline() == report(plain).headline()
    folded = fold(Linen(), frozen, X, train=False)
    assert len(folded.changed) == 2
    dropped = drop_redundant_biases(Linen(), frozen, X, train=False)
    assert not trained(dropped.variables)["norm1"]["scale"]


@pytest.mark.parametrize(
    "norm",
    [
        bnjax.linen.BatchNorm(False, debias=True),
        bnjax.linen.BatchNorm(False, momentum=None),
        bnjax.linen.BatchRenorm(False),
    ],
)
def test_yolov5_459_a_frozen_layer_may_lack_the_counter_that_its_module_keeps(norm):
    start = norm.init(jax.random.key(0), X)
    stats = {"mean": jnp.full(4, 5.0), "var": jnp.full(4, 9.0)}
    frozen = freeze(start | {"batch_stats": stats})
    y, new = norm.apply(frozen, X, mutable=["batch_stats"])
    assert not moved(stats, new["batch_stats"])
    np.testing.assert_allclose(y, (X - 5) / np.sqrt(9 + norm.epsilon), rtol=1e-5, atol=1e-6)
    following = freeze(start | {"batch_stats": stats}, statistics=False)
    assert moved(stats, norm.apply(following, X, mutable=["batch_stats"])[1]["batch_stats"])


def test_a_layer_that_does_not_read_the_switches_does_not_train_on_in_silence():
    class Flax(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(not train)(x)

    frozen = freeze(Flax().init(jax.random.key(0), X, False))
    for switches in ({}, {"mode": False}, {"statistics": False, "mode": False}):
        frozen = freeze(unfreeze(frozen), **switches)
        with pytest.raises(ValueError, match=r"frozen layer.*flax.linen.BatchNorm.*swap"):
            Flax().apply(frozen, X, True, mutable=["batch_stats"])
    Flax().apply(frozen, X, False)  # evaluation is what freezing asks for

    with pytest.raises(ValueError, match=r"the model itself.*flax.nnx.BatchNorm.*swap.*frozen"):
        freeze(nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    model = Nnx()
    model.norm0 = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"norm0: flax.nnx.BatchNorm"):
        freeze(model)
    assert trained(freeze(model, "norm1"))["norm1"]["scale"] is False
    swapped = swap(*nnx.split(model), "frozen")
    assert len(swapped.changed) == 2
    with pytest.raises(TypeError, match=r"got an nnx.State.*nnx.merge"):
        freeze(nnx.state(model))


# https://github.com/google/flax/pull/2435: parameters in boxes
@pytest.mark.parametrize("box", [nn.with_partitioning, nn.with_logical_partitioning])
def test_flax_2435_boxed_parameters_are_surgery_s_too(box):
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            kernel = box(nn.initializers.lecun_normal(), (None, "model"))
            bias = box(nn.initializers.ones, ("model",))
            x = nn.Dense(4, kernel_init=kernel, bias_init=bias)(x)
            return bnjax.linen.BatchNorm(not train, scale_init=bias, bias_init=bias)(x)

    variables = Boxed().init(jax.random.key(0), X)
    bare = nn.unbox(variables)
    y = Boxed().apply(variables, X)
    assert str(report(variables)) == str(report(bare))
    for change in (fold, drop_redundant_biases):
        changed = change(Boxed(), variables, X)
        np.testing.assert_allclose(changed.model.apply(changed.variables, X), y, atol=1e-5)
        kernel = changed.variables["params"]["Dense_0"]["kernel"]
        assert kernel.names == (None, "model")  # still in its box
        chex.assert_trees_all_equal(nn.unbox(changed.variables), change(Boxed(), bare, X).variables)
    frozen = freeze(variables)
    assert jax.tree.structure(unfreeze(frozen)) == jax.tree.structure(variables)
    tx = optax.masked(optax.sgd(0.1), trained(frozen))
    tx.update(variables["params"], tx.init(variables["params"]))


def test_nnx_views_share_the_variables_and_keep_other_layers():
    model = Nnx()
    view = freeze(model, "norm1")
    y = view(X)
    assert moved({"mean": np.zeros(4), "var": np.ones(4)}, vars_of(model.norm0))
    assert not moved({"mean": np.zeros(4), "var": np.ones(4)}, vars_of(model.norm1))
    model.norm1.mean[...] = jnp.ones(4)
    assert np.abs(np.asarray(view(X)) - np.asarray(y)).max() > 0.5
    grads = nnx.grad(lambda m: jnp.mean((m(X) - 1) ** 2))(freeze(view, "norm0", mode=False))
    for norm in (grads.norm0, grads.norm1):
        assert not np.any(norm.scale[...])
    mask = trained(view)
    assert mask["norm1"]["scale"] is False and mask["norm0"]["scale"] is True
    free = unfreeze(view)
    assert all(jax.tree.leaves(trained(free)))


def vars_of(norm):
    return {"mean": np.asarray(norm.mean[...]), "var": np.asarray(norm.var[...])}


def test_nnx_optimizer_with_the_mask():
    model = freeze(Nnx(), "norm1")
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, optax.masked(tx, trained(model)), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.mean((m(X) - 1) ** 2))(model))

    step(model, optimizer)
    np.testing.assert_array_equal(model.norm1.scale[...], np.ones(4))
    assert np.any(model.norm0.scale[...] != 1)
    before = vars_of(model.norm0)
    step(freeze(model, "norm0"), optimizer)  # the same compiled step, frozen in the middle
    assert not moved(before, vars_of(model.norm0))


@pytest.mark.parametrize("target", [{"params": {}}, nnx.Linear(1, 1, rngs=nnx.Rngs(0))])
def test_what_has_no_batch_norm_any_more_has_nothing_to_freeze(target):
    with pytest.raises(ValueError, match=r"no batch norm in the model.*bnjax\.surgery\.fold"):
        freeze(target)


@pytest.mark.parametrize("target", [linen_variables(), Nnx()], ids=["linen", "nnx"])
def test_a_pattern_that_finds_nothing_is_refused(target):
    with pytest.raises(ValueError, match=r"layers='conv' is found in no layer.*norm0, norm1"):
        freeze(target, "conv")
