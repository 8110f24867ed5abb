"""The norms by ONNX's operators: what the core's programs compute, as JAX around one node.

Each writer has the arguments of its program, and None for an answer where ONNX has no operator that
means the same. A node is made by ``node(operator, x, other inputs, attributes)``, whose result has
the shape and dtype of ``x``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.core._axes import other_axes
from bnjax.core._batch_stats import BatchStats
from bnjax.core._rule import Inputs, Rule
from bnjax.interop._to_onnx import OP_TYPES, SINCE

Node = Callable[[str, jax.Array, list[Any], dict[str, Any]], jax.Array]
_FILL = (1, 0, 0, 1)  # for what is None of scale, bias, mean and variance


class Operator(NamedTuple):
    """An operator, and how ``x`` is to be laid out for it."""

    kind: str
    order: tuple[int, ...]  # of the axes of x
    features: tuple[int, ...]  # axes of x along which its other inputs vary
    attributes: dict[str, Any]

    def apply(self, node: Node, x: jax.Array, vectors: list[Any], rule: Rule) -> jax.Array:
        """The node, in the dtype of the arithmetic, with ``y`` laid out as ``x`` is."""
        sizes = self.sizes(x)
        filled = [
            np.full(sizes, fill, rule.wide) if v is None else jnp.asarray(v).astype(rule.wide)
            for v, fill in zip(vectors, _FILL, strict=False)
        ]
        attributes = {"epsilon": rule.epsilon, **self.attributes}
        laid_out = _permuted(x.astype(rule.wide), self.order)
        y = node(OP_TYPES[self.kind], laid_out, filled, attributes)
        return _permuted(y, tuple(map(self.order.index, range(x.ndim))))

    def sizes(self, x: jax.Array) -> tuple[int, ...]:
        return tuple(x.shape[a] for a in self.features)

    def fits(self, x: jax.Array, vectors: list[Any]) -> bool:
        """Whether each of ``vectors`` is None or of the shape of the operator's inputs."""
        return all(v is None or jnp.shape(v) == self.sizes(x) for v in vectors)


def evaluate(
    node: Node, opset: int, inputs: Inputs, stats: BatchStats, rule: Rule, poison: bool
) -> jax.Array | None:
    """By running statistics."""
    x, mask, scale, bias = inputs
    vectors = [scale, bias, stats.mean, stats.var]
    if mask is not None or poison or x.ndim < 2 or len(rule.features) != 1:
        return None
    first, *others = other_axes(rule.features, x.ndim)
    operator = Operator("batch_norm", (first, *rule.features, *others), rule.features, {})
    known = opset >= SINCE["batch_norm"] and not jnp.iscomplexobj(x)
    if not (known and operator.fits(x, vectors)):
        return None
    return operator.apply(node, x, vectors, rule).astype(rule.dtype)


def normalize(
    node: Node, opset: int, x: jax.Array, mean: jax.Array, var: jax.Array, rule: Rule
) -> jax.Array | None:
    """By statistics that are given."""
    inputs, stats = Inputs(x, None, None, None), BatchStats(mean, var, np.ones((), np.int32))
    return evaluate(node, opset, inputs, stats, rule, poison=False)


def by_own_statistics(node: Node, opset: int, inputs: Inputs, rule: Rule) -> jax.Array | None:
    """By the statistics of ``x``."""
    x, mask, *params = inputs
    operator = _operator(x, rule)
    if mask is not None or rule.wide != jnp.float32 or operator is None:
        return None
    if opset < SINCE[operator.kind] or not all(isinstance(n, int) for n in operator.sizes(x)):
        return None
    # A product and a sum of their own for what has no place in the node.
    inside, after = params, [None, None]
    if operator.features != rule.features or not operator.fits(x, params):
        inside, after = after, inside
    if operator.kind == "rms_norm":
        inside, after = inside[:1], [after[0], params[1]]
    y = operator.apply(node, x, inside, rule)
    scale, bias = Inputs(x, None, *after).params(rule)
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias).astype(rule.dtype)


def _operator(x: jax.Array, rule: Rule) -> Operator | None:
    """The operator that takes the statistics of ``rule``."""
    kept = other_axes(rule.axes, x.ndim)
    examples = tuple(a for a in kept if a not in rule.features)
    channels_first = (*examples, *rule.features, *rule.axes)
    of_channels = len(examples) == len(rule.features) == 1 and len(kept) == 2
    groups = rule.over.groups
    if groups is not None:
        number = {"num_groups": x.shape[groups.axis] // groups.size}
        operator = Operator("group_norm", channels_first, rule.features, number)
        return operator if of_channels else None
    if rule.about_mean and of_channels and rule.axes:
        return Operator("instance_norm", channels_first, rule.features, {})
    kind = "layer_norm" if rule.about_mean else "rms_norm"
    last = {"axis": -len(rule.axes)}
    return Operator(kind, (*kept, *rule.axes), rule.axes, last) if rule.axes else None


def _permuted(x: jax.Array, order: tuple[int, ...]) -> jax.Array:
    return x if order == tuple(range(x.ndim)) else x.transpose(order)
