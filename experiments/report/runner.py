"""Writes the page, or the gallery of the README."""

from pathlib import Path

from experiments.common.errors import UserError
from experiments.common.progress import make_console
from experiments.options import Report
from experiments.report.collect import COMMITTED, collect, tally
from experiments.report.gallery import with_gallery
from experiments.report.lectures import lectures
from experiments.report.page import page

RUNS = Path("runs")
README = COMMITTED.parent / "README.md"
LECTURES = COMMITTED.parent / "lectures.md"


def run(options: Report) -> None:
    """Writes what `options` ask for."""
    folders = options.folders or (
        (RUNS,) if RUNS.is_dir() and not options.gallery else (COMMITTED,)
    )
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"no such folder: {', '.join(missing)}")
    found = collect(folders)
    if options.gallery:
        out, text = README, with_gallery(README.read_text(encoding="utf-8"), found, README.parent)
    else:
        out, text = options.out, page(found)
    try:
        out.write_text(text, encoding="utf-8")
        if options.gallery:
            LECTURES.write_text(lectures(found), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror})") from None
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in tally(found).items())
    make_console().print(f"{len(found)} results, claims: {verdicts}; see {out}", markup=False)
