"""What can be typed after `python -m experiments`, and how it is parsed."""

import codecs
import contextlib
import inspect
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, TextIO

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

from experiments.benchmarks import BENCHMARKS
from experiments.common.errors import UserError, meant
from experiments.common.settings import DATA
from experiments.common.words import choice, positive, text, whole
from experiments.registry import PRESETS
from experiments.train.options import Train, grouped

PROGRAM = "python -m experiments"
DESCRIPTION = (
    "Put the claims made for batch norm to the test. COMMAND --help tells more of a command, "
    "--version the version."
)


@dataclass(frozen=True)
class Run:
    """Run an experiment: train, log, judge and draw.

    Numbers and figure go into a folder that must not hold a result yet. A run that was stopped or
    killed goes on with the same command.

    Attributes:
      name: The experiment, or `all`; `list` names them.
      preset: A run under two minutes, the longest that two cores allow, or the setting of the
        paper.
      data: Scikit-learn's embedded 8x8 digits, MNIST or CIFAR-10.
      data_note: Words on the data for figure and report, such as which part of them DIR holds.
      data_dir: Folder with MNIST's four IDX files, plain or gzipped, or CIFAR-10's binary ones;
        nothing is downloaded into it. Without it and BNJAX_DATA_DIR, MNIST is downloaded into the
        user's cache.
      seeds: Number of seeds, trained side by side.
      steps: Training steps of each network.
      batch_size: Images in a mini-batch.
      learning_rate: Learning rate, where it is not what the experiment varies.
      eval_every: Steps between evaluations.
      out: Folder of the result; of `all` the folder of the folders.
      overwrite: Replace a finished result in that folder.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    preset: Annotated[str, choice(*PRESETS)] = "quick"
    data: Annotated[str | None, choice(*DATA)] = None
    data_note: Annotated[str | None, text()] = None
    data_dir: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: $BNJAX_DATA_DIR)")
    ] = None
    seeds: Annotated[int | None, whole(1, 1000)] = None
    steps: Annotated[int | None, whole(1, 10**9)] = None
    batch_size: Annotated[int | None, whole(2, 10**6)] = None
    learning_rate: Annotated[float | None, positive()] = None
    eval_every: Annotated[int | None, whole(1, 10**9)] = None
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/NAME)")] = (
        None
    )
    overwrite: FlagCreatePairsOff[bool] = False


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
    """Put every finished result on one HTML page, charts and all."""

    folders: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="DIR", help_behavior_hint="(default: runs, or the results of this project)"),
    ] = ()
    """Folders of results, or of folders of them."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("report.html")
    """The page; written over."""
    gallery: FlagCreatePairsOff[bool] = False
    """Renew the pictures and tables in experiments/README.md and lectures.md instead."""


@dataclass(frozen=True)
class Compare:
    """Tell which verdicts of your results are not those of this project's.

    Results are compared where they were run with the same settings. Another processor, another
    version of JAX or a change of the code moves bits, and may move a verdict.
    """

    folders: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="DIR", help_behavior_hint="(default: runs)")
    ] = ()
    """Folders of results, or of folders of them."""


@dataclass(frozen=True)
class Benchmark:
    """Measure bnjax beside other libraries, and check what is claimed of it.

    Exits with 1 if a claim fails. An option that means nothing to a benchmark is an error.

    Attributes:
      name: What is measured, see above.
      shapes: A few shapes for a glance, or those that the claims are about.
      rounds: Turns of each contestant.
      dtype: Of the activations.
      axis: Where the features are: NHWC, or NCHW.
      out: Folder of the result.
      overwrite: Replace a finished result in that folder.
    """

    name: Annotated[Positional[str], choice(*BENCHMARKS), arg(metavar="NAME")]
    shapes: Annotated[str, choice("quick", "full")] = "full"
    rounds: Annotated[int | None, whole(2, 10**6)] = None
    dtype: Annotated[str | None, choice("float32", "bfloat16")] = None
    axis: Annotated[str | None, choice("last", "first")] = None
    out: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/benchmark-NAME)")
    ] = None
    overwrite: FlagCreatePairsOff[bool] = False


