"""The charts of the report and the site: their data, and the scripts that draw them.

They are specified by Vega-Altair, and drawn in the reader's browser as inline SVG by the bundle of
Vega that vl-convert brings. There are three; `charts.js` gives each figure's data to a copy.

* evidence   of every test the differences, a dot a seed: `experiments.report.evidence`
* lines      of every network a number through training: `experiments.report.histories.views`
* spread     percentiles by layer at the step of a slider: `experiments.report.histories.spreads`
"""

import base64
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from experiments.common import contents
from experiments.common.errors import UserError
from experiments.common.records import read_records
from experiments.common.results import RECORDS
from experiments.report.axes import SOONEST
from experiments.report.collect import Result

SCRIPT = Path(__file__).with_name("charts.js")
STYLE = Path(__file__).with_name("charts.css")


@cache
def vega() -> str:
    """The script of Vega, Vega-Lite and Vega-Embed, all in one.

    In a scope of its own: some of its many short names are Sphinx's as well.
    """
    import vl_convert

    return f"(() => {{\n{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n}})();"


@cache
def packed_vega() -> str:
    """The same, for a page that has to stand alone."""
    return packed(vega())


def style() -> str:
    """Of the figures, and of what stands at a mark that is pointed at."""
    return STYLE.read_text(encoding="utf-8")


@cache
def drawing() -> str:
    """The script that draws the figures of a page when they come into view."""
    from experiments.report.specs import specs

    return f"const SPECS = {json.dumps(specs())};\n{SCRIPT.read_text(encoding='utf-8')}"


def through_training(result: Result) -> dict[str, Any]:
    """What `lines` and `spread` show of the records of `result`."""
    from experiments.report.histories import histories, spreads, views

    path = result.folder / RECORDS
    contents.check_file(path)
    name = result.experiment.name
    settings = contents.settings_of(path, result.experiment, result.config)
    with contents.from_records(path):
        found = histories(name, read_records(path), settings)
        if not found:
            raise UserError(f"{path}: holds no numbers")
        return {
            "views": views(name, found),
            "spreads": spreads(found),
            "best": "soonest at the target" if name in SOONEST else "most accurate",
        }


def packed_json(value: Any) -> str:
    """`value` as JSON, packed."""
    return packed(json.dumps(value, separators=(",", ":"), allow_nan=False))


def packed(text: str) -> str:
    """`text` deflated, in letters that HTML holds as they are: a third of its size."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()
