"""Steadiness: verdicts on made-up records, and the arithmetic of what is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.loop import init_state
from experiments.common.models import MLP
from experiments.common.rates import SGD
from experiments.common.settings import NETWORKS
from experiments.common.sweep import at_rate
from experiments.common.verdicts import CLAIM, FAILS, HOLDS, IN_PART
from experiments.lab import steadiness
from experiments.lab.steadiness import SIZES, fluctuation, perturb, relative_change
from tests.experiments.lab._made import judged, logged, seeds

CALM = {"level": 1.0, "swing": 0.01, "change": 0.1, "lost": 0.01}
ROUGH = {"level": 1.0, "swing": 0.3, "change": 0.9, "lost": 0.2}
SETTINGS = steadiness.Settings(rates=(0.1, 1.0), steps=400)


def network(trial, level, swing, change, lost, accuracy):
    """The loss swings to and fro by a share of its level."""
    for i in range(41):
        loss = level * (1 + swing * (-1) ** i * seeds(1, 0.1))
        noise = {f"change_{size:g}": seeds(change) for size in SIZES}
        noise |= {f"{name}_{size:g}": seeds(lost) for size in SIZES for name in ("lost", "kept")}
        values = {"train_loss": loss, "test_loss": loss, "doubled": seeds(1e-6)} | noise
        seen = {"test_accuracy": accuracy, "validation_accuracy": accuracy}
        yield from logged(trial, 10 * i, **values, **seen)


def made(plain, normalised, worse=None):
    """The networks at rate 1, and less accurate at rate 0.1."""
    records = []
    for name, kind in zip(NETWORKS, (plain, normalised), strict=True):
        records += network(at_rate(name, 1.0), **kind, accuracy=0.9)
        records += network(at_rate(name, 0.1), **(worse or kind), accuracy=0.8)
    return records


def verdicts(records):
    rows = judged(steadiness, records, SETTINGS).values()
    return [row.verdict for row in rows if row.kind == CLAIM]


def test_holds_or_fails_at_the_best_rates_alone():
    assert verdicts(made(ROUGH, CALM, worse=CALM)) == [HOLDS] * 2
    assert verdicts(made(CALM, ROUGH, worse=CALM)) == [FAILS] * 2


def test_a_small_loss_is_not_steady_for_being_small():
    small = CALM | {"level": 1e-3, "swing": 0.6}
    assert verdicts(made(ROUGH, small))[0] == IN_PART


def test_fluctuation_is_about_the_running_mean():
    steps = np.arange(101.0)
    line = 5 - 0.02 * steps
    swing = line + 0.5 * (-1) ** steps
    swing[0] = 1e6  # in the first tenth
    found = fluctuation(steps, np.stack([line, swing]))
    # A running mean of 9 keeps 1 / 9 of what alternates.
    np.testing.assert_allclose(found, [0, 0.5 * 8 / 9], atol=1e-9)


def test_relative_change_is_in_units_of_the_spread(rng):
    before, after = rng.normal(3, 2, (2, 50, 4)).astype(np.float32)
    wanted = np.linalg.norm(after - before) / np.linalg.norm(before - before.mean(0))
    found = relative_change(jnp.asarray(before), jnp.asarray(after))
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_noise_and_a_factor_in_the_first_layer(batch_norm, rng):
    model = MLP((8, 8), batch_norm=batch_norm, init_std=0.5)
    state = init_state(jax.random.key(0), model, SGD, 6)
    test = jnp.asarray(rng.normal(size=(40, 6)), jnp.float32), jnp.asarray(rng.integers(0, 10, 40))
    found = perturb(state, test, model=model)
    changes = [float(found[f"change_{size:g}"]) for size in SIZES]
    assert 0.01 < changes[0] < changes[1] < changes[2]
    doubled = float(found["doubled"])
    assert doubled < 1e-3 if batch_norm else doubled > 0.1
    same = [float(found[f"lost_{s:g}"] - found[f"kept_{s:g}"]) for s in SIZES]
    assert batch_norm or same == [0, 0, 0]  # there are no statistics to keep
