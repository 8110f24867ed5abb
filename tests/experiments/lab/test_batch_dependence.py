"""Verdicts on made-up measurements, and what is measured of batches and of the task."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnjax.training import TrainState
from experiments.common.models import MLP
from experiments.common.settings import NORMALISED, PLAIN
from experiments.common.verdicts import FAILS, HOLDS
from experiments.lab import _contrastive, batch_dependence
from experiments.lab._contrastive import CANDIDATES, SAME, SHUFFLED
from experiments.lab.batch_dependence import SIZES
from tests.experiments.lab._made import judged, logged, seeds

CHEATS = {"task_same": 0.9, "task_shuffled": 0.3, "class_accuracy": 0.6}
LEARNS = {"task_same": 0.6, "task_shuffled": 0.6, "class_accuracy": 0.8}


def verdicts(depends, same, shuffled):
    records = []
    for network, much in ((NORMALISED, depends), (PLAIN, 0.0)):
        metrics = {"spread_evaluated": 0.0, "elsewhere": much}
        for size in SIZES:
            metrics |= {f"spread_{size}": (much or 1e-9) / size, f"changed_{size}": 3 * much / size}
        records += logged(network, 100, **{k: seeds(v) for k, v in metrics.items()})
    for way, metrics in ((SAME, same), (SHUFFLED, shuffled)):
        for step in (50, 100):
            records += logged(way, step, **{k: seeds(v) for k, v in metrics.items()})
    rows = judged(batch_dependence, records).values()
    return [row.verdict for row in rows if row.verdict]


def test_dependence_and_cheating_are_seen_or_not():
    assert verdicts(1.0, CHEATS, LEARNS) == [HOLDS] * 4
    honest = {**LEARNS, "task_same": 0.5}
    assert verdicts(0.5, honest, CHEATS)[0] == FAILS  # three images of eight
    assert verdicts(1.0, honest, CHEATS)[2:] == [FAILS] * 2


def test_company_matters_with_batch_norm_in_training_alone(rng):
    test = (jnp.asarray(rng.uniform(0, 1, (448, 12)), jnp.float32), jnp.arange(448) % 10)
    for batch_norm in (True, False):
        model = MLP((8,), batch_norm=batch_norm)
        variables = model.init(jax.random.key(0), test[0], train=False)
        state = TrainState.create(tx=optax.sgd(0.1), **variables)
        found = batch_dependence.in_company(state, test, model=model)
        assert found["spread_evaluated"] < 1e-5
        if batch_norm:
            assert found["spread_2"] > found["spread_64"] > 1e-3 and found["elsewhere"] > 1e-3
        else:
            assert max(found[f"spread_{size}"] for size in SIZES) < 1e-5
            assert found["elsewhere"] == 0


def test_variation_by_hand():
    said = jnp.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [0.0, 2.0]]])  # two draws, two images
    spread, changed = batch_dependence.variation(said, jnp.array([0, 1]), jnp.array(2.0))
    np.testing.assert_allclose(spread, np.sqrt((1 + 0) / 2) / 2)
    assert changed == 0.5


def test_shuffled_parts_are_put_back_in_order(rng):
    """Whether parts are shuffled makes no difference where nothing hangs on the company."""
    images = jnp.asarray(rng.uniform(0, 1, (100, 12)), jnp.float32)
    model = _contrastive.Encoder((16,), 0.9)
    variables = dict(model.init(jax.random.key(0), images[:4], train=False))
    found = {}
    for shuffles in (False, True):
        batch = _contrastive._batch(jax.random.key(1), images, jnp.array(shuffles))
        np.testing.assert_array_equal(np.sort(batch["order"]), np.arange(CANDIDATES))
        assert (batch["order"] != jnp.arange(CANDIDATES)).any() == shuffles
        for train in (False, True):
            params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
            outcome = _contrastive._similarities(model, params, rest, batch, train)
            found[shuffles, train] = np.asarray(outcome[0])
    np.testing.assert_allclose(found[True, False], found[False, False], atol=1e-4)
    assert not np.allclose(found[True, True], found[False, True], atol=1e-2)


def test_the_nearest_mean(rng):
    features, labels = rng.standard_normal((60, 5)).astype(np.float32), np.arange(60) % 10
    means = np.stack([features[labels == c].mean(0) for c in range(10)])
    others, truth = rng.standard_normal((40, 5)).astype(np.float32), rng.integers(0, 10, 40)
    nearest = ((others[:, None] - means) ** 2).sum(-1).argmin(1)
    arrays = map(jnp.asarray, (features, labels, others, truth))
    found = _contrastive.nearest_mean(*arrays)
    np.testing.assert_allclose(found, (nearest == truth).mean(), rtol=1e-6)
