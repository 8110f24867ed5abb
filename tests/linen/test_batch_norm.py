"""What is linen's own about its batch norm. What nnx promises too: tests/conformance."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.linen import BatchNorm, BatchRenorm

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)


def init(module, x=X):
    return module.init(jax.random.key(0), x, use_running_average=False)


def test_what_is_not_updated_need_not_be_mutable():
    BatchNorm(update_stats=False).apply(init(BatchNorm()), X, use_running_average=False)


def test_forgetting_to_make_batch_stats_mutable_is_an_error():
    with pytest.raises(Exception, match="immutable"):
        BatchNorm().apply(init(BatchNorm()), X, use_running_average=False)


def test_initialising_needs_no_axis_no_batch_and_updates_nothing():
    module = BatchNorm(axis_name="devices")
    variables = init(module, jnp.ones((1, 5)) * 7)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], jnp.zeros(5))


def test_both_or_neither_flag_is_an_error():
    module = BatchNorm(use_running_average=True)
    for m, flag in ((module, True), (BatchNorm(), None)):
        with pytest.raises(ValueError, match="use_running_average"):
            m.init(jax.random.key(0), X, use_running_average=flag)


class Net(nn.Module):
    """A convolutional network as users write them."""

    norm: type = BatchNorm

    @nn.compact
    def __call__(self, x, train):
        for features in (4, 8):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(self.norm(use_running_average=not train)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def test_inside_a_model_under_jit_and_grad():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 8, 8, 2)), jnp.float32)
    variables = Net().init(jax.random.key(0), x, train=False)

    @jax.jit
    def step(params, batch_stats):
        def loss(params):
            out, updates = Net().apply(
                {"params": params, "batch_stats": batch_stats}, x, True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.square(out - 1)), updates

        return jax.value_and_grad(loss, has_aux=True)(params)

    params, stats = variables["params"], variables["batch_stats"]
    losses = []
    for _ in range(20):
        (value, updates), grads = step(params, stats)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        stats = updates["batch_stats"]
        losses.append(float(value))
    assert losses[-1] < 0.1 * losses[0]


def test_scan_over_layers():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return BatchNorm(use_running_average=False)(x), None

    stack = nn.scan(Block, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3)()
    variables = stack.init(jax.random.key(0), X, None)
    assert variables["batch_stats"]["BatchNorm_0"]["mean"].shape == (3, 5)
    (y, _), _ = stack.apply(variables, X, None, mutable=["batch_stats"])
    assert y.shape == X.shape


def test_vmap_over_layers():
    many = nn.vmap(
        BatchNorm, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, in_axes=0
    )(use_running_average=False)
    xs = jnp.stack([X, 2 * X])
    variables = many.init(jax.random.key(0), xs)
    y, _ = many.apply(variables, xs, mutable=["batch_stats"])
    np.testing.assert_allclose(y[0], y[1], rtol=1e-3, atol=1e-5)


def test_only_the_call_is_a_call_to_flax():
    # A helper that Flax counts as a method of the module shows up in interceptors, in captured
    # intermediates and in tabulate, which runs it by itself.
    called = []

    def record(method, args, kwargs, context):
        called.append(context.method_name)
        return method(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = init(BatchNorm())
    assert called == ["__call__"]
    options = {"mutable": ["batch_stats", "intermediates"], "capture_intermediates": True}
    _, state = BatchNorm().apply(variables, X, False, **options)
    assert list(state["intermediates"]) == ["__call__"]
    table = nn.tabulate(BatchNorm(), jax.random.key(0), compute_flops=True, compute_vjp_flops=True)
    assert "Total Parameters: 20" in table(X, use_running_average=False)


def test_a_checkpoint_of_flax_is_evaluated_with_debias():
    # It holds no count: how many updates made the statistics is not known, but they are there.
    x = jnp.full((2, 1), 11.0)
    stats = {"mean": jnp.array([5.0]), "var": jnp.array([9.0])}
    variables = {"params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}, "batch_stats": stats}
    for kind in (BatchNorm, BatchRenorm):
        norm = kind(use_running_average=True, debias=True)
        np.testing.assert_allclose(norm.apply(variables, x), 2.0, rtol=1e-5)
        y = jax.jit(norm.apply)(variables, x)
        np.testing.assert_allclose(y, 2.0, rtol=1e-5)
