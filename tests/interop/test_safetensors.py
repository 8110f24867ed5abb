"""What is saved as safetensors comes back as it was: boxed, frozen, narrow, without axes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bnjax.interop import load_variables, save_safetensors
from bnjax.surgery import freeze

STATS = {"mean": jnp.arange(3.0), "var": jnp.ones(3), "count": jnp.int32(7)}
VARIABLES = {"params": {"bn": {"scale": jnp.ones(3)}}, "batch_stats": {"bn": STATS}}


def assert_saved(variables, want, path):
    save_safetensors(variables, path)
    got = load_variables(path)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


# github.com/google/flax/pull/2435
@pytest.mark.parametrize("box", [nn.Partitioned, nn.LogicallyPartitioned])
def test_flax_2435_boxed_parameters_are_saved(box, tmp_path):
    boxed = jax.tree.map(lambda leaf: box(leaf, ("c",) * leaf.ndim), VARIABLES)
    assert_saved(boxed, VARIABLES, tmp_path / "file")


# github.com/keras-team/keras/issues/12470
def test_keras_12470_frozen_variables_are_saved_as_any(tmp_path):
    assert_saved(freeze(VARIABLES), VARIABLES, tmp_path / "file")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "bool", "float16"])
def test_every_dtype_that_is_saved_is_read(dtype, tmp_path):
    variables = {"params": {"w": np.ones((3, 2)).T.astype(dtype), "b": jnp.zeros(())}}
    assert_saved(variables, variables, tmp_path / "file")


def test_the_order_of_bytes_does_not_matter(tmp_path):
    values = np.arange(3, dtype=np.float32)
    assert_saved(
        {"params": {"w": values.astype(">f4")}}, {"params": {"w": values}}, tmp_path / "file"
    )


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.ones(2, complex), "no dtype for params/w of complex128"),
        (jnp.ones(2, jnp.int4), "no dtype for params/w of int4"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), "got ShapeDtypeStruct at params/w"),
        (jax.random.key(0), "at params/w. Of a key save jax.random.key_data"),
    ],
)
def test_what_cannot_be_saved_is_named(leaf, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save_safetensors({"params": {"w": leaf}}, tmp_path / "file")


def test_a_checksum_of_another_program_is_left_alone(tmp_path):
    path = tmp_path / "file"
    safetensors.numpy.save_file({"w": np.ones(2)}, path, metadata={"checksum": "sha256:0"})
    assert load_variables(path)["params"].keys() == {"w"}
