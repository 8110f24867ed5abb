"""Options of batch norms are compared layer by layer, in linen and nnx, bnjax's own and Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax.interop import batch_norm_options, check_batch_norms

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


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="model must be an nnx or a linen Module, got dict"):
        check_batch_norms({}, {})
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, .* equinox.Module, got dict"):
        batch_norm_options({})
