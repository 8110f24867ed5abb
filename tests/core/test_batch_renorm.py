"""Batch renormalisation: between batch norm and evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bnjax
from bnjax import testing
from tests._derivatives import check_derivatives

pytestmark = pytest.mark.compiled("quickly")
exact = pytest.mark.compiled("as users do")

EPSILON = 1e-3


def problem(seed=0, examples=12, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (examples, 4)).astype(dtype)
    scale, bias = rng.normal(size=(2, 4)).astype(dtype)
    stats = bnjax.BatchStats(
        rng.normal(3, 1, 4).astype(dtype), rng.uniform(1, 9, 4).astype(dtype), jnp.int32(5)
    )
    return x, scale, bias, stats


def by_definition(x, scale, bias, stats, r_max, d_max):
    x = np.asarray(x, np.float64)
    std_b, std = np.sqrt(x.var(0) + EPSILON), np.sqrt(np.asarray(stats.var, float) + EPSILON)
    r = np.clip(std_b / std, 1 / r_max, r_max)
    d = np.clip((x.mean(0) - np.asarray(stats.mean, float)) / std, -d_max, d_max)
    return ((x - x.mean(0)) / std_b * r + d) * scale + bias


renorm = functools.partial(bnjax.batch_renorm, train=True, epsilon=EPSILON)


@exact
@pytest.mark.parametrize("r_max, d_max", [(1.0, 0.0), (1.2, 0.1), (3.0, 5.0), (1e9, 1e9)])
def test_the_output_is_that_of_the_paper(r_max, d_max):
    x, scale, bias, stats = problem()
    y, _ = renorm(x, scale, bias, stats, r_max=r_max, d_max=d_max)
    assert testing.relative_error(y, by_definition(x, scale, bias, stats, r_max, d_max)) < 1e-6


@exact
def test_with_tight_limits_it_is_batch_norm():
    x, scale, bias, stats = problem()
    y, _ = renorm(x, scale, bias, stats, r_max=1.0, d_max=0.0)
    want, _ = bnjax.batch_norm(x, scale, bias, stats, train=True, epsilon=EPSILON)
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)


def test_without_limits_it_is_evaluation_and_so_for_a_batch_of_one():
    for examples in (12, 1):
        x, scale, bias, stats = problem(examples=examples)
        y, _ = renorm(x, scale, bias, stats, r_max=1e9, d_max=1e9)
        want, same = bnjax.batch_renorm(x, scale, bias, stats, train=False, epsilon=EPSILON)
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
        assert same is stats


def test_no_gradient_flows_through_the_correction():
    with jax.enable_x64(True):
        x, scale, bias, stats = problem(dtype=np.float64)

        def frozen(x, scale, bias):
            """The same with r and d as constants, by plain autodiff."""
            std_b, std = jnp.sqrt(x.var(0) + EPSILON), jnp.sqrt(stats.var + EPSILON)
            r = jax.lax.stop_gradient(jnp.clip(std_b / std, 1 / 1.5, 1.5))
            d = jax.lax.stop_gradient(jnp.clip((x.mean(0) - stats.mean) / std, -0.1, 0.1))
            x_hat = (x - x.mean(0, keepdims=True)) / std_b[None] * r[None] + d[None]
            return x_hat * scale[None] + bias[None]

        def ours(x, scale, bias):
            return renorm(x, scale, bias, stats, r_max=1.5, d_max=0.1)[0]

        weights = np.random.default_rng(1).normal(size=x.shape)
        for argnum in range(3):
            got, want = (
                jax.grad(lambda *a, f=f: jnp.sum(weights * jnp.sin(f(*a))), argnum)(x, scale, bias)
                for f in (ours, frozen)
            )
            np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9)
        loose = functools.partial(renorm, batch_stats=stats, r_max=1.0, d_max=0.0)
        check_derivatives(lambda *a: loose(*a)[0], (x, scale, bias), order=2)


def test_the_running_statistics_average_the_deviation():
    x, scale, bias, stats = problem()
    _, new = renorm(x, scale, bias, stats, decay=0.9)
    std = 0.9 * np.sqrt(stats.var + EPSILON) + 0.1 * np.sqrt(x.var(0) + EPSILON)
    np.testing.assert_allclose(new.var, std**2 - EPSILON, rtol=1e-5)
    np.testing.assert_allclose(new.mean, 0.9 * stats.mean + 0.1 * x.mean(0), rtol=1e-5)
    assert new.count == 6
    bad = np.full_like(x, np.nan)
    _, same = renorm(bad, scale, bias, stats, skip_nonfinite=True)
    jax.tree.map(np.testing.assert_array_equal, same, stats)


def test_the_running_statistics_may_be_those_of_batch_norm():
    x, _, _, stats = problem()
    for step in range(20):
        batch = x * (1 + step % 3)  # variances and deviations then have different means
        _, stats = renorm(batch, None, None, stats, r_max=1.0, d_max=0.0, average="var")
        _, by_std = renorm(batch, None, None, stats, r_max=1.0, d_max=0.0)
        _, want = bnjax.batch_norm(batch, None, None, stats, train=True, epsilon=EPSILON)
        _, got = renorm(batch, None, None, stats, r_max=1.0, d_max=0.0, average="var")
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert np.abs(by_std.var - want.var).max() > 1e-3


def crossq(x, mean, var, count, warmup_steps, decay=0.9, r_max=3.0, d_max=5.0):
    """Batch renorm as CrossQ's users have it, in float64: output and new state."""
    x = np.asarray(x, np.float64)
    batch_mean, batch_std, std = x.mean(0), np.sqrt(x.var(0) + EPSILON), np.sqrt(var + EPSILON)
    r, d = np.ones_like(std), np.zeros_like(std)
    if count >= warmup_steps:
        r = np.clip(batch_std / std, 1 / r_max, r_max)
        d = np.clip((batch_mean - mean) / std, -d_max, d_max)
    y = (x - batch_mean) / batch_std * r + d
    new = decay * mean + (1 - decay) * batch_mean, decay * var + (1 - decay) * x.var(0)
    return y, (*new, count + 1)


