"""Several processes on one machine: the same numbers as one, and an end when one dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main
from tests._quick import FLAGS
from tests.experiments.test_train import FILES, ROOT, SHORT, final, lines, losses, read

WITHIN_SECONDS = 120
PROMPT_SECONDS = 20  # a closed connection is noticed at once; a silent process takes 30 s


def start(out, number, *args, own=None):
    """Processes that train together, with options of their own too; JAX gives each one device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments", "train", *SHORT, "--out", str(out), *args]
    command += ["--num-processes", str(number), "--coordinator", f"127.0.0.1:{port}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Process 1 may read a compiled program that process 0 is still writing: it compiles its own.
    half_written = "ignore:Error reading persistent compilation cache entry"
    environment = os.environ | {"XLA_FLAGS": FLAGS, "PYTHONWARNINGS": half_written}
    return [
        subprocess.Popen(
            [*command, "--process-id", str(i), *(own[i] if own else [])],
            cwd=ROOT,
            env=environment,
            **pipes,
        )
        for i in range(number)
    ]


def finish(processes):
    """Exit codes, and what was printed on stdout and stderr."""
    printed = [process.communicate(timeout=WITHIN_SECONDS) for process in processes]
    return [process.returncode for process in processes], printed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of two processes, and what they printed."""
    out = tmp_path_factory.mktemp("train") / "run"
    codes, printed = finish(start(out, 2))
    assert codes == [0, 0], printed
    return out, printed


def test_two_processes_train_like_one(finished, tmp_path):
    out, printed = finished
    assert {path.name for path in out.iterdir()} == FILES
    assert "on 2 devices" in printed[0][0] and "test accuracy" in printed[0][0]
    assert "accuracy" not in printed[1][0]
    assert main(["train", *SHORT, "--out", str(tmp_path / "one")]) == 0
    np.testing.assert_allclose(losses(out), losses(tmp_path / "one"), atol=1e-4)
    tested = [
        [r["test_loss"] for r in read(o) if "test_loss" in r] for o in (out, tmp_path / "one")
    ]
    np.testing.assert_allclose(*tested, atol=1e-4)


def test_a_death_ends_the_others_and_all_go_on_to_the_same_end(finished, tmp_path):
    out = tmp_path / "died"
    processes = start(out, 2)
    while len(lines(out)) < 12:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.002)
    processes[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    codes, printed = finish(processes)
    assert time.monotonic() - began < PROMPT_SECONDS
    assert codes[0] not in (0, 1, 2) and codes[1] == -signal.SIGKILL
    for _, error in printed:
        assert "start all processes again with the same commands" in error
    assert not (out / "summary.json").exists()

    codes, printed = finish(start(out, 2))
    assert codes == [0, 0] and "going on from step" in printed[0][0]
    assert final(out) == final(finished[0])


def test_an_error_of_process_0_is_told_by_all(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    Path(tmp_path, "run/summary.json").unlink()
    codes, printed = finish(start(tmp_path / "run", 2, "--seed", "1"))
    assert codes == [2, 2]
    for _, error in printed:
        assert error.count("\n") == 1 and "(seed 0 there, 1 here)" in error, error
    assert json.loads(Path(tmp_path, "run/config.json").read_text())["settings"]["seed"] == 0


def test_processes_of_different_settings_do_not_train(tmp_path):
    processes = start(tmp_path / "run", 2, own=[["--norm", "none"], []])
    codes, printed = finish(processes)
    assert codes == [2, 2]
    for _, error in printed:
        assert error.count("\n") == 1, error
        assert "(norm none on process 0, batch on process 1)" in error
    assert not (tmp_path / "run").exists()
