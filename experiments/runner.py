"""Runs one experiment from its settings to its figure."""

import dataclasses
import io
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from experiments import registry
from experiments.common import interrupts, results
from experiments.common.data import locate
from experiments.common.errors import UserError
from experiments.common.progress import Reporter, make_console
from experiments.common.records import (
    Record,
    read_part,
    read_records,
    without_nan,
    write_packed,
    write_part,
)
from experiments.common.settings import COMMON, Settings
from experiments.common.verdicts import (
    CLAIM,
    FAILS,
    HOLDS,
    IN_PART,
    RULE,
    UNDECIDED,
    Row,
    settle,
)
from experiments.options import Run
from experiments.registry import ALL, Experiment

if TYPE_CHECKING:  # imported late, after the first line is on the screen
    from experiments.common.data import Dataset


def run(options: Run) -> None:
    """Trains, logs, judges and draws the experiment that `options` names, or all of them."""
    console = make_console()
    if options.data is not None:
        locate(options.data, options.data_dir)  # before JAX is imported, for the settings
    if options.name != ALL:
        experiment = registry.find(options.name)
        out = options.out or Path("runs") / experiment.name
        _run(experiment, _checked(experiment, options, out), options, out, console)
        return
    folder = options.out or Path("runs")
    outs = {experiment: folder / experiment.name for experiment in registry.EXPERIMENTS}
    waiting = {
        experiment: _checked(experiment, options, out)
        for experiment, out in outs.items()
        if _is_waiting(experiment, options, out)
    }
    for number, (experiment, out) in enumerate(outs.items(), 1):
        console.rule(f"{number} of {len(outs)}")
        if experiment in waiting:
            _run(experiment, waiting[experiment], options, out, console)
        elif options.preset not in experiment.minutes:
            console.print(f"{experiment.name}: has no preset {options.preset}, left out")
        else:
            console.print(f"{experiment.name}: finished before, kept; see {out}", markup=False)
    console.print(f"on one page: python -m experiments report {folder}", markup=False)


def _is_waiting(experiment: Experiment, options: Run, out: Path) -> bool:
    """Whether `run all` has yet to run it."""
    kept = results.is_finished(out, files(experiment)) and not options.overwrite
    return options.preset in experiment.minutes and not kept


def _checked(experiment: Experiment, options: Run, out: Path) -> Settings:
    """The settings of a run, of which nothing that can be told before it starts is wrong."""
    results.check_destination(out, options.overwrite, files(experiment))
    settings = choose_settings(experiment, options)
    locate(settings.data, options.data_dir)
    return settings


def _run(
    experiment: Experiment, settings: Settings, options: Run, out: Path, console: Console
) -> None:
    console.print(f"{experiment.name}: {experiment.claim} ({experiment.source})", markup=False)
    console.print(f"{_describe(settings)}; importing JAX and reading the data ...", markup=False)
    data = _load_data(settings, options.data_dir)
    config = _config(experiment, options.preset, settings, data)
    started = time.monotonic()
    interrupts.raise_again()
    with results.staged(out, config, options.overwrite) as stage:
        with _single_precision():
            _measure(experiment, settings, data, stage, console)
        seconds = time.monotonic() - started
        records = read_records(stage / results.RECORDS)
        rows = judge(experiment, records, settings)
        _write_summary(experiment, rows, stage, seconds)
        console.print("drawing the figure ...")
        _draw(experiment, config, records, rows, settings, stage / figure_name(experiment))
    _print_rows(rows, console)
    picture = out / figure_name(experiment)
    console.print(f"{seconds:.0f} s of training; open {picture}", markup=False, soft_wrap=True)


def figure_name(experiment: Experiment) -> str:
    """The file of the experiment's picture."""
    return f"{experiment.name}.png"


def files(experiment: Experiment) -> tuple[str, ...]:
    """The files of a finished result."""
    return results.RECORDS, results.CONFIG, results.SUMMARY, figure_name(experiment)


