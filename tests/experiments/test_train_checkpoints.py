"""Checkpoints: any pytree comes back as it was, and whatever is wrong with one is one line."""

import resource
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from bnjax.nnx import BatchNorm
from experiments.common.errors import UserError
from experiments.train.checkpoints import Checkpoints

NUMBERS = np.random.default_rng(0).random(4)


def tree(step, size=60_000):
    """A state whose numbers cannot be compressed away, in a file of their own."""
    rng = np.random.default_rng(step)
    params = {"kernel": rng.random((size,), np.float32), "bias": rng.random(3, np.float32)}
    return {"params": params, "step": np.array(step, np.int32)}


def write(folder, *steps, accuracies=()):
    checkpoints = Checkpoints(folder)
    for index, step in enumerate(steps):
        accuracy = accuracies[index] if accuracies else None
        checkpoints.save(step, tree(step), accuracy)
    checkpoints.close()


def read(folder, like=None):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(tree(0) if like is None else like)
    finally:
        checkpoints.close()


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(x, y)


class Layers(nnx.Module):
    """Norms in a list, which nnx counts with integers."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norms = nnx.List([BatchNorm(size, rngs=rngs) for size in (3, 2)])


KEYS = {
    "integers": lambda: {0: NUMBERS[:2], 1: {10: NUMBERS[:3]}, 2: [NUMBERS[:1]]},
    "integers and strings": lambda: {"a": {0: NUMBERS[:2]}, "b": {"0": NUMBERS[:2]}},
    "awkward strings": lambda: {
        "a/b": NUMBERS[:2],
        "a.b": {"c']": NUMBERS[:1], "": NUMBERS[:3]},
    },
    "nnx": lambda: nnx.to_pure_dict(nnx.state(Layers())),
    "nnx state": lambda: nnx.state(Layers()),
    "bfloat16": lambda: {"x": NUMBERS.astype(jax.numpy.bfloat16), "n": np.array(-0.0)},
}


# https://github.com/google/orbax/issues/1305
# https://github.com/google/flax/issues/5030
@pytest.mark.parametrize("name", KEYS)
def test_keys_keep_their_type(name, tmp_path):
    original = jax.tree.map(np.asarray, KEYS[name]())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, original)
    checkpoints.close()
    equal(read(tmp_path, jax.tree.map(np.zeros_like, original)), original)


def test_integers_are_told_from_strings(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {0: np.ones(2)})
    checkpoints.close()
    with pytest.raises(UserError, match=r"another model; 2 arrays differ, the first is \['0'\]"):
        read(tmp_path, {"0": np.ones(2)})


def test_the_best_and_the_last_two_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 4, 5, accuracies=[0.5, 0.7, None, None, None])
    assert {path.name for path in tmp_path.iterdir()} == {"2", "4", "5"}
    checkpoints = Checkpoints(tmp_path)  # as a run that goes on would find them
    assert checkpoints.last_step == 5 and checkpoints.best == (2, 0.7)
    checkpoints.save(6, tree(6))
    checkpoints.save(7, tree(7), 0.9)
    checkpoints.close()
    assert {path.name for path in tmp_path.iterdir()} == {"6", "7"}


def test_what_is_saved_is_what_was_given(tmp_path):
    write(tmp_path, 1, 2)
    equal(read(tmp_path), tree(2))


def test_an_unfinished_checkpoint_is_swept_away(tmp_path):
    write(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    equal(read(tmp_path), tree(2))
    for _ in range(100):  # orbax sweeps in the background
        if (left := {path.name for path in tmp_path.iterdir()}) == {"1", "2"}:
            break
        time.sleep(0.1)
    assert left == {"1", "2"}


def damaging(folder):
    """The files whose content matters to a restore; the last holds the numbers."""
    default = folder / "2" / "default"
    numbers = max(default.rglob("d/*"), key=lambda path: path.stat().st_size)
    return [default / "_METADATA", default / "manifest.ocdbt", *(default / "d").iterdir(), numbers]


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.9])
def test_a_truncated_file_is_noticed(tmp_path, cut, caplog):
    write(tmp_path / "whole", 1, 2)
    for path in damaging(tmp_path / "whole"):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", folder)
        target = folder / path.relative_to(tmp_path / "whole")
        target.write_bytes(target.read_bytes()[: int(cut * target.stat().st_size)])
        with pytest.raises(UserError, match=r"cut/2: .*damaged.*; remove it to go on from step 1"):
            read(folder)
        shutil.rmtree(folder / "2")  # as told
        equal(read(folder), tree(1))
        shutil.rmtree(folder)
    assert caplog.text == ""


def test_a_changed_number_is_noticed(tmp_path):
    write(tmp_path, 1, 2)
    path = damaging(tmp_path)[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged \(wrong checksum\); remove it to go on"):
        read(tmp_path)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    import orbax.checkpoint as ocp

    write(tmp_path, 1)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(2, args=ocp.args.StandardSave({"params": np.ones(3)}))
    with pytest.raises(UserError, match="2: not a checkpoint of this program; remove it to go on"):
        read(tmp_path)
    shutil.rmtree(tmp_path / "2")
    (tmp_path / "2").mkdir()
    (tmp_path / "2/letter.txt").write_text("Dear Sir")
    with pytest.raises(UserError, match=r"2: damaged, or not a checkpoint .*; remove it to go on"):
        read(tmp_path)


def test_a_damaged_accuracy_is_named(tmp_path):
    write(tmp_path, 1, 2, accuracies=[0.5, None])
    Path(tmp_path, "1/metrics/metrics").write_text("{")
    with pytest.raises(UserError, match=r"1: damaged \(metrics\); remove it"):
        Checkpoints(tmp_path)


OTHER_MODELS = {
    "missing": ({"bias"}, r"\['params'\]\['bias'\], float32\[3\] there and missing here"),
    "shape": ({"kernel": np.zeros(4, np.float32)}, r"float32\[60000\] there and float32\[4\] here"),
    "dtype": ({"bias": np.zeros(3, np.int32)}, r"float32\[3\] there and int32\[3\] here"),
    "new": ({"scale": np.zeros(3, np.float32)}, r"\['scale'\], missing there and float32\[3\]"),
}


@pytest.mark.parametrize("change, message", OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, change, message):
    write(tmp_path, 1)
    like = tree(0)
    if isinstance(change, set):
        like["params"].pop(change.pop())
    else:
        like["params"] |= change
    with pytest.raises(UserError, match=f"1: checkpoint of another model; 1 .*{message}"):
        read(tmp_path, like)


@pytest.fixture
def small_files():
    """No file can grow beyond 300,000 bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, small_files, caplog):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1))
    checkpoints.save(2, tree(2, size=100_000))
    with pytest.raises(UserError, match=r"cannot be written .*; earlier ones are kept"):
        checkpoints.wait()
    assert caplog.text == ""
    equal(read(tmp_path), tree(1))
    write(tmp_path, 2)  # there is space again
    equal(read(tmp_path), tree(2))
