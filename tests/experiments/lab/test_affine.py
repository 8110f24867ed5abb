"""Verdicts on made-up records, and what a scale, a shift and a bias before batch norm amount to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnjax.training import TrainState
from experiments.common.models import MLP
from experiments.common.scales import PERCENTILES
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IDENTITY, IN_PART
from experiments.lab import affine
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = affine.Settings(rates=(1.0, 3.0), steps=100)
GOOD, BAD = {"accuracy": 0.98, "loss": 0.01}, {"accuracy": 0.9, "loss": 0.1}


def trained(trial, accuracy, loss, scale, **more):
    names = [f"scale_{layer}_{q}" for layer in (1, 2, 3) for q in PERCENTILES]
    more |= dict.fromkeys((*names, "rms_scale", "rms_bias"), seeds(scale))
    for step in (0, 50, 100):
        values = {"test_accuracy": seeds(accuracy), "validation_accuracy": seeds(accuracy)}
        yield from logged(trial, step, train_loss=seeds(loss), **values, **more)


def made(both, neither, scale=2.0):
    """Rate 3 is of no use; the bias moves the loss by a millionth."""
    records = []
    for name in affine.AFFINE:
        kind = neither if name == affine.NEITHER else both
        records += trained(at_rate(name, 1.0), **kind, scale=scale)
        records += trained(at_rate(name, 3.0), accuracy=0.1, loss=2.0, scale=scale)
    biased = both | {"loss": both["loss"] * (1 + 1e-6)}
    records += trained(at_rate(affine.REDUNDANT, 1.0), **biased, scale=1.0, bias_gradient=1e-6)
    return [*records, *logged(affine.UNDONE, 0, roundings=3.0)]


@pytest.mark.parametrize(
    ("both", "neither", "scale", "expected"),
    [
        (GOOD, BAD, 2.0, [HOLDS, HOLDS]),
        (BAD, GOOD, 0.5, [FAILS, FAILS]),
        (GOOD, GOOD | {"loss": 0.1}, 2.0, [IN_PART, HOLDS]),  # a better fit and no better test
    ],
)
def test_verdicts(both, neither, scale, expected):
    rows = judged(affine, made(both, neither, scale), SETTINGS)
    assert [row.verdict for row in rows.values() if row.tests] == expected


def test_identities_say_how_large_rounding_is():
    rows = judged(affine, made(GOOD, BAD), SETTINGS)
    found = [row.found for row in rows.values() if row.kind == IDENTITY]
    assert "3.0 roundings" in found[0] and "1.0e-06" in found[1] and "1.0e-06" in found[2]


def test_undoing_the_normalisation_is_exact_to_rounding(rng):
    # Two roundings for each of -, /, *, + at the most.
    assert 0 < affine.undo(rng.normal(3, 2, (64, 20)).astype(np.float32)) < 8


def test_a_bias_before_batch_norm_has_no_gradient_but_one_without_has():
    # Of data of its own: what is left of the gradient is rounding, 3e-6 to 2e-5 in twelve sets.
    images = np.random.default_rng(0).uniform(0, 1, (40, 6))
    data = (jnp.asarray(images, jnp.float32), jnp.arange(40) % 10)
    for after, limit in ((False, 5e-5), (True, None)):
        model = MLP((5, 5), batch_norm=True, use_bias=True, after_activation=after)
        variables = model.init(jax.random.key(0), data[0], train=False)
        state = TrainState.create(tx=optax.sgd(0.1), **variables)
        share = affine.evaluate_bias(state, data, model=model)["bias_gradient"]
        assert share < limit if limit else share > 1e-3


def test_scales_are_summed_up_layer_by_layer():
    model = MLP((4, 4), batch_norm=True)
    images = jnp.ones((3, 6))
    variables = model.init(jax.random.key(0), images, train=False)
    params = dict(variables["params"])
    params["BatchNorm_1"] = {"scale": jnp.arange(4.0), "bias": jnp.full(4, -2.0)}
    state = TrainState.create(
        params=params, batch_stats=variables["batch_stats"], tx=optax.sgd(0.1)
    )
    found = affine.evaluate_with_scales(state, (images, jnp.arange(3)), model=model)
    assert found["scale_1_50"] == 1 and found["scale_2_50"] == 1.5 and found["scale_2_25"] == 0.75
    np.testing.assert_allclose(found["rms_scale"] ** 2, (4 + 14) / 8, rtol=1e-6)
    np.testing.assert_allclose(found["rms_bias"] ** 2, 16 / 8, rtol=1e-6)
