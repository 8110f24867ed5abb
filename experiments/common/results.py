"""The folder of a run: finished it appears as a whole; until then it is kept out of sight.

A run works in a hidden folder beside its destination, which is renamed when all is done. What is
there already, of a run with the same settings that was stopped or killed, is not done again.
"""

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.common.errors import UserError

METRICS = "metrics.jsonl"
CONFIG = "config.json"
SUMMARY = "summary.json"
PARTS, LOCK = "parts", "lock"  # only in a run that is not finished
PACKAGES = ("bnjax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "matplotlib")


def check_destination(out: Path, overwrite: bool, figure: str) -> None:
    """Refuses a destination that holds anything, or with `overwrite` anything but a result."""
    try:
        present = {path.name for path in out.iterdir()} if out.exists() else set()
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; give a folder") from None
    if not present:
        return
    if present != {METRICS, CONFIG, SUMMARY, figure}:
        raise UserError(f"--out {out} holds other files than a result; give another folder")
    if not overwrite:
        raise UserError(f"--out {out} holds a finished result; add --overwrite to replace it")


def is_finished(out: Path) -> bool:
    """Whether `out` holds a result."""
    return (out / SUMMARY).is_file()


@contextmanager
def staged(out: Path, config: Any, overwrite: bool) -> Iterator[Path]:
    """Yields a folder to work in that becomes `out` if the body succeeds.

    If it does not, the folder is kept for the next run with the same `config`, unless no part has
    been finished in it; that of another `config` is refused, or with `overwrite` emptied. An `out`
    that exists is replaced: call `check_destination` first.
    """
    out = Path(os.path.abspath(out))
    parent = _first_existing(out.parent)
    stage = out.parent / f".{out.name}.part"
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror})") from None
    with _alone(stage):
        try:
            _keep_parts_of(stage, config, overwrite)
            yield stage
        except BaseException:
            if not any((stage / PARTS).glob("*.jsonl")):
                shutil.rmtree(stage, ignore_errors=True)
                _remove_empty(out.parent, parent)
            raise
        _replace(out, stage)


@contextmanager
def _alone(stage: Path) -> Iterator[None]:
    """Refuses a folder that another run is working in; a killed run's lock is gone with it."""
    import fcntl

    with (stage / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing {stage}; wait, or give another --out"
            ) from None
        yield


def _keep_parts_of(stage: Path, config: Any, overwrite: bool) -> None:
    """Leaves finished parts in `stage` if they are of this `config`; refuses or deletes others."""
    path, text = stage / CONFIG, json.dumps(config, indent=2) + "\n"
    if not (path.exists() and path.read_text() == text):
        done = len(list((stage / PARTS).glob("*.jsonl")))
        if done and not overwrite:
            raise UserError(
                f"{stage} holds {done} finished trials of a stopped run with other settings or "
                "versions; give those, another --out, or --overwrite to drop them"
            )
        shutil.rmtree(stage / PARTS, ignore_errors=True)
    (stage / PARTS).mkdir(exist_ok=True)
    path.write_text(text)


def _replace(out: Path, stage: Path) -> None:
    """Puts `stage`, without what only a run needs, in the place of `out`."""
    shutil.rmtree(stage / PARTS)
    (stage / LOCK).unlink()
    if out.exists():
        old = stage.with_suffix(".old")
        out.rename(old)
        stage.rename(out)
        shutil.rmtree(old)
    else:
        stage.rename(out)


def _first_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _remove_empty(folder: Path, stop: Path) -> None:
    """Removes `folder` and its parents below `stop`, which this run made, as far as empty."""
    while folder != stop:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def write_json(path: Path, content: Any) -> None:
    """Writes `content` readably, in a fixed order."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file of a result folder."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); not a result") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{path}: not JSON (nested too deep)") from None


def environment() -> dict[str, Any]:
    """Versions and the kind of device: what another machine would have to share."""
    import jax

    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "device": {"kind": devices[0].device_kind, "count": len(devices)},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        module = __import__(package)  # bnjax from a source tree
        return getattr(module, "__version__", "not installed")
