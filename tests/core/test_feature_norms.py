"""Layer, instance, group and RMS norm against the reference mathematics, and against each other."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bnjax
from bnjax import testing
from tests._derivatives import check_derivatives
from tests._quick import quick_jit

SHAPE = (4, 5, 6, 8)
# name: (function, axes of SHAPE that are reduced, about the mean)
NORMS = {
    "layer": (bnjax.layer_norm, (3,), True),
    "layer over H, W, C": (functools.partial(bnjax.layer_norm, axes=(1, 2, 3)), (1, 2, 3), True),
    "rms": (bnjax.rms_norm, (3,), False),
    "instance": (bnjax.instance_norm, (1, 2), True),
    "instance, NCHW": (functools.partial(bnjax.instance_norm, axis=1), (2, 3), True),
    "group": (functools.partial(bnjax.group_norm, num_groups=4), None, True),
    "group, NCHW": (functools.partial(bnjax.group_norm, num_groups=5, axis=1), None, True),
}


def reference(name, x, mask=None, epsilon=1e-6):
    """x_hat by definition, in float64."""
    _, axes, about_mean = NORMS[name]
    x, mask = np.asarray(x, np.float64), np.broadcast_to(True if mask is None else mask, x.shape)
    shape = x.shape
    if name == "group":
        x, mask = (v.reshape(4, 5, 6, 4, 2) for v in (x, mask))
        axes = (1, 2, 4)
    if name == "group, NCHW":
        axes = (2, 3)  # five groups of one channel
    hidden = np.where(mask, x, 0)
    n = mask.sum(axes, keepdims=True)
    mean = hidden.sum(axes, keepdims=True) / n if about_mean else 0
    var = (np.where(mask, x - mean, 0) ** 2).sum(axes, keepdims=True) / n
    return ((x - mean) / np.sqrt(var + epsilon)).reshape(shape)


def params(name, rng):
    shape = {"layer over H, W, C": (5, 6, 8), "instance, NCHW": (5,), "group, NCHW": (5,)}
    return rng.normal(size=(2, *shape.get(name, (8,)))).astype(np.float32)


def broadcast(name, v):
    return v[:, None, None] if "NCHW" in name else v


@functools.partial(quick_jit, static_argnums=0)
def gradient(name, x, scale, bias, dy):
    return jax.vjp(NORMS[name][0], x, scale, bias)[1](dy)[0]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
def test_forward_and_gradients_at_any_offset(name, offset):
    rng = np.random.default_rng(0)
    x = rng.normal(offset, 1, SHAPE).astype(np.float32)
    dy = rng.normal(size=SHAPE).astype(np.float32)
    scale, bias = params(name, rng)
    y, pullback = jax.vjp(NORMS[name][0], x, scale, bias)
    x_hat = reference(name, x)
    gamma, beta = (broadcast(name, np.asarray(v, np.float64)) for v in (scale, bias))
    assert testing.relative_error(y, x_hat * gamma + beta) < 1e-6
    dx, dscale, dbias = pullback(dy)
    axes = tuple(a for a in range(4) if gamma.ndim < 4 - a or gamma.shape[a - 4] == 1)
    assert testing.relative_error(dscale, (dy * x_hat).sum(axes).reshape(dscale.shape)) < 2e-6
    assert testing.relative_error(dbias, dy.sum(axes, dtype=float).reshape(dbias.shape)) < 1e-6
    with jax.enable_x64(True):  # the same function in float64 is checked by differences below
        want = gradient(name, *(np.asarray(v, np.float64) for v in (x, scale, bias, dy)))
        assert testing.relative_error(dx, want) < 1e-6


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize(
    ("name", "masked"),
    [
        *((name, False) for name in ("layer", "rms", "instance", "group")),
        *((name, True) for name in ("layer over H, W, C", "rms", "instance, NCHW", "group, NCHW")),
    ],
)
def test_derivatives_of_both_modes_agree_with_differences(name, masked):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x = rng.normal(3, 2, SHAPE)
        scale, bias = params(name, rng).astype(np.float64)
        mask = rng.random(SHAPE) < 0.8 if masked else None
        norm = lambda *args: jnp.sin(NORMS[name][0](*args, mask=mask))  # noqa: E731
        check_derivatives(norm, (x, scale, bias), order=2)


@pytest.mark.parametrize("name", NORMS)
def test_masked_entries_take_no_part(name):
    rng = np.random.default_rng(2)
    x = rng.normal(100, 1, SHAPE).astype(np.float32)
    mask = rng.random(SHAPE) < 0.7
    loud = np.where(mask, x, np.nan)
    weights = np.where(mask, rng.normal(size=SHAPE), 0).astype(np.float32)
    norm = functools.partial(NORMS[name][0], scale=None, bias=None, mask=mask)

    @jax.jit
    def run(x):
        y, pullback = jax.vjp(norm, x)
        return y, pullback(weights)[0]

    y, dx = run(loud)
    assert testing.relative_error(np.where(mask, y, 0), mask * reference(name, x, mask)) < 1e-6
    assert np.isfinite(dx).all() and not np.asarray(dx)[~mask].any()


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_rounded_once(name, dtype):
    x = np.random.default_rng(3).normal(300, 1, SHAPE).astype(dtype)
    got = NORMS[name][0](jnp.asarray(x), None, None)
    assert got.dtype == dtype
    want = reference(name, x.astype(np.float64))
    ulp = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0.51 * ulp, atol=1e-6)


@pytest.mark.compiled("quickly")
@given(st.integers(0, 2**16), st.sampled_from([1, 2, 4, 8]))
def test_group_norm_lies_between_layer_and_instance_norm(seed, groups):
    x = np.random.default_rng(seed).normal(1, 3, SHAPE).astype(np.float32)
    scale, bias = np.random.default_rng(seed).normal(size=(2, 8)).astype(np.float32)
    got = bnjax.group_norm(x, scale, bias, num_groups=groups)
    if groups == 1:
        want = bnjax.layer_norm(x, scale, bias, axes=(1, 2, 3), param_axes=-1)
    elif groups == 8:
        want = bnjax.instance_norm(x, scale, bias)
    else:
        parts = np.split(x, groups, -1), np.split(scale, groups), np.split(bias, groups)
        each = [
            bnjax.layer_norm(*part, axes=(1, 2, 3), param_axes=-1)
            for part in zip(*parts, strict=True)
        ]
        want = jnp.concatenate(each, -1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.compiled("quickly")
@given(st.integers(0, 2**16))
def test_batch_norm_of_one_example_is_instance_norm(seed):
    x = np.random.default_rng(seed).normal(1, 3, (1, 5, 6, 4)).astype(np.float32)
    scale, bias = np.random.default_rng(seed).normal(size=(2, 4)).astype(np.float32)
    stats = bnjax.init_batch_stats(4)
    want, _ = bnjax.batch_norm(x, scale, bias, stats, train=True, epsilon=1e-6)
    np.testing.assert_array_equal(bnjax.instance_norm(x, scale, bias), want)


def test_layer_norm_of_the_transpose_is_batch_norm():
    x = np.random.default_rng(4).normal(1, 3, (16, 6)).astype(np.float32)
    want, _ = bnjax.batch_norm(
        x.T, None, None, bnjax.init_batch_stats(16), train=True, epsilon=1e-6
    )
    np.testing.assert_allclose(bnjax.layer_norm(x, None, None), want.T, rtol=1e-6, atol=1e-6)


@pytest.mark.compiled("quickly")
def test_rms_norm_of_centred_data_is_layer_norm():
    x = np.random.default_rng(5).normal(1, 3, (16, 6)).astype(np.float32)
    x -= x.mean(-1, keepdims=True)
    want = bnjax.layer_norm(x, None, None)
    np.testing.assert_allclose(bnjax.rms_norm(x, None), want, rtol=1e-5, atol=1e-6)


@pytest.mark.compiled("quickly")
def test_group_norm_of_channels_alone():
    x = np.random.default_rng(6).normal(1, 3, (5, 8)).astype(np.float32)
    scale, bias = np.random.default_rng(6).normal(size=(2, 8)).astype(np.float32)
    mask = np.random.default_rng(7).random((5, 1)) < 0.5
    got = bnjax.group_norm(x, scale, bias, num_groups=2)
    spatial = bnjax.group_norm(x[:, None], scale, bias, num_groups=2)[:, 0]
    np.testing.assert_allclose(got, spatial, rtol=1e-5, atol=1e-6)
    hidden = bnjax.group_norm(np.where(mask, x, np.nan), scale, bias, num_groups=2, mask=mask)
    np.testing.assert_allclose(hidden, np.where(mask, got, bias), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["layer", "rms", "group"])
def test_features_spread_over_devices(name):
    norm = {
        "layer": bnjax.layer_norm,
        "rms": bnjax.rms_norm,
        "group": functools.partial(bnjax.group_norm, num_groups=1),
    }[name]
    x = np.random.default_rng(8).normal(1e3, 1, (4, 3, 16)).astype(np.float32)
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("model",))
    spec = jax.P(None, None, "model")
    local = functools.partial(norm, scale=None, bias=None, axis_name="model")
    got = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(x)
    assert testing.relative_error(got, norm(x, None, None)) < 1e-6


@pytest.mark.compiled("quickly")
def test_the_backward_pass_keeps_x_and_vectors():
    x = jnp.ones((64, 32, 8), jnp.bfloat16)
    for norm, sets in ((bnjax.layer_norm, 64 * 32), (bnjax.rms_norm, 64 * 32)):
        _, pullback = jax.vjp(lambda x, n=norm: n(x, jnp.ones(8, jnp.float32), None), x)
        kept = [v for v in jax.tree.leaves(pullback) if v.size >= x.size]
        assert [v.dtype for v in kept] == [jnp.bfloat16]
        assert all(v.size <= max(sets, 8) for v in jax.tree.leaves(pullback) if v.size < x.size)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("norm", "forward", "backward"), [("rms", 1, 1), ("layer", 3, 2)])
def test_sums_along_a_row(norm, forward, backward):
    """Of layer norm one is that of the sample."""
    x = np.ones((8, 64), np.float32)

    def sums(function):
        compiled = jax.jit(function).lower(x, np.ones(64, np.float32)).compile()
        return len(re.findall(r" reduce\(.*dimensions=\{1\}", compiled.as_text()))

    y = functools.partial(NORMS[norm][0], bias=None)
    gradients = jax.grad(lambda *args: jnp.sum(jnp.sin(y(*args)) ** 2), (0, 1))
    assert (sums(y), sums(gradients)) == (forward, forward + backward)


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda x: bnjax.group_norm(x, None, None, num_groups=4),
            ValueError,
            "num_groups=4 does not divide the 6 channels",
        ),
        (
            lambda x: bnjax.group_norm(x, None, None, num_groups=2, axes=(1,)),
            ValueError,
            "must hold the channel axis",
        ),
        (
            lambda x: bnjax.group_norm(x, None, None, num_groups=None),
            ValueError,
            "give num_groups=None as well",
        ),
        (
            lambda x: bnjax.group_norm(x, None, None, num_groups=3, group_size=2),
            ValueError,
            "give num_groups=None as well",
        ),
        (
            lambda x: bnjax.instance_norm(x, None, None, axis=0),
            ValueError,
            "keeps axis 0, where instance norm has the examples",
        ),
        (lambda x: bnjax.layer_norm(x, np.ones(5), None), ValueError, r"scale has shape \(5,\)"),
        (lambda x: bnjax.rms_norm(x.astype(int), None), TypeError, "x must be floating point"),
    ],
)
def test_errors_name_argument_and_remedy(call, error, words):
    with pytest.raises(error, match=words):
        call(np.ones((2, 3, 6), np.float32))


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize(
    ("norm", "features"),
    [(bnjax.layer_norm, 1), (functools.partial(bnjax.group_norm, num_groups=6), 6)],
)
def test_a_set_of_one_value_warns(norm, features):
    with pytest.warns(UserWarning, match="that of one value"):
        norm(jnp.ones((4, features)), None, None)


@pytest.mark.compiled("quickly")
def test_group_size_is_the_other_way_to_say_num_groups():
    x = np.random.default_rng(9).normal(1, 3, (2, 3, 8)).astype(np.float32)
    got = bnjax.group_norm(x, None, None, num_groups=None, group_size=2)
    np.testing.assert_array_equal(got, bnjax.group_norm(x, None, None, num_groups=4))


@pytest.mark.compiled("quickly")
def test_a_vector_is_an_example():
    x = np.random.default_rng(9).normal(1, 3, (1, 8)).astype(np.float32)
    want = bnjax.group_norm(x, None, None, num_groups=4)[0]
    got = bnjax.group_norm(x[0], None, None, num_groups=4)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.compiled("quickly")
def test_a_single_value_warns_is_an_error_or_allowed():
    x, one = jnp.ones((2, 3)), functools.partial(bnjax.layer_norm, scale=None, bias=None)
    for norm in (functools.partial(one, axes=()), functools.partial(one, axes=(), mask=x > 0)):
        with pytest.warns(UserWarning, match="that of one value") as record:
            norm(x)
        assert record[0].filename == __file__
        with pytest.raises(ValueError, match="that of one value"):
            norm(x, single_value="error")
        np.testing.assert_array_equal(norm(x, single_value="allow"), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="single_value must be one of"):
        one(x, single_value="running")
