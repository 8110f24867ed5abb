"""`python -m experiments train` in one process: what it writes, and how it goes on."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from io import FileIO
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.cli import main
from experiments.common import data, results
from experiments.common.data import fingerprint, load_digits
from experiments.common.errors import UserError
from experiments.common.progress import Reporter
from experiments.train import processes, recorder
from experiments.train.checkpoints import Checkpoints
from experiments.train.options import Train, resolve
from experiments.train.runner import (
    batch_indices,
    eval_batches,
    first_state,
    make_mesh,
    make_model,
    make_optimizer,
    on_host,
    training_batch,
)
from tests._agree import relaxed
from tests._quick import FLAGS

ROOT = Path(__file__).parents[2]
SHORT = ["--steps", "24", "--eval-every", "8", "--checkpoint-every", "5", "--log-every", "1"]
FILES = {"config.json", "metrics.jsonl", "checkpoints", "summary.json"}
KILLS = 1  # times that a run is killed
SETTINGS = resolve(Train(), 1297, 1)


def train(out, *args):
    return main(["train", *SHORT, "--out", str(out), *args])


def read(out):
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


@cache
def like():
    """A state of the shape of those that `SHORT` trains."""
    return on_host(first_state(SETTINGS, (8, 8, 1)))


def final(out):
    """Everything a run is to end with: bytes of the metrics, the summary, and the last state."""
    checkpoints = Checkpoints(Path(out, "checkpoints"))
    leaves = [leaf.tobytes() for leaf in jax.tree.leaves(checkpoints.restore(like()))]
    steps = sorted(path.name for path in Path(out, "checkpoints").iterdir())
    checkpoints.close()
    return (
        [Path(out, name).read_bytes() for name in ("metrics.jsonl", "summary.json")],
        leaves,
        steps,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of `SHORT` that nobody disturbed."""
    out = tmp_path_factory.mktemp("train") / "run"
    assert train(out) == 0
    return out


@pytest.fixture
def unfinished(finished):
    """A run that was stopped after step 20, by hand."""
    shutil.copytree(finished, "run")
    Path("run/summary.json").unlink()
    shutil.rmtree("run/checkpoints/24")
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "lo')
    return Path("run")


def test_a_run_writes_and_learns(finished):
    assert {path.name for path in finished.iterdir()} == FILES
    records = read(finished)
    assert [record["step"] for record in records] == list(range(1, 25))
    assert [r["step"] for r in records if "test_accuracy" in r] == [8, 16, 24]
    assert records[-1]["test_accuracy"] > 0.85 and records[-1]["loss"] < records[0]["loss"] / 4
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["last"] == records[-1]
    best = max((r for r in records if "test_loss" in r), key=lambda r: r["test_accuracy"])
    assert summary["best"] == best
    kept = {int(path.name) for path in (finished / "checkpoints").iterdir()}
    assert kept == {20, 24, best["step"]}
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["learning_rate"] == 0.05 and "jax" in config["versions"]


def test_all_is_compiled_before_the_clock_starts(monkeypatch):
    compiled, shown, show = [], {}, Reporter.show
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )

    def noting(self, doing, step, *numbers):
        shown[step] = len(compiled)
        show(self, doing, step, *numbers)

    monkeypatch.setattr(Reporter, "show", noting)
    assert train("run", "--devices", "2") == 0
    assert 0 < shown[0] == shown[24]


def test_a_stopped_run_goes_on_to_the_same_end(unfinished, finished, capsys):
    assert train(unfinished) == 0
    assert "going on from step 20" in capsys.readouterr().out
    assert final(unfinished) == final(finished)


@pytest.mark.parametrize("trial", range(KILLS))
def test_a_killed_run_goes_on_to_the_same_end(trial, finished, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "experiments", "train", *SHORT, "--out", str(out)]
    # It may die while it writes a compiled program, so not where others would read it.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + FLAGS,  # as what it is compared with
    }
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    at = int(np.random.default_rng().integers(1, 20))
    while len(lines(out)) < at:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    print(f"killed at step {len(lines(out))}")
    assert not (out / "summary.json").exists()
    assert train(out) == 0
    assert final(out) == final(finished)


