"""The results as one HTML page: pictures inside, no script, no network."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from experiments.common.errors import UserError
from experiments.common.templates import templates
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
from experiments.report.collect import Result, by_experiment, tally

TEMPLATES = Path(__file__).with_name("templates")
STYLE = Path(__file__).with_name("style.css")
LOOK = {HOLDS: "holds", IN_PART: "part", FAILS: "fails", UNDECIDED: "undecided"}
LOOK |= {CONTROL: "other", IDENTITY: "other"}
MARK = MARKS | {CONTROL: "–", IDENTITY: "="}


def page(found: Sequence[Result]) -> str:
    """A whole HTML document."""
    return (
        environment()
        .get_template("page.html")
        .render(
            groups=by_experiment(found),
            tally=tally(found),
            rule=RULE,
            style=Markup(STYLE.read_text(encoding="utf-8")),
        )
    )


def environment() -> Environment:
    """The templates of the report, and the words they have for what results hold."""
    return templates(
        TEMPLATES,
        autoescape=True,
        compared=_compared,
        inline=_inline,
        json=_json,
        look=LOOK.__getitem__,
        mark=MARK.__getitem__,
        outcome=outcome,
    )


def outcome(claim: dict[str, Any]) -> str:
    """The verdict, and of what has none the kind of row."""
    return claim["verdict"] or claim["kind"]


def _compared(runs: Sequence[Result]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Claims by runs: what each found, None where it does not test it."""
    found = [{(c["short"], c["claim"]): c for c in run.summary["claims"]} for run in runs]
    claims = dict.fromkeys(key for run in found for key in run)
    return [(key[1], [run.get(key) for run in found]) for key in claims]


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent)


def _inline(path: Path) -> str:
    """A picture as an address that holds it."""
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
