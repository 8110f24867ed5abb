"""Fresh population statistics: exact under any split, by path, layer after layer, on devices."""

import ast
import functools
import os
import socket
import subprocess
import sys

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import bnjax.linen
import bnjax.nnx
from bnjax import _variables
from bnjax.surgery import fold, freeze
from bnjax.training import adapt, recalibrate
from bnjax.training._begin_update import closed, opened
from tests._quick import FLAGS

# Offsets make variances that a running average, or a mean of variances, would get wrong.
DATA = np.random.default_rng(0).normal(5, 2, (48, 6)).astype(np.float32)
DATA += 3 * np.sin(np.arange(48, dtype=np.float32))[:, None]


class Net(nn.Module):
    axis_name: str | None = None
    norm: type = bnjax.linen.BatchNorm

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = nn.Dense(5, name=f"dense{i}")(x)
            x = self.norm(True, axis_name=self.axis_name, name=f"norm{i}")(x)
            x = nn.relu(x)
        return x


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense = nnx.List([nnx.Linear(n, 5, rngs=rngs) for n in (6, 5, 5)])
        self.norm = nnx.List([bnjax.nnx.BatchNorm(5, rngs=rngs) for _ in range(3)])

    def __call__(self, x):
        for dense, norm in zip(self.dense, self.norm, strict=True):
            x = nnx.relu(norm(dense(x)))
        return x


VARIABLES = jax.jit(Net().init)(jax.random.key(0), DATA)


def reference(params, data, count=3):
    """Population statistics of every layer in float64, each normalised by those before."""
    x, stats = data.astype(np.float64), {}
    for i in range(count):
        dense = jax.tree.map(lambda v: np.asarray(v, np.float64), params[f"dense{i}"])
        x = x @ dense["kernel"] + dense["bias"]
        stats[f"norm{i}"] = {"mean": x.mean(0), "var": x.var(0)}
        x = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)
    return stats


def assert_close(stats, expected, rtol=2e-6):
    for name in expected:
        for leaf in ("mean", "var"):
            scale = np.sqrt(expected[name]["var"]) if leaf == "mean" else expected[name]["var"]
            error = np.abs(np.asarray(stats[name][leaf]) - expected[name][leaf]) / scale
            assert error.max() < rtol, (name, leaf, error.max())


def split(data, cuts):
    return [part for part in np.split(data, sorted(cuts)) if len(part)]


@hypothesis.given(cuts=st.sets(st.sampled_from([2, 8, 16, 24, 40]), max_size=4))
@hypothesis.settings(max_examples=8)
def test_layer_by_layer_is_exact_under_any_split(cuts):
    new = recalibrate(Net(), VARIABLES, split(DATA, cuts), layer_by_layer=True)
    assert_close(new["batch_stats"], reference(VARIABLES["params"], DATA))
    chex.assert_trees_all_equal(new["params"], VARIABLES["params"])


@pytest.mark.parametrize("cuts", [[], [2], [16, 40]])
def test_one_pass_is_exact_in_the_first_layer_and_as_in_training_behind(cuts):
    new = recalibrate(Net(), VARIABLES, split(DATA, cuts))["batch_stats"]
    expected = reference(VARIABLES["params"], DATA)
    assert_close({"norm0": new["norm0"]}, {"norm0": expected["norm0"]})
    if not cuts:
        assert_close(new, expected)
    else:  # normalised by other batches, the second layer has seen other data
        with pytest.raises(AssertionError):
            assert_close(new, expected, rtol=1e-3)


def test_chosen_layers_see_the_others_as_in_evaluation():
    stats = jax.tree.map(lambda v: v + 0.5, VARIABLES["batch_stats"])
    variables = VARIABLES | {"batch_stats": stats}
    new = recalibrate(Net(), variables, split(DATA, [16]), layers="norm1")["batch_stats"]
    chex.assert_trees_all_equal(new["norm0"], stats["norm0"])
    chex.assert_trees_all_equal(new["norm2"], stats["norm2"])
    dense = jax.tree.map(lambda v: np.asarray(v, np.float64), VARIABLES["params"])
    x = DATA.astype(np.float64) @ dense["dense0"]["kernel"]
    x = np.maximum((x - 0.5) / np.sqrt(1.5 + 1e-5), 0) @ dense["dense1"]["kernel"]
    assert_close(new, {"norm1": {"mean": x.mean(0), "var": x.var(0)}})


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_nnx_and_linen_agree(layer_by_layer):
    model = Nnx()
    graphdef, state = nnx.split(model)
    batches = split(DATA, [16, 40])
    new = recalibrate(graphdef, state, batches, layer_by_layer=layer_by_layer)
    params = {}
    for i in range(3):
        dense = model.dense[i]
        params[f"dense{i}"] = {"kernel": dense.kernel[...], "bias": dense.bias[...]}
        params[f"norm{i}"] = {"scale": jnp.ones(5), "bias": jnp.zeros(5)}
    linen = recalibrate(
        Net(), VARIABLES | {"params": params}, batches, layer_by_layer=layer_by_layer
    )
    for i in range(3):
        norm = new["norm"][i]
        mean, var = np.asarray(norm["mean"][...], np.float64), np.asarray(norm["var"][...], float)
        assert_close(linen["batch_stats"], {f"norm{i}": {"mean": mean, "var": var}}, 1e-5)
    np.testing.assert_array_equal(model.norm[0].mean[...], np.zeros(5))  # the model is untouched


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(bnjax.linen.BatchNorm(True, name="norm")(nn.Dense(6, name="dense")(x))), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0, "batch_moments": 0}
        scan = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
        return scan(name="blocks")(x, None)[0]


