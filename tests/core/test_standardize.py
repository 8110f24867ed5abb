"""The derivative rule of the whole layer, in every transformation, and virtual batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

import bnjax
from bnjax import testing
from bnjax.core._virtual_batches import virtual_batches
from tests._derivatives import check_derivatives


def layer(x, scale, bias, **options):
    axis = options.get("axis", -1)
    axes = (axis,) if isinstance(axis, int) else axis
    stats = bnjax.init_batch_stats(tuple(x.shape[a] for a in axes))
    return bnjax.batch_norm(x, scale, bias, stats, train=True, **options)[0]


def both(x, scale, bias, dy):
    y, pullback = jax.vjp(layer, x, scale, bias)
    return y, *pullback(dy)


@pytest.mark.parametrize("batch", [(2, 4096), (7, 143)])
@pytest.mark.parametrize("offset", [0, 1, 1e2, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("outlier", [0.0, 1e3])
@pytest.mark.parametrize("jit", [False, True])
def test_float32_error_stays_below_1e_6_at_any_offset(batch, offset, outlier, jit):
    # flax#1491, jax#30426, tensorflow#118701: variance as a difference of squares.
    rng = np.random.default_rng(0)
    # Axis 1 is whole on each device, so that the shift of the larger batch comes from a sample.
    x = (rng.normal(size=(*batch, 16)) + offset).astype(np.float32)
    x[0, 0] += outlier
    dy = rng.normal(size=x.shape).astype(np.float32)
    scale, bias = rng.normal(size=(2, 16)).astype(np.float32)
    forward = testing.batch_norm_forward(x, scale, bias)
    want = (forward.y, *testing.batch_norm_backward(dy, forward.cache))
    got = (jax.jit(both) if jit else both)(x, scale, bias, dy)
    for name, g, w in zip(("y", "dx", "dscale", "dbias"), got, want, strict=True):
        assert testing.relative_error(g, w) < 1e-6, name


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_half_precision_gradient_is_rounded_once(dtype, mean):
    # A cotangent with a large mean: rounding the parts of dx before adding them would show.
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(3, 1, (512, 8)), dtype)
    dy = jnp.asarray(rng.normal(30 * mean, 1, (512, 8)), dtype)
    scale, bias = rng.normal(size=(2, 8)).astype(np.float32)
    forward = testing.batch_norm_forward(np.asarray(x, np.float64), scale, bias)
    want, *_ = testing.batch_norm_backward(np.asarray(dy, np.float64), forward.cache)
    _, dx, *_ = both(x, scale, bias, dy)
    ulp = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(dx, np.float64), want, rtol=0.51 * ulp, atol=3e-5)


CASES = {
    "plain": {},
    "mask": {"mask": np.random.default_rng(2).random((5, 3, 1)) < 0.6},
    "mask_by_feature": {"mask": np.random.default_rng(3).random((5, 1, 4)) < 0.7},
    "virtual": {"virtual_batch_size": 2},
    "axis_1": {"axis": 1},
    "two_axes": {"axis": (0, 2)},
}


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["real", "complex"])
def test_gradients_to_second_order_in_both_modes(x64, case, dtype):
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(5, 3, 4)))
    if dtype == "complex":
        x = jax.lax.complex(x, jnp.asarray(rng.normal(size=x.shape)))
    axis = CASES[case].get("axis", -1)
    axes = (axis,) if isinstance(axis, int) else axis
    features = tuple(x.shape[a] for a in axes)
    scale, bias = jnp.asarray(rng.normal(size=(2, *features)))
    fn = functools.partial(layer, **CASES[case])
    # The derivative of sum(y) is identically zero: hence random cotangents.
    check_derivatives(fn, (x, scale, bias), order=2)


@pytest.mark.compiled("quickly")
def test_missing_parameters_have_their_own_derivatives(x64):
    x = jnp.asarray(np.random.default_rng(5).normal(size=(6, 3)))
    v = jnp.arange(1.0, 4.0)
    check_derivatives(lambda x: layer(x, None, None), (x,), order=2)
    check_derivatives(lambda x, s: layer(x, s, None), (x, v), order=2)
    check_derivatives(lambda x, b: layer(x, None, b), (x, v), order=2)


@pytest.fixture
def problem(x64):
    rng = np.random.default_rng(6)
    x, t, w = (jnp.asarray(rng.normal(size=(5, 3))) for _ in range(3))
    scale, bias = jnp.asarray(rng.normal(size=(2, 3)))
    return (lambda x: jnp.sum(w * jnp.sin(layer(x, scale, bias)))), x, t


def directional(f, x, t, h=1e-5):
    return (f(x + h * t) - f(x - h * t)) / (2 * h)


@pytest.mark.compiled("quickly")
def test_nested_modes_agree_with_finite_differences(problem):
    # pytorch#196699: nested forward mode silently wrong. pytorch#61222: double backward.
    f, x, t = problem
    first = lambda x: jax.jvp(f, (x,), (t,))[1]  # noqa: E731
    want = directional(first, x, t)
    np.testing.assert_allclose(first(x), directional(f, x, t), rtol=1e-7)
    np.testing.assert_allclose(jax.jvp(first, (x,), (t,))[1], want, rtol=1e-7)  # jvp of jvp
    jvp_of_vjp = jax.jvp(jax.grad(f), (x,), (t,))[1]
    np.testing.assert_allclose(jnp.sum(jvp_of_vjp * t), want, rtol=1e-7)
    vjp_of_jvp = jax.grad(first)(x)
    np.testing.assert_allclose(vjp_of_jvp, jvp_of_vjp, rtol=1e-10, atol=1e-12)
    vjp_of_vjp = jax.grad(lambda x: jnp.sum(jax.grad(f)(x) * t))(x)
    np.testing.assert_allclose(vjp_of_vjp, jvp_of_vjp, rtol=1e-10, atol=1e-12)


@pytest.mark.compiled("quickly")
def test_hessian_is_symmetric_and_right(problem):
    f, x, t = problem
    hessian = jax.hessian(f)(x).reshape(15, 15)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    want = jax.jvp(jax.grad(f), (x,), (t,))[1].ravel()
    np.testing.assert_allclose(hessian @ t.ravel(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.compiled("quickly")
def test_jacfwd_equals_jacrev_and_linearize(problem):
    f, x, t = problem
    g = jax.grad(f)
    np.testing.assert_allclose(jax.jacfwd(g)(x), jax.jacrev(g)(x), atol=1e-12)
    _, linear = jax.linearize(f, x)
    np.testing.assert_allclose(linear(t), jax.jvp(f, (x,), (t,))[1], rtol=1e-12)


def test_nan_under_the_mask_leaks_into_no_gradient():
    rng = np.random.default_rng(7)
    mask = rng.random((6, 4, 1)) < 0.6
    clean = rng.normal(size=(6, 4, 3)).astype(np.float32)
    dy = rng.normal(size=clean.shape).astype(np.float32)
    scale, bias = rng.normal(size=(2, 3)).astype(np.float32)

    def grads(x):
        y, pullback = jax.vjp(functools.partial(layer, mask=mask), x, scale, bias)
        return y, *pullback(dy)

    for fill in (np.nan, np.inf):
        x = np.where(mask, clean, fill)
        forward = testing.batch_norm_forward(x, scale, bias, mask=mask)
        want = (forward.y, *testing.batch_norm_backward(dy, forward.cache))
        for g, w in zip(grads(x), want, strict=True):
            assert testing.relative_error(g, w) < 1e-6
        tangents = jax.jvp(
            lambda x: layer(x, scale, bias, mask=mask), (x,), (np.where(mask, dy, np.nan),)
        )[1]
        assert np.isfinite(tangents).all()


def saved(fn, *args, capsys):
    print_saved_residuals(fn, *args)
    return [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backward_keeps_x_in_its_own_dtype_and_four_vectors(dtype, capsys):
    x, v = jnp.ones((64, 8), dtype), jnp.ones(8)
    short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    residuals = saved(layer, x, v, v, capsys=capsys)
    large = [r for r in residuals if "64" in r]
    assert set(large) == {f"{short}[64,8]"}, residuals
    assert len([r for r in residuals if r in {"f32[8]", "f32[1,8]"}]) <= 4, residuals


def test_scan_keeps_no_float32_copy_of_a_half_precision_input():
    params = (jnp.ones((3, 8)), jnp.zeros((3, 8)))

    def loss(params, x):
        y, _ = jax.lax.scan(lambda h, p: (layer(h, *p), None), x, params)
        return jnp.sum(jnp.square(y))

    x = jnp.ones((64, 8), jnp.bfloat16)
    _, pullback = jax.vjp(loss, params, x)
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(pullback)]
    large = [s for s in shapes if s[0][-2:] == (64, 8)]
    assert large and all(dtype == "bfloat16" for _, dtype in large), shapes


@pytest.mark.parametrize(
    ("examples", "size", "want"),
    [
        (64, 32, [(0, 2, 32)]),
        (70, 32, [(0, 2, 35)]),
        (71, 32, [(0, 1, 36), (36, 1, 35)]),
        (33, 32, [(0, 1, 33)]),
        (5, 8, [(0, 1, 5)]),
        (7, 2, [(0, 1, 3), (3, 2, 2)]),
        (0, 4, [(0, 1, 0)]),
    ],
)
def test_virtual_batches_spread_the_remainder(examples, size, want):
    # tabnet#384: a virtual batch size that does not divide the batch.
    assert virtual_batches(examples, size) == want


def test_one_virtual_batch_is_plain_batch_norm():
    x = np.random.default_rng(8).normal(size=(12, 3)).astype(np.float32)
    y, plain = layer(x, None, None, virtual_batch_size=12), layer(x, None, None)
    assert testing.relative_error(y, plain) < 3e-7  # two programs, equal to rounding


@pytest.mark.parametrize("masked", [False, True])
def test_virtual_batches_normalise_separately_and_merge_their_statistics(masked):
    rng = np.random.default_rng(9)
    x = rng.normal(4, 2, (7, 5, 3)).astype(np.float32)
    mask = rng.random((7, 5, 1)) < 0.7 if masked else None
    stats = bnjax.init_batch_stats(3)
    options = {"train": True, "decay": 0.5, "mask": mask}
    y, got = bnjax.batch_norm(x, None, None, stats, virtual_batch_size=2, **options)
    parts = np.split(x, [3, 5]), np.split(mask, [3, 5]) if masked else [None] * 3
    want = [
        testing.batch_norm_forward(p, None, None, mask=m).y for p, m in zip(*parts, strict=True)
    ]
    assert testing.relative_error(y, np.concatenate(want)) < 1e-6
    _, plain = bnjax.batch_norm(x, None, None, stats, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, plain)


def test_virtual_batches_are_not_applied_in_evaluation():
    # keras#15790.
    x = jnp.arange(8.0).reshape(4, 2)
    stats = bnjax.init_batch_stats(2)._replace(count=jnp.array(1))
    ys = [
        bnjax.batch_norm(x, None, None, stats, train=False, virtual_batch_size=v)[0]
        for v in (None, 2)
    ]
    np.testing.assert_array_equal(*ys)


def test_what_is_for_the_cpu_alone_is_decided_where_the_program_is_lowered():
    """A program may be traced here, and exported to where it runs."""
    x, v = jnp.ones((16, 8)), jnp.ones(8)
    traced = jax.jit(both).trace(x, v, v, x)
    plain, *others = (
        traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.divide")
        for platform in ("cuda", "tpu", "cpu")
    )
    assert others[0] == plain < others[1]
