"""The command line: what goes wrong is one line and exit code 2, and leaves nothing behind."""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import jax
import pytest

import bnjax
from experiments.benchmarks import BENCHMARKS
from experiments.cli import main
from experiments.common import results
from experiments.common.errors import UserError
from experiments.common.results import RECORDS
from experiments.common.trials import once
from experiments.options import COMMANDS, Run
from experiments.registry import EXPERIMENTS
from experiments.runner import run
from experiments.train.options import Train

TWO_STEPS = ["run", "convergence", "--steps", "2", "--eval-every", "1", "--seeds", "2"]
FILES = {RECORDS, "config.json", "summary.json", "convergence.png"}
ROOT = Path(__file__).parents[2]


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


USER_ERRORS = {
    "unknown command": (
        ["frob"],
        "choose one of run, list, plot, report, compare, benchmark, train, site",
    ),
    "nearly a command": (["trian"], "unknown command 'trian' (did you mean train?)"),
    "no experiment": (["run"], "NAME"),
    "unknown experiment": (["run", "nope"], "'nope'; choose one of: convergence"),
    "nearly an experiment": (["run", "convergance"], "(did you mean convergence?)"),
    "nearly all": (["run", "al"], "(did you mean all?)"),
    "nearly a benchmark": (["benchmark", "layr"], "guard (did you mean layer?)"),
    "nearly a model": (["train", "--model", "ResNt"], "resnet (did you mean resnet?)"),
    "nearly a flag": (["train", "--modl", "mlp"], "--modl, mlp (did you mean --model?)"),
    "two of them": (["train", "--epoch", "2", "--batchsize", "3"], "--epochs"),
    "flag of another": (["run", "depth", "--rounds", "3"], "misplaced options: --rounds 3; see"),
    "unknown preset": ([*TWO_STEPS, "--preset", "big"], "'big' is not one of quick, long"),
    "unknown data": ([*TWO_STEPS, "--data", "cats"], "'cats' is not one of digits, mnist, cifar10"),
    "unknown flag": ([*TWO_STEPS, "--colour", "red"], "--colour"),
    "flag without value": (["run", "convergence", "--seeds"], "--seeds"),
    "no seeds": ([*TWO_STEPS, "--seeds", "0"], "--seeds: '0' is not a whole number from 1"),
    "half a seed": ([*TWO_STEPS, "--seeds", "1.5"], "--seeds: '1.5' is not a whole number"),
    "negative steps": (["run", "convergence", "--steps", "-5"], "--steps: '-5' is not"),
    "rate nan": ([*TWO_STEPS, "--learning-rate", "nan"], "'nan' is not a positive, finite"),
    "rate inf": ([*TWO_STEPS, "--learning-rate", "inf"], "'inf' is not a positive, finite"),
    "rate 0": ([*TWO_STEPS, "--learning-rate", "0"], "'0' is not a positive, finite number"),
    "batch of 1": ([*TWO_STEPS, "--batch-size", "1"], "'1' is not a whole number from 2"),
    "batch too large": ([*TWO_STEPS, "--batch-size", "2000"], "more than the 1297 training"),
    "batch above what is left": (
        [*TWO_STEPS, "--batch-size", "1200"],
        "batches of 1200 are more than the 1038 images to train on",
    ),
    "no such preset": (["run", "depth", "--preset", "paper"], "choose one of: quick, long"),
    "all lacks a folder": (["run", "all", "--preset", "long"], "--data cifar10 needs --data-dir"),
    "rounds of none": (["benchmark", "accuracy", "--rounds", "3"], "--rounds means nothing to"),
    "folder for digits": ([*TWO_STEPS, "--data-dir", "."], "--data-dir goes with --data mnist"),
    "no such folder": ([*TWO_STEPS, "--data", "mnist", "--data-dir", "x"], "x does not exist"),
    "empty folder": ([*TWO_STEPS, "--data", "mnist", "--data-dir", "."], "lacks train-images"),
    "rate of all rates": (
        ["run", "optimizers", "--learning-rate", "1"],
        "--learning-rate means nothing to optimizers",
    ),
    "nothing to plot": (["plot", "x"], "x/config.json: cannot be read"),
}


