"""The report: one page with everything in it, right on a phone and on a desk."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from experiments.cli import main
from experiments.common.contents import settings_of
from experiments.common.plots import MARGIN_INCHES, NARROW_INCHES
from experiments.common.records import read_records
from experiments.common.results import RECORDS
from experiments.common.verdicts import FAILS, IN_PART, UNDECIDED, VERDICTS
from experiments.lectures import LECTURES as LECTURES_IN_ORDER
from experiments.lectures import SENTENCES
from experiments.registry import EXPERIMENTS
from experiments.report.collect import COMMITTED, collect
from experiments.report.gallery import with_gallery
from experiments.report.lectures import lectures
from experiments.report.page import page
from experiments.report.runner import LECTURES, README
from experiments.runner import judge
from tests._committed import committed, needs_results

pytestmark = needs_results  # what a page may show is taken from one of them
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
RUN = COMMITTED / "convergence"
LONG = (
    "a <claim> & as long as one may be, with_a_word_that_is_much_too_long_for_a_phone_" + "x" * 80
)


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two results of one experiment that differ in data, verdicts and the length of their words."""
    for name in ("one", "two"):
        shutil.copytree(RUN, tmp_path / "runs" / name)
    config, summary = (tmp_path / "runs/two" / file for file in ("config.json", "summary.json"))
    content = json.loads(config.read_text())
    content["preset"] = "long"
    content["settings"] |= {"data": "mnist", "steps": 123, "learning_rate": 0.5}
    config.write_text(json.dumps(content))
    content = json.loads(summary.read_text())
    content["claims"][0] |= {"verdict": FAILS, "found": LONG}
    content["claims"][1]["verdict"] = IN_PART
    content["claims"][2]["verdict"] = UNDECIDED
    summary.write_text(json.dumps(content))
    return tmp_path / "runs"


