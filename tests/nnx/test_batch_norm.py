"""The nnx module: Flax's surface, bnjax's extras. Values against Flax are in tests/parity."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax
from bnjax.nnx import BatchNorm

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5)), jnp.float32)
NEW = ["update_stats", "debias", "ddof", "virtual_batch_size", "skip_nonfinite", "single_value"]
INITIALISERS = {"bias_init", "scale_init"}  # Flax makes new, equal functions for each default


def make(**options):
    return BatchNorm(5, rngs=nnx.Rngs(0), **options)


def test_signatures_are_those_of_flax_then_ours_by_keyword():
    ours = dict(inspect.signature(BatchNorm.__init__).parameters)
    theirs = dict(inspect.signature(nnx.BatchNorm.__init__).parameters)
    for name in NEW:
        assert ours.pop(name).kind == inspect.Parameter.KEYWORD_ONLY
    assert list(ours) == list(theirs)
    for name in ours.keys() - INITIALISERS:
        assert (ours[name].default, ours[name].kind) == (theirs[name].default, theirs[name].kind)
    call = lambda cls: list(inspect.signature(cls.__call__).parameters)  # noqa: E731
    assert call(BatchNorm) == call(nnx.BatchNorm)
    assert vars(nnx.BatchNorm(5, rngs=nnx.Rngs(0))).keys() <= vars(make()).keys()


def test_variables_by_default_and_with_a_count():
    state = nnx.to_pure_dict(nnx.state(make()))
    assert jax.tree.map(jnp.shape, state) == dict.fromkeys(("mean", "var", "scale", "bias"), (5,))
    layer = make(debias=True)
    layer(X)
    assert layer.count[...] == 1
    assert isinstance(layer.count, nnx.BatchStat)


def test_the_module_is_the_core():
    layer = make(momentum=0.9)
    stats = bnjax.init_batch_stats(5)
    want, stats = bnjax.batch_norm(X, jnp.ones(5), jnp.zeros(5), stats, train=True, decay=0.9)
    np.testing.assert_array_equal(layer(X), want)
    np.testing.assert_array_equal(layer.mean[...], stats.mean)
    np.testing.assert_array_equal(layer.var[...], stats.var)


def test_train_eval_call_and_view_choose_the_statistics():
    layer = make()
    layer.train()
    trained = layer(X)
    layer.eval()
    before = jax.tree.map(jnp.array, nnx.state(layer, nnx.BatchStat))
    evaluated = layer(X)
    assert not np.allclose(trained, evaluated)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(layer, nnx.BatchStat), before)
    np.testing.assert_array_equal(layer(X, use_running_average=False), trained)
    view = nnx.view(layer, use_running_average=False)
    np.testing.assert_array_equal(view(X), trained)


def test_no_flag_at_all_is_explained():
    with pytest.raises(ValueError, match="train"):
        make(use_running_average=None)(X)


def test_running_statistics_stay_in_float32_in_a_half_precision_layer():
    # flax nnx since November 2025: a variance over 65,504 becomes inf in float16.
    layer = make(dtype=jnp.float16, use_running_average=True)
    layer.var[...] = jnp.full(5, 1e6)
    layer.mean[...] = jnp.full(5, 1000.0)
    y = layer(jnp.full((2, 5), 2000.0, jnp.float16))
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y.astype(jnp.float32), 1.0, rtol=1e-3)


def test_a_half_precision_input_leaves_no_float32_copy_for_the_backward_pass():
    layer = make(dtype=jnp.bfloat16, update_stats=False)
    graph, state = nnx.split(layer)
    fn = lambda x: nnx.merge(graph, state)(x)  # noqa: E731
    _, pullback = jax.vjp(
        fn, jnp.ones((64, 5), jnp.bfloat16) * jnp.arange(5, dtype=jnp.bfloat16)[None]
    )
    large = [leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.size >= 64 * 5]
    assert large == [jnp.bfloat16]


def test_custom_promotion_reaches_input_and_parameters():
    seen = []

    def promote(arrays, dtype):
        seen.append(len(arrays))
        return tuple(None if a is None else jnp.asarray(a, jnp.float32) for a in arrays)

    assert make(promote_dtype=promote)(X.astype(jnp.bfloat16)).dtype == jnp.float32
    assert seen == [5]


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_without_parameters(scale, bias):
    layer = make(use_scale=scale, use_bias=bias)
    assert (layer.scale is not None, layer.bias is not None) == (scale, bias)
    np.testing.assert_allclose(layer(X).mean(0), 0, atol=1e-5)


def test_vmap_scan_eval_shape_jit_and_grad():
    # flax#4760, flax#4061, flax#4734.
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0)
    def stacked(rngs):
        return BatchNorm(5, rngs=rngs)

    layers = stacked(nnx.Rngs(0))
    assert layers.mean[...].shape == (3, 5)

    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, X)
    assert y.shape == (3, *X.shape)
    assert np.all(layers.mean[...] != 0)

    y = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(layers, X)
    assert y.shape == X.shape

    abstract = nnx.eval_shape(make)
    assert abstract.mean.get_value().shape == (5,)

    layer = make()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=X.shape), jnp.float32)

    @nnx.jit
    def grads(layer, x):
        return nnx.grad(lambda layer: jnp.sum(weights * layer(x)))(layer)

    assert np.abs(grads(layer, X).scale[...]).min() > 0
    assert np.all(layer.mean[...] != 0)


def test_extras():
    bad = X.at[0, 0].set(jnp.nan)
    layer = make(skip_nonfinite=True)
    layer(bad)
    np.testing.assert_array_equal(layer.mean[...], jnp.zeros(5))
    layer = make(update_stats=False)
    layer(X)
    np.testing.assert_array_equal(layer.mean[...], jnp.zeros(5))
    layer = make(momentum=0.0, ddof=1)
    layer(X)
    np.testing.assert_allclose(layer.var[...], X.var(0, ddof=1), rtol=1e-5)
    with pytest.raises(ValueError, match="one value a feature"):
        make(single_value="error")(X[:1])


def test_complex_input_gives_complex_statistics():
    layer = make(momentum=0.0)
    layer(jax.lax.complex(X, 2 * X))
    assert layer.mean[...].dtype == jnp.complex64
    np.testing.assert_allclose(layer.mean[...], np.asarray(X.mean(0)) * (1 + 2j), rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 5 * X.var(0), rtol=1e-5)


def test_running_statistics_loaded_in_half_precision_are_averaged_in_float32():
    layer = make()
    layer.var.set_value(layer.var[...].astype(jnp.bfloat16))
    layer(X)
    assert layer.var[...].dtype == jnp.float32


def test_integers_are_not_rounded_to_a_narrow_dtype_first():
    x = jnp.arange(1000, 1032)[:, None]  # bfloat16 holds every fourth of these
    wide, narrow = (
        BatchNorm(1, dtype=dtype, rngs=nnx.Rngs(0))(x) for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