def lines(out):
    path = out / "metrics.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def test_a_checkpoint_shares_no_memory_with_the_next_step():
    leaves = jax.tree.leaves(on_host(first_state(SETTINGS, (8, 8, 1))))
    assert all(leaf.flags.owndata for leaf in leaves)


def test_the_last_step_has_a_checkpoint_however_it_fares(monkeypatch):
    monkeypatch.setattr(recorder.Recorder, "is_best", lambda self, accuracy: False)
    assert train("run", "--steps", "7") == 0
    assert {path.name for path in Path("run/checkpoints").iterdir()} == {"5", "7"}


def test_a_run_that_diverges_is_told_to_the_end():
    args = ["--optimizer", "sgd", "--norm", "none", "--learning-rate", "1e30", "--steps", "8"]
    assert train("run", *args) == 0
    assert read("run")[-1]["test_loss"] is None and losses("run")[-1] is None


def test_a_finished_run_is_kept(finished, capsys):
    before = final(finished)
    assert train(finished) == 2
    assert "holds a finished run; add --overwrite" in capsys.readouterr().err
    assert final(finished) == before


def test_overwrite_replaces_a_finished_run_but_continues_an_unfinished_one(unfinished, capsys):
    assert train(unfinished, "--overwrite") == 0
    assert "going on from step 20" in capsys.readouterr().out
    assert train(unfinished, "--overwrite", "--steps", "2") == 0
    assert "going on" not in capsys.readouterr().out
    assert [record["step"] for record in read(unfinished)] == [1, 2]


def test_other_settings_are_named(unfinished, capsys, monkeypatch):
    monkeypatch.setattr("experiments.train.runner.train", lambda *_: pytest.fail("too late"))
    assert train(unfinished, "--seed", "1", "--optimizer", "adam") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "optimizer momentum there, adam here" in error
    assert "seed 0 there, 1 here" in error and "learning_rate 0.05 there, 0.001 here" in error
    assert "steps" not in error


@pytest.mark.parametrize("overwrite", [[], ["--overwrite", "--seed", "1"]])
def test_a_folder_has_one_run_at_a_time(overwrite, unfinished, capsys):
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    with results.alone(unfinished):
        assert train(unfinished, *overwrite) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "another run is writing" in error
    assert {p: p.read_bytes() for p in unfinished.rglob("*") if p.is_file()} == before
    assert train(unfinished) == 0  # and is free when that one has ended


