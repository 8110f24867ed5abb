"""Derivatives of both modes against central differences, all in one program that compiles fast."""

import jax
import jax.numpy as jnp
import numpy as np

from tests._quick import quick_jit

STEP = 1e-5  # its square, the error of a difference, stays below the tolerance


def check_derivatives(function, args, order=1, tolerance=1e-7):
    """Raises if jvp or vjp of ``function(*args)``, or of these up to `order`, are wrong.

    In a random direction and, backwards, for a random cotangent: a sum of all outputs has often
    no derivative. `args` are float64 or complex128.
    """

    @quick_jit
    def run(*args):
        return list(_pairs(function, args, order, np.random.default_rng(0)))

    for got, want in run(*jax.tree.map(jnp.asarray, tuple(args))):
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert g.dtype in (jnp.float64, jnp.complex128)
            near = tolerance * (1 + np.max(np.abs(w)))
            np.testing.assert_allclose(g, w, rtol=tolerance, atol=near)


def _pairs(function, args, order, rng):
    """Derivatives and what they have to be."""
    tangents = _normal(rng, args)
    cotangents = _normal(rng, jax.eval_shape(function, *args))

    def forward(*args):
        return jax.jvp(function, args, tangents)[1]

    def backward(*args):
        # For complex numbers JAX's pullback is the transpose, not the adjoint.
        return _conjugate(jax.vjp(function, *args)[1](_conjugate(cotangents)))

    change = forward(*args)
    yield change, _difference(function, args, tangents)
    yield _inner(backward(*args), tangents), _inner(cotangents, change)
    if order > 1:
        yield from _pairs(forward, args, order - 1, rng)
        yield from _pairs(backward, args, order - 1, rng)


def _difference(function, args, tangents):
    above, below = (
        function(*jax.tree.map(lambda v, t, h=h: v + h * t, args, tangents)) for h in (STEP, -STEP)
    )
    return jax.tree.map(lambda a, b: (a - b) / (2 * STEP), above, below)


def _normal(rng, tree):
    def draw(v):
        imaginary = 1j * rng.normal(size=v.shape) if jnp.issubdtype(v.dtype, complex) else 0
        return jnp.asarray(rng.normal(size=v.shape) + imaginary, v.dtype)

    return jax.tree.map(draw, tree)


def _conjugate(tree):
    return jax.tree.map(jnp.conj, tree)


def _inner(left, right):
    products = jax.tree.map(lambda a, b: jnp.sum(jnp.real(jnp.conj(a) * b)), left, right)
    return sum(jax.tree.leaves(products))
