"""normalize and scale_shift: the affine half of batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import testing
from tests._derivatives import check_derivatives


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), -1), ((6, 4, 5), 1), ((3, 4, 5), (0, 2))])
def test_normalize_and_scale_shift_match_the_oracle(shape, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    axes = (axis,) if isinstance(axis, int) else axis
    features = tuple(shape[a] for a in axes)
    mean, bias = rng.normal(size=(2, *features)).astype(np.float32)
    var, scale = rng.uniform(0.5, 2, size=(2, *features)).astype(np.float32)
    x_hat = bnjax.normalize(x, mean, var, axis=axis)
    want = testing.normalize(x, mean, var, axis=axis)
    assert testing.relative_error(x_hat, want) < 5e-7
    y = bnjax.scale_shift(x_hat, scale, bias, axis=axis)
    assert testing.relative_error(y, testing.scale_shift(want, scale, bias, axis=axis)) < 5e-7


def test_either_parameter_may_be_none_or_scalar():
    x = jnp.array([[1.0, 2.0]])
    np.testing.assert_array_equal(bnjax.scale_shift(x, None, None), x)
    np.testing.assert_array_equal(bnjax.scale_shift(x, jnp.array(2.0), None), [[2.0, 4.0]])
    np.testing.assert_array_equal(bnjax.scale_shift(x, None, jnp.ones(2)), [[2.0, 3.0]])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    x = jnp.asarray(np.random.default_rng(1).normal(50, 3, (64, 4)), dtype)
    mean, var = jnp.full(4, 50.0), jnp.full(4, 9.0)
    want = testing.normalize(np.asarray(x, np.float64), mean, var)
    np.testing.assert_array_equal(bnjax.normalize(x, mean, var), jnp.asarray(want, dtype))


def test_gradients_in_all_arguments(x64):
    rng = np.random.default_rng(2)
    x, mean = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.normal(size=3))
    var = jnp.asarray(rng.uniform(0.5, 2, 3))
    check_derivatives(bnjax.normalize, (x, mean, var), order=2)


def test_a_frozen_half_precision_layer_keeps_no_float32_copy():
    x = jnp.ones((64, 8), jnp.bfloat16)
    _, pullback = jax.vjp(lambda x, v: bnjax.normalize(x, jnp.zeros(8), v), x, jnp.ones(8))
    large = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size]
    assert all(leaf.dtype == jnp.bfloat16 for leaf in large) and len(large) == 1


@pytest.mark.parametrize("epsilon", [-1e-5, float("nan"), float("inf"), "1e-5"])
def test_epsilon_must_be_a_finite_non_negative_number(epsilon):
    with pytest.raises(ValueError, match="epsilon must be"):
        bnjax.normalize(jnp.ones((2, 3)), jnp.zeros(3), jnp.ones(3), epsilon=epsilon)


def test_shapes_that_do_not_fit_are_named():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"mean has shape \(2,\).*features of shape \(3,\)"):
        bnjax.normalize(x, jnp.zeros(2), jnp.ones(3))
    with pytest.raises(ValueError, match="scale has shape"):
        bnjax.scale_shift(x, jnp.zeros(2), None)
