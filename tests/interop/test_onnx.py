"""ONNX's normalisations read and written, as far as they need no runtime."""

import functools
import os
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import bnjax.linen
import bnjax.nnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.version_converter")
numpy_helper = pytest.importorskip("onnx.numpy_helper")

from bnjax.interop import OnnxNorm, from_onnx, to_onnx  # noqa: E402

from . import _onnx  # noqa: E402
from ._onnx import node, ones  # noqa: E402

BN = ("scale", "bias", "mean", "var")


def assert_same(got, want):
    assert (got.name, got.kind, got.options) == (want.name, want.kind, want.options)
    assert jax.tree.structure(got.variables) == jax.tree.structure(want.variables)
    for a, b in zip(*map(jax.tree.leaves, (got.variables, want.variables)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


@given(
    st.sampled_from(list(_onnx.CASES)),
    st.tuples(*[st.integers(2, 5)] * 2),
    st.sampled_from([np.float32, np.float16, np.float64, ml_dtypes.bfloat16]),
    st.floats(1e-9, 0.5).map(lambda e: float(f"{e:.5g}")),
    st.integers(0, 9),
)
def test_what_was_written_is_read(case, size, dtype, epsilon, seed):
    shape = (2, 6, *size)
    norm = _onnx.draw(case, shape, dtype, epsilon, seed)
    written = to_onnx(norm, shape, dtype)
    (read,) = from_onnx(written).values()
    assert_same(read, norm)
    again = to_onnx(read, shape, dtype)
    assert again.SerializeToString() == written.SerializeToString()


def test_sizes_that_x_leaves_open_come_from_the_arrays():
    norm = _onnx.draw("group", (1, 6, 1, 1), np.float32)
    assert_same(from_onnx(to_onnx(norm, ("N", None, "H", "W")))["group"], norm)


def test_numbers_are_the_decimals_that_were_meant():
    # ONNX stores float32: 9.999999747378752e-06 and 0.8999999761581421.
    norms = from_onnx(_onnx.model(node("BatchNormalization", *BN, name="bn"), arrays=ones(*BN)))
    want = {"axis": 1, "epsilon": 1e-5, "decay": 0.9, "ddof": 0, "train": False}
    assert norms["bn"].options == want


def test_nodes_without_a_name_go_by_their_output_and_in_order():
    layers = [
        node("LayerNormalization", "b", outputs=["second"]),
        node("InstanceNormalization", "a", "a", name="first"),
    ]
    norms = from_onnx(_onnx.model(*layers, arrays=ones("a", "b")))
    assert list(norms) == ["second", "first"]
    assert "bias" not in norms["second"].variables["params"]


MAKE = onnx.helper.make_node
# Nodes that end in "s", the arrays they take, and the opsets that have them. Each gives 1, 2 or the
# like, in float32.
VALUES = {
    "value": ([MAKE("Constant", [], ["s"], value=numpy_helper.from_array(np.float32([1, 2])))], {}),
    "value_floats": ([MAKE("Constant", [], ["s"], value_floats=[1.0, 2.0])], {}),
    "sparse_value": (
        [
            MAKE(
                "Constant",
                [],
                ["s"],
                sparse_value=onnx.helper.make_sparse_tensor(
                    numpy_helper.from_array(np.float32([1, 2])),
                    numpy_helper.from_array(np.int64([0, 1])),
                    [2],
                ),
            )
        ],
        {},
    ),
    "value_ints, Cast": (
        [
            MAKE("Constant", [], ["i"], value_ints=[1, 2]),
            MAKE("Cast", ["i"], ["s"], to=onnx.TensorProto.FLOAT),
        ],
        {},
    ),
    "value_float, value_int, Expand": (
        [
            MAKE("Constant", [], ["f"], value_float=2.0),
            MAKE("Constant", [], ["i"], value_int=2),
            MAKE("Constant", [], ["axes"], value_ints=[0]),
            MAKE("Unsqueeze", ["i", "axes"], ["n"]),
            MAKE("Expand", ["f", "n"], ["s"]),
        ],
        {},
    ),
    "Reshape": ([MAKE("Reshape", ["a", "n"], ["s"])], {"a": np.float32([[1], [2]]), "n": [-1]}),
    "ConstantOfShape": (
        [
            MAKE("Shape", ["a"], ["n"]),
            MAKE("ConstantOfShape", ["n"], ["s"], value=numpy_helper.from_array(np.float32([2]))),
        ],
        {"a": np.zeros(2)},
    ),
    "Transpose, Squeeze, Identity": (
        [
            MAKE("Transpose", ["a"], ["t"], perm=[1, 0]),
            MAKE("Squeeze", ["t", "axes"], ["q"]),
            MAKE("Identity", ["q"], ["s"]),
        ],
        {"a": np.float32([[1, 2]]), "axes": [1]},
    ),
    "Flatten, Slice, Concat": (
        [
            MAKE("Flatten", ["a"], ["f"], axis=0),
            MAKE("Reshape", ["f", "n"], ["r"]),
            MAKE("Slice", ["r", "0", "1"], ["p"]),
            MAKE("Slice", ["r", "1", "2"], ["q"]),
            MAKE("Concat", ["p", "q"], ["s"], axis=0),
        ],
        {"a": np.float32([[[1], [2]]]), "n": [-1], "0": [0], "1": [1], "2": [2]},
    ),
    "Split": (
        [MAKE("Split", ["a", "n"], ["first", "s"], axis=0)],
        {"a": np.float32([0, 1, 2]), "n": [1, 2]},
    ),
    "DequantizeLinear": (
        [MAKE("DequantizeLinear", ["q", "c", "z"], ["s"])],
        {"q": np.uint8([5, 7]), "c": np.float32(0.5), "z": np.uint8(3)},
    ),
    "DequantizeLinear, one entry": (
        [MAKE("DequantizeLinear", ["q", "c"], ["s"])],
        {"q": np.int8([-2, 4]), "c": np.float32([0.5])},
    ),
    "DequantizeLinear, axis": (
        [MAKE("DequantizeLinear", ["q", "c", "z"], ["s"], axis=0)],
        {"q": np.int8([3, 4]), "c": np.float32([0.5, 2]), "z": np.int8([1, 3])},
    ),
    "arithmetic": ([MAKE("Add", ["a", "b"], ["s"])], {"a": np.float32([0, 1]), "b": np.float32(1)}),
}
VALUES_WANTED = {
    "value_float, value_int, Expand": [2, 2],
    "ConstantOfShape": [2, 2],
    "DequantizeLinear, one entry": [-1, 2],
}


# github.com/fastmachinelearning/hls4ml/pull/979
@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("case", VALUES)
def test_hls4ml_979_arrays_come_from_nodes(case, opset):
    nodes, arrays = VALUES[case]
    norm = node("InstanceNormalization", "s", "s", name="in")
    params = from_onnx(_onnx.model(*nodes, norm, arrays=arrays, opset=opset))["in"].variables[
        "params"
    ]
    assert params["scale"].dtype == np.float32
    assert params["scale"].tolist() == VALUES_WANTED.get(case, [1, 2])


def test_hls4ml_979_older_operators_and_sparse_initialisers():
    axes = MAKE("Unsqueeze", ["a"], ["u"], axes=[0])
    back = MAKE("Squeeze", ["u"], ["q"], axes=[0])
    scaled = MAKE("DequantizeLinear", ["n", "c"], ["d"])
    norm = node("BatchNormalization", "q", "d", "sparse", "placed", name="bn")
    arrays = {"a": np.float32([1, 2]), "n": np.int8([2, 4]), "c": np.float32(0.5)}
    model = _onnx.model(axes, back, scaled, norm, arrays=arrays, opset=11)
    for name, indices in {"sparse": [1], "placed": [[0]]}.items():
        values = numpy_helper.from_array(np.float32([7]), name)
        places = numpy_helper.from_array(np.int64(indices))
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [2]))
    variables = from_onnx(model)["bn"].variables
    got = [x.tolist() for c in variables.values() for x in c.values()]
    assert got == [[1, 2], [1, 2], [0, 7], [7, 0]]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([MAKE("Relu", ["a"], ["s"])], "'s' is computed by Relu, not stored"),
        ([MAKE("Cast", ["x"], ["s"], to=1)], "'s' is computed by Cast, not stored"),
        ([MAKE("Identity", ["s"], ["s"])], "too long a chain of nodes, or from itself"),
        ([MAKE("Cast", ["a"], ["s"], to=onnx.TensorProto.INT32)], "is of int32, not of real"),
        ([MAKE("Reshape", ["a", "n"], ["s"])], "'s' cannot be computed by Reshape: cannot resha"),
        ([MAKE("Expand", ["a", "huge"], ["s"])], "it would have 3000000000000 elements"),
        ([MAKE("ConstantOfShape", ["huge"], ["s"])], "it would have 1000000000000 elements"),
        (
            [MAKE("Add", [f"{i or 'a'}"] * 2, [f"{i + 1}"]) for i in range(60)]
            + [MAKE("Relu", ["60"], ["s"])],
            "is computed by Relu, not stored",
        ),
    ],
)
def test_what_is_no_stored_array_says_what_it_is(nodes, message):
    arrays = {"a": np.ones(3, np.float32), "n": [2], "huge": [10**12, 1]}
    norm = node("InstanceNormalization", "s", "s", name="in")
    with pytest.raises(ValueError, match=message):
        from_onnx(_onnx.model(*nodes, norm, arrays=arrays))


