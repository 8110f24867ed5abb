"""Gradient descent whose learning rate is part of the state, so that all rates share a program."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from bnjax.training import TrainState

# One object for all trials: another would be compiled anew. `at_rate` sets the rate.
SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)


def at_rate(learning_rate: float) -> Callable[[TrainState], TrainState]:
    """A `prepare` of `train_seeds` that sets the learning rate of `SGD`."""

    def prepare(states: TrainState) -> TrainState:
        rates = jnp.full(states.step.shape, learning_rate, jnp.float32)  # (seeds,)
        opt_state = optax.tree.set(states.opt_state, learning_rate=rates)
        return states.replace(opt_state=opt_state)

    return prepare
