"""batch_norm: values, state, switches and errors. Derivatives are in test_standardize.py."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import testing

pytestmark = pytest.mark.compiled("quickly")
exact = pytest.mark.compiled("as users do")


def run(x, axis=-1, **options):
    """batch_norm with random parameters; ``(y, batch_stats, scale, bias)``."""
    axes = (axis,) if isinstance(axis, int) else axis
    features = tuple(np.shape(x)[a] for a in sorted(a % np.ndim(x) for a in axes))
    rng = np.random.default_rng(7)
    scale, bias = rng.normal(size=(2, *features)).astype(np.float32)
    stats = bnjax.init_batch_stats(features, jnp.asarray(x).astype(jnp.float32).dtype)
    options = {"train": True, "axis": axis, **options}
    y, stats = bnjax.batch_norm(x, scale, bias, options.pop("stats", stats), **options)
    return y, stats, scale, bias


@exact
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((16, 5), -1),
        ((6, 7, 5), -1),
        ((4, 3, 6, 5), -1),
        ((4, 5, 3, 6), 1),
        ((2, 3, 4, 3, 5), -1),
        ((2, 5, 4, 3, 3), 1),
        ((5, 9), 0),
        ((6, 4, 5), (1, 2)),
        ((6, 4, 5), (-1, 1)),
        ((6, 4, 5, 2), (0, 2)),
    ],
)
def test_any_layout_matches_the_oracle(shape, axis):
    x = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
    y, stats, scale, bias = run(x, axis, decay=0.9)
    want = testing.batch_norm_forward(x, scale, bias, axis=axis)
    assert testing.relative_error(y, want.y) < 5e-7
    np.testing.assert_allclose(stats.mean, 0.1 * want.mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(stats.var, 0.9 + 0.1 * want.var, rtol=1e-6)


@exact
@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 1, 1), (1, 4, 1), (1, 1, 5), (4, 1), (5,)])
def test_masks_of_any_shape_hide_nan(shape):
    rng = np.random.default_rng(1)
    mask = rng.random(shape) < 0.6
    x = np.where(mask, rng.normal(2, 3, (6, 4, 5)), np.nan).astype(np.float32)
    y, stats, scale, bias = run(x, mask=mask)
    want = testing.batch_norm_forward(x, scale, bias, mask=mask)
    assert testing.relative_error(y, want.y) < 1e-6  # bias where nan was masked
    assert np.isfinite(stats.mean).all() and np.isfinite(stats.var).all()


@exact
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_a_masked_entry_that_is_not_finite_is_bias_to_the_last_bit(offset):
    # The part of the mean below its last bit must not show where x plays no part.
    rng = np.random.default_rng(11)
    x = rng.normal(offset, 1, (33, 3)).astype(np.float32)
    x[::5] = np.nan
    y, _, _, bias = run(x, mask=np.isfinite(x))
    np.testing.assert_array_equal(y[::5], np.broadcast_to(bias, (7, 3)))


def test_finite_masked_entries_are_normalised_like_the_rest():
    x = np.random.default_rng(2).normal(2, 3, (8, 3)).astype(np.float32)
    mask = np.arange(8)[:, None] < 5
    y, _, scale, bias = run(x, mask=mask)
    x_hat = (x - x[:5].mean(0)) / np.sqrt(x[:5].var(0) + 1e-5)
    np.testing.assert_allclose(y, x_hat * scale + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fill", [0.0, 300.0, np.nan, np.inf])
def test_all_masked_is_finite_and_leaves_the_state(fill):
    x = np.full((4, 3), fill, np.float16)
    y, stats, _, bias = run(x, mask=np.zeros((4, 1), bool))
    np.testing.assert_array_equal(y, np.broadcast_to(bias, (4, 3)).astype(np.float16))
    jax.tree.map(np.testing.assert_array_equal, stats, bnjax.init_batch_stats(3))


@pytest.mark.parametrize("shape", [(0, 3), (0, 28, 28, 3), (4, 0, 3)])
@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 2}])
def test_empty_batch_leaves_the_state(shape, options):
    y, stats, *_ = run(np.zeros(shape, np.float32), **options)
    assert y.shape == shape
    jax.tree.map(np.testing.assert_array_equal, stats, bnjax.init_batch_stats(3))


@exact
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e4 / 3, 1e8 / 3, -7e20, 3e-30])
@pytest.mark.parametrize(
    ("size", "jit"),
    [(2, True), (7, False), (7, True), (1000, True), (100_003, False), (100_003, True)],
)
def test_constant_features_give_exactly_bias_and_finite_gradients(value, size, jit):
    x = jnp.full((size, 3), value, jnp.float32)
    scale, bias = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.1, 0.0, -7.0])
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(size, 3)), jnp.float32)

    def loss(x):
        y, _ = bnjax.batch_norm(x, scale, bias, bnjax.init_batch_stats(3), train=True)
        return jnp.sum(weights * y), y

    fn = jax.grad(loss, has_aux=True)
    grad, y = (jax.jit(fn) if jit else fn)(x)
    np.testing.assert_array_equal(y, np.broadcast_to(np.float32([0.1, 0, -7]), (size, 3)))
    assert np.isfinite(grad).all()


@exact
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_output_is_the_rounded_oracle(dtype):
    x = jnp.asarray(np.random.default_rng(4).normal(5, 0.5, (200, 6)), dtype)
    y, stats, scale, bias = run(x)
    want = testing.batch_norm_forward(np.asarray(x, np.float64), scale, bias).y
    assert y.dtype == dtype and stats.mean.dtype == stats.var.dtype == jnp.float32
    # One rounding: within half a unit in the last place, and a float32 error before it.
    ulp = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), want, rtol=ulp / 2 + 1e-5, atol=1e-6)


@exact
def test_dtype_of_the_output_can_be_chosen():
    x = jnp.ones((4, 2), jnp.bfloat16) * jnp.arange(4).astype(jnp.bfloat16)[:, None]
    y, _ = bnjax.batch_norm(x, None, None, bnjax.init_batch_stats(2), train=True, dtype=jnp.float32)
    want = testing.batch_norm_forward(np.asarray(x, np.float64), None, None).y
    assert y.dtype == jnp.float32 and testing.relative_error(y, want) < 1e-6


@exact
def test_float64(x64):
    x = np.random.default_rng(5).normal(1e4, 1, (50, 3))
    stats = bnjax.init_batch_stats(3, jnp.float64)
    y, stats = bnjax.batch_norm(x, None, None, stats, train=True, decay=0.0)
    want = testing.batch_norm_forward(x, None, None)
    assert y.dtype == stats.mean.dtype == jnp.float64
    assert testing.relative_error(y, want.y) < 1e-14
    np.testing.assert_allclose(stats.var, want.var, rtol=1e-13)


@exact
def test_complex64():
    rng = np.random.default_rng(6)
    x = (rng.normal(3, 1, (50, 3)) + 1j * rng.normal(-2, 4, (50, 3))).astype(np.complex64)
    scale, bias = rng.normal(size=(2, 3)).astype(np.float32)
    stats = bnjax.init_batch_stats(3, jnp.complex64)
    y, stats = bnjax.batch_norm(x, scale, bias, stats, train=True, decay=0.0)
    want = testing.batch_norm_forward(x, scale, bias)
    assert (y.dtype, stats.mean.dtype, stats.var.dtype) == ("complex64", "complex64", "float32")
    assert testing.relative_error(y, want.y) < 1e-6
    assert testing.relative_error(stats.mean, want.mean) < 1e-6
    assert testing.relative_error(stats.var, want.var) < 1e-6


@exact
def test_evaluation_uses_the_running_statistics_and_returns_them_untouched():
    x = np.random.default_rng(8).normal(2, 3, (6, 4)).astype(np.float32)
    stats = bnjax.BatchStats(jnp.arange(4.0), jnp.arange(1.0, 5.0), jnp.array(3))
    y, after, scale, bias = run(x, train=False, stats=stats)
    assert after is stats
    want = (x - np.arange(4)) / np.sqrt(np.arange(1, 5) + 1e-5) * scale + bias
    assert testing.relative_error(y, want) < 5e-7


def test_which_statistics_normalise_and_whether_they_move_are_two_choices():
    x = np.random.default_rng(9).normal(2, 3, (6, 4)).astype(np.float32)
    start = bnjax.BatchStats(jnp.ones(4), jnp.full(4, 2.0), jnp.array(3))
    (y_batch, moved, *_), (y_run, kept, *_) = (
        run(x, train=train, stats=start) for train in (True, False)
    )
    y, stats, *_ = run(x, train=True, update_stats=False, stats=start)
    np.testing.assert_array_equal(y, y_batch)
    assert stats is start and kept is start
    y, stats, *_ = run(x, train=False, update_stats=True, stats=start)
    np.testing.assert_array_equal(y, y_run)
    jax.tree.map(np.testing.assert_array_equal, stats, moved)
    assert moved.count == 4


def test_never_updated_statistics_are_noticed_in_evaluation():
    x, stats = jnp.ones((2, 3)), bnjax.init_batch_stats(3)
    with pytest.warns(UserWarning, match="never been updated"):
        bnjax.batch_norm(x, None, None, stats, train=False)
    y, _ = jax.jit(lambda s: bnjax.batch_norm(x, None, None, s, train=False, unseen="nan"))(stats)
    assert np.isnan(y).all()
    y, _ = bnjax.batch_norm(x, None, None, stats, train=False, unseen="allow")
    np.testing.assert_allclose(y, 1, rtol=1e-5)
    seen = stats._replace(count=jnp.array(1))
    y, _ = bnjax.batch_norm(x, None, None, seen, train=False, unseen="nan")
    np.testing.assert_allclose(y, 1, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3)])
def test_one_value_a_feature_must_be_a_choice(shape):
    # pytorch#4534, tensorflow#34062.
    x, stats = jnp.ones(shape), bnjax.BatchStats(jnp.zeros(3), jnp.ones(3) * 4, jnp.array(1))
    args = (x, None, jnp.ones(3), stats)
    with pytest.raises(ValueError, match=r"one value a feature.*'running'.*'allow'"):
        jax.eval_shape(lambda: bnjax.batch_norm(*args, train=True))
    with pytest.warns(UserWarning, match="one value a feature"):
        bnjax.batch_norm(*args, train=True, single_value="warn")
    y, after = bnjax.batch_norm(*args, train=True, single_value="allow")
    np.testing.assert_array_equal(y, np.ones(shape))
    assert after.count == 2
    y, after = bnjax.batch_norm(*args, train=True, single_value="running")
    np.testing.assert_allclose(y, np.full(shape, 1.5), rtol=1e-5)
    assert after is stats


@exact
def test_one_value_on_each_of_several_devices_is_fine():
    x = jnp.arange(8.0).reshape(8, 1, 1)
    stats = bnjax.init_batch_stats(1)
    fn = lambda x: bnjax.batch_norm(x, None, None, stats, train=True, axis_name="i")[0]  # noqa: E731
    y = jax.vmap(fn, axis_name="i")(x)
    assert (
        testing.relative_error(
            y.reshape(8, 1), testing.batch_norm_forward(np.arange(8.0).reshape(8, 1), None, None).y
        )
        < 1e-6
    )


def test_the_emitted_state_carries_no_gradient():
    def loss(x):
        _, stats = bnjax.batch_norm(x, None, None, bnjax.init_batch_stats(2), train=True)
        return stats.mean.sum() + stats.var.sum()

    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(jax.grad(loss)(x), jnp.zeros_like(x))


def test_a_second_call_does_not_trace_again():
    traces = []

    @jax.jit
    def step(x, stats):
        traces.append(1)
        return bnjax.batch_norm(x, None, None, stats, train=True)

    stats = bnjax.init_batch_stats(3)
    for _ in range(3):
        _, stats = step(jnp.ones((4, 3)), stats)
    assert len(traces) == 1 and stats.count == 3


GOOD = (np.ones((4, 3), np.float32), np.ones(3), np.zeros(3), bnjax.init_batch_stats(3))


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        ({0: np.ones((4, 3), int)}, {}, TypeError, "x must be floating point"),
        ({1: np.ones(4)}, {}, ValueError, r"scale has shape \(4,\).*\(3,\)"),
        ({2: np.ones((1, 3))}, {}, ValueError, r"bias has shape \(1, 3\)"),
        ({3: bnjax.init_batch_stats(4)}, {}, ValueError, r"batch_stats.mean has shape \(4,\)"),
        ({3: bnjax.init_batch_stats(4)}, {"train": False}, ValueError, "batch_stats.mean"),
        ({}, {"axis": 2}, ValueError, "axis=2 is out of range"),
        ({}, {"axis": (1, -1)}, ValueError, "twice"),
        ({}, {"decay": 1.5}, ValueError, "PyTorch's momentum=0.1 is decay=0.9"),
        ({}, {"epsilon": -1.0}, ValueError, "epsilon must be"),
        ({}, {"ddof": 3}, ValueError, "ddof must be 0"),
        ({}, {"mask": np.ones((4, 1))}, TypeError, "mask must be boolean"),
        ({}, {"mask": np.ones((3, 1), bool)}, ValueError, "mask of shape"),
        ({3: {"mean": 0}}, {}, TypeError, "must be a bnjax.BatchStats, got dict"),
        ({}, {"decay": "0.9"}, ValueError, "decay"),
        ({}, {"decay": np.float32(1.5)}, ValueError, "decay"),
        ({}, {"decay": np.full(3, 0.9)}, ValueError, "decay"),
        ({}, {"train": "eval"}, TypeError, "train must be True or False, got 'eval'"),
        ({}, {"dtype": jnp.int32}, ValueError, "dtype must be inexact"),
        ({}, {"virtual_batch_size": 0}, ValueError, "virtual_batch_size must be"),
        ({}, {"virtual_batch_size": 1.5}, TypeError, "virtual_batch_size must be an int"),
        ({}, {"virtual_batch_size": 2, "axis": 0}, ValueError, "cuts axis 0"),
        ({}, {"single_value": "no"}, ValueError, "single_value must be one of 'error'"),
        ({}, {"unseen": "no"}, ValueError, "unseen must be one of 'warn'"),
    ],
)
def test_bad_input_is_named_at_trace_time(change, options, error, words):
    args = [change.get(i, a) for i, a in enumerate(GOOD)]
    if options.get("axis") == 0:
        args[1:] = [np.ones(4), np.ones(4), bnjax.init_batch_stats(4)]
    with pytest.raises(error, match=words):
        jax.eval_shape(lambda: bnjax.batch_norm(*args, **{"train": True, **options}))


def test_traced_train_is_explained():
    with pytest.raises(TypeError, match=r"train must be a Python bool.*static"):
        jax.jit(lambda t: bnjax.batch_norm(*GOOD, train=t))(True)


def test_a_typo_in_axis_name_is_an_error():
    with pytest.raises(NameError, match="unbound axis name: devcies"):
        bnjax.batch_norm(*GOOD, train=True, axis_name="devcies")


def test_numpy_scalars_are_numbers():
    y, stats = bnjax.batch_norm(
        GOOD[0], None, None, bnjax.init_batch_stats(np.int64(3)), train=np.bool_(True),
        decay=np.float32(0.9), epsilon=np.float32(1e-5), ddof=np.int64(1),
        virtual_batch_size=np.int64(2),
    )  # fmt: skip
    assert y.shape == (4, 3) and stats.count == 1


def test_a_traced_epsilon_is_explained():
    with pytest.raises(TypeError, match="epsilon must be a number known at trace time"):
        jax.jit(lambda e: bnjax.batch_norm(*GOOD, train=True, epsilon=e))(1e-5)


def test_export_with_a_symbolic_batch():
    (b,) = jax.export.symbolic_shape("b")
    fn = jax.jit(lambda x: bnjax.batch_norm(x, *GOOD[1:], train=True))
    exported = jax.export.export(fn)(jax.ShapeDtypeStruct((b, 3), jnp.float32))
    x = np.random.default_rng(10).normal(5, 2, (40, 3)).astype(np.float32)
    y, _ = exported.call(x)
    want, _ = fn(x)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def test_decays_are_one_program():
    """Numbers and schedules alike: each new program would cost a second of compilation."""
    compiled = []
    stats = bnjax.init_batch_stats(7)

    def run(decay):
        return bnjax.batch_norm(jnp.ones((5, 7)), None, None, stats, train=True, decay=decay)

    run(0.9), run(jnp.float32(0.9))
    listen = lambda event, seconds, **_: compiled.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for decay in (0.5, 0.99, 1, np.float32(0.25), jnp.float32(0.75)):
            run(decay)
        assert not [event for event in compiled if "backend_compile" in event]
        run(None)  # the listener hears what there is to hear
        assert [event for event in compiled if "backend_compile" in event]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