def test_a_warm_up_by_steps_and_averaged_variances_are_crossq_s():
    x, _, _, _ = problem()
    stats, want = bnjax.init_batch_stats(4), (np.zeros(4), np.ones(4), 0)
    options = {"warmup_steps": 3, "average": "var", "decay": 0.9}
    step = jax.jit(lambda x, s: renorm(x, None, None, s, **options))
    for number in range(6):
        batch = x * (1 + number) + number
        (y, stats), (want_y, want) = step(batch, stats), crossq(batch, *want, warmup_steps=3)
        np.testing.assert_allclose(y, want_y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(stats.mean, want[0], rtol=1e-5)
        np.testing.assert_allclose(stats.var, want[1], rtol=1e-5)
    assert stats.count == 6
    with pytest.raises(ValueError, match="average must be one of 'std', 'var', got 'mean'"):
        renorm(x, None, None, stats, average="mean")
    with pytest.raises(ValueError, match="warmup_steps must be at least 0"):
        renorm(x, None, None, stats, warmup_steps=-1)


@pytest.mark.parametrize("average", ["std", "var"])
@pytest.mark.parametrize("masked", [False, True])
def test_one_value_has_no_sample_variance_and_moves_nothing(average, masked):
    x, _, _, stats = problem(examples=4 if masked else 1)
    mask = np.arange(4)[:, None] == 2 if masked else None
    options = {"ddof": 1, "decay": 0.5, "mask": mask, "average": average}
    for _ in range(20):
        _, after = renorm(x, None, None, stats, **options)
        jax.tree.map(np.testing.assert_array_equal, after, stats)


def test_limits_follow_a_schedule_of_the_count():
    x, scale, bias, stats = problem()
    r_max = optax.linear_schedule(1.0, 3.0, transition_steps=10)
    d_max = optax.piecewise_constant_schedule(0.0, {4: 1.0})
    for count in (0, 5, 20):
        now = stats._replace(count=jnp.int32(count))
        step = jax.jit(lambda s: renorm(x, scale, bias, s, r_max=r_max, d_max=d_max)[0])
        with jax.numpy_dtype_promotion("standard"):
            got, fixed = step(now), (float(r_max(count)), float(d_max(count)))
        want, _ = renorm(x, scale, bias, now, r_max=fixed[0], d_max=fixed[1])
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{"mask": True}, {"virtual_batch_size": 5}, {"axis_name": "d"}])
def test_masks_virtual_batches_and_devices(options):
    x, scale, bias, stats = problem()
    limits = {"r_max": 1.5, "d_max": 0.3}
    if "mask" in options:
        mask = np.arange(12)[:, None] % 3 > 0
        loud = np.where(mask, x, np.nan)
        y, new = renorm(loud, scale, bias, stats, mask=mask, **limits)
        want, want_new = renorm(x[mask[:, 0]], scale, bias, stats, **limits)
        y = y[mask[:, 0]]
    elif "axis_name" in options:
        fn = functools.partial(renorm, axis_name="d", **limits)
        mapped = jax.vmap(fn, axis_name="d", in_axes=(0, None, None, None), out_axes=(0, None))
        y, new = mapped(x.reshape(3, 4, 4), scale, bias, stats)
        want, want_new = renorm(x, scale, bias, stats, **limits)
    else:
        y, new = renorm(x, scale, bias, stats, **options, **limits)
        parts = [renorm(part, scale, bias, stats, **limits)[0] for part in (x[:6], x[6:])]
        want, (_, want_new) = jnp.concatenate(parts), renorm(x, scale, bias, stats, **limits)
    np.testing.assert_allclose(y.reshape(want.shape), want, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new, want_new)