@pytest.mark.parametrize("me", ["0", "1"])
def test_a_process_that_waits_alone_ends_with_a_line(me, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "START_SECONDS", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"localhost:{free.getsockname()[1]}"
    others = ["--num-processes", "2", "--process-id", me, "--coordinator", where]
    assert train("run", *others) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "start all of them" in error
    assert list(tmp_path.iterdir()) == []


def other_data(out):
    """The same command on images of another order, of which there are as many."""
    settings = json.loads((out / "config.json").read_text())
    settings["settings"]["images"] = "0" * 16
    (out / "config.json").write_text(json.dumps(settings))


def empty_metrics(out):
    (out / "metrics.jsonl").write_text("")


def altered_metrics(out):
    lines = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").write_text(lines.replace('"loss": 2', '"loss": 1', 1))


def renamed_checkpoint(out):
    shutil.rmtree(out / "checkpoints/24", ignore_errors=True)
    (out / "checkpoints/20").rename(out / "checkpoints/12")
    for step in (15, 16):
        shutil.rmtree(out / f"checkpoints/{step}", ignore_errors=True)


def checkpoint_of_another_run(out):
    assert train("other", "--seed", "1") == 0
    shutil.rmtree(out / "checkpoints/20")
    shutil.copytree("other/checkpoints/20", out / "checkpoints/20")


PARTED = {
    other_data: "unfinished run of other settings (images 0000000000000000 there",
    empty_metrics: "not the metrics that were there when 20 was saved",
    altered_metrics: "not the metrics that were there when 20 was saved",
    renamed_checkpoint: "checkpoints/12: is of step 20",
    checkpoint_of_another_run: "checkpoints/20: is of a run with other settings or data",
}


@pytest.mark.parametrize("part", PARTED, ids=lambda part: part.__name__)
def test_a_checkpoint_belongs_to_its_run(part, unfinished, capsys):
    part(unfinished)
    capsys.readouterr()
    assert train(unfinished) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and PARTED[part] in error, error
    assert not (unfinished / "summary.json").exists()


def test_data_are_told_apart_by_images_labels_and_order():
    data = load_digits()
    flipped = data.train._replace(images=data.train.images[::-1])
    relabelled = data.test._replace(labels=(data.test.labels + 1) % 10)
    others = [data._replace(train=flipped), data._replace(test=relabelled)]
    assert len({fingerprint(d) for d in (data, *others)}) == 3
    assert fingerprint(load_digits()) == fingerprint(data)


def test_other_files_are_never_replaced(unfinished, capsys):
    Path(unfinished, "thesis.txt").write_text("years of work")
    assert train(unfinished, "--overwrite") == 2
    assert "holds other files than a run" in capsys.readouterr().err
    Path(unfinished, "thesis.txt").unlink()
    Path(unfinished, "config.json").write_text('{"experiment": "convergence"}')
    assert train(unfinished, "--overwrite") == 2
    assert "another result than a run" in capsys.readouterr().err
    assert Path(unfinished, "checkpoints/20").exists()


def test_interrupted_runs_tell_how_to_go_on(unfinished, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder.Recorder, "log", interrupt)
    assert train(unfinished) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_metrics_are_cut_where_the_checkpoint_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorder.cut(path, 3)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 3}\n{"step": 4}\n{"step": 5')
    recorder.cut(path, 3)
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
    recorder.cut(path, 0)
    assert path.read_text() == ""


def test_a_disk_that_is_full_for_metrics(unfinished, capsys, monkeypatch):
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(recorder, "_open", lambda path: FileIO(full, "w"))
    assert train(unfinished) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "metrics.jsonl: cannot be written (No space left" in error
    assert Path(unfinished, "checkpoints/20").exists()


READ_ONLY: list[str] = []  # the folder that is so now
WRITING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.chmod")


def refuse_to_write(event, args):
    """What a read-only disk does, to root too; Python asks before it opens or changes a file."""
    changing = event in WRITING or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
    if READ_ONLY and changing and os.path.abspath(os.fsdecode(args[0])).startswith(READ_ONLY[0]):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), args[0])


@cache
def add_hook():
    sys.addaudithook(refuse_to_write)  # for good


@pytest.fixture
def read_only(unfinished):
    """Makes the unfinished run lie on a read-only disk, until the test has ended."""
    add_hook()
    yield lambda: READ_ONLY.append(str(unfinished.absolute()))
    READ_ONLY.clear()


def when_a_step_is_logged(monkeypatch, step, act):
    log = recorder.Recorder.log

    def acting(self, at, metrics):
        if at == step:
            act()
        log(self, at, metrics)

    monkeypatch.setattr(recorder.Recorder, "log", acting)


@pytest.mark.parametrize("when", ["from the start", "since step 22"])
def test_an_unfinished_run_on_a_read_only_disk(
    when, unfinished, finished, read_only, capfd, monkeypatch
):
    with monkeypatch.context() as patch:
        if when == "from the start":
            read_only()
        else:
            when_a_step_is_logged(patch, 22, read_only)
        assert train(unfinished) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "run" in error and "(Read-only file system)" in error
    READ_ONLY.clear()
    assert train(unfinished) == 0
    assert final(unfinished) == final(finished)


def test_a_folder_that_is_removed_meanwhile(unfinished, capfd, monkeypatch):
    when_a_step_is_logged(monkeypatch, 22, lambda: shutil.rmtree(unfinished))
    assert train(unfinished) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "No such file" in error and not unfinished.exists()


