"""The folder of a run: new, unfinished or finished.

Unlike the result of an experiment it grows while the run goes on, so that a run that was killed can
go on from there. `summary.json`, written last, marks a finished run.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.common import results
from experiments.common.errors import UserError
from experiments.train.settings import Settings, differences

CHECKPOINTS = "checkpoints"
EVENTS = "events"
COMMAND = "train"
LOCK = results.LOCK
NAMES = {results.CONFIG, results.METRICS, results.SUMMARY, CHECKPOINTS, EVENTS, LOCK}


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps every other run out of `out`; what it made of an empty folder goes with an error.

    Raises:
      UserError: another run is working there, or nothing can be written.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; give a folder") from None
    try:
        with results.alone(out):
            yield
    finally:
        if made:
            with suppress(OSError):
                out.rmdir()


def prepare(out: Path, settings: Settings, overwrite: bool, environment: dict[str, Any]) -> None:
    """Makes `out` the folder of a run of `settings`: a new one, or the same one continued.

    Raises:
      UserError: it holds other files, a finished run, or one of other settings, or cannot be
        written.
    """
    present = _present(out)
    if present - NAMES:
        raise UserError(f"--out {out} holds other files than a run; give another folder")
    if results.CONFIG in present:
        obstacle = _obstacle(out, settings, results.SUMMARY in present)
        if obstacle is None:
            return
        if not overwrite:
            raise UserError(f"--out {out} holds {obstacle}; add --overwrite to replace it")
    elif present - {LOCK}:
        raise UserError(f"--out {out} holds parts of a run but no {results.CONFIG}; remove it")
    _begin(out, settings, environment)


def _present(out: Path) -> set[str]:
    try:
        paths = out.iterdir() if out.exists() else ()
        return {path.name for path in paths if not path.name.endswith(results.PART)}
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; give a folder") from None


def _obstacle(out: Path, settings: Settings, finished: bool) -> str | None:
    """What keeps the run in `out` from going on under `settings`."""
    config = results.read_json(out / results.CONFIG)
    if not isinstance(config, dict) or config.get("command") != COMMAND:
        raise UserError(f"--out {out} holds another result than a run; give another folder")
    if finished:
        return "a finished run"
    differing = differences(config.get("settings", {}), settings)
    return f"an unfinished run of other settings ({differing})" if differing else None


def _begin(out: Path, settings: Settings, environment: dict[str, Any]) -> None:
    """Empties `out` and writes its config.json; killed on the way, it leaves a folder to empty."""
    content = {"command": COMMAND, "settings": asdict(settings)} | environment
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINTS, EVENTS):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (results.METRICS, results.SUMMARY, results.CONFIG):
            (out / name).unlink(missing_ok=True)
        results.write_whole(out / results.CONFIG, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror})") from None