def test_layers_under_a_scan_are_settled_one_after_the_other():
    variables = Scanned().init(jax.random.key(0), DATA)
    new = recalibrate(Scanned(), variables, split(DATA, [16]), layer_by_layer=True)
    dense = variables["params"]["blocks"]["dense"]
    params = {f"dense{i}": jax.tree.map(lambda v, i=i: v[i], dense) for i in range(3)}
    norm = new["batch_stats"]["blocks"]["norm"]
    stats = {f"norm{i}": jax.tree.map(lambda v, i=i: v[i], norm) for i in range(3)}
    assert_close(stats, reference(params, DATA))


def mesh():
    return Mesh(np.array(jax.devices()[:4]), ("data",))


@pytest.mark.several_devices
@pytest.mark.parametrize("way", ["jit", "shard_map"])
def test_batches_over_devices_give_the_same(way):
    batches = split(DATA, [8, 32])
    if way == "jit":
        sharding = NamedSharding(mesh(), P("data"))
        batches = [jax.device_put(batch, sharding) for batch in batches]
        new = recalibrate(Net(), VARIABLES, batches, layer_by_layer=True)
    else:

        def transform(step):
            specs = (P(), P("data"))
            return jax.jit(jax.shard_map(step, mesh=mesh(), in_specs=specs, out_specs=P()))

        new = recalibrate(Net("data"), VARIABLES, batches, layer_by_layer=True, transform=transform)
    assert_close(new["batch_stats"], reference(VARIABLES["params"], DATA))


PROCESS = """
import sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from bnjax.training import recalibrate
from tests.training.test_recalibrate import DATA, Net, VARIABLES

sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
share = lambda part: np.split(part, 2)[jax.process_index()]
batches = [
    jax.make_array_from_process_local_data(sharding, share(DATA[part]))
    for part in (slice(0, 16), slice(16, 48))
]
variables = jax.tree.map(np.asarray, VARIABLES)  # every process has its own copy
stats = recalibrate(Net(), variables, batches, layer_by_layer=True)["batch_stats"]
print({n: {k: np.asarray(v).tolist() for k, v in stats[n].items()} for n in stats})
"""


