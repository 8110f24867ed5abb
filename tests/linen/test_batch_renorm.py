"""The linen module of batch renorm: batch norm with limits and a count. Values: tests/core."""

import dataclasses

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bnjax
from bnjax.linen import BatchNorm, BatchRenorm
from bnjax.training import begin_update

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)
R_MAX, D_MAX = optax.linear_schedule(1.0, 3.0, 4), optax.linear_schedule(0.0, 5.0, 4)


def init(module, x=X):
    return module.init(jax.random.key(0), x, use_running_average=False)


def train(module, variables, x=X, **kwargs):
    y, updates = module.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"], **kwargs
    )
    return y, {**variables, **updates}


def close(got, want, rtol=1e-6):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol), got, want)


def test_fields_are_those_of_batch_norm_then_the_limits_by_keyword():
    fields = {f.name: (f.default, f.kw_only) for f in dataclasses.fields(BatchRenorm)}
    want = {f.name: (f.default, f.kw_only) for f in dataclasses.fields(BatchNorm)}
    want["single_value"] = ("allow", True)
    # Those of bnjax.batch_renorm.
    limits = {"r_max": (3.0, True), "d_max": (5.0, True)}
    limits |= {"warmup_steps": (0, True), "average": ("std", True)}
    assert fields == want | limits
    assert [name for name in fields if name not in limits] == list(want)


def test_the_count_is_always_kept():
    variables = init(BatchRenorm())
    stats = {"mean": (5,), "var": (5,), "count": ()}
    assert jax.tree.map(jnp.shape, variables) == {
        "params": {"scale": (5,), "bias": (5,)},
        "batch_stats": stats,
    }
    assert variables["batch_stats"]["count"].dtype == jnp.int32
    assert variables["batch_stats"]["count"] == 0
    assert train(BatchRenorm(), variables)[1]["batch_stats"]["count"] == 1


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"momentum": None}, {"ddof": 1}])
def test_the_module_is_the_core(options):
    module = BatchRenorm(r_max=1.5, d_max=0.5, **options)
    variables = init(module)
    stats = bnjax.init_batch_stats(5)
    core = {"r_max": 1.5, "d_max": 0.5, "decay": options.get("momentum", 0.99)}
    core |= {name: value for name, value in options.items() if name != "momentum"}
    for x in (X, X + 1):
        y, variables = train(module, variables, x)
        want, stats = bnjax.batch_renorm(x, jnp.ones(5), jnp.zeros(5), stats, train=True, **core)
        np.testing.assert_array_equal(y, want)
    for name, value in variables["batch_stats"].items():
        np.testing.assert_array_equal(value, getattr(stats, name))
    y = module.apply(variables, X, use_running_average=True)
    want, _ = bnjax.batch_renorm(X, jnp.ones(5), jnp.zeros(5), stats, train=False)
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("options", [{}, {"mask": True}, {"virtual_batch_size": 4}])
def test_tight_limits_make_it_batch_norm(options):
    mask = jnp.arange(8)[:, None] % 3 > 0 if "mask" in options else None
    fields = {name: value for name, value in options.items() if name != "mask"}

    def run(module):
        variables = init(module)

        def loss(params):
            y, updates = train(module, {**variables, "params": params}, mask=mask)
            return jnp.sum(WEIGHTS * y), (y, updates["batch_stats"]["mean"])

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    close(run(BatchRenorm(r_max=1.0, d_max=0.0, **fields)), run(BatchNorm(**fields)), 1e-5)


def test_a_batch_of_one_is_allowed_and_learns_something():
    y, _ = train(BatchRenorm(), init(BatchRenorm()), X[:1])
    close(y, jnp.clip(X[:1], -5, 5), 1e-4)  # running mean 0, variance 1; d_max 5
    with pytest.raises(ValueError, match="one value a feature"):
        train(BatchRenorm(single_value="error"), init(BatchRenorm()), X[:1])


def test_evaluating_before_any_update_warns():
    with pytest.warns(UserWarning, match="count is 0"):
        BatchRenorm().apply(init(BatchRenorm()), X, use_running_average=True)


