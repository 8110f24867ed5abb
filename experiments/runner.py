"""Runs one experiment from its settings to its figure."""

import dataclasses
import io
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from experiments import registry
from experiments.common import interrupts, results
from experiments.common.errors import UserError
from experiments.common.progress import Reporter, make_console
from experiments.common.settings import COMMON, Settings
from experiments.options import ALL, Run
from experiments.registry import Experiment

if TYPE_CHECKING:  # imported late, after the first line is on the screen
    from experiments.common.claims import Claim
    from experiments.common.data import Dataset


def run(options: Run) -> None:
    """Trains, logs, judges and draws the experiment that `options` names, or all of them."""
    console = make_console()
    if options.name != ALL:
        experiment = registry.find(options.name)
        _run(experiment, options, options.out or Path("runs") / experiment.name, console)
        return
    for number, experiment in enumerate(registry.EXPERIMENTS, 1):
        out = (options.out or Path("runs")) / experiment.name
        console.rule(f"{number} of {len(registry.EXPERIMENTS)}")
        if results.is_finished(out, figure_name(experiment)) and not options.overwrite:
            console.print(f"{experiment.name}: finished before, kept; see {out}", markup=False)
        else:
            _run(experiment, options, out, console)


def _run(experiment: Experiment, options: Run, out: Path, console: Console) -> None:
    settings = choose_settings(experiment, options)
    results.check_destination(out, options.overwrite, figure_name(experiment))

    console.print(f"{experiment.name}: {experiment.claim} ({experiment.source})", markup=False)
    console.print(f"{_describe(settings)}; importing JAX and reading the data ...", markup=False)
    data = _load_data(settings, options.data_dir)
    config = _config(experiment, options.preset, settings, data)
    started = time.monotonic()
    interrupts.raise_again()
    with results.staged(out, config, options.overwrite) as stage:
        _measure(experiment, settings, data, stage, console)
        seconds = time.monotonic() - started
        claims = _judge(experiment, settings, stage)
        _write_summary(experiment, claims, stage, seconds)
        console.print("drawing the figure ...")
        _draw(experiment, settings, stage, stage / figure_name(experiment))
    _print_claims(claims, console)
    console.print(f"{seconds:.0f} s of training; see {out}", markup=False)


def figure_name(experiment: Experiment) -> str:
    """The file of the experiment's picture."""
    return f"{experiment.name}.png"


def redraw(folder: Path) -> None:
    """Judges a finished run and draws its figure again, from the logged numbers."""
    from experiments.common import contents

    experiment, config = contents.read_config(folder)
    if experiment is None:
        raise UserError(f"{folder / results.CONFIG}: not the settings of an experiment")
    settings = contents.settings_of(folder / results.CONFIG, experiment, config)
    seconds = contents.read_seconds(folder)
    path, metrics = folder / figure_name(experiment), folder / results.METRICS
    contents.check_file(metrics)
    picture = io.BytesIO()  # nothing is replaced until all is there
    with contents.from_records(metrics), warnings.catch_warnings(action="ignore"):
        _draw(experiment, settings, folder, picture)
        claims = _judge(experiment, settings, folder)
    try:
        path.write_bytes(picture.getvalue())
        _write_summary(experiment, claims, folder, seconds)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror})") from None
    console = make_console()
    _print_claims(claims, console)
    console.print(f"drawn: {path}", markup=False)


def choose_settings(experiment: Experiment, options: Run) -> Settings:
    """The preset's settings, with what was given on the command line in their place."""
    preset = _presets(experiment)[options.preset]
    given = {k: v for k in COMMON if (v := getattr(options, k)) is not None}
    for name in given.keys() & set(preset.unused):
        if options.name != ALL:
            raise UserError(f"--{name.replace('_', '-')} means nothing to {experiment.name}")
        del given[name]
    return dataclasses.replace(preset, **given)


def _presets(experiment: Experiment) -> dict[str, Settings]:
    return experiment.module.PRESETS


def _describe(settings: Settings) -> str:
    return (
        f"{settings.data_name}, {settings.seeds_in_words}, {settings.steps:,} steps of "
        f"{settings.batch_size:,} images, {settings.rate_in_words}"
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


def _measure(
    experiment: Experiment, settings: Settings, data: "Dataset", stage: Path, console: Console
) -> None:
    """Runs every trial that has not been run before, and puts their records together."""
    from experiments.common.records import read_part, write_part

    trials = experiment.module.trials(settings, data)
    parts = [stage / results.PARTS / f"{number:03d}.jsonl" for number in range(len(trials))]
    texts = [_finished(part, console) for part in parts]
    done = sum(trial.steps for trial, text in zip(trials, texts, strict=True) if text is not None)
    if done:
        finished = len(texts) - texts.count(None)
        console.print(f"going on: {finished} of {len(trials)} trials are done")
    with Reporter(sum(trial.steps for trial in trials), console, done) as reporter:
        for trial, part, text in zip(trials, parts, texts, strict=True):
            if text is None:
                write_part(part, trial.measure(reporter))
            reporter.finish(trial.steps)
    results.write_whole(stage / results.METRICS, "".join(read_part(p) or "" for p in parts))


def _finished(part: Path, console: Console) -> str | None:
    """What a stopped run has written of a trial; None if it is to be run (again)."""
    from experiments.common.records import read_part

    text = read_part(part)
    if text is None and part.exists():
        console.print(f"{part.name}: damaged, that trial is repeated", markup=False)
        part.unlink()
    return text


def _config(
    experiment: Experiment, preset: str, settings: Settings, data: "Dataset"
) -> dict[str, Any]:
    """All that another run must share to give the same numbers."""
    content: dict[str, Any] = {
        "experiment": experiment.name,
        "preset": preset,
        "settings": dataclasses.asdict(settings),
        "images": {"train": len(data.train.labels), "test": len(data.test.labels)},
    }
    return content | results.environment()


def _judge(experiment: Experiment, settings: Settings, folder: Path) -> "list[Claim]":
    from experiments.common.records import read_records

    return experiment.module.judge(read_records(folder / results.METRICS), settings)


def _write_summary(
    experiment: Experiment, claims: "list[Claim]", stage: Path, seconds: float
) -> None:
    from experiments.common.records import without_nan

    content = {
        "experiment": experiment.name,
        "claim": experiment.claim,
        "source": experiment.source,
        "claims": [without_nan(claim._asdict()) for claim in claims],
        "seconds": round(seconds, 1),
    }
    results.write_json(stage / results.SUMMARY, content)


def _draw(
    experiment: Experiment, settings: Settings, folder: Path, path: Path | io.BytesIO
) -> None:
    from experiments.common import plots
    from experiments.common.records import read_records

    records = read_records(folder / results.METRICS)
    with plots.style():
        plots.save(experiment.module.draw(records, settings), path)


def _print_claims(claims: "list[Claim]", console: Console) -> None:
    table = Table("claim", "paper", "found", "verdict", show_lines=True)
    for claim in claims:
        table.add_row(claim.claim, claim.paper, claim.found, claim.verdict)
    console.print(table)
