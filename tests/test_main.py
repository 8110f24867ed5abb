"""``python -m bnjax inspect``: what it prints, and its exit code."""

import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import optax
import pytest

import bnjax
from bnjax.__main__ import main
from bnjax.interop import save_safetensors
from bnjax.training import TrainState
from experiments.train.checkpoints import Checkpoints


def variables(mean=0.5):
    stats = {"mean": np.full(3, mean, np.float32), "var": np.full(3, 2, np.float32)}
    params = {"scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}
    return {"params": {"bn": params}, "batch_stats": {"bn": stats}}


@pytest.fixture
def checkpoint(tmp_path):
    save_safetensors(variables(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(capsys, *argv):
    code = main(["inspect", *map(str, argv)])
    return code, *capsys.readouterr()


def test_a_healthy_checkpoint_is_0(checkpoint, capsys):
    code, out, err = run(capsys, checkpoint)
    assert code == 0 and not err
    assert "bn" in out and "1 layer, 3 channels: no findings" in out


def test_findings_come_with_remedies_and_errors_are_1(checkpoint, capsys):
    save_safetensors(variables(mean=np.nan), checkpoint)
    code, out, _ = run(capsys, checkpoint)
    assert code == 1
    assert "error: not finite (1 layer)" in out and "What to do: " in out


def test_warnings_alone_are_0_and_options_reach_the_report(checkpoint, capsys):
    code, out, _ = run(capsys, checkpoint, "--decay", "0.9", "--steps", "30")
    assert code == 0 and "after 30 updates the initial values weigh 0.042" in out
    code, out, _ = run(capsys, checkpoint, "--epsilon", "3")
    assert code == 0 and "epsilon is 3" in out


def test_the_figure_is_written(checkpoint, tmp_path, capsys):
    assert run(capsys, checkpoint, "--figure", tmp_path / "a.png")[0] == 0
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def run_folder(tmp_path):
    """What ``python -m experiments train`` leaves, as far as checkpoints go."""
    v = variables()
    state = TrainState.create(**v, tx=optax.sgd(0.1, momentum=0.9))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(8, state)
    checkpoints.close()
    return tmp_path / "run"


def test_a_run_of_the_experiments_can_be_inspected(run_folder, capsys):
    for path in (run_folder, run_folder / "checkpoints", run_folder / "checkpoints" / "8"):
        code, out, err = run(capsys, path)
        assert code == 0 and not err and "1 layer, 3 channels: no findings" in out


def test_every_flipped_byte_of_a_run_is_harmless_or_one_line(run_folder, capfd):
    """Its checksum sees even a changed number."""
    healthy = run(capfd, run_folder)
    files = [f for f in (run_folder / "checkpoints/8/default").rglob("*") if f.is_file()]
    codes = []
    for file in files:
        whole = file.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[position] ^= 0x55
            file.write_bytes(damaged)
            code, out, err = run(capfd, run_folder)
            codes.append(code)
            assert (code, out, err) == healthy or (code == 2 and not out and err.count("\n") == 1)
        file.write_bytes(whole)
    assert codes.count(2) >= 4


@pytest.mark.parametrize("content", ["nothing", "folder", "cut", "pickle", "text", "no norms"])
def test_what_cannot_be_read_is_2_and_one_line(content, checkpoint, tmp_path, capsys):
    path = tmp_path / "checkpoint"
    if content == "folder":
        path.mkdir()
    elif content == "cut":
        path.write_bytes(checkpoint.read_bytes()[:-5])
    elif content == "pickle":
        path.write_bytes(pickle.dumps({"params": 1}))
    elif content == "text":
        path.write_text("step,loss\n1,0.5\n")
    elif content == "no norms":
        save_safetensors({"params": {"dense": {"kernel": np.ones(2)}}}, path)
    code, out, err = run(capsys, path)
    assert code == 2 and not out
    assert err.startswith(f"bnjax: {path}: ") and err.count("\n") == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch_are_inspected_whatever_their_name(legacy, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    norm = torch.nn.BatchNorm1d(3).bfloat16()
    norm.running_mean += 0.5
    norm.num_batches_tracked += 1
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
    saved = {"state_dict": {f"bn.{k}": v for k, v in norm.state_dict().items()}}
    saved |= {"optimizer": optimizer.state_dict(), "epoch": 3, "name": "a"}
    torch.save(saved, tmp_path / "model", _use_new_zipfile_serialization=not legacy)
    code, out, err = run(capsys, tmp_path / "model")
    assert code == 0 and not err and "1 layer, 3 channels: no findings" in out
    norm.running_var[0] = np.nan
    torch.save(norm.state_dict(), tmp_path / "model.safetensors")
    assert run(capsys, tmp_path / "model.safetensors")[0] == 1


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_no_code_in_a_file_of_torch_is_run(kind, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path, sprung = tmp_path / "model.pth", tmp_path / "sprung"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"bn": Trap(sprung)}, protocol=2))
    else:
        torch.save({"bn": Trap(sprung)}, path, _use_new_zipfile_serialization=kind == "zip")
    code, out, err = run(capsys, path)
    assert code == 2 and not out and err.count("\n") == 1 and "nothing of it was run" in err
    assert err.startswith(f"bnjax: {path}: ") and not sprung.exists()


def test_without_torch_its_files_say_what_to_install(tmp_path, capsys, monkeypatch):
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as file:
        file.writestr("model/data.pkl", pickle.dumps({}, protocol=2))
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run(capsys, tmp_path / "model.pth")
    assert code == 2 and "pip install torch" in err and err.count("\n") == 1


def test_arrays_can_be_left_out(tmp_path, capsys):
    path = tmp_path / "two"
    broken = {"bn": {"mean": np.full(3, np.nan), "var": np.ones(3)}}
    both = {"a": variables()["batch_stats"], "b": broken}
    arrays = {f"{k}/bn/{leaf}": x for k, v in both.items() for leaf, x in v["bn"].items()}
    np.savez(path, **arrays)
    assert run(capsys, path.with_suffix(".npz"))[0] == 1
    assert run(capsys, path.with_suffix(".npz"), "--ignore", "^b/")[0] == 0


def test_illegal_options_are_one_line(checkpoint, capsys):
    code, _, err = run(capsys, checkpoint, "--decay", "1.5")
    assert code == 2 and "decay" in err and err.count("\n") == 1
    code, _, err = run(capsys, checkpoint, "--figure", checkpoint.parent / "no" / "a.png")
    assert code == 2 and err.count("\n") == 1


@pytest.mark.parametrize("options", [("--epsilon", "nan"), ("--ignore", "("), ("--steps", "-1")])
def test_options_without_a_meaning_are_named(options, checkpoint, capsys):
    code, out, err = run(capsys, checkpoint, *options)
    assert code == 2 and not out and options[0][2:] in err and "unexpected" not in err


def test_how_much_is_read_can_be_said(checkpoint, capsys):
    assert run(capsys, checkpoint, "--max-bytes", "1000000")[0] == 0
    code, _, err = run(capsys, checkpoint, "--max-bytes", "100")
    assert code == 2 and "--max-bytes" in err and err.count("\n") == 1


@pytest.mark.parametrize("error", [TypeError("a\n\x1b[2Jb"), MemoryError(), RecursionError("c")])
def test_what_nobody_expected_is_2_and_one_line(error, checkpoint, capsys, monkeypatch):
    """1 would say that evaluation is wrong."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("bnjax.diagnostics.report", fail)
    code, out, err = run(capsys, checkpoint)
    assert code == 2 and not out and err[:-1].isprintable()
    assert err.startswith(f"bnjax: unexpected {type(error).__name__}:")


def test_an_interrupt_is_130_and_one_line(checkpoint, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bnjax.diagnostics.report", interrupt)
    assert run(capsys, checkpoint) == (130, "", "bnjax: interrupted\n")


def shell(command, path, **env):
    """What bash makes of a line in which INSPECT inspects ``path``: exit code, output, errors."""
    inspect = f"{sys.executable} -m bnjax inspect {path}"
    line = ["bash", "-c", command.replace("INSPECT", inspect)]
    done = subprocess.run(line, capture_output=True, check=False, env=os.environ | env)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_reader_that_has_enough_is_no_error(reader, checkpoint):
    """The exit code says what it always says, and nothing is printed about the pipe."""
    for mean, right in ((0.5, b"0\n"), (np.nan, b"1\n")):
        save_safetensors(variables(mean), checkpoint)
        command = f"INSPECT 2>&1 > >({reader} > /dev/null); echo $?"
        assert shell(command, checkpoint) == (0, right, b"")


def test_an_output_of_few_letters_or_none_is_no_error(checkpoint):
    code, out, err = shell("INSPECT", checkpoint, PYTHONIOENCODING="ascii")
    assert code == 0 and b"no findings" in out and b"\\u03c3" in out and not err
    assert shell("INSPECT >&-", checkpoint) == (0, b"", b"")


def test_names_of_layers_are_shown_as_they_are_and_command_nothing(tmp_path, capsys):
    path = tmp_path / "a.npz"
    name, rich = "\x1b[31m\u202e", "[bold]$x_{"
    stats = {"running_mean": np.full(3, np.nan), "running_var": np.ones(3)}
    np.savez(path, **{f"{n}/{leaf}": x for n in (name, rich) for leaf, x in stats.items()})
    code, out, err = run(capsys, path, "--figure", tmp_path / "a.png")
    assert code == 1 and not err
    assert out.replace("\n", "").isprintable() and out.count(r"\x1b[31m\u202e") == 2
    assert out.count(rich) == 2 and (tmp_path / "a.png").exists()


def test_a_missing_library_is_one_line(checkpoint, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    code, _, err = run(capsys, checkpoint)
    assert code == 2 and "pip install 'bnjax[interop]'" in err and err.count("\n") == 1


def test_the_module_runs_and_alone_it_prints_help(checkpoint):
    def python(*argv):
        command = [sys.executable, "-m", "bnjax", *argv]
        env = os.environ | {"COLUMNS": "80"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env)

    alone = python()
    assert alone.returncode == 2 and "inspect" in alone.stderr and not alone.stdout
    told = python("--version")
    assert told.returncode == 0 and told.stdout.startswith(f"bnjax {bnjax.__version__} (jax ")
    damaged = checkpoint.with_name("damaged")
    damaged.write_bytes(checkpoint.read_bytes()[:100])
    result = python("inspect", str(damaged))
    assert result.returncode == 2 and "Traceback" not in result.stderr
