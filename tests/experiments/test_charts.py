"""The charts: true to records and summaries, and drawn so that they are read on any screen."""

import base64
import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common import verdicts
from experiments.common.contents import settings_of
from experiments.common.records import Record, read_records, series, without_nan
from experiments.common.results import RECORDS
from experiments.report.axes import AXES, FIRST, FIRST_GROUP, GROUPS
from experiments.report.collect import COMMITTED, Result, collect
from experiments.report.evidence import evidence
from experiments.report.histories import MOST_STEPS, History, histories, spreads, views
from experiments.report.page import page
from tests._committed import committed, needs_results
from tests.experiments.test_report import CHROMIUM

MOST_BYTES = 3_000_000  # of a report of all committed results
ALL_KINDS = "trained_affine"  # a program with all kinds of charts


def of(name: str) -> Result:
    """The committed result of a program."""
    return collect([COMMITTED / name])[0]


def read(result: Result) -> tuple[list[Record], list[History]]:
    records = read_records(result.folder / RECORDS)
    settings = settings_of(result.folder, result.experiment, result.config)
    return records, histories(result.experiment.name, records, settings)


def test_the_specifications_are_valid():
    alt = pytest.importorskip("altair")
    jsonschema = pytest.importorskip("jsonschema")
    from experiments.report.specs import specs

    for kind, spec in specs().items():
        alt.LayerChart.from_dict(spec, validate=True)
        with pytest.raises(jsonschema.ValidationError):
            alt.LayerChart.from_dict(spec | {"height": "tall"}, validate=True)
        assert {"ink", "text"} <= {param["name"] for param in spec["params"]}, kind


@pytest.mark.parametrize("result", committed(), ids=lambda r: r.folder.name)
def test_the_evidence_is_that_of_the_summary(result):
    for row in result.summary["claims"]:
        tests = [row["numbers"][of] for of in row["test"].split("; ") if of]
        for strip, found in zip(evidence(row), tests, strict=True):
            seeds, unit = strip["datasets"]["seeds"], found["unit"]
            undo = np.log if unit["logs"] else lambda shown, u=unit: np.array(shown) / u["factor"]
            shown = [each["value"] for each in seeds]
            np.testing.assert_allclose(undo(shown), found["differences"], rtol=1e-9, atol=1e-12)
            mean = strip["datasets"]["mean"][0]
            ends = undo([mean["mean"], mean["low"], mean["high"]])
            np.testing.assert_allclose(ends, [found["mean"], *found["interval"]], rtol=1e-9)
            assert strip["interval"] in row["found"] and strip["outcome"] == found["outcome"]
            low, high = strip["domain"]
            assert all(low < value < high for value in (*shown, 1 if unit["logs"] else 0))


def test_a_seed_that_diverged_is_told_and_margins_are_lines():
    test = verdicts.Test("log of x", [0.1, np.nan, 0.3], verdicts.TIMES, within=1.0)
    row = verdicts.settle([verdicts.claim("a", "b", "c", test)])[0]
    strip = evidence(without_nan(row.as_json()))[0]
    assert [each["seed"] for each in strip["datasets"]["seeds"]] == [0, 2]
    assert strip["guide"] == "between the dashed lines: for the claim; 1 seed diverged, not shown"
    assert strip["interval"] == "undefined (diverged)" and strip["of"] == "x"
    lines = [line["at"] for line in strip["datasets"]["lines"] if line["margin"]]
    assert lines == pytest.approx([np.exp(-1), np.exp(1)])


@needs_results
def test_lines_are_the_means_of_the_records_at_the_rates_that_the_claims_are_about():
    records, found = read(of("convergence"))
    view = views("convergence", found)[0]
    assert (view["name"], view["x"]) == ("test accuracy", "training step")
    compared = {line["network"]: line for line in view["lines"] if line["compared"]}
    assert {name: line["rate"] for name, line in compared.items()} == {
        "without batch norm": 3.0,  # as it stands in the claim
        "with batch norm": 0.3,
    }
    line = compared["with batch norm"]
    steps, values = series(records, "with batch norm, rate 0.3", "test_accuracy")
    at = np.searchsorted(steps, line["x"])
    np.testing.assert_allclose(line["mean"], values.mean(0)[at], rtol=1e-3)
    np.testing.assert_allclose(line["low"], values.min(0)[at], rtol=5e-3)  # three digits
    assert line["seeds"] == 10 and len(line["x"]) <= MOST_STEPS
    assert line["x"][0] == steps[0] and line["x"][-1] == steps[-1]


@needs_results
@pytest.mark.parametrize(
    ("program", "name", "recorded"),
    [
        (ALL_KINDS, "scale", "scale"),
        (ALL_KINDS, "shift", "bias"),
        ("affine", "shift", "bias"),
        ("convergence", "inputs of the activations", "input"),
    ],
)
def test_percentiles_are_the_means_of_the_records(program, name, recorded):
    records, found = read(of(program))
    line = next(each for each in spreads(found) if each["compared"])
    last = line["values"][name]["2"][-1]
    trial = f"{line['network']}, rate {line['rate']:g}"
    for q, value in zip((5, 25, 50, 75, 95), last, strict=True):
        mean = series(records, trial, f"{recorded}_2_{q}")[1][:, -1].mean()
        assert value == pytest.approx(mean, rel=5e-3)  # three digits


