"""Moments of a data set that comes in batches."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bnjax

pytestmark = pytest.mark.compiled("quickly")
exact = pytest.mark.compiled("as users do")


def draw(examples, offset=0.0):
    return np.random.default_rng(0).normal(offset, 2, (examples, 4, 3)).astype(np.float32)


@given(st.lists(st.sampled_from([1, 2, 3, 9]), min_size=1, max_size=6))
def test_any_split_gives_the_same(sizes):
    x = draw(sum(sizes), 100.0)
    got = bnjax.dataset_moments(np.split(x, np.cumsum(sizes)[:-1]))
    assert got.count == 4 * len(x)
    np.testing.assert_allclose(got.mean, x.mean((0, 1), dtype=float), rtol=1e-6)
    np.testing.assert_allclose(got.var(), x.var((0, 1), dtype=float), rtol=1e-5)


@exact
def test_thousands_of_batches_do_not_add_up_roundings():
    x = draw(40_000, 1e3)
    got = bnjax.dataset_moments(np.split(x, 4000))
    np.testing.assert_allclose(got.mean, x.mean((0, 1), dtype=float), rtol=1e-7)
    np.testing.assert_allclose(got.var(), x.var((0, 1), dtype=float), rtol=1e-6)


def test_images_of_integers_and_a_mean_for_each_pixel():
    x = np.random.default_rng(0).integers(0, 256, (10, 2, 3, 1)).astype(np.uint8)
    got = bnjax.dataset_moments(np.split(x, 2), axis=(1, 2, 3))
    assert got.mean.shape == (2, 3, 1) and got.mean.dtype == jnp.float32
    np.testing.assert_allclose(got.mean, x.mean(0), rtol=1e-6)
    x_hat = bnjax.normalize(x.astype(np.float32), got.mean, got.var(), axis=(1, 2, 3))
    np.testing.assert_allclose(x_hat.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(x_hat.std(0), 1, rtol=1e-5)


def test_complex_data():
    x = draw(8) + 1j * draw(8)[::-1]
    got = bnjax.dataset_moments(np.split(x.astype(np.complex64), 2))
    np.testing.assert_allclose(got.mean, x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(got.var(), x.var((0, 1)), rtol=1e-5)


def test_what_cannot_be_done_is_said():
    with pytest.raises(ValueError, match="batches is empty"):
        bnjax.dataset_moments(iter([]))
    with pytest.raises(ValueError, match=r"batch 1 has features of shape \(2,\)"):
        bnjax.dataset_moments([np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)])


def test_a_loader_that_refills_one_buffer():
    data = np.random.default_rng(0).normal(size=(4, 50_000, 10)).astype(np.float32)

    def loader():
        buffer = np.empty_like(data[0])
        for factor, batch in enumerate(data, 1):
            np.multiply(batch, factor, out=buffer)
            yield buffer

    whole = (data * np.arange(1, 5)[:, None, None]).reshape(-1, 10)
    for _ in range(3):
        got = bnjax.dataset_moments(loader())
        np.testing.assert_allclose(got.var(), whole.var(0), rtol=1e-5)
