"""The state: what it starts from and how it moves."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import testing

pytestmark = pytest.mark.compiled("quickly")
exact = pytest.mark.compiled("as users do")

BATCH = bnjax.moments(jnp.array([[1.0, -2.0], [3.0, 4.0], [8.0, 1.0]]), 0)


@hypothesis.given(
    st.one_of(st.none(), st.floats(0, 1)), st.sampled_from([0, 1]), st.booleans(), st.integers(1, 9)
)
def test_updates_match_the_oracle(decay, ddof, debias, steps):
    stats, want = bnjax.init_batch_stats(2), (np.zeros(2), np.ones(2), 0)
    mean, var, n = np.asarray(BATCH.mean, float), np.asarray(BATCH.var(ddof), float), 3
    for _ in range(steps):
        stats = bnjax.update_batch_stats(stats, BATCH, decay=decay, ddof=ddof, debias=debias)
        want = testing.update_batch_stats(
            *want, mean, np.asarray(BATCH.var(), float), n, decay=decay, ddof=ddof, debias=debias
        )
    np.testing.assert_allclose(stats.mean, want[0], rtol=2e-5)
    np.testing.assert_allclose(stats.var, want[1], rtol=2e-5)
    assert stats.count == steps
    if debias or decay is None:
        np.testing.assert_allclose(stats.var, var, rtol=1e-6)


@exact
@pytest.mark.parametrize("steps", range(1, 6))
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("options", [{"decay": 0.99, "debias": True}, {"decay": None}])
def test_identical_batches_evaluate_to_the_batch_itself(steps, scale, options):
    # equinox mode="batch": debiased as if from 0 while the variance starts at 1.
    batch = bnjax.moments(jnp.array([[1.0], [2.0], [4.0]]) * scale, 0)
    stats = bnjax.init_batch_stats(1)
    for _ in range(steps):
        stats = bnjax.update_batch_stats(stats, batch, **options)
    np.testing.assert_allclose(stats.mean, batch.mean, rtol=1e-6)
    np.testing.assert_allclose(stats.var, batch.var(), rtol=1e-6)


@exact
@pytest.mark.parametrize("decay", [None, 0.99, 0.9999])
def test_a_hundred_thousand_identical_batches_do_not_drift(decay):
    batch = bnjax.Moments(jnp.array(4.0), jnp.array([1000.1]), jnp.array([13.2]))

    def step(stats, _):
        return bnjax.update_batch_stats(stats, batch, decay=decay, debias=True), None

    stats, _ = jax.lax.scan(step, bnjax.init_batch_stats(1), None, length=100_000)
    np.testing.assert_allclose(stats.mean, batch.mean, rtol=3e-7)
    np.testing.assert_allclose(stats.var, batch.var(), rtol=3e-7)


def test_cumulative_average_weighs_all_updates_alike():
    batches = np.random.default_rng(0).normal(2, 3, (7, 50, 2)).astype(np.float32)
    stats = bnjax.init_batch_stats(2)
    for batch in batches:
        stats = bnjax.update_batch_stats(stats, bnjax.moments(batch, 0), decay=None)
    np.testing.assert_allclose(stats.mean, batches.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats.var, batches.var(1).mean(0), rtol=1e-5)


def test_debiasing_is_the_weighted_average_of_the_batches_seen():
    rng, decay = np.random.default_rng(1), 0.8
    means = rng.normal(size=5)
    stats = bnjax.init_batch_stats(1)
    for m in means:
        batch = bnjax.Moments(jnp.array(4.0), jnp.array([m], jnp.float32), jnp.array([m * m]))
        stats = bnjax.update_batch_stats(stats, batch, decay=decay, debias=True)
    weights = decay ** np.arange(4, -1, -1)
    np.testing.assert_allclose(stats.mean, [weights @ means / weights.sum()], rtol=1e-5)


def test_no_data_no_update():
    empty = bnjax.moments(jnp.full((3, 2), jnp.nan), 0, mask=np.zeros((3, 1), bool))
    start = bnjax.BatchStats(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), jnp.array(5))
    after = bnjax.update_batch_stats(start, empty)
    jax.tree.map(np.testing.assert_array_equal, after, start)
    one = bnjax.moments(jnp.ones((1, 2)), 0)
    after = bnjax.update_batch_stats(start, one, ddof=1)  # no sample variance of one value
    jax.tree.map(np.testing.assert_array_equal, after, start)


def test_a_feature_without_data_keeps_its_statistics():
    mask = np.array([[True, False], [True, False]])
    some = bnjax.moments(jnp.array([[1.0, jnp.nan], [3.0, jnp.nan]]), 0, mask=mask)
    after = bnjax.update_batch_stats(bnjax.init_batch_stats(2), some, decay=0.5)
    np.testing.assert_array_equal(after.mean, [1.0, 0.0])
    np.testing.assert_array_equal(after.var, [1.0, 1.0])
    assert after.count == 1


def test_a_count_for_each_feature_debiases_each_by_itself():
    x = jnp.array([[6.0, 1.0], [8.0, 3.0]])
    first, second = np.array([[False, True]] * 2), np.ones((2, 2), bool)
    stats = bnjax.init_batch_stats(2)._replace(count=jnp.zeros(2, jnp.int32))
    for mask in (first, second):
        batch = bnjax.moments(x, 0, mask=mask)
        stats = bnjax.update_batch_stats(stats, batch, decay=0.9, debias=True)
    np.testing.assert_allclose(stats.mean, [7.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(stats.var, [1.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(stats.count, [1, 2])


def test_skip_nonfinite_is_a_choice():
    # pytorch#115500, pytorch#88474: one NaN batch poisons the running statistics for good.
    start = bnjax.init_batch_stats(2)
    for bad in (jnp.nan, jnp.inf):
        batch = bnjax.moments(jnp.array([[bad, 1.0], [1.0, 2.0]]), 0)
        kept = bnjax.update_batch_stats(start, batch, skip_nonfinite=True)
        jax.tree.map(np.testing.assert_array_equal, kept, start)
        assert not np.isfinite(bnjax.update_batch_stats(start, batch).var[0])


# https://github.com/ultralytics/yolov5/issues/459: statistics that come without their counter
@pytest.mark.parametrize("count", [0, [0, 0]])
@pytest.mark.parametrize(
    ("options", "mean", "counted"),
    [
        ({"decay": 0.99, "debias": True}, 4.45, 1657),
        ({"decay": jnp.array(0.99), "debias": True}, 4.45, 1657),
        ({"decay": 0.99}, 4.45, 1),
        ({"decay": None}, -22.5, 2),
        ({"decay": 0.0, "debias": True}, -50.0, 2),
        ({"decay": 1.0, "debias": True}, 5.0, 2**30 + 1),
    ],
)
def test_yolov5_459_statistics_without_their_counter_are_not_overwritten(
    options, mean, counted, count
):
    stats = bnjax.BatchStats(jnp.full(2, 5.0), jnp.full(2, 9.0), jnp.array(count))
    batch = bnjax.moments(jnp.full((3, 2), -50.0), 0)
    update = jax.jit(functools.partial(bnjax.update_batch_stats, **options))
    after = update(stats, batch)
    np.testing.assert_allclose(after.mean, [mean, mean], rtol=1e-5)
    np.testing.assert_allclose(after.var, 9 * (mean + 50) / 55 * np.ones(2), atol=1e-4)
    np.testing.assert_array_equal(after.count, np.full_like(count, counted))
    nothing = bnjax.moments(jnp.full((3, 2), -50.0), 0, mask=np.zeros((3, 1), bool))
    jax.tree.map(np.testing.assert_array_equal, update(stats, nothing), stats)
    # Nor is the second batch of many.
    if options == {"decay": 0.99, "debias": True}:
        np.testing.assert_allclose(update(after, batch).mean, 4.45 - 0.5445, rtol=1e-5)


def test_yolov5_459_each_feature_by_itself_where_each_is_counted():
    count = jnp.zeros(2, jnp.int32)
    stats = bnjax.BatchStats(jnp.array([5.0, 0.0]), jnp.array([9.0, 1.0]), count)
    batch = bnjax.moments(jnp.full((3, 2), -50.0), 0)
    after = bnjax.update_batch_stats(stats, batch, debias=True)
    np.testing.assert_allclose(after.mean, [4.45, -50.0], rtol=1e-5)
    np.testing.assert_array_equal(after.count, [1657, 1])


# https://github.com/microsoft/onnxruntime/pull/6349: bfloat16 stops moving, integers truncate
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.int8])
@pytest.mark.parametrize("options", [{}, {"debias": True}, {"decay": None}])
def test_onnxruntime_6349_narrow_statistics_are_widened(dtype, options):
    narrow = bnjax.BatchStats(jnp.full(2, 4, dtype), jnp.full(2, 9, dtype), jnp.array(3, dtype))
    wide = bnjax.BatchStats(jnp.full(2, 4.0), jnp.full(2, 9.0), jnp.array(3))
    after = bnjax.update_batch_stats(narrow, BATCH, **options)
    want = bnjax.update_batch_stats(wide, BATCH, **options)
    chex.assert_trees_all_equal(after, want)
    assert [v.dtype for v in after] == [jnp.float32, jnp.float32, jnp.int32]
    x = jnp.asarray([[1.0, 2.0], [3.0, 5.0]])
    for norm in (bnjax.batch_norm, bnjax.batch_renorm):
        y, after = norm(x, None, None, narrow, train=True, **options)
        want_y, want = norm(x, None, None, wide, train=True, **options)
        chex.assert_trees_all_close((y, after), (want_y, want), rtol=1e-6)
        evaluated, same = norm(x, None, None, narrow, train=False)
        np.testing.assert_array_equal(evaluated, norm(x, None, None, wide, train=False)[0])
        assert same is narrow


def test_decay_may_be_traced_and_agrees_with_a_static_one():
    start = bnjax.init_batch_stats(2)
    traced = jax.jit(lambda d: bnjax.update_batch_stats(start, BATCH, decay=d, debias=True))(0.9)
    static = bnjax.update_batch_stats(start, BATCH, decay=0.9, debias=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), traced, static)


def test_state_keeps_its_dtypes_through_a_scan():
    x = jnp.ones((4, 6, 3), jnp.bfloat16)
    step = lambda s, b: (bnjax.update_batch_stats(s, bnjax.moments(b, 0)), None)  # noqa: E731
    stats, _ = jax.lax.scan(step, bnjax.init_batch_stats(3), x)
    assert (stats.mean.dtype, stats.count.dtype, int(stats.count)) == (jnp.float32, jnp.int32, 4)


def test_update_is_differentiable():
    def loss(x):
        stats = bnjax.update_batch_stats(bnjax.init_batch_stats(1), bnjax.moments(x, 0), decay=0.9)
        return stats.mean.sum()

    np.testing.assert_allclose(jax.grad(loss)(jnp.ones((4, 1))), np.full((4, 1), 0.025), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bnjax.update_batch_stats(bnjax.init_batch_stats(2), BATCH, decay=1.1), "decay"),
        (lambda: bnjax.update_batch_stats(bnjax.init_batch_stats(2), BATCH, decay=-0.1), "decay"),
        (lambda: bnjax.update_batch_stats(bnjax.init_batch_stats(2), BATCH, ddof=2), "ddof"),
        (lambda: bnjax.init_batch_stats(-1), "num_features"),
        (lambda: bnjax.init_batch_stats(2, jnp.float16), "half precision"),
    ],
)
def test_bad_options_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
