"""What is linen's own about its batch renorm. What nnx promises too: tests/conformance."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.linen import BatchNorm, BatchRenorm
from bnjax.training import begin_update

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)
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


def test_initialising_needs_no_axis():
    init(BatchRenorm(axis_name="devices"))


def test_scan_of_remat_over_layers():
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


def test_only_the_call_is_a_call_to_flax():
    called = []

    def record(method, args, kwargs, context):
        called.append(context.method_name)
        return method(*args, **kwargs)

    with nn.intercept_methods(record):
        init(BatchRenorm())
    assert called == ["__call__"]
