"""The folder of a run, of which each has one at a time, and in which a stopped one goes on.

* `staged`: a result appears as a whole. The run works in a hidden folder beside its destination,
  which is renamed when all is done. Trials that are there already, of a run with the same settings
  that was stopped or killed, are not run again.
* `grown`: the folder grows in sight. `summary.json`, written last, marks a finished run.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.common.errors import UserError, differences

METRICS = "metrics.jsonl"
RECORDS = "records.jsonl.gz"  # the same of an experiment; they travel with the project
CONFIG = "config.json"
SUMMARY = "summary.json"
PARTS, LOCK = "parts", "lock"  # only in a run that is not finished
CHECKPOINTS, EVENTS = "checkpoints", "events"  # folders of a run that grows in sight
GROWN = {CONFIG, METRICS, SUMMARY, CHECKPOINTS, EVENTS, LOCK}
PART = ".part"  # ends the name of a file that is being written
PACKAGES = ("bnjax", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "matplotlib")


def check_destination(out: Path, overwrite: bool, files: Collection[str]) -> None:
    """Refuses a destination that holds anything, or with `overwrite` anything but a result.

    `files` are those of a finished one.
    """
    present = _present(out)
    if not present:
        return
    if present != set(files):
        raise UserError(f"--out {out} holds other files than a result; give another folder")
    if not overwrite:
        found = "a finished" if is_finished(out, files) else "a damaged"
        raise UserError(f"--out {out} holds {found} result; add --overwrite to replace it")


def is_finished(out: Path, files: Collection[str]) -> bool:
    """Whether `out` holds a result, with all that belongs to one."""
    if not all((out / name).is_file() for name in files):
        return False
    try:
        summary = read_json(out / SUMMARY)
    except UserError:
        return False
    return isinstance(summary, dict) and "claims" in summary


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
    with alone(stage):
        try:
            _settle(out, stage)
            _keep_parts_of(stage, config, overwrite)
            yield stage
        except BaseException:
            if not any((stage / PARTS).glob("*.jsonl")):
                shutil.rmtree(stage, ignore_errors=True)
                _remove_empty(out.parent, parent)
            raise
        _replace(out, stage)


@contextmanager
def grown(out: Path, config: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """Makes `out` the folder of the run in the body: a new one, or the same one continued.

    A run is the same if it has the `command` and the `settings` of `config`. A folder that was made
    for a run that left nothing in it is removed.

    Raises:
      UserError: another run is working there; it holds other files, a finished run, or one of other
        settings; or nothing can be written.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; give a folder") from None
    try:
        with alone(out):
            if not goes_on(out, config["command"], config["settings"], overwrite):
                _begin(out, config)
            yield
    finally:
        if made:
            with suppress(OSError):
                out.rmdir()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps every other run out of `folder`; a killed run's lock is gone with it.

    Raises:
      UserError: another run is working there, or nothing can be written.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another run is writing {folder}; wait, or give another --out") from None
    except OSError as error:
        raise UserError(f"--out {folder}: cannot write there ({error.strerror})") from None
    try:
        yield
    finally:
        # Before it is released: a run that got hold of the file meanwhile sees that it is gone.
        with suppress(OSError):  # of a disk that is read-only by now: a lock that nobody holds
            (folder / LOCK).unlink()
        lock.release()


def _present(out: Path) -> set[str]:
    """The names in `out`."""
    above = _first_existing(out)
    if not above.is_dir():
        raise UserError(f"--out {out}: {above} is a file; give a folder")
    try:
        return {path.name for path in out.iterdir()} if above == out else set()
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; give a folder") from None


def goes_on(out: Path, command: str, settings: Mapping[str, Any] | None, overwrite: bool) -> bool:
    """Whether `out` holds a run to go on with; if not, it may be emptied, or is refused.

    Settings that are not known yet are not compared.
    """
    present = {name for name in _present(out) if not name.endswith(PART)}
    if present - GROWN:
        raise UserError(f"--out {out} holds other files than a run; give another folder")
    if CONFIG not in present:
        if present - {LOCK}:
            raise UserError(f"--out {out} holds parts of a run but no {CONFIG}; remove it")
        return False
    stored = read_json(out / CONFIG)
    if not isinstance(stored, dict) or stored.get("command") != command:
        raise UserError(f"--out {out} holds another result than a run; give another folder")
    there = stored.get("settings", {})
    if SUMMARY in present:
        found = "a finished run"
    elif settings is not None and (differing := differences(there, settings, "there", "here")):
        found = f"an unfinished run of other settings ({differing})"
    else:
        return True
    if not overwrite:
        raise UserError(f"--out {out} holds {found}; add --overwrite to replace it")
    return False


def _begin(out: Path, config: dict[str, Any]) -> None:
    """Empties `out` and writes its config.json; killed on the way, it leaves a folder to empty."""
    try:
        for name in (CHECKPOINTS, EVENTS):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (METRICS, SUMMARY, CONFIG):
            (out / name).unlink(missing_ok=True)
        write_json(out / CONFIG, config)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror})") from None


def _keep_parts_of(stage: Path, config: Any, overwrite: bool) -> None:
    """Leaves finished parts in `stage` if they are of this `config`; refuses or deletes others."""
    path, text = stage / CONFIG, json.dumps(config, indent=2) + "\n"
    if not (path.exists() and path.read_bytes() == text.encode()):
        done = len(list((stage / PARTS).glob("*.jsonl")))
        if done and not overwrite:
            raise UserError(
                f"{stage} holds {done} finished trials of a stopped run with other settings or "
                "versions; give those, another --out, or --overwrite to drop them"
            )
        shutil.rmtree(stage / PARTS, ignore_errors=True)
    (stage / PARTS).mkdir(exist_ok=True)
    write_whole(path, text)


def _replace(out: Path, stage: Path) -> None:
    """Puts `stage`, without what only a run needs, in the place of `out`."""
    shutil.rmtree(stage / PARTS)
    (stage / LOCK).unlink(missing_ok=True)
    if out.exists():
        out.rename(_old(stage))
    stage.rename(out)
    _settle(out, stage)


def _settle(out: Path, stage: Path) -> None:
    """Ends what a run that was killed while it replaced `out` has begun."""
    old = _old(stage)
    if old.exists() and out.exists():
        shutil.rmtree(old)
    elif old.exists():
        old.rename(out)


def _old(stage: Path) -> Path:
    """Where the result that is being replaced is for a moment."""
    return stage.with_suffix(".old")


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
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that appears complete or not at all, whatever stops program or machine."""
    part = path.with_name(path.name + PART)
    with part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Has the names in `folder` on the disk, where a folder can be opened for that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
    """Versions, device and processor: what another machine would have to share."""
    import jax

    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "commit": _commit(),
        "device": {"kind": devices[0].device_kind, "count": len(devices)},
        "processor": processor(),
    }


def on_device(config: dict[str, Any]) -> str:
    """Such as ", on NVIDIA H200"; nothing where a CPU did it, as in most results."""
    kind = config["device"]["kind"]
    return "" if kind == "cpu" else f", on {kind}"


def processor() -> str:
    """The model, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """Of the source tree that this is run from; None where there is none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git
        return None
    return found.stdout.strip() or None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        module = __import__(package)  # bnjax from a source tree
        return getattr(module, "__version__", "not installed")
