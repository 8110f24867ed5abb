"""bnjax against the oracle where no other library has an answer: masks with holes, NaN in masked
entries, complex numbers, several kept axes, missing scale or bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.testing import batch_norm_backward, batch_norm_forward, batch_norm_jvp, relative_error
from bnjax.testing import update_batch_stats as reference_update

SHAPE = (4, 3, 5)
AXES = {"-1": (-1, (5,)), "1": (1, (3,)), "(0, 2)": ((0, 2), (4, 5))}
MASKS = ("none", "entries", "examples", "features differ", "empty feature", "nothing")
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "complex128": 1e-12}
AXES_AND_DTYPES = [("-1", "float32"), ("1", "float64"), ("(0, 2)", "float64"), ("-1", "complex128")]


def make_mask(kind, axis, rng):
    if kind in {"none", "nothing"}:
        return None if kind == "none" else np.zeros(SHAPE, bool)
    if kind == "examples":
        return np.array([True, False, True, True]).reshape(4, 1, 1)
    mask = rng.uniform(size=SHAPE) < 0.7
    if kind == "entries":
        return mask.all(axis, keepdims=True)
    if kind == "empty feature":
        mask[np.index_exp[:, :, 1] if axis == -1 else np.index_exp[:, 1]] = False
    return mask


def random(rng, shape, dtype):
    imaginary = 1j * rng.normal(size=shape) if dtype == "complex128" else 0
    return (rng.normal(size=shape) + imaginary).astype(dtype)


def problem(axis, kind, dtype):
    rng = np.random.default_rng(0)
    axis, features = AXES[axis]
    real = np.dtype(dtype).type(0).real.dtype
    primals = random(rng, SHAPE, dtype), *rng.normal(size=(2, *features)).astype(real)
    tangents = random(rng, SHAPE, dtype), *rng.normal(size=(2, *features)).astype(real)
    dy = random(rng, SHAPE, dtype)
    return axis, features, primals, tangents, dy, make_mask(kind, axis, rng)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("axis", "dtype"), AXES_AND_DTYPES)
def test_forward_backward_tangents_and_update(axis, kind, dtype):
    axis, features, primals, tangents, dy, mask = problem(axis, kind, dtype)
    want = batch_norm_forward(*primals, axis=axis, mask=mask)
    want_stats = reference_update(
        np.zeros(features), np.ones(features), 0, *want[1:4], decay=0.9, ddof=1
    )
    with jax.enable_x64(dtype != "float32"):
        got = run(axis, features, primals, tangents, dy, mask)
    grads, tangent = batch_norm_backward(dy, want.cache), batch_norm_jvp(*tangents, want.cache)
    names = ("y", "mean", "var", "dx", "dscale", "dbias", "tangent")
    wants = (want.y, *want_stats[:2], *grads, tangent[0])
    for name, value in zip(names, wants, strict=True):
        assert relative_error(got[name], value) < TOLERANCE[dtype], name
    assert got["count"] == want_stats[2]


def run(axis, features, primals, tangents, dy, mask):
    primals, tangents = (tuple(jnp.asarray(a) for a in v) for v in (primals, tangents))
    stats = bnjax.init_batch_stats(features, primals[1].dtype)
    options = {"train": True, "axis": axis, "decay": 0.9, "ddof": 1}
    options["mask"] = None if mask is None else jnp.asarray(mask)

    def forward(*primals):
        return bnjax.batch_norm(*primals, stats, **options)

    @jax.jit
    def everything(primals, tangents, dy):
        y, vjp, stats = jax.vjp(forward, *primals, has_aux=True)
        _, tangent = jax.jvp(lambda *p: forward(*p)[0], primals, tangents)
        return y, stats, vjp(dy), tangent

    y, stats, grads, tangent = everything(primals, tangents, jnp.asarray(dy))
    out = {"y": y, "mean": stats.mean, "var": stats.var, "count": stats.count, "tangent": tangent}
    return out | dict(zip(("dx", "dscale", "dbias"), grads, strict=True))


@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf, 1e38])
def test_masked_entries_may_hold_anything(filler):
    # Filled with NaN, a leak into statistics or gradients cannot go unseen.
    axis, features, (x, scale, bias), tangents, dy, mask = problem("-1", "entries", "float32")
    x = np.where(mask, x, np.float32(filler))
    want = batch_norm_forward(x, scale, bias, mask=mask)
    got = run(axis, features, (x, scale, bias), tangents, dy, mask)
    full = np.broadcast_to(mask, SHAPE)
    assert relative_error(got["y"][full], want.y[full]) < 1e-5
    dx, dscale, dbias = batch_norm_backward(np.where(mask, dy, 0), want.cache)
    clean = run(axis, features, (x, scale, bias), tangents, np.where(mask, dy, 0), mask)
    for name, value in (("dx", dx), ("dscale", dscale), ("dbias", dbias)):
        assert relative_error(clean[name], value) < 1e-5, name
    if not np.isfinite(filler):
        assert np.array_equal(got["y"][~full], np.broadcast_to(bias, SHAPE)[~full])
        assert not np.any(got["dx"][~full])


@pytest.mark.parametrize("absent", ["scale", "bias", "both"])
def test_scale_or_bias_may_be_absent(absent):
    _, _, (x, scale, bias), _, dy, _ = problem("-1", "none", "float32")
    scale = None if absent in {"scale", "both"} else scale
    bias = None if absent in {"bias", "both"} else bias
    want = batch_norm_forward(x, scale, bias)

    def forward(x):
        params = (v if v is None else jnp.asarray(v) for v in (scale, bias))
        return bnjax.batch_norm(x, *params, bnjax.init_batch_stats(5), train=True)[0]

    y, vjp = jax.vjp(forward, jnp.asarray(x))
    assert relative_error(y, want.y) < 1e-5
    assert relative_error(vjp(jnp.asarray(dy))[0], batch_norm_backward(dy, want.cache)[0]) < 1e-5


@pytest.mark.compiled("as users do")
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
def test_float32_is_accurate_at_any_offset(offset):
    # flax#1491, jax#30426: E[x**2] - E[x]**2 is wrong by 5e-2 at 1e3 and worthless at 1e4.
    rng = np.random.default_rng(0)
    x = (offset + rng.normal(size=(512, 5))).astype(np.float32)
    dy, scale, bias = rng.normal(size=(512, 5)), rng.normal(size=5), rng.normal(size=5)
    dy, scale, bias = (a.astype(np.float32) for a in (dy, scale, bias))
    want = batch_norm_forward(x, scale, bias)
    got = run(-1, (5,), (x, scale, bias), (x - x, scale, bias), dy, None)
    grads = batch_norm_backward(dy, want.cache)
    for name, value in zip(("y", "dx", "dscale", "dbias"), (want.y, *grads), strict=True):
        assert relative_error(got[name], value) < 1e-6, name
