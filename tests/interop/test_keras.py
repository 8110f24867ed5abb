"""Keras's names and layouts, as far as they need no Keras: weights by path as NumPy arrays."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnjax.interop import from_keras, to_keras

NORM = {
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
RENAME = [(r"batch_normalization(_\d+)?$", r"norm\1")]


@given(features=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 2**32 - 1))
def test_round_trip_of_random_norms(features, seed):
    rng = np.random.default_rng(seed)
    weights, variables, want = {}, {"params": {}, "batch_stats": {}}, {}
    for i, n in enumerate(features):
        for leaf, (collection, ours) in NORM.items():
            x = rng.normal(size=n).astype(np.float32)
            weights[f"block/batch_normalization_{i}/{leaf}"] = x
            block = variables[collection].setdefault("block", {})
            block.setdefault(f"norm_{i}", {})[ours] = jax.ShapeDtypeStruct(x.shape, x.dtype)
            want[collection, f"norm_{i}", ours] = x
    new = from_keras(weights, variables, RENAME)
    for (collection, layer, leaf), x in want.items():
        np.testing.assert_array_equal(new[collection]["block"][layer][leaf], x)
    again = to_keras(new, weights, RENAME)
    assert list(again) == list(weights)
    jax.tree.map(np.testing.assert_array_equal, again, weights)


@given(
    shape=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    kind=st.sampled_from(["kernel", "transposed", "depthwise"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_of_kernels(shape, kind, seed):
    kernel = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    h, w, i, o = shape
    ours = {"kernel": shape, "transposed": (h, w, o, i), "depthwise": (h, w, 1, i * o)}[kind]
    variables = {"params": {"c": {"kernel": jax.ShapeDtypeStruct(tuple(ours), np.float32)}}}
    options = {} if kind == "kernel" else {kind: "^c$"}
    new = from_keras({"c/kernel": kernel}, variables, **options)
    again = to_keras(new, {"c/kernel": kernel}, **options)
    np.testing.assert_array_equal(again["c/kernel"], kernel)


def test_a_depthwise_kernel_is_refused_unless_named():
    kernel = {"c/kernel": np.zeros((3, 3, 4, 2))}
    variables = {"params": {"c": {"kernel": np.zeros((3, 3, 1, 8))}}}
    with pytest.raises(ValueError, match=r"\(3, 3, 4, 2\), but params/c/kernel is \(3, 3, 1, 8\)"):
        from_keras(kernel, variables)
    with pytest.raises(ValueError, match="depthwise='bn' is found in no layer"):
        from_keras(kernel, variables, depthwise="bn")


def test_all_that_does_not_fit_is_listed_in_one_error():
    weights = {"bn/gamma": np.ones(2), "sep/depthwise_kernel": np.ones((3, 3, 4, 1))}
    variables = {"params": {"bn": {"scale": np.ones(3)}, "fc": {"kernel": np.ones((2, 2))}}}
    with pytest.raises(ValueError) as error:
        from_keras(weights, variables)
    for part in (
        "sep/depthwise_kernel (no params/sep/depthwise_kernel)",
        "leaves of variables missing in keras: params/fc/kernel",
        "bn/gamma (2,), but params/bn/scale is (3,)",
    ):
        assert part in str(error.value)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"must be a model or arrays by path, got list"):
        from_keras([np.ones(2)], {"params": {}})
