"""The oracle against finite differences, against PyTorch in float64, and against its own laws."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnjax.testing import _oracle as oracle
from bnjax.testing import relative_error

GOLDEN = Path(__file__).parents[1] / "golden" / "torch.npz"
CASES = ("dense", "nhwc", "nchw", "sequence")
MASKS = ("no mask", "entries", "examples", "empty channel")
SHAPE, AXIS = (4, 3, 5), 1
STEP = 1e-5  # central differences in 80 bits: error about STEP**2, far below the tolerance


def draw(rng, shape, complex_input):
    real = rng.normal(size=shape)
    return real + 1j * rng.normal(size=shape) if complex_input else real


def make_mask(kind, rng):
    if kind == "no mask":
        return None
    if kind == "examples":
        return np.array([True, False, True, True]).reshape(4, 1, 1)
    mask = rng.uniform(size=SHAPE) < 0.6
    if kind == "empty channel":
        mask[:, 1] = False
    return mask


def problem(kind, complex_input, seed=0):
    """Inputs, tangents in all of them, and cotangents for y, mean and var."""
    rng = np.random.default_rng(seed)
    mask = make_mask(kind, rng)
    primals = draw(rng, SHAPE, complex_input), rng.normal(size=3), rng.normal(size=3)
    tangents = draw(rng, SHAPE, complex_input), rng.normal(size=3), rng.normal(size=3)
    shapes = (SHAPE, complex_input), ((3,), complex_input), ((3,), False)
    cotangents = tuple(draw(rng, *shape) for shape in shapes)
    return primals, tangents, cotangents, mask


def forward(primals, mask, **options):
    return oracle.batch_norm_forward(*primals, axis=AXIS, mask=mask, **options)


def pairing(cotangents, tangents):
    return sum(np.sum(c * t).real for c, t in zip(cotangents, tangents, strict=True))


# --- Derivatives -------------------------------------------------------------------------------


@pytest.mark.parametrize("complex_input", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("kind", MASKS)
def test_jvp_is_the_central_difference(kind, complex_input):
    primals, tangents, _, mask = problem(kind, complex_input)
    tangent = oracle.batch_norm_jvp(*tangents, forward(primals, mask).cache)
    there, back = (
        forward([p + sign * STEP * t for p, t in zip(primals, tangents, strict=True)], mask)
        for sign in (1, -1)
    )
    for got, plus, minus in zip(tangent, there[:3], back[:3], strict=True):
        assert relative_error(got, (plus - minus) / (2 * STEP)) < 1e-8


@pytest.mark.parametrize("complex_input", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("kind", MASKS)
def test_backward_is_the_central_difference_entry_by_entry(kind, complex_input):
    primals, _, (dy, dmean, dvar), mask = problem(kind, complex_input)
    grads = oracle.batch_norm_backward(dy, forward(primals, mask).cache, dmean=dmean, dvar=dvar)

    def loss(*primals):
        return pairing((dy, dmean, dvar), forward(primals, mask)[:3])

    for which, got in enumerate(grads):
        assert relative_error(got, numerical_gradient(loss, primals, which)) < 1e-8


def numerical_gradient(loss, primals, which):
    """Real part along 1; for complex inputs, minus the derivative along i as imaginary part."""
    want = np.zeros_like(primals[which])
    for index in np.ndindex(want.shape):
        for unit, part in ((1, 1), (1j, -1j))[: 2 if np.iscomplexobj(want) else 1]:
            moved = [list(primals), list(primals)]
            for sign, values in zip((1, -1), moved, strict=True):
                values[which] = values[which].copy()
                values[which][index] += sign * STEP * unit
            want[index] += part * (loss(*moved[0]) - loss(*moved[1])) / (2 * STEP)
    return want


@pytest.mark.parametrize("complex_input", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("kind", MASKS)
def test_backward_is_the_transpose_of_jvp(kind, complex_input):
    primals, tangents, (dy, dmean, dvar), mask = problem(kind, complex_input)
    cache = forward(primals, mask).cache
    grads = oracle.batch_norm_backward(dy, cache, dmean=dmean, dvar=dvar)
    along = oracle.batch_norm_jvp(*tangents, cache)
    assert np.isclose(pairing(grads, tangents), pairing((dy, dmean, dvar), along), rtol=1e-12)


def test_backward_is_the_usual_formula_without_a_mask():
    (x, scale, bias), _, (dy, _, _), _ = problem("no mask", complex_input=False)
    result = forward((x, scale, bias), None)
    x_hat = oracle.normalize(x, result.mean, result.var, axis=AXIS)
    dx_hat = dy * scale[:, None]
    mean = {"axis": (0, 2), "keepdims": True}
    inner = dx_hat - dx_hat.mean(**mean) - x_hat * (dx_hat * x_hat).mean(**mean)
    want = inner / np.sqrt(result.var[:, None] + 1e-5)
    dx, dscale, dbias = oracle.batch_norm_backward(dy, result.cache)
    assert relative_error(dx, want) < 1e-14
    assert relative_error(dscale, (dy * x_hat).sum((0, 2))) < 1e-14
    assert relative_error(dbias, dy.sum((0, 2))) < 1e-14


def test_without_scale_or_bias_they_have_no_gradient():
    (x, _, _), _, (dy, _, _), _ = problem("no mask", complex_input=False)
    plain = forward((x, None, None), None)
    ones = forward((x, np.ones(3), np.zeros(3)), None)
    assert np.array_equal(plain.y, ones.y)
    dx, dscale, dbias = oracle.batch_norm_backward(dy, plain.cache)
    assert dscale is None and dbias is None
    assert np.array_equal(dx, oracle.batch_norm_backward(dy, ones.cache)[0])


def test_two_kept_axes_are_as_many_channels():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 6, 4, 3, 5))
    scale, bias = rng.normal(size=(2, 4, 5))
    both = oracle.batch_norm_forward(x, scale, bias, axis=(1, 3))
    merged = x.swapaxes(1, 2).reshape(6, 3, 20)
    one = oracle.batch_norm_forward(merged, scale.ravel(), bias.ravel())
    assert relative_error(both.y.swapaxes(1, 2).reshape(6, 3, 20), one.y) < 1e-15
    assert both.mean.shape == both.count.shape == (4, 5)
    dx = oracle.batch_norm_backward(dy, both.cache)[0].swapaxes(1, 2).reshape(6, 3, 20)
    dmerged = dy.swapaxes(1, 2).reshape(6, 3, 20)
    assert relative_error(dx, oracle.batch_norm_backward(dmerged, one.cache)[0]) < 1e-14


# --- PyTorch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_pytorch_in_float64(case):
    with np.load(GOLDEN) as file:
        vectors = {k.split("/")[1]: v for k, v in file.items() if k.startswith(case + "/")}
    axis, decay, epsilon, ddof, debias = vectors["conventions"]
    options = {"axis": int(axis), "epsilon": epsilon}
    scale, bias = vectors["scale"], vectors["bias"]
    first = oracle.batch_norm_forward(vectors["x"][0], scale, bias, **options)
    grads = oracle.batch_norm_backward(vectors["dy"], first.cache)
    got = dict(zip(("y", "dx", "dscale", "dbias"), (first.y, *grads), strict=True))
    stats = np.zeros_like(scale), np.ones_like(scale), 0
    for step, x in enumerate(vectors["x"], start=1):
        batch = oracle.batch_norm_forward(x, scale, bias, **options)
        stats = oracle.update_batch_stats(
            *stats, *batch[1:4], decay=decay, ddof=int(ddof), debias=bool(debias)
        )
        got |= {f"mean_{step}": stats[0], f"var_{step}": stats[1]}
    x_hat = oracle.normalize(vectors["x"][0], *stats[:2], **options)
    got["y_eval"] = oracle.scale_shift(x_hat, scale, bias, axis=int(axis))
    for key in ("y", "dx", "dscale", "dbias", "mean_1", "var_1", "mean_3", "var_3", "y_eval"):
        assert relative_error(got[key], vectors[key]) < 1e-12, key


# --- Masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["entries", "examples"])
def test_masked_entries_take_no_part_in_the_statistics(kind):
    (x, scale, bias), _, _, mask = problem(kind, complex_input=False)
    result = forward((x, scale, bias), mask)
    full = np.broadcast_to(mask, SHAPE)
    for channel in range(3):
        kept = x[:, channel][full[:, channel]]
        assert result.count[channel] == kept.size
        assert np.isclose(result.mean[channel], kept.mean(), rtol=1e-14)
        assert np.isclose(result.var[channel], kept.var(), rtol=1e-14)
    want = (x - result.mean[:, None]) / np.sqrt(result.var[:, None] + 1e-5)
    assert relative_error(result.y, want * scale[:, None] + bias[:, None]) < 1e-14


@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf])
def test_masked_non_finite_entries_output_bias_and_get_no_gradient(filler):
    (x, scale, bias), tangents, (dy, _, _), mask = problem("entries", complex_input=False)
    spoilt = np.where(mask, x, filler)
    clean, result = (forward((v, scale, bias), mask) for v in (x, spoilt))
    assert np.array_equal(result.y[mask], clean.y[mask])
    biases = np.broadcast_to(bias[:, None], SHAPE)
    assert np.array_equal(result.y[~mask], biases[~mask])
    dx, dscale, dbias = oracle.batch_norm_backward(dy, result.cache)
    # The same loss without these entries; they hand their cotangent to the bias alone.
    want = oracle.batch_norm_backward(np.where(mask, dy, 0), clean.cache)
    assert np.array_equal(dx, want[0]) and not dx[~mask].any()
    assert np.array_equal(dscale, want[1])
    assert np.allclose(dbias, dy.sum((0, 2)), rtol=1e-14)
    tangent = oracle.batch_norm_jvp(*tangents, result.cache)[0]
    assert np.array_equal(tangent[~mask], np.broadcast_to(tangents[2][:, None], SHAPE)[~mask])


def test_channel_without_valid_entry_outputs_bias():
    primals, _, (dy, _, _), mask = problem("empty channel", complex_input=False)
    result = forward(primals, mask)
    assert result.count[1] == result.mean[1] == result.var[1] == 0
    assert np.array_equal(result.y[:, 1], np.full((4, 5), primals[2][1]))
    dx, dscale, dbias = oracle.batch_norm_backward(dy, result.cache)
    assert not dx[:, 1].any() and dscale[1] == 0
    assert np.isclose(dbias[1], dy[:, 1].sum())


def test_valid_nan_is_not_hidden():
    (x, scale, bias), _, _, mask = problem("entries", complex_input=False)
    where = tuple(np.argwhere(mask)[0])
    x[where] = np.nan
    result = forward((x, scale, bias), mask)
    assert np.isnan(result.y[:, where[1]]).any() and np.isnan(result.mean[where[1]])
    others = [c for c in range(3) if c != where[1]]
    assert np.isfinite(result.y[:, others]).all()


# --- Laws --------------------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(2, 9), st.integers(1, 5))


@given(seeds, sizes, st.floats(-1e3, 1e3), st.floats(0.1, 10) | st.floats(-10, -0.1))
def test_output_ignores_the_location_and_scale_of_x(seed, size, shift, factor):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size)
    y, mean, var, *_ = oracle.batch_norm_forward(x, None, None, epsilon=0.0)
    moved = oracle.batch_norm_forward(factor * x + shift, None, None, epsilon=0.0)
    # Input is rounded to float64 after the shift, which is all the error there is.
    noise = 1e-15 * (1 + abs(shift / factor)) / np.sqrt(var.min())
    assert np.allclose(moved.y, np.sign(factor) * y, atol=50 * noise)
    assert np.allclose(moved.mean, factor * mean + shift, rtol=1e-12, atol=1e-12)
    assert np.allclose(moved.var, factor**2 * var, rtol=1e-6, atol=1e-12)


@given(seeds, sizes)
def test_output_has_mean_bias_and_the_variance_that_epsilon_leaves(seed, size):
    rng = np.random.default_rng(seed)
    scale, bias = rng.normal(size=(2, size[-1]))
    y, _, var, *_ = oracle.batch_norm_forward(rng.normal(size=size), scale, bias, epsilon=0.1)
    assert np.allclose(y.mean(0), bias, atol=1e-13)
    assert np.allclose(y.var(0), scale**2 * var / (var + 0.1), atol=1e-13)


@given(seeds, sizes)
def test_gradient_is_orthogonal_to_ones_and_to_x_hat(seed, size):
    rng = np.random.default_rng(seed)
    x, dy = rng.normal(size=(2, *size))
    scale, bias = rng.normal(size=(2, size[-1]))
    result = oracle.batch_norm_forward(x, scale, bias, epsilon=0.0)
    dx = oracle.batch_norm_backward(dy, result.cache)[0]
    size_of_dx = np.abs(dx).sum(0) + np.abs(dy).sum(0) / np.sqrt(result.var)
    assert (np.abs(dx.sum(0)) <= 1e-12 * size_of_dx).all()
    x_hat = oracle.normalize(x, result.mean, result.var, epsilon=0.0)
    assert (np.abs((dx * x_hat).sum(0)) <= 1e-11 * size_of_dx).all()


@given(seeds, sizes, st.data())
def test_moments_of_parts_merge_to_the_moments_of_the_whole(seed, size, data):
    x = 10 + np.random.default_rng(seed).normal(size=size)
    cut = data.draw(st.integers(0, size[0]))
    whole = oracle.moments(x, 0)
    parts = oracle.moments(x[:cut], 0), oracle.moments(x[cut:], 0)
    for merged in (oracle.merge(*parts), oracle.merge(*parts[::-1])):
        for got, want in zip(merged, whole, strict=True):
            assert np.allclose(got, want, rtol=1e-12, atol=1e-12)


@given(seeds, sizes)
def test_masked_batch_is_the_batch_without_these_examples(seed, size):
    rng = np.random.default_rng(seed)
    x, keep = rng.normal(size=size), rng.uniform(size=size[0]) < 0.7
    got, want = oracle.moments(x, 0, mask=keep[:, None]), oracle.moments(x[keep], 0)
    assert np.array_equal(got.count, want.count)
    assert np.allclose(got.mean, want.mean, rtol=1e-13, atol=1e-14)
    assert np.allclose(got.m2, want.m2, rtol=1e-13, atol=1e-14)


@given(seeds, st.integers(1, 6), st.sampled_from([0, 1]))
def test_identical_batches_leave_exactly_their_statistics_when_debiased(seed, steps, ddof):
    rng = np.random.default_rng(seed)
    mean, var = rng.normal(size=3), rng.uniform(0.1, 2, 3)
    for options in ({"decay": 0.9, "debias": True}, {"decay": None}):
        stats = np.zeros(3), np.ones(3), 0
        for _ in range(steps):
            stats = oracle.update_batch_stats(*stats, mean, var, 8, ddof=ddof, **options)
        assert np.allclose(stats[0], mean, rtol=1e-14)
        assert np.allclose(stats[1], var * 8 / (8 - ddof), rtol=1e-14)
        assert stats[2] == steps


def test_channels_without_data_keep_their_running_statistics():
    old, new = (np.zeros(3), np.ones(3), 5), (np.full(3, 2.0), np.full(3, 3.0))
    mean, var, count = oracle.update_batch_stats(*old, *new, np.array([4, 1, 0]), decay=0.5, ddof=1)
    assert np.array_equal(mean, [1, 0, 0]) and count == 6
    assert np.array_equal(var, [2.5, 1, 1])  # 0.5 * 1 + 0.5 * 3 * 4 / 3
    assert oracle.update_batch_stats(*old, *new, np.zeros(3))[2] == 5


def test_large_offsets_cost_the_oracle_little():
    # Eighths plus 2**20 are exact in float64; E[x**2] - E[x]**2 would be wrong by 1e-4 here.
    spread = np.random.default_rng(0).integers(-8, 9, size=(1000, 4)) / 8
    near = oracle.batch_norm_forward(spread, None, None)
    far = oracle.batch_norm_forward(spread + 2.0**20, None, None)
    assert relative_error(far.y, near.y) < 1e-9
    assert relative_error(far.var, near.var) < 1e-9


def test_relative_error_cannot_be_fooled():
    assert relative_error([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert relative_error([1e-3], [0.0]) == 1e-3
    assert np.isnan(relative_error([1.0, np.nan], [1.0, 2.0]))
    with pytest.raises(ValueError, match="must agree"):
        relative_error(np.ones(3), np.ones((3, 1)))