# github.com/onnx/onnx/pull/1288
@pytest.mark.parametrize("opset", [6, 9])
def test_onnx_1288_the_advice_on_training_before_opset_14_works(opset):
    layer = node("BatchNormalization", *BN, name="bn", outputs=["y", "m", "v", "sm", "sv"])
    model = _onnx.model(layer, arrays=ones(*BN), shapes={"x": (2, 3)}, opset=opset, ir_version=4)
    with pytest.raises(ValueError, match=r"training before opset 14.*del node\.output\[1:\]"):
        from_onnx(model)
    del model.graph.node[0].output[1:]
    if opset == 6:
        with pytest.raises(ValueError, match=r"convert_version\(model, 21\)"):
            from_onnx(model)
        model = onnx.version_converter.convert_version(model, 21)
    assert from_onnx(model)["bn"].options["train"] is False


def test_branches_and_functions_are_searched():
    inner = _onnx.model(node("RMSNormalization", "s", name="inner"), opset=23).graph
    del inner.input[:]
    helper = onnx.helper
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    branch.attribute[1].g.node[0].name = "other"
    model = _onnx.model(
        helper.make_node("Block", ["x", "s"], ["z"], domain="local", name="called"),
        branch,
        arrays=ones("s"),
        shapes={"x": (2, 3), "c": ()},
        opset=23,
    )
    body = [helper.make_node("RMSNormalization", ["a", "b"], ["r"], "in_function")]
    imports = [helper.make_opsetid("", 23)]
    model.functions.append(helper.make_function("local", "Block", ["a", "b"], ["r"], body, imports))
    model.opset_import.append(helper.make_opsetid("local", 1))
    norms = from_onnx(model)
    assert {norm.kind for norm in norms.values()} == {"rms_norm"} and len(norms) == 3
    assert {"inner", "other"} < set(norms)


