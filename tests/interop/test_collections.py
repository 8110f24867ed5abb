"""Names in a file decide where an array goes, never whether it comes back."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax.training import train_state
from hypothesis import given, settings
from hypothesis import strategies as st

from bnjax.interop import load_variables, save_safetensors
from bnjax.interop._collections import to_variables

NORM = {name: np.full(2, i) for i, name in enumerate(("running_mean", "running_var", "weight"))}
STATE_DICT = {f"bn.{name}": leaf for name, leaf in NORM.items()} | {"conv.weight": np.full(2, 9)}
FLAX = {
    "params": {"bn": {"scale": np.full(2, 2)}, "conv": {"weight": np.full(2, 9)}},
    "batch_stats": {"bn": {"mean": np.full(2, 0), "var": np.full(2, 1)}},
}
MODEL = {
    "params": {"bn": {"scale": np.full(2, 2.0)}},
    "batch_stats": {"bn": {"mean": np.full(2, 0.5), "var": np.full(2, 1.5)}},
}


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def write_flat(path, tree, separator):
    leaves = flax.traverse_util.flatten_dict(tree, sep=separator)
    safetensors.numpy.save_file(leaves, path)
    return path


def write_msgpack(path, tree):
    path.write_bytes(flax.serialization.to_bytes(tree))
    return path


def nested(arrays):
    """``arrays`` by path as a tree; where one is in another, the inner one is left out."""
    kept = [p for p in arrays if not any(p[:depth] in arrays for depth in range(len(p)))]
    return flax.traverse_util.unflatten_dict({path: arrays[path] for path in kept})


NAMES = "params batch_stats value opt_state mean var running_mean running_var weight scale bn a"
PATHS = st.lists(st.sampled_from(NAMES.split()), min_size=1, max_size=4).map(tuple)
WHERE = st.lists(st.sampled_from(["params", "batch_stats", "bn"]), max_size=2).map(tuple)
LEAVES = st.sampled_from([("mean", "var"), ("running_mean", "running_var"), ("weight",), ()])
NORMS = st.builds(lambda path, leaves: [(*path, leaf) for leaf in leaves], WHERE, LEAVES)


# github.com/XPixelGroup/BasicSR#253
@settings(max_examples=200)
@given(st.lists(PATHS, min_size=1, max_size=4), NORMS, st.sampled_from([".", "/", "tree"]))
def test_basicsr_253_every_array_comes_back_or_is_named(tmp_path_factory, paths, norms, kind):
    file = tmp_path_factory.getbasetemp() / "names"
    arrays = {path: np.full(2, i) for i, path in enumerate(dict.fromkeys(paths + norms))}
    if kind == "tree":
        tree = nested(arrays)
        arrays = flax.traverse_util.flatten_dict(tree)
        write_msgpack(file, tree)
        names = ["/".join(path) for path in arrays]
    else:
        leaves = {kind.join(path): leaf for path, leaf in arrays.items()}
        safetensors.numpy.save_file(leaves, file)
        names = list(leaves)
    try:
        loaded = load_variables(file)
    except ValueError as error:
        assert "lost" in str(error) and any(name in str(error) for name in names)
        return
    assert all(isinstance(collection, dict) for collection in loaded.values())
    found = sorted(int(leaf[0]) for leaf in jax.tree.leaves(loaded))
    assert found == sorted(int(leaf[0]) for leaf in arrays.values())


def test_basicsr_253_a_layer_called_params_is_a_layer(tmp_path):
    names = {"bn.running_mean": 1.0, "bn.running_var": 2.0, "head.params.weight": 3.0}
    path = tmp_path / "file"
    safetensors.numpy.save_file({name: np.full(2, x) for name, x in names.items()}, path)
    want = {
        "params": {"head": {"params": {"weight": np.full(2, 3.0)}}},
        "batch_stats": {"bn": {"mean": np.full(2, 1.0), "var": np.full(2, 2.0)}},
    }
    assert_same(load_variables(path), want)
    tree = {"bn": want["batch_stats"]["bn"], **want["params"]}
    assert_same(load_variables(write_msgpack(tmp_path / "msgpack", tree)), want)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", tree)
    assert_same(load_variables(tmp_path / "orbax"), want)


@pytest.mark.parametrize("separator", [".", None])
def test_basicsr_253_a_state_dict_below_params(separator, tmp_path):
    def write(name, tree):
        path = tmp_path / name
        return write_flat(path, tree, ".") if separator else write_msgpack(path, tree)

    assert_same(load_variables(write("one", {"params": STATE_DICT})), FLAX)
    two = write("two", {"params": STATE_DICT, "params_ema": STATE_DICT})
    assert_same(load_variables(two, ignore="^params_ema/"), FLAX)
    both = load_variables(two)
    assert_same(both["batch_stats"], dict.fromkeys(["params", "params_ema"], FLAX["batch_stats"]))


def training_state(**more):
    class State(train_state.TrainState):
        batch_stats: dict
        key: jax.Array
        averages: dict

    return State.create(
        apply_fn=None,
        tx=optax.adam(0.1),
        key=jnp.arange(2, dtype=jnp.uint32),
        averages=MODEL["params"],
        **more,
    )


def test_the_rest_of_a_training_state_is_left_out(tmp_path):
    state = training_state(**MODEL)
    assert_same(load_variables(write_msgpack(tmp_path / "a", state)), MODEL)
    # As in Flax's own guide to orbax.
    whole = {"model": state, "config": {"sizes": np.arange(2)}, "data": [np.arange(3)]}
    assert_same(load_variables(write_msgpack(tmp_path / "b", whole)), MODEL)
    within = training_state(params=MODEL, batch_stats={})
    assert_same(load_variables(write_msgpack(tmp_path / "c", within)), MODEL)
    layer_norms = {"model": {"params": MODEL["params"]}, "step": 3, "opt_state": {"mu": np.ones(2)}}
    want = {"params": MODEL["params"]}
    assert_same(load_variables(write_msgpack(tmp_path / "e", layer_norms)), want)
    by_hand = {"model": MODEL, "epoch": 3, "best": 0.5, "key": np.arange(2)}
    assert_same(load_variables(write_msgpack(tmp_path / "d", by_hand)), MODEL)


def test_two_models_of_a_file_are_told_apart(tmp_path):
    path = write_msgpack(
        tmp_path / "gan", {name: training_state(**MODEL) for name in ("critic", "generator")}
    )
    with pytest.raises(ValueError, match=r"in critic and also generator.*generator/batch_stats/bn"):
        load_variables(path)
    assert_same(load_variables(path, ignore="^critic"), MODEL)
    path = write_msgpack(tmp_path / "more", {"a": MODEL, "b": {"w": np.ones(2)}, "n": 0.5})
    with pytest.raises(ValueError, match=r"lost b/w, n\. Leave out"):
        load_variables(path)
    assert_same(load_variables(path, ignore="^b/|^n$"), MODEL)


def test_other_collections_come_too_and_arrays_beside_them_are_named(tmp_path):
    cached = MODEL | {"cache": {"attention": {"index": np.int32(3)}}}
    assert_same(load_variables(write_msgpack(tmp_path / "a", cached)), cached)
    path = write_msgpack(tmp_path / "b", MODEL | {"key": np.arange(2)})
    with pytest.raises(ValueError, match=r"beside params and batch_stats .* lost: key\."):
        load_variables(path)
    assert_same(load_variables(path, ignore="^key$"), MODEL)


def test_the_value_of_a_layer_is_no_box():
    attention = {("attention", name): np.ones(2) for name in ("query", "key", "value")}
    got = to_variables(attention | {("scale", "value"): np.ones(2)})["params"]
    assert got["attention"].keys() == {"query", "key", "value"}
    assert got["scale"].shape == (2,)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/b", "a.b", "c"), r"a\.b and a/b would both be a/b"),
        (("a", "a.b"), r"a is an array, and a\.b would be one in it"),
        (
            ("running_mean", "running_var", "weight", "scale"),
            "scale and weight would both be params/scale",
        ),
    ],
)
def test_two_arrays_of_one_name_are_refused(names, message, tmp_path):
    safetensors.numpy.save_file({name: np.ones(2) for name in names}, tmp_path / "file")
    with pytest.raises(ValueError, match=message):
        load_variables(tmp_path / "file")
    assert load_variables(tmp_path / "file", ignore=r"b$|scale")


def test_what_is_ignored_must_be_there():
    leaves = {("bn", "scale"): np.ones(2)}
    with pytest.raises(
        ValueError, match="ignore='bm' is found in no name; the arrays are bn/scale"
    ):
        to_variables(leaves, "bm")
    with pytest.raises(ValueError, match="ignore='n' is found in every name"):
        to_variables(leaves, "n")


def test_names_that_would_be_one_are_not_saved(tmp_path):
    params = {"a/b": np.ones(2), "a": {"b": np.zeros(2)}}
    with pytest.raises(ValueError, match="two leaves of variables are called params/a/b"):
        save_safetensors({"params": params}, tmp_path / "file")


@pytest.mark.parametrize("write", [np.savez, safetensors.numpy.save_file])
def test_an_array_called_checksum_is_an_array(write, tmp_path):
    arrays = {"checksum": np.arange(2), "w": np.ones(2)}
    path = tmp_path / "file.npz"
    write(path, **arrays) if write is np.savez else write(arrays, path)
    assert load_variables(path)["params"].keys() == {"checksum", "w"}


@pytest.mark.parametrize("beside", ["ema", "head"])
def test_basicsr_253_what_lies_outside_of_a_training_state_is_not_lost(beside, tmp_path):
    stats = {"mean": np.zeros(2), "var": np.ones(2)}
    model = {"params": {"bn": {"scale": np.ones(2)}}, "batch_stats": {"bn": stats}}
    state = model | {"step": np.int32(3), "opt_state": {"0": {"mu": np.zeros(2)}}}
    path = tmp_path / "file.msgpack"
    path.write_bytes(flax.serialization.msgpack_serialize({"state": state}))
    assert set(load_variables(path)) == {"params", "batch_stats"}
    both = {"state": state, beside: {"kernel": np.ones(2)}}
    path.write_bytes(flax.serialization.msgpack_serialize(both))
    with pytest.raises(ValueError, match=f"would be lost {beside}/kernel.*ignore="):
        load_variables(path)
    assert set(load_variables(path, ignore=f"^{beside}/")) == {"params", "batch_stats"}
