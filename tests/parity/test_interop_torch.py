"""Weights to and from live PyTorch models: they compute and train on the same."""

import os
import pickle
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import bnjax.linen
import bnjax.nnx
from bnjax.interop import (
    batch_norm_options,
    check_batch_norms,
    from_torch,
    load_torch,
    to_torch,
)
from bnjax.linen import BatchNorm
from bnjax.testing import relative_error

torch = pytest.importorskip("torch")

from . import _resnet  # noqa: E402  (needs torch)


def randomized(module, seed=0):
    """The module with random parameters and running statistics."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, x in module.state_dict().items():
            if name.endswith("running_var"):
                new = rng.uniform(0.5, 2, x.shape)
            elif x.is_floating_point():
                # Kernels as large as keeps activations of order one.
                new = rng.normal(size=x.shape) / np.sqrt(max(1, x[0].numel()))
            else:
                new = rng.integers(1, 9, x.shape)
            x.copy_(torch.as_tensor(new))
    return module


def channels_first(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def channels_last(y):
    return np.moveaxis(y.detach().numpy(), 1, -1) if y.ndim > 2 else y.detach().numpy()


def template(layer, x):
    return jax.eval_shape(layer.init, jax.random.key(0), x)


t = torch.nn
# torch's layer, linen's, shape of the input with channels last, and options of from_torch.
SINGLE = {
    "linear": (lambda: t.Linear(6, 4), lambda: nn.Dense(4), (3, 6), {}),
    "conv1d": (
        lambda: t.Conv1d(6, 4, 3, 2, 1),
        lambda: nn.Conv(4, (3,), 2, 1),
        (2, 9, 6),
        {},
    ),
    "conv2d": (
        lambda: t.Conv2d(6, 4, (3, 2), 1, (1, 0), bias=False),
        lambda: nn.Conv(4, (3, 2), 1, [(1, 1), (0, 0)], use_bias=False),
        (2, 5, 7, 6),
        {},
    ),
    "conv3d": (
        lambda: t.Conv3d(2, 3, (1, 2, 3)),
        lambda: nn.Conv(3, (1, 2, 3), padding="VALID"),
        (2, 3, 4, 5, 2),
        {},
    ),
    "grouped": (
        lambda: t.Conv2d(6, 9, 3, groups=3),
        lambda: nn.Conv(9, (3, 3), padding="VALID", feature_group_count=3),
        (2, 5, 5, 6),
        {},
    ),
    # As many channels in as out, so that only the values tell a mistake in the axes.
    "transposed": (
        lambda: t.ConvTranspose2d(4, 4, (3, 2), 2),
        lambda: nn.ConvTranspose(4, (3, 2), (2, 2), "VALID"),
        (2, 3, 4, 4),
        {"transposed": ".*"},
    ),
    "transposed kernel": (
        lambda: t.ConvTranspose2d(4, 4, (3, 2), 2),
        lambda: nn.ConvTranspose(4, (3, 2), (2, 2), "VALID", transpose_kernel=True),
        (2, 3, 4, 4),
        {"transposed": False},
    ),
    "batch norm 1d": (
        lambda: t.BatchNorm1d(6, eps=1e-3),
        lambda: BatchNorm(use_running_average=True, epsilon=1e-3),
        (4, 6),
        {},
    ),
    "batch norm 2d": (
        lambda: t.BatchNorm2d(6, momentum=None),
        lambda: BatchNorm(use_running_average=True, momentum=None),
        (2, 3, 4, 6),
        {},
    ),
    "batch norm without scale": (
        lambda: t.BatchNorm2d(6, affine=False),
        lambda: BatchNorm(use_running_average=True, use_scale=False, use_bias=False),
        (2, 3, 4, 6),
        {},
    ),
    "group norm": (
        lambda: t.GroupNorm(3, 6),
        lambda: nn.GroupNorm(3, epsilon=1e-5),
        (2, 3, 4, 6),
        {},
    ),
    "layer norm": (lambda: t.LayerNorm(6), lambda: nn.LayerNorm(epsilon=1e-5), (4, 6), {}),
    # The type tells, with as many channels in as out.
    "transposed by type": (
        lambda: t.ConvTranspose2d(4, 4, 2, 2),
        lambda: nn.ConvTranspose(4, (2, 2), (2, 2), "VALID"),
        (2, 3, 4, 4),
        {},
    ),
    "transposed in one axis by type": (
        lambda: t.ConvTranspose1d(4, 4, 3, 2, bias=False),
        lambda: nn.ConvTranspose(4, (3,), (2,), "VALID", use_bias=False),
        (2, 5, 4),
        {},
    ),
    "transposed kernel by shape": (
        lambda: t.ConvTranspose2d(4, 6, (3, 2), 2),
        lambda: nn.ConvTranspose(6, (3, 2), (2, 2), "VALID", transpose_kernel=True),
        (2, 3, 4, 4),
        {},
    ),
    "layer norm of a map": (
        lambda: t.LayerNorm([6, 5, 4]),
        lambda: nn.LayerNorm(1e-5, reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3)),
        (2, 5, 4, 6),
        {},
    ),
    "layer norm of a square map": (
        lambda: t.LayerNorm([4, 4, 4], bias=False),
        lambda: bnjax.linen.LayerNorm(
            1e-5, reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3), use_bias=False
        ),
        (2, 4, 4, 4),
        {"channels_first": ".*"},
    ),
    "layer norm of a map without parameters": (
        lambda: t.LayerNorm([6, 5, 4], elementwise_affine=False),
        lambda: nn.LayerNorm(1e-5, reduction_axes=(1, 2, 3), use_scale=False, use_bias=False),
        (2, 5, 4, 6),
        {},
    ),
    "rms norm of a map": (
        lambda: t.RMSNorm([6, 5, 4], eps=1e-6),
        lambda: nn.RMSNorm(1e-6, reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3)),
        (2, 5, 4, 6),
        {},
    ),
}


@pytest.mark.parametrize("kind", SINGLE)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_one_layer_computes_the_same_and_goes_back(kind, seed):
    make, make_ours, shape, options = SINGLE[kind]
    theirs, ours = randomized(make(), seed).eval(), make_ours()
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    variables = from_torch(theirs, template(ours, x), **options)
    want = channels_last(theirs(channels_first(x)))
    assert relative_error(ours.apply(variables, x), want) < 1e-5
    back = to_torch(variables, make(), **options)
    for name, tensor in theirs.state_dict().items():
        if name != "num_batches_tracked" or kind == "batch norm 2d":
            assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    make().load_state_dict(back)


# coreai-torch PR#55
def test_coreai_torch_pr55_a_layer_norm_over_a_sequence_keeps_its_axes():
    theirs, x = randomized(t.LayerNorm([5, 4])), np.random.default_rng(0).normal(size=(2, 5, 4))
    x = x.astype(np.float32)
    ours = nn.LayerNorm(1e-5, reduction_axes=(1, 2), feature_axes=(1, 2))
    variables = from_torch(theirs, template(ours, x))
    want = theirs(torch.from_numpy(x)).detach().numpy()
    assert relative_error(ours.apply(variables, x), want) < 1e-5


def test_types_of_a_module_settle_what_names_do_not():
    theirs = t.Sequential(t.Conv2d(4, 4, 2), t.ConvTranspose2d(4, 4, 2, 2), t.Conv2d(4, 4, 2))
    randomized(theirs)
    conv = {"features": 4, "kernel_size": (2, 2), "padding": "VALID"}
    ours = nn.Sequential(
        [nn.Conv(**conv), nn.ConvTranspose(**conv, strides=(2, 2)), nn.Conv(**conv)]
    )
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 4)).astype(np.float32)
    rename = [("^", "layers_")]
    want = channels_last(theirs(channels_first(x)))
    for options in ({}, {"transposed": ".*"}):  # which is found among the transposed ones alone
        variables = from_torch(theirs, template(ours, x), rename, **options)
        assert relative_error(ours.apply(variables, x), want) < 1e-5
        back = to_torch(variables, theirs, rename, **options)
        assert all(torch.equal(back[k], v) for k, v in theirs.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(theirs)
    scripted = from_torch(script, template(ours, x), rename)
    assert relative_error(ours.apply(scripted, x), want) < 1e-5
    with pytest.raises(ValueError, match=r"transposed= must \(False for none\): 0.weight, 1.wei"):
        from_torch(theirs.state_dict(), template(ours, x), rename)
    with pytest.raises(ValueError, match=r"transposed='0' is found in no layer.*layers are 1\."):
        from_torch(theirs, template(ours, x), rename, transposed="0")


class Attention(t.Module):
    """As in Swin and in GPT-2: constants in buffers beside parameters."""

    def __init__(self):
        super().__init__()
        self.qkv = t.Linear(4, 4)
        self.register_buffer("relative_position_index", torch.arange(9).view(3, 3))
        self.register_buffer("attn_mask", torch.full((3, 3), -100.0))
        self.register_buffer("bias", torch.tril(torch.ones(3, 3)).view(1, 1, 3, 3))
        self.register_buffer("masked_bias", torch.tensor(-1e4))
        self.register_buffer("table", torch.arange(3.0))


class Embeddings(t.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("position_ids", torch.arange(5)[None])
        self.attention, self.norm = Attention(), t.BatchNorm1d(4)


def test_constant_buffers_of_a_module_are_left_out():
    theirs = Embeddings()
    stats = {"mean": np.zeros(4), "var": np.ones(4)}
    dense = {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)}
    norm = {"scale": np.zeros(4), "bias": np.zeros(4)}
    # What the model does hold as a parameter is no constant to it.
    params = {"attention": {"qkv": dense, "table": np.zeros(3)}, "norm": norm}
    variables = {"params": params, "batch_stats": {"norm": stats}}
    new = from_torch(theirs, variables)
    weight = theirs.attention.qkv.weight.detach().numpy()
    np.testing.assert_array_equal(new["params"]["attention"]["qkv"]["kernel"], weight.T)
    table = theirs.attention.table.numpy()
    np.testing.assert_array_equal(new["params"]["attention"]["table"], table)
    back = to_torch(new, theirs)
    assert all(torch.equal(back[name], x) for name, x in theirs.state_dict().items())
    with pytest.raises(ValueError, match=r"unknown .*attention\.attn_mask"):
        from_torch(theirs.state_dict(), variables)


@pytest.mark.parametrize("name", ["ema_w", "cluster_size", "running_max", "weight", "bias"])
def test_buffers_that_training_keeps_are_no_constants(name):
    theirs = t.Linear(4, 4)
    if name in ("weight", "bias"):  # frozen, as in FrozenBatchNorm2d
        delattr(theirs, name)
    theirs.register_buffer(name, torch.ones(4))
    leaves = {"weight": "kernel", "bias": "bias"}
    params = {ours: np.ones((4, 4)[: 1 + (k == "weight")]) for k, ours in leaves.items()}
    params.pop(leaves.get(name), None)
    with pytest.raises(ValueError, match=f"unknown names of torch: {name} "):
        from_torch(theirs, {"params": params})


# torch's options; whether Flax's attention has a bias.
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linen", {}),
        ("linen", {"bias": False}),
        ("linen", {"kdim": 3, "vdim": 5}),
        ("names", {}),
        ("names", {"kdim": 3, "vdim": 5}),
        ("nnx", {}),  # which has one size for key and value
        ("nnx", {"bias": False}),
    ],
)
def test_attention_is_split_by_projection_and_head(kind, options):
    theirs = randomized(t.MultiheadAttention(6, 3, batch_first=True, **options))
    rng = np.random.default_rng(4)
    sizes = [(2, 5, 6), (2, 7, options.get("kdim", 6)), (2, 7, options.get("vdim", 6))]
    q, k, v = (rng.normal(size=size).astype(np.float32) for size in sizes)
    use_bias = options.get("bias", True)
    if kind == "nnx":
        ours = nnx.MultiHeadAttention(3, 6, use_bias=use_bias, rngs=nnx.Rngs(0), decode=False)
        variables = nnx.state(ours)
    else:
        ours = nn.MultiHeadDotProductAttention(3, qkv_features=6, use_bias=use_bias)
        variables = jax.eval_shape(ours.init, jax.random.key(0), q, k, v)
    source = theirs if kind == "linen" else theirs.state_dict()
    variables = from_torch(source, variables)
    if kind == "nnx":
        nnx.update(ours, variables)
        y = ours(q, k, v)
    else:
        y = ours.apply(variables, q, k, v)
    want, _ = theirs(*map(torch.from_numpy, (q, k, v)))
    assert relative_error(y, want.detach().numpy()) < 1e-5
    back = to_torch(variables, theirs)
    assert all(torch.equal(back[name], x) for name, x in theirs.state_dict().items())


def test_attention_below_other_layers_under_other_names():
    theirs = randomized(t.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    whole = {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)}
    heads = {"kernel": np.zeros((4, 2, 2)), "bias": np.zeros((2, 2))}
    norm = {"scale": np.zeros(4), "bias": np.zeros(4)}
    attention = {"q": whole, "key": whole, "value": whole, "o": whole}
    params = {
        "attn": attention,
        "linear1": {"kernel": np.zeros((4, 8)), "bias": np.zeros(8)},
        "linear2": {"kernel": np.zeros((8, 4)), "bias": np.zeros(4)},
        "norm1": norm,
        "norm2": norm,
    }
    rename = [("^self_attn", "attn"), (r"^attn\.query", "attn.q"), (r"^attn\.out_proj", "attn.o")]
    new = from_torch(theirs, {"params": params}, rename)
    weight = theirs.self_attn.in_proj_weight.detach().numpy()
    np.testing.assert_array_equal(new["params"]["attn"]["q"]["kernel"], weight[:4].T)
    np.testing.assert_array_equal(new["params"]["attn"]["value"]["kernel"], weight[8:].T)
    # A part may be left out: it keeps its value in both directions.
    some = from_torch(theirs, {"params": params}, rename, ignore="attn/key")
    assert not some["params"]["attn"]["key"]["kernel"].any()
    back = to_torch(some, theirs, rename, ignore="attn/key")
    assert all(torch.equal(back[name], x) for name, x in theirs.state_dict().items())
    # Four projections of Flax's attention by head, from linear layers of their own.
    params = dict.fromkeys(("query", "key", "value"), heads)
    params |= {"out": {"kernel": np.zeros((2, 2, 4)), "bias": np.zeros(4)}}
    linear = randomized(t.ModuleDict({name: t.Linear(4, 4) for name in params}))
    new = from_torch(linear, {"params": params})["params"]
    weight = linear["out"].weight.detach().numpy().T
    np.testing.assert_array_equal(new["out"]["kernel"], weight.reshape(2, 2, 4))


def test_an_embedding_is_not_transposed():
    theirs, ours, x = t.Embedding(5, 5), nn.Embed(5, 5), np.array([3, 0, 3])
    variables = from_torch(theirs, template(ours, x))
    want = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_array_equal(ours.apply(variables, x), want)


def test_a_linear_layer_behind_a_flattened_map():
    theirs = t.Sequential(t.Conv2d(3, 2, 2), t.Flatten(), t.Linear(2 * 3 * 4, 5)).eval()
    ours = nn.Sequential(
        [nn.Conv(2, (2, 2), padding="VALID"), lambda x: x.reshape(2, -1), nn.Dense(5)]
    )
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    rename = [("^0", "layers_0"), ("^2", "layers_2")]
    variables = from_torch(theirs, template(ours, x), rename, flattened={"2": (2, 3, 4)})
    want = theirs(channels_first(x)).detach().numpy()
    assert relative_error(ours.apply(variables, x), want) < 1e-5


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_options_make_a_layer_that_trains_as_torch_does(momentum):
    theirs = randomized(t.BatchNorm2d(3, eps=1e-2, momentum=momentum)).train()
    options = batch_norm_options(theirs)[""]
    ours = BatchNorm(use_running_average=False, **options)
    x = np.random.default_rng(1).normal(1, 2, (2, 2, 3, 3)).astype(np.float32)
    variables = from_torch(theirs, template(ours, x))
    for _ in range(3):
        y, updates = ours.apply(variables, x, mutable=["batch_stats"])
        variables |= updates
        assert relative_error(y, channels_last(theirs(channels_first(x)))) < 1e-5
    stats = variables["batch_stats"]
    assert relative_error(stats["mean"], theirs.running_mean.numpy()) < 1e-6
    assert relative_error(stats["var"], theirs.running_var.numpy()) < 1e-6
    check_batch_norms(ours, {"": options}, jnp.asarray(x))


def test_options_name_what_cannot_be_carried():
    assert batch_norm_options(t.Sequential(t.BatchNorm1d(2, affine=False, momentum=None))) == {
        "0": {"momentum": None, "epsilon": 1e-5, "ddof": 1, "use_scale": False, "use_bias": False}
    }
    with pytest.raises(ValueError, match=r"^1: has track_running_stats=False"):
        batch_norm_options(t.Sequential(t.ReLU(), t.BatchNorm1d(2, track_running_stats=False)))
    untracked = t.BatchNorm1d(2, track_running_stats=False)
    missing = r"missing in torch: batch_stats/mean, batch_stats/var"
    with pytest.raises(ValueError, match=missing):
        from_torch(untracked, template(BatchNorm(use_running_average=True), np.ones((2, 2))))


class Frozen(t.Module):
    """``FrozenBatchNorm2d``: all buffers. torchvision's has no counter, detectron2's may have."""

    def __init__(self, n, eps: float | None = 1e-5, counts=False, activation=None):
        super().__init__()
        if eps is not None:
            self.eps = eps
        self.activation = activation
        leaves = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        for name, value in leaves.items():
            self.register_buffer(name, torch.full((n,), value))
        if counts:
            self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x):
        shape = (1, -1, 1, 1)
        scale = self.weight * (self.running_var + getattr(self, "eps", 0.0)).rsqrt()
        shift = self.bias - self.running_mean * scale
        y = x * scale.view(shape) + shift.view(shape)
        return y if self.activation is None else self.activation(y)


class Own(t.Module):
    """A norm in user code, as in-place ABN is: no subclass of torch's, other names."""

    def __init__(self, n, momentum=0.2, epsilon=1e-2, learns=True):
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        if learns:
            self.gamma, self.beta = t.Parameter(torch.ones(n)), t.Parameter(torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def forward(self, x):
        options = {"momentum": self.momentum or 0, "eps": self.epsilon, "training": self.training}
        affine = (getattr(self, "gamma", None), getattr(self, "beta", None))
        return t.functional.batch_norm(x, self.running_mean, self.running_var, *affine, **options)


NORMS = {
    "frozen": (lambda: Frozen(4), {"momentum": 1.0, "epsilon": 1e-5}),
    "frozen without epsilon": (lambda: Frozen(4, eps=0.0), {"momentum": 1.0, "epsilon": 0.0}),
    "frozen with a counter": (lambda: Frozen(4, 1e-3, counts=True), {"epsilon": 1e-3}),
    "frozen with an activation": (lambda: Frozen(4, 1e-2, activation=torch.relu), {}),
    "synchronous": (lambda: t.SyncBatchNorm(4, 1e-2, 0.2), {"momentum": 0.8, "epsilon": 1e-2}),
    "an instance norm that tracks": (
        lambda: t.InstanceNorm2d(4, 1e-2, 0.2, affine=True, track_running_stats=True),
        {"momentum": 0.8, "epsilon": 1e-2},
    ),
    "of the user": (lambda: Own(4), {"momentum": 0.8, "epsilon": 1e-2}),
    "of the user without parameters": (
        lambda: Own(4, momentum=None, learns=False),
        {"momentum": None, "use_scale": False, "use_bias": False},
    ),
}


# https://github.com/pytorch/vision/issues/2169
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("kind", NORMS)
def test_vision_2169_what_holds_running_statistics_is_a_batch_norm(kind, debias):
    make, want = NORMS[kind]
    theirs = t.ModuleDict({"bn": randomized(make(), 3)}).eval()
    options = batch_norm_options(theirs)["bn"]
    assert {*options} == {"momentum", "epsilon", "ddof", "use_scale", "use_bias"}
    assert {key: options[key] for key in want} == pytest.approx(want)
    ours = BatchNorm(use_running_average=True, name="bn", debias=debias, **options)
    x = np.random.default_rng(5).normal(size=(2, 3, 3, 4)).astype(np.float32)
    variables = from_torch(theirs, {k: {"bn": v} for k, v in template(ours, x).items()})
    flat = {collection: layers["bn"] for collection, layers in variables.items()}
    if "count" in flat["batch_stats"]:
        stats = flat["batch_stats"]
        assert isinstance(stats["count"], jax.Array)
        assert stats["count"] == int(theirs.state_dict().get("bn.num_batches_tracked", 0))
        flat["batch_stats"] = stats | {"count": jnp.array(1)}  # of any number, evaluation is one
    y = ours.apply(flat, x)
    if kind == "frozen with an activation":
        y = jax.nn.relu(y)
    assert relative_error(y, channels_last(theirs["bn"](channels_first(x)))) < 1e-5
    back = to_torch(variables, theirs)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back[name], tensor), name