USER_ERRORS = {
    "id alone": (["--process-id", "0"], "--process-id and --coordinator go together"),
    "id too large": (
        ["--num-processes", "2", "--process-id", "2", "--coordinator", "localhost:1"],
        "--process-id 2 is not one of 0 to 1",
    ),
    "no port": (
        ["--num-processes", "2", "--process-id", "1", "--coordinator", "localhost"],
        "--coordinator localhost is not HOST:PORT",
    ),
    "cluster and more": (["--cluster", "--process-id", "0"], "from the environment"),
    "devices": (["--devices", "9", "--batch-size", "72"], "--devices 9: process 0 has 8"),
    "share": (["--devices", "7"], "give a multiple of 7"),
    "parts": (["--micro-batches", "3"], "give a multiple of 3"),
    "no size": (["--statistics", "virtual"], "needs --virtual-batch-size"),
    "size alone": (["--virtual-batch-size", "8"], "goes with --statistics virtual"),
    "size": (["--statistics", "virtual", "--virtual-batch-size", "7"], "7 does not divide the 64"),
    "batch": (["--batch-size", "1298"], "more than the 1297 training images"),
    "one image": (["--batch-size", "8", "--micro-batches", "8"], "one image at a time"),
    "one a device": (
        ["--batch-size", "8", "--devices", "8", "--statistics", "device"],
        "leaves batch norm one image at a time",
    ),
    "no norm": (
        ["--norm", "none", "--statistics", "device"],
        "--statistics device means nothing with --norm none",
    ),
    "digits": (["--data-dir", "."], "the digits need no files"),
    "a file": (["--out", __file__], "test_train.py is a file; give a folder"),
    "steps and epochs": (["--epochs", "2"], "give --steps or --epochs, not both"),
    "no cifar": (["--data", "cifar10"], "--data cifar10 needs --data-dir"),
}


@pytest.mark.parametrize("args, message", USER_ERRORS.values(), ids=USER_ERRORS)
def test_user_errors(args, message, capsys, tmp_path):
    assert train("run", *args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert list(tmp_path.iterdir()) == []


def test_epochs_count_whole_batches():
    assert resolve(Train(epochs=3, batch_size=100), 1297, 1).steps == 36


def losses(out):
    return [record["loss"] for record in read(out)]


def test_two_devices_train_like_one(finished):
    assert train("two", "--devices", "2") == 0
    np.testing.assert_allclose(losses("two"), losses(finished), atol=1e-4)
    assert losses("two") != losses(finished)  # for sums are taken in another order


def test_virtual_batches_are_what_devices_would_see(finished):
    assert train("devices", "--devices", "2", "--statistics", "device", "--steps", "6") == 0
    virtual = ["--statistics", "virtual", "--virtual-batch-size", "32", "--steps", "6"]
    assert train("virtual", *virtual) == 0
    np.testing.assert_allclose(losses("devices"), losses("virtual"), atol=1e-4)
    assert abs(losses("virtual")[-1] - losses(finished)[5]) > 1e-3


def test_micro_batches_and_events():
    pytest.importorskip("tensorboardX")
    args = ["--micro-batches", "2", "--steps", "2", "--tensorboard"]
    assert train("run", *args) == 0
    assert all(np.isfinite(losses("run")))
    assert list(Path("run/events").iterdir())


def test_the_order_is_a_function_of_seed_and_step():
    epoch = np.concatenate([batch_indices(0, step, 10, 33) for step in range(3)])
    assert len(set(epoch)) == 30
    again = batch_indices(0, 1, 10, 33)
    np.testing.assert_array_equal(again, epoch[10:20])
    assert not np.array_equal(batch_indices(0, 3, 10, 33), epoch[:10])  # a new epoch
    assert not np.array_equal(batch_indices(1, 0, 10, 33), epoch[:10])  # another seed
    # What a killed run draws must be what it drew before, on any machine and in any release.
    assert list(batch_indices(0, 3, 5, 33)) == GOLDEN_ORDER


GOLDEN_ORDER = [14, 31, 24, 28, 30]


def test_batches_are_read_in_order():
    digits = data.load("digits")
    batch = training_batch(digits, replace(SETTINGS, batch_size=32, seed=5), 7, make_mesh(4))
    indices = batch_indices(5, 7, 32, 1297)
    np.testing.assert_array_equal(batch["labels"], digits.train.labels[indices])
    images = np.asarray(batch["images"])
    assert images.shape == (32, 8, 8, 1)
    np.testing.assert_array_equal(images.reshape(32, 64), digits.train.images[indices])
    shards = batch["labels"].addressable_shards
    assert len(shards) == 4 and shards[1].data.shape == (8,)


def test_every_test_image_counts_once():
    digits = data.load("digits")
    test = data.Split(np.tile(digits.test.images, (3, 1))[:1103], np.arange(1103, dtype=np.int32))
    parts = list(eval_batches(digits._replace(test=test), make_mesh(8)))
    labels = np.concatenate([part["labels"] for part in parts])
    weights = np.concatenate([part["weights"] for part in parts])
    np.testing.assert_array_equal(labels[weights == 1], np.arange(1103))
    assert set(weights) == {0, 1}


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet"])
def test_models_have_their_norm_and_precision(name, norm):
    model = make_model(replace(SETTINGS, model=name, norm=norm, precision="bfloat16"), None)
    images = jnp.zeros((2, 8, 8, 3))

    def outputs(key):
        variables = model.init(key, images, train=False)
        return variables, model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )

    variables, (logits, seen) = jax.eval_shape(outputs, jax.random.key(0))
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(seen["intermediates"])}
    assert np.dtype(jnp.bfloat16) in dtypes
    assert ("batch_stats" in variables) == (norm == "batch")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    biases = [
        path
        for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
        if "bias" in str(path[-1]) and "Norm" not in str(path)
    ]
    assert (len(biases) == 1) == (norm == "batch")  # that of the logits


