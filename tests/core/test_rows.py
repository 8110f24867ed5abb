"""Layer norm of short rows in the form for GPUs, on this machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import testing
from bnjax.core._xla import as_on
from tests._derivatives import check_derivatives


@pytest.fixture(autouse=True)
def for_gpu():
    with as_on("gpu"):
        yield


def exact(x, scale, bias, dy, epsilon):
    """Values and gradients in float64."""
    x, scale, bias, dy = (np.asarray(v, np.float64) for v in (x, scale, bias, dy))
    d = x - x.mean(-1, keepdims=True)
    inv_std = 1 / np.sqrt((d**2).mean(-1, keepdims=True) + epsilon)
    x_hat, dx_hat = d * inv_std, dy * scale
    along = (dx_hat * x_hat).mean(-1, keepdims=True)
    dx = inv_std * (dx_hat - dx_hat.mean(-1, keepdims=True) - x_hat * along)
    return x_hat * scale + bias, dx, (dy * x_hat).sum(0), dy.sum(0)


@jax.jit
def both(x, scale, bias, dy):
    y, pullback = jax.vjp(bnjax.layer_norm, x, scale, bias)
    return y, *pullback(dy)


@pytest.mark.parametrize("features", [7, 500, 4096])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("outlier", [0.0, 1e3])
def test_values_and_gradients_at_any_offset(features, offset, outlier):
    rng = np.random.default_rng(0)
    x = rng.normal(offset, 1, (32, features)).astype(np.float32)
    x[:, 1] += np.float32(outlier)
    scale, bias = rng.normal(size=(2, features)).astype(np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    want = exact(x, scale, bias, dy, 1e-6)
    names = ("y", "dx", "dscale", "dbias")
    for name, g, w in zip(names, both(x, scale, bias, dy), want, strict=True):
        assert testing.relative_error(g, w) < 1e-6, name


@pytest.mark.parametrize("features", [2, 498, 4096, 9955, 9981])
def test_constant_rows_give_exactly_bias_and_finite_gradients(features):
    values = np.float32([0, 1e-6, -8e-3, 0.1, 1 / 3, 12345.678, 1e6, -3e7])
    x = np.broadcast_to(values[:, None], (len(values), features))
    bias = np.linspace(-1, 1, features, dtype=np.float32)
    y, *gradients = both(x, np.ones_like(bias), bias, np.ones_like(x))
    np.testing.assert_array_equal(y, np.broadcast_to(bias, x.shape))
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("scaled", [False, True])
def test_derivatives_to_second_order_in_both_modes(x64, scaled):
    rng = np.random.default_rng(1)
    x, (scale, bias) = rng.normal(3, 2, (3, 4, 5)), rng.normal(size=(2, 5))
    norm = lambda x, *v: jnp.sin(bnjax.layer_norm(x, *(v if scaled else (None, None))))  # noqa: E731
    check_derivatives(norm, (x, scale, bias) if scaled else (x,), order=2)


@pytest.mark.parametrize("size", [2**10, 2**14])
def test_the_whole_row_is_averaged_where_that_is_one_kernel(size):
    """A sample, an eighth of the row, would be a kernel of its own."""
    few, many = 2**16 // size, 2**23 // size

    def sampled(rows, features, trained, platform="cuda"):
        x = jax.ShapeDtypeStruct((rows, features), jnp.float32)
        v = jax.ShapeDtypeStruct((features,), jnp.float32)
        function = both if trained else bnjax.layer_norm
        args = (x, v, v, x)[: 4 if trained else 3]
        with as_on(None):
            lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
        return "stablehlo.slice" in lowered.as_text()

    assert not sampled(few, size, False) and not sampled(few, size, True)
    assert sampled(few, size, True, "cpu")
    # Where x is large, the backward pass would move more, and the row may be too long.
    assert not sampled(many, size, False) and sampled(many, size, True)
    assert sampled(few, 2 * 2**14, False)
