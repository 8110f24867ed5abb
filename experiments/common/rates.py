"""Gradient descent whose learning rate is part of the state, so that all rates share a program."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import optax

from bnjax.training import TrainState

# One object for all trials: another would be compiled anew. `set_rate` sets the rate.
SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)


def set_rate(learning_rate: float) -> Callable[[TrainState], TrainState]:
    """A `prepare` of `train_seeds` that sets the learning rate of `SGD`."""
    return partial(with_options, learning_rate=learning_rate)


def with_options(states: TrainState, **options: float) -> TrainState:
    """`states` of all seeds, with these `options` of an optimizer of `inject_hyperparams`."""
    full = {name: jnp.full(states.step.shape, v, jnp.float32) for name, v in options.items()}
    return states.replace(opt_state=optax.tree.set(states.opt_state, **full))
