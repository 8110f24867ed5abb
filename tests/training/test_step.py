"""The training step: against one written out by hand, accumulated, sharded, and with bad data."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training import train_state
from jax.sharding import PartitionSpec as P

import bnjax
from bnjax import linen as bnn
from bnjax import nnx as bnnx
from bnjax.training import TrainState, eval_step, train_step

FEATURES = 5


class Net(nn.Module):
    axis_name: str | None = None
    skip: bool = False

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x)
        x = bnn.BatchNorm(
            use_running_average=not train, axis_name=self.axis_name, skip_nonfinite=self.skip
        )(x)
        return nn.Dense(1)(nn.relu(x))


def make_loss(model):
    def loss_fn(params, collections, batch, train):
        mutable = list(collections) if train else []
        variables = {"params": params, **collections}
        y, collections = model.apply(variables, batch["x"], train, mutable=mutable)
        error = (y[:, 0] - batch["y"]) ** 2
        return error.mean(), (collections, {"worst": error.max()})

    return loss_fn


LOSS = make_loss(Net())
STEP = jax.jit(train_step, static_argnums=2, static_argnames=("micro_batches", "skip_nonfinite"))


def data(seed=0, examples=24):
    rng = np.random.default_rng(seed)
    x = rng.normal(2, 3, (examples, FEATURES)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(x.sum(1))}


def start(tx=None):
    variables = Net().init(jax.random.key(0), data()["x"], train=True)
    return TrainState.create(**variables, tx=tx or optax.sgd(0.01, momentum=0.9))


def close(got, want, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=atol), got, want)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_state_of_frozen_dicts_stays_one(micro_batches):
    norm, x = bnn.BatchNorm(momentum=0.9), jnp.arange(12.0).reshape(4, 3)

    def loss_fn(params, collections, batch, train):
        variables = {"params": params, **collections}
        y, new = norm.apply(variables, batch, not train, mutable=list(collections))
        return jnp.mean(y**2), (new, {})

    variables = nn.FrozenDict(norm.init(jax.random.key(0), x, True))
    state = TrainState.create(**variables, tx=optax.sgd(0.1))
    new, _ = train_step(state, x, loss_fn, micro_batches=micro_batches, skip_nonfinite=True)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    np.testing.assert_allclose(new.batch_stats["mean"], 0.1 * x.mean(0), rtol=1e-5)


def test_a_step_is_what_one_would_write_by_hand():
    state, batch = start(), data()

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        y, new = Net().apply(variables, batch["x"], True, mutable=["batch_stats"])
        return jnp.mean((y[:, 0] - batch["y"]) ** 2), new["batch_stats"]

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    new, metrics = STEP(state, batch, LOSS)
    close(new.params, optax.apply_updates(state.params, updates))
    close(new.batch_stats, stats)
    close(new.opt_state, opt_state)
    close(metrics["loss"], value)
    assert int(new.step) == 1 and set(metrics) == {"loss", "worst"}


@pytest.mark.parametrize("micro_batches", [2, 3, 8])
def test_micro_batches_make_one_update_by_the_merged_moments(micro_batches):
    state, batch = start(), data()
    new, metrics = STEP(state, batch, LOSS, micro_batches=micro_batches)
    whole, _ = STEP(state, batch, LOSS)
    close(new.batch_stats, whole.batch_stats)
    parts = [
        jax.tree.map(lambda v, i=i: jnp.split(v, micro_batches)[i], batch)
        for i in range(micro_batches)
    ]
    alone = [STEP(state, part, LOSS)[1]["loss"] for part in parts]
    close(metrics["loss"], np.mean(alone))


def test_micro_batches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"micro_batches=5 must be positive and divide the 24"):
        train_step(start(), data(), LOSS, micro_batches=5)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_pytorch_88474_a_batch_of_nan_is_skipped_and_counted(micro_batches):
    state, good = start(), data()
    bad = {**good, "x": good["x"].at[3, 1].set(jnp.nan)}
    skipped, _ = STEP(state, bad, LOSS, micro_batches=micro_batches, skip_nonfinite=True)
    assert int(skipped.skipped) == 1 and int(skipped.step) == 1
    for name in ("params", "batch_stats", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(skipped, name), getattr(state, name))
    on, _ = STEP(skipped, good, LOSS, micro_batches=micro_batches, skip_nonfinite=True)
    assert int(on.skipped) == 1 and int(on.step) == 2
    plain, _ = STEP(state, bad, LOSS, micro_batches=micro_batches)
    assert np.isnan(plain.batch_stats["BatchNorm_0"]["mean"]).any()


def test_a_gradient_that_overflows_is_skipped_though_the_loss_is_finite():
    def loss_fn(params, collections, batch, train):
        return jnp.sqrt(params).sum(), (collections, {})

    state = TrainState.create(params=jnp.zeros(2), tx=optax.sgd(0.1))
    new, metrics = STEP(state, data(), loss_fn, skip_nonfinite=True)
    assert metrics["loss"] == 0 and int(new.skipped) == 1
    np.testing.assert_array_equal(new.params, 0)


def test_evaluation_updates_nothing_and_uses_the_running_statistics():
    state, _ = STEP(start(), data(), LOSS)
    metrics = jax.jit(eval_step, static_argnums=2)(state, data(1), LOSS)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    y = Net().apply(variables, data(1)["x"], False)
    close(metrics["loss"], jnp.mean((y[:, 0] - data(1)["y"]) ** 2))


@pytest.mark.several_devices
@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_sharded_over_devices_it_is_the_same_step(devices, micro_batches):
    if micro_batches == 3 and devices == 8:
        pytest.skip("three examples a device, one a micro-batch")
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ("data",))
    loss_fn = make_loss(Net(axis_name="data"))

    def both(state, batch):
        new, metrics = train_step(
            state, batch, loss_fn, micro_batches=micro_batches, axis_name="data"
        )
        return new, metrics, eval_step(new, batch, loss_fn, axis_name="data")["loss"]

    sharded = jax.jit(
        jax.shard_map(both, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P(), P()))
    )
    state, batch = start(), data()
    # Device d holds the examples d, so the k-th micro-batch is the k-th part of each.
    order = np.arange(24).reshape(devices, micro_batches, -1).swapaxes(0, 1).ravel()
    regrouped = jax.tree.map(lambda v: v[order], batch)
    new, metrics, loss = sharded(state, batch)
    want, want_metrics = STEP(state, regrouped, LOSS, micro_batches=micro_batches)
    close(new.params, want.params, rtol=1e-4)
    close(new.batch_stats, want.batch_stats)
    close(metrics["loss"], want_metrics["loss"])
    close(loss, eval_step(want, batch, LOSS)["loss"], rtol=1e-4)


def test_it_trains_under_scan_and_vmap_with_a_donated_state():
    batch = data()

    @functools.partial(jax.jit, donate_argnums=0)
    def train(states):
        def body(states, _):
            return jax.vmap(lambda s: train_step(s, batch, LOSS))(states)

        return jax.lax.scan(body, states, length=60)

    states = jax.tree.map(lambda v: jnp.stack([v, v]), start())
    states, metrics = train(states)
    assert (metrics["loss"][-1] < 0.2 * metrics["loss"][0]).all()
    np.testing.assert_array_equal(states.step, [60, 60])


def test_an_nnx_model_is_a_loss_function_like_any_other():
    model = nnx.Sequential(
        nnx.Linear(FEATURES, 1, rngs=nnx.Rngs(0)), bnnx.BatchNorm(1, rngs=nnx.Rngs(1))
    )
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss_fn(params, collections, batch, train):
        model = nnx.merge(graph, params, collections["batch_stats"], copy=True)
        model = nnx.view(model, use_running_average=not train)
        loss = jnp.mean((model(batch["x"])[:, 0] - batch["y"]) ** 2)
        return loss, ({"batch_stats": nnx.state(model, nnx.BatchStat)}, {})

    state = TrainState.create(params=params, batch_stats=stats, tx=optax.sgd(0.01))
    new, metrics = STEP(state, data(), loss_fn)
    mean = nnx.to_pure_dict(new.batch_stats)["layers"][1]["mean"]
    want = 0.01 * (data()["x"] @ params["layers"][0]["kernel"][...]).mean(0)
    close(mean, want)
    assert np.isfinite(metrics["loss"]) and jnp.isfinite(eval_step(new, data(), loss_fn)["loss"])


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return bnn.BatchNorm(not train, momentum=0.9, name="norm")(x) + x, None

        axes = {"params": 0, "batch_stats": 0}
        scan = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=2)
        return nn.Dense(1)(scan(name="blocks")(x, None)[0])


# flax#4760, #4061: layers under lifted transformations; k micro-batches were k updates, silently.
def test_micro_batches_of_layers_under_a_scan_make_one_update():
    variables = Scanned().init(jax.random.key(0), data()["x"], train=True)
    state = TrainState.create(**variables, tx=optax.sgd(0.0))
    new, _ = STEP(state, data(), make_loss(Scanned()), micro_batches=3)
    norm, x = new.batch_stats["blocks"]["norm"], data()["x"]
    close(norm["mean"][0], 0.1 * x.mean(0))
    close(norm["var"][0], 0.9 + 0.1 * x.var(0))
    assert jax.tree.structure(new) == jax.tree.structure(state)


# pytorch#96136: several forward passes a step update the statistics several times.
def test_micro_batches_of_pure_functions_make_one_update():
    def loss_fn(params, collections, batch, train):
        stats = collections["batch_stats"]["norm"]
        y, stats = bnjax.batch_norm(batch["x"], None, None, stats, train=train, decay=0.9)
        return jnp.mean((y @ params) ** 2), ({"batch_stats": {"norm": stats}}, {})

    params, stats = jnp.ones(FEATURES), {"norm": bnjax.init_batch_stats(FEATURES)}
    state = TrainState.create(params=params, batch_stats=stats, tx=optax.sgd(0.1))
    whole, _ = STEP(state, data(), loss_fn)
    new, _ = STEP(state, data(), loss_fn, micro_batches=3)
    close(new.batch_stats, whole.batch_stats)
    assert jnp.isfinite(eval_step(new, data(), loss_fn)["loss"])


class FlaxState(train_state.TrainState):
    """As Flax's own examples have it."""

    batch_stats: Any