# https://github.com/pytorch/vision/issues/2169
def test_vision_2169_norms_that_do_not_tell_their_options_are_named():
    own = Own(4)
    del own.momentum
    shared = t.BatchNorm2d(4)
    theirs = t.Sequential(Frozen(4, eps=None), own, shared, t.InstanceNorm2d(4), shared)
    untold = r"epsilon of 0 \(Frozen\), momentum of 1 \(Own\) must be an attribute"
    with pytest.raises(ValueError, match=untold):
        batch_norm_options(theirs)
    options = batch_norm_options(theirs, defaults={"epsilon": 0.0, "momentum": 0.9})
    assert {path: (o["epsilon"], o["momentum"]) for path, o in options.items()} == {
        "0": (0.0, 1.0),
        "1": (1e-2, 0.9),
        "2": (1e-5, 0.9),
        "4": (1e-5, 0.9),  # the same layer, under both names that a state_dict has
    }
    with pytest.raises(ValueError, match="defaults may be of epsilon and momentum, got eps"):
        batch_norm_options(theirs, defaults={"eps": 0.0})
    two = t.Sequential(t.BatchNorm1d(2), t.BatchNorm1d(2, eps=1e-3))
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) at bn must have the options of"):
        batch_norm_options(two, [(r"\d", "bn")])


