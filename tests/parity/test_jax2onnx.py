"""Functions and whole models through jax2onnx: which nodes are written, and what they compute.

onnxruntime runs what was written, on two batch sizes where the batch was left open.
"""

import collections
import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax.interop import register_jax2onnx
from bnjax.surgery import drop_redundant_biases, fold, freeze, swap
from bnjax.testing import relative_error
from tests.surgery.networks import X, linen_network, nnx_network

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
# Of its own, of jax and of what else it imports.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def to_onnx():
    """jax2onnx.to_onnx, which does not keep to a strict promotion."""
    jax2onnx = pytest.importorskip("jax2onnx")
    register_jax2onnx()
    register_jax2onnx()

    def export(function, *shapes, **options):
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
            model = jax2onnx.to_onnx(function, list(shapes), **options)
        onnx.checker.check_model(model)
        return model

    return export


def run(model, x):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: np.asarray(x)})[0]


def operators(model):
    return dict(collections.Counter(node.op_type for node in model.graph.node))


def norms(model):
    return {name: n for name, n in operators(model).items() if "Normalization" in name}


def assert_alike(model, function, shape, dtype=np.float32, tolerance=1e-5):
    for batch in (2, 5) if "B" in shape else (None,):
        x = np.random.default_rng(0).normal(size=[batch if n == "B" else n for n in shape])
        x = x.astype(dtype)
        want, got = np.asarray(function(jnp.asarray(x))), run(model, x)
        assert got.dtype == want.dtype and got.shape == want.shape
        atol = tolerance * max(1, np.abs(want).max())
        np.testing.assert_allclose(got.astype(float), want.astype(float), rtol=0, atol=atol)


RNG = np.random.default_rng(1)
G, B, MEAN = RNG.normal(size=(3, 8)).astype(np.float32)
VAR = RNG.uniform(0.5, 2, 8).astype(np.float32)
STATS = bnjax.BatchStats(MEAN, VAR, np.ones((), np.int32))
TWO_AXES = jax.tree.map(lambda v: v.reshape(2, 4) if v.ndim else v, STATS)
BN, LN, RMS = "BatchNormalization", "LayerNormalization", "RMSNormalization"
IN, GN, T = "InstanceNormalization", "GroupNormalization", "Transpose"


def evaluate(x, scale=G, bias=B, stats=STATS, **options):
    return bnjax.batch_norm(x, scale, bias, stats, train=False, **options)[0]


def layer(x, **options):
    return bnjax.layer_norm(x, G, B, **options)


def grouped(x, **options):
    return bnjax.group_norm(x, G, B, num_groups=2, **options)


ONE_NODE = {
    "features last": (evaluate, ("B", 8), {BN: 1}),
    "NCHW": (lambda x: evaluate(x, axis=1), ("B", 8, 3, 4), {BN: 1}),
    "NHWC": (evaluate, ("B", 3, 4, 8), {BN: 1, T: 2}),
    "features first": (lambda x: evaluate(x, axis=0), (8, 5), {BN: 1, T: 2}),
    "no parameters": (lambda x: evaluate(x, None, None), ("B", 8), {BN: 1}),
    "no bias": (lambda x: evaluate(x, G, None), ("B", 8), {BN: 1}),
    "under jit": (jax.jit(evaluate), ("B", 8), {BN: 1}),
    "under vmap": (jax.vmap(evaluate), ("B", 3, 4, 8), {BN: 1, T: 2}),
    "renorm": (lambda x: bnjax.batch_renorm(x, G, B, STATS, train=False)[0], ("B", 8), {BN: 1}),
    "normalize": (lambda x: bnjax.normalize(x, MEAN, VAR), ("B", 8), {BN: 1}),
    "layer": (layer, ("B", 5, 8), {LN: 1}),
    "layer, no parameters": (lambda x: bnjax.layer_norm(x, None, None), ("B", 8), {LN: 1}),
    "layer, bias": (lambda x: bnjax.layer_norm(x, None, B), ("B", 8), {LN: 1}),
    "layer, axis 1": (lambda x: layer(x, axes=1), ("B", 8, 5), {LN: 1, T: 2}),
    "layer, vmap": (jax.vmap(jax.vmap(layer)), ("B", 5, 8), {LN: 1}),
    "layer, vmap of axis 1": (jax.vmap(layer, 1, 1), (8, 5), {LN: 1, T: 2}),
    "RMS": (lambda x: bnjax.rms_norm(x, G), ("B", 5, 8), {RMS: 1}),
    "instance": (lambda x: bnjax.instance_norm(x, G, B), ("B", 5, 8), {IN: 1, T: 2}),
    "instance, NCHW": (
        lambda x: bnjax.instance_norm(x, None, B, axis=1),
        ("B", 8, 3, 4),
        {IN: 1},
    ),
    "group": (grouped, ("B", 3, 4, 8), {GN: 1, T: 2}),
    "group, NCHW": (lambda x: grouped(x, axis=1), ("B", 8, 3, 4), {GN: 1}),
    "group, vmap": (jax.vmap(lambda x: grouped(x, axes=(0, 1))), ("B", 5, 8), {GN: 1, T: 2}),
}


