"""Batch norm by the mean absolute or the largest deviation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from tests._derivatives import check_derivatives

MEASURES = {"l1": lambda d: np.abs(d).mean(0), "linf": lambda d: np.abs(d).max(0)}


def call(x, scale=None, bias=None, **options):
    stats = bnjax.init_batch_stats(x.shape[-1], jnp.float32)
    return bnjax.batch_norm(x, scale, bias, stats, **{"train": True, **options})


@pytest.mark.parametrize("spread", MEASURES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_output_is_that_of_the_definition(spread, offset):
    rng = np.random.default_rng(0)
    x = rng.normal(offset, 2, (50, 4)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 4)).astype(np.float32)
    y, stats = call(x, scale, bias, spread=spread, decay=0.0)
    d = x.astype(float) - x.mean(0, dtype=float)
    size = MEASURES[spread](d)
    want = d / np.sqrt(size**2 + 1e-5) * scale + bias
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(stats.var, size**2, rtol=1e-5)
    tracked = call(x, train=False, update_stats=True, unseen="allow", spread=spread, decay=0.0)[1]
    np.testing.assert_array_equal(tracked.var, stats.var)
    evaluated, _ = bnjax.batch_norm(x, scale, bias, stats, train=False)
    np.testing.assert_allclose(evaluated, want, rtol=1e-3, atol=1e-3 * (1 + offset / 1e3))


@pytest.mark.parametrize("spread", MEASURES)
def test_derivatives_and_masks(spread):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, scale, bias = rng.normal(3, 2, (8, 3)), *rng.normal(size=(2, 3))
        mask = rng.random((8, 1)) < 0.6
        fn = lambda *args: jnp.sin(call(*args, spread=spread, mask=mask)[0])  # noqa: E731
        check_derivatives(fn, (x, scale, bias), order=2)
        loud = np.where(mask, x, np.nan)
        got, _ = call(loud, scale, bias, spread=spread, mask=mask)
        want, _ = call(x[mask[:, 0]], scale, bias, spread=spread)
        np.testing.assert_allclose(got[mask[:, 0]], want, rtol=1e-6)


def test_what_is_not_merged_is_refused():
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match="spread='l1' is of one batch on one device"):
        call(x, spread="l1", virtual_batch_size=2)
    with pytest.raises(ValueError, match="spread must be one of 'std', 'l1', 'linf'"):
        call(x, spread="l2")
