"""Values that an ONNX model holds, as they are stored or by way of a few operators."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bnjax.interop._optional import one_line, optional
from bnjax.interop._trees import is_numeric

Shape = tuple[int | None, ...] | None  # None for what is not known

_BROADCASTING = {"Add", "Div", "Expand", "Mul", "Sub"}
# What exporters and quantisers put between a stored array and a norm. None of them is random, has
# a graph of its own, or grows beyond what _elements foresees.
_OPERATORS = _BROADCASTING | {
    "Abs",
    "Cast",
    "CastLike",
    "Concat",
    "ConstantOfShape",
    "DequantizeLinear",
    "Exp",
    "Flatten",
    "Identity",
    "Neg",
    "Reciprocal",
    "Reshape",
    "Shape",
    "Slice",
    "Split",
    "Sqrt",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
_MOST = 2**26  # elements: far more than a norm has, and no danger to the machine
_FIRST = {"DequantizeLinear": 19}  # earlier versions mean the same, and onnx does not compute them


class Scope(NamedTuple):
    """What is known of the values that a node can see, by name."""

    tensors: dict[str, Any]  # those stored in the model: TensorProto or SparseTensorProto
    makers: dict[str, Any]  # the node that computes it
    shapes: dict[str, Shape]
    known: dict[str, np.ndarray]  # those that were asked for


class NotStored(ValueError):
    """Of a value that depends on the input of the model."""


def array_of(name: str, scope: Scope, opset: int) -> np.ndarray:
    """The value called ``name``; ValueError with what it is instead, as the end of a sentence."""
    try:
        return _value(name, scope, opset)
    except RecursionError:
        raise ValueError("is computed by too long a chain of nodes, or from itself") from None


def _value(name: str, scope: Scope, opset: int) -> np.ndarray:
    if name not in scope.known:
        if name in scope.tensors:
            scope.known[name] = _read(scope.tensors[name])
        elif name in scope.makers:
            node = scope.makers[name]
            outputs = _compute(node, scope, opset)
            scope.known[name] = outputs[list(node.output).index(name)]
        else:
            raise NotStored("is an input of the graph, not stored")
    return scope.known[name]


def _compute(node, scope: Scope, opset: int) -> list[np.ndarray]:
    """The outputs of ``node`` from those of the nodes before it."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in {*_OPERATORS, "Constant"}:
        raise NotStored(f"is computed by {node.op_type}, not stored")
    inputs = []
    for name in node.input:
        try:
            inputs.append(_value(name, scope, opset) if name else None)
        except NotStored:
            raise NotStored(f"is computed by {node.op_type}, not stored") from None
        except ValueError as error:
            reason = str(error)
            comes = "comes from "  # the first of them all is the one at fault
            text = reason if reason.startswith(comes) else f"{comes}{name!r}, which {reason}"
            raise ValueError(text) from None
    try:
        return [_constant(node)] if node.op_type == "Constant" else _run(node, inputs, opset)
    except Exception as error:  # onnx's own of every kind
        raise ValueError(f"cannot be computed by {node.op_type}: {one_line(error)}") from error


def _constant(node) -> np.ndarray:
    (attribute,) = node.attribute
    if attribute.name in ("value", "sparse_value"):
        return _read(attribute.t if attribute.name == "value" else attribute.sparse_tensor)
    dtype = {"value_float": np.float32, "value_int": np.int64}[attribute.name.removesuffix("s")]
    return np.asarray(optional("onnx.helper").get_attribute_value(attribute), dtype)


def _read(tensor) -> np.ndarray:
    """A tensor, sparse or not, as an array."""
    onnx = optional("onnx")
    if isinstance(tensor, onnx.SparseTensorProto):
        return _dense(tuple(tensor.dims), _read(tensor.values), _read(tensor.indices))
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError("is in another file: give from_onnx the model's path")
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # of every kind
        raise ValueError(f"is damaged: {one_line(error)}") from error


def _dense(shape: tuple[int, ...], values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Indices count elements, or each has a row with its place on every axis."""
    check_size(math.prod(shape))
    dense = np.zeros(shape, values.dtype)
    rows = np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)
    dense[rows] = values
    return dense


def _run(node, inputs: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    onnx = optional("onnx")
    given = {f"input {i}": x for i, x in enumerate(inputs) if x is not None}
    check_size(_elements(node.op_type, list(given.values())))
    if node.op_type == "DequantizeLinear":  # one scale for all is without axes, or has a single one
        given = {k: x if k == "input 0" or x.size > 1 else x.reshape(()) for k, x in given.items()}
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.input[:] = [f"input {i}" if name else "" for i, name in enumerate(node.input)]
    any_type = onnx.helper.make_tensor_type_proto(onnx.TensorProto.UNDEFINED, None)
    info = onnx.helper.make_value_info
    graph = onnx.helper.make_graph(
        [alone],
        "alone",
        [info(name, any_type) for name in given],
        [info(name, any_type) for name in node.output],
    )
    imports = [onnx.helper.make_opsetid("", max(opset, _FIRST.get(node.op_type, opset)))]
    model = onnx.helper.make_model(graph, opset_imports=imports)
    with np.errstate(all="ignore"):
        outputs = optional("onnx.reference").ReferenceEvaluator(model).run(None, given)
    check_size(max(output.size for output in outputs))
    return outputs


def _elements(op_type: str, inputs: list[np.ndarray]) -> int:
    """How many there will be, where it may be more than the inputs have."""
    if op_type == "ConstantOfShape":
        return math.prod(inputs[0].tolist())
    if op_type not in _BROADCASTING:
        return 0
    shapes = [x.shape for x in inputs]
    if op_type == "Expand":
        shapes[1] = tuple(inputs[1].tolist())
    return math.prod(np.broadcast_shapes(*shapes))


def check_size(elements: int) -> None:
    """Raise if an array of so many elements is more than a norm can mean."""
    if elements > _MOST:
        raise ValueError(f"it would have {elements} elements, where at most {_MOST} are made")


def is_real(array: np.ndarray) -> bool:
    """Whether a norm can have it for a parameter."""
    return is_numeric(array.dtype) and array.dtype.kind not in "iubc"