def test_one_update_out_of_several_batches():
    x, scale, bias, stats = problem()
    pending = bnjax.begin_update(stats)
    for part in (x[:4], x[4:]):
        _, pending = renorm(part, scale, bias, pending)
    _, want = renorm(x, scale, bias, stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), pending.after, want)


@exact
@pytest.mark.parametrize("r_max, d_max", [(1.0, 0.0), (1.2, 0.3), (1e9, 1e9)])
def test_complex_input_is_corrected_in_size_and_keeps_its_direction(r_max, d_max):
    rng = np.random.default_rng(0)
    x, mean = (rng.normal(2, 2, (*s, 2)).view(np.complex128)[..., 0] for s in ((12, 4), (4,)))
    stats = bnjax.BatchStats(mean.astype(np.complex64), jnp.array([1.0, 4, 9, 1]), jnp.int32(5))
    limits = {"r_max": r_max, "d_max": d_max}
    y, new = jax.jit(lambda x: renorm(x, None, None, stats, **limits))(x.astype(np.complex64))
    std_b, std = np.sqrt(x.var(0) + EPSILON), np.sqrt(np.asarray(stats.var, float) + EPSILON)
    d = (x.mean(0) - mean) / std
    d *= np.minimum(1, d_max / np.abs(d))
    want = (x - x.mean(0)) / std_b * np.clip(std_b / std, 1 / r_max, r_max) + d
    assert testing.relative_error(y, want) < 1e-6
    assert new.mean.dtype == jnp.complex64 and new.var.dtype == jnp.float32
    # Data on the real line are corrected as real data are.
    real = tuple(np.real(v).astype(np.float32) for v in (x, mean))
    y, _ = renorm(real[0], None, None, stats._replace(mean=real[1]), **limits)
    as_complex = stats._replace(mean=real[1].astype(np.complex64))
    z, _ = renorm(real[0].astype(np.complex64), None, None, as_complex, **limits)
    assert testing.relative_error(z, y) < 1e-6


@exact
def test_accuracy_at_a_large_offset():
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1, (512, 4)).astype(np.float32)
    stats = bnjax.BatchStats(jnp.full(4, 1e4), jnp.ones(4), jnp.int32(1))
    y, _ = renorm(x, None, None, stats, r_max=1.2, d_max=0.5)
    assert testing.relative_error(y, by_definition(x, 1, 0, stats, 1.2, 0.5)) < 1e-6


@pytest.mark.parametrize("limits", [{"r_max": 0.5}, {"d_max": -1.0}, {"r_max": float("nan")}])
def test_limits_that_make_no_sense_are_refused(limits):
    (name,) = limits
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        renorm(*problem(), **limits)
