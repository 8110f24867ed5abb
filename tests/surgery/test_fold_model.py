"""Folding of whole models: what is found, what is left alone, and that nothing else changes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax import _variables
from bnjax.surgery import drop_redundant_biases, find_pairs, fold, verify
from experiments.common import resnet
from tests.surgery.networks import X, linen_network, nnx_network, trained, variables_of


@pytest.mark.parametrize(
    ("norm", "use_bias"), [(nn.BatchNorm, False), (bnjax.linen.BatchNorm, True)]
)
def test_a_whole_linen_resnet(norm, use_bias):
    model, variables = linen_network(norm, use_bias=use_bias)
    folded = fold(model, variables, X)
    assert not folded.left_alone and len(folded.changed) == 7
    assert set(folded.variables) == {"params"}
    assert str(folded).startswith("changed: 7\n  block1/bn1: into block1/conv1 before it\n")
    assert "largest difference" in str(folded) and folded.difference.max_relative < 1e-5
    after = folded.model, folded.variables
    assert verify((model, variables), after, [X[:1], 3 * X[:1]], tolerance=1e-5)


@pytest.mark.parametrize(
    ("norm", "use_bias"), [(nnx.BatchNorm, True), (bnjax.nnx.BatchNorm, False)]
)
def test_a_whole_nnx_resnet(norm, use_bias):
    model, variables = nnx_network(norm, use_bias=use_bias)
    folded = fold(model, variables, X)
    assert not folded.left_alone and len(folded.changed) == 7
    assert folded.changed["block1", "down", "layers", 1] == "into block1/down/layers/0 before it"
    assert {path[0] for path in _variables.flatten(folded.variables)[0]} == {"params"}
    assert folded.difference.max_relative < 1e-5
    network = nnx.merge(folded.model, folded.variables)
    np.testing.assert_allclose(network(X), nnx.merge(model, variables)(X), atol=1e-4)
    assert network.block1.convs[0].use_bias and network.block1.convs[0].bias.shape == (4,)


def test_the_original_keeps_its_variables():
    for model, variables in (linen_network(), nnx_network(use_bias=True)):
        before = jax.tree.map(np.array, variables)
        fold(model, variables, X)
        drop_redundant_biases(model, variables, X)
        jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_the_variables_load_into_the_same_model_without_norms():
    model = resnet.ResNet(bnjax.linen.BatchNorm, widths=(4,), blocks=1, num_classes=2)
    variables = variables_of(model, X, train=False)
    folded = fold(model, variables, X, train=False)
    bare = resnet.ResNet(None, widths=(4,), blocks=1, num_classes=2)
    shapes = jax.eval_shape(bare.init, jax.random.key(0), X)
    assert jax.tree.map(jnp.shape, folded.variables) == jax.tree.map(jnp.shape, shapes)
    want = model.apply(variables, X, train=False)
    np.testing.assert_allclose(bare.apply(folded.variables, X), want, atol=1e-4)


def test_a_folded_network_has_gradients_of_its_own():
    model, variables = linen_network()
    folded = fold(model, variables, X)
    grads = jax.jit(jax.grad(lambda v: jnp.sum(folded.model.apply(v, X) ** 2)))(folded.variables)
    assert np.abs(grads["params"]["block1"]["conv1"]["bias"]).max() > 0


# --- One pair -------------------------------------------------------------------------------------


def norm_of(kind=bnjax.linen.BatchNorm, **options):
    return kind(use_running_average=True, **options)


def folded_sequence(*layers, x=X, shift=True):
    model = nn.Sequential(layers)
    variables = variables_of(model, x)
    if not shift:
        flat, rebuild = _variables.flatten(variables)
        variables = rebuild({p: v * 0 if p[-1] in ("bias", "mean") else v for p, v in flat.items()})
    return fold(model, variables, x)


X1 = X[:, 0]  # (2, 6, 3)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Dense(4), X1),
        (nn.Conv(4, 3, 2, padding="CAUSAL", use_bias=False), X1),
        (nn.Conv(6, (3,), feature_group_count=3, kernel_dilation=2), X1),
        (nn.Conv(4, (3, 3), (2, 1), input_dilation=2, padding=[(1, 0), (0, 2)]), X),
        (nn.Conv(4, (2, 2), mask=np.tri(2)[:, :, None, None] * np.ones((2, 2, 3, 4), "f4")), X),
        (nn.ConvTranspose(4, (3,), (2,)), X1),
        (nn.ConvTranspose(4, (3, 2), (2, 1), transpose_kernel=True, padding="VALID"), X),
        (nn.Conv(4, (3, 3)), X[0]),  # without a batch axis
    ],
    ids=str,
)
def test_into_every_kind_of_layer_before_it(layer, x):
    folded = folded_sequence(layer, norm_of(), nn.relu, x=x)
    assert folded.changed == {("layers_1",): "into layers_0 before it"}
    assert folded.difference.max_relative < 1e-5


@pytest.mark.parametrize(
    ("layer", "shift", "fits"),
    [
        (nn.Dense(4), True, True),
        (nn.Conv(4, (3,), padding="VALID", use_bias=False), True, True),
        (nn.Conv(6, (3,), feature_group_count=3, padding=0), True, True),
        (nn.Conv(4, (3,), padding="CIRCULAR"), True, True),
        (nn.Conv(4, (3,), padding="REFLECT"), True, True),
        (nn.Conv(4, (1,), 2), True, True),
        (nn.Conv(4, (1,), padding=1), True, False),
        (nn.Conv(4, (3,)), True, False),
        (nn.Conv(4, (3,)), False, True),
        (nn.Conv(4, (3,), padding="CAUSAL"), True, False),
        (nn.Conv(4, (3,), padding=[(0, 1)]), True, False),
        (nn.Conv(4, (2,), padding=0, input_dilation=2), True, False),
        (nn.Conv(4, (2,), padding=0, input_dilation=2), False, True),
        (nn.ConvTranspose(4, (3,), padding="VALID"), True, False),
        (nn.ConvTranspose(4, (3,), (2,)), False, True),
        (nn.ConvTranspose(4, (1,)), True, True),
        (nn.ConvTranspose(4, (1,), (2,)), True, False),
        (nn.ConvTranspose(4, (2,), transpose_kernel=True), False, True),
    ],
    ids=str,
)
def test_into_the_layer_after_it_unless_zeros_would_be_shifted(layer, shift, fits):
    folded = folded_sequence(norm_of(), layer, nn.relu, x=X1, shift=shift)
    if fits:
        assert folded.changed == {("layers_0",): "into layers_1 after it"}
        assert folded.difference.max_relative < 1e-5
    else:
        why = folded.left_alone["layers_0",]
        assert why == "input is the input; layers_1 after it pads with zeros, which it would shift"


def test_a_masked_kernel_after_a_norm_is_left_alone():
    mask = np.tri(3, dtype=np.float32)[:, None, :].repeat(3, 1)
    folded = folded_sequence(norm_of(), nn.Conv(3, (3,), padding="VALID", mask=mask), x=X1)
    why = "input is the input; layers_1 after it has a masked kernel"
    assert folded.left_alone == {("layers_0",): why}


def test_norms_on_both_sides_of_a_layer():
    folded = folded_sequence(norm_of(), nn.Dense(4), norm_of(nn.BatchNorm), norm_of(), nn.Dense(2))
    assert [*folded.changed.values()] == [
        "into layers_1 after it",
        "into layers_1 before it",
        "into layers_4 after it",
    ]
    assert folded.difference.max_relative < 1e-5


def test_channels_first_behind_a_transposition():
    first, last = lambda x: x.transpose(0, 3, 1, 2), lambda x: x.transpose(0, 2, 3, 1)
    conv = nn.Conv(4, (3, 3), padding="VALID")
    folded = folded_sequence(conv, first, norm_of(axis=1), last, nn.relu)
    assert folded.changed == {("layers_2",): "into layers_0 before it"}
    assert folded.difference.max_relative < 1e-5
    folded = folded_sequence(first, norm_of(axis=1), last, conv)
    assert folded.changed == {("layers_1",): "into layers_3 after it"}
    assert folded.difference.max_relative < 1e-5


@pytest.mark.parametrize("dtypes", [("bfloat16", None), ("float16", "float32"), (None, "float16")])
def test_dtypes_stay_those_of_the_original(dtypes):
    conv, norm = nn.Conv(4, (3, 3), dtype=dtypes[0]), norm_of(dtype=dtypes[1])
    model = nn.Sequential([conv, norm])
    variables = variables_of(model, X)
    folded = fold(model, variables, X)
    assert folded.changed and folded.difference.max_relative < 0.02
    want = model.apply(variables, X)
    assert folded.model.apply(folded.variables, X).dtype == want.dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_parameters(dtype):
    model = nn.Sequential([nn.Conv(4, (3, 3), param_dtype=dtype, dtype=dtype), norm_of()])
    variables = variables_of(model, X)
    folded = fold(model, variables, X)
    assert folded.variables["params"]["layers_0"]["kernel"].dtype == dtype
    assert folded.changed and folded.difference.max_relative < 0.05


def test_what_float16_cannot_hold_is_left_alone():
    dense = nn.Dense(4, dtype=jnp.float32, param_dtype=jnp.float16)
    model = nn.Sequential([dense, norm_of(epsilon=1e-12)])
    variables = variables_of(model, X)
    variables["batch_stats"]["layers_1"]["var"] = jnp.full(4, 1e-12)
    folded = fold(model, variables, X)
    assert "not finite in float16" in folded.left_alone["layers_1",] and not folded.changed
    jax.tree.map(np.testing.assert_array_equal, folded.variables, variables)


# --- What is left alone, and why ------------------------------------------------------------------


class StandardizedConv(nn.Conv):
    """As in many models of Flax: a subclass that changes what the kernel means."""

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        return value / (1 + jnp.std(value)) if name == "kernel" else value


class Net(nn.Module):
    """One of several small networks, by name."""

    kind: str

    @nn.compact
    def __call__(self, x):
        if self.kind in ("mapped", "mapped norm"):
            return self.mapped(x)
        axis = {"axis": 1, "axes": (1, -1)}.get(self.kind, -1)
        evaluate = self.kind != "train"
        norm = bnjax.linen.BatchNorm(evaluate, axis, name="norm", update_stats=evaluate)
        conv = nn.Conv(3, (3, 3), name="conv")
        match self.kind:
            case "skip":
                y = conv(x)
                return nn.relu(norm(y)) + y
            case "returned":
                y = conv(x)
                return y, norm(y)
            case "input":
                return nn.relu(norm(x))
            case "reshape":
                return norm(conv(x).reshape(2, -1, 3)).sum()
            case "twice":
                return norm(nn.relu(norm(conv(x))))
            case "conv twice":
                return norm(conv(nn.relu(conv(x))))
            case "mask":
                return norm(conv(x), mask=x > 0)
            case "subclass":
                return norm(StandardizedConv(3, (3, 3))(x))
            case "weight norm":
                return norm(nn.WeightNorm(conv, variable_filter={"kernel"})(x))
            case _:
                return norm(conv(x))

    def mapped(self, x):
        options = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        dense, norm = nn.Dense, bnjax.linen.BatchNorm
        if self.kind == "mapped":
            dense = nn.vmap(dense, **options)
        else:
            norm = nn.vmap(norm, **options)
        return norm(use_running_average=True, name="norm")(dense(3, name="conv")(x))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("skip", "input comes from conv, whose output goes to add and norm; output goes to relu"),
        ("returned", "input comes from conv, whose output goes to norm and the output; .*"),
        ("input", "input is the input; output goes to relu"),
        ("reshape", "input comes from reshape; output goes to reduce_sum"),
        ("twice", "is called 2 times"),
        ("conv twice", "conv before it is called 2 times; output goes to the output"),
        ("axis", "normalises along axis 1, not the features of conv; output goes to the output"),
        ("axes", r"has a mean of shape \(6, 3\): mapped, or with two feature axes"),
        ("mask", "is called with a mask"),
        ("train", r"normalises by batch statistics \(pass train=False, or model.eval\(\)\)"),
        ("subclass", "StandardizedConv_0 before it is a StandardizedConv; .*"),
        ("weight norm", "conv before it has a kernel made by WeightNorm; .*"),
        ("mapped", r"conv before it has a kernel of shape \(2, 3, 3\): mapped, .*"),
        ("mapped norm", r"has a mean of shape \(2, 3\): mapped, or with two feature axes"),
    ],
)
def test_reasons(kind, why):
    model = Net(kind)
    variables = variables_of(model, X)
    pairs = find_pairs(model, variables, X)
    assert not pairs.pairs
    assert re.fullmatch(why, pairs.left_alone["norm",]), pairs.left_alone
    assert f"norm: {pairs.left_alone['norm',]}" in str(pairs)


class Tied(nnx.Module):
    """Two layers that share a kernel; or one that is called in one place and read in another."""

    def __init__(self, share):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.norm = bnjax.nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
        self.second = nnx.Linear(3, 3, rngs=rngs)
        self.share = share
        if share:
            self.second.kernel = self.first.kernel

    def __call__(self, x):
        y = self.second(nnx.relu(self.norm(self.first(x))))
        return y if self.share else y @ self.first.kernel[...].T


def test_layers_that_share_a_kernel_are_left_alone():
    model, shapes = nnx.split(nnx.eval_shape(lambda: Tied(True)))
    folded = fold(model, trained(shapes), X)
    assert folded.left_alone["norm",].startswith("first before it has no kernel of its own")
    assert folded.difference.max_abs == 0


def test_a_kernel_that_is_read_elsewhere_is_noticed_by_the_comparison():
    model, shapes = nnx.split(nnx.eval_shape(lambda: Tied(False)))
    with pytest.raises(ValueError, match=r"surgery changed what the model computes: .* exceeds"):
        fold(model, trained(shapes), X)


def test_nnx_layers_within_weight_norm_are_left_alone():
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
    model = nnx.Sequential(bnjax.nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs), norm)
    why = find_pairs(*nnx.split(model), X).left_alone["layers", 1]
    assert why.startswith("layers/0/layer_instance before it has a kernel made by WeightNorm")


class Aliased(nnx.Module):
    """A norm that two attributes name."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), self.norm])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_norm_with_two_names_is_replaced_under_both():
    model, shapes = nnx.split(nnx.eval_shape(Aliased))
    folded = fold(model, trained(shapes), X)
    assert len(folded.changed) == 1 and folded.difference.max_relative < 1e-5
    network = nnx.merge(folded.model, folded.variables)
    assert network.norm is network.layers[1]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = nn.Conv(3, (3, 3), name="conv")(inputs=x)
        norm = bnjax.linen.BatchNorm(name="norm")
        return nn.relu(norm(use_running_average=True, x=x)), None


