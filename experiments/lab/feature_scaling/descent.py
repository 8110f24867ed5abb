"""Gradient descent from the same weights with each input, logged."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from experiments.common.data import Dataset
from experiments.common.records import Record
from experiments.common.trials import Trial, once
from experiments.lab.feature_scaling.bowl import Bowl, largest_stable_rate
from experiments.lab.feature_scaling.problem import draw_problem, prepare
from experiments.lab.feature_scaling.settings import CLOSE, INPUTS, FeatureScalingSettings


def trials(settings: FeatureScalingSettings, data: Dataset) -> list[Trial]:
    """One trial an input."""
    return [once(inputs, partial(_descend, inputs, settings, data)) for inputs in INPUTS]


def _descend(inputs: str, settings: FeatureScalingSettings, data: Dataset) -> Iterator[Record]:
    for seed in range(settings.seeds):
        x, t, first = draw_problem(seed, settings, data)
        bowl = Bowl(prepare(inputs, x), t)
        stable = largest_stable_rate(bowl, first)
        facts = {
            "condition_number": float(np.linalg.cond(bowl.hessian)),
            "stable_rate": stable,
            "stable_rate_by_hessian": 2 / float(np.linalg.eigvalsh(bowl.hessian)[-1]),
            "hessian": bowl.hessian.tolist(),
            "best": bowl.best.tolist(),
            "gain": float(bowl.gain),
        }
        path = bowl.descend(first, settings.learning_rate * stable, settings.steps)
        for record in _log_path(bowl, path, settings.steps):
            yield {"seed": seed} | record | (facts if record["step"] == 0 else {})


def _log_path(bowl: Bowl, path: Iterator[np.ndarray], steps: int) -> Iterator[Record]:
    """Weights and loss at ever rarer steps; the last record tells when it was `CLOSE`."""
    logged = {0, steps, *np.geomspace(1, steps, 150).astype(int).tolist()}
    arrived = None
    for step, w in enumerate(path):
        if arrived is None and bowl.excess(w) <= CLOSE:
            arrived = step
        if step in logged:
            last = {"arrived": arrived} if step == steps else {}
            yield {"step": step, "w1": w[0], "w2": w[1], "excess": bowl.excess(w)} | last
