"""The linen module: Flax's surface, bnjax's extras. Values against Flax are in tests/parity."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.linen import BatchNorm, BatchRenorm

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)
NEW_FIELDS = {
    "update_stats": True,
    "debias": False,
    "ddof": 0,
    "virtual_batch_size": None,
    "skip_nonfinite": False,
    "single_value": "warn",
}


def test_fields_and_defaults_are_those_of_flax_then_ours_by_keyword():
    ours, theirs = dataclasses.fields(BatchNorm), dataclasses.fields(nn.BatchNorm)
    ours = {f.name: (f.default, f.kw_only) for f in ours}
    theirs = {f.name: (f.default, f.kw_only) for f in theirs}
    new = {name: ours.pop(name) for name in NEW_FIELDS}
    assert list(ours.items()) == list(theirs.items())
    assert new == {name: (default, True) for name, default in NEW_FIELDS.items()}


def train(module, variables, x=X, **kwargs):
    y, updates = module.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"], **kwargs
    )
    return y, {**variables, **updates}


def init(module, x=X):
    return module.init(jax.random.key(0), x, use_running_average=False)


def test_variables_by_default_and_with_a_count():
    shapes = jax.tree.map(jnp.shape, init(BatchNorm()))
    params = {"scale": (5,), "bias": (5,)}
    assert shapes == {"params": params, "batch_stats": {"mean": (5,), "var": (5,)}}
    for options in ({"debias": True}, {"momentum": None}):
        variables = init(BatchNorm(**options))
        assert variables["batch_stats"]["count"].dtype == jnp.int32
        assert train(BatchNorm(**options), variables)[1]["batch_stats"]["count"] == 1


def test_the_module_is_the_core():
    module = BatchNorm(momentum=0.9)
    y, variables = train(module, init(module))
    stats = bnjax.init_batch_stats(5)
    want, stats = bnjax.batch_norm(X, jnp.ones(5), jnp.zeros(5), stats, train=True, decay=0.9)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], stats.var)


def test_debias_makes_the_first_evaluation_right():
    # keras#10666: momentum 0.99 makes early evaluation useless.
    module = BatchNorm(debias=True)
    _, variables = train(module, init(module))
    y = module.apply(variables, X, use_running_average=True)
    np.testing.assert_allclose(y, (X - X.mean(0)[None]) / X.std(0)[None], rtol=2e-4, atol=1e-5)


def test_update_stats_is_a_switch_of_its_own():
    # pytorch#96136, sam#17: several forward passes a step update the statistics several times.
    variables = init(BatchNorm())
    y, after = train(BatchNorm(update_stats=False), variables)
    np.testing.assert_array_equal(y, train(BatchNorm(), variables)[0])
    jax.tree.map(np.testing.assert_array_equal, after, variables)
    # and then batch_stats need not be mutable
    BatchNorm(update_stats=False).apply(variables, X, use_running_average=False)


def test_forgetting_to_make_batch_stats_mutable_is_an_error():
    with pytest.raises(Exception, match="immutable"):
        BatchNorm().apply(init(BatchNorm()), X, use_running_average=False)


def test_evaluation_touches_nothing():
    variables = init(BatchNorm())
    _, updates = BatchNorm().apply(variables, X, use_running_average=True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_initialising_needs_no_axis_no_batch_and_updates_nothing():
    module = BatchNorm(axis_name="devices")
    variables = init(module, jnp.ones((1, 5)) * 7)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], jnp.zeros(5))


def test_one_value_a_feature_warns_by_default_and_can_be_an_error():
    variables = init(BatchNorm())
    with pytest.warns(UserWarning, match="one value a feature"):
        y, _ = train(BatchNorm(), variables, X[:1])
    np.testing.assert_array_equal(y, jnp.zeros((1, 5)))
    with pytest.raises(ValueError, match="one value a feature"):
        train(BatchNorm(single_value="error"), variables, X[:1])


def test_skip_nonfinite_keeps_the_statistics():
    variables = init(BatchNorm())
    bad = X.at[0, 0].set(jnp.nan)
    _, after = train(BatchNorm(skip_nonfinite=True), variables, bad)
    jax.tree.map(np.testing.assert_array_equal, after, variables)
    assert np.isnan(train(BatchNorm(), variables, bad)[1]["batch_stats"]["mean"][0])


def test_ddof_stores_the_sample_variance():
    module = BatchNorm(momentum=0.0, ddof=1)
    _, variables = train(module, init(module))
    np.testing.assert_allclose(variables["batch_stats"]["var"], X.var(0, ddof=1), rtol=1e-5)


def test_integer_input_is_computed_in_float32():
    x = jnp.arange(10).reshape(5, 2)
    module = BatchNorm()
    y, _ = train(module, init(module, x), x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-4)


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


def test_scan_and_vmap_over_layers():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return BatchNorm(use_running_average=False)(x), None

    stack = nn.scan(Block, {"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3)()
    variables = stack.init(jax.random.key(0), X, None)
    assert variables["batch_stats"]["BatchNorm_0"]["mean"].shape == (3, 5)
    (y, _), _ = stack.apply(variables, X, None, mutable=["batch_stats"])
    assert y.shape == X.shape

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


def test_running_statistics_loaded_in_half_precision_are_averaged_in_float32():
    variables = init(BatchNorm())
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables["batch_stats"])
    _, after = train(BatchNorm(), {**variables, "batch_stats": half})
    assert after["batch_stats"]["var"].dtype == jnp.float32


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
