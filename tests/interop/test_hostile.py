"""Files made to hurt: each is one line, at once, and without filling the memory."""

import os
import signal
import time
from pathlib import Path

import flax
import numpy as np
import pytest
import safetensors.numpy

from bnjax.__main__ import main
from bnjax.interop import load_torch, load_variables
from bnjax.interop._limits import Limit
from tests.interop import _hostile

torch = pytest.importorskip("torch")
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
pytestmark = pytest.mark.skipif(not PEAK.exists(), reason="measures memory by Linux's /proc")


class Hangs(BaseException):
    """Not to be caught by the program."""


def memory(which):
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[which].split()[0]) * 1024


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """What is imported is not what is measured."""
    path = _hostile.orbax(tmp_path_factory.mktemp("warm") / "a")
    assert main(["inspect", str(path)]) == 0


@pytest.fixture
def bounded():
    """Fails what takes long, or much memory."""

    def stop(*_):
        raise Hangs

    usual = signal.signal(signal.SIGALRM, stop)
    PEAK.write_text("5")
    before, start = memory("VmRSS"), time.process_time()
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, usual)
    # Of computing, whatever else the machine does: who waits without is stopped by the alarm.
    assert time.process_time() - start < 5
    assert memory("VmHWM") - before < 300e6


@pytest.fixture(params=_hostile.HOSTILE)
def path(request, tmp_path):
    return _hostile.path_of(request.param, tmp_path)


def test_hostile_files_are_one_line(path, bounded, capfd):
    code = main(["inspect", str(path)])
    out, err = capfd.readouterr()
    assert code == 2 and not out, (out, err)
    assert err.startswith(f"bnjax: {path}: ") and err.count("\n") == 1 and len(err) < 3000
    assert err[:-1].isprintable() and "unexpected" not in err


@pytest.mark.parametrize("name", ["a pipe", "a link to a device", "torch of zeros"])
def test_load_torch_refuses_them_too(name, tmp_path, bounded):
    with pytest.raises(ValueError, match=r"neither a file nor a folder|more than|at most"):
        load_torch(_hostile.path_of(name, tmp_path))


@pytest.mark.parametrize("kind", ["npz", "msgpack", "safetensors", "orbax", "torch"])
def test_the_limit_can_be_raised_and_lowered(kind, tmp_path):
    """Zeros that are packed well are no attack."""
    path, zeros = tmp_path / "checkpoint", np.zeros(2**16, np.float32)
    arrays = {"bn/mean": zeros, "bn/var": zeros}
    if kind == "npz":
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
    elif kind == "msgpack":
        path.write_bytes(flax.serialization.msgpack_serialize(arrays))
    elif kind == "safetensors":
        safetensors.numpy.save_file(arrays, path)
    elif kind == "orbax":
        _hostile.orbax(path, arrays)
    else:
        torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path)
    load = load_torch if kind == "torch" else load_variables
    for enough in (None, 10**6):
        assert load(path, max_bytes=enough)
    with pytest.raises(ValueError, match=r"more than the 500,000 that .* with max_bytes="):
        load(path, max_bytes=500_000)
    with pytest.raises(ValueError, match="max_bytes must be at least 1, got 0"):
        load(path, max_bytes=0)


def test_the_limit_of_what_a_database_unpacks_into_can_be_raised(tmp_path):
    """4 million names of files, in 12 MB, in 400 bytes."""
    path = _hostile.orbax(tmp_path / "checkpoint")
    (path / "manifest.ocdbt").write_bytes(_hostile.manifest(2**22))
    with pytest.raises(ValueError, match=r"manifest.ocdbt, as it is unpacked, has 12,\d+,\d+ by"):
        load_variables(path)
    with pytest.raises(ValueError, match="it is damaged"):
        load_variables(path, max_bytes=2**30)


def test_what_is_large_on_the_disk_may_be_as_large_in_memory(tmp_path, monkeypatch):
    """The limit grows with the file, whatever is its least."""
    monkeypatch.setattr("bnjax.interop._limits.LEAST", 1)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"bn/mean": np.zeros(2**16), "bn/var": np.ones(2**16)}, path)
    assert load_variables(path)["batch_stats"]["bn"]["mean"].shape == (2**16,)


def test_names_in_errors_cannot_command_a_terminal(tmp_path):
    path = tmp_path / "model.safetensors"
    for name in ("\x1b[2J", "\u202e", "a\r\nb"):
        safetensors.numpy.save_file({name: np.ones(2), f"{name}/b": np.ones(2)}, path)
        with pytest.raises(ValueError, match="would be one in it") as raised:
            load_variables(path)
        assert str(raised.value).isprintable()


def test_files_of_a_run_that_are_none_are_passed_over(tmp_path):
    """Pipes and sockets that a running program left beside its steps."""
    os.mkfifo(tmp_path / "log_7")
    _hostile.orbax(tmp_path / "3")
    assert load_variables(tmp_path)["batch_stats"]


def test_limits_say_what_came_and_what_is_legal():
    limit = Limit(2**20)
    limit.check_arrays(1, 2**20 - 2**14)
    with pytest.raises(ValueError, match=r"2 array\(s\) of 1,032,192 bytes in all are more than"):
        limit.check_arrays(2, 2**20 - 2**14)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_load_torch_has_one_error_for_all_damage(kind, tmp_path):
    rng, path, refused = np.random.default_rng(0), tmp_path / "model", 0
    arrays = {"bn.running_mean": np.zeros(3, np.float32), "bn.weight": np.ones(3, np.float32)}
    if kind == "safetensors":
        safetensors.numpy.save_file(arrays, path)
    else:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(whole)) if rng.random() < 0.3 else None])
        try:
            load_torch(path)
        except ValueError:
            refused += 1
    assert refused > 25
