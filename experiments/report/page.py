"""The results as one HTML page: charts, numbers and the script that draws inside, no network."""

import base64
import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from PIL import Image

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
from experiments.lectures import SENTENCES, Sentence
from experiments.registry import Experiment
from experiments.report import charts
from experiments.report.collect import Result, by_experiment, tally
from experiments.report.docstrings import as_html, how
from experiments.report.evidence import evidence

TEMPLATES = Path(__file__).with_name("templates")
STYLE = Path(__file__).with_name("style.css")
PICTURE_WIDTH = 600  # pixels; one page holds all of them
COMPRESSION: dict[str, Any] = {"format": "AVIF", "quality": 22, "subsampling": "4:4:4", "speed": 8}
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
            style=Markup(STYLE.read_text(encoding="utf-8") + charts.style()),
            vega=charts.packed_vega(),
            drawing=Markup(charts.drawing()),
        )
    )


@cache
def environment() -> Environment:
    """The templates of the report, and the words they have for what results hold."""
    return templates(
        TEMPLATES,
        autoescape=True,
        compared=_compared,
        evidence=evidence,
        how=how,
        inline=_inline,
        json=_json,
        look=LOOK.__getitem__,
        mark=MARK.__getitem__,
        numbers=_numbers,
        outcome=outcome,
        packed=charts.packed_json,
        rst=as_html,
        sentences=sentences,
        through_training=charts.through_training,
    )


def sentences(experiment: Experiment) -> list[Sentence]:
    """Those of the lectures that it tests."""
    return [sentence for sentence in SENTENCES if sentence.program == experiment.name]


def outcome(claim: dict[str, Any]) -> str:
    """The verdict, and of what has none the kind of row."""
    return claim["verdict"] or claim["kind"]


def _compared(runs: Sequence[Result]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Claims by runs: what each found, None where it does not test it."""
    found = [{(c["short"], c["claim"]): c for c in run.summary["claims"]} for run in runs]
    claims = dict.fromkeys(key for run in found for key in run)
    return [(key[1], [run.get(key) for run in found]) for key in claims]


def _numbers(value: Any) -> str:
    """As JSON, with as many digits as anybody reads; summary.json has the others."""
    rounded = json.loads(
        json.dumps(value), parse_float=lambda digits: float(f"{float(digits):.5g}")
    )
    return json.dumps(rounded)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent)


def _inline(path: Path) -> str:
    """A picture, small, as an address that holds it."""
    small = io.BytesIO()
    try:
        with Image.open(path) as picture:
            height = round(picture.height * PICTURE_WIDTH / picture.width)
            picture.convert("RGB").resize((PICTURE_WIDTH, height)).save(small, **COMPRESSION)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return "data:image/avif;base64," + base64.b64encode(small.getvalue()).decode()
