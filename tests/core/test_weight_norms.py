"""Norms of weights: values, gradients, zero weights, tiny weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import testing
from tests._derivatives import check_derivatives

pytestmark = pytest.mark.compiled("quickly")
exact = pytest.mark.compiled("as users do")


def draw(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def iterate(w, state, steps):
    """Many steps as calls of twenty: each step makes the program longer."""
    for _ in range(steps // 20):
        w_hat, state = bnjax.spectral_norm(w, state, n_steps=20)
    return w_hat, state


@exact
@pytest.mark.parametrize("axis", [-1, 0, (2, 3), None])
def test_weight_norm_by_definition(axis):
    w = draw(3, 2, 4, 5)
    kept = () if axis is None else tuple(a % 4 for a in np.atleast_1d(axis))
    scale = draw(*(w.shape[a] for a in kept), seed=1)
    reduced = tuple(a for a in range(4) if a not in kept)
    norm = np.sqrt((w.astype(float) ** 2).sum(reduced, keepdims=True))
    shape = [n if a in kept else 1 for a, n in enumerate(w.shape)]
    got = bnjax.weight_norm(w, scale, axis=axis)
    assert testing.relative_error(got, w / norm * scale.reshape(shape)) < 1e-6


@exact
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_weight_norm_in_half_precision_is_computed_in_float32(dtype):
    w = jnp.asarray(300 * draw(64, 3), dtype)  # squares overflow float16
    got = np.asarray(bnjax.weight_norm(w, None), float)
    wide = np.asarray(w, float)
    want = wide / np.linalg.norm(wide, axis=0)
    np.testing.assert_allclose(got, want, rtol=0.51 * float(jnp.finfo(dtype).eps), atol=1e-7)


def spectral_norm(w):
    return bnjax.spectral_norm(w, bnjax.init_spectral_norm(jax.random.key(0), w.shape))[0]


@pytest.mark.parametrize(
    "norm",
    [
        functools.partial(bnjax.weight_norm, scale=np.ones(2, np.float32)),
        spectral_norm,
        bnjax.weight_standardize,
    ],
)
def test_zero_weights_are_zero_with_finite_gradients(norm):
    zero = jnp.zeros((3, 2))
    y, pullback = jax.jit(functools.partial(jax.vjp, norm))(zero)
    np.testing.assert_array_equal(y, 0)
    assert np.isfinite(pullback(draw(3, 2))[0]).all()


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 2, 5)])
def test_spectral_norm_finds_the_largest_singular_value(shape, scale):
    w = scale * draw(*shape)
    state = bnjax.init_spectral_norm(jax.random.key(0), shape)
    w_hat, state = iterate(w, state, steps=200)
    values = np.linalg.svd(w.reshape(-1, shape[-1]).astype(float), compute_uv=False)
    np.testing.assert_allclose(state.sigma, values[0], rtol=1e-5)
    np.testing.assert_allclose(w_hat, w / values[0], rtol=1e-5)


def test_steps_accumulate_from_call_to_call():
    w, state = draw(6, 4), bnjax.init_spectral_norm(jax.random.key(0), (6, 4))
    _, many = bnjax.spectral_norm(w, state, n_steps=5)
    for _ in range(5):
        _, state = bnjax.spectral_norm(w, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, many)


def test_the_state_moves_only_when_asked():
    w, state = draw(6, 4), bnjax.init_spectral_norm(jax.random.key(0), (6, 4))
    got, same = bnjax.spectral_norm(w, state, update=False)
    want, moved = bnjax.spectral_norm(w, state)
    assert same is state and not np.allclose(moved.u, state.u)
    np.testing.assert_array_equal(got, want)


def test_the_iteration_survives_zero_weights():
    # Flax: u becomes zero with the weights, sigma stays zero ever after.
    w, state = draw(6, 4), bnjax.init_spectral_norm(jax.random.key(0), (6, 4))
    _, state = bnjax.spectral_norm(np.zeros_like(w), state)
    assert state.sigma == 0 and np.abs(state.u).max() > 0
    _, state = iterate(w, state, steps=100)
    np.testing.assert_allclose(state.sigma, np.linalg.norm(w, 2), rtol=1e-4)


def test_the_gradient_holds_the_vectors_constant():
    with jax.enable_x64(True):
        w = draw(6, 4, dtype=np.float64)
        state = bnjax.init_spectral_norm(jax.random.key(0), (6, 4), jnp.float64)
        _, state = iterate(w, state, steps=500)
        # At the fixed point that is the true gradient of w / sigma.
        norm = functools.partial(bnjax.spectral_norm, state=state, update=False)
        want = lambda w: w / jnp.linalg.norm(w, 2)  # noqa: E731
        weights = draw(6, 4, seed=1, dtype=np.float64)
        got, want = (
            jax.grad(lambda w, f=f: jnp.sum(weights * f(w)))(w)
            for f in (lambda w: norm(w)[0], want)
        )
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


@exact
def test_weight_standardize_is_accurate_and_differentiable():
    w = (draw(3, 3, 4, 5) + 1e4).astype(np.float32)
    gain = draw(5, seed=1)
    wide = w.astype(float)
    want = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-5) * gain
    assert testing.relative_error(bnjax.weight_standardize(w, gain), want) < 1e-6
    with jax.enable_x64(True):
        args = (draw(4, 3, dtype=np.float64), draw(3, dtype=np.float64))
        check_derivatives(bnjax.weight_standardize, args, order=2)
        check_derivatives(bnjax.weight_norm, args, order=2)


@pytest.mark.parametrize(
    ("w", "error", "words"),
    [
        (np.ones(4, np.float32), ValueError, "w must have rank 2"),
        (np.ones((4, 6), np.float32), ValueError, r"init_spectral_norm\(key, w.shape\)"),
        (np.ones((6, 4), np.complex64), TypeError, "w must be real"),
    ],
)
def test_what_does_not_fit_spectral_norm_is_named(w, error, words):
    state = bnjax.init_spectral_norm(jax.random.key(0), (6, 4))
    with pytest.raises(error, match=words):
        bnjax.spectral_norm(w, state)


def test_a_scale_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="scale has shape"):
        bnjax.weight_norm(jnp.ones((4, 6)), jnp.ones(4))


def test_weights_of_integers_are_named():
    with pytest.raises(TypeError, match="w must be floating"):
        bnjax.weight_standardize(jnp.ones((4, 6), int))
