"""One program for all learning rates, and how speeds compare."""

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.training import TrainState
from experiments.common.histories import log_speed_up
from experiments.common.rates import SGD, set_rate


def test_at_rate_sets_the_rate_of_every_seed():
    def create(params):
        return TrainState.create(params=params, batch_stats={}, tx=SGD)

    states = set_rate(0.25)(jax.vmap(create)({"w": jnp.ones((3, 2))}))  # three seeds
    moved = jax.vmap(lambda s: s.apply_gradients({"w": jnp.ones(2)}, {}))(states)
    np.testing.assert_allclose(moved.params["w"], 0.75)


def test_log_speed_up_counts_never_as_the_last_step():
    found = log_speed_up(np.array([40.0, np.inf]), np.array([10.0, 20.0]), 80)
    np.testing.assert_allclose(np.exp(found), [4.0, 4.0])
