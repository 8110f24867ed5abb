"""Floats below 16 bits and integers below 8, which JAX promotes to nothing of its own accord."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax
from bnjax import linen as bnn
from bnjax import nnx as bnnx

pytestmark = pytest.mark.compiled("quickly")

FLOATS = [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float4_e2m1fn]
STATS = bnjax.BatchStats(jnp.array([1.0, 2, 0.5, 1]), jnp.array([1.0, 4, 2, 1]), jnp.int32(3))

FUNCTIONS = {
    "moments": lambda x, v: bnjax.moments(x, (0, 1)),
    "normalize": lambda x, v: bnjax.normalize(x, v, v),
    "scale_shift": lambda x, v: bnjax.scale_shift(x, v, v),
    "train": lambda x, v: bnjax.batch_norm(x, v, v, STATS, train=True),
    "evaluate": lambda x, v: bnjax.batch_norm(x, v, v, STATS, train=False),
    "masked": lambda x, v: bnjax.batch_norm(x, v, v, STATS, train=True, mask=x != 1),
    "virtual": lambda x, v: bnjax.batch_norm(x, v, v, STATS, train=True, virtual_batch_size=3),
    "renorm": lambda x, v: bnjax.batch_renorm(x, v, v, STATS, train=True),
    "layer": lambda x, v: bnjax.layer_norm(x, v, v),
    "rms": lambda x, v: bnjax.rms_norm(x, v),
    "instance": lambda x, v: bnjax.instance_norm(x, v, v),
    "group": lambda x, v: bnjax.group_norm(x, v, v, num_groups=2),
    "weight": bnjax.weight_norm,
    "standardize": bnjax.weight_standardize,
    "spectral": lambda x, v: bnjax.spectral_norm(
        x, bnjax.SpectralState(jnp.ones((1, 4)), jnp.ones(()))
    ),
}


def wide(tree):
    return jax.tree.map(lambda v: v.astype(jnp.float32), tree)


def same_to_a_rounding(got, want):
    """``got`` is ``want``, rounded once to the dtype of ``got``."""

    def check(g, w):
        step = float(jnp.finfo(g.dtype).eps) if jnp.issubdtype(g.dtype, jnp.floating) else 0
        g, w = np.asarray(g.astype(jnp.float32)), np.asarray(w.astype(jnp.float32))
        np.testing.assert_allclose(g, w, rtol=1.01 * step, atol=max(step, 1e-6) * 0.6)

    jax.tree.map(check, got, want)


# https://github.com/jax-ml/jax/issues/16705
@pytest.mark.parametrize("name", FUNCTIONS)
def test_jax_16705_narrow_floats_are_widened_and_rounded_once(name):
    fn = FUNCTIONS[name]
    data = np.random.default_rng(0).uniform(-3, 3, (6, 5, 4))
    for dtype in FLOATS:
        x, v = (jnp.asarray(a, dtype) for a in (data, [1.0, 1.5, 2, 1]))
        got, want = fn(x, v), fn(wide(x), wide(v))
        same_to_a_rounding(got, want)
        if name != "moments":
            assert jax.tree.leaves(got)[0].dtype == dtype
    grad = jax.grad(
        lambda x, v: jnp.sum(wide(jax.tree.leaves(fn(x, v))[-1 * (name == "moments")])), 0
    )
    assert grad(x, v).dtype == dtype


@pytest.mark.parametrize("dtype", [*FLOATS, jnp.int4, jnp.int2, jnp.uint8])
def test_jax_16705_state_of_a_narrow_dtype_is_refused_like_half_precision(dtype):
    with pytest.raises(ValueError, match=f"float32, float64 or complex, got {jnp.dtype(dtype)}"):
        bnjax.init_batch_stats(4, dtype)
    with pytest.raises(ValueError, match="dtype must be floating and of 16 bits at least"):
        bnjax.init_spectral_norm(jax.random.key(0), (3, 4), dtype)


def test_jax_16705_a_dtype_without_zero_is_refused():
    x = jnp.ones((3, 4), jnp.float8_e8m0fnu)
    with pytest.raises(TypeError, match=r"got float8_e8m0fnu\. Cast it first"):
        bnjax.layer_norm(x, None, None)
    with pytest.raises(ValueError, match="float8_e8m0fnu has neither 0 nor negative numbers"):
        bnjax.layer_norm(jnp.ones((3, 4)), None, None, dtype=jnp.float8_e8m0fnu)
    # As scales, which it is made for, its numbers are as good as others.
    scale = jnp.full(4, 2, jnp.float8_e8m0fnu)
    y = bnjax.layer_norm(jnp.arange(12.0).reshape(3, 4), scale, None)
    np.testing.assert_array_equal(
        y, 2 * bnjax.layer_norm(jnp.arange(12.0).reshape(3, 4), None, None)
    )


LAYERS = {
    "BatchNorm": {"use_running_average": False},
    "BatchRenorm": {"use_running_average": False},
    "LayerNorm": {},
    "RMSNorm": {},
    "InstanceNorm": {},
    "GroupNorm": {"num_groups": 2},
}


@pytest.mark.parametrize("name", LAYERS)
def test_jax_16705_modules_of_both_kinds_take_narrow_dtypes(name):
    data = np.random.default_rng(0).integers(0, 3, (6, 5, 4))
    options = LAYERS[name]
    for dtype in (*FLOATS, jnp.int4, jnp.int2, jnp.uint8):
        x = jnp.asarray(data).clip(-2, 1).astype(dtype)
        linen = getattr(bnn, name)(**options)
        variables = linen.init(jax.random.key(0), x)
        want = linen.apply(variables, wide(x), mutable=["batch_stats"])
        y, state = linen.apply(variables, x, mutable=["batch_stats"])
        same_to_a_rounding((y, state), want)
        twin = getattr(bnnx, name)(4, rngs=nnx.Rngs(0), **options)
        np.testing.assert_array_equal(twin(x), y)
    for option in ("dtype", "param_dtype"):
        asked = {**options, option: jnp.float8_e5m2}
        linen = getattr(bnn, name)(**asked)
        x = jnp.asarray(data, jnp.float32)
        variables = linen.init(jax.random.key(0), x)
        y, _ = linen.apply(variables, x, mutable=["batch_stats"])
        assert y.dtype == (jnp.float8_e5m2 if option == "dtype" else jnp.float32)
        twin = getattr(bnnx, name)(4, rngs=nnx.Rngs(0), **asked)(x)
        np.testing.assert_array_equal(*(wide(v) for v in (twin, y)))
