"""The results as one HTML page: pictures inside, no script, no network."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from experiments.common.errors import UserError
from experiments.common.verdicts import (
    CONTROL,
    FAILS,
    HOLDS,
    IDENTITY,
    IN_PART,
    MARKS,
    RULE,
    UNDECIDED,
)
from experiments.registry import Experiment
from experiments.report.collect import Result, by_experiment, tally

STYLE = Path(__file__).with_name("style.css")
CLASS = {HOLDS: "holds", IN_PART: "part", FAILS: "fails", UNDECIDED: "undecided"}
CLASS |= {CONTROL: "other", IDENTITY: "other"}
MARK = MARKS | {CONTROL: "–", IDENTITY: "="}


def page(found: Sequence[Result]) -> str:
    """A whole HTML document."""
    groups = by_experiment(found)
    links = "".join(_link(experiment, runs) for experiment, runs in groups.items())
    sections = "".join(_section(experiment, runs) for experiment, runs in groups.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What batch norm does</title>
<style>{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>What batch norm does</h1>
<p>Claims of the lectures and papers, put to the test by <code>bnjax</code>. A verdict is computed
from the numbers by the test that stands with it. Intervals are 95&nbsp;% over seeds, which are
first weights and order of the mini-batches. A claim {escape(RULE)}.</p>
<p>{_tally(found)}</p>
</header>
<nav><ol>{links}</ol></nav>
<main>{sections}</main>
</body>
</html>
"""


def _tally(found: Sequence[Result]) -> str:
    counts = tally(found)
    return " ".join(f"{_badge(verdict)}&nbsp;×&nbsp;{n}" for verdict, n in counts.items() if n)


def _link(experiment: Experiment, runs: Sequence[Result]) -> str:
    marks = "".join(
        f'<span class="{CLASS[_outcome(claim)]}" title="{escape(claim["claim"])}: '
        f'{_outcome(claim)}">{MARK[_outcome(claim)]}</span>'
        for claim in runs[0].summary["claims"]
    )
    name = escape(experiment.name)
    return f'<li><a href="#{name}">{escape(experiment.claim)}</a> <span>{marks}</span></li>'


def _section(experiment: Experiment, runs: Sequence[Result]) -> str:
    compared = _comparison(runs) if len(runs) > 1 else ""
    return f"""
<section id="{escape(experiment.name)}">
<h2>{escape(experiment.claim)}</h2>
<p class="source"><code>{escape(experiment.name)}</code> · {escape(experiment.source)}</p>
{compared}{"".join(_run(run, first=run is runs[0]) for run in runs)}
</section>"""


def _comparison(runs: Sequence[Result]) -> str:
    """Claims by runs: what each found."""
    found = [{(c["short"], c["claim"]): c for c in run.summary["claims"]} for run in runs]
    claims = dict.fromkeys(key for run in found for key in run)
    head = "".join(
        f"<th>{escape(run.title)}<br><code>{escape(run.folder.as_posix())}</code></th>"
        for run in runs
    )
    rows = "".join(
        f"<tr><th>{escape(key[1])}</th>{''.join(_cell(run.get(key)) for run in found)}</tr>"
        for key in claims
    )
    return f"""<details class="compare"><summary>Compare {len(runs)} runs</summary>
<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>
</details>"""


def _cell(claim: dict | None) -> str:
    if claim is None:
        return "<td>–</td>"
    return f"<td>{_badge(_outcome(claim))}<br>{escape(claim['found'])}</td>"


def _run(run: Result, first: bool) -> str:
    """A run: its picture, its claims, and how to make it again."""
    config = json.dumps(run.config, indent=2)
    return f"""<details class="run"{" open" if first else ""}><summary>{escape(run.title)}</summary>
<img src="data:image/png;base64,{_base64(run.picture)}" alt="{escape(run.summary["title"])}">
{"".join(_claim(claim) for claim in run.summary["claims"])}
<p>Made by</p>
<pre>{escape(run.command)}</pre>
<details><summary>Settings, versions and device</summary><pre>{escape(config)}</pre></details>
</details>"""


def _claim(claim: dict) -> str:
    numbers = json.dumps(claim["numbers"])
    return f"""<article class="{CLASS[_outcome(claim)]}">
<h3>{escape(claim["claim"])} {_badge(_outcome(claim))}</h3>
<dl><dt>source</dt><dd>{escape(claim["source"])}</dd><dt>here</dt><dd>{escape(claim["found"])}</dd></dl>
<details><summary>Test and numbers</summary><p>{escape(claim["test"])}</p>
<pre>{escape(numbers)}</pre></details>
</article>"""


def _outcome(claim: dict) -> str:
    """The verdict, and of what has none the kind of row."""
    return claim["verdict"] or claim["kind"]


def _badge(verdict: str) -> str:
    return f'<span class="badge {CLASS[verdict]}">{MARK[verdict]} {escape(verdict)}</span>'


def _base64(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
