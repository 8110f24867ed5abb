"""What can be typed after `python -m experiments`, and how it is parsed."""

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from experiments.benchmarks import NAMES
from experiments.common.errors import UserError
from experiments.common.words import choice, positive, text, whole
from experiments.registry import PRESETS
from experiments.train.options import Train

PROGRAM = "python -m experiments"
ALL = "all"
COMMANDS = ("run", "list", "plot", "report", "benchmark", "train")


@dataclass(frozen=True)
class Run:
    """Run an experiment: train, log, judge and draw.

    Numbers and figure go into a folder that must not hold a result yet. A run that was stopped or
    killed goes on with the same command.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """The experiment, or `all`; `list` names them."""
    preset: Annotated[str, choice(*PRESETS)] = "quick"
    """A run under two minutes, the longest that two cores allow, or the setting of the paper."""
    data: Annotated[str | None, choice("digits", "mnist", "cifar10")] = None
    """Scikit-learn's embedded 8x8 digits, MNIST or CIFAR-10."""
    data_note: Annotated[str | None, text()] = None
    """Words on the data for figure and report, such as which part of them DIR holds."""
    data_dir: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: $BNJAX_DATA_DIR)")
    ] = None
    """Folder with MNIST's four IDX files, plain or gzipped, or CIFAR-10's binary ones; nothing is
    downloaded into it. Without it and BNJAX_DATA_DIR, MNIST is downloaded into the user's cache."""
    seeds: Annotated[int | None, whole(1, 1000)] = None
    """Number of seeds, trained side by side."""
    steps: Annotated[int | None, whole(1, 10**9)] = None
    """Training steps of each network."""
    batch_size: Annotated[int | None, whole(2, 10**6)] = None
    """Images in a mini-batch."""
    learning_rate: Annotated[float | None, positive()] = None
    """Learning rate, where it is not what the experiment varies."""
    eval_every: Annotated[int | None, whole(1, 10**9)] = None
    """Steps between evaluations."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/NAME)")] = (
        None
    )
    """Folder of the result; of `all` the folder of the folders."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace a finished result in that folder."""


@dataclass(frozen=True)
class List:
    """List the experiments and the claims they test."""


@dataclass(frozen=True)
class Plot:
    """Judge a finished run and draw its figure again, from its logged numbers."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder of the result."""


@dataclass(frozen=True)
class Report:
    """Put every finished result on one HTML page, pictures and all."""

    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR")] = ()
    """Folders of results, or of folders of them. (default: runs, or the results of this project)"""
    out: Annotated[Path, arg(metavar="FILE")] = Path("report.html")
    """The page; written over."""
    gallery: FlagCreatePairsOff[bool] = False
    """Renew the pictures and tables in experiments/README.md and lectures.md instead."""


@dataclass(frozen=True)
class Benchmark:
    """Measure bnjax beside other libraries, and check what is claimed of it.

    Exits with 1 if a claim fails. An option that means nothing to a benchmark is an error.
    """

    name: Annotated[
        Positional[str],
        choice(*NAMES),
        arg(metavar="NAME", help=f"What is measured: {', '.join(NAMES)}."),
    ]
    shapes: Annotated[str, choice("quick", "full")] = "full"
    """A few shapes for a glance, or those that the claims are about."""
    rounds: Annotated[int | None, whole(2, 10**6)] = None
    """Turns of each contestant."""
    dtype: Annotated[str | None, choice("float32", "bfloat16")] = None
    """Of the activations."""
    axis: Annotated[str | None, choice("last", "first")] = None
    """Where the features are: NHWC, or NCHW."""
    out: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/benchmark-NAME)")
    ] = None
    """Folder of the result."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace a finished result in that folder."""


Command = Run | List | Plot | Report | Benchmark | Train


def parse(args: Sequence[str] | None) -> Command:
    """Turns the words of the command line (default: sys.argv) into a command.

    Raises:
      UserError: words that are not understood.
      SystemExit: with code 0 after `--help`.
    """
    commands = (
        Annotated[Run, subcommand("run")]
        | Annotated[List, subcommand("list")]
        | Annotated[Plot, subcommand("plot")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Benchmark, subcommand("benchmark")]
        | Annotated[Train, subcommand("train")]
    )
    words = list(sys.argv[1:] if args is None else args)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                commands,
                prog=PROGRAM,
                description="Put the claims made for batch norm to the test.",
                args=words,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_one_line(complaint.getvalue())}; see {_help(words)}") from None


def _one_line(box: str) -> str:
    """The message in the box that tyro draws around an error.

    The box has a title, then sections between rules; the first holds the message, a second may tell
    what is legal, and others repeat what `--help` tells better.
    """
    sections = [""]
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯─|+ ")
        if text:
            sections[-1] += f" {text}"
        else:
            sections.append("")
    legal = [text for text in sections[1:] if text.startswith((" Available", " Perhaps"))]
    message = "; ".join(text.strip().rstrip(".") for text in [sections[0], *legal])
    return message.removeprefix("Error parsing ")


def _help(words: list[str]) -> str:
    known = words[:1] if words and words[0] in COMMANDS else []
    return " ".join([PROGRAM, *known, "--help"])
