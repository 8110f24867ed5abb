"""Checkpoints on disk: every kind and tree is read, damage is one error, pickles never run."""

import io
import pickle
import shutil
import struct
import zipfile

import chex
import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from bnjax.interop import load_variables, save_safetensors
from bnjax.interop._collections import split_name
from bnjax.interop._files import quiet_orbax
from bnjax.nnx import BatchNorm
from bnjax.training import TrainState

RNG = np.random.default_rng(0)
VARIABLES = {
    "params": {
        "Dense_0": {"kernel": RNG.normal(size=(3, 4)).astype(ml_dtypes.bfloat16)},
        "block": {"bn": {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}},
    },
    "batch_stats": {
        "block": {
            "bn": {
                "mean": RNG.normal(size=4).astype(np.float32),
                "var": RNG.uniform(1, 2, 4).astype(np.float32),
                "count": np.int32(7),
            }
        }
    },
}


@pytest.fixture(autouse=True, scope="module")
def quiet():
    quiet_orbax()


def save_orbax(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def to_state(variables):
    return TrainState.create(
        params=jax.tree.map(jnp.asarray, variables["params"]),
        batch_stats=variables["batch_stats"],
        tx=optax.adam(0.1),
    )


def flat(variables, separator="/"):
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    names = [separator.join(key.key for key in path) for path, _ in leaves]
    return dict(zip(names, [np.asarray(leaf) for _, leaf in leaves], strict=True))


def write_safetensors(path):
    safetensors.numpy.save_file(flat(VARIABLES), path)


def write_dotted(path):
    safetensors.numpy.save_file(flat({"model": VARIABLES}, "."), path)


def write_msgpack(path):
    path.write_bytes(flax.serialization.to_bytes(VARIABLES))


def write_msgpack_state(path):
    path.write_bytes(flax.serialization.to_bytes(to_state(VARIABLES)))


def write_npz(path):
    arrays = {n: v.astype(np.float32) if v.ndim == 2 else v for n, v in flat(VARIABLES).items()}
    np.savez(path, **arrays)


def write_manager(path):
    with ocp.CheckpointManager(path) as manager:
        for step in (9, 10):
            tree = VARIABLES if step == 10 else jax.tree.map(np.zeros_like, VARIABLES)
            manager.save(step, args=ocp.args.StandardSave(tree))


def write_items(path):
    with ocp.CheckpointManager(path) as manager:
        items = {name: ocp.args.PyTreeSave(VARIABLES[name]) for name in VARIABLES}
        manager.save(3, args=ocp.args.Composite(**items, config=ocp.args.JsonSave({"a": 1})))


def write_flat_orbax(path):
    leaves = jax.tree_util.tree_leaves_with_path({"state": VARIABLES})
    save_orbax(path, {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in leaves})


WRITERS = {
    "safetensors": write_safetensors,
    "safetensors with dots": write_dotted,
    "safetensors of ours": lambda path: save_safetensors(VARIABLES, path),
    "msgpack": write_msgpack,
    "msgpack state": write_msgpack_state,
    "npz": write_npz,
    "orbax": lambda path: save_orbax(path, VARIABLES),
    "orbax state": lambda path: save_orbax(path, to_state(VARIABLES)),
    "orbax manager": write_manager,
    "orbax items": write_items,
    "orbax flat": write_flat_orbax,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_gives_the_same_variables(kind, tmp_path):
    path = tmp_path / "no_suffix"  # the content decides
    WRITERS[kind](path)
    if kind == "npz":
        path = path.with_suffix(".npz").rename(path)
    loaded = load_variables(path)
    for (name, got), expected in zip(flat(loaded).items(), flat(VARIABLES).values(), strict=True):
        assert got.dtype == expected.dtype or kind == "npz", name
        np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32))
    assert flat(loaded).keys() == flat(VARIABLES).keys()


@pytest.mark.parametrize("pure", [True, False])
def test_nnx_states_are_sorted_into_collections(pure, tmp_path):
    model = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0)), BatchNorm(3, rngs=nnx.Rngs(0))])
    state = nnx.state(model)
    save_orbax(tmp_path / "a", nnx.to_pure_dict(state) if pure else state)
    save_safetensors(state, tmp_path / "b")
    for loaded in (load_variables(tmp_path / "a"), load_variables(tmp_path / "b")):
        assert loaded["batch_stats"].keys() == {"1"}  # integer keys become strings (orbax#1305)
        assert loaded["params"]["1"].keys() == {"scale", "bias"}
        np.testing.assert_array_equal(loaded["params"]["0"]["kernel"], model[0].kernel[...])