def test_two_processes_give_the_same():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2" + FLAGS}
    flags["JAX_PLATFORMS"] = "cpu"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(rank)],
            env={**os.environ, **flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = []
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        found.append(ast.literal_eval(out.splitlines()[-1]))
    assert found[0] == found[1]
    assert_close(found[0], reference(VARIABLES["params"], DATA))


def test_a_pass_stops_when_nothing_changes_and_shows_progress():
    passes = []

    def progress(batches):
        passes.append(len(batches))
        return batches

    settled = recalibrate(Net(), VARIABLES, split(DATA, [24]), layer_by_layer=True)
    again = recalibrate(Net(), settled, split(DATA, [24]), layer_by_layer=True, progress=progress)
    chex.assert_trees_all_equal(again, settled)
    assert passes == [2]


@pytest.mark.parametrize("kind", ["linen", "nnx", "linen with a list in it"])
def test_the_same_call_again_compiles_nothing_anew(kind):
    traces = []

    def call(model, batch):
        traces.append(kind)
        return model(batch)

    if kind == "nnx":
        model, variables = nnx.split(Nnx())
    elif kind == "linen":
        model, variables = Net(), VARIABLES
    else:  # cannot be hashed, and so is compiled in every call, but runs
        model = nn.Sequential([bnjax.linen.BatchNorm(True)])
        variables = model.init(jax.random.key(0), DATA)
    first = recalibrate(model, variables, [DATA], call=call)
    seen = len(traces)
    again = recalibrate(model, first, [DATA + 1], call=call)
    assert (len(traces) == seen) == (kind != "linen with a list in it")
    np.testing.assert_raises(AssertionError, chex.assert_trees_all_close, first, again)
    others = recalibrate(model, variables, [DATA], call=call, layers="0|layers|norm")
    chex.assert_trees_all_equal(first, others)


def test_masks_count_and_hidden_features_keep_their_statistics():
    norm = bnjax.linen.BatchNorm(True, momentum=None)
    variables = norm.init(jax.random.key(0), DATA)
    mask = np.ones((48, 6), bool)
    mask[:, 2], mask[5:, 3] = False, False
    batches = [
        {"x": np.where(mask, DATA, np.nan)[part], "mask": mask[part]}
        for part in (slice(0, 30), slice(30, 48))
    ]
    call = lambda model, batch: model(batch["x"], mask=batch["mask"])  # noqa: E731
    stats = recalibrate(norm, variables, batches, call=call)["batch_stats"]
    for feature, rows in ((0, 48), (3, 5)):
        np.testing.assert_allclose(stats["mean"][feature], DATA[:rows, feature].mean(), rtol=1e-6)
        np.testing.assert_allclose(stats["var"][feature], DATA[:rows, feature].var(), rtol=1e-5)
    assert stats["mean"][2] == 0 and stats["var"][2] == 1 and stats["count"] == 2


@hypothesis.given(weight=st.floats(0, 1, width=32))
@hypothesis.settings(max_examples=5)
def test_adapt_goes_part_of_the_way(weight):
    fresh = fully_adapted()["batch_stats"]
    new = adapt(Net(), VARIABLES, [DATA], weight=weight)["batch_stats"]
    old = VARIABLES["batch_stats"]
    expected = jax.tree.map(lambda o, f: o + np.float32(weight) * (f - o), old, fresh)
    chex.assert_trees_all_close(new, expected, rtol=1e-6)


@functools.cache
def fully_adapted():
    return recalibrate(Net(), VARIABLES, [DATA])


def folded():
    outcome = fold(Net(), VARIABLES, DATA)
    return outcome.model, outcome.variables


BAD = np.where(np.arange(48)[:, None] == 3, np.float32(np.nan), DATA)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: recalibrate(Net(), VARIABLES, iter([])), ValueError, "batches is empty"),
        (
            lambda: recalibrate(Net(), VARIABLES, [DATA], layers="conv"),
            ValueError,
            r"layers='conv' is found in no layer.*norm0, norm1",
        ),
        (
            lambda: recalibrate(Net(), VARIABLES, iter([DATA]), layer_by_layer=True),
            TypeError,
            r"batches is a list_iterator.*gone through once",
        ),
        (
            lambda: recalibrate(Net(), VARIABLES, [DATA, BAD]),
            ValueError,
            "what reaches norm0, norm1, norm2 is not finite",
        ),
        (
            lambda: adapt(Net(), VARIABLES, [DATA], weight=1.5),
            ValueError,
            r"weight must be between 0 .* got 1\.5",
        ),
        (
            lambda: recalibrate(Net(norm=nn.BatchNorm), VARIABLES, [DATA]),
            ValueError,
            r"no data reach norm0, norm1, norm2.*bnjax's BatchNorm",
        ),
        (
            lambda: recalibrate(*folded(), [DATA]),
            ValueError,
            r"no batch norm in the model.*bnjax\.surgery\.fold.*before",
        ),
        (
            lambda: adapt(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), DATA), [DATA]),
            ValueError,
            "no batch norm in the model",
        ),
        (
            lambda: recalibrate(Net(), jax.eval_shape(Net().init, jax.random.key(0), DATA), [DATA]),
            ValueError,
            r"no values at batch_stats/norm0/mean, .* and 10 more, only shapes",
        ),
        (
            lambda: recalibrate(Nnx(), nnx.state(Nnx()), [DATA]),
            TypeError,
            r"what nnx\.split\(model\) returns, got Nnx and State",
        ),
        (lambda: recalibrate(Net(), nnx.state(Nnx()), [DATA]), TypeError, "got Net and State"),
    ],
)
def test_what_cannot_be_recalibrated_is_said(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_layer_of_flax_alone_is_told_what_to_use():
    graphdef, state = nnx.split(nnx.BatchNorm(6, rngs=nnx.Rngs(0)))
    with pytest.raises(
        TypeError,
        match=r"\(the model itself\) is a flax\.nnx\..*BatchNorm.*Use bnjax.nnx.BatchNorm",
    ):
        recalibrate(graphdef, state, [DATA])


# Home-made loaders refill one buffer for each batch, and JAX reads it asynchronously.
@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray])  # which may share the memory
@pytest.mark.parametrize("function", [recalibrate, adapt])
def test_a_loader_that_refills_one_buffer(function, wrap):
    data = np.random.default_rng(0).normal(size=(4, 50_000, 10)).astype(np.float32)
    data *= np.arange(1, 5, dtype=np.float32)[:, None, None]

    def loader():
        buffer = np.empty_like(data[0])
        for batch in data:
            buffer[:] = batch
            yield [{"x": wrap(buffer)}]

    norm = bnjax.linen.BatchNorm(True)
    variables = norm.init(jax.random.key(0), data[0])
    for _ in range(3):
        new = function(norm, variables, loader(), call=lambda model, batch: model(batch[0]["x"]))
        expected = data.reshape(-1, 10).var(0, dtype=float)
        np.testing.assert_allclose(new["batch_stats"]["var"], expected, rtol=1e-5)