@pytest.mark.parametrize("args, message", USER_ERRORS.values(), ids=USER_ERRORS)
def test_user_errors(args, message, capsys, tmp_path):
    before = everything(tmp_path)
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert everything(tmp_path) == before


def test_no_words_are_answered_with_help_but_not_with_0(capsys):
    """A script whose command came out empty must not pass for one that ran."""
    with pytest.raises(SystemExit) as stop:
        main([])
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and not out
    assert all(f"• {command} " in error for command in COMMANDS)


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out.startswith(f"bnjax {bnjax.__version__} (jax {jax.__version__}")


WITHOUT_JAX = [
    ["run", "nope"],
    ["run", "depth", "--preset", "paper"],
    ["run", "depth", "--data", "cifar10"],
    ["run", "depth", "--data", "mnist", "--data-dir", "."],
    ["run", "depth", "--out", "file"],
    ["run", "all", "--out", "file/folder"],
    ["benchmark", "accuracy", "--rounds", "3"],
    ["benchmark", "layer", "--out", "file"],
    ["train", "--steps", "3", "--epochs", "2"],
    ["train", "--norm", "none", "--statistics", "device"],
    ["train", "--batch-size", "10", "--micro-batches", "3"],
    ["train", "--statistics", "virtual"],
    ["train", "--data-dir", "."],
    ["train", "--data", "mnist", "--data-dir", "."],
    ["train", "--out", "file/folder"],
    ["train", "--batch-size", "1298"],
]


def test_contradictions_are_found_before_jax_is_imported():
    """Which takes a second or more, before anything is compiled."""
    program = (
        "import json, sys; from experiments.cli import main\n"
        "codes = [main(args) for args in json.load(sys.stdin)]\n"
        "print(json.dumps([codes, 'jax' in sys.modules]))"
    )
    Path("file").touch()
    command = [sys.executable, "-c", program]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, input=json.dumps(WITHOUT_JAX), capture_output=True, text=True, env=env, check=False
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[2] * len(WITHOUT_JAX), False], done.stderr
    assert done.stderr.count("\n") == len(WITHOUT_JAX)


def test_all_are_checked_before_the_first_is_run(capsys, monkeypatch):
    monkeypatch.setattr("experiments.runner._run", lambda *_: pytest.fail("it was run"))
    Path("results/transfer").mkdir(parents=True)
    Path("results/transfer/thesis.txt").touch()
    assert main(["run", "all", "--out", "results"]) == 2
    assert "transfer holds other files than a result" in capsys.readouterr().err


