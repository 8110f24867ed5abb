"""Results from anywhere: what is damaged in them is named in one line, and nothing is replaced."""

import copy
import gzip
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from experiments.cli import main
from experiments.common import contents
from experiments.common.errors import UserError
from experiments.common.records import write_packed
from experiments.common.results import RECORDS
from experiments.registry import EXPERIMENTS
from experiments.report.collect import COMMITTED
from tests._committed import needs_results

RUN = ["run", "convergence", "--seeds", "2", "--steps", "2", "--eval-every", "1"]
DEEP = "[" * 10**5
# In the place of any value of a JSON file; text as it stands in the file.
VALUES = (
    "null", "true", "[]", "{}", '""', "-1", "0", "1e999", "NaN", "-Infinity", "1" + "0" * 400,
    "1e308", '"\\ud800"', '"a\\u001b[2J"', '"digits"', "[[1]]", '{"a": 1}', "1.5",
)  # fmt: skip
# In the place of the whole file.
FILES = {
    "empty": b"", "cut": b'{"experiment": "conv', "no UTF-8": b"\xff\xfe\xfa{}", "list": b"[]",
    "text": b'"a"', "number": b"3", "null": b"null", "deep": DEEP.encode(), "NUL": bytes(100),
    "deep names": b'{"a":' * 10**5, "long number": b"1" * 10**5, "object": b"{}",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "result"
    assert main([*RUN, "--out", str(folder)]) == 0
    # Hundreds of reports hold the picture: a small one.
    Image.new("RGB", (8, 8)).save(folder / "convergence.png")
    return folder


@pytest.fixture
def result(finished):
    shutil.copytree(finished, "result")
    return Path("result")


def places(content, above=()):
    """The way to every value in a JSON document."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


def altered(text, place, value):
    """A JSON text with another value, or none, at one place."""
    content = json.loads(text)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is None:
        del inner[place[-1]]
        return json.dumps(content)
    inner[place[-1]] = "here it is"
    return json.dumps(content).replace('"here it is"', value)


def check(command, file, folder, capsys, before):
    """Exit code 0, or 2 with one line that names the file and nothing changed; returns the code."""
    code = main([command, str(folder), *(["--out", "page.html"] if command == "report" else [])])
    err = capsys.readouterr().err
    if code:
        assert code == 2 and err.count("\n") == 1 and err[:-1].isprintable(), err
        assert str(folder / file) in err or "no finished result in" in err, err
        after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert after == before
    return code


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("command", ["plot", "report"])
@pytest.mark.parametrize("file", ["config.json", "summary.json"])
def test_any_other_value_in_a_file_is_named(command, file, result, capsys):
    rng = random.Random(0)
    whole = (result / file).read_text()
    codes = []
    everywhere = list(places(json.loads(whole)))
    # To draw takes its time, and of the summary it needs one number.
    few = [("seconds",)] if file == "summary.json" else rng.sample(everywhere, 6)
    for place in everywhere if command == "report" else few:
        for value in [None, *rng.sample(VALUES, 3)]:
            (result / file).write_text(altered(whole, place, value))
            codes.append(check(command, file, result, capsys, contents_of(result)))
            (result / file).write_text(whole)
    assert codes.count(2) > len(codes) / 4


@pytest.mark.parametrize("command", ["plot", "report"])
@pytest.mark.parametrize("file", ["config.json", "summary.json", RECORDS])
@pytest.mark.parametrize("content", FILES)
def test_any_other_file_is_named(command, file, content, result, capsys):
    inside = FILES[content]
    (result / file).write_bytes(gzip.compress(inside) if file == RECORDS else inside)
    code = check(command, file, result, capsys, contents_of(result))
    assert code == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x1f\x8b\x08", "cut", "flipped", "bomb"])
def test_records_that_do_not_unpack_are_named(damage, result, capsys, monkeypatch):
    monkeypatch.setattr("experiments.common.records.MOST_BYTES", 10**6)
    file = result / RECORDS
    whole = bytearray(file.read_bytes())
    if damage == "cut":
        damage = bytes(whole[:-20])
    elif damage == "flipped":
        whole[len(whole) // 2] ^= 0xFF
        damage = bytes(whole)
    elif damage == "bomb":
        damage = gzip.compress(bytes(10**7))
    file.write_bytes(damage)
    assert check("plot", RECORDS, result, capsys, contents_of(result)) == 2


@pytest.mark.parametrize("command", ["plot", "report"])
@pytest.mark.parametrize("file", ["config.json", "summary.json"])
def test_what_is_no_file_is_named(command, file, result, capsys):
    (result / file).unlink()
    os.mkfifo(result / file)
    assert check(command, file, result, capsys, contents_of(result)) == 2
    (result / file).unlink()
    (result / file).symlink_to("/dev/zero")
    assert check(command, file, result, capsys, contents_of(result)) == 2
    (result / file).unlink()
    (result / file).mkdir()
    assert check(command, file, result, capsys, contents_of(result)) == 2


def test_other_records_are_named(result, finished, capsys):
    """Values, lines and names of records changed at random."""
    rng = random.Random(0)
    file, codes = result / RECORDS, []
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    for _ in range(25):
        changed = copy.copy(lines)
        for _ in range(rng.choice((1, 1, len(lines)))):
            row = rng.randrange(len(changed))
            place = rng.choice(list(places(json.loads(lines[row]))))
            changed[row] = altered(lines[row], place, rng.choice([None, *VALUES]))
        if rng.random() < 0.3:
            changed = changed[: rng.randrange(len(changed))]
        write_packed(file, "\n".join(changed))
        codes.append(check("plot", RECORDS, result, capsys, contents_of(result)))
        for name, content in contents_of(finished).items():
            (result / name).write_bytes(content)
    assert codes.count(2) > 10


@needs_results
def test_what_this_project_wrote_is_legal():
    folders = [path.parent for path in COMMITTED.rglob("summary.json")]
    assert {folder.name for folder in folders} == {each.name for each in EXPERIMENTS}
    for folder in folders:
        experiment, _ = contents.read_config(folder)
        assert experiment is not None and experiment.name == folder.name
        assert contents.read_summary(folder)["claims"]
        assert contents.read_seconds(folder) >= 0


def test_a_file_too_long_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(UserError, match=r"config.json: longer than the 67,108,864 bytes"):
        contents.read_config(tmp_path)


def test_a_figure_that_cannot_be_replaced_is_named(result, capsys):
    (result / "convergence.png").unlink()
    (result / "convergence.png").mkdir()
    assert main(["plot", "result"]) == 2
    assert "error: result: cannot write there" in capsys.readouterr().err
