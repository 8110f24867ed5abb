"""ONNX's normalisations against onnxruntime: the same node, the same numbers.

Where the runtime itself is inaccurate (data far from zero) both are compared with float64.
"""

import io
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnjax.interop import from_onnx, to_onnx
from bnjax.testing import relative_error

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")
ort = pytest.importorskip("onnxruntime")

from tests.interop import _onnx  # noqa: E402
from tests.interop._onnx import node  # noqa: E402
from tests.interop.test_onnx import VALUES  # noqa: E402

TOLERANCE = {"float32": 1e-6, "float16": 1.5e-3}
SHAPE = (2, 6, 3, 4)
ALIKE = [case for case in _onnx.CASES if not case.startswith("layer, ")]
BROADCAST = [case for case in _onnx.CASES if case.startswith("layer, ")]


def run(model, x):
    """The outputs of the model in onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    return session.run(None, {"x": x})


def bnjax_run(norm, x):
    """The same outputs, by bnjax."""
    y, variables = norm.apply(x)
    if not norm.options.get("train"):
        return [y]
    return [y, variables["batch_stats"]["mean"], variables["batch_stats"]["var"]]


def in_float64(norm, x):
    """``y`` by definition, of x of four axes."""
    options, wide = norm.options, np.asarray(x, np.float64)
    axes = {"batch_norm": (0, 2, 3), "instance_norm": (2, 3), "group_norm": (2, 3, 4)}
    axes = options["axes"] if "axes" in options else axes[norm.kind]
    if norm.kind == "group_norm":  # groups are runs of neighbouring channels
        wide = wide.reshape(len(x), options["num_groups"], -1, *x.shape[2:])
    mean = 0 if norm.kind == "rms_norm" else wide.mean(axes, keepdims=True)
    var = ((wide - mean) ** 2).mean(axes, keepdims=True)
    y = ((wide - mean) / np.sqrt(var + options["epsilon"])).reshape(x.shape)
    kept = (-3,) if "axis" in options else options.get("param_axes", axes)
    shape = [x.shape[a] if a in kept else 1 for a in range(-4, 0)]
    params = {
        k: np.asarray(v, np.float64).reshape(shape) for k, v in norm.variables["params"].items()
    }
    return y * params["scale"] + params.get("bias", 0)


def data(rng, shape, offset, dtype):
    return (rng.normal(size=shape) * 2 + offset).astype(dtype)


@settings(max_examples=20)
@given(
    st.sampled_from(ALIKE),
    st.sampled_from([SHAPE, (1, 6, 2, 5)]),
    st.sampled_from(list(TOLERANCE)),
    st.sampled_from([1e-5, 0.1]),
    st.sampled_from([0.0, 3.0]),
    st.integers(0, 99),
)
def test_onnxruntime_agrees(case, shape, dtype, epsilon, offset, seed):
    norm = _onnx.draw(case, shape, dtype, epsilon, seed)
    x = data(np.random.default_rng(seed), shape, offset, dtype)
    model = to_onnx(norm, shape, dtype)
    (read,) = from_onnx(model).values()
    for got, want in zip(bnjax_run(read, x), run(model, x), strict=True):
        assert got.dtype == want.dtype
        assert relative_error(got, want) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", BROADCAST)
def test_onnxruntime_broadcasts_parameters_alike(case):
    norm = _onnx.draw(case, SHAPE, "float32")
    x = data(np.random.default_rng(0), SHAPE, 1.0, "float32")
    (want,) = run(to_onnx(norm, SHAPE), x)
    assert relative_error(norm.apply(x)[0], want) < 1e-6
    assert relative_error(in_float64(norm, x), want) < 1e-6


@pytest.mark.parametrize("case", [case for case in ALIKE if case != "batch"])
def test_data_far_from_zero(case):
    # Measured on this data, onnxruntime 1.31 is off by 3e-4 (batch), 5e-4 (instance), 8e-4
    # (layer) and, as it takes E[x²] - E[x]², by 400 or NaN (group): float64 is the judge.
    norm = _onnx.draw(case, SHAPE, "float32")
    x = data(np.random.default_rng(0), SHAPE, 1e4, "float32")
    (read,) = from_onnx(to_onnx(norm, SHAPE)).values()
    assert relative_error(bnjax_run(read, x)[0], in_float64(norm, x)) < 5e-7


@pytest.mark.parametrize("case", ["batch", "batch, training", "layer", "group", "rms"])
def test_double_precision(case):
    norm = _onnx.draw(case, SHAPE, "float64", epsilon=0.25)  # float32 holds 1/4 exactly
    x = data(np.random.default_rng(0), SHAPE, 1.0, "float64")
    with jax.enable_x64(True):
        got = bnjax_run(norm, x)
    want = run(to_onnx(norm, SHAPE, "float64"), x)
    # stash_type: outside batch norm ONNX takes the statistics of doubles in float32.
    tolerance = 1e-13 if case.startswith("batch") else 1e-6
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < tolerance


def test_momentum_is_the_weight_of_the_old_value_and_the_variance_that_of_the_population():
    norm = _onnx.draw("batch, training", (2, 6), "float32")
    x = data(np.random.default_rng(0), (2, 6), 1.0, "float32")  # ddof 1 would double the variance
    old = norm.variables["batch_stats"]
    want = [0.75 * old["mean"] + 0.25 * x.mean(0), 0.75 * old["var"] + 0.25 * x.var(0)]
    model = to_onnx(norm, (2, 6))
    evaluator = reference.ReferenceEvaluator(model)
    for outputs in (run(model, x), evaluator.run(None, {"x": x}), bnjax_run(norm, x)):
        for got, expected in zip(outputs[1:], want, strict=True):
            assert relative_error(got, expected) < 1e-6


# As they are read, those no longer written among them; defaults are ONNX's wherever there are any.
# In training onnxruntime 1.31 writes the new mean over the old: no input may be there twice.
BATCH = ("p", "q", "m", "v")
NODES = [
    (7, node("BatchNormalization", *BATCH)),
    (9, node("BatchNormalization", *BATCH)),
    (14, node("BatchNormalization", *BATCH)),
    (14, node("BatchNormalization", *BATCH, outputs=["y", "mean", "var"], training_mode=1)),
    (6, node("InstanceNormalization", "p", "q")),
    (22, node("InstanceNormalization", "p", "q")),
    (17, node("LayerNormalization", "r", "r")),
    (17, node("LayerNormalization", "pqr", axis=1)),
    (18, node("GroupNormalization", "g", "g", num_groups=3)),
    (21, node("GroupNormalization", "p", "q", num_groups=3)),
    (23, node("RMSNormalization", "r")),
    (23, node("RMSNormalization", "pqr", axis=1)),
]


@pytest.mark.parametrize(("opset", "layer"), NODES)
def test_nodes_of_every_version(opset, layer):
    rng = np.random.default_rng(0)
    sizes = {"p": 6, "q": 6, "m": 6, "v": 6, "r": 4, "g": 3, "pqr": (6, 3, 4)}
    arrays = {k: rng.uniform(0.5, 1.5, n).astype(np.float32) for k, n in sizes.items()}
    arrays["v"] = arrays["v"] * np.float32(1e-5)
    x = (rng.normal(size=SHAPE) * 3e-3).astype(np.float32)  # of a variance close to epsilon
    ir_version = 4 if opset < 10 else 10
    model = _onnx.model(
        layer, arrays=arrays, shapes={"x": SHAPE}, opset=opset, ir_version=ir_version
    )
    (norm,) = from_onnx(model).values()
    assert norm.options["epsilon"] == 1e-5
    assert relative_error(bnjax_run(norm, x)[0], run(model, x)[0]) < 1e-6


def test_half_precision_with_parameters_in_float32():
    norm = _onnx.draw("batch, training", SHAPE, "float32")
    x = data(np.random.default_rng(0), SHAPE, 1.0, "float16")
    model = to_onnx(norm, SHAPE, "float16")
    for got, want in zip(bnjax_run(norm, x), run(model, x), strict=True):
        assert got.dtype == want.dtype
        assert relative_error(got, want) < TOLERANCE["float16"]


def test_a_model_exported_by_torch():
    torch = pytest.importorskip("torch")
    layers = [torch.nn.BatchNorm2d(6, momentum=0.25), torch.nn.InstanceNorm2d(6, affine=True)]
    model = torch.nn.Sequential(*layers, torch.nn.GroupNorm(2, 6), torch.nn.LayerNorm((3, 4)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5)
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # that this exporter is the older one
        torch.onnx.export(
            model.train(),
            (torch.zeros(SHAPE),),
            file,
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
        )
    norms = from_onnx(onnx.load_from_string(file.getvalue()))
    # torch writes group norm as an instance norm of the groups, scaled by nodes of its own.
    kinds = ["batch_norm", "instance_norm", "instance_norm", "layer_norm"]
    assert [norm.kind for norm in norms.values()] == kinds
    batch, instance, groups, layer = norms.values()
    assert batch.options["decay"] == 0.75 and batch.options["train"]
    assert groups.variables["params"]["scale"].tolist() == [1, 1]
    assert layer.options["axes"] == (-2, -1)
    x = data(np.random.default_rng(0), SHAPE, 1.0, "float32")
    for norm, module in ((batch, model[0]), (instance, model[1]), (layer, model[3])):
        want = module(torch.from_numpy(x)).detach().numpy()
        assert relative_error(norm.apply(x)[0], want) < 1e-6


# github.com/fastmachinelearning/hls4ml/pull/979
@pytest.mark.parametrize("case", VALUES)
def test_hls4ml_979_arrays_that_nodes_compute(case):
    nodes, arrays = VALUES[case]
    layer = node("InstanceNormalization", "s", "s", name="in")
    model = _onnx.model(*nodes, layer, arrays=arrays, shapes={"x": (2, 2, 5)}, ir_version=10)
    x = data(np.random.default_rng(0), (2, 2, 5), 1.0, "float32")
    assert relative_error(bnjax_run(from_onnx(model)["in"], x)[0], run(model, x)[0]) < 1e-6