def test_state_dicts_of_torch_get_names_of_flax(tmp_path):
    state = {
        "conv.weight": np.ones((4, 3, 3, 3)),
        "layer1.0.bn.weight": np.full(4, 2.0),
        "layer1.0.bn.bias": np.full(4, 3.0),
        "layer1.0.bn.running_mean": np.full(4, 4.0),
        "layer1.0.bn.running_var": np.full(4, 5.0),
        "layer1.0.bn.num_batches_tracked": np.array(6),
    }
    safetensors.numpy.save_file(state, tmp_path / "torch")
    loaded = load_variables(tmp_path / "torch")
    norm = loaded["batch_stats"]["layer1"]["0"]["bn"]
    assert (norm["mean"][0], norm["var"][0], norm["count"]) == (4, 5, 6)
    params = loaded["params"]["layer1"]["0"]["bn"]
    assert (params["scale"][0], params["bias"][0]) == (2, 3)
    assert loaded["params"]["conv"].keys() == {"weight"}


def test_the_state_of_an_optimizer_is_left_out(tmp_path):
    norm = {name: np.ones(2) for name in ("mean", "var", "scale")}
    save_orbax(tmp_path / "a", {"model": {"bn": norm}, "opt_state": {"0": {"bn": norm}}})
    loaded = load_variables(tmp_path / "a")
    assert set(flat(loaded)) == {
        "params/model/bn/scale",
        "batch_stats/model/bn/mean",
        "batch_stats/model/bn/var",
    }


def test_variables_without_running_statistics_are_parameters(tmp_path):
    write = safetensors.numpy.save_file
    write({"encoder/kernel": np.ones(2), "value": np.ones(2)}, tmp_path / "plain")
    assert load_variables(tmp_path / "plain")["params"].keys() == {"encoder", "value"}


@pytest.mark.several_devices
def test_arrays_of_many_devices_are_read_where_there_are_fewer(tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    tree = {"batch_stats": {"bn": {"mean": jnp.arange(8.0), "var": jnp.ones(8)}}}
    tree = jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))
    mean = load_variables(save_orbax(tmp_path / "sharded", tree))["batch_stats"]["bn"]["mean"]
    assert type(mean) is np.ndarray
    np.testing.assert_array_equal(mean, np.arange(8.0))


def test_a_step_that_was_never_finished_is_passed_over(tmp_path):
    write_manager(tmp_path / "run")
    shutil.copytree(tmp_path / "run" / "9", tmp_path / "run" / "11.orbax-checkpoint-tmp-12")
    chex.assert_trees_all_equal(
        load_variables(tmp_path / "run")["batch_stats"], VARIABLES["batch_stats"]
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("params/a/scale", ("params", "a", "scale")),
        ("a.0.weight", ("a", "0", "weight")),
        (".params['Dense_0'][3].x", ("params", "Dense_0", "3", "x")),
        ("layer.0/bn", ("layer.0", "bn")),
        ("plain", ("plain",)),
    ],
)
def test_names_of_arrays_are_paths(name, path):
    assert split_name(name) == path


