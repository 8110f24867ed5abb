"""The folder of a finished run, which appears complete or not at all.

A run writes into a hidden folder beside its destination, which is renamed when all is done. Runs
that fail, or are stopped with Ctrl-C, take the hidden folder away; a run that is killed leaves only
that.
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


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yields a new folder that becomes `out` if the body succeeds, and is removed if it does not.

    An `out` that exists is replaced: call `check_destination` first.
    """
    out = Path(os.path.abspath(out))
    parent = _first_existing(out.parent)
    stage = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        stage.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror})") from None
    try:
        yield stage
        _replace(out, stage)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        _remove_empty(out.parent, parent)
        raise


def _replace(out: Path, stage: Path) -> None:
    """Puts `stage` in the place of `out`."""
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
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); not a result") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


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
