"""Options of batch norms are compared layer by layer, in linen and nnx, bnjax's own and Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax.interop import batch_norm_options, check_batch_norms
from bnjax.surgery import fold

X = jax.ShapeDtypeStruct((2, 3), jnp.float32)
OPTIONS = {"momentum": 0.9, "epsilon": 1e-3, "ddof": 0, "use_scale": True, "use_bias": True}


class Block(nn.Module):
    norm: type[nn.Module]
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x, train):
        if train:  # a Python bool, not a tracer
            x = nn.Dropout(0.5, deterministic=True)(x)
        norm = self.norm(use_running_average=not train, momentum=0.9, epsilon=self.epsilon)
        return norm(x)


class Net(nn.Module):
    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x, train=False):
        x = Block(self.norm, name="a")(x, train)
        return Block(self.norm, 1e-2, name="b")(x, train)


class NnxNet(nnx.Module):
    def __init__(self, norm):
        rngs = nnx.Rngs(0)
        self.a = nnx.List([norm(3, momentum=0.9, epsilon=1e-3, rngs=rngs)])
        self.b = nnx.List([norm(3, momentum=0.9, epsilon=1e-2, rngs=rngs)])


CASES = {
    "bnjax.linen": (lambda: Net(bnjax.linen.BatchNorm), (X,), ["a/BatchNorm_0", "b/BatchNorm_0"]),
    "flax.linen": (lambda: Net(nn.BatchNorm), (X,), ["a/BatchNorm_0", "b/BatchNorm_0"]),
    "bnjax.nnx": (lambda: NnxNet(bnjax.nnx.BatchNorm), (), ["a/0", "b/0"]),
    "flax.nnx": (lambda: NnxNet(nnx.BatchNorm), (), ["a/0", "b/0"]),
}


@pytest.mark.parametrize("kind", CASES)
def test_every_layer_is_compared(kind):
    make, args, (a, b) = CASES[kind]
    kwargs = {"train": True} if args else {}
    check_batch_norms(make(), {a: OPTIONS, b: OPTIONS | {"epsilon": 1e-2}}, *args, **kwargs)
    check_batch_norms(make(), {a: {"epsilon": 1e-3}, b: {}}, *args, **kwargs)
    wrong = {a: OPTIONS | {"momentum": 0.1, "ddof": 1, "decay": 0.9}, "c": OPTIONS}
    with pytest.raises(ValueError) as error:
        check_batch_norms(make(), wrong, *args, **kwargs)
    assert str(error.value).splitlines()[1:-1] == [
        "  c: there is no such layer",
        f"  {a}: momentum is 0.9, must be 0.1",
        f"  {a}: ddof is 0, must be 1",
        f"  {a}: decay is unknown, must be 0.9",
        f"  {b}: has no options",
    ]


def test_decays_are_compared_as_numbers():
    norm = bnjax.nnx.BatchNorm(3, momentum=0.1, rngs=nnx.Rngs(0))
    check_batch_norms(norm, {"": {"momentum": 1 - 0.9}})
    cumulative = bnjax.nnx.BatchNorm(3, momentum=None, rngs=nnx.Rngs(0))
    check_batch_norms(cumulative, {"": {"momentum": None}})
    with pytest.raises(ValueError, match=r"\(the model itself\): momentum is None, must be 0.1"):
        check_batch_norms(cumulative, {"": {"momentum": 0.1}})


class Foldable(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = bnjax.linen.BatchNorm(True, name=f"bn{i}")(nn.Dense(3, name=f"fc{i}")(x))
        return x


class NnxFoldable(nnx.Module):
    def __init__(self):
        for i in range(2):
            setattr(self, f"fc{i}", nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
            norm = bnjax.nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0))
            setattr(self, f"bn{i}", norm)

    def __call__(self, x):
        return self.bn1(self.fc1(self.bn0(self.fc0(x))))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_norms_that_were_folded_are_told_from_those_that_never_were(kind):
    x, options = jnp.ones((2, 3)), {"epsilon": 1e-5}
    if kind == "linen":
        model = Foldable()
        variables = model.init(jax.random.key(0), x)
        checked, args = fold(model, variables, x, layers="bn0").model, (x,)
    else:
        folded = fold(*nnx.split(NnxFoldable()), x, layers="bn0")
        checked, args = nnx.merge(folded.model, folded.variables), ()
    check_batch_norms(checked, {"bn1": options}, *args)
    with pytest.raises(ValueError, match="not as options say") as error:
        check_batch_norms(checked, {"bn0": options, "bn1": options, "bn2": options}, *args)
    bn0, bn2, _ = str(error.value).splitlines()[1:]
    assert bn0.startswith("  bn0: is folded into its neighbour") and "before" in bn0
    assert bn2 == "  bn2: there is no such layer"


def test_what_a_linen_module_is_traced_with_is_asked_for():
    with pytest.raises(TypeError, match=r"needs what model\.init takes .*argument: 'x'"):
        check_batch_norms(Foldable(), {})
    with pytest.raises(TypeError, match=r"^Foldable"):
        check_batch_norms(Foldable(), {}, X, train=True)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"got GraphDef\. Merge it: nnx\.merge"):
        check_batch_norms(nnx.split(NnxFoldable())[0], {})
    with pytest.raises(TypeError, match="model must be an nnx or a linen Module, got dict"):
        check_batch_norms({}, {})
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, .* equinox.Module, got dict"):
        batch_norm_options({})