NORMS = {
    "debiased": functools.partial(bnjax.linen.BatchNorm, True, debias=True),
    "averaged": functools.partial(bnjax.linen.BatchNorm, True, momentum=None),
    "renorm": functools.partial(bnjax.linen.BatchRenorm, True),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("axis", [0, 1])
def test_layers_under_a_scan_keep_a_count_each(norm, axis):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return norm()(2 * x + 1), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": axis, "batch_stats": 0}
            scan = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=2)
            return scan()(x, None)[0]

    variables = Stack().init(jax.random.key(0), DATA[:4])
    for options in ({}, {"layer_by_layer": True}):
        new = recalibrate(Stack(), variables, [DATA[:8], DATA[8:12]], **options)
        (stats,) = jax.tree.leaves(new["batch_stats"], is_leaf=lambda v: "count" in v)
        np.testing.assert_array_equal(stats["count"], [2, 2])
        np.testing.assert_allclose(stats["mean"][0], (2 * DATA[:12] + 1).mean(0), rtol=1e-5)
    adapt(Stack(), variables, [DATA[:8]], weight=0.5)


@pytest.mark.parametrize("renorm", [bnjax.linen.BatchRenorm, bnjax.nnx.BatchRenorm])
def test_batch_renorm_normalises_by_the_batch_meanwhile(renorm):
    def stats_of(cls):
        if cls.__module__.startswith("bnjax.nnx"):
            make = functools.partial(
                cls, DATA.shape[-1], use_running_average=True, rngs=nnx.Rngs(0)
            )
            graph, state = nnx.split(nnx.Sequential(*(make() for _ in range(2))))
            flat, _ = _variables.flatten(recalibrate(graph, state, [DATA]))
        else:
            model = nn.Sequential([cls(True), cls(True)])
            variables = model.init(jax.random.key(0), DATA)
            flat, _ = _variables.flatten(recalibrate(model, variables, [DATA]))
        return [v for path, v in flat.items() if path[-1] in ("mean", "var")]

    plain = (bnjax.nnx if "nnx" in renorm.__module__ else bnjax.linen).BatchNorm
    for got, want in zip(stats_of(renorm), stats_of(plain), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


# pytorch#70901: element counts kept in the dtype of half-precision statistics.
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_pytorch_70901_statistics_of_a_model_that_is_cast_whole(kind, dtype):
    data = [np.tile(np.float32([[3], [7]]), (35_000, 2))] * 2
    if kind == "linen":
        model = bnjax.linen.BatchNorm(True, debias=True)
        variables = model.init(jax.random.key(0), data[0])
    else:
        model, variables = nnx.split(bnjax.nnx.BatchNorm(2, debias=True, rngs=nnx.Rngs(0)))
    half = jax.tree.map(lambda v: v.astype(dtype), variables)
    for function, mean, var in ((recalibrate, 5, 4), (adapt, 2.5, 2.5)):
        new = function(model, half, data, **({} if mean == 5 else {"weight": 0.5}))
        stats = new["batch_stats"] if kind == "linen" else nnx.to_pure_dict(new)
        assert stats["var"].dtype == dtype and stats["count"] == 2
        np.testing.assert_array_equal(stats["mean"], mean)
        np.testing.assert_array_equal(stats["var"], var)


def test_statistics_that_half_precision_cannot_hold_are_told_from_bad_data():
    norm = bnjax.linen.BatchNorm(True)
    half = jax.tree.map(lambda v: v.astype(jnp.float16), norm.init(jax.random.key(0), DATA))
    with pytest.raises(ValueError, match=r"float16 cannot hold .* of \(the model itself\)"):
        recalibrate(norm, half, [DATA * 1000])


class Repeated(nn.Module):
    """Two layers, plain or within a lifted transformation that names batch_stats alone."""

    way: str

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        if self.way == "scan":
            lifted = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=2)
            return lifted(name="blocks")(x, None)[0]
        if self.way == "vmap":
            lifted = nn.vmap(
                Block, variable_axes=axes, split_rngs={"params": True}, in_axes=(0, None)
            )
            return lifted(name="blocks")(jnp.stack([x, x + 1]), None)[0]
        return nn.remat(nn.jit(Block))(name="blocks")(x, None)[0]


