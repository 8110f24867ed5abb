"""The modules of batch norm: Flax's surface, bnjax's extras. Values against Flax: tests/parity."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from tests._modules import signature

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)
BAD = X.at[0, 0].set(jnp.nan)
NEW = {
    "update_stats": True,
    "debias": False,
    "ddof": 0,
    "virtual_batch_size": None,
    "skip_nonfinite": False,
    "single_value": "warn",
}


def make(library, x=X, **options):
    return library.make("BatchNorm", x, **options)


def same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_signatures_are_those_of_flax_then_ours_by_keyword(library):
    ours, theirs = library.ours.BatchNorm, library.theirs.BatchNorm
    assert list(signature(ours.__call__)) == list(signature(theirs.__call__))
    ours, theirs = signature(ours.__init__), signature(theirs.__init__)
    new = {name: ours.pop(name) for name in NEW}
    assert list(ours.items()) == list(theirs.items())
    by_keyword = inspect.Parameter.KEYWORD_ONLY
    assert new == {name: (by_keyword, str(default)) for name, default in NEW.items()}


def test_variables_by_default(library):
    params = {"scale": (5,), "bias": (5,)}
    shapes = jax.tree.map(jnp.shape, make(library).variables)
    assert shapes == {"params": params, "batch_stats": {"mean": (5,), "var": (5,)}}


@pytest.mark.parametrize("options", [{"debias": True}, {"momentum": None}])
def test_variables_with_a_count(library, options):
    layer = make(library, **options)
    count = layer.variables["batch_stats"]["count"]
    assert (count.shape, count.dtype, count) == ((), jnp.int32, 0)
    assert layer.state(X)["count"] == 1


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_without_parameters(library, scale, bias):
    layer = make(library, use_scale=scale, use_bias=bias)
    has = layer.variables["params"].keys()
    assert ("scale" in has, "bias" in has) == (scale, bias)
    np.testing.assert_allclose(layer.y(X).mean(0), 0, atol=1e-5)


def test_the_module_is_the_core(library):
    layer = make(library, momentum=0.9)
    y, variables = layer.apply(layer.variables, X)
    stats = bnjax.init_batch_stats(5)
    want, stats = bnjax.batch_norm(X, jnp.ones(5), jnp.zeros(5), stats, train=True, decay=0.9)
    same((y, variables["batch_stats"]), (want, {"mean": stats.mean, "var": stats.var}))


def test_debias_makes_the_first_evaluation_right(library):
    # keras#10666: momentum 0.99 makes early evaluation useless.
    layer = make(library, debias=True)
    y, _ = layer.apply(layer.apply(layer.variables, X)[1], X, train=False)
    np.testing.assert_allclose(y, (X - X.mean(0)[None]) / X.std(0)[None], rtol=2e-4, atol=1e-5)


def test_update_stats_is_a_switch_of_its_own(library):
    # pytorch#96136, sam#17: several forward passes a step update the statistics several times.
    layer = make(library, update_stats=False)
    y, after = layer.apply(layer.variables, X)
    same((y, after), (make(library).y(X), layer.variables))


def test_evaluation_touches_nothing(library):
    layer = make(library)
    y, after = layer.apply(layer.variables, X, train=False)
    same(after, layer.variables)
    assert not np.allclose(y, layer.y(X))


def test_one_value_a_feature_warns_by_default(library):
    with pytest.warns(UserWarning, match="one value a feature"):
        same(make(library).y(X[:1]), jnp.zeros((1, 5)))


def test_one_value_a_feature_can_be_an_error(library):
    with pytest.raises(ValueError, match="one value a feature"):
        make(library, single_value="error").y(X[:1])


def test_skip_nonfinite_keeps_the_statistics(library):
    layer = make(library, skip_nonfinite=True)
    same(layer.state(BAD), layer.variables["batch_stats"])
    assert np.isnan(make(library).state(BAD)["mean"][0])


def test_ddof_stores_the_sample_variance(library):
    layer = make(library, momentum=0.0, ddof=1)
    np.testing.assert_allclose(layer.state(X)["var"], X.var(0, ddof=1), rtol=1e-5)


def test_integer_input_is_computed_in_float32(library):
    x = jnp.arange(10).reshape(5, 2)
    y = make(library, x).y(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-4)


def test_integers_are_not_rounded_to_a_narrow_dtype_first(library):
    x = jnp.arange(1000, 1032)[:, None]  # bfloat16 holds every fourth of these
    wide, narrow = (make(library, x, dtype=d).y(x) for d in (jnp.float32, jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    same(narrow, wide.astype(jnp.bfloat16))


def test_complex_input_gives_complex_statistics(library):
    x = jax.lax.complex(X, 2 * X)
    stats = make(library, x, momentum=0.0).state(x)
    assert stats["mean"].dtype == jnp.complex64
    np.testing.assert_allclose(stats["mean"], np.asarray(X.mean(0)) * (1 + 2j), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 5 * X.var(0), rtol=1e-5)


def test_running_statistics_stay_in_float32_in_a_half_precision_layer(library):
    # flax nnx since November 2025: a variance over 65,504 becomes inf in float16.
    layer = make(library, dtype=jnp.float16)
    stats = {"mean": jnp.full(5, 1000.0), "var": jnp.full(5, 1e6)}
    x = jnp.full((2, 5), 2000.0, jnp.float16)
    y, _ = layer.apply(layer.variables | {"batch_stats": stats}, x, train=False)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y.astype(jnp.float32), 1.0, rtol=1e-3)


def test_running_statistics_loaded_in_half_precision_are_averaged_in_float32(library):
    layer = make(library)
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), layer.variables["batch_stats"])
    _, after = layer.apply(layer.variables | {"batch_stats": half}, X)
    assert after["batch_stats"]["var"].dtype == jnp.float32


def test_a_half_precision_input_leaves_no_float32_copy_for_the_backward_pass(library):
    x = jnp.ones((64, 5), jnp.bfloat16) * jnp.arange(5, dtype=jnp.bfloat16)[None]
    layer = make(library, x, dtype=jnp.bfloat16, update_stats=False)
    _, pullback = jax.vjp(layer.y, x)
    large = [leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.size >= 64 * 5]
    assert large == [jnp.bfloat16]
