"""Runs one benchmark from its settings to its figure.

A benchmark is a module of this package with

* `SHAPES`    the shapes of `--shapes quick` and `full`, and `DEFAULTS`, its `Settings`
* `CLAIMS`    what it promises, for float32
* `measure`   `measure(settings, progress)`, yields the records that are logged
* `estimates` `estimates(records)`, the quantities that claims are about, by name
* `panels`    `panels(records)`, what is printed and drawn
"""

import dataclasses
import time
from pathlib import Path
from types import ModuleType

from experiments.benchmarks import machine
from experiments.benchmarks.checks import destination, figure_name, given
from experiments.benchmarks.claims import all_hold, check
from experiments.benchmarks.figure import draw
from experiments.benchmarks.panels import claims_table, table
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings
from experiments.benchmarks.summary import module_of, summary
from experiments.common import plots, results
from experiments.common.progress import make_console
from experiments.common.records import Record, to_json
from experiments.options import Benchmark

CLAIM_FAILED = 1
BUSY = 0.5  # processes running beside this one, on average


def run(options: Benchmark) -> int:
    """Measures, checks and draws; returns 0, or 1 if a claim fails."""
    module = module_of(options.name)
    settings = choose_settings(module, options)
    out, figure = destination(options), figure_name(options)

    console = make_console()
    started, load = time.monotonic(), machine.load()
    if load is not None and load > BUSY:
        console.print(f"load {load}: this machine is busy, which the intervals will show")
    with results.staged(out, {"benchmark": options.name}, options.overwrite) as stage:
        records = _measure(module, settings, Progress(console), stage / results.METRICS)
        content = {"benchmark": options.name, "settings": dataclasses.asdict(settings)}
        content |= results.environment() | machine.describe()
        content |= {"load_before": load, "seconds": round(time.monotonic() - started, 1)}
        results.write_json(stage / results.CONFIG, content)
        panels = module.panels(records)
        claimed = settings.dtype == "float32"
        findings = check(module.CLAIMS, module.estimates(records) if claimed else {})
        shown = [panel.as_json() for panel in panels]
        results.write_json(stage / results.SUMMARY, summary(options.name, findings, shown))
        with plots.style():
            plots.save(draw(title_of(module, settings), panels), stage / figure)
    for panel in panels:
        console.print(table(panel))
    console.print(claims_table(findings))
    console.print(f"{content['seconds']:.0f} s; see {out / figure}", markup=False, soft_wrap=True)
    return 0 if all_hold(findings) else CLAIM_FAILED


def choose_settings(module: ModuleType, options: Benchmark) -> Settings:
    """The module's defaults, with what was given on the command line in their place."""
    return dataclasses.replace(
        module.DEFAULTS, shapes=module.SHAPES[options.shapes], **given(options)
    )


def _measure(module: ModuleType, settings: Settings, progress: Progress, path: Path):
    records: list[Record] = []
    with path.open("w") as file:
        for record in module.measure(settings, progress):
            file.write(to_json(record) + "\n")
            file.flush()  # some take minutes
            records.append(record)
    return records


def title_of(module: ModuleType, settings: Settings) -> str:
    """The first line of the module's docstring, up to the colon, and what is not as by default."""
    begin = (module.__doc__ or "").partition("\n")[0].partition(":")[0].rstrip(".")
    words = {"dtype": settings.dtype, "axis": f"axis {settings.axis}"}
    default = module.DEFAULTS
    other = [w for name, w in words.items() if getattr(settings, name) != getattr(default, name)]
    return ", ".join([begin, *other])
