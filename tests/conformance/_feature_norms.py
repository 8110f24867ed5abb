"""Cases of layer, RMS, instance and group norm.

A `Case` is a module with some of its fields, an input and a mask. It is built twice, from Flax
and from bnjax, and put through the same `exam` with parameters drawn at random.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests._quick import quick_jit

NORMS = {"LayerNorm": {}, "RMSNorm": {}, "InstanceNorm": {}, "GroupNorm": {"num_groups": 3}}
SHAPE = (4, 3, 2, 6)
HALF = {jnp.bfloat16: 2e-2, jnp.float16: 2e-3}
normal, uniform = jax.nn.initializers.normal(1.0), jax.nn.initializers.uniform(2.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """Which module, which of its fields, and which input."""

    norm: str
    name: str = "defaults"
    fields: dict = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = SHAPE
    dtype: Any = jnp.float32  # of the input
    mask: tuple[int, ...] | None = None  # its shape
    tolerance: float = 1e-5
    only: str | None = None  # "linen" where Flax's nnx has no such field or is wrong

    def __repr__(self):
        return f"{self.norm}, {self.name}"


def _every_norm(norm, given):
    """The cases that make sense for every norm; `given` are fields it always needs."""

    def case(name, fields=None, **kwargs):
        return Case(norm, name, given | (fields or {}), **kwargs)

    yield case("defaults")
    yield case("no scale, epsilon", {"use_scale": False, "epsilon": 0.3})
    yield case("initialisers, masked entries", {"scale_init": uniform}, mask=SHAPE)
    yield case("masked by fewer dimensions", mask=SHAPE[1:])
    yield case("not forced", {"force_float32_reductions": False}, only="linen")
    yield case("complex", dtype=jnp.complex64)
    for dtype, tolerance in HALF.items():
        if dtype == jnp.float16 and norm != "LayerNorm":
            continue  # one code for both: compiling takes long
        name = jnp.dtype(dtype).name
        yield case(f"{name} input", dtype=dtype, tolerance=tolerance)
        yield case(f"{name} output", {"dtype": dtype}, tolerance=tolerance)
    if norm != "RMSNorm":
        yield case("no bias", {"use_bias": False})
        yield case("neither", {"use_bias": False, "use_scale": False})
        yield case("initialiser of bias", {"bias_init": normal})
    if norm != "GroupNorm":
        yield case("masked positions", mask=(4, 3, 2, 1) if norm == "InstanceNorm" else (1, 6))


def _axes(norm, reduction, feature, **kwargs):
    fields = {"reduction_axes": reduction, "feature_axes": feature}
    return Case(norm, f"axes {reduction}, {feature}", fields, **kwargs)


_BF16 = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
CASES = (
    *(case for norm, given in NORMS.items() for case in _every_norm(norm, given)),
    Case("LayerNorm", "all bfloat16", _BF16, dtype=jnp.bfloat16, tolerance=2e-2),
    # The gradient of the input is rounded to bfloat16 in the end, by both.
    Case("LayerNorm", "float32 output", {"dtype": jnp.float32}, dtype=jnp.bfloat16, tolerance=1e-2),
    *(_axes(norm, (1, 2, 3), -1) for norm in ("LayerNorm", "RMSNorm")),
    _axes("LayerNorm", (1, 2), (-1,)),
    _axes("LayerNorm", 1, 2),
    _axes("LayerNorm", (-1, 0), 0),
    # Flax's nnx makes a vector of parameters, whatever the number of feature axes.
    _axes("LayerNorm", (1, 2, 3), (1, 2, 3)),
    _axes("LayerNorm", (1, 2, 3), (3, 1)),
    _axes("RMSNorm", -1, (2, 3)),
    Case("LayerNorm", "a vector", shape=(6,)),
    Case("InstanceNorm", "axis 1", {"feature_axes": 1}),
    Case("InstanceNorm", "axes 1 and 3", {"feature_axes": (3, 1)}, shape=(4, 3, 5, 6)),
    Case("InstanceNorm", "sequence", shape=(4, 5, 6)),
    Case("GroupNorm", "one group", {"num_groups": 1}),
    Case("GroupNorm", "a group for each channel", {"num_groups": 6}),
    Case("GroupNorm", "group size", {"num_groups": None, "group_size": 2}),
    Case("GroupNorm", "32 groups", {"num_groups": 32}, shape=(2, 3, 64)),
    Case("GroupNorm", "channels alone", {"num_groups": 2}, shape=(4, 6)),
    Case("GroupNorm", "channels alone, masked", {"num_groups": 2}, shape=(4, 6), mask=(4, 6)),
    Case("GroupNorm", "axes", {"num_groups": 2, "reduction_axes": (2, 3)}, only="linen"),
    Case("GroupNorm", "axis -1", {"num_groups": 2, "reduction_axes": -1}, only="linen"),
    Case("GroupNorm", "all axes", {"num_groups": 2, "reduction_axes": range(4)}, only="linen"),
    Case("GroupNorm", "a vector", {"num_groups": 2}, shape=(6,), only="linen"),
)


def draw(case):
    """Input, cotangent and mask; data well-conditioned, so that Flax is accurate as well."""
    rng = np.random.default_rng(0)

    def normal():
        imaginary = rng.normal(size=case.shape) * jnp.issubdtype(case.dtype, jnp.complexfloating)
        x = rng.normal(0.5, 1, case.shape)
        return jnp.asarray(x + 1j * imaginary if imaginary.any() else x, case.dtype)

    mask = None if case.mask is None else jnp.asarray(rng.random(case.mask) < 0.8)
    return normal(), normal(), mask


def exam(function, params, x, dy):
    """Output and gradients of ``function(params, x)``."""

    @quick_jit
    def run(params, x, dy):
        y, pullback = jax.vjp(function, params, x)
        return y, pullback(dy.astype(y.dtype))

    return run(params, x, dy)


def far_from_zero(norm):
    """Input at an offset of 10,000 standard deviations, and its x_hat in float64."""
    x = np.random.default_rng(2).normal(1e4, 1, (4, 5, 5, 6)).astype(np.float32)
    wide = x.astype(np.float64)
    if norm == "RMSNorm":
        return x, wide / np.sqrt(np.square(wide).mean(-1, keepdims=True) + 1e-6)
    grouped = wide.reshape(4, 5, 5, 3, 2)
    axes = {"LayerNorm": (3, 4), "InstanceNorm": (1, 2), "GroupNorm": (1, 2, 4)}[norm]
    centred = grouped - grouped.mean(axes, keepdims=True)
    std = np.sqrt(np.square(centred).mean(axes, keepdims=True) + 1e-6)
    return x, (centred / std).reshape(x.shape)