@dataclass(frozen=True)
class Site:
    """Build guides, reference and laboratory as a site that reads offline.

    Attributes:
      out: Folder of the site; one that is there is replaced.
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("runs/site")


Command = Run | List | Plot | Report | Compare | Benchmark | Train | Site
COMMANDS: dict[str, Any] = {
    "run": Run,
    "list": List,
    "plot": Plot,
    "report": Report,
    "compare": Compare,
    "benchmark": Benchmark,
    "train": Train,
    "site": Site,
}
CONSTRUCTORS = {Train: grouped}  # where it is not the class


def parse(args: Sequence[str] | None) -> Command:
    """Turns the words of the command line (default: sys.argv) into a command.

    Raises:
      UserError: words that are not understood.
      SystemExit: after help or the version with code 0; with code 2 after the help that is shown
        where there are no words, for a script that lost its command must not pass for one that ran.
    """
    words = list(sys.argv[1:] if args is None else args)
    first = words[0] if words else "--help"
    if first == "--version":
        from bnjax.__main__ import versions  # late, as it imports JAX

        print(versions())
        raise SystemExit(0)
    if not first.startswith("-") and first not in COMMANDS:
        near = meant(first, COMMANDS) or f"; choose one of {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {first!r}{near}; see {_help(words)}")
    # Of the letters that the output has, but without colours.
    letters = codecs.lookup(sys.stdout.encoding or "utf-8").name  # as tyro spells it
    said = io.TextIOWrapper(io.BytesIO(), letters, errors="backslashreplace")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(said):
            return tyro.cli(
                _commands(brief=first not in COMMANDS),
                prog=PROGRAM,
                description=DESCRIPTION,
                args=words or [first],
                config=(OmitArgPrefixes,),  # of the groups of `train`
            )
    except SystemExit as stop:
        if not stop.code:
            said.seek(0)
            _show(said.read(), sys.stdout if words else sys.stderr)
            raise SystemExit(0 if words else UserError.code) from None
        raise UserError(f"{_one_line(complaint.getvalue())}; see {_help(words)}") from None


def _commands(brief: bool) -> Any:
    """The type of all commands for tyro, each with what it does in a sentence or in full."""
    kinds = []
    for name, kind in COMMANDS.items():
        build = CONSTRUCTORS.get(kind, kind)
        summary, *rest = (inspect.getdoc(build) or "").partition("Attributes:")[0].split("\n\n")
        words = summary if brief else "\n\n".join([summary, *rest, *_more(kind)])
        kinds.append(Annotated[kind, subcommand(name, description=words, constructor=build)])
    return reduce(or_, kinds)


def _more(kind: type) -> list[str]:
    """What the help of a command tells beyond its docstring."""
    return [_measures()] if kind is Benchmark else []


def _measures() -> str:
    """What each benchmark measures and how long that takes, as wide as the terminal."""
    indent = 2 + max(map(len, BENCHMARKS)) + 2
    lines = []
    for name, each in BENCHMARKS.items():
        lines += textwrap.wrap(
            f"{each.measures}; {each.takes}",
            width=max(shutil.get_terminal_size().columns, 60),
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
        )
    return "\n".join(lines)


def _show(said: str, stream: TextIO) -> None:
    """Prints help; tyro leaves what stands before its boxes in lines of any length."""
    width = shutil.get_terminal_size().columns
    for line in re.sub(r"\n{3,}", "\n\n", said).splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        fits = len(line) <= width
        print(line if fits else textwrap.fill(line, width, subsequent_indent=indent), file=stream)


def _one_line(box: str) -> str:
    """The message in the box that tyro draws around an error.

    The box has a title, then sections between rules; the first holds the message, others may tell
    what is like it, or repeat what `--help` tells better.
    """
    sections = [""]
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯─|+ ")
        if text.strip("-"):
            sections[-1] += f" {text}"
        else:
            sections.append("")
    message = re.sub(r" \(applied to [^)]*\)", "", sections[0]).strip().rstrip(".")
    alike = r"(?:Perhaps you meant|Arguments similar to --\S+): (--[\w-]+)"
    near = [n for n in re.findall(alike, " ".join(sections[1:])) if n not in message.split()]
    meaning = f" (did you mean {' and '.join(near)}?)" if near else ""
    return message.removeprefix("Error parsing ") + meaning


def _help(words: list[str]) -> str:
    known = words[:1] if words and words[0] in COMMANDS else []
    return " ".join([PROGRAM, *known, "--help"])
