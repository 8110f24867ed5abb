"""One node of an ONNX model, read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bnjax.core._checks import check_decay, check_epsilon
from bnjax.interop._onnx import KINDS, LEAVES, OnnxNorm, schema_of
from bnjax.interop._onnx_values import Scope, Shape, array_of, check_size, is_real
from bnjax.interop._optional import optional

Arrays = dict[str, np.ndarray]
_MOST_AXES = 64  # that NumPy can have
_INFER = "onnx.shape_inference.infer_shapes(model) may find it"


class _Node(NamedTuple):
    """A node whose attributes and inputs are in order."""

    proto: Any
    version: int  # of the operator
    attributes: dict[str, Any]
    arrays: Arrays  # the inputs after X
    shape: Shape  # of X


def read(name: str, node, opset: int, scope: Scope) -> OnnxNorm:
    """The norm that ``node`` is; ValueError with all that is wrong with its inputs."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in KINDS:
        raise ValueError(f"{node.domain or 'ai.onnx'}.{node.op_type} is none of {', '.join(KINDS)}")
    if not node.input:
        raise ValueError("X is missing")
    if node.op_type == "BatchNormalization" and opset < 14 and any(node.output[1:]):
        raise ValueError(
            "training before opset 14 does not say which variance it keeps, and "
            "onnx.version_converter cannot convert it. Export the model anew with opset 14 or "
            "later; or take away the outputs after the first (del node.output[1:]), and it is "
            "read as a norm that evaluates"
        )
    schema = schema_of(node.op_type, opset)
    options, arrays = _READERS[node.op_type](
        _Node(
            node,
            schema.since_version,
            _attributes(node, schema),
            _arrays(node, schema, scope, opset),
            scope.shapes.get(node.input[0]),
        )
    )
    variables: dict[str, dict[str, np.ndarray]] = {}
    for leaf, array in arrays.items():
        variables.setdefault(LEAVES[leaf], {})[leaf] = array
    return OnnxNorm(name, KINDS[node.op_type], options, variables)


def _batch_norm(node: _Node):
    if not node.attributes.get("spatial", 1):
        raise ValueError("spatial=0, a mean for each position, is not batch norm over axis 1")
    _check_channels(node.arrays, node.shape)
    decay = _decimal(node.attributes["momentum"])
    check_decay(decay)
    return {
        "axis": 1,
        "epsilon": _epsilon(node),
        "decay": decay,
        "ddof": 0,
        "train": bool(node.attributes.get("training_mode", 0)),
    }, node.arrays


def _instance_norm(node: _Node):
    _check_channels(node.arrays, node.shape)
    return {"axis": 1, "epsilon": _epsilon(node)}, node.arrays


def _group_norm(node: _Node):
    groups, arrays = node.attributes["num_groups"], node.arrays
    if groups < 1:
        raise ValueError(f"num_groups={groups}, must be 1 at least")
    if node.version < 21:
        arrays = _for_each_channel(arrays, groups, node.shape)
    channels = _check_channels(arrays, node.shape)
    if channels % groups:
        raise ValueError(f"num_groups={groups} does not divide {channels} channels")
    options = {"axis": 1, "num_groups": groups, "epsilon": _epsilon(node)}
    return options, arrays


def _layer_norm(node: _Node):
    axis = node.attributes["axis"]
    if axis >= 0:
        if node.shape is None:
            raise ValueError(f"axis={axis} counts from the front of X of unknown rank; {_INFER}")
        axis -= len(node.shape)
    if axis >= 0 or axis < -(_MOST_AXES if node.shape is None else len(node.shape)):
        raise ValueError(f"axis={node.attributes['axis']} is out of range for X of {node.shape}")
    axes = tuple(range(axis, 0))
    param_axes, arrays = _varying(node.arrays, node.shape)
    options = {"axes": axes} if param_axes == axes else {"axes": axes, "param_axes": param_axes}
    return options | {"epsilon": _epsilon(node)}, arrays


_READERS = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _layer_norm,
}


