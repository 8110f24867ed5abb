"""The nnx module of batch renorm: batch norm with limits and a count. Values: tests/core."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bnjax
from bnjax.nnx import BatchNorm, BatchRenorm, one_update

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)
R_MAX, D_MAX = optax.linear_schedule(1.0, 3.0, 4), optax.linear_schedule(0.0, 5.0, 4)


def make(cls=BatchRenorm, **options):
    return cls(5, rngs=nnx.Rngs(0), **options)


def stats(layer):
    return nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))


def close(got, want, rtol=1e-6):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol), got, want)


def test_it_takes_what_batch_norm_takes_and_limits_by_keyword():
    ours = inspect.signature(BatchRenorm.__init__).parameters
    assert (ours["r_max"].default, ours["d_max"].default) == (3.0, 5.0)
    assert (ours["single_value"].default, ours["rngs"].default) == ("allow", inspect._empty)
    assert {ours[name].kind for name in ("r_max", "d_max")} == {inspect.Parameter.KEYWORD_ONLY}
    theirs = inspect.signature(BatchNorm.__init__).parameters
    options = {n: p.default for n, p in theirs.items() if p.default is not inspect._empty}
    layer = make(**options | {"epsilon": 1e-3, "debias": True})
    assert (layer.epsilon, layer.debias, layer.single_value) == (1e-3, True, "warn")
    with pytest.raises(TypeError, match="moment"):
        make(moment=0.9)


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"momentum": None}])
def test_the_module_is_the_core_and_counts(options):
    layer, state = make(r_max=1.5, d_max=0.5, **options), bnjax.init_batch_stats(5)
    assert jax.tree.map(jnp.shape, stats(layer)) == {"mean": (5,), "var": (5,), "count": ()}
    core = {"r_max": 1.5, "d_max": 0.5, "decay": options.get("momentum", 0.99)}
    core |= {name: value for name, value in options.items() if name != "momentum"}
    for x in (X, X + 1):
        want, state = bnjax.batch_renorm(x, jnp.ones(5), jnp.zeros(5), state, train=True, **core)
        np.testing.assert_array_equal(layer(x), want)
    assert stats(layer)["count"] == 2
    jax.tree.map(np.testing.assert_array_equal, stats(layer), state._asdict())
    want, _ = bnjax.batch_renorm(X, jnp.ones(5), jnp.zeros(5), state, train=False)
    layer.eval()
    np.testing.assert_array_equal(layer(X), want)


@pytest.mark.parametrize("options", [{}, {"mask": True}, {"virtual_batch_size": 4}])
def test_tight_limits_make_it_batch_norm(options):
    mask = jnp.arange(8)[:, None] % 3 > 0 if "mask" in options else None
    fields = {name: value for name, value in options.items() if name != "mask"}

    def run(layer):
        loss = lambda layer: jnp.sum(WEIGHTS * layer(X, mask=mask))  # noqa: E731
        value, grads = nnx.value_and_grad(loss)(layer)
        return value, nnx.to_pure_dict(grads), layer.mean[...]

    tight = make(r_max=1.0, d_max=0.0, **fields)
    close(run(tight), run(make(BatchNorm, **fields)), 1e-5)


def test_a_batch_of_one_is_allowed():
    close(make()(X[:1]), jnp.clip(X[:1], -5, 5), 1e-4)  # running mean 0, variance 1; d_max 5


def test_a_schedule_survives_a_checkpoint_and_goes_on():
    step = nnx.jit(lambda layer, x: layer(x))
    new = lambda: make(momentum=0.5, r_max=R_MAX, d_max=D_MAX)  # noqa: E731
    batches = [X * (1 + i) + i for i in range(6)]
    layer = new()
    want = [step(layer, x) for x in batches]

    layer = new()
    got = [step(layer, x) for x in batches[:3]]
    saved = nnx.to_pure_dict(nnx.split(layer)[1])
    saved = jax.tree.map(np.asarray, saved)
    graph, state = nnx.split(new())
    nnx.replace_by_pure_dict(state, saved)
    layer = nnx.merge(graph, state)
    assert layer.count[...] == 3
    close(got + [step(layer, x) for x in batches[3:]], want)
    # and it was a schedule: where it began again, the outputs would be others
    lost = nnx.clone(layer)
    lost.count[...] = jnp.int32(0)
    assert np.abs(lost(X + 9) - layer(X + 9)).max() > 0.5


def test_one_update_out_of_several_batches():
    layer, whole = (make(momentum=0.9, r_max=R_MAX, d_max=D_MAX) for _ in range(2))
    with one_update(nnx.Sequential(layer, nnx.relu)):
        layer(X[:4])
        layer(X[4:])
    whole(X)
    close(stats(layer), stats(whole), 1e-5)
    assert layer.count[...] == 1


def test_vmap_scan_eval_shape_and_grad():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def stacked(rngs):
        return BatchRenorm(5, r_max=R_MAX, d_max=D_MAX, rngs=rngs)

    layers = stacked(nnx.Rngs(0))
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, X)
    close(y[1], make(r_max=R_MAX, d_max=D_MAX)(X))
    y = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, X)
    assert y.shape == X.shape
    np.testing.assert_array_equal(layers.count[...], [2, 2, 2])
    assert nnx.eval_shape(make).count.get_value().shape == ()

    layer = make()

    @nnx.jit
    def grads(layer, x):
        return nnx.grad(lambda layer: jnp.sum(WEIGHTS * layer(x)))(layer)

    assert np.abs(grads(layer, X).scale[...]).min() > 0
    assert layer.count[...] == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_statistics_in_float32(dtype):
    layer = make(dtype=dtype)
    y = layer(X.astype(dtype))
    assert (y.dtype, layer.var[...].dtype) == (dtype, jnp.float32)
    want = make()(X.astype(dtype).astype(jnp.float32))
    close(y.astype(jnp.float32), want, float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("limits", [{"r_max": 0.5}, {"d_max": -1.0}])
def test_limits_that_make_no_sense_are_refused(limits):
    (name,) = limits
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        make(**limits)(X)
