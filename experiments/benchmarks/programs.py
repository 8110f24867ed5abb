"""The programs that `accelerators` has compiled: a layer alone, networks, and a layer on a mesh.

Where forward and backward are one program, the loss is made of y, as in a network: with dy given
from outside, XLA would sum dy and dy·x in the same read of x as the statistics.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks import contestants, sharded
from experiments.benchmarks.contestants import (
    FLAX,
    FLAX_TWO_PASS,
    LAYERS,
    OURS,
    OURS_LINEN,
    OURS_NNX,
)
from experiments.benchmarks.networks import (
    BATCH_NORMS,
    HAIKU,
    NORMS,
    ResNet,
    Step,
    Transformer,
    classifier_step,
    transformer_step,
)
from experiments.benchmarks.problem import Problem, draw
from experiments.benchmarks.settings import Shape
from experiments.benchmarks.sharded import AXIS, FLAX_JIT, JIT, WAYS
from experiments.benchmarks.targets import Target

DTYPES = ("float32", "bfloat16")
FORWARD, BOTH = "layer forward", "layer forward and backward"
BLOCKS, RESNET, TRANSFORMER = "two bottleneck blocks", "ResNet-50", "transformer"
SHARDED, DEVICES = "eight devices", 8
ALONE = {  # in bfloat16 it is not asked again whether all of ours are the same
    "float32": (OURS, OURS_LINEN, OURS_NNX, FLAX, FLAX_TWO_PASS, HAIKU),
    "bfloat16": (OURS_LINEN, FLAX, FLAX_TWO_PASS, HAIKU),
}
MESHED = (JIT, FLAX_JIT, OURS, FLAX, HAIKU)
NETWORKS: Mapping[str, Mapping[str, Any]] = {  # what makes each of the ResNet
    BLOCKS: {"stages": (2,), "stem": False},
    RESNET: {},
}
TRAINED = (BLOCKS, RESNET, TRANSFORMER)  # of these there is a training step
# Minutes to compile for a TPU, and in two blocks haiku moves what Flax does.
SPARED = {(RESNET, HAIKU)}
PROGRAMS = {  # by the shape of the data; of any other shape, a layer
    (64, 56, 56, 256): BLOCKS,
    (16, 256, 512): TRANSFORMER,
    (8, 1024, 1024): TRANSFORMER,
    (64, 28, 28, 128): SHARDED,
    (128, 224, 224, 3): RESNET,
    (256, 224, 224, 3): RESNET,
}

Built = tuple[Callable[..., Any], tuple[Any, ...]]  # a function, and arguments that say where


class Work(NamedTuple):
    """One program of one contestant."""

    program: str
    dtype: str  # of activations
    contestant: str
    build: Callable[[jax.sharding.Mesh], Built]
    devices: int = 1
    donated: tuple[int, ...] = ()

    def compiled(self, target: Target) -> jax.stages.Compiled:
        """For devices that need not be here."""
        mesh = sharded.make_mesh(target.find(self.devices)[: self.devices])
        fn, arguments = self.build(mesh)
        lowered = jax.jit(fn, donate_argnums=self.donated).lower(*arguments)
        return lowered.compile(compiler_options=target.options)


def works(shape: Shape) -> Iterator[Work]:
    """All that is compiled for data of this shape."""
    program = PROGRAMS.get(shape, FORWARD)
    if program in TRAINED:
        yield from _networks(shape)
    else:
        yield from _meshed(shape) if program == SHARDED else _layers(shape)


def trained(shape: Shape, dtype: str = "bfloat16") -> dict[str, dict[str, Step]]:
    """The training steps on data of this shape, by program and contestant."""
    program = PROGRAMS[shape]
    if program == TRANSFORMER:
        model = functools.partial(Transformer, dtype=jnp.dtype(dtype))
        return {
            f"{TRANSFORMER}, {kind}": {
                name: transformer_step(model(norm), shape, dtype) for name, norm in norms.items()
            }
            for kind, norms in NORMS.items()
        }
    network = functools.partial(ResNet, **NETWORKS[program])
    return {program: {n: classifier_step(network(norm), shape) for n, norm in BATCH_NORMS.items()}}


def _layers(shape: Shape) -> Iterator[Work]:
    for dtype, names in ALONE.items():
        problem = draw(shape, dtype)
        for name in filter(contestants.installed, names):
            layer = LAYERS[name](problem)
            arguments = problem.x, problem.scale, problem.bias, layer.stats
            for program, fn in ((FORWARD, layer.train), (BOTH, _backward_too(layer.train))):
                yield Work(program, dtype, name, on_one(fn, *arguments))


def _networks(shape: Shape) -> Iterator[Work]:
    for dtype in DTYPES if PROGRAMS[shape] == TRANSFORMER else ("bfloat16",):
        for program, steps in trained(shape, dtype).items():
            for name, step in steps.items():
                if contestants.installed(name) and (program, name) not in SPARED:
                    build = on_one(step.run, step.state, *step.data)
                    yield Work(program, dtype, name, build, donated=(0,))


def _meshed(shape: Shape) -> Iterator[Work]:
    problem = draw(shape)
    for name in MESHED:
        if contestants.installed(sharded.package(name)):
            build = _on_mesh(WAYS[name], problem)
            yield Work(SHARDED, "float32", name, build, devices=DEVICES)


def _backward_too(train: Callable[..., Any]) -> Callable[..., Any]:
    """Changed statistics, and the gradients of a loss made of y."""

    def step(x, scale, bias, stats):
        def loss(*inputs):
            y, changed = train(*inputs, stats)
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), changed

        return jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)

    return step


def on_one(fn: Callable[..., Any], *arguments: Any) -> Callable[[jax.sharding.Mesh], Built]:
    """What builds a program of `fn` for one device."""

    def build(mesh):
        return fn, _placed(arguments, mesh, jax.P())

    return build


def _on_mesh(way: sharded.Way, problem: Problem) -> Callable[[jax.sharding.Mesh], Built]:
    def build(mesh):
        train, stats = sharded.training(way, problem, mesh)
        x = _placed(problem.x, mesh, jax.P(AXIS))
        rest = _placed((problem.scale, problem.bias, stats), mesh, jax.P())
        return _backward_too(train), (x, *rest)

    return build


def _placed(arguments: Any, mesh: jax.sharding.Mesh, spec: Any) -> Any:
    """The shapes of `arguments`, and where they are."""
    where = jax.NamedSharding(mesh, spec)

    def placed(v):
        return jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v), sharding=where)

    return jax.tree.map(placed, arguments)