@pytest.mark.parametrize("case", ONE_NODE)
def test_a_norm_is_one_node(to_onnx, case):
    function, shape, want = ONE_NODE[case]
    model = to_onnx(function, shape)
    assert operators(model) == want
    assert_alike(model, function, shape)


AND_MORE = {
    "RMS with bias": (lambda x: bnjax.rms_norm(x, G, B), ("B", 8), RMS),
    "parameters of one axis": (lambda x: layer(x, axes=(1, 2), param_axes=2), ("B", 5, 8), LN),
    "scalar scale": (lambda x: bnjax.layer_norm(x, jnp.float32(2), B), ("B", 8), LN),
    "groups of channels alone": (grouped, ("B", 8), LN),
    "examples on two axes": (
        jax.vmap(lambda x: bnjax.instance_norm(x, G, B)),
        ("B", 2, 5, 8),
        LN,
    ),
}


@pytest.mark.parametrize("case", AND_MORE)
def test_or_one_and_elementary_operators(to_onnx, case):
    function, shape, want = AND_MORE[case]
    model = to_onnx(function, shape)
    assert norms(model) == {want: 1}
    assert_alike(model, function, shape)


W = RNG.normal(size=(8, 3)).astype(np.float32)
SPECTRAL = bnjax.init_spectral_norm(jax.random.key(0), W.shape)
SEEN = np.array([[True] * 7 + [False]])
SCALES = RNG.normal(size=(3, 8)).astype(np.float32)
ELEMENTARY = {
    "one example": (evaluate, (8,)),
    "two feature axes": (lambda x: evaluate(x, None, None, TWO_AXES, axis=(1, 2)), ("B", 2, 4)),
    "scalar scale": (lambda x: evaluate(x, jnp.float32(2)), ("B", 8)),
    "NaN if unseen": (lambda x: evaluate(x, unseen="nan"), ("B", 8)),
    "mask": (lambda x: evaluate(x, mask=SEEN), ("B", 8)),
    "training": (lambda x: bnjax.batch_norm(x, G, B, STATS, train=True)[0], ("B", 8)),
    "its statistics": (lambda x: bnjax.batch_norm(x, G, B, STATS, train=True)[1].var, ("B", 8)),
    "moments": (lambda x: bnjax.moments(x, 0).var(), ("B", 8)),
    "scale_shift": (lambda x: bnjax.scale_shift(x, G, B), ("B", 8)),
    "layer, mask": (lambda x: layer(x, mask=SEEN), ("B", 8)),
    "layer, a scale each": (
        lambda x: jax.vmap(lambda x, g: bnjax.layer_norm(x, g, B))(x, SCALES),
        (3, 8),
    ),
    "layer, devices": (
        lambda x: jax.vmap(lambda x: bnjax.layer_norm(x, G, B, axis_name="d"), axis_name="d")(x),
        (3, 8),
    ),
    "weight_norm": (lambda x: x @ bnjax.weight_norm(W, G[:3]), ("B", 8)),
    "weight_standardize": (lambda x: x @ bnjax.weight_standardize(W), ("B", 8)),
    "spectral_norm": (lambda x: x @ bnjax.spectral_norm(W, SPECTRAL, update=False)[0], ("B", 8)),
}


@pytest.mark.parametrize("case", ELEMENTARY)
def test_what_has_no_node_is_written_too(to_onnx, case):
    function, shape = ELEMENTARY[case]
    model = to_onnx(function, shape)
    assert norms(model) == {}
    assert_alike(model, function, shape)


