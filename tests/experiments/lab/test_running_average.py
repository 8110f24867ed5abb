"""Averages against sums written out, and verdicts on made-up errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common.batches import draw_batches
from experiments.common.loop import init_state
from experiments.common.loss import make_loss_fn
from experiments.common.models import MLP
from experiments.common.verdicts import CLAIM, FAILS, HOLDS, IDENTITY, IN_PART
from experiments.lab import _long_layer, running_average
from experiments.lab._long_layer import SAMPLE, with_weight
from experiments.lab.running_average import RECALIBRATED, Run
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = running_average.PRESETS["quick"]


def test_the_layer_forgets_its_start_as_the_formula_says():
    found = _long_layer.call_layer(0, 3, 0.9)
    expected = _long_layer.expected_averages(np.arange(1, 4), 0.9)
    np.testing.assert_allclose(expected[:, 0], [0.05, 0.9 + 0.1 / 12])
    np.testing.assert_allclose(found, expected.T, atol=1e-3)


@pytest.mark.parametrize("ddof, pytorchs", [(0, False), (1, True)])
def test_pytorch_stores_the_sample_variance(ddof, pytorchs):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).uniform(size=(4, 3)).astype(np.float32)
    theirs = torch.nn.BatchNorm1d(3, momentum=0.1)
    theirs(torch.from_numpy(x))
    ours = _long_layer.call_once(jnp.asarray(x), ddof)
    assert np.allclose(ours, theirs.running_var, rtol=1e-5) == pytorchs


def test_averages_are_weighted_sums_of_the_moments_of_batches():
    model = MLP(hidden=(5,), batch_norm=True, momentum=0.0)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(12, 4)).astype(np.float32)
    labels, weights = jnp.arange(12) % 10, jnp.array([0.5, 0.9])
    create = jax.vmap(lambda key: init_state(key, model, optax.sgd(0.0), 4))
    states = create(jax.random.split(jax.random.key(0), 1))
    start = jax.tree.map(lambda v: jnp.repeat(v[:, None], 2, 1), states.batch_stats)
    batches = np.arange(12).reshape(3, 1, 4)  # three steps at rate 0
    run, _ = running_average.advance(
        Run(states, start, start), batches, weights, images, labels, images, model,
        make_loss_fn(model),
    )  # fmt: skip
    z = images @ np.asarray(states.params["Dense_0"]["kernel"][0])
    for i, p in enumerate((0.5, 0.9)):
        parts = [(1 - p) * p ** (2 - k) * z[batches[k, 0]].mean(0) for k in range(3)]
        found = run.averages["BatchNorm_0"]["mean"][0, i]
        np.testing.assert_allclose(found, np.sum(parts, 0), rtol=1e-4, atol=1e-6)
        # Those of the whole, with weights that do not move: only the start is left to lag.
        exact = run.exact["BatchNorm_0"]["var"][0, i]
        np.testing.assert_allclose(exact, p**3 + (1 - p**3) * z.var(0), rtol=1e-4)


def test_batches_go_through_all_rows_in_each_epoch():
    rows = np.arange(15) * 7
    batches = draw_batches(rows, 5, 6, seed=0)  # 30 of 15 rows: two epochs
    assert batches.shape == (5, 6)
    assert sorted(batches.ravel()[:15]) == sorted(batches.ravel()[15:]) == sorted(rows)


def made(accuracies=(0.97, 0.97, 0.97, 0.97), noisy=3.0, outdated=5.0):
    """Accuracies at p = 0.5, 0.9, 0.99 and 0.999, and errors as against those of 0.9."""
    accuracy = dict(zip(running_average.JUDGED, accuracies, strict=True))
    error = {0.5: noisy, 0.999: outdated}
    records = [*logged(RECALIBRATED, 2000, test_accuracy=seeds(0.97, 0.001))]
    for p in SETTINGS.weights:
        errors = {name: seeds(0.01 * error.get(p, 1.0)) for name in ("lag", "noise", "error")}
        values = {"test_accuracy": seeds(accuracy.get(p, 0.9), 0.001)} | errors
        records += logged(with_weight(p), 2000, **values)
    for p in (0.9, 0.99):
        for batch in (1, 2, 3):
            mean, var = _long_layer.expected_averages(np.array(batch), p)
            records += logged(f"layer(x), {with_weight(p)}", batch, mean=mean, var=var)
    return [*records, *logged(SAMPLE, 4, ratio=4 / 3)]


def verdicts(records):
    rows = judged(running_average, records, SETTINGS).values()
    assert sum(row.kind == IDENTITY for row in rows) == 3
    return [row.verdict for row in rows if row.kind == CLAIM]


def test_verdicts():
    assert verdicts(made()) == [HOLDS] * 3
    assert verdicts(made((0.9, 0.9, 0.9, 0.9), 0.3, 0.2)) == [FAILS] * 3
    assert verdicts(made((0.97, 0.97, 0.97, 0.9))) == [IN_PART, HOLDS, HOLDS]


def test_divergence_supports_nothing():
    records = made()
    for record in records:
        if "lag" in record:
            record |= dict.fromkeys(("test_accuracy", "error", "lag", "noise"))
    assert verdicts(records) == [FAILS] * 3