@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "adam", "adamw"])
def test_weight_decay_spares_scale_and_bias(name):
    tx = make_optimizer(replace(SETTINGS, optimizer=name, weight_decay=0.1))
    params = {"kernel": jnp.ones(2), "scale": jnp.ones(2), "bias": jnp.ones(2)}
    with relaxed():  # optax promotes
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    assert (params["kernel"] < 1).all()
    assert (params["scale"] == 1).all() and (params["bias"] == 1).all()


def test_cosine_ends_at_zero():
    settings = replace(SETTINGS, optimizer="sgd", learning_rate=1.0, schedule="cosine", steps=3)
    tx = make_optimizer(settings)
    state, grad, found = tx.init(jnp.ones(())), jnp.ones(()), []
    for _ in range(4):
        with relaxed():
            update, state = tx.update(grad, state)
        found.append(-float(update))
    np.testing.assert_allclose(found, [1, 0.75, 0.25, 0], atol=1e-6)


def cifar_file(path, count, label=None):
    rng = np.random.default_rng(count)
    records = rng.integers(0, 256, (count, 3073)).astype(np.uint8)
    records[:, 0] = np.arange(count) % 10 if label is None else label
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(records.tobytes())
    return records


def test_cifar_is_read_in_colour(tmp_path):
    first = cifar_file(tmp_path / "cifar/data_batch_1.bin", 12)
    cifar_file(tmp_path / "cifar/data_batch_2.bin", 5)
    cifar_file(tmp_path / "cifar/test_batch.bin", 7)
    found = data.load("cifar10", tmp_path)
    assert found.shape == (32, 32, 3)
    assert found.train.images.shape == (17, 3072) and found.test.labels.shape == (7,)
    image = found.train.images[3].reshape(32, 32, 3)
    green = first[3, 1:].reshape(3, 32, 32)[1]  # planes in the file, channels last in memory
    np.testing.assert_allclose(image[:, :, 1], green / 255, rtol=1e-6)
    assert list(found.train.labels[:12]) == [*range(10), 0, 1]


def test_bad_cifar_files_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        data.load("cifar10", tmp_path / "none")
    with pytest.raises(UserError, match=r"lacks data_batch_1.bin and test_batch.bin"):
        data.load("cifar10", tmp_path)
    cifar_file(tmp_path / "data_batch_1.bin", 3)
    cifar_file(tmp_path / "test_batch.bin", 3, label=10)
    with pytest.raises(UserError, match=r"test_batch.bin: label 10 is not one of 0 to 9"):
        data.load("cifar10", tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3072))
    with pytest.raises(UserError, match=r"test_batch.bin: 3072 bytes is not a number of 3073"):
        data.load("cifar10", tmp_path)
    cifar_file(tmp_path / "again/data_batch_1.bin", 3)
    cifar_file(tmp_path / "again/test_batch.bin", 3)
    with pytest.raises(UserError, match="holds CIFAR-10 twice"):
        data.load("cifar10", tmp_path)