def redraw(folder: Path) -> None:
    """Judges a finished run and draws its figure again, from the logged numbers."""
    from experiments.common import contents

    experiment, config = contents.read_config(folder)
    if experiment is None:
        raise UserError(f"{folder / results.CONFIG}: not the settings of an experiment")
    settings = contents.settings_of(folder / results.CONFIG, experiment, config)
    seconds = contents.read_seconds(folder)
    path, logged = folder / figure_name(experiment), folder / results.RECORDS
    contents.check_file(logged)
    picture = io.BytesIO()  # nothing is replaced until all is there
    with contents.from_records(logged), warnings.catch_warnings(action="ignore"):
        records = read_records(logged)
        rows = judge(experiment, records, settings)
        _draw(experiment, config, records, rows, settings, picture)
    try:
        path.write_bytes(picture.getvalue())
        _write_summary(experiment, rows, folder, seconds)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror})") from None
    console = make_console()
    _print_rows(rows, console)
    console.print(f"drawn: {path}", markup=False, soft_wrap=True)


def choose_settings(experiment: Experiment, options: Run) -> Settings:
    """The preset's settings, with what was given on the command line in their place."""
    if options.preset not in experiment.minutes:  # which, unlike its module, needs no JAX
        has = ", ".join(experiment.minutes)
        raise UserError(f"{experiment.name} has no preset {options.preset}; choose one of: {has}")
    preset = experiment.module.PRESETS[options.preset]
    given = {k: v for k in COMMON if (v := getattr(options, k)) is not None}
    for name in given.keys() & set(preset.unused):
        if options.name != ALL:
            raise UserError(f"--{name.replace('_', '-')} means nothing to {experiment.name}")
        del given[name]
    return dataclasses.replace(preset, **given)


def _describe(settings: Settings) -> str:
    return f"{settings.data_name}, {settings.seeds_in_words}, {settings.steps_in_words}"


def _load_data(settings: Settings, data_dir: Path | None) -> "Dataset":
    from experiments.common import data

    loaded = data.load(settings.data, data_dir)
    images = len(loaded.train.labels)
    if settings.batch_size > images:
        raise UserError(
            f"--batch-size {settings.batch_size} is more than the {images} training images"
        )
    return loaded


def _single_precision() -> AbstractContextManager[object]:
    """Accelerators multiply with three digits unless told otherwise; a CPU keeps all."""
    import jax

    return jax.default_matmul_precision("highest")


def _measure(
    experiment: Experiment, settings: Settings, data: "Dataset", stage: Path, console: Console
) -> None:
    """Runs every trial that has not been run before, and puts their records together."""
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
    write_packed(stage / results.RECORDS, "".join(read_part(p) or "" for p in parts))


def _finished(part: Path, console: Console) -> str | None:
    """What a stopped run has written of a trial; None if it is to be run (again)."""
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


def judge(experiment: Experiment, records: list[Record], settings: Settings) -> list[Row]:
    """The rows of the closing table, with their verdicts."""
    return settle(experiment.module.judge(records, settings))


def _write_summary(experiment: Experiment, rows: list[Row], stage: Path, seconds: float) -> None:
    content = {
        "experiment": experiment.name,
        "claim": experiment.claim,
        "title": title(experiment, rows),
        "source": experiment.source,
        "claims": [without_nan(row.as_json()) for row in rows],
        "rule": RULE,
        "seconds": round(seconds, 1),
    }
    results.write_json(stage / results.SUMMARY, content)


def title(experiment: Experiment, rows: list[Row]) -> str:
    """What the first claim of the rows came to, in a sentence."""
    verdict = next(row.verdict for row in rows if row.kind == CLAIM)
    sentences = {
        HOLDS: experiment.claim,
        IN_PART: f"{experiment.claim}: in part",
        FAILS: experiment.denial,
        UNDECIDED: f"{experiment.claim}? Undecided here",
    }
    return sentences[verdict]


def _draw(
    experiment: Experiment,
    config: dict[str, Any],
    records: list[Record],
    rows: list[Row],
    settings: Settings,
    path: Path | io.BytesIO,
) -> None:
    from experiments.common import plots

    with plots.style():
        figure = experiment.module.draw(records, settings)
        note = f"{plots.data_and_seeds(settings)}; {settings.steps_in_words}"
        note += results.on_device(config)
        plots.frame(figure, title(experiment, rows), rows, note)
        plots.save(figure, path)


def _print_rows(rows: list[Row], console: Console) -> None:
    table = Table("verdict", "claim and source", "found", show_lines=True)  # for narrow terminals
    for row in rows:
        source = f"\n({row.source})" if row.source else ""
        words = f"{row.short}: {row.claim}{source}"
        table.add_row(row.verdict or f"({row.kind})", words, row.found)
    console.print(table)
    console.print(RULE, style="dim")