@pytest.mark.parametrize(
    ("axis", "scale", "bias", "axes", "varying", "size"),
    [
        (-1, (5,), (4, 5), (-1,), (-2, -1), (4, 5)),
        (2, (4, 1), (1,), (-2, -1), (-2,), (4,)),
        (-2, (), (), (-2, -1), (), ()),
        (1, (3, 4, 5), None, (-3, -2, -1), None, (3, 4, 5)),
    ],
)
def test_parameters_of_layer_norm_broadcast(axis, scale, bias, axes, varying, size):
    rng = np.random.default_rng(0)
    arrays = {"s": rng.normal(size=scale).astype(np.float32)}
    if bias is not None:
        arrays["b"] = rng.normal(size=bias).astype(np.float32)
    layer = node("LayerNormalization", *arrays, name="ln", axis=axis)
    model = _onnx.model(layer, arrays=arrays, shapes={"x": (2, 3, 4, 5)})
    norm = from_onnx(model)["ln"]
    assert norm.options["axes"] == axes
    assert norm.options.get("param_axes") == varying
    assert norm.variables["params"]["scale"].shape == size

    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    over = tuple(range(axis % 4, 4))
    want = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + 1e-5)
    want = want * arrays["s"] + arrays.get("b", np.float32(0))
    np.testing.assert_allclose(norm.apply(x)[0], want, rtol=1e-5, atol=1e-5)