@pytest.mark.parametrize(
    ("function", "shape", "first"),
    [
        (layer, ("B", 8), 17),
        (grouped, ("B", 5, 8), 21),
        (lambda x: bnjax.rms_norm(x, G), ("B", 8), 23),
    ],
)
def test_a_node_is_not_written_before_its_opset(to_onnx, function, shape, first):
    assert sum(norms(to_onnx(function, shape, opset=first)).values()) == 1
    older = to_onnx(function, shape, opset=first - 1)
    assert norms(older) == {}
    assert_alike(older, function, shape)


@pytest.mark.parametrize("function", [evaluate, layer])
def test_half_precision_is_computed_in_float32(to_onnx, function):
    model = to_onnx(function, jax.ShapeDtypeStruct(("B", 8), jnp.float16))
    assert operators(model).pop("Cast") == 2 and sum(norms(model).values()) == 1
    assert_alike(model, function, ("B", 8), np.float16, 1e-3)


def test_of_double_precision_batch_norm_alone_has_a_node(to_onnx):
    x = RNG.normal(size=(3, 8))
    for function, want in ((evaluate, {BN: 1}), (layer, {})):
        model = to_onnx(function, ("B", 8), enable_double_precision=True)
        assert norms(model) == want
        with jax.enable_x64(True):
            y = function(jnp.asarray(x))
        assert y.dtype == np.float64
        np.testing.assert_allclose(run(model, x), y, atol=1e-12)


def test_decomposed_it_is_as_accurate_as_here(to_onnx):
    x = (RNG.normal(size=(64, 32)) + 1e4).astype(np.float32)
    wide = x.astype(float)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    model = to_onnx(lambda x: bnjax.layer_norm(x, None, None), x.shape)
    decomposed = to_onnx(
        lambda x: bnjax.layer_norm(x, None, None), x.shape, normalization_mode="force_decomposed"
    )
    assert norms(model) == {LN: 1} and norms(decomposed) == {}
    assert relative_error(run(decomposed, x), want) < 1e-6
    assert relative_error(run(model, x), want) < 1e-3


def test_bnjax_computes_as_before(to_onnx):
    """Nothing that was traced for ONNX is left where JAX would find it."""

    def values(x):
        yield evaluate(x)
        yield layer(x)
        yield grouped(x)
        yield bnjax.normalize(x, MEAN, VAR)
        yield bnjax.weight_norm(x, G)
        yield from bnjax.batch_norm(x, G, B, STATS, train=True)[1][:2]

    x = RNG.normal(size=(7, 8)).astype(np.float32)
    model = to_onnx(lambda x: sum(v.sum() for v in values(x)), x.shape)
    after = [np.asarray(v) for v in values(x)]
    assert_alike(model, lambda x: sum(v.sum() for v in values(x)), x.shape)
    jax.clear_caches()
    for got, want in zip(after, values(x), strict=True):
        np.testing.assert_array_equal(got, want)


NORMS = {
    "BatchNorm": BN,
    "BatchRenorm": BN,
    "LayerNorm": LN,
    "RMSNorm": RMS,
    "InstanceNorm": IN,
    "GroupNorm": GN,
}


def options_of(name):
    return {"use_running_average": True} if name.startswith("Batch") else {}


def randomized(variables):
    """All variables between 1/2 and 3/2, so that no scale is 1 and no bias 0."""
    keys = iter(jax.random.split(jax.random.key(0), 100))
    return jax.tree.map(
        lambda v: (
            jax.random.uniform(next(keys), v.shape, v.dtype, 0.5, 1.5)
            if jnp.issubdtype(v.dtype, jnp.floating)
            else v + 1
        ),
        variables,
    )


