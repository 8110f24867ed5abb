"""Each layer of linen and its twin of nnx: equal to the last rounding, in every precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests._modules import LIBRARIES

pytestmark = pytest.mark.usefixtures("flax_promotes")

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
RNG = np.random.default_rng(0)
DATA, KERNEL = RNG.normal(2, 1, (6, 5, 8)), RNG.normal(0, 1, (8, 4))
SCALE, BIAS = RNG.uniform(0.5, 2, 8), RNG.normal(0, 1, 8)

NORMS = {
    "BatchNorm": {},
    "BatchRenorm": {"d_max": 0.5},
    "LayerNorm": {},
    "RMSNorm": {},
    "InstanceNorm": {},
    "GroupNorm": {"num_groups": 2},
}
WRAPPERS = {
    "WeightNorm": {},
    "WeightNorm, one": {"feature_axes": None},
    "WeightNorm, no scale": {"use_scale": False},
    "SpectralNorm": {"n_steps": 2},
}


def same(got, want):
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(*(np.asarray(v.astype(jnp.float32)) for v in (got, want)))


def agree(layers, variables, x):
    """Output, eager and under jit, and gradient in ``x``."""

    def exam(layer):
        fn = lambda x: layer.apply(variables, x)[0]  # noqa: E731
        shape = jax.eval_shape(fn, x).shape
        weights = np.cos(np.arange(math.prod(shape))).reshape(shape)
        loss = lambda x: jnp.sum(fn(x).astype(jnp.float32) * weights.astype(np.float32))  # noqa: E731
        return fn(x), *jax.jit(lambda x: (fn(x), jax.grad(loss)(x)))(x)

    for got, want in zip(*(exam(layer) for layer in layers), strict=True):
        same(got, want)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("param_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES[1:])
def test_norms(name, param_dtype, x_dtype):
    given = {"scale": jnp.asarray(SCALE, param_dtype), "bias": jnp.asarray(BIAS, param_dtype)}
    # Given, since nnx promotes with the running statistics as well, as it does in Flax.
    options = {**NORMS[name], "param_dtype": param_dtype, "dtype": x_dtype}
    x = jnp.asarray(DATA, x_dtype)
    layers = [library.make(name, x, **options) for library in LIBRARIES]
    params = {k: given[k] for k in layers[0].variables["params"]}
    agree(layers, layers[0].variables | {"params": params}, x)


@pytest.mark.parametrize("case", WRAPPERS)
@pytest.mark.parametrize("param_dtype", DTYPES)
def test_wrappers(case, param_dtype):
    name = case.split(",")[0]
    for own, x_dtype in ((jnp.float32, jnp.float32), (param_dtype, jnp.bfloat16)):
        x = jnp.asarray(DATA[:, 0], x_dtype)
        options = {"dense": {"param_dtype": param_dtype}, **WRAPPERS[case], "param_dtype": own}
        layers = [library.wrap(name, x, **options) for library in LIBRARIES]
        variables = layers[0].variables
        params = variables["params"] | {"kernel": jnp.asarray(KERNEL, param_dtype)}
        if "scale" in params:
            scale = jnp.asarray(SCALE, own)[: params["scale"].size]
            params["scale"] = scale.reshape(params["scale"].shape)
        agree(layers, variables | {"params": params}, x)


@pytest.mark.parametrize("case", WRAPPERS)
@pytest.mark.parametrize("param_dtype", DTYPES[1:])
def test_weights_are_rounded_once_to_the_dtype_asked_for(library, case, param_dtype):
    name, options = case.split(",")[0], WRAPPERS[case]
    x, kernel = jnp.eye(8), jnp.asarray(KERNEL, param_dtype)
    wide = np.asarray(kernel.astype(jnp.float32), np.float64)
    axes = None if "feature_axes" in options else 0
    want = wide / np.linalg.norm(wide, axis=axes)
    if name == "SpectralNorm":
        options = {"n_steps": 200}
        want = wide / np.linalg.svd(wide)[1][0]
    # With u in float32: a direction of half precision leaves sigma off by its square.
    own = {} if name == "SpectralNorm" else {"param_dtype": param_dtype}
    for asked, tolerance in ((jnp.float32, 1e-6), (param_dtype, float(jnp.finfo(param_dtype).eps))):
        chosen = {**options, **own, "dtype": asked}
        dense = {"use_bias": False, "param_dtype": param_dtype}
        layer = library.wrap(name, x, dense=dense, **chosen)
        np.testing.assert_allclose(
            layer.y(x, kernel=kernel), want, rtol=tolerance, atol=tolerance * 0.1
        )
