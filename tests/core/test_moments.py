"""Moments: accurate, mergeable, blind to what is masked, differentiable."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import testing
from tests._derivatives import check_derivatives


def assert_moments(got, want, rtol=1e-6):
    assert got.mean.shape == want.mean.shape
    np.testing.assert_array_equal(np.broadcast_to(got.count, want.count.shape), want.count)
    spread = float(np.max(np.sqrt(want.var()), initial=0))
    # A mean near zero is a difference of large numbers: it is as exact as the data are wide.
    np.testing.assert_allclose(got.mean, want.mean, rtol=rtol, atol=rtol * spread + 1e-12)
    np.testing.assert_allclose(got.m2, want.m2, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("axes", [0, -1, (0, 2), (0, 1, 2), ()])
def test_moments_match_the_oracle_over_any_axes(axes):
    x = np.random.default_rng(0).normal(3, 2, (5, 7, 4)).astype(np.float32)
    assert_moments(bnjax.moments(x, axes), testing.moments(x, axes))


@pytest.mark.parametrize("shape", [(5, 7, 4), (5, 1, 1), (1, 7, 1), (1, 1, 4), (7, 4), (4,), ()])
def test_mask_of_any_broadcastable_shape(shape):
    rng = np.random.default_rng(1)
    x = rng.normal(3, 2, (5, 7, 4)).astype(np.float32)
    mask = rng.random(shape) < 0.7
    x = np.where(mask, x, np.nan)
    assert_moments(bnjax.moments(x, (0, 1), mask=mask), testing.moments(x, (0, 1), mask))


def test_count_is_scalar_unless_the_mask_tells_features_apart():
    x = jnp.ones((4, 3))
    assert bnjax.moments(x, 0).count.shape == ()
    assert bnjax.moments(x, 0, mask=np.ones((4, 1), bool)).count.shape == ()
    assert bnjax.moments(x, 0, mask=np.ones((4, 3), bool)).count.shape == (3,)


@pytest.mark.parametrize("size", [7, 1000, 8192, 100_003])
@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("outlier", [0.0, 1e3])
@pytest.mark.parametrize("jit", [False, True])
def test_moments_stay_accurate_at_any_offset_with_an_outlier_first(size, offset, outlier, jit):
    x = (np.random.default_rng(2).normal(size=(size, 3)) + offset).astype(np.float32)
    x[0] += outlier
    fn = functools.partial(bnjax.moments, axes=0)
    assert_moments((jax.jit(fn) if jit else fn)(x), testing.moments(x, 0), rtol=5e-7)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_sample_that_misses_the_mean_by_as_much_as_can_be(offset):
    # The shift is the mean of every eighth example. Let just these hold all the outliers: the sum
    # of squares about it is eight times the variance, which costs three bits of the variance.
    x = np.random.default_rng(6).normal(offset, 1e-3, (1, 80_008, 2)).astype(np.float32)
    x[:, ::8] += 1
    got = jax.jit(bnjax.moments, static_argnums=1)(x, (0, 1))
    assert_moments(got, testing.moments(x, (0, 1)), 3e-6)


def test_thirty_million_elements_a_feature():
    x = np.random.default_rng(3).standard_normal((30_000_000, 1), dtype=np.float32)
    x += np.float32(3)
    got = jax.jit(bnjax.moments, static_argnums=1)(x, 0)
    mean = x.mean(dtype=np.float64)
    var = np.square(x.astype(np.float64) - mean).mean()
    assert abs(float(got.mean[0]) / mean - 1) < 1e-6
    assert abs(float(got.var()[0]) / var - 1) < 1e-6


def test_masked_count_is_exact_beyond_the_integers_of_float32():
    # keras#19848 counts entries of the mask; a float32 sum of ones stops at 2**24.
    mask = np.ones((2**24 + 2, 1), bool)
    got = bnjax.moments(np.zeros((2**24 + 2, 1), np.float32), 0, mask=mask)
    assert int(got.count) == 2**24 + 2


def test_var_of_too_few_is_zero_not_nan():
    one = bnjax.moments(jnp.array([[2.0]]), 0)
    assert one.var(ddof=1) == 0 and one.var() == 0
    nothing = bnjax.moments(jnp.zeros((0, 2)), 0)
    np.testing.assert_array_equal(nothing.var(), [0, 0])
    assert nothing.count == 0


arrays = hnp.arrays(np.float64, (12, 2), elements=st.floats(-1e6, 1e6, width=32))


@pytest.mark.compiled("quickly")
@hypothesis.given(arrays, st.integers(0, 12), st.integers(0, 12))
def test_any_split_of_the_data_merges_to_the_same_moments(x, i, j):
    i, j = sorted((i, j))
    with jax.enable_x64(True):
        a, b, c = (bnjax.moments(part, 0) for part in (x[:i], x[i:j], x[j:]))
        whole = testing.moments(x, 0)
        spread = max(1.0, float(np.abs(x).max()) ** 2)
        for merged in (
            bnjax.merge(bnjax.merge(a, b), c),
            bnjax.merge(a, bnjax.merge(b, c)),
            bnjax.merge(c, bnjax.merge(b, a)),
        ):
            assert merged.count == 12
            np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-9 * spread**0.5)
            np.testing.assert_allclose(merged.m2, whole.m2, atol=1e-9 * spread)


@pytest.mark.compiled("quickly")
def test_zeros_are_the_identity_of_merge():
    m = bnjax.moments(jnp.array([[1.0, 5.0], [4.0, 2.0]]), 0)
    for merged in (
        bnjax.merge(m, bnjax.Moments(0.0, 0.0, 0.0)),
        bnjax.merge(jax.tree.map(jnp.zeros_like, m), m),
    ):
        jax.tree.map(np.testing.assert_array_equal, merged, m)
    empty = bnjax.merge(jax.tree.map(jnp.zeros_like, m), jax.tree.map(jnp.zeros_like, m))
    assert all(np.isfinite(leaf).all() for leaf in empty)


def test_moments_accumulate_in_a_scan():
    x = jnp.asarray(np.random.default_rng(4).normal(5, 1, (6, 10, 3)), jnp.float32)
    zero = bnjax.Moments(jnp.zeros(()), jnp.zeros(3), jnp.zeros(3))
    total, _ = jax.lax.scan(lambda m, b: (bnjax.merge(m, bnjax.moments(b, 0)), None), zero, x)
    assert_moments(total, testing.moments(np.asarray(x).reshape(60, 3), 0))


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_gradients_to_second_order_in_both_modes(x64, dtype):
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(5, 4, 3)))
    if dtype == jnp.complex64:
        x = jax.lax.complex(x, jnp.asarray(rng.normal(size=x.shape)))
    mask = rng.random((5, 4, 1)) < 0.6
    for m in (None, mask):
        fn = lambda x, m=m: bnjax.moments(x, (0, 1), mask=m)[1:]  # noqa: E731
        check_derivatives(fn, (x,), order=2)


@pytest.mark.compiled("quickly")
def test_gradient_of_masked_entries_is_zero_even_when_they_are_nan():
    x = jnp.array([[1.0], [jnp.nan], [3.0]])
    mask = jnp.array([[True], [False], [True]])
    grad = jax.grad(lambda x: bnjax.moments(x, 0, mask=mask).m2.sum())(x)
    np.testing.assert_array_equal(grad.ravel(), [-2.0, 0.0, 2.0])


@pytest.mark.compiled("quickly")
def test_backward_keeps_x_in_its_own_dtype_and_vectors():
    x = jnp.ones((64, 8), jnp.bfloat16)
    _, pullback = jax.vjp(lambda x: bnjax.moments(x, 0), x)
    large = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in large] == [jnp.bfloat16]


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "words"),
    [
        ((np.ones((2, 3), int), 0), {}, TypeError, "x must be floating point.*int"),
        ((np.ones((2, 3), np.float32), 2), {}, ValueError, "axes=2 is out of range.*rank 2"),
        ((np.ones((2, 3), np.float32), (0, -2)), {}, ValueError, "names an axis twice"),
        ((np.ones((2, 3), np.float32), "0"), {}, TypeError, "axes must be an int"),
        (
            (np.ones((2, 3), np.float32), 0),
            {"mask": np.ones((2, 1))},
            TypeError,
            "mask must be boolean",
        ),
        (
            (np.ones((2, 3), np.float32), 0),
            {"mask": np.ones((2,), bool)},
            ValueError,
            r"mask\[:, None\]",
        ),
    ],
)
def test_bad_input_is_named(args, kwargs, error, words):
    with pytest.raises(error, match=words):
        bnjax.moments(*args, **kwargs)
