"""Each layer of linen and its twin of nnx: equal to the last rounding, in every precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from bnjax import linen as bnn
from bnjax import nnx as bnnx

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
RNG = np.random.default_rng(0)
DATA, KERNEL = RNG.normal(2, 1, (6, 5, 8)), RNG.normal(0, 1, (8, 4))
SCALE, BIAS = RNG.uniform(0.5, 2, 8), RNG.normal(0, 1, 8)

NORMS = {
    "BatchNorm": {"use_running_average": False},
    "BatchRenorm": {"use_running_average": False, "d_max": 0.5},
    "LayerNorm": {},
    "RMSNorm": {},
    "InstanceNorm": {},
    "GroupNorm": {"num_groups": 2},
}
WRAPPERS = {
    "WeightNorm": ({}, {}),
    "WeightNorm, one": ({"feature_axes": None}, {}),
    "WeightNorm, no scale": ({"use_scale": False}, {}),
    "SpectralNorm": ({"n_steps": 2}, {"update_stats": True}),
}


@pytest.fixture(autouse=True)
def flax_promotes():
    """Flax's own layers inside the wrappers promote implicitly."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def same(got, want):
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(*(np.asarray(v.astype(jnp.float32)) for v in (got, want)))


def agree(linen, twin, x):
    """Output and gradient in ``x``, eager and under jit."""

    def exam(fn):
        weights = np.cos(np.arange(fn(x).size)).reshape(fn(x).shape)
        loss = lambda x: jnp.sum(fn(x).astype(jnp.float32) * weights.astype(np.float32))  # noqa: E731
        return fn(x), jax.grad(loss)(x), *jax.jit(lambda x: (fn(x), jax.grad(loss)(x)))(x)

    for got, want in zip(exam(linen), exam(twin), strict=True):
        same(got, want)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("param_dtype", DTYPES)
def test_norms(name, param_dtype):
    scale, bias = (jnp.asarray(v, param_dtype) for v in (SCALE, BIAS))
    for x_dtype in DTYPES[1:]:
        # Given, since nnx promotes with the running statistics as well, as it does in Flax.
        options = {**NORMS[name], "param_dtype": param_dtype, "dtype": x_dtype}
        x = jnp.asarray(DATA, x_dtype)
        norm, twin = (
            getattr(bnn, name)(**options),
            getattr(bnnx, name)(8, rngs=nnx.Rngs(0), **options),
        )
        variables = norm.init(jax.random.key(0), x)
        given = {"scale": scale, "bias": bias}
        variables["params"] = {k: given[k] for k in variables["params"]}
        twin.scale.set_value(scale)
        if "bias" in variables["params"]:
            twin.bias.set_value(bias)
        graph, state = nnx.split(twin)
        agree(
            lambda x: norm.apply(variables, x, mutable=["batch_stats"])[0],  # noqa: B023
            lambda x: nnx.merge(graph, state, copy=True)(x),  # noqa: B023
            x,
        )


@pytest.mark.parametrize("case", WRAPPERS)
@pytest.mark.parametrize("param_dtype", DTYPES)
def test_wrappers(case, param_dtype):
    options, call = WRAPPERS[case]
    name = case.split(",")[0]
    for own, x_dtype in ((jnp.float32, jnp.float32), (param_dtype, jnp.bfloat16)):
        x = jnp.asarray(DATA[:, 0], x_dtype)
        asked = {**options, "param_dtype": own}
        wrapped = getattr(bnn, name)(nn.Dense(4, param_dtype=param_dtype), **asked)
        variables = wrapped.init(jax.random.key(0), x, **call)
        kernel = jnp.asarray(KERNEL, param_dtype)
        variables["params"]["layer_instance"]["kernel"] = kernel
        layer = nnx.Linear(8, 4, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        layer.kernel.set_value(kernel)
        twin = getattr(bnnx, name)(layer, rngs=nnx.Rngs(0), **asked)
        if name == "SpectralNorm":
            for path, v in twin.batch_stats.items():
                v.set_value(variables["batch_stats"][f"layer_instance/kernel/{path[-1]}"])
        elif twin.scales is not None:
            ((path, v),) = twin.scales.items()
            scale = jnp.asarray(SCALE, own)[:4].reshape(-1)[: v.size].reshape(v.shape)
            v.set_value(scale)
            variables["params"]["layer_instance/kernel/scale"] = scale
        graph, state = nnx.split(twin)
        agree(
            lambda x: wrapped.apply(variables, x, mutable=["batch_stats"], **call)[0],  # noqa: B023
            lambda x: nnx.merge(graph, state, copy=True)(x, **call),  # noqa: B023
            x,
        )


@pytest.mark.parametrize("case", WRAPPERS)
@pytest.mark.parametrize("param_dtype", DTYPES[1:])
def test_weights_are_rounded_once_to_the_dtype_asked_for(case, param_dtype):
    options, call = WRAPPERS[case]
    name = case.split(",")[0]
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
        wrapped = getattr(bnn, name)(nn.Dense(4, **dense), **chosen)
        variables = wrapped.init(jax.random.key(0), x, **call)
        variables["params"]["layer_instance"]["kernel"] = kernel
        y = wrapped.apply(variables, x, mutable=["batch_stats"], **call)[0]
        layer = nnx.Linear(8, 4, **dense, rngs=nnx.Rngs(0))
        layer.kernel.set_value(kernel)
        twin = getattr(bnnx, name)(layer, rngs=nnx.Rngs(0), **chosen)
        for got in (y, twin(x, **call)):
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * 0.1)