class Nested(nn.Module):
    """Blocks within a transformed function."""

    transform: str

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        block = {
            "remat": lambda: nn.remat(Block),
            "jit": lambda: nn.jit(Block),
            "scan": lambda: nn.scan(Block, axes, split_rngs={"params": True}, length=2),
        }[self.transform]()
        return block(name="block")(x)[0]


@pytest.mark.parametrize("transform", ["remat", "jit"])
def test_within_transformed_functions(transform):
    model = Nested(transform)
    folded = fold(model, variables_of(model, X), X)
    assert folded.changed == {("block", "norm"): "into block/conv before it"}
    assert folded.difference.max_relative < 1e-5
    assert set(folded.variables) == {"params"}


def test_scanned_layers_are_left_alone():
    model = Nested("scan")
    folded = fold(model, variables_of(model, X), X)
    why = "has a mean of shape (2, 3): mapped, or with two feature axes"
    assert folded.left_alone == {("block", "norm"): why}


def test_shapes_suffice_to_find_pairs_and_to_fold():
    model, variables = linen_network()
    x = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert len(find_pairs(model, variables, x).pairs) == 7
    folded = fold(model, variables, x)
    assert folded.difference is None and str(folded).endswith("outputs not compared")


@pytest.mark.parametrize("surgery", [fold, drop_redundant_biases])
def test_shapes_without_values_are_refused(surgery):
    # From jax.eval_shape: all norms would be left alone, for a reason that is none.
    model, variables = linen_network()
    shapes = jax.eval_shape(lambda: variables)
    with pytest.raises(ValueError, match=r"variables have no values at .* more, only shapes"):
        surgery(model, shapes, X)