def test_a_schedule_survives_a_checkpoint_and_goes_on():
    module = BatchRenorm(momentum=0.5, r_max=R_MAX, d_max=D_MAX)
    step = jax.jit(lambda variables, x: train(module, variables, x))
    batches = [X * (1 + i) + i for i in range(6)]
    want, variables = [], init(module)
    for x in batches:
        y, variables = step(variables, x)
        want.append(y)

    got, variables = [], init(module)
    for x in batches[:3]:
        y, variables = step(variables, x)
        got.append(y)
    saved = flax.serialization.to_bytes(variables)
    variables = flax.serialization.from_bytes(init(module), saved)
    assert variables["batch_stats"]["count"] == 3
    for x in batches[3:]:
        y, variables = step(variables, x)
        got.append(y)
    close(got, want)
    # and it was a schedule: where it began again, the outputs would be others
    lost = variables | {"batch_stats": variables["batch_stats"] | {"count": jnp.int32(0)}}
    assert np.abs(step(lost, X + 9)[0] - step(variables, X + 9)[0]).max() > 0.5


def test_one_update_out_of_several_batches():
    module = BatchRenorm(momentum=0.9, r_max=R_MAX, d_max=D_MAX)
    state = init(module)
    _, want = train(module, state)
    state["batch_moments"] = begin_update(state["batch_stats"])
    for part in (X[:4], X[4:]):
        _, new = module.apply(state, part, False, mutable=["batch_stats", "batch_moments"])
        state |= new
    close(state["batch_stats"], want["batch_stats"], 1e-5)
    assert state["batch_stats"]["count"] == 1


def test_axis_name_merges_devices_and_initialising_needs_none():
    module = BatchRenorm(axis_name="devices", r_max=1.5, d_max=0.5)
    variables = init(module)
    y, after = jax.vmap(
        lambda x: train(module, variables, x), axis_name="devices", out_axes=(0, None)
    )(X.reshape(2, 4, 5))
    want = train(BatchRenorm(r_max=1.5, d_max=0.5), variables)
    close((y.reshape(8, 5), after["batch_stats"]), (want[0], want[1]["batch_stats"]), 1e-5)


def test_jit_vmap_scan_and_eval_shape():
    module = BatchRenorm(r_max=R_MAX, d_max=D_MAX)
    variables = init(module)
    fn = lambda variables, x: train(module, variables, x)  # noqa: E731
    want = fn(variables, X)
    close(jax.jit(fn)(variables, X), want)
    abstract = jax.eval_shape(fn, variables, X)
    shape = lambda tree: jax.tree.map(lambda v: (v.shape, v.dtype), tree)  # noqa: E731
    assert shape(abstract) == shape(want)

    xs = jnp.stack([X, 2 * X + 1])
    close(jax.vmap(lambda x: fn(variables, x))(xs)[0], jnp.stack([fn(variables, x)[0] for x in xs]))
    end, ys = jax.lax.scan(lambda v, x: fn(v, x)[::-1], variables, xs)
    first, after = fn(variables, xs[0])
    second, after = fn(after, xs[1])
    close((end, ys), (after, jnp.stack([first, second])), 1e-5)

    layers = nn.scan(
        nn.remat(Block), {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3
    )()
    variables = layers.init(jax.random.key(0), X, None)
    assert variables["batch_stats"]["BatchRenorm_0"]["count"].shape == (3,)
    _, updates = layers.apply(variables, X, None, mutable=["batch_stats"])
    np.testing.assert_array_equal(updates["batch_stats"]["BatchRenorm_0"]["count"], 1)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return BatchRenorm(use_running_average=False, r_max=R_MAX, d_max=D_MAX)(x), None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_statistics_in_float32(dtype):
    module = BatchRenorm(dtype=dtype)
    y, variables = train(module, init(module), X.astype(dtype))
    assert y.dtype == dtype
    assert variables["batch_stats"]["var"].dtype == jnp.float32
    want, _ = train(BatchRenorm(), init(module), X.astype(dtype).astype(jnp.float32))
    close(y.astype(jnp.float32), want, float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("limits", [{"r_max": 0.5}, {"d_max": -1.0}])
def test_limits_that_make_no_sense_are_refused(limits):
    (name,) = limits
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        init(BatchRenorm(**limits))


def test_only_the_call_is_a_call_to_flax():
    called = []

    def record(method, args, kwargs, context):
        called.append(context.method_name)
        return method(*args, **kwargs)

    with nn.intercept_methods(record):
        init(BatchRenorm())
    assert called == ["__call__"]
