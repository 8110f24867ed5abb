"""Haiku's names and layouts, as far as they need no Haiku: trees of NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnjax.interop import from_haiku, to_haiku

RENAME = [(r"^net/~/batch_norm", "norm"), ("^net/~/", "")]
DECAY = 0.9


def batch_norm(rng, features, counter, rank):
    """Parameters and state as ``hk.BatchNorm`` has them after ``counter`` updates."""
    shape = (1,) * (rank - 1) + (features,)
    params = {leaf: rng.normal(size=shape).astype(np.float32) for leaf in ("scale", "offset")}
    averages = {"mean_ema": rng.normal(size=shape), "var_ema": rng.uniform(0.5, 2, shape)}
    state = {
        f"net/~/batch_norm/~/{ema}": {
            "average": average.astype(np.float32),
            "hidden": (average * (1 - DECAY**counter)).astype(np.float32),
            "counter": np.array(counter, np.int32),
        }
        for ema, average in averages.items()
    }
    return {"net/~/batch_norm": params}, state


def template(features, count):
    leaf = jax.ShapeDtypeStruct((features,), jnp.float32)
    stats = {"mean": leaf, "var": leaf}
    if count:
        stats["count"] = jax.ShapeDtypeStruct((), jnp.int32)
    return {"params": {"norm": {"scale": leaf, "bias": leaf}}, "batch_stats": {"norm": stats}}


counters = st.integers(0, 1000)


@given(st.integers(1, 4), counters, st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_round_trip_of_a_norm_that_counts(features, counter, rank, seed):
    params, state = batch_norm(np.random.default_rng(seed), features, counter, rank)
    new = from_haiku(params, state, template(features, count=True), RENAME)
    assert new["batch_stats"]["norm"]["count"] == counter
    average = state["net/~/batch_norm/~/var_ema"]["average"]
    np.testing.assert_array_equal(new["batch_stats"]["norm"]["var"], average.reshape(-1))
    again = to_haiku(new, params, jax.tree.map(np.zeros_like, state), RENAME, decay=DECAY)
    assert jax.tree.structure(again) == jax.tree.structure((params, state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, (params, state))


@pytest.mark.parametrize("leaf", ["counter", "hidden"])
def test_averages_that_lack_what_haiku_needs_to_train_on(leaf):
    # A model that was only evaluated has no counter.
    params, state = batch_norm(np.random.default_rng(4), 3, 5, 2)
    state = {
        module: {name: x for name, x in leaves.items() if name != leaf}
        for module, leaves in state.items()
    }
    new = from_haiku(params, state, template(3, count=True), RENAME)
    count = new["batch_stats"]["norm"]["count"]
    assert isinstance(count, jax.Array) and count == (0 if leaf == "counter" else 5)
    again = to_haiku(new, params, jax.tree.map(np.zeros_like, state), RENAME, decay=DECAY)
    assert jax.tree.structure(again) == jax.tree.structure((params, state))
    for ema in ("mean_ema", "var_ema"):
        module = f"net/~/batch_norm/~/{ema}"
        np.testing.assert_array_equal(again[1][module]["average"], state[module]["average"])


def test_a_transposed_convolution_is_asked_for_by_name():
    kernel = np.random.default_rng(5).normal(size=(2, 3, 4, 4)).astype(np.float32)
    params = {"net/~/conv2_d_transpose": {"w": kernel}, "net/~/conv2_d": {"w": kernel}}
    leaf = {"kernel": np.zeros((2, 3, 4, 4))}
    variables = {"params": {"up": leaf, "conv": leaf}}
    rename = [lambda name: name.removeprefix("net/~/"), ("^conv2_d$", "conv"), ("^conv2.*", "up")]
    with pytest.raises(ValueError, match=r"transposed= must .*conv2_d_transpose/w, perhaps 1 more"):
        from_haiku(params, None, variables, rename)
    new = from_haiku(params, None, variables, rename, transposed="transpose")["params"]
    np.testing.assert_array_equal(new["up"]["kernel"], kernel.swapaxes(2, 3))
    np.testing.assert_array_equal(new["conv"]["kernel"], kernel)


def test_a_layer_norm_over_several_axes_may_have_an_axis_of_one():
    scale = np.random.default_rng(6).normal(size=(1, 1, 5, 3)).astype(np.float32)
    variables = {"params": {"norm": {"scale": jax.ShapeDtypeStruct((1, 5, 3), jnp.float32)}}}
    new = from_haiku({"norm": {"scale": scale}}, None, variables)
    np.testing.assert_array_equal(new["params"]["norm"]["scale"], scale[0])
    again, _ = to_haiku(new, {"norm": {"scale": scale}}, None)
    np.testing.assert_array_equal(again["norm"]["scale"], scale)


def test_kernels_and_biases_of_other_layers():
    rng = np.random.default_rng(0)
    arrays = {"net/~/linear": {"w": (3, 2), "b": (2,)}, "net/~/embed": {"embeddings": (5, 5)}}
    arrays["net/~/up"] = {"w": (2, 3, 4, 4)}
    params = {
        module: {leaf: rng.normal(size=shape) for leaf, shape in leaves.items()}
        for module, leaves in arrays.items()
    }
    kernel = params["net/~/up"]["w"]
    variables = {
        "params": {
            "linear": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)},
            "embed": {"embedding": np.zeros((5, 5))},
            "up": {"kernel": np.zeros((2, 3, 4, 4))},
        }
    }
    new = from_haiku(params, None, variables, RENAME, transposed="up$")["params"]
    np.testing.assert_allclose(new["up"]["kernel"], kernel.transpose(0, 1, 3, 2), rtol=1e-6)
    np.testing.assert_allclose(new["linear"]["kernel"], params["net/~/linear"]["w"], rtol=1e-6)
    np.testing.assert_allclose(new["embed"]["embedding"], params["net/~/embed"]["embeddings"])
    again, state = to_haiku({"params": new}, params, None, RENAME, transposed="up$")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, params)
    assert state == {}


def test_all_that_does_not_fit_is_listed_in_one_error():
    params, state = batch_norm(np.random.default_rng(1), 3, 5, 2)
    params |= {"other": {"w": np.ones((2, 2))}}
    state |= {"my_ema": state["net/~/batch_norm/~/mean_ema"]}
    variables = template(4, count=False)
    variables["params"]["fc"] = {"kernel": np.ones((2, 2))}
    with pytest.raises(ValueError) as error:
        from_haiku(params, state, variables, RENAME)
    for part in (
        "other/w (no params/other/kernel)",
        "my_ema/hidden (no params/my_ema/hidden)",
        "missing in haiku: params/fc/kernel",
        "net/~/batch_norm/scale (1, 3) is (3,) here, but params/norm/scale is (4,)",
        "mean_ema/average (1, 3) is (3,) here, but batch_stats/norm/mean is (4,)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("decay", [None, 1.0, -0.1])
def test_a_count_needs_the_decay(decay):
    params, state = batch_norm(np.random.default_rng(2), 3, 5, 2)
    variables = from_haiku(params, state, template(3, count=True), RENAME)
    with pytest.raises(ValueError, match=f"as net/~/batch_norm counts its updates, got {decay}"):
        to_haiku(variables, params, state, RENAME, decay=decay)


def test_what_is_left_out_keeps_its_values():
    params, state = batch_norm(np.random.default_rng(3), 3, 5, 2)
    params |= {"net/~/fc": {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}}
    variables = from_haiku(params, state, template(3, count=False), RENAME, ignore="fc")
    again, _ = to_haiku(variables, params, state, RENAME, ignore="fc")
    assert again["net/~/fc"]["w"] is params["net/~/fc"]["w"]