def _attributes(node, schema) -> dict[str, Any]:
    """Those of the node, and ONNX's defaults of the others."""
    value_of = optional("onnx.helper").get_attribute_value
    given = {attribute.name: value_of(attribute) for attribute in node.attribute}
    unknown = sorted(given.keys() - schema.attributes.keys())
    missing = [k for k, v in schema.attributes.items() if v.required and k not in given]
    if unknown or missing:
        raise ValueError(f"unknown attributes {unknown}, missing attributes {missing}")
    for attribute in node.attribute:
        if attribute.type != schema.attributes[attribute.name].type.value:
            wanted = schema.attributes[attribute.name].type.name
            raise ValueError(
                f"attribute {attribute.name} is {given[attribute.name]!r}, no {wanted}"
            )
    defaults = {k: v.default_value for k, v in schema.attributes.items() if not v.required}
    return {k: value_of(v) for k, v in defaults.items() if k not in given} | given


def _arrays(node, schema, scope: Scope, opset: int) -> Arrays:
    """The inputs after X, by the names of :data:`LEAVES`; one error for all that are no arrays."""
    optional_input = optional("onnx").defs.OpSchema.FormalParameterOption.Optional
    arrays, problems = {}, [f"unknown input {v!r}" for v in node.input[len(schema.inputs) :] if v]
    for i, (leaf, formal) in enumerate(zip(LEAVES, list(schema.inputs)[1:], strict=False), 1):
        name = node.input[i] if i < len(node.input) else ""
        if not name and formal.option != optional_input:
            problems.append(f"{leaf} is missing")
        elif name:
            try:
                arrays[leaf] = array_of(name, scope, opset)
            except ValueError as error:
                problems.append(f"{leaf}={name!r} {error}")
                continue
            if not is_real(arrays[leaf]):
                problems.append(f"{leaf}={name!r} is of {arrays[leaf].dtype}, not of real numbers")
    if problems:
        raise ValueError("; ".join(problems))
    return arrays


def _channels(shape: Shape) -> int | None:
    return shape[1] if shape is not None and len(shape) > 1 else None


def _check_channels(arrays: Arrays, shape: Shape) -> int:
    """The number of channels, on which all arrays and axis 1 of X agree."""
    known = _channels(shape)
    channels = arrays["scale"].size if known is None else known
    if any(a.shape != (channels,) for a in arrays.values()):
        source = "as scale has entries" if known is None else f"as X of {shape} has channels"
        raise ValueError(f"{_shapes(arrays)}: each must be of ({channels},), {source}")
    return channels


def _for_each_channel(arrays: Arrays, groups: int, shape: Shape) -> Arrays:
    """Parameters of each group, repeated for its channels."""
    channels = _channels(shape)
    if channels is None:
        raise ValueError(f"before opset 21 the channels of X must be known; {_INFER}")
    if any(a.shape != (groups,) for a in arrays.values()):
        raise ValueError(f"{_shapes(arrays)}: each must be of ({groups},), one entry a group")
    check_size(channels)
    return {leaf: np.repeat(a, channels // groups) for leaf, a in arrays.items()}


def _varying(arrays: Arrays, shape: Shape) -> tuple[tuple[int, ...], Arrays]:
    """The axes, from the end, along which parameters vary, and these without the others.

    ONNX broadcasts scale and bias against X, each by itself, from the last axis on.
    """
    try:
        common = np.broadcast_shapes(*(a.shape for a in arrays.values()))
    except ValueError:
        raise ValueError(f"{_shapes(arrays)} do not broadcast to each other") from None
    if shape is not None and not _broadcasts(common, shape):
        raise ValueError(f"{_shapes(arrays)} do not broadcast to X of {shape}")
    axes = tuple(i - len(common) for i, size in enumerate(common) if size != 1)
    kept = [size for size in common if size != 1]
    return axes, {k: np.broadcast_to(a, common).reshape(kept) for k, a in arrays.items()}


def _broadcasts(small: tuple[int, ...], large: tuple[int | None, ...]) -> bool:
    """Whether ``small`` broadcasts to ``large`` without enlarging it, as far as that is known."""
    pairs = zip(reversed(small), reversed(large), strict=False)
    return len(small) <= len(large) and all(s == 1 or n in (s, None) for s, n in pairs)


def _shapes(arrays: Arrays) -> str:
    return ", ".join(f"{leaf} of {array.shape}" for leaf, array in arrays.items())


def _epsilon(node: _Node) -> float:
    return check_epsilon(_decimal(node.attributes["epsilon"]))


def _decimal(value: float) -> float:
    """A float32 as the shortest decimal that it stands for."""
    return float(str(np.float32(value)))
