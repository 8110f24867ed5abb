"""Verdicts on made-up records; and that nothing but a part is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.training import TrainState
from experiments.common.models import lecun_mlp
from experiments.common.scales import PERCENTILES
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS
from experiments.lab import only_affine
from experiments.lab.only_affine import AFFINE, ALL, OUTPUT, PARTS, WEIGHTS
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = only_affine.Settings(steps=100, widths=(4, 8), rates=(1.0, 3.0), few_rates=(10.0, 30.0))


def trained(trial, accuracy, disabled):
    names = [f"scale_{layer}_{q}" for layer in (1, 2, 3) for q in PERCENTILES]
    for step in (0, 50, 100):
        values = {"test_accuracy": seeds(accuracy), "validation_accuracy": seeds(accuracy)}
        more = {"disabled": seeds(disabled) if step else 0.0} | dict.fromkeys(names, 0.5)
        yield from logged(trial, step, train_loss=0.1, **values, **more)


def made(affine, weights, everything, small, disabled):
    """The second rate of each part is of no use."""
    wide = {AFFINE: affine, WEIGHTS: weights, OUTPUT: 0.9, ALL: everything}
    records = []
    for width in SETTINGS.widths:
        for part in PARTS:
            good, bad = (at_rate(only_affine.trial_name(part, width), r) for r in rates(part))
            accuracy = small if width == 4 and part == AFFINE else wide[part]
            records += trained(good, accuracy, disabled)
            records += trained(bad, 0.1, 1.0)
    return records


def rates(part):
    return SETTINGS.rates_of(part)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0.9, 0.5, 0.98, 0.8, 0.33), [HOLDS] * 4),
        ((0.5, 0.6, 0.98, 0.55, 0.05), [FAILS] * 4),
        ((0.9, 0.5, 0.98, 0.8, 0.6), [HOLDS, HOLDS, HOLDS, FAILS]),  # more than a third
    ],
)
def test_verdicts(numbers, expected):
    rows = judged(only_affine, made(*numbers), SETTINGS)
    assert [row.verdict for row in rows.values() if row.tests] == expected


@pytest.mark.parametrize("part", PARTS)
def test_nothing_but_the_part_is_trained(part):
    model = lecun_mlp((5, 5, 5), batch_norm=True)

    def create(key):
        variables = model.init(key, jnp.ones((2, 6)), train=False)
        return TrainState.create(**variables, tx=only_affine.MASKED_SGD)

    states = jax.vmap(create)(jax.random.split(jax.random.key(1), 2))  # two seeds
    prepared = only_affine.train_part(part, 0.5)(states)
    ones = jax.tree.map(lambda leaf: jnp.ones_like(leaf[0]), states.params)
    after = jax.vmap(lambda state: state.apply_gradients(ones, state.batch_stats))(prepared)
    changes = jax.tree.map(lambda a, b: np.asarray(a - b), states.params, after.params)
    changed = {
        layer: np.concatenate([leaf.reshape(2, -1) for leaf in leaves.values()], 1)
        for layer, leaves in changes.items()
    }
    for layer, change in changed.items():
        hidden = layer in ("Dense_0", "Dense_1", "Dense_2")
        if part == WEIGHTS and hidden:  # two into each of five units, not the same in both seeds
            np.testing.assert_array_equal((changes[layer]["kernel"] != 0).sum(1), 2)
            assert np.any(change[0] != change[1])
        else:
            ours = {AFFINE: layer.startswith("BatchNorm"), OUTPUT: layer == "Dense_3", ALL: True}
            np.testing.assert_allclose(change, 0.5 * ours.get(part, False), rtol=1e-5)


def test_a_unit_is_disabled_by_a_small_scale_or_a_low_shift():
    model = lecun_mlp((4, 4, 4), batch_norm=True, activation=jnp.tanh)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(30, 6)), jnp.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    params = dict(variables["params"])
    params["BatchNorm_2"] = {
        "scale": jnp.array([1.0, -0.005, 1.0, 1.0]),
        "bias": jnp.array([0.0, 5.0, -99.0, 99.0]),
    }
    state = TrainState.create(
        params=params, batch_stats=variables["batch_stats"], tx=only_affine.MASKED_SGD
    )
    found = only_affine.evaluate_with_features(state, (images, jnp.arange(30) % 10), model=model)
    np.testing.assert_allclose(found["disabled"], 2 / 12)
