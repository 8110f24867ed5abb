"""torch's names and layouts, as far as they need no torch: ``state_dict`` of NumPy arrays."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import bnjax.nnx
from bnjax.interop import from_torch, load_torch, to_torch
from bnjax.linen import BatchNorm

RENAME = [(r"^stem\.", ""), (r"layer(\d)\.(\d)", r"block\1_\2"), (r"\.bn$", ".norm")]


def draw(rng, *shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def batch_norm(rng, name, features, count=None):
    arrays = {
        "weight": draw(rng, features),
        "bias": draw(rng, features),
        "running_mean": draw(rng, features),
        "running_var": rng.uniform(0.5, 2, features).astype(np.float32),
    }
    if count is not None:
        arrays["num_batches_tracked"] = np.array(count)
    return {f"{name}.{leaf}": x for leaf, x in arrays.items()}


def template(*layers):
    """Variables of linen, by path of layer: which leaves of which shape."""
    tree = {}
    for collection, *path, leaf, shape in layers:
        node = tree.setdefault(collection, {})
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def norm_template(*path, features, count=False):
    stats = [("mean", (features,)), ("var", (features,))] + [("count", ())] * count
    return [("params", *path, leaf, (features,)) for leaf in ("scale", "bias")] + [
        ("batch_stats", *path, *stat) for stat in stats
    ]


def test_every_array_arrives_at_its_place_in_its_layout():
    rng = np.random.default_rng(0)
    conv, dense, table = draw(rng, 8, 3, 5, 2), draw(rng, 4, 8), draw(rng, 7, 6)
    source = {
        "stem.layer1.0.conv.weight": conv,
        **batch_norm(rng, "stem.layer1.0.bn", 8, count=3),
        "stem.fc.weight": dense,
        "stem.tokens.weight": table,
        "stem.position": draw(rng, 2, 9),
    }
    variables = template(
        ("params", "block1_0", "conv", "kernel", (5, 2, 3, 8)),
        *norm_template("block1_0", "norm", features=8),
        ("params", "fc", "kernel", (8, 4)),
        ("params", "tokens", "embedding", (7, 6)),
        ("params", "position", (2, 9)),
    )
    # The model's own parameter has no layer in front of it.
    new = from_torch(source, variables, [*RENAME, ("^stem$", "")])
    norm, stats = new["params"]["block1_0"]["norm"], new["batch_stats"]["block1_0"]["norm"]
    got = new["params"]["block1_0"]["conv"]["kernel"]
    np.testing.assert_array_equal(got[4, 1, 2], conv[:, 2, 4, 1])
    np.testing.assert_array_equal(new["params"]["fc"]["kernel"], dense.T)
    np.testing.assert_array_equal(new["params"]["tokens"]["embedding"], table)
    np.testing.assert_array_equal(new["params"]["position"], source["stem.position"])
    np.testing.assert_array_equal(norm["scale"], source["stem.layer1.0.bn.weight"])
    np.testing.assert_array_equal(norm["bias"], source["stem.layer1.0.bn.bias"])
    np.testing.assert_array_equal(stats["mean"], source["stem.layer1.0.bn.running_mean"])
    np.testing.assert_array_equal(stats["var"], source["stem.layer1.0.bn.running_var"])


def test_a_linear_layer_after_a_flattened_map():
    # In torch the map is flattened as (C, H, W), here as (H, W, C).
    rng = np.random.default_rng(1)
    weight, x = draw(rng, 5, 2 * 3 * 4), draw(rng, 2, 3, 4)
    variables = template(("params", "fc", "kernel", (24, 5)))
    new = from_torch({"fc.weight": weight}, variables, flattened={"fc": (2, 3, 4)})
    want = weight @ x.reshape(-1)
    got = x.transpose(1, 2, 0).reshape(-1) @ new["params"]["fc"]["kernel"]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    with pytest.raises(ValueError, match=r"fc.weight \(5, 24\) cannot be seen as \(5, 2, 3, 5\)"):
        from_torch({"fc.weight": weight}, variables, flattened={"fc": (2, 3, 5)})


def test_nnx_gets_its_own_kind_and_keeps_what_is_not_a_weight():
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            conv = nnx.Conv(3, 4, (2, 2), rngs=rngs)
            self.layers = nnx.List([conv, bnjax.nnx.BatchNorm(4, momentum=None, rngs=rngs)])
            self.drop = nnx.Dropout(0.5, rngs=rngs)

    rng = np.random.default_rng(2)
    source = {"0.weight": draw(rng, 4, 3, 2, 2), "0.bias": draw(rng, 4)}
    source |= batch_norm(rng, "1", 4, count=7)
    model = Net()
    state = from_torch(source, nnx.state(model), [("^", "layers.")])
    assert isinstance(state, nnx.State)
    keys = [jax.random.key_data(s["drop"]["rngs"]["key"][...]) for s in (state, nnx.state(model))]
    np.testing.assert_array_equal(*keys)
    nnx.update(model, state)
    assert int(model.layers[1].count[...]) == 7
    np.testing.assert_array_equal(model.layers[1].var[...], source["1.running_var"])
    again = to_torch(nnx.state(model), source, [("^", "layers.")])
    jax.tree.map(np.testing.assert_array_equal, again, source)


def test_all_that_does_not_fit_is_listed_in_one_error():
    rng = np.random.default_rng(3)
    source = {
        "conv.weight": draw(rng, 4, 3, 3, 3),
        "old.weight": draw(rng, 4, 4),
        "lstm.weight_ih_l0": draw(rng, 4, 4),
        "a.bias": draw(rng, 2),
        "b.bias": draw(rng, 2),
        "late.num_batches_tracked": np.array(1),
    }
    variables = template(
        ("params", "conv", "kernel", (3, 3, 4, 4)),
        ("params", "fc", "kernel", (4, 4)),
        ("params", "ab", "bias", (2,)),
        *norm_template("norm", features=4),
    )
    with pytest.raises(ValueError) as error:
        from_torch(source, variables, [("^[ab]$", "ab")])
    text = str(error.value)
    for part in (
        "old.weight (no params/old/kernel or params/old/embedding)",
        "lstm.weight_ih_l0 (no params/lstm/weight_ih_l0)",
        "late.num_batches_tracked (no batch_stats/late/count)",
        "params/fc/kernel, params/norm/scale, params/norm/bias, batch_stats/norm/mean",
        "a.bias and b.bias (both params/ab/bias)",
        "conv.weight (4, 3, 3, 3) is (3, 3, 3, 4) here, but params/conv/kernel is (3, 3, 4, 4)",
        "rename=",
    ):
        assert part in text, text
    with pytest.raises(ValueError, match=r"old\.weight \(no params/old/kernel"):
        to_torch(variables, source, [("^[ab]$", "ab")])


# Shape of torch's norm, of ours, and our axes by theirs.
SEVERAL = {
    "as it is": ((5, 4), (5, 4), (0, 1)),
    "channels of a sequence": ((5, 4), (4, 5), (1, 0)),
    "channels of a map": ((3, 5, 4), (5, 4, 3), (1, 2, 0)),
    "channels of a square map": ((3, 4, 4), (4, 4, 3), (1, 2, 0)),
    "a map of one channel": ((1, 4, 4), (4, 4, 1), (1, 2, 0)),
    "a volume": ((2, 3, 5, 4), (3, 5, 4, 2), (1, 2, 3, 0)),
}


# coreai-torch PR#55: layer norm over several axes.
@pytest.mark.parametrize("kind", SEVERAL)
def test_coreai_torch_pr55_a_layer_norm_over_several_axes(kind):
    shape, ours, order = SEVERAL[kind]
    rng = np.random.default_rng(20)
    source = {"norm.weight": draw(rng, *shape), "norm.bias": draw(rng, *shape)}
    variables = template(*(("params", "norm", leaf, ours) for leaf in ("scale", "bias")))
    new = from_torch(source, variables)["params"]["norm"]
    np.testing.assert_array_equal(new["scale"], source["norm.weight"].transpose(order))
    np.testing.assert_array_equal(new["bias"], source["norm.bias"].transpose(order))
    again = to_torch({"params": {"norm": new}}, source)
    jax.tree.map(np.testing.assert_array_equal, again, source)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4)])
def test_coreai_torch_pr55_equal_sizes_do_not_tell_the_order_of_axes(shape):
    x = draw(np.random.default_rng(21), *shape)
    source = {"norm.weight": x, "norm.bias": x + 1}
    variables = template(*(("params", "norm", leaf, shape) for leaf in ("scale", "bias")))
    with pytest.raises(ValueError, match=r"channels_first= must .*: norm.weight, norm.bias\."):
        from_torch(source, variables)
    for option, want in ((False, x), ("norm", np.moveaxis(x, 0, -1))):
        new = from_torch(source, variables, channels_first=option)
        np.testing.assert_array_equal(new["params"]["norm"]["scale"], want)
        np.testing.assert_array_equal(new["params"]["norm"]["bias"], want + 1)
        again = to_torch(new, source, channels_first=option)
        jax.tree.map(np.testing.assert_array_equal, again, source)
    one = template(*(("params", "norm", leaf, (1, 1)) for leaf in ("scale", "bias")))
    from_torch({"norm.weight": np.ones((1, 1)), "norm.bias": np.ones((1, 1))}, one)


# torch's name, ours, and the kernel: something speaks for a transposed convolution.
DOUBTFUL = {
    "no name": ("weight", (), (4, 4, 3, 3)),
    "a name of theirs": ("up1.0.weight", ("layers_0",), (4, 4, 3, 3)),
    "a name of ours": ("block.3.weight", ("ConvTranspose_0",), (4, 4, 3)),
    "a number for a name": ("2.weight", ("layers_2",), (4, 4, 1, 1)),
    "an even size": ("decoder.weight", ("decoder",), (4, 4, 2, 4)),
    "no other way": ("conv.weight", ("conv",), (4, 6, 3, 3)),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_names_alone_do_not_tell_a_transposed_convolution(kind):
    name, path, shape = DOUBTFUL[kind]
    source = {name: draw(np.random.default_rng(22), *shape)}
    layer, rename = name.rpartition(".")[0], lambda _: "/".join(path)
    transposed = template(("params", *path, "kernel", (*shape[2:], shape[0], shape[1])))
    with pytest.raises(ValueError, match=rf"transposed= must \(False for none\): {name}\."):
        from_torch(source, transposed, rename)
    new = from_torch(source, transposed, rename, transposed=layer)
    (kernel,) = jax.tree.leaves(new)
    space = tuple(range(len(shape) - 2))
    want = np.flip(np.moveaxis(source[name], (0, 1), (-2, -1)), space)
    np.testing.assert_array_equal(kernel, want)
    if shape[0] == shape[1]:
        new = from_torch(source, transposed, rename, transposed=False)
        (kernel,) = jax.tree.leaves(new)
        np.testing.assert_array_equal(kernel, np.moveaxis(source[name], (1, 0), (-2, -1)))


def test_ordinary_convolutions_of_equal_channels_are_not_asked_for():
    names = {"layer1.0.conv1": 3, "features.5": 3, "update": 3, "layer2.0.downsample.0": 1}
    names |= {"conv": 2, "c1": 4}
    rng = np.random.default_rng(23)
    source = {f"{name}.weight": draw(rng, 4, 4, n, n) for name, n in names.items()}
    leaves = [("params", *name.split("."), "kernel", (n, n, 4, 4)) for name, n in names.items()]
    new = from_torch(source, template(*leaves))
    np.testing.assert_array_equal(
        new["params"]["features"]["5"]["kernel"],
        source["features.5.weight"].transpose(2, 3, 1, 0),
    )
    numbered = template(("params", "Conv_0", "kernel", (2, 2, 4, 4)))
    from_torch({"0.weight": draw(rng, 4, 4, 2, 2)}, numbered, [("0", "Conv_0")])
    # One that can only be transposed casts doubt on the others.
    source["decoder.0.weight"] = draw(rng, 4, 6, 3, 3)
    leaves.append(("params", "decoder", "0", "kernel", (3, 3, 4, 6)))
    with pytest.raises(ValueError, match=r"decoder\.0\.weight, perhaps 6 more of equal sizes"):
        from_torch(source, template(*leaves))
    from_torch(source, template(*leaves), transposed="decoder")


def test_leaves_that_are_left_out_must_have_values():
    source = {"body.weight": np.ones((3, 2)), "fc.weight": np.ones((10, 3))}
    variables = template(("params", "body", "kernel", (2, 3)), ("params", "head", "kernel", (3, 5)))
    with pytest.raises(ValueError, match=r"no values at params/head/kernel.*model.init\(key, x\)"):
        from_torch(source, variables, ignore=r"^fc\.|/head/")
    head = {"kernel": np.full((3, 5), 7.0)}
    variables["params"]["head"] = head
    new = from_torch(source, variables, ignore=r"^fc\.|/head/")
    assert new["params"]["head"]["kernel"] is head["kernel"]
    with pytest.raises(ValueError, match="variables have no values at params/body/kernel"):
        to_torch(variables, source, ignore=r"^fc\.|/head/")


def test_a_left_out_leaf_of_an_abstract_nnx_state_must_have_a_value():
    state = nnx.state(nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match="variables have no values at params/bias"):
        from_torch({"weight": np.ones((3, 2))}, state, ignore="bias")


def test_leaves_that_are_carried_along_must_have_values():
    # A model of jax.eval_shape has no random streams either: it fails in its first dropout.
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.fc, self.drop = nnx.Linear(2, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    source = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)}
    with pytest.raises(ValueError, match=r"RngCount/drop/.*may be without RngCount, RngKey\)"):
        from_torch(source, nnx.state(abstract))
    new = from_torch(source, nnx.state(abstract, nnx.Param))
    np.testing.assert_array_equal(new["fc"]["kernel"][...], 1)
    from_torch(source, nnx.state(Net(nnx.Rngs(0))))


def test_the_head_for_other_classes_is_left_out_as_the_error_says():
    rng = np.random.default_rng(26)
    source = {"body.weight": draw(rng, 3, 2), "fc.1.weight": draw(rng, 9, 3), "fc2": np.ones(1)}
    variables = {
        "params": {
            "body": {"kernel": np.zeros((2, 3))},
            "fc": {"1": {"kernel": np.full((3, 5), 7.0)}},
            "fc2": np.zeros(1),
        }
    }
    with pytest.raises(ValueError, match="layer that is to be new") as error:
        from_torch(source, variables)
    pattern = str(error.value).rpartition("ignore=r'")[2].removesuffix("'.")
    new = from_torch(source, variables, ignore=pattern)["params"]
    np.testing.assert_array_equal(new["fc"]["1"]["kernel"], 7)
    np.testing.assert_array_equal(new["body"]["kernel"], source["body.weight"].T)
    np.testing.assert_array_equal(new["fc2"], 1)


def test_shapes_that_differ_throughout_are_no_new_heads():
    source = {f"{i}.weight": np.ones((3, 2)) for i in range(4)}
    leaves = [("params", str(i), "kernel", (2, 4)) for i in range(4)]
    with pytest.raises(ValueError, match=r"shapes that differ") as error:
        from_torch(source, template(*leaves))
    assert "new" not in str(error.value)


def test_collections_that_were_not_passed_are_named_once():
    source = batch_norm(np.random.default_rng(27), "bn", 3)
    params = {"bn": {"scale": np.ones(3), "bias": np.ones(3)}}
    with pytest.raises(ValueError, match=r"lack: batch_stats \(for 2 names of torch\)") as error:
        from_torch(source, {"params": params})
    assert "running_mean" not in str(error.value)
    with pytest.raises(TypeError, match=r"by collection .*got bn, fc at the top"):
        from_torch(source, {**params, "fc": {"kernel": np.ones((2, 2))}})


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("stem.", "a."),
        [lambda name: name.replace("stem.", "b."), ("^b", "a")],
        [(r"^(\w+)\.", lambda found: {"stem": "a."}[found[1]])],
    ],
)
def test_functions_rename_layers(rename):
    source = {"stem.fc.weight": draw(np.random.default_rng(24), 3, 2)}
    variables = template(("params", "a", "fc", "kernel", (2, 3)))
    new = from_torch(source, variables, rename)
    np.testing.assert_array_equal(new["params"]["a"]["fc"]["kernel"], source["stem.fc.weight"].T)
    again = to_torch(new, source, rename)
    np.testing.assert_array_equal(again["stem.fc.weight"], source["stem.fc.weight"])


# https://github.com/ultralytics/yolov5/issues/459
@pytest.mark.parametrize("old", [jax.ShapeDtypeStruct((), jnp.int32), jnp.array(7)])
def test_yolov5_459_statistics_without_a_counter_have_a_count_of_zero(old):
    # Of old files and of frozen norms; the count of the template says nothing about them.
    source = batch_norm(np.random.default_rng(25), "bn", 3)
    variables = template(*norm_template("bn", features=3, count=True))
    variables["batch_stats"]["bn"]["count"] = old
    new = from_torch(source, variables)["batch_stats"]["bn"]
    assert isinstance(new["count"], jax.Array) and new["count"].dtype == jnp.int32
    assert new["count"] == 0
    np.testing.assert_array_equal(new["var"], source["bn.running_var"])
    full = from_torch(source, variables)
    again = to_torch(full, source)
    jax.tree.map(np.testing.assert_array_equal, again, source)
    # Without statistics there is nothing that it counts.
    with pytest.raises(ValueError, match=r"batch_stats/bn/mean, batch_stats/bn/var, .*bn/count"):
        from_torch({k: x for k, x in source.items() if "running" not in k}, variables)


def test_what_is_left_out_is_left_out_on_purpose():
    rng = np.random.default_rng(4)
    source = {"body.weight": draw(rng, 3, 2), "fc.weight": draw(rng, 10, 3)}
    variables = {
        "params": {"body": {"kernel": np.zeros((2, 3))}, "head": {"kernel": np.full((3, 5), 7.0)}}
    }
    new = from_torch(source, variables, ignore=r"^fc\.|/head/")
    np.testing.assert_array_equal(new["params"]["body"]["kernel"], source["body.weight"].T)
    assert new["params"]["head"]["kernel"] is variables["params"]["head"]["kernel"]
    back = to_torch(variables, source, ignore=r"^fc\.|/head/")
    np.testing.assert_array_equal(back["body.weight"], 0)
    assert back["fc.weight"] is source["fc.weight"]
    with pytest.raises(ValueError, match="ignore='typo' is found in no layer"):
        from_torch(source, variables, ignore="typo")


@pytest.mark.parametrize("pattern", [r"^fc\.", "params/fc"])
def test_one_side_of_a_pair_is_enough_to_leave_it_out(pattern):
    old = {"params": {"fc": {"kernel": np.full((3, 5), 7.0)}}}
    new = from_torch({"fc.weight": np.ones((10, 3))}, old, ignore=pattern)
    np.testing.assert_array_equal(new["params"]["fc"]["kernel"], 7)


@pytest.mark.parametrize(
    ("value", "dtype", "fault"),
    [
        (np.float32(1e6), jnp.float16, "1 of 2 infinite in float16"),
        (np.float64(1e300), jnp.float32, "1 of 2 infinite in float32"),
        (np.int64(2**40), jnp.int32, "1 of 2 not the same in int32"),
        (np.float32(1.5), jnp.int32, "1 of 2 not the same in int32"),
        (np.complex64(1j), jnp.float32, "complex does not fit into float32"),
    ],
)
def test_values_that_the_dtype_cannot_hold_are_refused(value, dtype, fault):
    source = {"a.bias": np.array([value, 0]), "b.bias": np.ones(2, np.float32)}
    struct = {"bias": jax.ShapeDtypeStruct((2,), dtype)}
    with pytest.raises(ValueError, match=f"a.bias: {fault}. Give the target"):
        from_torch(source, {"params": {"a": struct, "b": struct}})


def test_narrow_dtypes_are_kept_and_rounding_is_no_fault():
    x = np.array([1.0, 1 + 2**-7, -np.inf], ml_dtypes.bfloat16)
    variables = {"params": {"bias": jax.ShapeDtypeStruct((3,), jnp.bfloat16)}}
    new = from_torch({"bias": x}, variables)
    assert new["params"]["bias"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(new["params"]["bias"]), x)
    back = to_torch(new, {"bias": x})["bias"]
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)
    from_torch({"bias": np.full(3, 0.1)}, variables)


@pytest.mark.parametrize(
    ("arguments", "error", "fault"),
    [
        ({"source": {"epoch": 3}}, TypeError, r"got int under 'epoch'.*checkpoint\['state_dict'\]"),
        ({"source": "model.pt"}, TypeError, r"got str. A file is read by load_torch"),
        ({"rename": ("bn", "norm")}, ValueError, r"rename must be pairs .*got 'bn' in it"),
        ({"rename": [("a", "b", "c")]}, ValueError, r"rename must be pairs"),
        (
            {"variables": {"params": {"bias": "zeros"}}},
            TypeError,
            r"variables must hold arrays or jax.ShapeDtypeStruct, got str at params/bias",
        ),
        (
            {"source": {"bias": jax.ShapeDtypeStruct((2,), jnp.float32)}},
            ValueError,
            "torch has no values at bias, only shapes",
        ),
        ({"rename": lambda name: None}, TypeError, "function in rename must .*got NoneType for ''"),
        ({"transposed": True}, TypeError, "transposed must be a regular expression, got True"),
        ({"transposed": "conv"}, ValueError, r"transposed='conv' is found in no layer"),
        ({"flattened": {"fc": (1, 1, 1)}}, ValueError, r"flattened='fc' is found in no layer"),
    ],
)
def test_illegal_arguments(arguments, error, fault):
    legal = {"source": {"bias": np.ones(2)}, "variables": {"params": {"bias": np.ones(2)}}}
    with pytest.raises(error, match=fault):
        from_torch(**(legal | arguments))


# torch's leaf, ours, and our axes by torch's.
LAYERS = {
    "linear": ("weight", "kernel", (1, 0)),
    "table": ("weight", "embedding", (0, 1)),
    "conv1": ("weight", "kernel", (2, 1, 0)),
    "conv2": ("weight", "kernel", (2, 3, 1, 0)),
    "conv3": ("weight", "kernel", (2, 3, 4, 1, 0)),
    "deconv": ("weight", "kernel", (2, 3, 0, 1)),
    "token": ("token", "token", (0, 1, 2)),
}


@st.composite
def models(draw):
    """A ``state_dict``, a template for it, and the options they need."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.sets(st.sampled_from(sorted(LAYERS)), min_size=1))
    source, leaves = {}, []
    for kind in sorted(kinds):
        leaf, ours, order = LAYERS[kind]
        shape = rng.integers(1, 5, len(order))
        source[f"{kind}.0.{leaf}"] = rng.normal(size=shape).astype(np.float32)
        leaves.append(("params", kind, "0", ours, tuple(shape[list(order)])))
    for i in range(draw(st.integers(0, 2))):
        features, count = draw(st.integers(1, 4)), draw(st.booleans())
        source |= batch_norm(rng, f"bn.{i}", features, count=draw(st.integers(0, 9)))
        leaves += norm_template("bn", str(i), features=features, count=count)
    return source, template(*leaves), {"transposed": "deconv"} if "deconv" in kinds else {}


