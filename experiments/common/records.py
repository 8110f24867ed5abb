"""Reads and writes metrics: one JSON object an evaluation, seed and network.

Everything that judges or draws an experiment reads these records and nothing else.
"""

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.errors import UserError
from experiments.common.results import write_whole

Record = dict[str, Any]
MOST_BYTES = 2**28  # of records; the most of this project have a hundredth of it
END = "# sha256 of the lines above: "


def per_seed(step: int, network: str, metrics: Mapping[str, np.ndarray]) -> Iterator[Record]:
    """Splits `metrics`, each (seeds,), into one record a seed."""
    num_seeds = len(next(iter(metrics.values())))
    for seed in range(num_seeds):
        values = {name: _short(value[seed]) for name, value in sorted(metrics.items())}
        yield {"network": network, "seed": seed, "step": step} | values


def _short(value: Any) -> float:
    """With the digits that float32 tells apart: records of all results travel with the project."""
    return float(f"{float(value):.8g}")


def to_json(record: Record) -> str:
    """One line of JSON."""
    return json.dumps(without_nan(record), allow_nan=False)


def write_part(path: Path, records: Iterable[Record]) -> None:
    """Writes the records of one trial, and in a last line what tells that they are all there."""
    text = "".join(to_json(record) + "\n" for record in records)
    write_whole(path, f"{text}{END}{_digest(text)}\n")


def read_part(path: Path) -> str | None:
    """The lines that `write_part` wrote; None if they are not all there, or have changed."""
    try:
        text, end, digest = path.read_text(encoding="utf-8").rpartition(END)
    except (OSError, ValueError):
        return None
    return text if end and digest == f"{_digest(text)}\n" else None


def write_packed(path: Path, text: str) -> None:
    """Writes a gzip file; the same text gives the same bytes."""
    write_whole(path, gzip.compress(text.encode(), mtime=0))


def _unpacked(content: bytes) -> bytes:
    """At most `MOST_BYTES` of it: a few bytes may unpack to any number."""
    with gzip.open(io.BytesIO(content)) as file:
        unpacked = file.read(MOST_BYTES + 1)
    if len(unpacked) > MOST_BYTES:
        raise ValueError(f"unpacks to more than {MOST_BYTES:,} bytes")
    return unpacked


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def read_records(path: Path) -> list[Record]:
    """Reads what `to_json` wrote, one record a line."""
    hooks: dict[str, Any] = {"parse_constant": _number, "parse_float": _number}
    try:
        content = path.read_bytes()
        content = _unpacked(content) if path.suffix == ".gz" else content
        lines = content.decode().split("\n")
        records = [json.loads(line, parse_int=_whole, **hooks) for line in lines if line]
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"{path}: cut off, or no gzip file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON lines ({error})") from None
    except RecursionError:
        raise UserError(f"{path}: not JSON lines (nested too deep)") from None
    if not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: not JSON lines of objects with names")
    return records


def _number(text: str) -> float:
    """A number of a record; others were never written."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is not finite")
    return value


def _whole(text: str) -> int:
    if len(text) > 16:  # a float holds no more digits
        raise ValueError(f"{text[:40]} has too many digits")
    return int(text)


def series(records: Sequence[Record], network: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The history of one metric of one network.

    Returns:
      Steps (evaluations,) and values (seeds, evaluations). A value that was not logged, or was not
      finite, is NaN.
    """
    chosen = [record for record in records if record["network"] == network]
    seeds = sorted({record["seed"] for record in chosen})
    steps = sorted({record["step"] for record in chosen})
    values = np.full((len(seeds), len(steps)), np.nan)
    row, column = {s: i for i, s in enumerate(seeds)}, {s: i for i, s in enumerate(steps)}
    for record in chosen:
        value = record.get(name)
        if value is not None:
            values[row[record["seed"]], column[record["step"]]] = value
    return np.array(steps), values


def without_nan(record: Record) -> Record:
    """`record` with null in place of numbers that are not finite, which JSON cannot hold."""
    return {name: _finite(value) for name, value in record.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return without_nan(value)
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
