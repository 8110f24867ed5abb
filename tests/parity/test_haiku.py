"""Live parity with Haiku, whose running averages are debiased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.testing import relative_error

from . import _peers

hk = pytest.importorskip("haiku")

TOLERANCE = {"float64": 1e-12, "float32": 2e-5}


@pytest.mark.parametrize(("case", "dtype"), _peers.pairs(TOLERANCE), ids=_peers.name)
def test_batch_norm(case, dtype):
    inputs = _peers.draw(case, np.dtype(dtype))
    with jax.enable_x64(dtype == "float64"):
        got = _peers.run_bnjax(inputs, debias=True)
        with _peers.relaxed():
            want = _peers.run_haiku(inputs)
    errors = _peers.relative_errors(got, want)
    assert max(errors.values()) < TOLERANCE[dtype], errors


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.999])
def test_debiased_running_statistics_are_exponential_moving_averages(decay):
    # After every step, not only the first: the average is always the debiased one.
    def average(value):
        return hk.ExponentialMovingAverage(decay)(value)

    ema = hk.transform_with_state(average)
    values = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, (6, 4)), jnp.float32)
    with _peers.relaxed():
        _, state = ema.init(None, values[0])
    state = jax.tree.map(jnp.zeros_like, state)
    stats = bnjax.init_batch_stats(4)
    for value in values:
        with _peers.relaxed():
            want, state = ema.apply({}, state, None, value)
        moments = bnjax.Moments(jnp.float32(2), value, 2 * value)
        stats = bnjax.update_batch_stats(stats, moments, decay=decay, debias=True)
        # Haiku computes 1 - decay**t in float32, where 1 - 0.999 keeps few digits.
        assert relative_error(stats.mean, want) < 2e-5 / (1 - decay) ** 0.5
        assert relative_error(stats.var, want) < 2e-5 / (1 - decay) ** 0.5


def test_cross_replica_axis_is_axis_name():
    # Equal counts on all replicas, as the mean of means and mean of squares is right only then.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 5)), jnp.float32)

    def forward(x):
        options = {"decay_rate": 0.9, "cross_replica_axis": "replica"}
        return hk.BatchNorm(create_scale=False, create_offset=False, **options)(x, True)

    net = hk.transform_with_state(forward)

    def haiku_loss(x):
        # The state has the same shapes whatever it holds, so it may be made inside the map.
        def one(x):
            _, state = net.init(None, x)
            return net.apply({}, state, None, x)[0]

        return (jax.vmap(one, axis_name="replica")(x) * dy).sum()

    def loss(x):
        stats = bnjax.init_batch_stats(5)

        def one(x):
            return bnjax.batch_norm(x, None, None, stats, train=True, axis_name="replica")[0]

        return (jax.vmap(one, axis_name="replica")(x) * dy).sum()

    with _peers.relaxed():
        want = jax.jit(jax.value_and_grad(haiku_loss))(x)
    got = jax.jit(jax.value_and_grad(loss))(x)
    assert np.isclose(got[0], want[0], rtol=1e-5)
    assert relative_error(got[1], want[1]) < 1e-5