def test_parameters_of_groups_are_repeated_for_their_channels():
    layer = node("GroupNormalization", "s", "s", name="gn", num_groups=2)
    arrays = {"s": np.array([1, 2], np.float32)}
    old = _onnx.model(layer, arrays=arrays, shapes={"x": (1, 6, 5)}, opset=18)
    assert from_onnx(old)["gn"].variables["params"]["scale"].tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match=r"channels of X must be known.*infer_shapes"):
        from_onnx(_onnx.model(layer, arrays=arrays, opset=18))
    with pytest.raises(ValueError, match=r"scale of \(2,\).*as X of \(1, 6, 5\)"):
        from_onnx(_onnx.model(layer, arrays=arrays, shapes={"x": (1, 6, 5)}, opset=21))


def test_all_that_cannot_be_read_is_in_one_error():
    nodes = [
        onnx.helper.make_node("Mul", ["x", "x"], ["product"]),
        node("BatchNormalization", "product", "x", "a", name="computed"),
        node("BatchNormalization", "a", "short", "a", "a", name="short one"),
        node("InstanceNormalization", "a", "a", name="good"),
        node("InstanceNormalization", "a", "a", "a", name="too many"),
        node("GroupNormalization", "a", "a", name="no groups", wrong=1),
        node("GroupNormalization", "a", "a", name="odd groups", num_groups=2),
        node("LayerNormalization", "a", name="from the front", axis=1),
        node("LayerNormalization", "a", "short", name="apart"),
        node("SkipLayerNormalization", "a", name="fused", domain="com.microsoft"),
        node("InstanceNormalization", "a", "a", name="foreign", domain="com.acme"),
        node("MeanVarianceNormalization", name="bare"),
        node("RMSNormalization", "a", name="too new"),
        node("InstanceNormalization", "a", "a", name="twice"),
        node("InstanceNormalization", "a", "a", name="twice", outputs=["twin"]),
    ]
    model = _onnx.model(*nodes, arrays=ones("a") | ones("short", size=2))
    with pytest.raises(ValueError) as caught:
        from_onnx(model)
    wanted = {
        "12 of 14 normalisation nodes cannot be read",
        "computed (BatchNormalization): scale='product' is computed by Mul, not stored; bias='x' "
        "is an input of the graph, not stored; var is missing",
        "short one (BatchNormalization): scale of (3,), bias of (2,)",
        "too many (InstanceNormalization): unknown input 'a'",
        "no groups (GroupNormalization): unknown attributes ['wrong'], missing attributes "
        "['num_groups']",
        "odd groups (GroupNormalization): num_groups=2 does not divide 3 channels",
        "from the front (LayerNormalization): axis=1 counts from the front",
        "apart (LayerNormalization): scale of (3,), bias of (2,) do not broadcast to each other",
        "fused (SkipLayerNormalization): com.microsoft.SkipLayerNormalization is none of",
        "foreign (InstanceNormalization): com.acme.InstanceNormalization is none of",
        "bare (MeanVarianceNormalization): ai.onnx.MeanVarianceNormalization is none of",
        "too new (RMSNormalization): in opset 21 RMSNormalization does not exist",
        "twice (InstanceNormalization): another node has this name",
    }
    assert [text for text in wanted if text not in str(caught.value)] == []
    assert list(from_onnx(model, nodes="^good$")) == ["good"]
    with pytest.raises(ValueError, match="nodes='better' is found in no layer"):
        from_onnx(model, nodes="better")


