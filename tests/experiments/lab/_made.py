"""Made-up records, judged and drawn as those of a run are."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from experiments.common import plots
from experiments.common.records import Record, per_seed
from experiments.common.verdicts import CLAIM, Row, settle

SEEDS = 10


def seeds(mean: float, spread: float = 0.01, number: int = SEEDS) -> np.ndarray:
    """Numbers (seeds,) about `mean`, in no order, of two trials never the same."""
    steps = (7 * np.arange(number) + round(1000 * abs(mean))) % number
    return mean * (1 + spread * (steps / number - 0.5))


def logged(trial: str, step: int, **metrics: Any) -> Iterator[Record]:
    """The records of one evaluation of one trial; each metric is (seeds,), or the same for all."""
    yield from per_seed(step, trial, {k: np.broadcast_to(v, SEEDS) for k, v in metrics.items()})


def judged(module: ModuleType, records: list[Record], settings: Any = None) -> dict[str, Row]:
    """The rows with their verdicts, by their short names; and they can be drawn."""
    settings = settings or module.PRESETS["quick"]
    rows = settle(module.judge(records, settings))
    assert len({row.short for row in rows}) == len(rows)
    assert all(len(row.short) <= 24 and row.claim and row.found for row in rows)
    assert all(row.source and row.tests for row in rows if row.kind == CLAIM)
    with plots.style():
        plots.frame(module.draw(records, settings), "title", rows, "note")
    return {row.short: row for row in rows}