class CountingState(FlaxState):
    skipped: int = 0


# flax examples/imagenet, where batch_stats is a field of the user's own TrainState.
@pytest.mark.parametrize("cls", [FlaxState, CountingState])
def test_a_train_state_of_flax_takes_the_same_steps(cls):
    ours, batch = start(optax.sgd(0.01)), data()
    fields = {"params": ours.params, "batch_stats": ours.batch_stats}
    state = cls.create(apply_fn=None, tx=ours.tx, **fields)
    close(eval_step(state, batch, LOSS)["loss"], eval_step(ours, batch, LOSS)["loss"])
    bad = {**batch, "x": batch["x"].at[0].set(jnp.nan)}
    for options in ({}, {"micro_batches": 2}, {"micro_batches": 2, "skip_nonfinite": True}):
        for examples in (batch, bad) if options.get("skip_nonfinite") else (batch,):
            new, metrics = STEP(state, examples, LOSS, **options)
            want, want_metrics = STEP(ours, examples, LOSS, **options)
            for name in ("step", "params", "batch_stats"):
                close(getattr(new, name), getattr(want, name))
            np.testing.assert_equal(*(np.asarray(m["loss"]) for m in (metrics, want_metrics)))
            if cls is CountingState:
                assert new.skipped == want.skipped


