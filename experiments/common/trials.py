"""What an experiment is made of: trials, each run by itself, and not again after a kill."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import optax

from experiments.common.data import Dataset
from experiments.common.loop import Metrics, train_seeds
from experiments.common.metrics import evaluate
from experiments.common.progress import Reporter
from experiments.common.records import Record, per_seed
from experiments.common.settings import Settings

Summarise = Callable[[np.ndarray, dict[str, np.ndarray]], dict[str, np.ndarray]]


class Trial(NamedTuple):
    """A part of an experiment that stands alone, such as one network trained over all seeds."""

    name: str  # its records carry it as `network`
    steps: int  # of the progress bar
    measure: Callable[[Reporter], Iterable[Record]]


def training(
    name: str,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    data: Dataset,
    settings: Settings,
    *,
    tags: Mapping[str, Any] | None = None,
    evaluate: Callable[..., Metrics] = evaluate,
    summarise: Summarise | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Trial:
    """Trains `model` on `data` with every seed, and logs what `evaluate` measures.

    Args:
      name: of the trial.
      model, optimizer, data: see `experiments.common.loop.train_seeds`. Use the same objects in
        all trials that differ in their data or learning rate only: they share compiled programs.
      settings: seeds, steps, batch size and interval of evaluation.
      tags: what tells this trial from others, for `judge` and `draw`; in every record.
      evaluate, options: of `train_seeds`.
      summarise: makes numbers (seeds,) of what `evaluate` measures that is not one number a seed,
        by name (evaluations, seeds, ...), and of the steps (evaluations,); they are logged at the
        end, and what they are made of is not.
      steps, batch_size: in place of those of `settings`.
    """
    steps = settings.steps if steps is None else steps

    def measure(reporter: Reporter) -> Iterator[Record]:
        reporter.say(f"{name}: compiling")
        evaluations = train_seeds(
            model,
            optimizer,
            evaluate,
            data,
            num_seeds=settings.seeds,
            num_steps=steps,
            batch_size=settings.batch_size if batch_size is None else batch_size,
            eval_every=min(settings.eval_every, steps),
            **options,
        )
        seen: dict[str, list[np.ndarray]] = {}
        at: list[int] = []
        for step, metrics in evaluations:
            at.append(step)
            for key in [key for key, value in metrics.items() if value.ndim > 1]:
                seen.setdefault(key, []).append(metrics.pop(key))
            if step == steps and summarise is not None:
                arrays = {key: np.stack(values) for key, values in seen.items()}
                metrics |= summarise(np.array(at), arrays)
            for record in per_seed(step, name, metrics):
                yield record | dict(tags or {})
            mean = {key: float(value.mean()) for key, value in metrics.items()}
            reporter.show(name, step, mean.get("train_loss"), mean.get("test_accuracy"))

    return Trial(name, steps, measure)


def once(name: str, measure: Callable[[], Iterable[Record]]) -> Trial:
    """A measurement without training steps; its records get `network` = `name`."""

    def run(reporter: Reporter) -> Iterator[Record]:
        reporter.say(name)
        for record in measure():
            yield {"network": name} | record

    return Trial(name, 1, run)
