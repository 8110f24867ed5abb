"""Networks as they are trained on accelerators, in which nothing but the norm is exchanged.

ResNet-50 is that of Flax's ImageNet example: bfloat16 activations, bottleneck blocks, SGD with
Nesterov momentum and weight decay. A transformer block is pre-norm attention and a dense pair.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import bnjax.linen
from experiments.benchmarks import layers
from experiments.benchmarks.contestants import FLAX, FLAX_TWO_PASS, OURS_LINEN
from experiments.benchmarks.problem import DECAY, EPSILON, Problem
from experiments.benchmarks.settings import Shape

HAIKU = "haiku"
HEADS, GROUPS, DECAY_OF_WEIGHTS = 8, 32, 1e-4
LAYER, RMS, GROUP = "layer norm", "RMS norm", "group norm"


class Step(NamedTuple):
    """A training step, and the shapes of what it takes: state, data and labels."""

    run: Callable[..., Any]
    state: Any
    data: tuple[jax.ShapeDtypeStruct, ...]
    start: Callable[[jax.Array], Any]  # the state to begin with, from a random key


class HaikuNorm(nn.Module):
    """Haiku's batch norm in a Flax network."""

    use_running_average: bool = False
    momentum: float = DECAY
    epsilon: float = EPSILON
    dtype: Any = None
    scale_init: Callable[..., Any] = nn.initializers.ones

    @nn.compact
    def __call__(self, x):
        features = x.shape[-1:]
        scale = self.param("scale", self.scale_init, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        layer = layers.haiku(Problem(x, x, scale, bias, axis=-1))
        stats = self.variable("batch_stats", "haiku", lambda: layer.stats)
        y, stats.value = layer.train(x, scale, bias, stats.value)
        return y


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each with a norm, and the input added.

    Attributes:
      cut: makes of a norm, activation and convolution what does the same, such as `nn.remat`.
    """

    filters: int
    norm: Any
    dtype: Any
    stride: int = 1
    cut: Callable[..., Any] = lambda link: link

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)

        def link(*shape):
            return self.cut(lambda self, y: conv(*shape)(nn.relu(self.norm()(y))))

        y = conv(self.filters, (1, 1))(x)
        y = link(self.filters, (3, 3), self.stride)(self, y)
        y = link(4 * self.filters, (1, 1))(self, y)
        y = self.norm(scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = self.norm()(conv(4 * self.filters, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """He et al. 2016; without `stem` the stages alone.

    Attributes:
      norm: class of the norm.
      stages: number of bottleneck blocks of each stage.
      stem: a convolution, norm and max-pool before them.
      block: makes a bottleneck block.
    """

    norm: Any
    stages: Sequence[int] = (3, 4, 6, 3)
    stem: bool = True
    width: int = 64
    classes: int = 1000
    dtype: Any = jnp.bfloat16
    block: Callable[..., Any] = Bottleneck

    @nn.compact
    def __call__(self, x):
        options = {"use_running_average": False, "momentum": DECAY, "epsilon": EPSILON}
        norm = functools.partial(self.norm, dtype=self.dtype, **options)
        if self.stem:
            pad = [(3, 3), (3, 3)]
            x = nn.Conv(self.width, (7, 7), 2, pad, use_bias=False, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(norm()(x)), (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = self.block(self.width * 2**stage, norm, self.dtype, stride)(x)
        return nn.Dense(self.classes, dtype=self.dtype)(jnp.mean(x, (1, 2)))


class Transformer(nn.Module):
    """Blocks of pre-norm attention and a dense pair, and a last norm."""

    norm: Any
    blocks: int = 2
    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(self.norm, dtype=self.dtype)
        for _ in range(self.blocks):
            y = norm()(x)
            x = x + nn.MultiHeadDotProductAttention(HEADS, dtype=self.dtype)(y, y)
            y = nn.gelu(nn.Dense(4 * x.shape[-1], dtype=self.dtype)(norm()(x)))
            x = x + nn.Dense(x.shape[-1], dtype=self.dtype)(y)
        return norm()(x)


BATCH_NORMS = {
    OURS_LINEN: bnjax.linen.BatchNorm,
    FLAX: nn.BatchNorm,
    FLAX_TWO_PASS: functools.partial(nn.BatchNorm, use_fast_variance=False),
    HAIKU: HaikuNorm,
}
NORMS = {
    LAYER: {
        OURS_LINEN: bnjax.linen.LayerNorm,
        FLAX: nn.LayerNorm,
        FLAX_TWO_PASS: functools.partial(nn.LayerNorm, use_fast_variance=False),
    },
    RMS: {OURS_LINEN: bnjax.linen.RMSNorm, FLAX: nn.RMSNorm},
    GROUP: {
        OURS_LINEN: functools.partial(bnjax.linen.GroupNorm, num_groups=GROUPS),
        FLAX: functools.partial(nn.GroupNorm, num_groups=GROUPS),
    },
}


def classifier_step(model: nn.Module, shape: Shape, dtype: Any = jnp.bfloat16) -> Step:
    """Training on images: parameters, running statistics and momentum go in and out."""
    optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
    images = jax.ShapeDtypeStruct(shape, dtype)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)

    def start(key):
        variables = model.init(key, jnp.zeros(shape, dtype))
        params = variables["params"]
        return params, variables["batch_stats"], optimizer.init(params)

    def run(state, images, labels):
        params, stats, momentum = state

        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            logits, changed = model.apply(variables, images, mutable=["batch_stats"])
            logits = logits.astype(jnp.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            squares = sum(jnp.sum(w**2) for w in jax.tree.leaves(params) if w.ndim > 1)
            return losses.mean() + DECAY_OF_WEIGHTS / 2 * squares, changed["batch_stats"]

        (value, changed), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, momentum = optimizer.update(gradients, momentum, params)
        return (optax.apply_updates(params, updates), changed, momentum), value

    return Step(run, jax.eval_shape(start, jax.random.key(0)), (images, labels), start)


def transformer_step(model: nn.Module, shape: Shape, dtype: Any = jnp.bfloat16) -> Step:
    """Training towards an output of zero, by gradient descent."""
    tokens = jax.ShapeDtypeStruct(shape, dtype)

    def start(key):
        return model.init(key, jnp.zeros(shape, dtype))["params"]

    def run(params, tokens):
        def loss(params):
            y: Any = model.apply({"params": params}, tokens)
            return jnp.mean(jnp.square(y.astype(jnp.float32)))

        gradients = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    return Step(run, jax.eval_shape(start, jax.random.key(0)), (tokens,), start)
