"""Runs one experiment from its settings to its figure."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from experiments import registry
from experiments.common import results
from experiments.common.errors import UserError
from experiments.common.progress import Reporter, make_console
from experiments.common.settings import Settings
from experiments.options import Run
from experiments.registry import Experiment

if TYPE_CHECKING:  # imported late, after the first line is on the screen
    from experiments.common.claims import Claim
    from experiments.common.data import Dataset

OVERRIDES = ("data", "seeds", "steps", "batch_size", "learning_rate", "eval_every")


def run(options: Run) -> None:
    """Trains, logs, judges and draws the experiment that `options` names."""
    experiment = registry.find(options.name)
    settings = choose_settings(experiment, options)
    out = options.out or Path("runs") / experiment.name
    figure = f"{experiment.name}.png"
    results.check_destination(out, options.overwrite, figure)

    console = make_console()
    console.print(f"{experiment.name}: {experiment.claim} ({experiment.source})", markup=False)
    console.print(f"{_describe(settings)}; importing JAX and reading the data ...", markup=False)
    data = _load_data(settings, options.data_dir)
    started = time.monotonic()
    with results.staged(out) as stage:
        _write_metrics(experiment, settings, data, stage / results.METRICS, console)
        seconds = time.monotonic() - started
        _write_config(experiment, options.preset, settings, data, seconds, stage / results.CONFIG)
        claims = _write_summary(experiment, settings, stage)
        console.print("drawing the figure ...")
        _draw(experiment, settings, stage, stage / figure)
    _print_claims(claims, console)
    console.print(f"{seconds:.0f} s of training; see {out / figure}", markup=False)


def redraw(folder: Path) -> None:
    """Draws the figure of a finished run again."""
    config = results.read_json(folder / results.CONFIG)
    try:
        experiment = registry.find(config["experiment"])
        settings = type(_presets(experiment)[config["preset"]])(**config["settings"])
    except (KeyError, TypeError):
        raise UserError(f"{folder / results.CONFIG}: not the settings of a result") from None
    path = folder / f"{experiment.name}.png"
    _draw(experiment, settings, folder, path)
    make_console().print(f"drawn: {path}", markup=False)


def choose_settings(experiment: Experiment, options: Run) -> Settings:
    """The preset's settings, with what was given on the command line in their place."""
    preset = _presets(experiment)[options.preset]
    given = {name: getattr(options, name) for name in OVERRIDES}
    return dataclasses.replace(preset, **{k: v for k, v in given.items() if v is not None})


def _presets(experiment: Experiment) -> dict[str, Settings]:
    return experiment.module("settings").PRESETS


def _describe(settings: Settings) -> str:
    seeds = "1 seed" if settings.seeds == 1 else f"{settings.seeds} seeds"
    return (
        f"{settings.data}, {seeds}, {settings.steps:,} steps of {settings.batch_size} images, "
        f"learning rate {settings.learning_rate:g}"
    )


def _load_data(settings: Settings, data_dir: Path | None) -> "Dataset":
    from experiments.common import data

    loaded = data.load(settings.data, data_dir)
    images = len(loaded.train.labels)
    if settings.batch_size > images:
        raise UserError(
            f"--batch-size {settings.batch_size} is more than the {images} training images"
        )
    return loaded


def _write_metrics(
    experiment: Experiment, settings: Settings, data: "Dataset", path: Path, console: Console
) -> None:
    from experiments.common.records import to_json

    measure = experiment.module("measure").measure
    total = settings.steps * len(experiment.module("settings").NETWORKS)
    with Reporter(total, console) as reporter, path.open("w") as file:
        for record in measure(settings, data, reporter):
            file.write(to_json(record) + "\n")


def _write_config(
    experiment: Experiment,
    preset: str,
    settings: Settings,
    data: "Dataset",
    seconds: float,
    path: Path,
) -> None:
    content: dict[str, Any] = {
        "experiment": experiment.name,
        "preset": preset,
        "settings": dataclasses.asdict(settings),
        "images": {"train": len(data.train.labels), "test": len(data.test.labels)},
    }
    content |= results.environment()
    results.write_json(path, content | {"training_seconds": round(seconds, 1)})


def _write_summary(experiment: Experiment, settings: Settings, stage: Path) -> "list[Claim]":
    from experiments.common.records import read_records, without_nan

    records = read_records(stage / results.METRICS)
    claims = experiment.module("verdict").judge(records, settings)
    rows = [without_nan(claim._asdict()) for claim in claims]
    content = {"experiment": experiment.name, "source": experiment.source, "claims": rows}
    results.write_json(stage / results.SUMMARY, content)
    return claims


def _draw(experiment: Experiment, settings: Settings, folder: Path, path: Path) -> None:
    from experiments.common import plots
    from experiments.common.records import read_records

    records = read_records(folder / results.METRICS)
    with plots.style():
        plots.save(experiment.module("figure").draw(records, settings), path)


def _print_claims(claims: "list[Claim]", console: Console) -> None:
    table = Table("claim", "paper", "found", "verdict", show_lines=True)
    for claim in claims:
        table.add_row(claim.claim, claim.paper, claim.found, claim.verdict)
    console.print(table)