class Page(html.parser.HTMLParser):
    """What a page would load, its words, and whether every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.words, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag != "a":  # loads nothing until somebody asks for it
            self.loads += [v for k, v in attrs if k in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_holds_everything_and_loads_nothing(runs, capsys):
    assert main(["report", str(runs), "--out", "page.html"]) == 0
    assert (
        "2 results, claims: 5 holds, 1 holds in part, 1 does not hold here, 1 undec"
        in capsys.readouterr().out
    )
    text = Path("page.html").read_text()
    seen = Page(text)
    assert len(seen.loads) == 2
    assert all(load.startswith("data:image/avif;base64,AAAA") for load in seen.loads)
    assert "url(" not in text
    words = "".join(seen.words)
    for result in collect([runs]):
        for claim in result.summary["claims"]:
            for key in ("claim", "source", "found", "verdict", "test"):
                assert claim[key] in words
        assert result.command in words and result.experiment.source in words
        assert result.experiment.see in words
    for sentence in (s for s in SENTENCES if s.program == RUN.name):
        assert sentence.said in words and sentence.chinese in words
    assert "Compare 2 runs" in words


def test_runs_are_compared_row_by_row_even_where_two_rows_say_the_same(runs):
    for path in runs.rglob("summary.json"):
        content = json.loads(path.read_text())
        content["claims"][3]["claim"] = content["claims"][2]["claim"]
        path.write_text(json.dumps(content))
    compared = page(collect([runs])).partition('class="compare"')[2].partition("</details>")[0]
    assert compared.count("<tr>") == 1 + 4  # the head, and every row


def test_the_command_makes_the_result_again(runs):
    one, two = collect([runs])
    assert one.command == "python -m experiments run convergence"
    assert two.command == (
        "python -m experiments run convergence --preset long --steps 123 --learning-rate 0.5 "
        "--eval-every 20 --data-dir DIR"
    )


def test_unfinished_runs_and_other_folders_are_left_out(runs, capsys):
    shutil.move(runs / "two", runs / ".two.part")
    (runs / "other").mkdir()
    (runs / "other/summary.json").write_text("{}")
    (runs / "other/config.json").write_text('{"benchmark": "layer"}')
    assert [result.folder.name for result in collect([runs])] == ["one"]
    shutil.rmtree(runs / "one")
    assert main(["report", str(runs)]) == 2
    assert "no finished result in" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2
    assert "no such folder: nowhere" in capsys.readouterr().err


def test_the_gallery_of_the_readme_is_that_of_the_committed_results():
    text = README.read_text()
    assert with_gallery(text, collect([COMMITTED]), README.parent) == text, (
        "renew it: python -m experiments report --gallery"
    )
    assert LECTURES.read_text() == lectures(collect([COMMITTED]))
    pictures = re.findall(r'<img src="(results/.*?)"', text)
    assert pictures and all((README.parent / picture).is_file() for picture in pictures)


def test_every_sentence_of_the_lectures_has_a_program_and_a_row():
    rows = {
        (result.experiment.name, row["short"])
        for result in collect([COMMITTED])
        for row in result.summary["claims"]
    }
    assert [s for s in SENTENCES if (s.program, s.row) not in rows] == []
    assert dict.fromkeys(s.lecture for s in SENTENCES) == dict.fromkeys(LECTURES_IN_ORDER)
    assert len(SENTENCES) == len({(s.lecture, s.said) for s in SENTENCES}) >= 40
    names_alone = {s.said for s in SENTENCES if not re.search("[\u4e00-\u9fff]", s.chinese)}
    assert names_alone == {"BatchNorm2d(16)"}


def test_every_experiment_is_published_with_its_records_and_its_own_settings():
    published = collect([COMMITTED])
    quick = [r.experiment.name for r in published if r.config["preset"] == "quick"]
    assert quick == [experiment.name for experiment in EXPERIMENTS]
    for result in published:
        assert result.config["settings"]["seeds"] >= 10
        assert result.config["commit"] and result.config["processor"]
        records = read_records(result.folder / RECORDS)
        settings = settings_of(result.folder, result.experiment, result.config)
        rows = judge(result.experiment, records, settings)
        words = ("short", "claim", "source", "verdict")  # numbers may round otherwise elsewhere
        shown = [{k: row.as_json()[k] for k in words} for row in rows]
        assert shown == [{k: row[k] for k in words} for row in result.summary["claims"]]
        preset = result.experiment.module.PRESETS[result.config["preset"]]
        settings = json.loads(json.dumps(dataclasses.asdict(preset)))  # tuples become lists
        assert result.config["settings"] | {"data_note": ""} == settings, result.folder


@pytest.mark.parametrize("result", committed(), ids=lambda r: r.folder.name)
def test_no_text_sticks_out_of_a_picture(result):
    """It would make the picture wider, and all text in it smaller where it is shown."""
    with Image.open(result.picture) as picture:
        inches = picture.width / picture.info["dpi"][0]
    assert inches <= NARROW_INCHES + 2 * MARGIN_INCHES


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_at_any_width(runs, tmp_path, width):
    """Opened in Chromium with every part unfolded: nothing is wider than the window, no picture is
    missing or squeezed, and text has the size it was given."""
    probe = """<script>addEventListener("load", () => {
      document.querySelectorAll("details").forEach(d => d.open = true);
      const images = [...document.images];
      document.title = JSON.stringify({
        inner: innerWidth, wide: document.documentElement.scrollWidth,
        images: images.map(i => [i.naturalWidth, i.width, i.height / i.width]),
        font: getComputedStyle(document.body).fontSize });
    })</script>"""
    frame = f'<iframe src="page.html" width="{width}" height="900" style="border:0"></iframe>'
    read = """<script>addEventListener("load", () => setTimeout(() => {
      document.title = frames[0].document.title }, 300))</script>"""
    (tmp_path / "page.html").write_text(page(collect([runs])) + probe)
    (tmp_path / "frame.html").write_text(frame + read)  # Chromium's own window is 500 at least
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found, done.stdout[:500]
    seen = json.loads(html.unescape(found[1]))
    assert seen["inner"] == width and seen["wide"] <= width
    assert len(seen["images"]) == 2
    for natural, shown, ratio in seen["images"]:
        assert natural >= 600 and shown > 0.8 * min(width, 560) and 0.3 < ratio < 3
    assert seen["font"] == "16px"


def test_every_verdict_has_a_look(runs):
    text = page(collect([runs]))
    for verdict in VERDICTS:
        assert re.search(rf'class="badge \w+">. {verdict}<', text)
