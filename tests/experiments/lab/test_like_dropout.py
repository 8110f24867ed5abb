"""Verdicts on made-up gaps and noises, and what the noise of dropout and batch norm is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnjax.training import TrainState
from experiments.common.rates import SGD
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import like_dropout
from experiments.lab.like_dropout import BATCH, DROPPED, NGS, NOISIEST, SIZES, name_of
from tests.experiments.lab._made import judged, logged, seeds


def verdicts(**changed):
    """Dropout of p has the noise p / (1 - p); batch norm of k images that of dropout 10 / k."""
    noise = {name_of(dropped=p): p / (1 - p) for p in DROPPED[1:]}
    noise |= {name_of(size): 0.5 / size for size in SIZES}
    records = []
    for name, value in noise.items():
        gap = 0.1 - 0.02 * np.log(value / noise[name_of(BATCH)]) / np.log(100)
        gap += changed.get(name.replace(" ", "_"), 0)
        values = {"noise": value, "loss_gap": seeds(gap), "test_accuracy": 0.9}
        records += logged(name, 100, **values)
    return [row.verdict for row in judged(like_dropout, records).values() if row.verdict]


def test_a_gap_on_dropouts_line_is_like_dropout():
    assert verdicts() == [HOLDS, HOLDS, HOLDS]


def test_a_gap_off_the_line_is_not():
    off = {f"statistics_of_{size}": 0.05 for size in (NGS, NOISIEST)}
    assert verdicts(**off) == [FAILS, HOLDS, FAILS]  # wider, and so less than dropout's
    strong = {f"statistics_of_{NGS}": -0.09}
    assert verdicts(**strong) == [HOLDS, FAILS, IN_PART]  # narrower, and more than slightly


def test_the_noise_is_that_of_passes_beside_the_signal(rng):
    passes = rng.normal(3, 0.5, (400, 20, 30)).astype(np.float32)
    found = like_dropout.noise_of(jnp.asarray(passes))
    np.testing.assert_allclose(found, 0.5 / 3, rtol=0.02)


def test_dropout_drops_a_share_and_keeps_the_mean():
    layer, x = like_dropout.Dropout(), jnp.ones((200, 100))
    variables = layer.init(jax.random.key(0), x, train=False)
    stats = {**variables["batch_stats"], "rate": jnp.array(0.2)}
    seen = []
    for _ in range(2):
        y, updated = layer.apply({"batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        stats = updated["batch_stats"]
        np.testing.assert_allclose((y == 0).mean(), 0.2, atol=0.01)
        np.testing.assert_allclose(y.mean(), 1, atol=0.02)
        seen.append(np.asarray(y))
    assert (seen[0] != seen[1]).any()  # drawn anew
    np.testing.assert_array_equal(layer.apply({"batch_stats": stats}, x, train=False), x)


@pytest.mark.parametrize(
    ("size", "dropped", "noisy"), [(BATCH, 0.0, 0), (8, 0.0, 1), (BATCH, 0.5, 1)]
)
def test_virtual_batches_and_dropout_are_noisy(size, dropped, noisy, rng):
    model = like_dropout.NoisyMLP((8,), size, 0.9)
    images = jnp.asarray(rng.uniform(0, 1, (BATCH, 12)), jnp.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    state = TrainState.create(tx=SGD, **variables)
    states = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
    state = jax.tree.map(lambda x: x[0], like_dropout.dropping(dropped, learning_rate=0.5)(states))
    both = (images, jnp.arange(BATCH) % 10)
    found = like_dropout.measure(state, both, model=model, seen=BATCH - 10)["noise"]
    # With all of 256 the company is always about the same.
    assert bool(found > 0.1) == noisy
    assert np.isfinite(optax.tree.norm(state.params))
