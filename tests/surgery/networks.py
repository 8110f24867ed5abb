"""Small residual networks of linen and nnx, with random scales, biases and running statistics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax import _variables

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 3)), jnp.float32)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, and a shortcut with a convolution and a norm of its own."""

    norm: Any = bnjax.linen.BatchNorm
    strides: int = 2
    use_bias: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        def norm(name):
            return self.norm(use_running_average=not train, momentum=0.5, name=name)

        y = nn.relu(norm("bn1")(nn.Conv(4, (1, 1), use_bias=self.use_bias, name="conv1")(x)))
        y = nn.Conv(4, (3, 3), self.strides, use_bias=self.use_bias, name="conv2")(y)
        y = nn.relu(norm("bn2")(y))
        y = norm("bn3")(nn.Conv(8, (1, 1), use_bias=self.use_bias, name="conv3")(y))
        if x.shape != y.shape:
            x = nn.Conv(8, (1, 1), self.strides, use_bias=self.use_bias, name="down")(x)
            x = norm("bn_down")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Two bottlenecks, the second without a convolution in its shortcut, and a dense layer."""

    norm: Any = bnjax.linen.BatchNorm
    use_bias: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = Bottleneck(self.norm, use_bias=self.use_bias, name="block1")(x, train)
        x = Bottleneck(self.norm, 1, self.use_bias, name="block2")(x, train)
        return nn.Dense(2, name="head")(x.mean((1, 2)))


class Block(nnx.Module):
    """The bottleneck, of nnx."""

    def __init__(self, features, strides, norm, use_bias, rngs):
        def conv(inputs, outputs, size, strides=1):
            return nnx.Conv(inputs, outputs, (size, size), strides, use_bias=use_bias, rngs=rngs)

        sizes = ((features, 4, 1), (4, 4, 3, strides), (4, 8, 1))
        self.convs = nnx.List([conv(*size) for size in sizes])
        self.bns = nnx.List([norm(size[1], momentum=0.5, rngs=rngs) for size in sizes])
        shortcut = (conv(features, 8, 1, strides), norm(8, rngs=rngs)) if features != 8 else ()
        self.down = nnx.Sequential(*shortcut)

    def __call__(self, x):
        y = x
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            y = bn(conv(nnx.relu(y) if i else y))
        return nnx.relu((self.down(x) if len(self.down.layers) else x) + y)


class NnxResNet(nnx.Module):
    """The network, of nnx."""

    def __init__(self, norm=bnjax.nnx.BatchNorm, use_bias=False):
        rngs = nnx.Rngs(0)
        self.block1 = Block(3, 2, norm, use_bias, rngs)
        self.block2 = Block(8, 1, norm, use_bias, rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.block2(self.block1(x)).mean((1, 2)))


def linen_network(norm=bnjax.linen.BatchNorm, **options):
    model = ResNet(norm, **options)
    return model, variables_of(model, X)


def nnx_network(norm=bnjax.nnx.BatchNorm, train=False, **options):
    model = nnx.eval_shape(lambda: NnxResNet(norm, **options))
    model = model if train else nnx.view(model, use_running_average=True)
    graphdef, shapes = nnx.split(model)
    return graphdef, trained(shapes)


def variables_of(model, x, **kwargs):
    """Variables of a linen model as training may leave them."""
    return trained(jax.eval_shape(functools.partial(model.init, **kwargs), jax.random.key(0), x))


def trained(shapes, seed=1):
    """Variables of these shapes; drawn by NumPy, for which nothing is compiled."""
    rng = np.random.default_rng(seed)
    draw = {
        "kernel": lambda shape: rng.normal(0, 0.5, shape),
        "scale": lambda shape: rng.normal(1, 0.5, shape),
        "bias": lambda shape: rng.normal(0, 1, shape),
        "mean": lambda shape: rng.normal(0, 1, shape),
        "var": lambda shape: rng.uniform(0.1, 3, shape),
    }
    flat, rebuild = _variables.flatten(shapes)
    drawn = {path: draw.get(path[-1], np.ones)(v.shape) for path, v in flat.items()}
    return rebuild({path: jnp.asarray(v, flat[path].dtype) for path, v in drawn.items()})