def one_line(path):
    with pytest.raises(ValueError) as raised:
        load_variables(path)
    message = str(raised.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("kind", ["safetensors of ours", "msgpack", "npz"])
def test_a_file_cut_anywhere_is_one_line(kind, tmp_path, rng):
    WRITERS[kind](tmp_path / "whole")
    whole = next(tmp_path.iterdir()).read_bytes()
    for length in [0, 1, 7, 9, 20, *rng.integers(1, len(whole), 20), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        one_line(tmp_path / "cut")


@pytest.mark.parametrize("kind", ["safetensors of ours", "msgpack", "npz"])
def test_a_flipped_byte_is_one_line_or_changes_nothing_but_numbers(kind, tmp_path):
    WRITERS[kind](tmp_path / "whole")
    whole = next(tmp_path.iterdir()).read_bytes()
    refused = 0
    # Positions of its own: how many lie in an array is otherwise a matter of the order of tests.
    for position in np.random.default_rng(0).choice(len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        (tmp_path / "flipped").write_bytes(damaged)
        try:
            load_variables(tmp_path / "flipped")
        except ValueError as error:
            refused += "\n" not in str(error)
    # A checksum sees all but what is not in an array; msgpack has none, and sees its structure.
    assert refused >= (5 if kind == "msgpack" else 45)


def test_a_changed_number_is_seen_where_there_is_a_checksum(tmp_path):
    save_safetensors(VARIABLES, tmp_path / "ours")
    content = bytearray((tmp_path / "ours").read_bytes())
    content[-1] ^= 1
    (tmp_path / "ours").write_bytes(content)
    assert "checksum is wrong" in one_line(tmp_path / "ours")


@pytest.mark.parametrize("how", ["cut", "missing", "metadata"])
def test_damaged_orbax_folders_are_one_line(how, tmp_path, rng):
    save_orbax(tmp_path / "orbax", {"batch_stats": {"bn": {"mean": rng.normal(size=9999)}}})
    if how == "metadata":
        (tmp_path / "orbax" / "_METADATA").write_text('{"tree_metadata":')
    else:
        largest = max((tmp_path / "orbax").rglob("*"), key=lambda f: f.is_file() * f.stat().st_size)
        content = largest.read_bytes()
        largest.unlink() if how == "missing" else largest.write_bytes(content[: len(content) // 2])
    message = one_line(tmp_path / "orbax")
    assert "orbax" in message
    if how != "metadata":
        assert "it is damaged, a file is" in message


def test_pages_of_a_library_become_one_line(tmp_path, monkeypatch):
    def raise_pages(data):
        raise RuntimeError("first line\n  second line\n" * 99)

    write_msgpack(tmp_path / "file")
    monkeypatch.setattr(flax.serialization, "msgpack_restore", raise_pages)
    assert "first line second line" in one_line(tmp_path / "file")


class Trap:
    """What a malicious pickle is: code that runs when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["pickle", "torch", "npz"])
def test_no_pickle_is_ever_run(kind, protocol, tmp_path):
    trap, sprung = tmp_path / "trap", tmp_path / "sprung"
    code = pickle.dumps(Trap(str(sprung)), protocol)
    if kind == "pickle":
        trap.write_bytes(code)
    elif kind == "torch":
        with zipfile.ZipFile(trap, "w") as file:
            file.writestr("archive/data.pkl", code)
    else:
        buffer = io.BytesIO()
        np.save(buffer, np.array([Trap(str(sprung))], object), allow_pickle=True)
        with zipfile.ZipFile(trap, "w") as file:
            file.writestr("a.npy", buffer.getvalue())
    message = one_line(trap)
    assert not sprung.exists()
    if kind == "torch" or (kind == "pickle" and protocol >= 2):  # older ones are but text
        assert "could run any code" in message
    pickle.loads(code).close()  # the trap would have worked
    assert sprung.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty. Legal are"),
        (b"\x89HDF\r\n\x1a\n", "no checkpoint of a known kind. Legal are"),
        (struct.pack("<Q", 2) + b"{}", "without any array"),
        (b"\x80", "without any array"),
        (b"\x89PNG\r\n\x1a\n", "no checkpoint of a known kind"),
    ],
)
def test_what_is_no_checkpoint_is_told_what_is(content, message, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert message in one_line(tmp_path / "file")


# github.com/keras-team/keras/issues/21663
def test_keras_21663_an_archive_is_what_is_in_it(tmp_path):
    members = {
        "keras": ["metadata.json", "config.json", "model.weights.h5"],
        "other": ["a.txt", "b.npy", "c", "d"],
        "torch": ["model/data.pkl", "model/version"],
    }
    messages = {
        "keras": "a .keras archive. Read it with keras.models.load_model(path)",
        "other": "a zip archive of a.txt, b.npy, c, ..., no checkpoint of a known kind. Legal are",
        "torch": "a pickle (as of torch.save), which could run any code, is not read",
    }
    for kind, names in members.items():
        with zipfile.ZipFile(tmp_path / kind, "w") as file:
            for name in names:
                file.writestr(name, "x")
        assert messages[kind] in one_line(tmp_path / kind)
    np.savez(tmp_path / "empty.npz")
    assert "an .npz file without any array" in one_line(tmp_path / "empty.npz")


def test_folders_and_files_that_are_not_there(tmp_path):
    assert "No such file" in one_line(tmp_path / "nothing")
    assert "no _METADATA" in one_line(tmp_path)
