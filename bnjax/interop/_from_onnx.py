"""Every normalisation of an ONNX model, with its options and arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bnjax._variables import choose
from bnjax.interop._onnx import OnnxNorm
from bnjax.interop._onnx_node import read
from bnjax.interop._onnx_values import Scope
from bnjax.interop._optional import one_line, optional

if TYPE_CHECKING:
    import onnx

# Fused ones of other domains too (SkipLayerNormalization): seen, then refused, never passed over.
_NORM = re.compile("(Batch|Instance|Layer|Group|RMS|MeanVariance)Norm")


def from_onnx(
    model: onnx.ModelProto | str | os.PathLike[str], *, nodes: str | None = None
) -> dict[str, OnnxNorm]:
    r"""The batch, instance, layer, group and RMS norms of an ONNX model, by name of their node.

    .. math::
        \mu \leftarrow m\,\mu + (1 - m)\,\mu_B, \qquad v \leftarrow m\,v + (1 - m)\,v_B

    ONNX's ``momentum`` :math:`m` is ``decay`` here; :math:`\mu_B, v_B` are the mean and the
    population variance (``ddof=0``) of a training batch, :math:`\mu, v` the running ones.

    Nodes in the branches and loops of the model and in its local functions are found too. Nothing
    in a model is executed but, on stored arrays, what turns them into those of a norm.

    Args:
      model: the model, or its file. Arrays may be initialisers, sparse ones and overridable ones
        (the value in the file counts) among them, or constants; and what nodes make of these:
        Cast, Reshape, Transpose, Squeeze and the like, Concat, Split, Slice, Expand,
        ConstantOfShape, DequantizeLinear, and arithmetic.
      nodes: regular expression, to be found anywhere in a name; all norms by default.

    Returns:
      :class:`bnjax.interop.OnnxNorm` by name, or by output where the node has none, in the order
      of the model. Arrays are NumPy's, as stored to the bit; numbers are the shortest decimals of
      ONNX's float32, so 1e-5 is 1e-5. Two forms are rewritten: parameters of a layer norm that
      are broadcast lose their axes of size 1 (``param_axes``), and those of a group of channels,
      as before opset 21, are repeated for each channel.

    Raises:
      ImportError: onnx is not installed.
      TypeError: ``model`` is neither a model nor a file; a graph alone does not say its opset.
      ValueError: all nodes that cannot be read, each with its reasons: kinds, versions, inputs or
        attributes that are not known; arrays that are computed, external, missing or of a wrong
        shape; training before opset 14; ``spatial=0``; or ``nodes`` matches none; or the file is
        no model.
      OSError: there is no such file.

    Example:
      >>> import numpy as np
      >>> from bnjax.interop import OnnxNorm, from_onnx, to_onnx
      >>> params = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
      >>> norm = OnnxNorm("gn", "group_norm", {"num_groups": 2, "axis": 1}, {"params": params})
      >>> norms = from_onnx(to_onnx(norm, ("N", 4, "H", "W")))
      >>> print(norms["gn"].kind, norms["gn"].options)
      group_norm {'axis': 1, 'num_groups': 2, 'epsilon': 1e-06}
      >>> y, _ = norms["gn"].apply(np.ones((1, 4, 2, 2), np.float32))

    Source: the operators of ONNX, versions 6 to 23. ``stash_type``, the precision of ONNX's
    statistics, has no counterpart: here they are float32 at least, and float64 for float64.
    PyTorch's ``momentum`` is ``1 - decay``; Flax has channels on the last axis.
    """
    proto = _model(model)
    opset = _opset(proto)
    found = [
        (node.name or next(iter(node.output), ""), node, scope)
        for node, scope in _walk(proto.graph, Scope({}, {}, {}, {}))
        if _NORM.search(node.op_type)
    ]
    if nodes is not None:
        chosen = choose(((name,) for name, *_ in found), nodes, "nodes")
        found = [entry for entry in found if (entry[0],) in chosen]
    norms, problems = {}, []
    for name, node, scope in found:
        try:
            if name in norms:
                raise ValueError("another node has this name. Give each its own")
            norms[name] = read(name, node, opset, scope)
        except ValueError as error:
            problems.append(f"{name} ({node.op_type}): {error}")
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(found)} normalisation nodes cannot be read; leave them out "
            "with nodes=, or mend them:\n  " + "\n  ".join(problems)
        )
    return norms


def _model(model) -> Any:
    onnx = optional("onnx")
    if isinstance(model, (str, os.PathLike)):
        model = _understood(f"{os.fspath(model)}: no model of ONNX", onnx.load, model)
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(
            f"model must be an onnx.ModelProto or the path of one, got {type(model).__name__}. A "
            "graph does not say its opset: wrap it with onnx.helper.make_model."
        )
    if model.functions:
        inline = optional("onnx.inliner").inline_local_functions
        model = _understood("model has local functions that cannot be inlined", inline, model)
    return model


def _understood(fault: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """What onnx makes of ``argument``; where it is damaged, ValueError instead of many kinds."""
    try:
        return function(argument)
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{fault}, or damaged: {one_line(error)}.") from error


def _opset(model) -> int:
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if not versions:
        raise ValueError("model imports no opset of ONNX, so its operators have no meaning.")
    return versions[0]


def _walk(graph, outer: Scope) -> Iterator[tuple[Any, Scope]]:
    """Every node with what it can see, those of subgraphs after the node that holds them."""
    scope = _scope(graph, outer)
    for node in graph.node:
        texts = (node.op_type, node.domain, node.name, *node.input, *node.output)
        if not all(isinstance(text, str) for text in texts):  # protobuf then has bytes
            raise ValueError(f"model is damaged: of the names {texts} one is no text.")
        yield node, scope
        for attribute in node.attribute:
            for subgraph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _walk(subgraph, scope)


def _scope(graph, outer: Scope) -> Scope:
    sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
    tensors = outer.tensors | sparse | {tensor.name: tensor for tensor in graph.initializer}
    makers = outer.makers | {name: node for node in graph.node for name in node.output}
    shapes = dict(outer.shapes)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in dims
            )
    return Scope(tensors, makers, shapes, {})