# flax#4760, #4061: layers under lifted transformations.
@pytest.mark.parametrize("way", ["scan", "vmap", "remat"])
def test_layers_under_lifted_transformations_need_no_collection_of_their_own(way):
    variables = Repeated(way).init(jax.random.key(0), DATA)
    new = recalibrate(Repeated(way), variables, split(DATA, [16]), layer_by_layer=True)
    dense = variables["params"]["blocks"]["dense"]
    norm = new["batch_stats"]["blocks"]["norm"]
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    if way == "remat":
        assert_close({"norm0": norm}, reference({"dense0": dense}, DATA, 1))
        return
    for i in range(2):
        params = {f"dense{k}": jax.tree.map(lambda v, k=k: v[k], dense) for k in range(2)}
        if way == "vmap":
            expected = reference({"dense0": params[f"dense{i}"]}, DATA + np.float32(i), 1)["norm0"]
        else:
            expected = reference(params, DATA, 2)[f"norm{i}"]
        assert_close({"norm": jax.tree.map(lambda v, i=i: v[i], norm)}, {"norm": expected})


class Stack(nnx.Module):
    def __init__(self):
        make = nnx.vmap(lambda key: bnjax.nnx.BatchNorm(6, rngs=nnx.Rngs(key)))
        self.norms = make(jax.random.split(jax.random.key(0), 2))

    def __call__(self, x):
        def step(norm, x):
            return 2 * norm(x) + x

        axes = nnx.StateAxes({(nnx.Param, nnx.BatchStat): 0, ...: None})
        return nnx.scan(step, in_axes=(axes, nnx.Carry), out_axes=nnx.Carry)(self.norms, x)


def test_nnx_layers_under_a_scan():
    graphdef, state = nnx.split(Stack())
    new = recalibrate(graphdef, state, split(DATA, [16]), layer_by_layer=True)
    mean, var = (np.asarray(new["norms"][n][...]) for n in ("mean", "var"))
    x = DATA.astype(np.float64)
    for i in range(2):
        assert_close(
            {"n": {"mean": mean[i], "var": var[i]}}, {"n": {"mean": x.mean(0), "var": x.var(0)}}
        )
        x = 2 * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + x


# keras#12470: what is frozen in a part of a model stays so.
@pytest.mark.parametrize("function", [recalibrate, functools.partial(adapt, weight=0.5)])
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_keras_12470_frozen_statistics_are_left_alone(kind, function):
    def frozen(layers, **options):
        if kind == "linen":
            return Net(), freeze(VARIABLES, layers, **options)
        return nnx.split(freeze(Nnx(), layers, **options))

    def means(variables):
        if kind == "linen":
            return [variables["batch_stats"][f"norm{i}"]["mean"] for i in range(3)]
        return [variables["norm"][i]["mean"][...] for i in range(3)]

    first = "norm0|norm/0"
    model, variables = frozen(first)
    new = function(model, variables, [DATA])
    assert jax.tree.structure(new) == jax.tree.structure(variables)
    np.testing.assert_array_equal(means(new)[0], 0)
    assert means(new)[1].any() and means(new)[2].any()
    with pytest.raises(ValueError, match=r"is found in layers whose .* frozen: norm/?0\. .*unfree"):
        function(model, variables, [DATA], layers=first)
    with pytest.raises(ValueError, match=r"all layers are those whose statistics are frozen: norm"):
        function(*frozen(""), [DATA])
    # Other switches hold other things.
    assert means(function(*frozen(first, statistics=False), [DATA]))[0].any()


def test_an_open_update_keeps_frozen_layers_frozen():
    held = freeze(VARIABLES, "norm0")["batch_stats"]
    inside = opened(held)
    for stats in (inside, closed(inside)):
        assert list(_variables.switches({"batch_stats": stats})) == [("norm0",)]
    chex.assert_trees_all_equal(closed(inside), held)