@given(models())
def test_round_trip_of_random_models(model):
    source, variables, options = model
    new = from_torch(source, variables, **options)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(lambda x: x.shape, variables)
    again = to_torch(new, source, **options)
    assert list(again) == list(source)
    jax.tree.map(np.testing.assert_array_equal, again, source)
    assert all(again[name].dtype == source[name].dtype for name in source)


@given(st.lists(st.integers(1, 4), min_size=4, max_size=4), st.integers(0, 2**32 - 1))
def test_round_trip_of_a_flattened_map(shape, seed):
    out, *channels_first = shape
    source = {"weight": draw(np.random.default_rng(seed), out, np.prod(channels_first))}
    options = {"flattened": {"": tuple(channels_first)}}
    struct = jax.ShapeDtypeStruct(source["weight"].shape[::-1], jnp.float32)
    new = from_torch(source, {"params": {"kernel": struct}}, **options)
    again = to_torch(new, source, **options)
    np.testing.assert_array_equal(again["weight"], source["weight"])


def test_the_template_is_what_the_model_says_and_the_result_runs_in_it():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return BatchNorm(use_running_average=True, name="bn")(nn.Dense(4, name="fc")(x))

    rng = np.random.default_rng(5)
    source = {"fc.weight": draw(rng, 4, 3), "fc.bias": draw(rng, 4)}
    source |= batch_norm(rng, "bn", 4, count=9)
    x = draw(rng, 6, 3)
    variables = from_torch(source, jax.eval_shape(Net().init, jax.random.key(0), x))
    hidden = x.astype(float) @ source["fc.weight"].T + source["fc.bias"]
    x_hat = (hidden - source["bn.running_mean"]) / np.sqrt(source["bn.running_var"] + 1e-5)
    want = x_hat * source["bn.weight"] + source["bn.bias"]
    np.testing.assert_allclose(Net().apply(variables, x), want, rtol=1e-4, atol=1e-5)


def test_safetensors_are_read_without_torch(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    x = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    numpy.save_file({"bn.weight": x}, tmp_path / "w.safetensors")
    got = load_torch(tmp_path / "w.safetensors")["bn.weight"]
    assert got.dtype == x.dtype
    np.testing.assert_array_equal(got, x)