@pytest.mark.parametrize(
    ("opset", "layer", "message"),
    [
        (7, node("BatchNormalization", *BN, spatial=0), "spatial=0"),
        (9, node("BatchNormalization", *BN, outputs=["y", "m"]), "training before opset 14"),
        (6, node("BatchNormalization", *BN), "known versions are 7, 9, 14, 15.*version_converter"),
        (16, node("LayerNormalization", "scale"), "does not exist.*version_converter"),
        (999, node("LayerNormalization", "scale"), "opset 999 is newer than"),
        (17, node("LayerNormalization", "scale", axis=2), "axis=2 is out of range"),
        (17, node("LayerNormalization", "scale", axis=-3), "axis=-3 is out of range"),
        (17, node("LayerNormalization", "wide"), r"scale of \(4,\) do not broadcast to X of"),
        (22, node("InstanceNormalization", "wide", "wide"), r"\(3,\), as X of \(2, 3\)"),
        (18, node("GroupNormalization", "scale", "scale", num_groups=1), "one entry a group"),
    ],
)
def test_nodes_that_mean_something_else_are_refused(opset, layer, message):
    arrays = ones(*BN) | ones("wide", size=4)
    model = _onnx.model(layer, arrays=arrays, shapes={"x": (2, 3)}, opset=opset)
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


def test_a_graph_alone_is_refused():
    model = _onnx.model(node("InstanceNormalization", "a", "a"), arrays=ones("a"))
    with pytest.raises(TypeError, match=r"GraphProto.*does not say its opset"):
        from_onnx(model.graph)
    del model.opset_import[:]
    with pytest.raises(ValueError, match="imports no opset"):
        from_onnx(model)


def test_files_are_read_with_their_external_data(tmp_path):
    norm = _onnx.draw("batch", (2, 6), np.float32)
    path = tmp_path / "model.onnx"
    onnx.save(to_onnx(norm, ("N", 6)), path, save_as_external_data=True, size_threshold=0)
    assert_same(from_onnx(path)["batch"], norm)
    alone = onnx.load(path, load_external_data=False)
    with pytest.raises(
        ValueError, match=r"scale='batch.scale' is in another file.*var='batch.var'"
    ):
        from_onnx(alone)


@pytest.mark.parametrize("how", ["cut", "flipped", "random"])
def test_damaged_files_are_value_errors(how, tmp_path):
    names = ("scale", "bias", "mean", "var")
    group = node("GroupNormalization", "scale", "bias", num_groups=1)
    layer = node("LayerNormalization", "scale", axis=-1)
    model = _onnx.model(node("BatchNormalization", *BN), group, layer, arrays=ones(*names))
    whole, rng, refused = model.SerializeToString(), np.random.default_rng(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        if how == "cut":
            damaged = damaged[: rng.integers(len(damaged))]
        elif how == "flipped":
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        else:
            damaged = rng.bytes(rng.integers(60))
        (tmp_path / "model.onnx").write_bytes(damaged)
        try:
            from_onnx(tmp_path / "model.onnx")
        except ValueError:
            refused += 1
    assert refused >= 60


def test_what_is_no_model_is_one_line(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="no model of ONNX, or damaged: ") as raised:
        from_onnx(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "nothing")
    norm = _onnx.draw("batch", (2, 6), np.float32)
    options = {"save_as_external_data": True, "size_threshold": 0, "location": "weights"}
    onnx.save(to_onnx(norm, ("N", 6)), path, **options)
    (tmp_path / "weights").write_bytes(b"")
    with pytest.raises(ValueError, match=r"scale='batch.scale' is damaged: .*var='batch.var' is d"):
        from_onnx(path)


def stored_elsewhere(tmp_path, **entries):
    """A model whose scale lies in a file beside it, and what its entry says of that file."""
    model = _onnx.model(node("BatchNormalization", *BN), arrays=ones(*BN))
    (scale,) = (t for t in model.graph.initializer if t.name == "scale")
    scale.ClearField("raw_data")
    scale.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        scale.external_data.add(key=key, value=str(value))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("length", [{}, {"length": 10**9}, {"length": 12}, {"length": "much"}])
def test_of_another_file_no_more_is_read_than_the_array_has(length, tmp_path):
    path = stored_elsewhere(tmp_path, location="weights", **length)
    with (tmp_path / "weights").open("wb") as file:
        file.write(np.full(3, 7, np.float32).tobytes())
        file.truncate(10**9)
    if length == {"length": 12}:
        (norm,) = from_onnx(path).values()
        np.testing.assert_array_equal(norm.variables["params"]["scale"], 7)
        return
    with pytest.raises(ValueError, match="scale='scale' is damaged: "):
        from_onnx(path)


def test_arrays_of_other_files_that_no_norm_has_are_not_asked_for(tmp_path):
    path = stored_elsewhere(tmp_path, location="weights")
    model = onnx.load(path, load_external_data=False)
    model.graph.node.append(node("InstanceNormalization", "bias", "mean", name="healthy"))
    path.write_bytes(model.SerializeToString())
    assert list(from_onnx(path, nodes="healthy")) == ["healthy"]


def test_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="is a pipe, neither a file nor a folder"):
        from_onnx(tmp_path / "model.onnx")


