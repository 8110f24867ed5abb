"""Weight norm and spectral norm around a dense layer: what linen and nnx promise alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from tests._agree import assert_agree, describe
from tests._modules import signature

pytestmark = pytest.mark.usefixtures("flax_promotes")

X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)), jnp.float32)
WEIGHTS = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4)), jnp.float32)
both = pytest.mark.parametrize("norm", ["WeightNorm", "SpectralNorm"])


def core(layer, params, **options):
    """The normalised weights of a layer and its state after one step, by the functional core."""
    if "scale" in params:
        return bnjax.weight_norm(params["kernel"], params["scale"], **options), {}
    state = bnjax.SpectralState(*(layer.variables["batch_stats"][n] for n in ("u", "sigma")))
    weights, state = bnjax.spectral_norm(params["kernel"], state, **options)
    return weights, state._asdict()


def largest(kernel):
    return np.linalg.norm(np.asarray(kernel), 2)


@both
def test_the_call_is_that_of_flax(library, norm):
    mine, flaxs = (signature(getattr(m, norm).__call__) for m in (library.ours, library.theirs))
    assert list(mine.items()) == list(flaxs.items())


@both
def test_the_module_is_the_core(library, norm):
    options = {"epsilon": 100.0}  # so large that it shows
    options |= {"n_steps": 2} if norm == "SpectralNorm" else {}
    layer = library.wrap(norm, X, **options)
    params = dict(layer.variables["params"])
    if "scale" in params:
        params["scale"] = jnp.arange(1.0, 5.0)
    y, after = layer.apply(layer.variables | {"params": params}, X)
    weights, state = core(layer, params, **options)
    np.testing.assert_allclose(y, X @ weights + params["bias"][None], rtol=1e-5, atol=1e-6)
    assert_agree(after["batch_stats"], state, 1e-6)


@both
def test_gradients_reach_the_raw_parameters(library, norm):
    options = {"epsilon": 100.0}
    layer = library.wrap(norm, X, **options)

    def want(params):
        weights, _ = core(layer, params, **options)
        return jnp.sum(WEIGHTS * (X @ weights + params["bias"][None]))

    loss = lambda params: jnp.sum(WEIGHTS * layer.y(X, **params))  # noqa: E731
    got, want = (jax.grad(fn)(layer.variables["params"]) for fn in (loss, want))
    assert_agree(got, want, 1e-5)


@both
def test_evaluation_moves_nothing(library, norm):
    layer = library.wrap(norm, X)
    y, after = layer.apply(layer.variables, X, train=False)
    jax.tree.map(np.testing.assert_array_equal, after, layer.variables)
    np.testing.assert_array_equal(layer.y(X, train=False), y)


@pytest.fixture
def spectral(library):
    """A layer and its training step under jit."""
    layer = library.wrap("SpectralNorm", X)
    return layer, jax.jit(functools.partial(layer.apply, x=X))


def test_the_iteration_finds_the_singular_value(spectral):
    layer, step = spectral
    variables = layer.variables
    for _ in range(100):
        variables = step(variables)[1]
    sigma, params = variables["batch_stats"]["sigma"], variables["params"]
    np.testing.assert_allclose(sigma, largest(params["kernel"]), rtol=1e-4)
    y = layer.apply(variables, X, train=False)[0] - params["bias"][None]
    np.testing.assert_allclose(y, X @ params["kernel"] / sigma, rtol=1e-4, atol=1e-6)


def test_the_iteration_survives_zero_weights(spectral):
    layer, step = spectral
    params = layer.variables["params"]
    zero = layer.variables | {"params": jax.tree.map(jnp.zeros_like, params)}
    y, variables = step(zero)
    assert np.all(y == 0) and variables["batch_stats"]["sigma"] == 0
    for _ in range(100):
        variables = step(variables | {"params": params})[1]
    sigma = variables["batch_stats"]["sigma"]
    np.testing.assert_allclose(sigma, largest(params["kernel"]), rtol=1e-4)


@both
def test_jit_vmap_scan_and_eval_shape(library, norm):
    layer = library.wrap(norm, X)
    fn, variables = layer.apply, layer.variables
    want = fn(variables, X)
    assert_agree(jax.jit(fn)(variables, X), want, 1e-5)
    assert describe(jax.eval_shape(fn, variables, X)) == describe(want)
    assert_agree(jax.vmap(layer.y)(jnp.stack([X, -X]))[0], want[0], 1e-5)
    end, ys = jax.lax.scan(lambda v, x: fn(v, x)[::-1], variables, X[None])
    assert_agree((ys[0], end), want, 1e-5)
