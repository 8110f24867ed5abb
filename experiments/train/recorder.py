"""All that a run writes; in a run of several processes, what process 0 writes."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import FileIO
from pathlib import Path
from typing import Any, Self

from experiments.common import results
from experiments.common.errors import UserError
from experiments.common.records import Record, read_records, to_json
from experiments.train.checkpoints import Checkpoints


class Recorder:
    """Metrics, events and checkpoints of the run in one folder; use it as a context manager.

    Args:
      out: the folder, as `results.grown` leaves it.
      state: that before the first step, in NumPy arrays.
      tensorboard: whether to write events.
      run: a word for the settings; a checkpoint of another run is refused.

    Attributes:
      state: to go on from: that of the last checkpoint, or that before the first step.
    """

    def __init__(self, out: Path, state: Any, tensorboard: bool, run: str = ""):
        self._out, self._run = out, run
        self._metrics = out / results.METRICS
        self._checkpoints = Checkpoints(out / results.CHECKPOINTS)
        self._best = self._checkpoints.best
        step = self._checkpoints.last_step or 0
        self.state = self._checkpoints.restore(state) if step else state
        self._hash = sha256(cut(self._metrics, step))
        if step:
            self._check_ties(step)
        self._file = _open(self._metrics)
        self._events = _open_events(out / results.EVENTS, step) if tensorboard else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()
        with suppress(UserError):  # the error on its way out tells more
            self._checkpoints.close()

    def _check_ties(self, step: int) -> None:
        """Refuses a checkpoint that is not of this run, this step and these metrics."""
        path, ties = self._out / results.CHECKPOINTS / str(step), self._checkpoints.ties(step)
        taken = int(getattr(self.state, "step", step))
        if taken != step:
            raise UserError(f"{path}: is of step {taken}; give it its name back, or remove it")
        if ties["run"] != self._run:
            raise UserError(f"{path}: is of a run with other settings or data; remove it")
        if ties["metrics"] != self._hash.hexdigest():
            raise UserError(
                f"{self._metrics}: not the metrics that were there when {path.name} was saved; put "
                "them back, or begin again with --overwrite after removing checkpoints"
            )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Writes a line of metrics."""
        record: Record = {"step": step} | metrics
        self._checkpoints.check()
        line = to_json(record).encode() + b"\n"
        with _writing(self._metrics):
            _write(self._file, line)
        self._hash.update(line)
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def is_best(self, accuracy: float | None) -> bool:
        """Whether `accuracy` on the test set is more than any before."""
        return accuracy is not None and (self._best is None or accuracy > self._best[1])

    def save(self, step: int, state: Any, accuracy: float | None) -> None:
        """Begins to write a checkpoint.

        Args:
          step: number of steps taken.
          state: in NumPy arrays of its own.
          accuracy: on the test set, if it was measured at this step.
        """
        with _writing(self._metrics):
            os.fsync(self._file.fileno())  # a checkpoint must not outlive the metrics before it
        best = accuracy if self.is_best(accuracy) else None
        ties = {"run": self._run, "metrics": self._hash.hexdigest()}
        self._checkpoints.save(step, state, best, ties)
        if best is not None:
            self._best = step, best

    def finish(self) -> dict[str, Any]:
        """Waits for the disk, and writes and returns the summary that marks a finished run."""
        self._checkpoints.wait()
        summary = summarize(read_records(self._metrics))
        with _writing(self._out / results.SUMMARY):
            results.write_json(self._out / results.SUMMARY, summary)
        return summary


def summarize(records: list[Record]) -> dict[str, Any]:
    """The last evaluation, and the first of the best accuracy."""
    evaluations = [record for record in records if "test_accuracy" in record]
    best = max(evaluations, key=lambda record: record["test_accuracy"])
    return {"last": evaluations[-1], "best": best}


def cut(path: Path, step: int) -> bytes:
    """Takes from `path` the lines after `step`, and a line that was not written to its end.

    The file is only ever made shorter, so this needs no space on the disk.

    Returns:
      What is left.
    """
    if not path.exists():
        return b""
    content, kept = path.read_bytes(), 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n") or _step(line, path) > step:
            break
        kept += len(line)
    if kept < len(content):
        with _writing(path):
            os.truncate(path, kept)
    return content[:kept]


def _step(line: bytes, path: Path) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the metrics of a run; remove it") from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns what a full disk raises into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); the checkpoints are kept, and the "
            "same command goes on from the last"
        ) from None


def _write(file: FileIO, line: bytes) -> None:
    """Writes all of `line`, and leaves nothing in a buffer if the disk has no room for it."""
    while line:
        line = line[file.write(line) :]


def _open(path: Path) -> FileIO:
    try:
        return FileIO(path, "a")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _open_events(folder: Path, step: int):
    """TensorBoard's writer; it hides events after `step`, which a killed run may have left."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)
