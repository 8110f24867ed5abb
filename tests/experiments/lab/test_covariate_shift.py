"""Paint, what adapting can undo, and verdicts on made-up accuracies."""

import numpy as np

from bnjax.training import adapt
from experiments.common.data import Split
from experiments.common.population import evaluated, over_seeds, running_accuracy
from experiments.common.verdicts import CLAIM, FAILS, HOLDS, IN_PART
from experiments.lab import covariate_shift
from experiments.lab.covariate_shift import PAINTS, SAMPLE, paint
from tests.experiments.lab._made import judged, logged, seeds
from tests.experiments.lab._networks import PIXELS, networks, of_seed


def test_paint():
    grey = Split(np.array([[0.0, 0.5, 1.0, 0.25]], np.float32), np.zeros(1, np.int32))
    painted = paint(grey, (2, 2, 1), (0, 0, 0.5), (1, 0.5, 0))
    expected = [[0, 0, 0.5], [0.5, 0.25, 0.25], [1, 0.5, 0], [0.25, 0.125, 0.375]]
    np.testing.assert_allclose(painted.images.reshape(4, 3), expected)
    colours = Split(np.array([[0.1, 0.2, 0.3]], np.float32), np.zeros(1, np.int32))
    inverted = paint(colours, (1, 1, 3), *PAINTS["inverted"])
    np.testing.assert_allclose(inverted.images, [[0.9, 0.8, 0.7]], rtol=1e-6)


def test_adapting_undoes_low_contrast_and_not_inversion():
    model, variables = networks()
    images = np.random.default_rng(2).uniform(size=(200, PIXELS)).astype(np.float32)
    options = {"call": evaluated, "transform": over_seeds}
    known = adapt(model, variables, [images], **options)
    labels = model.apply(of_seed(known, 0), images, train=False).argmax(1)
    assert np.bincount(labels).max() < 150

    def accuracy(name: str) -> float:
        painted = paint(Split(images, labels), (1, 2, 3), *PAINTS[name]).images
        adapted = adapt(model, variables, [painted], **options)
        return float(running_accuracy(model, adapted, painted, labels)[0])

    assert accuracy("low contrast") > 0.97
    assert accuracy("inverted") < 0.8


def made(old=0.2, few=0.94, every=0.95, mixed=0.5):
    """Accuracies: as trained, adapted to 64 and to 1,024 images, and to 4 with the old ones."""
    records = [{"network": SAMPLE, "seed": 0, "step": 2, "shape": [1, 2, 1], "pixels": [0.0, 1.0]}]
    records += logged("grey, as trained", 0, test_accuracy=seeds(0.98, 0.001))
    for shift in (name for name in PAINTS if name != "grey"):
        records += logged(f"{shift}, as trained", 0, test_accuracy=seeds(old, 0.001))
        for number, new, weighed in ((4, 0.3, mixed), (64, few, few), (1024, every, every)):
            records += logged(f"{shift}, adapted", number, test_accuracy=seeds(new, 0.001))
            name = f"{shift}, adapted, old weighted"
            records += logged(name, number, test_accuracy=seeds(weighed, 0.001))
    return records


def verdicts(records):
    rows = judged(covariate_shift, records).values()
    assert [row.short for row in rows if row.kind != CLAIM] == ["inverted"]
    return [row.verdict for row in rows if row.kind == CLAIM]


def test_verdicts():
    assert verdicts(made()) == [HOLDS] * 4
    assert verdicts(made(old=0.99, few=0.5, every=0.95, mixed=0.2)) == [FAILS] * 4
    # Everything is regained, but not by 64 images.
    assert verdicts(made(few=0.8)) == [HOLDS, HOLDS, FAILS, HOLDS]


def test_one_paint_of_two_is_a_part():
    records = made()
    for record in records:
        if record["network"] == "coloured, as trained":
            record["test_accuracy"] = 0.99
    assert verdicts(records)[:2] == [IN_PART, FAILS]


def test_divergence_supports_nothing():
    records = made()
    for record in records:
        if record["network"] != SAMPLE:
            record["test_accuracy"] = None
    assert verdicts(records) == [FAILS] * 4