class Convolutional(nn.Module):
    """conv - norm - relu - dense."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.norm(nn.Conv(32, (3, 3))(x)))
        return nn.Dense(5)(x.mean((1, 2)))


@pytest.mark.parametrize("name", NORMS)
def test_linen_modules(to_onnx, name):
    network = Convolutional(getattr(bnjax.linen, name)(**options_of(name)))
    variables = randomized(network.init(jax.random.key(0), X))

    def function(x):
        return network.apply(variables, x)

    model = to_onnx(function, ("B", 6, 6, 3))
    assert norms(model) == {NORMS[name]: 1}
    assert_alike(model, function, ("B", 6, 6, 3))


@pytest.mark.parametrize("name", NORMS)
def test_nnx_modules(to_onnx, name):
    rngs = nnx.Rngs(0)
    norm = getattr(bnjax.nnx, name)(32, rngs=rngs)
    network = nnx.Sequential(nnx.Conv(3, 32, (3, 3), rngs=rngs), norm, nnx.relu)
    nnx.update(network, randomized(nnx.state(network, (nnx.Param, nnx.BatchStat))))
    network.eval()
    model = to_onnx(network, ("B", 6, 6, 3))
    assert norms(model) == {NORMS[name]: 1}
    assert_alike(model, network, ("B", 6, 6, 3))


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_norms_of_weights_in_linen_and_nnx(to_onnx, name):
    mode = {"update_stats": False} if name == "SpectralNorm" else {}
    layer = getattr(bnjax.linen, name)(nn.Dense(4))
    variables = layer.init(jax.random.key(0), jnp.ones((1, 8)), **mode)
    rngs = nnx.Rngs(0)
    other = getattr(bnjax.nnx, name)(nnx.Linear(8, 4, rngs=rngs), rngs=rngs)
    for function in (lambda x: layer.apply(variables, x, **mode), lambda x: other(x, **mode)):
        assert_alike(to_onnx(function, ("B", 8)), function, ("B", 8))


class Transformer(nnx.Module):
    """A pre-norm block."""

    def __init__(self, norm, rngs):
        self.norms = nnx.List([norm(16, rngs=rngs), norm(16, rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(4)(bnjax.linen.LayerNorm()(x))
        return x + nn.Dense(16)(nn.gelu(nn.Dense(32)(bnjax.linen.LayerNorm()(x))))


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_a_transformer_block(to_onnx, name):
    block = Transformer(getattr(bnjax.nnx, name), nnx.Rngs(0))
    model = to_onnx(block, ("B", 6, 16))
    assert norms(model) == {NORMS[name]: 2}
    assert_alike(model, block, ("B", 6, 16))


def test_a_transformer_block_of_linen(to_onnx):
    block = LinenTransformer()
    variables = block.init(jax.random.key(0), jnp.ones((1, 6, 16)))
    model = to_onnx(lambda x: block.apply(variables, x), ("B", 6, 16))
    assert norms(model) == {LN: 2}
    assert_alike(model, lambda x: block.apply(variables, x), ("B", 6, 16))


def test_layers_under_scan(to_onnx):
    def function(x):
        return jax.lax.scan(lambda x, g: (bnjax.layer_norm(x, g, B), None), x, SCALES)[0]

    model = to_onnx(function, ("B", 8))
    (loop,) = model.graph.node
    assert [n.op_type for n in loop.attribute[0].g.node].count(LN) == 1
    assert_alike(model, function, ("B", 8))


IMAGES = ("B", 6, 6, 3)


@pytest.mark.parametrize("norm", [nn.BatchNorm, bnjax.linen.BatchNorm])
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_linen_resnet_altered(to_onnx, norm, use_bias):
    """Surgery intercepts the layers of linen, in whose place jax2onnx has shims."""
    network, variables = linen_network(norm, use_bias=use_bias)
    folded = fold(network, variables, X)
    swapped = swap(network, variables, bnjax.linen.GroupNorm, num_groups=2)
    without = drop_redundant_biases(network, variables, X)
    for after, want in (
        ((network, variables), {BN: 7}),
        ((without.model, without.variables), {BN: 7}),
        ((swapped.model, swapped.variables), {GN: 7}),
        ((folded.model, folded.variables), {}),
    ):
        assert_a_resnet(to_onnx, lambda x, after=after: after[0].apply(after[1], x), want)


def test_a_frozen_linen_resnet(to_onnx):
    network, variables = linen_network()
    frozen = freeze(variables)
    assert_a_resnet(to_onnx, lambda x: network.apply(frozen, x, train=True), {BN: 7})


def assert_a_resnet(to_onnx, function, want):
    model = to_onnx(function, IMAGES)
    assert norms(model) == want
    # No norm has added one.
    assert operators(model)["Conv"] == 7 and operators(model)["Transpose"] == 5
    assert_alike(model, function, IMAGES)


def test_a_frozen_and_a_folded_nnx_resnet(to_onnx):
    graph, variables = nnx_network()
    network, frozen = nnx.merge(graph, variables), freeze(nnx.merge(graph, variables))
    frozen.train()
    folded = fold(graph, variables, X)
    assert_a_resnet(to_onnx, network, {BN: 7})
    assert_a_resnet(to_onnx, frozen, {BN: 7})
    assert_a_resnet(to_onnx, nnx.merge(folded.model, folded.variables), {})
