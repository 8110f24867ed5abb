"""The numbers and the claims of the lecture on batch normalization, as tests."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.testing import relative_error

from . import _peers

GOLDEN = Path(__file__).parents[1] / "golden" / "torch.npz"


def torch_conventions(x):
    """One training step of BatchNorm1d(16) or BatchNorm2d(16): momentum 0.1, sample variance."""
    scale, bias = jnp.ones(16, x.dtype), jnp.zeros(16, x.dtype)
    stats = bnjax.init_batch_stats(16, x.dtype)
    options = {"train": True, "axis": 1, "decay": 0.9, "ddof": 1}
    return bnjax.batch_norm(x, scale, bias, stats, **options)


def test_running_mean_and_variance_after_one_batch_of_uniform_numbers():
    x = jnp.asarray(_peers.lecture_inputs((100, 16, 784)).x[0], jnp.float32)
    _, stats = torch_conventions(x)
    # A tenth of the way from 0 to 1/2, and from 1 to 1/12.
    assert np.allclose(stats.mean, 0.05, atol=2e-4)
    assert np.allclose(stats.var, 0.9083, atol=1e-4)


@pytest.mark.parametrize("name", _peers.LECTURE)
def test_lecture_examples_equal_torch(name):
    with np.load(GOLDEN) as file:
        want = {key: file[f"{name}/{key}"] for key in ("y", "mean_1", "var_1")}
    with jax.enable_x64(True):
        y, stats = torch_conventions(jnp.asarray(_peers.lecture_inputs(_peers.LECTURE[name]).x[0]))
        got = {"y": y[0].reshape(16, -1)[:, :2], "mean_1": stats.mean, "var_1": stats.var}
        for key in want:
            assert relative_error(got[key], want[key]) < 1e-11, key


def test_one_image_has_its_pixels_to_average_over():
    x = jnp.asarray(_peers.lecture_inputs((1, 16, 7, 7)).x[0], jnp.float32)
    y, _ = torch_conventions(x)
    assert np.allclose(y.mean((0, 2, 3)), 0, atol=1e-6)
    assert np.allclose(y.var((0, 2, 3)), 1, atol=1e-3)  # 1 - epsilon / var


def test_scale_and_bias_can_undo_the_normalisation():
    x = jnp.asarray(np.random.default_rng(0).normal(3.0, 2.0, (64, 16)), jnp.float32)
    moments = bnjax.moments(x, 0)
    scale, bias = jnp.sqrt(moments.var() + 1e-5), moments.mean
    y, _ = bnjax.batch_norm(x, scale, bias, bnjax.init_batch_stats(16), train=True)
    assert relative_error(y, x) < 1e-6


def test_bias_before_batch_norm_has_no_gradient():
    rng = np.random.default_rng(0)
    x, w, dy = (jnp.asarray(rng.normal(size=s)) for s in ((32, 8), (8, 16), (32, 16)))
    x, w, dy = (a.astype(jnp.float32) for a in (x, w, dy))
    stats = bnjax.init_batch_stats(16)

    def loss(w, b):
        hidden = x @ w + b[None, :]
        y, _ = bnjax.batch_norm(hidden, jnp.ones(16), jnp.zeros(16), stats, train=True)
        return (y * dy).sum()

    dw, db = jax.grad(loss, (0, 1))(w, jnp.ones(16))
    assert jnp.abs(dw).max() > 0.1  # the weights do learn
    assert jnp.abs(db).max() < 1e-5 * jnp.abs(dy).sum(0).max()
