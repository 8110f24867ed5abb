"""The laboratory's pages, written from the committed results: a page a claim, and the lectures."""

import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from experiments.common.verdicts import RULE
from experiments.lectures import SENTENCES
from experiments.report import charts
from experiments.report.collect import COMMITTED, Result, by_experiment, collect, tally
from experiments.report.docstrings import how
from experiments.report.lectures import verdicts
from experiments.report.page import environment as report_templates
from experiments.report.page import sentences
from experiments.site.pages import environment, write_page

PAGES, STATIC = "laboratory", "laboratory-static"  # folders beside the other pages


def write(folder: Path) -> None:
    """Puts pages and pictures into `folder`."""
    found = collect([COMMITTED])
    pages = environment()
    words = {
        "claims": report_templates().get_template("claims.html").module,
        "groups": by_experiment(found),
        "rule": RULE,
        "tally": tally(found),
    }
    write_page(folder / "index.rst", pages.get_template("laboratory.rst").render(words))
    for experiment, runs in words["groups"].items():
        pictures = [_copy(run, folder) for run in runs]
        text = pages.get_template("experiment.rst").render(
            words,
            experiment=experiment,
            runs=list(zip(runs, pictures, strict=True)),
            sentences=sentences(experiment),
            how=how(experiment),
        )
        write_page(folder / f"{experiment.name}.rst", text)
    lectures = [
        (lecture, [(sentence, verdicts(sentence, found)) for sentence in sentences])
        for lecture, sentences in groupby(SENTENCES, lambda sentence: sentence.lecture)
    ]
    write_page(
        folder / "lectures.rst", pages.get_template("lectures.rst").render(lectures=lectures)
    )


def _copy(run: Result, folder: Path) -> str:
    """The name of the picture in `folder`."""
    name = f"{run.experiment.name}-{run.config['preset']}.png"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(run.picture, folder / name)
    return name


def _write_static(folder: Path) -> None:
    """What draws the charts, once for all pages."""
    folder.mkdir()
    files = {"vega.js": charts.vega(), "charts.js": charts.drawing(), "charts.css": charts.style()}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _begin(app: Sphinx) -> None:
    folder = Path(app.srcdir)
    write(folder / PAGES)
    _write_static(folder / STATIC)
    app.config.html_static_path.append(str(folder / STATIC))


def _load(app: Sphinx, page: str, *_: Any) -> None:
    """Nothing but the laboratory's pages loads what draws."""
    if page.startswith(f"{PAGES}/"):
        app.add_css_file("charts.css")
        for script in ("vega.js", "charts.js"):
            app.add_js_file(script, loading_method="defer")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Writes the pages when a build begins."""
    app.connect("builder-inited", _begin)
    app.connect("html-page-context", _load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
