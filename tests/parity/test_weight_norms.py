"""Live parity of weight norm and spectral norm with PyTorch, whose output features come first."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.testing import relative_error

torch = pytest.importorskip("torch")

SHAPES = {"linear": (6, 4), "conv": (5, 3, 3, 2)}
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def draw(shape, seed, dtype):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def layer(shape, dtype):
    """A layer of PyTorch with weights of ``shape``."""
    if len(shape) == 2:
        module = torch.nn.Linear(shape[1], shape[0])
    else:
        module = torch.nn.Conv2d(shape[1], shape[0], shape[2:])
    module.weight.data = torch.from_numpy(draw(shape, 0, dtype))
    return module


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dim", [0, None])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_weight_norm(shape, dim, dtype):
    module = torch.nn.utils.parametrizations.weight_norm(layer(shape, dtype), dim=dim)
    original = module.parametrizations.weight
    g, v = original.original0, original.original1
    start = g.detach().numpy().copy()
    dw = draw(shape, 1, dtype)
    with torch.no_grad():
        g.copy_(torch.from_numpy(draw(tuple(g.shape), 2, dtype)))
    grads = torch.autograd.grad(module.weight, (v, g), torch.from_numpy(dw))
    want = [module.weight, *grads]

    with jax.enable_x64(dtype == "float64"):
        v, g = jnp.asarray(v.detach().numpy()), jnp.asarray(g.detach().numpy())

        def norm(v, g):
            return bnjax.weight_norm(v, g.ravel()[0] if dim is None else g.ravel(), axis=dim)

        @jax.jit
        def run(v, g, dw):
            w, pullback = jax.vjp(norm, v, g)
            return w, *pullback(dw)

        for got, value in zip(run(v, g, jnp.asarray(dw)), want, strict=True):
            assert relative_error(got, value.detach().numpy()) < TOLERANCE[dtype]
        # PyTorch's start of g gives the weights back.
        w = run(v, jnp.asarray(start), jnp.asarray(dw))[0]
        assert relative_error(w, draw(shape, 0, dtype)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_spectral_norm_step_by_step(shape, steps, dtype):
    module = torch.nn.utils.parametrizations.spectral_norm(
        layer(shape, dtype), n_power_iterations=steps
    )
    original = module.parametrizations.weight.original
    state = module.parametrizations.weight[0]
    features = int(np.prod(shape[1:]))
    v = draw(features, 1, dtype)
    v /= np.linalg.norm(v)
    state._v.copy_(torch.from_numpy(v))
    dw = draw(shape, 2, dtype)

    @jax.jit
    def run(w, state, dw):
        norm = functools.partial(bnjax.spectral_norm, state=state, n_steps=steps)
        w_hat, pullback, state = jax.vjp(norm, w, has_aux=True)
        return w_hat, pullback(dw)[0], state

    with jax.enable_x64(dtype == "float64"):
        # PyTorch begins each step with its v, Flax and we with our u: its matrix, transposed.
        matrix = jnp.asarray(original.detach().numpy().reshape(shape[0], -1))
        ours = bnjax.SpectralState(jnp.asarray(v)[None], jnp.ones((), dtype))
        for _ in range(4):
            module.train()
            weight = module.weight  # one forward pass
            (grad,) = torch.autograd.grad(weight, original, torch.from_numpy(dw))
            w_hat, dv, ours = run(matrix, ours, jnp.asarray(dw.reshape(shape[0], -1)))
            want = (weight, grad, state._v)
            for got, value in zip((w_hat, dv, ours.u), want, strict=True):
                value = value.detach().numpy().reshape(got.shape)
                assert relative_error(got, value) < TOLERANCE[dtype]


def test_spectral_norm_in_evaluation_once_both_have_converged():
    # With the axes of JAX: features last. Then the half steps differ, and the limit does not.
    shape = SHAPES["conv"]
    module = torch.nn.utils.parametrizations.spectral_norm(layer(shape, "float64"), "weight", 500)
    want = module.weight.detach().numpy()
    np.testing.assert_array_equal(module.eval().weight.detach().numpy(), want)
    with jax.enable_x64(True):
        w = jnp.asarray(draw(shape, 0, "float64").transpose(2, 3, 1, 0))
        state = bnjax.init_spectral_norm(jax.random.key(0), w.shape, w.dtype)
        state = jax.lax.fori_loop(0, 500, lambda _, s: bnjax.spectral_norm(w, s)[1], state)
        w_hat, _ = bnjax.spectral_norm(w, state, update=False)
        assert relative_error(w_hat, want.transpose(2, 3, 1, 0)) < 1e-12
