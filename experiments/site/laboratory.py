"""The laboratory's pages, written from the committed results: a page a claim, and the lectures."""

import inspect
import shutil
from itertools import groupby
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

from experiments.common.verdicts import RULE
from experiments.lectures import SENTENCES
from experiments.registry import Experiment
from experiments.report.collect import COMMITTED, Result, by_experiment, collect, tally
from experiments.report.lectures import verdicts
from experiments.report.page import environment as report_templates
from experiments.site.pages import environment, write_page


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
            sentences=[s for s in SENTENCES if s.program == experiment.name],
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


def how(experiment: Experiment) -> str:
    """What the program does, in the words of its docstring; the first line repeats the claim."""
    _, _, text = (inspect.getdoc(experiment.module) or "").partition("\n")
    return text.strip()


def _copy(run: Result, folder: Path) -> str:
    """The name of the picture in `folder`."""
    name = f"{run.experiment.name}-{run.config['preset']}.png"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(run.picture, folder / name)
    return name


def setup(app: Sphinx) -> ExtensionMetadata:
    """Writes the pages when a build begins."""
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "laboratory"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
