"""Verdicts on made-up records, and how much a scale and a shift undo."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnjax.training import TrainState
from experiments.common.models import lecun_mlp
from experiments.common.scales import PERCENTILES
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import trained_affine
from experiments.lab.trained_affine import ALONE, BOTH, IMITATOR, NETWORKS, PAIR, WIDER
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = trained_affine.Settings(rates=(0.1, 1.0), steps=100)


def trained(trial, accuracy, loss, **more):
    for step in (0, 50, 100):
        values = {"test_accuracy": seeds(accuracy), "validation_accuracy": seeds(accuracy)}
        yield from logged(trial, step, train_loss=seeds(loss), parameters=9.0, **values, **more)


def made(accuracy, losses, undone, imitated):
    """Rate 1 is of no use."""
    kinds = [f"{kind}_{n}_{q}" for kind in ("scale", "sd") for n in range(4) for q in PERCENTILES]
    scales = dict.fromkeys(kinds, 1.5)
    records = []
    for network in NETWORKS:
        more = {f"undone{part}": seeds(undone) for part in ("", "_1", "_2", "_3")} | scales
        more = more if network == BOTH else {}
        records += trained(at_rate(network, 0.1), accuracy[network], losses[network], **more)
        records += trained(at_rate(network, 1.0), 0.1, 2.0)
    return [*records, *logged(IMITATOR, 1000, undone=seeds(imitated), **scales)]


def each(both, alone, wider):
    return {BOTH: both, ALONE: alone, WIDER: wider, PAIR: alone}


@pytest.mark.parametrize(
    ("accuracy", "losses", "undone", "imitated", "expected"),
    [
        # The wider network has most of the gain.
        (each(0.98, 0.9, 0.9), each(0.01, 0.1, 0.012), 0.1, 0.9, [HOLDS, HOLDS, HOLDS]),
        # A quarter of it; nothing is undone either way.
        (each(0.98, 0.9, 0.9), each(0.01, 0.1, 0.06), 0.1, 0.1, [HOLDS, FAILS, IN_PART]),
        # The wider network fits better, where step 2 brings nothing that it could explain.
        (each(0.98, 0.9, 0.9), each(0.1, 0.09, 0.05), 0.1, 0.9, [IN_PART, FAILS, HOLDS]),
        (each(0.9, 0.98, 0.98), each(0.1, 0.01, 0.1), 0.9, 0.1, [FAILS, FAILS, FAILS]),
    ],
)
def test_verdicts(accuracy, losses, undone, imitated, expected):
    rows = judged(trained_affine, made(accuracy, losses, undone, imitated), SETTINGS)
    assert [row.verdict for row in rows.values() if row.tests] == expected


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_undone_is_that_of_the_distance_between_output_and_input(rng, share):
    x = rng.normal(3, 2, (1000, 7))
    mean, sd = x.mean(0), x.std(0)
    # Straight from (1, 0) to (sd, mean): the distance left is 1 - way, its square the rest.
    way = 1 - np.sqrt(1 - share)
    scale, shift = 1 + way * (sd - 1), way * mean
    standard = (x - mean) / sd
    left = np.sum((scale * standard + shift - x) ** 2) / np.sum((standard - x) ** 2)
    params = {"scale": jnp.asarray(scale, jnp.float32), "bias": jnp.asarray(shift, jnp.float32)}
    stats = [jnp.asarray(value, jnp.float32) for value in (mean, sd**2)]
    found = trained_affine.undone(params, *stats)
    np.testing.assert_allclose([found, 1 - left], share, atol=1e-4)


def test_three_units_have_as_many_weights_as_all_scales_and_shifts():
    images = jnp.ones((3, 8))
    counts = {}
    for name, affine in ((BOTH, True), (ALONE, False), (WIDER, False), (PAIR, None)):
        hidden = trained_affine._hidden(name, 5)
        norm = trained_affine.batch_norm(use_scale=affine, use_bias=affine)
        norm = trained_affine.OnePair if affine is None else norm
        model = lecun_mlp(hidden, batch_norm=True, norm=norm)
        state = TrainState.create(
            **model.init(jax.random.key(0), images, train=False), tx=optax.sgd(0.1)
        )
        measure = trained_affine.evaluate_with_parameters
        found = measure(state, (images, jnp.arange(3)), model=model)
        counts[name] = int(found["parameters"])
    assert counts[BOTH] == counts[WIDER] == counts[ALONE] + 2 * 3 * 5
    assert counts[PAIR] == counts[ALONE] + 2 * 3
