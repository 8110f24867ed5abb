"""What the files of a finished result must hold: asked once, so that no reader meets anything else.

A result may come from anywhere: from another version, cut off by a full disk, edited by hand.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.common import results
from experiments.common.errors import UserError
from experiments.common.settings import DATA, Settings
from experiments.common.verdicts import CLAIM, KINDS, VERDICTS, Unit
from experiments.registry import EXPERIMENTS, PRESETS, Experiment

MOST_BYTES = 2**26  # of a file; the longest of this project has a hundredth of it
MOST = 10**7  # of a whole number among the settings
MOST_LOG = 700  # of a difference that stands for a factor
WORDS = ("short", "claim", "source", "found", "test")  # of a row
TEST = {"differences", "mean", "interval", "unit", "within", "capped", "p", "outcome"}
COUNTS = ("seeds", "steps", "batch_size", "eval_every")


def read_config(folder: Path) -> tuple[Experiment | None, dict[str, Any]]:
    """The experiment that a folder holds, None if it is none of these, and its config.json."""
    path = folder / results.CONFIG
    config = _read(path)
    name = config.get("experiment")
    experiment = next((each for each in EXPERIMENTS if each.name == name), None)
    if experiment is not None:
        settings_of(path, experiment, config)
        device = config.get("device")
        if not isinstance(device, dict) or not _is_word(device.get("kind")):
            raise UserError(f"{path}: its device is no kind of device in words")
    return experiment, config


def settings_of(path: Path, experiment: Experiment, config: dict[str, Any]) -> Settings:
    """The settings in the config.json at `path`, each of the kind that the preset has there."""
    name, given = config.get("preset"), config.get("settings")
    if name not in PRESETS or not isinstance(given, dict):
        raise UserError(f"{path}: not the settings of a result")
    preset = experiment.module.PRESETS.get(name)
    if preset is None:
        raise UserError(f"{path}: {experiment.name} has no preset {name}")
    usual = dataclasses.asdict(preset)
    for key, value in given.items():
        if key not in usual or not _is_like(value, usual[key]):
            raise UserError(f"{path}: {key} of its settings is {_shown(value)}")
    for key in COUNTS:
        if given.get(key, 1) < 1:
            raise UserError(f"{path}: {key} of its settings is {given[key]}, below 1")
    if given.get("data", "digits") not in DATA:
        raise UserError(f"{path}: data of its settings is {_shown(given['data'])}")
    lists = {key: tuple(v) for key, v in given.items() if isinstance(v, list)}
    return type(preset)(**given | lists)


def read_summary(folder: Path) -> dict[str, Any]:
    """A summary.json whose claims have their words."""
    path = folder / results.SUMMARY
    summary = _read(path)
    if not _is_word(summary.get("title")):
        raise UserError(f"{path}: its title is {_shown(summary.get('title'))}")
    claims = summary.get("claims")
    if not isinstance(claims, list) or not claims or not all(map(_is_claim, claims)):
        raise UserError(f"{path}: its claims are not those of a result")
    return summary


def read_seconds(folder: Path) -> float:
    """How long a run took, the one thing in its summary.json that cannot be judged again."""
    path = folder / results.SUMMARY
    seconds = _read(path).get("seconds")
    if not isinstance(seconds, int | float) or not _is_like(seconds, 1.0) or seconds < 0:
        raise UserError(f"{path}: seconds is {_shown(seconds)}")
    return seconds


@contextmanager
def from_records(path: Path) -> Iterator[None]:
    """Names the metrics.jsonl that holds other numbers than an experiment judges and draws."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever numbers lead to: of every kind
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{path}: not the numbers of this experiment ({reason})") from error


def check_file(path: Path) -> None:
    """Refuses what is no file, or too long to be one of a result."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: cannot be read (not a file)")
    if path.exists() and path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: longer than the {MOST_BYTES:,} bytes that are read")


def _read(path: Path) -> dict[str, Any]:
    check_file(path)
    content = results.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object with names, so not of a result")
    return content


def _is_claim(claim: Any) -> bool:
    return (
        isinstance(claim, dict)
        and all(_is_word(claim.get(key)) for key in WORDS)
        and claim.get("kind") in KINDS
        and claim.get("verdict") in (VERDICTS if claim["kind"] == CLAIM else ("",))
        and isinstance(claim.get("numbers"), dict)
        and all(map(_is_number_or_test, claim["numbers"].values()))
    )


def _is_number_or_test(found: Any) -> bool:
    """Whether the differences of a test, if `found` is one, can be drawn."""
    if not (isinstance(found, dict) and "unit" in found):
        return True
    if not found.keys() >= TEST:
        return False
    unit, differences, ends = (found[name] for name in ("unit", "differences", "interval"))
    return (
        isinstance(unit, dict)
        and unit.keys() == set(Unit._fields)
        and _is_word(unit["words"])
        and isinstance(unit["form"], str)
        and re.fullmatch(r"[+#]{0,2}\.\d[fg]", unit["form"]) is not None
        and _is_like(unit["factor"], 1.0)
        and isinstance(unit["logs"], bool)
        and isinstance(differences, list)
        and len(differences) > 0
        and isinstance(ends, list)
        and len(ends) == 2
        and all(
            value is None or (_is_like(value, 1.0) and (not unit["logs"] or abs(value) < MOST_LOG))
            for value in (*differences, *ends, found["mean"], found["within"])
        )
        and _is_like(found["p"], 1.0)
        and isinstance(found["capped"], bool)
        and found["outcome"] in VERDICTS
    )


def _is_like(value: Any, usual: Any) -> bool:
    """Whether `value`, out of JSON, is of the kind of `usual`."""
    if isinstance(usual, bool) or isinstance(value, bool):
        return isinstance(usual, bool) and isinstance(value, bool)
    if isinstance(usual, int):
        return isinstance(value, int) and abs(value) <= MOST
    if isinstance(usual, float):
        return isinstance(value, int | float) and abs(value) <= 1e300  # NaN is not
    if isinstance(usual, str):
        return _is_word(value)
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST
        and all(_is_like(v, usual[0]) for v in value)
    )


def _is_word(value: Any) -> bool:
    """Whether it is a text that can be printed: no lone surrogates, no control characters."""
    return isinstance(value, str) and value.isprintable()


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]
