"""Live parity with PyTorch. Its momentum is 1 - decay and its running variance has ddof 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.testing import relative_error

from . import _peers

torch = pytest.importorskip("torch")

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2}


@pytest.mark.parametrize(("case", "dtype"), _peers.pairs(TOLERANCE), ids=_peers.name)
def test_batch_norm(case, dtype):
    inputs = _peers.draw(case, jnp.dtype(dtype))
    with jax.enable_x64(dtype == "float64"):
        got = _peers.run_bnjax(inputs, ddof=1)
    errors = _peers.relative_errors(got, _peers.run_torch(inputs))
    assert max(errors.values()) < TOLERANCE[dtype], errors
    assert got["y"].dtype == got["dx"].dtype == dtype


def test_momentum_none_is_the_cumulative_average():
    inputs = _peers.draw(_peers.CASES[0])
    want = _peers.run_torch(inputs, cumulative=True)
    with jax.enable_x64(True):
        stats = bnjax.init_batch_stats(5, jnp.float64)
        for x in inputs.x:
            moments = bnjax.moments(jnp.asarray(x), 0)
            stats = bnjax.update_batch_stats(stats, moments, decay=None, ddof=1)
        assert relative_error(stats.mean, want["mean_3"]) < 1e-13
        assert relative_error(stats.var, want["var_3"]) < 1e-13


def test_running_statistics_of_torch_evaluate_alike():
    # A checkpoint moves over without a change: mean, var and epsilon mean the same in both.
    rng = np.random.default_rng(0)
    layer = torch.nn.BatchNorm2d(5, eps=1e-3).double().eval()
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            tensor.copy_(torch.from_numpy(rng.uniform(0.5, 2.0, 5)))
        x = rng.normal(size=(2, 5, 3, 4))
        want = layer(torch.from_numpy(x)).numpy()
    with jax.enable_x64(True):
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, bias = (jnp.asarray(layer.state_dict()[k].numpy()) for k in names)
        stats = bnjax.BatchStats(mean, var, jnp.asarray(1))
        y, _ = bnjax.batch_norm(
            jnp.asarray(x), scale, bias, stats, train=False, axis=1, epsilon=1e-3
        )
        assert relative_error(y, want) < 1e-14
