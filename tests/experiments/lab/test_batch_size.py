"""Verdicts on made-up errors, and what the batches are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART, UNDECIDED
from experiments.lab import batch_size
from experiments.lab.batch_size import BATCH, GHOST, GROUP, NARROW, RENORM, STATISTICS_OF_2, name_of
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = batch_size.PRESETS["quick"]
PAPERS = {  # errors in percent, about as the papers have them
    **{
        (BATCH, size, 1): error for size, error in ((2, 35), (4, 27), (16, 24), (64, 23), (256, 28))
    },
    **{(GROUP, size, 1): 24 for size in (2, 4, 16, 64)},
    **{(RENORM, size, 1): error for size, error in ((2, 28), (4, 25), (16, 23.5), (64, 23))},
    (NARROW, 4, 1): 26,
    (STATISTICS_OF_2, 64, 1): 35,
    (GHOST, 256, 1): 25,
    **{(BATCH, 16, run): 33 for run in (2, 8)},
    **{(RENORM, 16, run): 24 for run in (2, 8)},
}


def records(errors, spread=0.01):
    """Each trial at its best rate as given, and worse at the others."""
    made = []
    for (norm, size, run), error in errors.items():
        for place, rate in enumerate(SETTINGS.at(size).rates):
            accuracy = 1 - seeds(error + 10 * (place != 1), spread) / 100
            values = {"test_accuracy": accuracy, "validation_accuracy": accuracy}
            made += logged(at_rate(name_of(norm, size, run), rate), 100, **values)
    return made


def verdicts(errors, **options):
    rows = judged(batch_size, records(errors, **options), SETTINGS).values()
    return [row.verdict for row in rows if row.verdict]


def test_errors_as_in_the_papers_hold():
    assert verdicts(PAPERS) == [HOLDS] * 6


def test_what_grows_as_much_with_group_norm_is_not_the_norms_doing():
    errors = PAPERS | {(GROUP, 2, 1): 40}
    assert verdicts(errors)[:2] == [FAILS, FAILS]


def test_the_other_way_round_does_not_hold():
    upside_down = {name: 60 - error for name, error in PAPERS.items()}
    assert verdicts(upside_down) == [FAILS, HOLDS, FAILS, FAILS, FAILS, FAILS]
    worse = PAPERS | {(GROUP, 4, 1): 30}
    assert verdicts(worse)[3] == IN_PART


def test_no_difference_and_seeds_that_disagree():
    assert verdicts(dict.fromkeys(PAPERS, 20), spread=0) == [FAILS, HOLDS, *[FAILS] * 4]
    errors = PAPERS | {(RENORM, 4, 1): 26.703}  # in another order
    assert verdicts(errors, spread=0.2)[2] == UNDECIDED


def test_every_size_sees_the_same_images_and_looks_back_on_as_many():
    for size in (2, 4, 16, 64, 256):
        at = SETTINGS.at(size)
        assert at.batch_size == size and at.steps * size == SETTINGS.steps * 64
        assert at.rates[0] / size == pytest.approx(SETTINGS.rates[0] / 64)
        assert at.momentum ** (1 / size) == pytest.approx(SETTINGS.momentum ** (1 / 64))


def test_runs_shuffle_all_images():
    labels = jnp.asarray(np.repeat(np.arange(10), 20))
    order = batch_size.in_runs(jax.random.key(0), labels, size=2)
    np.testing.assert_array_equal(np.sort(order), np.arange(200))
    runs = np.asarray(labels[order]).reshape(-1, 2)
    assert (runs == runs[:, :1]).all()
    assert (runs[1:, 0] != runs[:-1, 0]).mean() > 0.5  # and not sorted by class
    other = batch_size.in_runs(jax.random.key(1), labels, size=2)
    assert (np.asarray(order) != np.asarray(other)).any()


def test_batch_renorm_starts_as_batch_norm():
    norm = batch_size.make_norm(RENORM, steps=100)
    layer = norm(use_running_average=True, momentum=0.9, dtype=None)
    assert [layer.r_max(0), layer.d_max(0)] == [1, 0]
    assert [layer.r_max(25), layer.d_max(25)] == [3, 5]
