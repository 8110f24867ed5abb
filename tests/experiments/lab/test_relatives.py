"""Verdicts on made-up errors, and what the network does with its patches and norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import relatives
from experiments.lab.relatives import BATCH, GROUP, INSTANCE, LARGE, LAYER, NORMS, SMALL, name_of
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = relatives.PRESETS["quick"]
PAPER = {  # errors in percent at 64 and at 2
    **dict.fromkeys(NORMS, (26.0, 26.0)),
    BATCH: (23.6, 34.7),
    GROUP: (24.1, 24.1),
    LAYER: (25.3, 25.3),
    INSTANCE: (28.4, 28.4),
}
FASTER = {relatives.NONE: 60, relatives.WEIGHT: 30}  # steps to the target


def verdicts(errors, faster=FASTER):
    """Every norm at its best rate as given, and worse at the others."""
    records = []
    for norm, each in errors.items():
        for size, error in zip((LARGE, SMALL), each, strict=True):
            for place, rate in enumerate(SETTINGS.at(size).rates):
                for step in range(0, SETTINGS.steps + 1, 10):
                    late = step >= 0.9 * SETTINGS.steps
                    reached = 0.95 * (step >= faster.get(norm, 50))
                    accuracy = 1 - seeds(error + 10 * (place != 1)) / 100 if late else reached
                    values = {"test_accuracy": accuracy, "validation_accuracy": accuracy}
                    records += logged(at_rate(name_of(norm, size), rate), step, **values)
    return [row.verdict for row in judged(relatives, records, SETTINGS).values() if row.verdict]


def test_errors_as_in_the_papers_hold():
    assert verdicts(PAPER) == [HOLDS] * 3


def test_the_other_way_round_does_not_hold():
    upside_down = {norm: tuple(60 - error for error in each) for norm, each in PAPER.items()}
    assert verdicts(upside_down, {relatives.NONE: 30, relatives.WEIGHT: 60}) == [FAILS] * 3


def test_one_norm_that_minds_small_batches_makes_it_hold_in_part():
    assert verdicts(PAPER | {LAYER: (25.3, 40.0)})[0] == IN_PART


def test_patches_are_squares_of_pixels():
    image = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    found = relatives.patches(jnp.asarray(image))
    assert found.shape == (2, 2, 2, 12)
    np.testing.assert_array_equal(found[1, 0, 1], image[1, :2, 2:].ravel())


# Batch renorm does so where its limits stop it from making up for the batch.
@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != relatives.RENORM])
def test_only_batch_norm_looks_at_companions(norm):
    model = relatives.PatchNet(norm, (8, 8, 1), (4, 8), 0.9)
    x = jax.random.uniform(jax.random.key(0), (4, 64))
    variables = model.init(jax.random.key(1), x, train=False)

    def first(x, train):
        outcome = model.apply(variables, x, train=train, mutable=["batch_stats"])
        return np.asarray(outcome[0][0])

    other = x.at[1:].multiply(0.5)
    same = np.allclose(first(x, True), first(other, True), atol=1e-5)
    assert same == (norm != BATCH)
    np.testing.assert_allclose(first(x, False), first(other, False), atol=1e-5)