IMAGES = np.random.default_rng(2).normal(size=(4, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def resnet50():
    theirs = randomized(_resnet.TorchResNet())
    return theirs, from_torch(theirs, template(_resnet.ResNet(), IMAGES), _resnet.RENAME)


def test_resnet50_evaluates_the_same(resnet50):
    theirs, variables = resnet50
    with torch.no_grad():
        want = theirs.eval()(channels_first(IMAGES)).numpy()
    logits = jax.jit(_resnet.ResNet().apply)(variables, IMAGES)
    # Relative to the largest logit. Logits differ between images, or this would show nothing.
    assert relative_error(logits, want) < 1e-4
    assert relative_error(logits, want[::-1]) > 1e-2
    options = batch_norm_options(theirs, _resnet.RENAME)
    check_batch_norms(_resnet.ResNet(), options, IMAGES)
    assert len(options) == 53


def assert_running_statistics_equal(theirs, new):
    for name, want in theirs.state_dict().items():
        if "running" in name:
            assert relative_error(new[name].numpy(), want.numpy()) < 1e-4, name


def test_resnet50_has_the_same_running_statistics_after_a_training_step(resnet50):
    theirs, variables = resnet50
    with torch.no_grad():
        theirs.train()(channels_first(IMAGES))
    apply = jax.jit(_resnet.ResNet().apply, static_argnames=("train", "mutable"))
    _, updates = apply(variables, IMAGES, train=True, mutable=("batch_stats",))
    assert_running_statistics_equal(theirs, to_torch(variables | updates, theirs, _resnet.RENAME))


def test_a_small_resnet_trains_the_same():
    sizes = {"blocks": (1, 1), "width": 4, "classes": 5}
    theirs, ours = randomized(_resnet.TorchResNet(**sizes)).train(), _resnet.ResNet(**sizes)
    images, labels = IMAGES[:, :32, :32], np.arange(4)
    variables = from_torch(theirs, template(ours, images), _resnet.RENAME)
    # Its names alone are enough, though many kernels have as many channels in as out.
    named = from_torch(theirs.state_dict(), template(ours, images), _resnet.RENAME)
    jax.tree.map(np.testing.assert_array_equal, named, variables)

    @jax.jit
    def step(variables):
        def loss(params):
            logits, updates = ours.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return -jax.nn.log_softmax(logits)[np.arange(4), labels].mean(), updates

        grads, updates = jax.grad(loss, has_aux=True)(variables["params"])
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
        return {"params": moved, **updates}

    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(2):
        variables = step(variables)
        optimizer.zero_grad()
        logits = theirs(channels_first(images))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        optimizer.step()
    new = to_torch(variables, theirs, _resnet.RENAME)
    assert_running_statistics_equal(theirs, new)
    for name, want in theirs.named_parameters():
        assert relative_error(new[name].numpy(), want.detach().numpy()) < 1e-4, name


class Net(nnx.Module):
    def __init__(self, momentum=0.7, epsilon=1e-4):
        rngs = nnx.Rngs(0)
        norm = {"momentum": momentum, "epsilon": epsilon, "ddof": 1, "rngs": rngs}
        self.layers = nnx.List(
            [nnx.Linear(5, 4, rngs=rngs), bnjax.nnx.BatchNorm(4, **norm), nnx.Dropout(0, rngs=rngs)]
        )

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_an_nnx_model_both_ways():
    theirs = t.Sequential(t.Linear(5, 4), t.BatchNorm1d(4, momentum=0.3, eps=1e-4))
    randomized(theirs).train()
    ours, rename = Net(), [("^", "layers.")]
    nnx.update(ours, from_torch(theirs, nnx.state(ours), rename))
    check_batch_norms(ours, batch_norm_options(theirs, rename))
    x = np.random.default_rng(3).normal(size=(6, 5)).astype(np.float32)
    assert relative_error(ours(x), theirs(torch.from_numpy(x)).detach().numpy()) < 1e-5
    back = t.Sequential(t.Linear(5, 4), t.BatchNorm1d(4, eps=1e-4))
    back.load_state_dict(to_torch(nnx.state(ours), back, rename))
    want = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    assert relative_error(back.eval()(torch.from_numpy(x)).detach().numpy(), want) < 1e-5
    ours.eval()
    assert relative_error(ours(x), want) < 1e-5


def test_a_model_with_another_epsilon_is_refused():
    theirs = t.Sequential(t.Linear(5, 4), t.BatchNorm1d(4, momentum=0.3, eps=1e-4))
    options = batch_norm_options(theirs, [("^", "layers.")])
    with pytest.raises(ValueError, match=r"layers/1: epsilon is 0.001, must be 0.0001"):
        check_batch_norms(Net(epsilon=1e-3), options)
    with pytest.raises(ValueError, match=r"layers/1: momentum is 0.3, must be 0.7"):
        check_batch_norms(Net(momentum=0.3), options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_floating_dtype_of_torch(dtype):
    theirs = randomized(t.BatchNorm1d(3)).to(dtype)
    ours = template(BatchNorm(use_running_average=True), np.ones((2, 3), np.float32))
    variables = from_torch(theirs, ours)
    want = theirs.running_var.float().numpy()
    np.testing.assert_array_equal(variables["batch_stats"]["var"], want)
    back = to_torch(variables, theirs)
    assert back["running_var"].dtype == dtype
    assert torch.equal(back["running_var"].float(), theirs.running_var.float())


def test_a_value_beyond_the_dtype_of_torch_is_refused():
    theirs = t.BatchNorm1d(2).half()
    variables = from_torch(theirs, template(BatchNorm(use_running_average=True), np.ones((1, 2))))
    variables["batch_stats"]["var"] = jnp.array([1.0, 1e5])
    with pytest.raises(ValueError, match="batch_stats/var: 1 of 2 infinite in float16"):
        to_torch(variables, theirs)


def test_a_model_without_storage_says_what_is_expected():
    theirs = randomized(t.BatchNorm1d(3))
    ours = template(BatchNorm(use_running_average=True), np.ones((2, 3), np.float32))
    with torch.device("meta"):
        like = t.BatchNorm1d(3)
    back = to_torch(from_torch(theirs, ours), like)
    assert torch.equal(back["running_mean"], theirs.running_mean)
    assert back["num_batches_tracked"] == 0 and not back["num_batches_tracked"].is_meta
    with pytest.raises(ValueError, match="torch has no values at weight, bias, running_mean"):
        from_torch(like, ours)


def test_files_of_torch(tmp_path):
    theirs = randomized(t.BatchNorm1d(3))
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    checkpoint = load_torch(tmp_path / "model.pt")
    assert torch.equal(checkpoint["state_dict"]["running_var"], theirs.running_var)
    with pytest.raises(TypeError, match=r"checkpoint\['state_dict'\]"):
        from_torch(checkpoint, {"params": {}})


class Malicious:
    """Pickled as a call that leaves a mark."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", ["torch", "pickle", "legacy", "truncated"])
def test_no_pickle_is_executed(tmp_path, save):
    mark, path = tmp_path / "executed", tmp_path / "model.pt"
    evil = {"weight": Malicious(mark)}
    if save == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))  # torch's own protocol
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=save != "legacy")
    if save == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="nothing of it was run"):
        load_torch(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(evil))  # it would have been seen
    assert mark.exists()


def test_a_module_that_is_pickled_whole_is_refused(tmp_path):
    torch.save(t.BatchNorm1d(3), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"torch.save\(model.state_dict\(\), path\)"):
        load_torch(tmp_path / "module.pt")