def test_states_without_a_place_for_statistics():
    def loss_fn(params, collections, batch, train):
        return params["w"] ** 2, ({"batch_stats": params} if batch else collections, {})

    params = {"w": jnp.ones(())}
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.1))
    new, _ = train_step(state, 0, loss_fn)
    close(new.params["w"], 0.8)
    with pytest.raises(TypeError, match=r"TrainState has no field: they would be lost"):
        train_step(state, 1, loss_fn)
    with pytest.raises(TypeError, match=r"got dict, which has no params, apply_gradients, replace"):
        train_step({}, 0, loss_fn)


def test_micro_batches_share_scalars_and_split_keys():
    def loss_fn(params, collections, batch, train):
        noise = jax.random.normal(batch["key"], ())
        loss = params * batch["weight"] * batch["x"].mean() + 0 * noise
        return loss, (collections, {"noise": noise, "weight": batch["weight"]})

    batch = {"x": jnp.arange(6.0), "weight": 2.0, "key": jax.random.key(3)}
    state = TrainState.create(params=jnp.ones(()), tx=optax.sgd(0.1))
    _, metrics = STEP(state, batch, loss_fn, micro_batches=3)
    close(metrics["loss"], 5.0)
    close(metrics["weight"], 2.0)
    noise = [jax.random.normal(key, ()) for key in jax.random.split(batch["key"], 3)]
    close(metrics["noise"], np.mean(noise))
    with pytest.raises(ValueError, match=r"3 must be positive and divide the 2 .* jax.random.key"):
        train_step(state, {**batch, "key": np.zeros(2, np.uint32)}, loss_fn, micro_batches=3)


# yolov5#459: statistics that come without a counter.
def test_yolov5_459_micro_batches_of_statistics_without_a_counter():
    class Debiased(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(1)(bnn.BatchNorm(not train, debias=True, momentum=0.9)(x))

    variables = Debiased().init(jax.random.key(0), data()["x"], train=True)
    del variables["batch_stats"]["BatchNorm_0"]["count"]
    stats = jax.tree.map(lambda v: v + 5, variables["batch_stats"])
    state = TrainState.create(params=variables["params"], batch_stats=stats, tx=optax.sgd(0.0))
    whole, _ = STEP(state, data(), make_loss(Debiased()))
    new, _ = STEP(state, data(), make_loss(Debiased()), micro_batches=2)
    close(new.batch_stats, whole.batch_stats)
    chex.assert_trees_all_equal_shapes_and_dtypes(new.batch_stats, whole.batch_stats)