def test_damaged_data_leaves_nothing_behind(mnist_dir, capsys, tmp_path):
    path = mnist_dir / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-3])
    before = everything(tmp_path)
    assert main([*TWO_STEPS, "--data", "mnist", "--data-dir", str(mnist_dir)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "train-labels-idx1-ubyte: holds 37 values" in error
    assert everything(tmp_path) == before


def test_a_process_ends_with_the_exit_code():
    command = [sys.executable, "-m", "experiments", "run", "nope"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def shell(line: str, **env: str) -> tuple[int, bytes, bytes]:
    """Exit code, output and errors of a line of bash, in which RUN is this program."""
    line = line.replace("RUN", f"{sys.executable} -m experiments")
    done = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, check=False, env=os.environ | env
    )
    return done.returncode, done.stdout, done.stderr


def test_nobody_has_to_read_what_is_printed():
    """The exit code says what it always says, and nothing is printed about the pipe."""
    assert shell("(RUN list; echo $? >&2) | true") == (0, b"", b"0\n")


def unread(args: list[str]) -> int:
    """The exit code where output goes into a pipe that nobody reads from."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output, contextlib.redirect_stdout(output):
        return main(args)


def test_the_work_goes_on_where_nobody_reads_any_more(finished):
    assert unread([*TWO_STEPS, "--out", "result"]) == 0
    for file in (RECORDS, "convergence.png"):
        assert Path("result", file).read_bytes() == (finished[0] / file).read_bytes(), file
    assert unread(["plot", "result"]) == unread(["list"]) == 0
    assert unread(["report", "result", "--out", "page"]) == 0
    with pytest.raises(SystemExit, match="0"):
        unread(["--help"])


def test_an_output_that_is_closed_or_of_few_letters_is_no_error():
    assert shell("RUN list >&-") == (0, b"", b"")
    assert shell("RUN plot x 2>&-") == (2, b"", b"")
    code, out, err = shell("RUN list", PYTHONIOENCODING="ascii")
    assert code == 0 and out.isascii() and b"convergence" in out and not err
    code, out, err = shell("RUN --help; RUN train --modl mlp", PYTHONIOENCODING="ascii")
    assert code == 2 and out.isascii() and b"run" in out and b"mean --model?" in err


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    monkeypatch.setattr("experiments.cli.EXTRAS", ("rich.table",))
    assert main(["list"]) == 2
    assert "pip install --group experiments" in capsys.readouterr().err


def help_of(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*args, "--help"])
    assert not stop.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_terminal(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_of(capsys, *filter(None, [command])).splitlines()
    assert lines[0].startswith("usage: python -m experiments")
    assert max(map(len, lines)) <= columns
    assert "\n\n\n" not in "\n".join(lines)


def test_help_of_benchmarks_tells_what_each_measures_and_how_long(capsys):
    words = " ".join(help_of(capsys, "benchmark").split())
    for name, each in BENCHMARKS.items():
        assert f"{name} {each.measures}; {each.takes}" in words


def test_help_of_train_is_in_groups_whose_flags_have_no_prefix(capsys):
    boxes = [box for box in help_of(capsys, "train").split("╭─ ")[1:] if "--help" not in box]
    names = [box.partition(" options")[0] for box in boxes]
    assert names == ["network", "training", "data", "output", "processes"]
    flags = {flag for box in boxes for flag in re.findall(r"│ --([\w-]+)", box)}
    assert flags == {field.name.replace("_", "-") for field in fields(Train)}


# What can be run with `python -m`.
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for folder in ("bnjax", "experiments", "tests/golden")
    for path in (ROOT / folder).rglob("*.py")
    if path.name == "__main__.py" or '\nif __name__ == "__main__":' in path.read_text()
)


def test_programs_are_found():
    assert {"bnjax", "experiments", "experiments.figures.norm_axes"} <= set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_every_program_is_help(program, tmp_path):
    command = [sys.executable, "-m", program, "--help"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"usage: python -m {program} ") and not done.stderr
    assert everything(tmp_path) == set()


def test_list_names_claim_source_data_steps_and_minutes(capsys):
    assert main(["list"]) == 0
    rows = capsys.readouterr().out.split("├")
    row = next(row for row in rows if "convergence" in row)
    lines = [line.strip("│").split("│") for line in row.splitlines() if line.startswith("│")]
    assert [" ".join(" ".join(cell).split()) for cell in zip(*lines, strict=True)] == [
        "convergence",
        "Batch norm trains faster (Ioffe & Szegedy 2015, section 4.1, Fig. 1)",
        "quick: digits, 1,000 steps, 1 min long: MNIST, 10,000 steps, 40 min "
        "paper: MNIST, 50,000 steps, 90 min",
    ]


def test_names_are_whole_in_a_narrow_terminal(capsys, monkeypatch):
    """They are to be typed."""
    monkeypatch.setattr("experiments.common.progress.PLAIN_WIDTH", 50)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(f"│ {each.name} " in out for each in EXPERIMENTS)


class Stopped(BaseException):
    """What a kill is to the program: nothing is tidied up after it."""


def stop_in_trial(monkeypatch, number: int, error: BaseException) -> list[str]:
    """Lets a run end with `error` when it begins its trial `number`; the trials that were begun."""
    begun = []

    def stopping(reporter, doing):
        begun.append(doing)
        if len(begun) > number:
            raise error

    monkeypatch.setattr("experiments.common.progress.Reporter.say", stopping)
    return begun


def test_ctrl_c_in_the_first_trial_leaves_nothing_behind(capsys, tmp_path, monkeypatch):
    stop_in_trial(monkeypatch, 0, KeyboardInterrupt())
    assert main([*TWO_STEPS, "--out", "deep/down/result"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on where it was\n"
    assert everything(tmp_path) == set()


def test_a_run_in_progress_is_not_disturbed(capsys, tmp_path):
    (tmp_path / ".result.part").mkdir()
    with results.alone(tmp_path / ".result.part"):
        assert main([*TWO_STEPS, "--out", "result"]) == 2
        assert (tmp_path / ".result.part/lock").exists()
    assert "another run is writing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run of two steps, and what the run printed."""
    folder = tmp_path_factory.mktemp("finished")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*TWO_STEPS, "--out", str(folder / "result")]) == 0
    return folder / "result", printed.getvalue()


