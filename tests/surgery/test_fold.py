"""Folding of arrays, against a float64 convolution and norm in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnjax import BatchStats
from bnjax.surgery import fold_into_next, fold_into_previous

DTYPES = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}


def convolve(x, kernel, bias, groups, stride):
    """A convolution without padding of (n, length, in) with (size, in / groups, out), float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[0], axis=1)[:, ::stride]
    n, length, _, size = windows.shape
    windows = windows.reshape(n, length, groups, -1, size)
    parts = kernel.reshape(size, kernel.shape[1], groups, -1)
    return np.einsum("nlgik,kigo->nlgo", windows, parts).reshape(n, length, -1) + bias


def draw_norm(rng, features):
    scale, bias = rng.normal(1, 0.5, features), rng.normal(size=features)
    return scale, bias, BatchStats(rng.normal(size=features), rng.uniform(0.1, 3, features), 0)


def norm(x, scale, bias, stats, epsilon):
    return scale * (x - stats.mean) / np.sqrt(stats.var + epsilon) + bias


def in_dtype(tree, dtype):
    # Cast by NumPy, which compiles nothing.
    return jax.tree.map(lambda v: jnp.asarray(np.asarray(v).astype(jnp.dtype(dtype))), tree)


def as_float64(tree):
    return jax.tree.map(lambda v: np.asarray(v).astype(np.float64), tree)


layers = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([1, 2, 3]),
        "inputs": st.integers(1, 3),
        "outputs": st.integers(1, 3),
        "size": st.integers(1, 3),
        "stride": st.integers(1, 2),
        "dtype": st.sampled_from(list(DTYPES)),
        "use_bias": st.booleans(),
        "epsilon": st.sampled_from([1e-5, 1e-2]),
    }
)


@pytest.mark.parametrize("side", ["previous", "next"])
@given(layers)
def test_folded_is_layer_and_norm(side, layer):
    rng = np.random.default_rng(0)
    groups, dtype, epsilon = layer["groups"], layer["dtype"], layer["epsilon"]
    inputs, outputs = groups * layer["inputs"], groups * layer["outputs"]
    kernel = in_dtype(rng.normal(size=(layer["size"], layer["inputs"], outputs)), dtype)
    bias = in_dtype(rng.normal(size=outputs), dtype) if layer["use_bias"] else None
    of_norm = draw_norm(rng, outputs if side == "previous" else inputs)
    fold = fold_into_previous if side == "previous" else fold_into_next
    new = fold(
        kernel, bias, *in_dtype(of_norm, "float32"), epsilon=epsilon, feature_group_count=groups
    )
    assert new[0].dtype == new[1].dtype == dtype and new[1].shape == (outputs,)

    x, run = rng.normal(size=(2, 7, inputs)), (groups, layer["stride"])
    exact = as_float64(kernel), np.zeros(()) if bias is None else as_float64(bias)
    if side == "previous":
        want = norm(convolve(x, *exact, *run), *of_norm, epsilon)
    else:
        want = convolve(norm(x, *of_norm, epsilon), *exact, *run)
    got = convolve(x, *as_float64(new), *run)
    np.testing.assert_allclose(got, want, atol=DTYPES[dtype] * 10, rtol=DTYPES[dtype])


@pytest.mark.parametrize("fold", [fold_into_previous, fold_into_next])
def test_the_axes_of_features_may_be_anywhere(fold, rng):
    features = {fold_into_previous: 5, fold_into_next: 4}[fold]
    kernel, bias = in_dtype((rng.normal(size=(3, 2, 4, 5)), rng.normal(size=5)), "float32")
    of_norm = in_dtype(draw_norm(rng, features), "float32")
    want = fold(kernel, bias, *of_norm)
    # PyTorch's order, and that of a transposed kernel.
    for order, axes in (((3, 2, 0, 1), (1, 0)), ((0, 1, 3, 2), (-1, -2))):
        got = fold(kernel.transpose(order), bias, *of_norm, in_axis=axes[0], out_axis=axes[1])
        np.testing.assert_array_equal(got[0], want[0].transpose(order))
        np.testing.assert_allclose(got[1], want[1], rtol=1e-5)


