"""Verdicts on made-up sizes of weights; the optimizer and what is measured, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnjax.training import TrainState
from experiments.common.verdicts import FAILS, HOLDS
from experiments.lab import scale_invariance
from experiments.lab.scale_invariance import ARITHMETIC, OPTIMIZER, observe, prepare, relative_error
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = scale_invariance.InvarianceSettings(steps=100, decays=(0.005, 0.02, 0.08))
RATE = SETTINGS.learning_rate
BADGES = ["decay sets the rate", "equilibrium", "growth steadies itself"]


def made(free, held, angle=1.0):
    """Sizes at the end by start, without and with decay; `angle` times that of theory."""
    records = list(logged(ARITHMETIC, 0, output_error=1e-5, gradient_error=1e-5))
    runs = [(0.0, start, last) for start, last in zip(SETTINGS.starts, free, strict=True)]
    runs += [(0.02, start, last) for start, last in zip(SETTINGS.starts, held, strict=True)]
    runs += [(decay, 1.0, 1.0) for decay in (0.005, 0.08)]
    for decay, start, last in runs:
        turned = angle * (2 * RATE * decay) ** 0.5 / RATE
        for step, size in ((0, start), (50, last), (100, last)):
            values = {"size": size * seeds(1), "gradient_to_size": turned * seeds(1)}
            records += logged(scale_invariance.name(start, decay), step, **values)
    return records


@pytest.mark.parametrize(
    "free, held, angle, expected",
    [
        ((0.6, 1.1, 3.0), (0.4, 0.4, 0.41), 1.0, [HOLDS, HOLDS, HOLDS]),
        ((0.3, 1.0, 3.1), (0.2, 1.1, 2.0), 3.0, [FAILS, FAILS, FAILS]),
        ((0.6, 1.1, np.nan), (0.4, np.nan, 0.41), 1.0, [FAILS, HOLDS, FAILS]),
    ],
)
def test_verdicts(free, held, angle, expected):
    rows = judged(scale_invariance, made(free, held, angle), SETTINGS)
    assert [rows[short].verdict for short in BADGES] == expected


def params():
    """Two layers, of which batch norm follows the first."""
    return {
        "BatchNorm_0": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
        "Dense_0": {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]])},
        "Dense_1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    }


def test_decay_is_that_of_the_weights_before_batch_norm():
    states = TrainState.create(params=params(), batch_stats={}, tx=OPTIMIZER)
    states = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], states)  # one seed
    states = prepare(2.0, 0.5, 0.1, states)
    np.testing.assert_allclose(states.params["Dense_0"]["kernel"][0], [[6, 0], [8, 2]])
    zeros = jax.tree.map(jnp.zeros_like, states.params)
    moved = jax.vmap(lambda s, g: s.apply_gradients(g, {}))(states, zeros).params
    np.testing.assert_allclose(moved["Dense_0"]["kernel"][0], 0.95 * np.array([[6, 0], [8, 2]]))
    np.testing.assert_array_equal(moved["Dense_1"]["kernel"][0], np.ones((2, 2)))
    np.testing.assert_array_equal(moved["BatchNorm_0"]["scale"][0], np.ones(2))


def test_gradient_beside_size_is_a_mean_over_steps():
    rule = observe()
    grads = optax.tree.zeros_like(params())
    grads["Dense_0"]["kernel"] = jnp.array([[0.0, 1.0], [5.0, 0.0]])
    state = rule.init(params())
    for _ in range(2):
        updates, state = rule.update(grads, state, params())
    assert updates is grads
    expected = (1 - scale_invariance.MEMORY**2) * np.array([1.0, 1.0])  # 25 / 25 and 1 / 1
    np.testing.assert_allclose(state.squares["Dense_0"], expected, rtol=1e-5)


def test_relative_error_is_taken_over_all_leaves():
    right = {"a": jnp.array([[3.0], [1.0]]), "b": jnp.array([[4.0], [0.0]])}
    other = {"a": jnp.array([[3.0], [1.0]]), "b": jnp.array([[4.5], [0.0]])}
    np.testing.assert_allclose(relative_error(right, other), [0.1, 0.0])
