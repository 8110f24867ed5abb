"""Networks cut by `jax.checkpoint` in several ways: what stands in one, and what is kept of it.

A link is norm, activation and convolution. Links in a chain, the same under `lax.scan`, and
pre-activation residual blocks of two links (He et al. 2016b) have as many convolutions each; the
ResNet-50 is that of `networks`. The loss of all but that is the mean square of the output.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import bnjax.linen
from experiments.benchmarks.contestants import FLAX, OURS
from experiments.benchmarks.networks import Bottleneck, ResNet, Step, classifier_step
from experiments.benchmarks.problem import DECAY, EPSILON
from experiments.benchmarks.programs import RESNET, Work, on_one
from experiments.benchmarks.settings import Shape

CHAIN, SCAN = "16 convolutions", "16 convolutions in a scan"
RESIDUAL = "8 residual blocks of two"
LINKS = {CHAIN: (16,), SCAN: (16,), RESIDUAL: (8, 2)}  # in a network, or blocks and in a block
KERNEL = (3, 3)
LAYOUT = ("NHWC", "HWIO", "NHWC")
LINK, BLOCK = "norm-activation-convolution", "residual block"
EACH_LINK, EACH_BLOCK = f"{OURS}, {LINK}", f"{OURS}, {BLOCK}"
NOTHING_KEPT, FLAX_NOTHING_KEPT = (f"{name}, {BLOCK}, nothing kept" for name in (OURS, FLAX))
PROGRAMS: Mapping[Shape, tuple[str, ...]] = {  # by the shape of the data
    (64, 28, 28, 256): (SCAN, CHAIN, RESIDUAL),
    (128, 224, 224, 3): (RESNET,),
}

Part = Callable[[jax.Array, Any], tuple[jax.Array, Any]]  # of x and weights: y, changed statistics

keep = functools.partial(jax.checkpoint, policy=bnjax.save_norm_statistics)
keep_in_scan = functools.partial(keep, prevent_cse=False)
keep_in_flax = functools.partial(nn.remat, policy=bnjax.save_norm_statistics)


def works(shape: Shape) -> Iterator[Work]:
    """All that is compiled for data of this shape."""
    for program in PROGRAMS[shape]:
        yield from works_of(program, shape)


def works_of(program: str, shape: Shape) -> Iterator[Work]:
    """A program without a checkpoint and with each cut."""
    for name, step in steps(program, shape).items():
        build = on_one(step.run, step.state, *step.data)
        yield Work(program, "bfloat16", name, build, donated=(0,))


def steps(program: str, shape: Shape, dtype: Any = jnp.bfloat16) -> dict[str, Step]:
    """The training steps of a program, by what stands in a checkpoint."""
    if program == RESNET:
        return {name: classifier_step(net, shape, dtype) for name, net in resnets(dtype).items()}
    links = LINKS[program]
    return {name: chain_step(net, links, shape, dtype) for name, net in chains()[program].items()}


def resnets(dtype: Any = jnp.bfloat16, **options: Any) -> dict[str, ResNet]:
    """ResNet-50, or with other `options` a smaller one."""
    net = functools.partial(ResNet, dtype=dtype, **options)
    ours = functools.partial(net, bnjax.linen.BatchNorm)
    return {
        OURS: ours(),
        EACH_LINK: ours(block=functools.partial(Bottleneck, cut=keep_in_flax)),
        EACH_BLOCK: ours(block=keep_in_flax(Bottleneck)),
        NOTHING_KEPT: ours(block=nn.remat(Bottleneck)),
        FLAX_NOTHING_KEPT: net(nn.BatchNorm, block=nn.remat(Bottleneck)),
    }


def chains() -> Mapping[str, Mapping[str, Part]]:
    """The other networks; weights are stacked along the first axis."""
    return {
        CHAIN: {OURS: straight(link), EACH_LINK: straight(keep(link))},
        SCAN: {OURS: scanned(link), EACH_LINK: scanned(keep_in_scan(link))},
        RESIDUAL: {
            OURS: straight(block(link)),
            EACH_LINK: straight(block(keep(link))),
            EACH_BLOCK: straight(keep(block(link))),
        },
    }


def link(x: jax.Array, weights: Any) -> tuple[jax.Array, Any]:
    """Norm, activation, convolution."""
    (scale, bias, kernel), stats = weights
    options = {"decay": DECAY, "epsilon": EPSILON, "unseen": "allow"}
    y, changed = bnjax.batch_norm(x, scale, bias, stats, train=True, **options)
    kernel = kernel.astype(x.dtype)
    dimensions = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUT}
    return jax.lax.conv_general_dilated(nn.relu(y), kernel, **dimensions), changed


def straight(part: Part) -> Part:
    """One after the other."""

    def network(x, weights):
        found = []
        for i in range(len(jax.tree.leaves(weights)[0])):
            x, changed = part(x, jax.tree.map(operator.itemgetter(i), weights))
            found.append(changed)
        return x, jax.tree.map(lambda *each: jnp.stack(each), *found)

    return network


def scanned(part: Part) -> Part:
    """The same in a loop."""
    return lambda x, weights: jax.lax.scan(part, x, weights)


def block(part: Part) -> Part:
    """A residual block of two, whose weights are split along the next axis."""
    both = straight(part)

    def residual(x, weights):
        y, changed = both(x, weights)
        return x + y, changed

    return residual


def chain_step(network: Part, axes: Shape, shape: Shape, dtype: Any = jnp.bfloat16) -> Step:
    """Gradients and changed statistics; the weights of all links are stacked along `axes`."""
    width = shape[-1]
    stats = bnjax.init_batch_stats(width)

    def start(key):
        kernel = nn.initializers.he_normal()(key, (*axes, *KERNEL, width, width), jnp.float32)
        vectors = jnp.ones((*axes, width)), jnp.zeros((*axes, width))
        return (*vectors, kernel), jax.tree.map(
            lambda v: jnp.broadcast_to(v, axes + v.shape), stats
        )

    def run(state, x):
        params, stats = state

        def loss(params):
            y, changed = network(x, (params, stats))
            return jnp.mean(jnp.square(y.astype(jnp.float32))), changed

        return jax.grad(loss, has_aux=True)(params)

    data = jax.ShapeDtypeStruct(shape, dtype)
    return Step(run, jax.eval_shape(start, jax.random.key(0)), (data,), start)