def calls(*names):
    return [onnx.helper.make_node(name, ["a"], ["b"], domain="local") for name in names]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"F0": ["F0"]}, "local.F0 calls itself"),
        ({"F0": ["F1"], "F1": ["F2"], "F2": ["F1"]}, "local.F1 calls itself"),
        ({f"F{i}": [f"F{i + 1}"] * 2 for i in range(60)}, "would come to [0-9,]{20,} bytes"),
        ({f"F{i}": [f"F{i + 1}"] for i in range(5000)}, "recursion|depth"),
    ],
)
def test_functions_that_never_end_are_refused(functions, message):
    """In themselves, and twice in each other, sixty deep."""
    model = _onnx.model(*calls("F0"), shapes={"a": None})
    imports = [onnx.helper.make_opsetid("local", 1)]
    model.opset_import.extend(imports)
    for name, called in functions.items():
        body = calls(*called)
        function = onnx.helper.make_function("local", name, ["a"], ["b"], body, imports)
        model.functions.append(function)
    with pytest.raises(ValueError, match=f"cannot be inlined, or damaged: .*({message})"):
        from_onnx(model)


def test_arrays_made_of_little_have_a_limit_together():
    """Thirty, each of which could be made."""
    helper = onnx.helper
    makers = [helper.make_node("ConstantOfShape", ["size"], [f"c{i}"]) for i in range(30)]
    joined = helper.make_node("Concat", [f"c{i}" for i in range(30)], ["scale"], axis=0)
    arrays = ones(*BN[1:]) | {"size": np.array([2**20 * 3])}
    model = _onnx.model(*makers, joined, node("BatchNormalization", *BN), arrays=arrays)
    with pytest.raises(ValueError, match="elements, where at most 67108864 are made"):
        from_onnx(model)


def test_names_in_errors_cannot_command_a_terminal():
    model = _onnx.model(node("InstanceNormalization", "\x1b[2J", "b", name="\u202e\x9b"))
    with pytest.raises(ValueError, match="cannot be read") as raised:
        from_onnx(model)
    assert str(raised.value).replace("\n", "").isprintable()


@pytest.mark.parametrize("nodes", ["(", "[z-a]", "(?P<a>)(?P<a>)"])
def test_what_is_no_regular_expression_is_named(nodes):
    model = _onnx.model(node("BatchNormalization", *BN), arrays=ones(*BN))
    with pytest.raises(ValueError, match=r"nodes=.* is no regular expression"):
        from_onnx(model, nodes=nodes)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (node("LayerNormalization", "scale", axis=1.5), "attribute axis is 1.5, no INT"),
        (node("LayerNormalization", "scale", axis=-(2**40)), "axis=-1099511627776 is out of range"),
        *(
            (node("BatchNormalization", *BN, epsilon=epsilon), "epsilon must be a finite non-neg")
            for epsilon in (float("nan"), -1e-5, float("inf"))
        ),
        (node("InstanceNormalization", "scale", "bias", epsilon=-1.0), "epsilon must be a finite"),
        (node("BatchNormalization", *BN, momentum=float("nan")), "decay .* must lie in"),
        (node("BatchNormalization", *BN, momentum=1.5), "decay .* must lie in"),
        (onnx.helper.make_node("InstanceNormalization", [], ["y"]), "X is missing"),
    ],
)
def test_nodes_that_are_not_valid_are_named(layer, message):
    with pytest.raises(ValueError, match=message):
        from_onnx(_onnx.model(layer, arrays=ones(*BN)))


