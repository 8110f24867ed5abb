"""Who takes part: every library that is installed, as calls that train or evaluate once."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax

from experiments.benchmarks import layers
from experiments.benchmarks.problem import Layer, Outputs, Problem

OURS, OURS_LINEN, OURS_NNX = "bnjax", "bnjax linen", "bnjax nnx"
FLAX, FLAX_TWO_PASS, FLAX_NNX = "flax linen", "flax linen (two-pass)", "flax nnx"
TORCH = "torch"
PACKAGES = {  # contestant: the package it needs, and that package's name on PyPI
    OURS: ("bnjax", "bnjax"),
    OURS_LINEN: ("flax", "flax"),
    OURS_NNX: ("flax", "flax"),
    FLAX: ("flax", "flax"),
    FLAX_TWO_PASS: ("flax", "flax"),
    FLAX_NNX: ("flax", "flax"),
    "haiku": ("haiku", "dm-haiku"),
    "equinox": ("equinox", "equinox"),
    "keras": ("keras", "keras"),
    TORCH: ("torch", "torch"),
}
PEERS = tuple(name for name in PACKAGES if not name.startswith("bnjax"))
LAYERS: dict[str, Callable[[Problem], Layer]] = {
    OURS: layers.core,
    OURS_LINEN: functools.partial(layers.linen, library="bnjax.linen"),
    OURS_NNX: functools.partial(layers.nnx, library="bnjax.nnx"),
    FLAX: functools.partial(layers.linen, library="flax.linen"),
    FLAX_TWO_PASS: functools.partial(layers.linen, library="flax.linen", use_fast_variance=False),
    FLAX_NNX: functools.partial(layers.nnx, library="flax.nnx"),
    "haiku": layers.haiku,
    "equinox": layers.equinox,
    "keras": layers.keras,
}


def installed(name: str) -> bool:
    """Whether the contestant can take part: torch must see the device that JAX uses."""
    if importlib.util.find_spec(PACKAGES[name][0]) is None:
        return False
    if name == TORCH and jax.default_backend() != "cpu":
        import torch

        return torch.cuda.is_available()
    return True


def train_step(name: str, problem: Problem) -> Callable[[], Outputs]:
    """A call that trains once, forward and backward, and returns when all is computed."""
    if name == TORCH:
        from experiments.benchmarks import torch_layer

        return torch_layer.train_step(problem)
    layer = LAYERS[name](problem)
    leaves, treedef = jax.tree.flatten(layer.stats)  # a pytree's Python is not the layer's time

    @jax.jit
    def step(x, dy, scale, bias, leaves):
        train = functools.partial(layer.train, stats=jax.tree.unflatten(treedef, leaves))
        y, vjp, stats = jax.vjp(train, x, scale, bias, has_aux=True)
        return y, jax.tree.leaves(stats), vjp(dy.astype(y.dtype))

    def call() -> Outputs:
        out = step(problem.x, problem.dy, problem.scale, problem.bias, leaves)
        return Outputs(*jax.block_until_ready(out))

    return call


def eval_step(name: str, problem: Problem) -> Callable[[], Any] | None:
    """A call that evaluates once; None where the library has no comparable mode."""
    if name == TORCH:
        from experiments.benchmarks import torch_layer

        return torch_layer.eval_step(problem)
    layer = LAYERS[name](problem)
    evaluate = layer.evaluate
    if evaluate is None:
        return None
    leaves, treedef = jax.tree.flatten(layer.stats)

    @jax.jit
    def step(x, scale, bias, leaves):
        return evaluate(x, scale, bias, jax.tree.unflatten(treedef, leaves))

    return lambda: jax.block_until_ready(step(problem.x, problem.scale, problem.bias, leaves))