@needs_results
def test_the_whole_report_is_small_and_what_is_said_of_programs_is_true_of_their_records():
    pytest.importorskip("vl_convert")
    text = page(collect([COMMITTED]))
    assert len(text.encode()) < MOST_BYTES
    links = r'<a href="https://[^"]*"'
    assert "http" not in re.sub(links, "", PACKED.sub("", text))
    for section in text.split("<section ")[1:]:
        program = section.partition('"')[2].partition('"')[0]
        for each in re.findall(
            '<figure class="chart" data-kind="lines">.*?</figure>', section, re.S
        ):
            data = zlib.decompress(base64.b64decode(PACKED.findall(each)[0]))
            true_of_its_records(program, json.loads(data)["views"])


PACKED = re.compile(r'<script type="text/plain"(?: id="vega")?>(.*?)</script>', re.S)


def true_of_its_records(program: str, shown: list[dict[str, Any]]) -> None:
    """All that `experiments.report.axes` says of it."""
    lines = [line for view in shown for line in view["lines"]]
    for pattern, axis in AXES.get(program, {}).items():
        of_axis = [view for view in shown if view["x"] == axis.title]
        named = {line["network"] for view in of_axis for line in view["lines"]}
        assert named and all(re.search(pattern, name) for name in named), (program, pattern)
    groups = {line["group"] for line in lines}
    assert shown[0]["name"] == FIRST.get(program, shown[0]["name"])
    assert FIRST_GROUP.get(program, lines[0]["group"]) in groups
    assert len(groups) > 1 or program not in GROUPS
    for view in shown:  # no two lines of a chart have one name
        names = [(line["group"], line["label"], line.get("rate")) for line in view["lines"]]
        assert len(names) == len(set(names)), (program, view["name"])


# In the page: all that is unfolded, every chart is drawn, and its letters are large enough.
SEEN = """() => {
  const sizes = [...document.querySelectorAll("figure.chart svg text")]
    .filter(text => text.textContent).map(text => parseFloat(getComputedStyle(text).fontSize));
  const width = document.documentElement.scrollWidth;
  return { width, least: Math.min(...sizes), count: sizes.length };
}"""


@needs_results
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_a_browser_draws_them_at_any_width_in_both_schemes(tmp_path):
    pytest.importorskip("vl_convert")
    playwright = pytest.importorskip("playwright.sync_api")
    shutil.copytree(COMMITTED / ALL_KINDS, tmp_path / "runs")
    path = tmp_path / "page.html"
    path.write_text(page(collect([tmp_path / "runs"])), encoding="utf-8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        colours = set()
        for width, scheme in ((390, "light"), (1280, "dark")):
            opened = Opened(browser, path, width, scheme)
            opened.draws_all()
            colours.add(opened.colour())
            opened.page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
            opened.page.wait_for_timeout(500)
            colours.add(opened.colour())
            if width == 1280:
                opened.tells_seed_and_interval()
                opened.moves_by_the_keyboard()
                opened.changes_by_its_menu()
            assert opened.said == []
        assert len(colours) == 2
        browser.close()


class Opened:
    """A page in Chromium, and what its scripts complain of or load."""

    def __init__(self, browser, path: Path, width: int, scheme: str):
        view = {"width": width, "height": 900}
        self.width, self.said = width, []
        self.page = browser.new_page(viewport=view, color_scheme=scheme)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._loads)
        self.page.goto(path.as_uri())

    def _loads(self, request) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.said.append(request.url)

    def draws_all(self) -> None:
        figures = self.page.locator("figure.chart")
        assert figures.count() == 7  # five tests, the lines, the percentiles
        for i in range(figures.count()):
            figures.nth(i).scroll_into_view_if_needed()
            figures.nth(i).locator("svg").wait_for(timeout=10_000)
        seen = self.page.evaluate(SEEN)
        assert seen["width"] <= self.width and seen["least"] >= 12 and seen["count"] > 40

    def colour(self) -> str:
        """Of the letters in charts."""
        return self.page.locator("figure.chart svg text").first.get_attribute("fill")

    def tells_seed_and_interval(self) -> None:
        dots = self.page.locator("figure[data-kind=evidence]").first.locator(".mark-symbol path")
        assert dots.count() == 10
        dots.nth(3).hover()
        words = self.page.locator("#chart-tooltip.visible").inner_text()
        assert re.search(r"seed:?\s+3\b", words) and "-0.26 [-0.63, +0.12] points" in words
        self.page.mouse.move(0, 0)

    def moves_by_the_keyboard(self) -> None:
        figure = self.page.locator("figure[data-kind=spread]")
        marks = figure.locator("svg .mark-symbol path").first
        slider = figure.get_by_role("slider")
        before, last = marks.get_attribute("transform"), figure.locator("output").inner_text()
        slider.focus()
        self.page.keyboard.press("Home")
        self.page.wait_for_timeout(200)
        assert last.strip() == "600" and figure.locator("output").inner_text().strip() == "0"
        assert marks.get_attribute("transform") != before

    def changes_by_its_menu(self) -> None:
        figure = self.page.locator("figure[data-kind=lines]")
        menu = figure.get_by_label("Show")
        menu.select_option(label="training loss, by training step")
        self.page.wait_for_timeout(500)
        ticks = " ".join(figure.locator("svg text").all_text_contents()).split()
        assert "0.1" in ticks and not [tick for tick in ticks if tick.endswith("%")]