def test_norms_of_a_model_fit_the_modules():
    norm = _onnx.draw("batch, training", (4, 6, 5), np.float32)
    (read,) = from_onnx(to_onnx(norm, (4, 6, 5))).values()
    x = np.random.default_rng(1).normal(size=(4, 6, 5)).astype(np.float32)
    module = bnjax.linen.BatchNorm(
        axis=1, momentum=read.options["decay"], epsilon=read.options["epsilon"]
    )
    want = module.apply(read.variables, x, use_running_average=False, mutable=["batch_stats"])
    y, variables = read.apply(x)
    got = y, {"batch_stats": variables["batch_stats"]}
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_states_of_nnx_are_written():
    module = bnjax.nnx.BatchNorm(6, axis=1, rngs=nnx.Rngs(0))
    module.mean[...] = jnp.arange(6.0)
    state = nnx.state(module)
    norm = OnnxNorm("bn", "batch_norm", {"train": False, "axis": 1}, state)
    read = from_onnx(to_onnx(norm, ("N", 6)))["bn"]
    assert read.variables["batch_stats"]["mean"].tolist() == list(range(6))
    x = np.ones((2, 6), np.float32)
    y, after = norm.apply(x)
    np.testing.assert_array_equal(y, read.apply(x)[0])
    assert isinstance(after, nnx.State)


# github.com/google/flax/pull/2435
@pytest.mark.parametrize("box", [nn.Partitioned, nn.LogicallyPartitioned])
def test_flax_2435_boxed_variables_are_computed_with_and_written(box):
    norm = _onnx.draw("batch, training", (4, 6), np.float32)
    boxed = jax.tree.map(lambda leaf: box(jnp.asarray(leaf), ("c",)), norm.variables)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    (y, new), (want, unboxed) = norm._replace(variables=boxed).apply(x), norm.apply(x)
    np.testing.assert_array_equal(y, want)
    assert isinstance(new["batch_stats"]["mean"], box)
    jax.tree.map(np.testing.assert_array_equal, nn.unbox(new), unboxed)
    written = to_onnx(norm._replace(variables=boxed), ("N", 6))
    assert_same(from_onnx(written)[norm.name], norm)


def test_options_not_given_are_those_of_the_function():
    norm = OnnxNorm("in", "instance_norm", {"axis": 1, "mask": None}, {"params": {}})
    read = from_onnx(to_onnx(norm, (2, 3, 4), np.float16))["in"]
    assert read.options == {"axis": 1, "epsilon": 1e-6}
    # ONNX has no instance norm without parameters.
    assert read.variables["params"]["scale"].tolist() == [1] * 3
    assert read.variables["params"]["bias"].tolist() == [0] * 3
    groups = OnnxNorm("gn", "group_norm", {"axis": 1, "num_groups": None, "group_size": 3}, {})
    assert from_onnx(to_onnx(groups, (2, 6)))["gn"].options["num_groups"] == 2


def test_scalar_parameters_are_written_for_every_channel():
    norm = OnnxNorm("in", "instance_norm", {"axis": 1}, {"params": {"scale": np.float32(2)}})
    assert (
        from_onnx(to_onnx(norm, (2, 3, 4)))["in"].variables["params"]["scale"].tolist() == [2] * 3
    )


STATS = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
EVALUATE = {"train": False, "axis": 1}