def test_two_steps_make_all_files(finished):
    out, printed = finished
    assert {path.name for path in out.iterdir()} == FILES
    assert {path.name for path in out.parent.iterdir()} == {"result"}
    assert "verdict" in printed and "compiling" in printed
    assert printed.endswith(f"; open {out / 'convergence.png'}\n")

    logged = gzip.decompress((out / RECORDS).read_bytes()).decode()
    lines = [json.loads(line) for line in logged.splitlines()]
    assert len(lines) == 2 * 5 * 2 * 3  # networks, rates, seeds, evaluations at 0, 1, 2
    names = {"network", "seed", "step", "train_loss", "test_accuracy", "validation_accuracy"}
    assert set(lines[-1]) >= names
    config = (out / "config.json").read_text()
    assert json.loads(config)["settings"]["steps"] == 2
    assert str(out.parent) not in config
    claims = json.loads((out / "summary.json").read_text())["claims"]
    assert len(claims) == 4
    assert (out / "convergence.png").read_bytes().startswith(b"\x89PNG")


def test_products_keep_all_digits_of_float32_on_accelerators(monkeypatch):
    def lower():
        matrix = jax.numpy.ones((2, 2))
        raise UserError(jax.jit(jax.numpy.dot).lower(matrix, matrix).as_text())

    monkeypatch.setattr("experiments.lab.epsilon.trials", lambda *_: [once("probe", lower)])
    with pytest.raises(UserError, match="HIGHEST"):
        run(Run("epsilon"))


