"""The loop of a run: steps, metrics, evaluations and checkpoints."""

from bnjax.training import TrainState
from experiments.common.progress import Reporter
from experiments.train.batches import Batches
from experiments.train.recorder import Recorder
from experiments.train.settings import Settings
from experiments.train.steps import Steps, on_host, test_metrics

DOING = "training"


def train(
    state: TrainState,
    steps: Steps,
    batches: Batches,
    settings: Settings,
    checkpoint_every: int,
    recorder: Recorder | None,
    reporter: Reporter,
) -> None:
    """Takes the steps that `state` has not seen yet.

    Args:
      state: where to start; consumed.
      steps, batches, settings: the run.
      checkpoint_every: steps between checkpoints.
      recorder: where to write; None on all processes but the first, which all compute the same.
      reporter: shows the progress.
    """
    accuracy = None
    for step in range(int(state.step) + 1, settings.steps + 1):
        state, metrics = steps.train(state, batches.train(step - 1))
        last, record = step == settings.steps, {}
        if step % settings.log_every == 0 or last:
            record["loss"] = float(metrics["loss"])
        if step % settings.eval_every == 0 or last:
            record |= test_metrics(steps, state, batches)
        found = record.get("test_accuracy")
        accuracy = accuracy if found is None else found
        if "loss" in record:
            reporter.show(DOING, step, record["loss"], accuracy)
        if recorder is None:
            continue
        if record:
            recorder.log(step, record)
        if step % checkpoint_every == 0 or last or recorder.is_best(found):
            recorder.save(step, on_host(state), found)
