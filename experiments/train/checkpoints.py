"""The state of a run on disk, one folder a step, written by orbax in the background.

The last two checkpoints are kept, and the one with the best accuracy on the test set. A folder
takes its name when it is complete, so a run that is killed leaves only whole ones.

A pytree is stored flat, each leaf under its path as Python would write it, and is put together
again by the tree that asks for it. So keys keep their type (orbax turns integers into strings), and
what a checkpoint of another model has or lacks can be told by name. A checksum goes with it, for
orbax notices a file cut short but not a changed number.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from bnjax.interop._files import DAMAGE, quiet_orbax
from bnjax.interop._safetensors import checksum
from experiments.common.errors import UserError

ACCURACY = "test_accuracy"
CHECKSUM = "checksum"
DISK_FAULTS = ("No space left on device", "File too large", "Disk quota exceeded")
Leaves = dict[str, np.ndarray]  # by path


class Checkpoints:
    """The checkpoints in one folder; only one process may have them open.

    Args:
      folder: where they are, or will be.
    """

    def __init__(self, folder: Path):
        quiet_orbax()
        self._folder = folder.absolute()
        with _disk_faults(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            _check_accuracies(self._folder)
            self._manager = ocp.CheckpointManager(self._folder, options=_options())

    @property
    def last_step(self) -> int | None:
        """Step of the last checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and accuracy of the best checkpoint."""
        step = self._manager.best_step()
        metrics = None if step is None else self._manager.metrics(step)
        return None if step is None or metrics is None else (step, metrics[ACCURACY])

    def save(
        self,
        step: int,
        tree: Any,
        accuracy: float | None = None,
        ties: Mapping[str, str] | None = None,
    ) -> None:
        """Begins to write `tree`, of NumPy arrays that nobody changes; waits for the one before.

        Args:
          step: number of steps taken.
          tree: any pytree.
          accuracy: on the test set, if it is the best so far.
          ties: words for what the checkpoint belongs to.
        """
        leaves = flatten(tree)
        leaves[CHECKSUM] = np.array(checksum(leaves), np.uint32)
        metrics = None if accuracy is None else {ACCURACY: accuracy}
        with _disk_faults(self._folder):
            # Where a folder cannot be made, threads of orbax keep the process from its end.
            TemporaryFile(dir=self._folder).close()
            self._manager.save(
                step,
                args=ocp.args.StandardSave(leaves),
                metrics=metrics,
                custom_metadata=dict(ties or {}),
            )

    def ties(self, step: int) -> Mapping[str, Any]:
        """What `save` was told of the checkpoint; empty words if nothing."""
        try:
            found = self._manager.metadata(step).custom_metadata
        except Exception:  # damaged, in one of many ways
            found = None
        return defaultdict(str, found or {})

    def check(self) -> None:
        """Raises what went wrong in the background, if anything did."""
        with _disk_faults(self._folder):
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when all is on disk."""
        with _disk_faults(self._folder):
            self._manager.wait_until_finished()

    def restore(self, tree: Any) -> Any:
        """The last checkpoint as a pytree like `tree`, of NumPy arrays.

        Raises:
          UserError: it is damaged, no checkpoint of ours, or of another model.
        """
        step = self.last_step
        if step is None:
            raise UserError(f"{self._folder}: no checkpoint")
        path = self._folder / str(step)
        leaves = self._read(step)
        if isinstance(leaves, Exception):
            raise UserError(f"{path}: {_fault(leaves)}; {self._way_out(step)}")
        if not isinstance(leaves, dict) or CHECKSUM not in leaves:
            raise UserError(f"{path}: not a checkpoint of this program; {self._way_out(step)}")
        stored = leaves.pop(CHECKSUM)
        if int(stored) != checksum(leaves):
            raise UserError(f"{path}: damaged (wrong checksum); {self._way_out(step)}")
        return unflatten(leaves, tree, path)

    def close(self) -> None:
        """Waits, and ends the threads of orbax."""
        with _disk_faults(self._folder):
            self._manager.close()

    def _read(self, step: int) -> Any:
        """What is stored, or what orbax and its libraries raise."""
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore())
        except Exception as error:
            return error

    def _way_out(self, step: int) -> str:
        earlier = [other for other in self._manager.all_steps() if other < step]
        if not earlier:
            return "it is the only checkpoint; remove it to start again"
        return f"remove it to go on from step {max(earlier)}"


def flatten(tree: Any) -> Leaves:
    """The leaves of `tree` by their paths, such as ".params['Dense_0']['kernel']"."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in pairs}


def unflatten(leaves: Leaves, tree: Any, path: Path) -> Any:
    """A pytree like `tree` of `leaves`, which must be those that `tree` has."""
    expected = {name: (leaf.shape, leaf.dtype) for name, leaf in flatten(tree).items()}
    found = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    if found != expected:
        names = [name for name in expected | found if found.get(name) != expected.get(name)]
        there, here = _describe(found, names[0]), _describe(expected, names[0])
        raise UserError(
            f"{path}: checkpoint of another model; {len(names)} arrays differ, "
            f"the first is {names[0]}, {there} there and {here} here"
        )
    ordered = [leaves[name] for name in flatten(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), ordered)


def _options() -> ocp.CheckpointManagerOptions:
    best = BestN(n=1, get_metric_fn=_accuracy, keep_checkpoints_without_metrics=False)
    return ocp.CheckpointManagerOptions(
        best_fn=_accuracy,
        preservation_policy=AnyPreservationPolicy([LatestN(2), best]),
        cleanup_tmp_directories=True,
        create=False,
        # One process writes what is the same in all; the others need no barrier.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
        ),
    )


def _check_accuracies(folder: Path) -> None:
    """Names the checkpoint whose accuracy cannot be read; orbax, which reads all, does not."""
    for path in folder.glob("[0-9]*/metrics/metrics"):
        try:
            float(_accuracy(json.loads(path.read_bytes())))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path.parents[1]}: damaged (metrics); remove it to go on") from None


def _accuracy(metrics: Any) -> float:
    return metrics[ACCURACY]


def _describe(leaves: dict[str, tuple[tuple[int, ...], np.dtype]], name: str) -> str:
    if name not in leaves:
        return "missing"
    shape, dtype = leaves[name]
    return f"{dtype}{list(shape)}"


def _fault(error: Exception) -> str:
    """The kind of damage, without the pages that orbax says about it."""
    for word, meaning in DAMAGE.items():
        if word in str(error):
            return f"damaged ({meaning})"
    return f"damaged, or not a checkpoint of this program ({type(error).__name__})"


@contextmanager
def _disk_faults(folder: Path) -> Iterator[None]:
    """Turns what a full or read-only disk makes orbax raise into one line."""
    try:
        yield
    except Exception as error:
        reason = _disk_fault(error)
        if reason is None:
            raise
        raise UserError(
            f"{folder}: a checkpoint cannot be written ({reason}); earlier ones are kept, "
            "and the same command goes on from there"
        ) from None


def _disk_fault(error: Exception) -> str | None:
    """What is wrong with the disk, or None if that is not what `error` is about."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return next((fault for fault in DISK_FAULTS if fault.lower() in str(error).lower()), None)