@pytest.mark.parametrize("side", ["previous", "next"])
def test_grouped_transposed_kernels_of_pytorch(side, rng):
    """(in, out / groups, size), of one position: each group maps its inputs to its outputs."""
    groups, kernel, x = 2, rng.normal(size=(6, 5, 1)), rng.normal(size=(4, 6))
    bias = rng.normal(size=10)

    def run(x, kernel, bias):
        parts = kernel[..., 0].reshape(groups, 3, 5)
        y = np.einsum("ngi,gio->ngo", x.reshape(-1, groups, 3), parts)
        return y.reshape(len(x), -1) + bias

    of_norm = draw_norm(rng, 10 if side == "previous" else 6)
    fold = fold_into_previous if side == "previous" else fold_into_next
    new = fold(
        *in_dtype((kernel, bias, *of_norm), "float32"),
        in_axis=0,
        out_axis=1,
        feature_group_count=groups,
    )
    if side == "previous":
        want = norm(run(x, kernel, bias), *of_norm, 1e-5)
    else:
        want = run(norm(x, *of_norm, 1e-5), kernel, bias)
    np.testing.assert_allclose(run(x, *as_float64(new)), want, rtol=1e-4, atol=1e-5)


def test_grouped_transposed_kernels_of_pytorch_without_a_bias(rng):
    kernel = rng.normal(size=(6, 5, 1))
    of_norm = draw_norm(rng, 6)
    options = {"in_axis": 0, "out_axis": 1, "feature_group_count": 2}
    with_zeros = fold_into_next(*in_dtype((kernel, np.zeros(10), *of_norm), "float32"), **options)
    without = fold_into_next(
        jnp.asarray(kernel, jnp.float32), None, *in_dtype(of_norm, "float32"), **options
    )
    np.testing.assert_array_equal(without[1], with_zeros[1])


@pytest.mark.parametrize("fold", [fold_into_previous, fold_into_next])
def test_norms_without_scale_or_bias(fold, rng):
    kernel, stats = rng.normal(size=(3, 3)), draw_norm(rng, 3)[2]
    got = fold(jnp.asarray(kernel, jnp.float32), None, None, None, in_dtype(stats, "float32"))
    full = in_dtype((np.ones(3), np.zeros(3), stats), "float32")
    for a, b in zip(got, fold(jnp.asarray(kernel, jnp.float32), None, *full), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rounded_once_from_float32(rng):
    kernel = in_dtype(rng.normal(size=(40, 30)), "bfloat16")
    of_norm = draw_norm(rng, 30)
    got, _ = fold_into_previous(kernel, None, *in_dtype(of_norm, "float32"))
    exact = as_float64(kernel) * of_norm[0] / np.sqrt(of_norm[2].var + 1e-5)
    nearest = jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16)
    # But for ties, which a last bit of float32 decides.
    assert float((got == nearest).mean()) > 0.99


def test_float64_stays_float64(x64, rng):
    kernel, of_norm = rng.normal(size=(4, 5)), draw_norm(rng, 5)
    got, _ = fold_into_previous(kernel, None, *of_norm)
    np.testing.assert_allclose(
        got, kernel * of_norm[0] / np.sqrt(of_norm[2].var + 1e-5), rtol=1e-14
    )


def test_complex_weights_stay_complex(rng):
    kernel = (rng.normal(size=(3, 2)) + 1j * rng.normal(size=(3, 2))).astype(np.complex64)
    stats = BatchStats(np.array([1 + 2j, 3j], np.complex64), np.array([4.0, 0.25], np.float32), 0)
    got, bias = fold_into_previous(kernel, None, None, None, stats, epsilon=0.0)
    np.testing.assert_allclose(got, kernel * np.array([0.5, 2]), rtol=1e-6)
    np.testing.assert_allclose(bias, [-0.5 - 1j, -6j], rtol=1e-6)


@pytest.mark.parametrize("fold", [fold_into_previous, fold_into_next])
def test_what_float16_cannot_hold_is_an_error(fold):
    stats = BatchStats(jnp.zeros(2), jnp.full(2, 1e-8), 0)
    kernel = jnp.full((2, 2), 300.0, jnp.float16)
    with pytest.raises(ValueError, match=r"kernel folded reaches .* not finite in float16"):
        fold(kernel, None, None, None, stats, epsilon=1e-8)
    assert fold(kernel.astype(jnp.bfloat16), None, None, None, stats)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel": jnp.ones((3, 5))}, r"batch_stats have 4 features, which axis 1"),
        ({"bias": jnp.ones(5)}, r"bias must have shape \(4,\), got \(5,\)"),
        ({"scale": jnp.ones((1, 4))}, r"scale must have shape \(4,\)"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"in_axis": 3}, r"in_axis, out_axis\)=.*out of range"),
        ({"in_axis": -1}, "names an axis twice"),
        ({"feature_group_count": 0, "kernel": jnp.ones((3, 5))}, "feature_group_count must be"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    given = {"kernel": jnp.ones((3, 4)), "bias": None, "scale": None, "norm_bias": None}
    given["batch_stats"] = BatchStats(jnp.zeros(4), jnp.ones(4), 0)
    with pytest.raises(ValueError, match=words):
        fold_into_previous(**{**given, **changes})
