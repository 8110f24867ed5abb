"""TrainState: one pytree for the whole run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import bnjax
from bnjax.training import TrainState


def state():
    stats = bnjax.init_batch_stats(3)
    params = {"w": jnp.ones((2, 3)), "layers": {0: {"scale": jnp.ones(3)}}}
    return TrainState.create(
        params=params, batch_stats={"layer": stats}, tx=optax.sgd(0.1, momentum=0.9)
    )


def test_it_is_a_pytree_of_all_arrays_and_no_functions():
    leaves = jax.tree.leaves(state())
    assert all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
    assert jax.tree.structure(state()).num_leaves == len(leaves)


def test_apply_gradients_steps_and_keeps_or_takes_statistics():
    before = state()
    grads = jax.tree.map(jnp.ones_like, before.params)
    after = before.apply_gradients(grads)
    assert int(after.step) == 1 and after.batch_stats is before.batch_stats
    np.testing.assert_allclose(after.params["w"], 0.9, rtol=1e-6)
    stats = {"layer": bnjax.init_batch_stats(3)}
    assert before.apply_gradients(grads, stats).batch_stats is stats


def test_a_donated_state_is_used_up():
    step = jax.jit(lambda s: s.apply_gradients(s.params), donate_argnums=0)
    before = state()
    after = step(before)
    assert before.params["w"].is_deleted() and not after.params["w"].is_deleted()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_orbax_1305_flax_5030_restores_equal_types_and_integer_keys(tmp_path):
    before = state().apply_gradients(state().params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", before)
        checkpointer.wait_until_finished()
        after = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: before))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert set(after.params["layers"]) == {0}
    jax.tree.map(np.testing.assert_array_equal, after, before)
