"""What a training run carries from step to step: one pytree, and nothing beside it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """Parameters, running statistics and optimizer state: a pytree that goes in and comes out.

    Every array of a run is in it, so that it can be donated to ``jax.jit``, sharded, and saved and
    restored by orbax as one; only the optimizer's functions are static.

    Attributes:
      step: number of steps taken, int32 scalar; skipped ones count.
      params: parameters, any pytree.
      batch_stats: running statistics: Flax's collection, an ``nnx.State``, or a pytree of
        :class:`bnjax.BatchStats`; ``{}`` for a model without.
      opt_state: state of ``tx``.
      skipped: number of steps that were left out because something was not finite, int32 scalar.
      tx: the optax optimizer; static.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from bnjax.training import TrainState
      >>> state = TrainState.create(params={"w": jnp.ones(2)}, tx=optax.sgd(0.1))
      >>> state = state.apply_gradients({"w": jnp.ones(2)})
      >>> print(state.step, state.params["w"])
      1 [0.9 0.9]

    Source: Flax's ``TrainState``, which has no ``batch_stats``, and holds the model's ``apply``
    (here the loss function is an argument of the step).
    """

    step: jax.Array  # ()
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    skipped: jax.Array  # ()
    tx: optax.GradientTransformation = struct.field(pytree_node=False)

    @classmethod
    def create(
        cls, *, params: Any, tx: optax.GradientTransformation, batch_stats: Any = None
    ) -> TrainState:
        """The state before the first step.

        Args:
          params: first parameters.
          tx: optimizer.
          batch_stats: first running statistics; None for a model without.
        """
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats={} if batch_stats is None else batch_stats,
            opt_state=tx.init(params),
            skipped=jnp.zeros((), jnp.int32),
            tx=tx,
        )

    def apply_gradients(self, grads: Any, batch_stats: Any = None) -> TrainState:
        """The state after one step of ``tx``.

        Args:
          grads: gradients, the pytree of ``params``.
          batch_stats: new running statistics; None keeps the old.
        """
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            batch_stats=self.batch_stats if batch_stats is None else batch_stats,
        )