@pytest.mark.parametrize(
    ("kind", "options", "variables", "shape", "error", "message"),
    [
        ("weight_norm", {}, {}, (2, 3), ValueError, "kind must be one of batch_norm"),
        ("batch_norm", {"axis": 1}, {}, (2, 3), ValueError, "lacks train"),
        (
            "batch_norm",
            {"train": True, "axis": 1, "ddof": 1, "virtual_batch_size": 2, "epsilom": 1},
            {},
            (2, 3),
            ValueError,
            "lacks: ddof=1, virtual_batch_size=2, epsilom=1",
        ),
        ("batch_norm", {**EVALUATE, "train": True, "decay": None}, {}, (2, 3), ValueError, "decay"),
        ("batch_norm", {**EVALUATE, "axis": -1}, {}, (2, 4, 3), ValueError, "channels on axis 1"),
        (
            "batch_norm",
            EVALUATE,
            {"params": {"gamma": np.ones(3)}},
            (2, 3),
            ValueError,
            r"unknown \['params/gamma'\], missing \['batch_stats/mean', 'batch_stats/var'\]",
        ),
        (
            "batch_norm",
            EVALUATE,
            {"params": {"scale": np.ones(4, np.float32)}, "batch_stats": STATS},
            (2, 3),
            ValueError,
            r"scale of \(4,\) do not fit x of \(2, 3\)",
        ),
        ("rms_norm", {}, {"params": {"bias": np.ones(3)}}, (2, 3), ValueError, "params/bias"),
        ("layer_norm", {"axes": (0,)}, {}, (2, 3), ValueError, "must be the last axes"),
        ("layer_norm", {"axes": ()}, {}, (2, 3), ValueError, "must be the last axes"),
        ("instance_norm", {"axis": 1}, {}, (2, "C", 3), ValueError, "must say the size of axes"),
        (
            "group_norm",
            {"axis": 1},
            {"params": {"scale": np.ones(32, np.float16)}},
            (2, 32),
            TypeError,
            "one dtype for x float32, scale float16, bias float16",
        ),
        ("group_norm", {"axis": 1}, {}, (2, 3), ValueError, "num_groups=32 does not divide"),
    ],
)
def test_what_onnx_cannot_say_is_refused(kind, options, variables, shape, error, message):
    with pytest.raises(error, match=message):
        to_onnx(OnnxNorm("norm", kind, options, variables), shape)


@pytest.mark.parametrize(
    "model", [bnjax.linen.BatchNorm(), bnjax.nnx.BatchNorm(3, rngs=nnx.Rngs(0)), {"params": {}}]
)
def test_a_model_is_not_written_but_told_what_is(model):
    told = r"norm must be a .*OnnxNorm, got .* writes one normalis.*register_jax2onnx\(\)"
    for rest in [(), (("N", 3),), ({"params": {}}, jnp.ones((1, 3)))]:
        with pytest.raises(TypeError, match=told):
            to_onnx(model, *rest)


def test_a_norm_without_a_shape_says_so():
    norm = OnnxNorm("norm", "layer_norm", {}, {})
    with pytest.raises(TypeError, match=r"shape must be that of x, .* not given"):
        to_onnx(norm)


@pytest.mark.parametrize(
    ("case", "first"), [("batch", 15), ("instance", 6), ("layer", 17), ("group", 21), ("rms", 23)]
)
def test_older_opsets_are_written_where_they_mean_the_same(case, first):
    norm = _onnx.draw(case, (2, 6, 4), np.float32)
    assert_same(from_onnx(to_onnx(norm, (2, 6, 4), opset=first))[case], norm)
    with pytest.raises(ValueError, match=f"opset={first - 1}, but .* needs {first}"):
        to_onnx(norm, (2, 6, 4), opset=first - 1)


def test_without_onnx_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'bnjax\[interop\]'"):
        from_onnx("model.onnx")


def test_apply_works_under_jit_and_leaves_the_norm_alone():
    norm = _onnx.draw("batch, training", (4, 6), np.float32)
    before = jax.tree.map(np.copy, norm.variables)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(same, jax.jit(norm.apply)(x), norm.apply(x))
    assert_same(norm, norm._replace(variables=before))
