"""Batch norm of a batch sharded over devices, in each JAX library: layers, meshes and programs.

`axis_name` is for layers that run inside `jax.shard_map`, one program a device. Under plain `jit`
over a sharded array there is one program for all, and XLA finds out what devices must exchange.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import layers
from experiments.benchmarks.contestants import FLAX, FLAX_NNX, OURS, OURS_LINEN, PACKAGES
from experiments.benchmarks.problem import Layer, Problem

AXIS = "devices"
EACH, MERGED = "bnjax (per device)", "bnjax (per device, merged)"
JIT, FLAX_JIT = "bnjax (plain jit)", "flax linen (plain jit)"
FORWARD, INPUT, ALL = "forward", "dx", "dx, dscale and dbias"  # what a program computes


class Way(NamedTuple):
    """A layer, and how it is sharded."""

    build: Callable[..., Layer]
    axis_name: str | None = AXIS
    mapped: bool = True  # by shard_map
    checked: bool = True  # whether shard_map proves that statistics are the same on all devices


def merged(problem: Problem, axis_name: str | None) -> Layer:
    """Each device normalises its own share, and only running statistics are merged."""
    share = problem.x.shape[0]  # at most: a smaller batch is one virtual batch
    return layers.core(problem, axis_name=axis_name, virtual_batch_size=share)


flax = functools.partial(layers.linen, library="flax.linen")
WAYS = {
    OURS: Way(layers.core),
    OURS_LINEN: Way(functools.partial(layers.linen, library="bnjax.linen")),
    MERGED: Way(merged),
    EACH: Way(layers.core, axis_name=None, checked=False),  # running statistics differ
    JIT: Way(layers.core, axis_name=None, mapped=False),
    FLAX: Way(flax),
    FLAX_JIT: Way(flax, axis_name=None, mapped=False),
    FLAX_NNX: Way(functools.partial(layers.nnx, library="flax.nnx")),
    "haiku": Way(layers.haiku),
}
GLOBAL = tuple(name for name in WAYS if name not in (EACH, MERGED))  # all devices as one batch
NAMED = tuple(name for name in GLOBAL if WAYS[name].axis_name is not None)


def package(name: str) -> str:
    """The contestant whose package this one needs."""
    return max((known for known in PACKAGES if name.startswith(known)), key=len)


def make_mesh(devices: Sequence[Any]) -> jax.sharding.Mesh:
    """One axis over all of them."""
    kinds = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=kinds, devices=tuple(devices))


class Program(NamedTuple):
    """A compiled program, and what it takes besides the problem."""

    compiled: jax.stages.Compiled
    mesh: jax.sharding.Mesh
    stats: list[jax.Array]

    def on(self, problem: Problem) -> Callable[[], Any]:
        """A call of it on arrays that already lie on the devices."""
        arguments = _lay(problem, self.mesh, self.stats)
        return lambda: jax.block_until_ready(self.compiled(*arguments))

    @property
    def text(self) -> str:
        """What XLA made of it."""
        return self.compiled.as_text() or ""


def program(way: Way, problem: Problem, mesh: jax.sharding.Mesh, computes: str = ALL) -> Program:
    """The layer in training: y and running statistics, and the gradients that are asked for."""
    train, leaves = training(way, problem, mesh)
    lowered = jax.jit(_step(train, computes)).lower(*_lay(problem, mesh, leaves))
    return Program(lowered.compile(), mesh, leaves)


def training(
    way: Way, problem: Problem, mesh: jax.sharding.Mesh
) -> tuple[Callable[..., Any], list[jax.Array]]:
    """The layer as a function of x, scale, bias and statistics on a mesh, and the statistics.

    These are a flat list: a pytree's Python is not the layer's time.
    """
    layer = way.build(problem, axis_name=way.axis_name)
    leaves, treedef = jax.tree.flatten(layer.stats)

    def train(x, scale, bias, leaves):
        y, stats = layer.train(x, scale, bias, jax.tree.unflatten(treedef, leaves))
        return y, jax.tree.leaves(stats)

    if way.mapped:
        cut, copied = jax.P(AXIS), jax.P()
        train = jax.shard_map(
            train,
            mesh=mesh,
            in_specs=(cut, copied, copied, copied),
            out_specs=(cut, copied),
            check_vma=way.checked,
        )
    return train, leaves


def _step(train: Callable[..., Any], computes: str) -> Callable[..., Any]:
    """A function of x, dy, scale, bias and statistics."""

    def forward(x, dy, scale, bias, stats):
        return train(x, scale, bias, stats)

    def backward(x, dy, *rest):
        number = {INPUT: 1, ALL: 3}[computes]  # of arguments that gradients are taken of
        inputs = (x, *rest)

        def of(*chosen):
            return train(*chosen, *inputs[number:])

        y, vjp, stats = jax.vjp(of, *inputs[:number], has_aux=True)
        return y, stats, vjp(dy.astype(y.dtype))

    return forward if computes == FORWARD else backward


def _lay(problem: Problem, mesh: jax.sharding.Mesh, stats: Any) -> tuple[Any, ...]:
    """The arguments: data cut along their first axis, all else copied to every device."""
    cut, copied = (jax.NamedSharding(mesh, spec) for spec in (jax.P(AXIS), jax.P()))
    data = jax.device_put((problem.x, problem.dy), cut)
    return (*data, *jax.device_put((problem.scale, problem.bias, stats), copied))
