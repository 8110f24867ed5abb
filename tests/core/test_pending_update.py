"""One update of the running statistics out of several batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bnjax

pytestmark = pytest.mark.compiled("quickly")

OPTIONS = [{}, {"debias": True}, {"decay": None}, {"ddof": 1}, {"virtual_batch_size": 3}]


def draw(seed, examples, offset=0.0):
    return np.random.default_rng(seed).normal(offset, 2, (examples, 3)).astype(np.float32)


def run(parts, stats, **options):
    pending = bnjax.begin_update(stats)
    for part in parts:
        _, pending = bnjax.batch_norm(part, None, None, pending, train=True, **options)
    return pending


# All of 12, and of few sizes, for each size is compiled for itself.
SPLITS = [(12,), (5, 7), (2, 3, 7), (2, 2, 3, 5), (2, 2, 2, 3, 3)]


@given(
    st.integers(0, 2**16),
    st.sampled_from(SPLITS).flatmap(st.permutations),
    st.sampled_from(OPTIONS),
)
def test_any_split_makes_the_update_of_the_whole(seed, sizes, options):
    x = draw(seed, sum(sizes))
    stats = bnjax.BatchStats(jnp.array([1.0, 2, 3]), jnp.array([4.0, 5, 6]), jnp.array(7))
    pending = run(np.split(x, np.cumsum(sizes)[:-1]), stats, **options)
    _, whole = bnjax.batch_norm(x, None, None, stats, train=True, **options)
    for got, want in zip(pending.after, whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert pending.after.count == 8
    jax.tree.map(np.testing.assert_array_equal, pending.before, stats)


def test_the_spread_of_the_means_is_in_the_variance():
    # Two constant micro-batches: the mean of their variances is 0, the variance of all is 1.
    parts = [np.full((4, 1), -1, np.float32), np.full((4, 1), 1, np.float32)]
    pending = run(parts, bnjax.init_batch_stats(1), decay=0.0)
    np.testing.assert_array_equal(pending.after.var, [1])


def test_masks_of_unequal_counts_are_merged():
    x, mask = draw(1, 8), np.arange(8)[:, None] % 3 > 0
    pending = bnjax.begin_update(bnjax.init_batch_stats(3))
    for part, hidden in ((x[:2], mask[:2]), (x[2:], mask[2:])):
        _, pending = bnjax.batch_norm(part, None, None, pending, train=True, mask=hidden)
    _, want = bnjax.batch_norm(x, None, None, bnjax.init_batch_stats(3), train=True, mask=mask)
    np.testing.assert_allclose(pending.after.var, want.var, rtol=1e-6)
    np.testing.assert_array_equal(pending.moments.count, mask.sum())


def test_under_scan_the_structure_stays():
    x = draw(2, 12, offset=1e3).reshape(4, 3, 3)
    stats = bnjax.init_batch_stats(3)

    def body(pending, part):
        y, pending = bnjax.batch_norm(part, None, None, pending, train=True)
        return pending, y

    pending, ys = jax.jit(lambda x: jax.lax.scan(body, bnjax.begin_update(stats), x))(x)
    _, want = bnjax.batch_norm(x.reshape(12, 3), None, None, stats, train=True)
    np.testing.assert_allclose(pending.after.var, want.var, rtol=1e-5)
    alone, _ = bnjax.batch_norm(x[1], None, None, stats, train=True)
    np.testing.assert_allclose(ys[1], alone, rtol=1e-6)


def test_a_batch_that_is_not_finite_is_left_out_if_asked():
    good, bad = draw(3, 6), np.full((6, 3), np.nan, np.float32)
    stats = bnjax.init_batch_stats(3)
    with_bad = run([good[:3], bad, good[3:]], stats, skip_nonfinite=True)
    without = run([good[:3], good[3:]], stats)
    jax.tree.map(np.testing.assert_array_equal, with_bad.after, without.after)
    nothing = run([bad], stats, skip_nonfinite=True)
    jax.tree.map(np.testing.assert_array_equal, nothing.after, stats)
    assert np.isnan(run([good, bad], stats).after.mean).all()


@pytest.mark.parametrize("train, update_stats", [(True, False), (False, None)])
def test_what_updates_nothing_returns_the_argument(train, update_stats):
    pending = bnjax.begin_update(
        bnjax.update_batch_stats(bnjax.init_batch_stats(3), bnjax.moments(draw(4, 8), 0))
    )
    call = functools.partial(
        bnjax.batch_norm, draw(5, 8), None, None, train=train, update_stats=update_stats
    )
    y, same = call(pending)
    assert same is pending
    np.testing.assert_array_equal(y, call(pending.before)[0])


# pytorch#70901: element counts kept in the dtype of half-precision statistics.
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int32])
def test_pytorch_70901_counts_do_not_live_in_the_dtype_of_the_statistics(dtype):
    mean, var = jnp.zeros(3, dtype), jnp.ones(3, dtype)
    stats = bnjax.BatchStats(mean, var, jnp.zeros((), dtype))
    part = jnp.asarray(np.tile([[3.0], [7.0]], (10_000, 3)), jnp.float16)
    pending = run([part] * 4, stats, decay=0.0)
    np.testing.assert_array_equal(pending.moments.count, 80_000)
    np.testing.assert_allclose(pending.after.mean, 5, rtol=1e-6)
    np.testing.assert_allclose(pending.after.var, 4, rtol=1e-6)


MASKS = {
    "none": lambda x: None,
    "all": lambda x: jnp.array(True),
    "examples": lambda x: x[..., :1] > 0,
    "features": lambda x: jnp.array([True, False, True]),
    "elements": lambda x: x > 0,
}


@pytest.mark.parametrize(
    "mask, count, options",
    [
        *((mask, (), {}) for mask in MASKS),
        ("elements", (3,), {}),
        ("elements", (), {"virtual_batch_size": 2, "skip_nonfinite": True}),
    ],
)
def test_a_scan_carries_it_whatever_the_mask(mask, count, options):
    x = jnp.asarray(draw(2, 24)).reshape(4, 6, 3)
    stats = bnjax.init_batch_stats(3)._replace(count=jnp.zeros(count, jnp.int32))
    masked = MASKS[mask]

    def body(pending, x):
        options_ = {"mask": masked(x), "train": True, "decay": 0.5, **options}
        return bnjax.batch_norm(x, None, None, pending, **options_)[1], None

    pending, _ = jax.lax.scan(body, bnjax.begin_update(stats), x)
    x = x.reshape(24, 3)
    _, whole = bnjax.batch_norm(x, None, None, stats, train=True, decay=0.5, mask=masked(x))
    for got, want in zip(pending.after, whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float64])
def test_a_scan_carries_it_whatever_the_dtype_of_the_batches(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(draw(2, 24), dtype).reshape(4, 6, 3)
        stats = bnjax.init_batch_stats(3)

        def body(pending, x):
            return bnjax.batch_norm(x, None, None, pending, train=True, decay=0.0)[1], None

        pending, _ = jax.lax.scan(body, bnjax.begin_update(stats), x)
        expected = np.asarray(x, float).reshape(24, 3).var(0)
        np.testing.assert_allclose(pending.after.var, expected, rtol=1e-5)
        assert pending.after.var.dtype == jnp.float32


def test_what_is_no_state_is_refused():
    with pytest.raises(TypeError, match=r"must be a bnjax.BatchStats, got dict.*one_update"):
        bnjax.begin_update({"mean": jnp.zeros(3), "var": jnp.ones(3)})
