"""The results as Markdown, for experiments/README.md."""

import os
from collections.abc import Sequence
from pathlib import Path

from experiments.report.collect import Result, by_experiment

WIDTH = 540  # pixels, of pictures twice as wide
BEGIN, END = "<!-- gallery -->", "<!-- end of gallery -->"


def gallery(found: Sequence[Result], beside: Path) -> str:
    """Claims, verdicts and pictures of all results; links are relative to the folder `beside`."""
    parts = []
    for experiment, runs in by_experiment(found).items():
        parts.append(f"### {experiment.claim}\n\n`{experiment.name}` · {experiment.source}\n")
        for run in runs:
            picture = Path(os.path.relpath(run.picture, beside)).as_posix()
            parts.append(f"**{run.title}**: `{run.command}`\n")
            parts.append(_table(run))
            parts.append(f'<img src="{picture}" width="{WIDTH}" alt="{run.summary["title"]}">\n')
    return "\n".join(parts)


def with_gallery(text: str, found: Sequence[Result], beside: Path) -> str:
    """`text` with the gallery between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{gallery(found, beside)}\n{END}{after}"


def _table(run: Result) -> str:
    rows = [("claim", "source", "found", "verdict"), ("---",) * 4]
    for claim in run.summary["claims"]:
        rows.append((*(claim[key] for key in rows[0][:3]), claim["verdict"] or claim["kind"]))
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