def test_same_command_same_numbers_and_picture(finished, tmp_path):
    """Run over an older result, to see on the way that it is replaced as a whole."""
    shutil.copytree(finished[0], "result")
    Path(f"result/{RECORDS}").write_text("older")
    assert main([*TWO_STEPS, "--out", "result", "--overwrite"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    for file in FILES - {"summary.json"}:  # which tells the time taken
        assert Path("result", file).read_bytes() == (finished[0] / file).read_bytes(), file


@pytest.mark.parametrize("other", [[], ["--batch-size", "50"]], ids=["same", "other settings"])
def test_a_stopped_run_goes_on_where_it_was(finished, other, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_in_trial(patch, 1, Stopped())
        with pytest.raises(Stopped):
            main([*TWO_STEPS, *other, "--out", "result"])
    assert {path.name for path in tmp_path.iterdir()} == {".result.part"}
    capsys.readouterr()
    if other:
        assert main([*TWO_STEPS, "--out", "result"]) == 2
        assert "1 finished trials of a stopped run with other" in capsys.readouterr().err
    assert main([*TWO_STEPS, "--out", "result", *(["--overwrite"] if other else [])]) == 0
    printed = capsys.readouterr().out
    assert ("going on: 1 of 10 trials are done" in printed) == (not other)
    assert ("without batch norm, rate 0.1: compiling" in printed) == bool(other)
    assert {path.name for path in tmp_path.iterdir()} == {"result"}
    for file in (RECORDS, "convergence.png"):
        assert Path("result", file).read_bytes() == (finished[0] / file).read_bytes(), file


DAMAGE = {
    "cut off": lambda content: content[: len(content) // 2],
    "lines lost": lambda content: b"".join(content.splitlines(keepends=True)[1:]),
    "empty": lambda content: b"",
    "not UTF-8": lambda content: b"\xff" + content,
    "other keys": lambda content: b'{"epoch": 1}\n',
    "a number changed": lambda content: content.replace(b"0.", b"1.", 1),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """What a run leaves that was stopped in its second trial."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_in_trial(patch, 1, Stopped())
        with pytest.raises(Stopped):
            main([*TWO_STEPS, "--out", str(folder / "result")])
    return folder / ".result.part"


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_trial_of_a_stopped_run_is_repeated(damage, stopped, finished, tmp_path, capsys):
    shutil.copytree(stopped, tmp_path / ".result.part")
    (part,) = (tmp_path / ".result.part/parts").iterdir()
    part.write_bytes(damage(part.read_bytes()))
    assert main([*TWO_STEPS, "--out", "result"]) == 0
    assert "000.jsonl: damaged, that trial is repeated" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"result"}
    assert Path(f"result/{RECORDS}").read_bytes() == (finished[0] / RECORDS).read_bytes()


@pytest.mark.parametrize("moment", ["between its renames", "after them"])
def test_killed_while_an_older_result_is_replaced(moment, finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], "result")
    rename, rmtree = Path.rename, shutil.rmtree

    def killed(call, path, *args, **options):
        first = path.name == "result" if call is rename else not str(path).endswith(".old")
        if not first and (call is rmtree or moment == "between its renames"):
            raise Stopped
        return call(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda path, to: killed(rename, path, to))
        patch.setattr(shutil, "rmtree", lambda path, **options: killed(rmtree, path, **options))
        with pytest.raises(Stopped):
            main([*TWO_STEPS, "--out", "result", "--overwrite"])
    assert len(list(tmp_path.iterdir())) == 2
    for _ in range(2):
        assert main([*TWO_STEPS, "--out", "result", "--overwrite"]) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert Path(f"result/{RECORDS}").read_bytes() == (finished[0] / RECORDS).read_bytes()


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"experiment": 1}', "\udcff" * 2])
def test_a_damaged_summary_is_no_finished_result(content, finished, capsys):
    shutil.copytree(finished[0], "result")
    Path("result/summary.json").write_bytes(content.encode(errors="surrogateescape"))
    assert not results.is_finished(Path("result"), FILES)
    assert results.is_finished(finished[0], FILES)
    assert main([*TWO_STEPS, "--out", "result"]) == 2
    assert "holds a damaged result; add --overwrite" in capsys.readouterr().err


def test_a_note_is_text_and_checked_before_the_training(finished, tmp_path, capsys):
    for note in ("\ud800", "two\nlines", "\x1b[31m"):
        assert main([*TWO_STEPS, "--data-note", note]) == 2
        assert "is not one line of printable text" in capsys.readouterr().err
    assert everything(tmp_path) == set()
    for note in ("$x^$ costs 5$", r"\frac{", "100 %"):
        settings = f'"data_note": {json.dumps(note)}'
        shutil.copytree(finished[0], "result", dirs_exist_ok=True)
        config = Path("result/config.json")
        config.write_text(config.read_text().replace('"data_note": ""', settings))
        assert note in config.read_text() or json.dumps(note)[1:-1] in config.read_text()
        assert main(["plot", "result"]) == 0


def test_plot_draws_the_same_picture_again(finished):
    shutil.copytree(finished[0], "result")
    Path("result/convergence.png").unlink()
    summary = Path("result/summary.json")
    judged = summary.read_text()
    summary.write_text(judged.replace("holds", "perhaps"))
    assert main(["plot", "result"]) == 0
    drawn = Path("result/convergence.png").read_bytes()
    assert drawn == (finished[0] / "convergence.png").read_bytes()
    assert summary.read_text() == judged


@pytest.mark.parametrize("file", ["config.json", RECORDS])
def test_plot_names_a_damaged_file(finished, file, capsys):
    shutil.copytree(finished[0], "result")
    Path("result", file).write_text('{"experiment": 3')
    assert main(["plot", "result"]) == 2
    reason = "not JSON" if file == "config.json" else "cut off, or no gzip file"
    assert f"result/{file}: {reason}" in capsys.readouterr().err


def test_a_finished_result_is_kept(finished, capsys):
    shutil.copytree(finished[0], "result")
    assert main([*TWO_STEPS, "--out", "result"]) == 2
    assert "holds a finished result; add --overwrite" in capsys.readouterr().err
    assert {path.name for path in Path("result").iterdir()} == FILES


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_other_files_are_never_replaced(capsys, overwrite):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    assert main([*TWO_STEPS, "--out", "mine", *overwrite]) == 2
    assert "holds other files than a result" in capsys.readouterr().err
    assert Path("mine/thesis.txt").exists()


def test_a_file_is_no_folder(capsys):
    Path("file").touch()
    assert main([*TWO_STEPS, "--out", "file"]) == 2
    assert "give a folder" in capsys.readouterr().err
    assert main([*TWO_STEPS, "--out", "file/result"]) == 2
    assert "error: --out" in capsys.readouterr().err