def test_layers_are_chosen_by_path():
    model, variables = linen_network()
    assert [*fold(model, variables, X, layers="block2/bn[12]").changed] == [
        ("block2", "bn1"),
        ("block2", "bn2"),
    ]
    with pytest.raises(ValueError, match="layers='stage' is found in no layer"):
        find_pairs(model, variables, X, layers="stage")
    dense = nn.Dense(2)
    assert not find_pairs(dense, variables_of(dense, X), X).pairs


def test_an_nnx_module_itself_is_refused():
    model, variables = nnx_network()
    with pytest.raises(TypeError, match=r"nnx.GraphDef, as from nnx.split\(model\), got NnxResNet"):
        fold(nnx.merge(model, variables), variables, X)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(True, name="norm")(nn.Dense(3, name="dense")(x))


def test_layers_of_a_model_applied_within_do_not_hide_those_of_the_same_name():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            within = nn.jit(Dense)(parent=None)
            variables = variables_of(within, x)
            x = within.apply(variables, x)
            x = nn.BatchNorm(True, name="norm")(nn.Dense(3, name="dense")(x))
            return within.apply(variables, x)

    variables = variables_of(Outer(), X)
    folded = fold(Outer(), variables, X)
    assert folded.changed == {("norm",): "into dense before it"}
    assert folded.difference.max_relative < 1e-5
