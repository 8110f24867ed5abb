"""A normalisation as an ONNX model of one node."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bnjax import core
from bnjax._variables import flatten
from bnjax._variables import name as path_name
from bnjax.core._checks import canonical_axes
from bnjax.core._group_norm import groups_of
from bnjax.interop._onnx import KINDS, LEAVES, OnnxNorm, schema_of
from bnjax.interop._optional import optional

if TYPE_CHECKING:
    import onnx

OP_TYPES = {kind: op_type for op_type, kind in KINDS.items()}
# The first opset in which each operator means what is written here.
SINCE = {
    "batch_norm": 15,
    "instance_norm": 6,
    "layer_norm": 17,
    "group_norm": 21,
    "rms_norm": 23,
}
# Options with a place in the node, or that the node implies.
_WRITTEN = {
    "batch_norm": ("axis", "epsilon", "decay", "train"),
    "instance_norm": ("axis", "epsilon"),
    "layer_norm": ("axes", "param_axes", "epsilon"),
    "group_norm": ("axis", "epsilon", "num_groups", "group_size"),
    "rms_norm": ("axes", "param_axes", "epsilon"),
}
_FILL = {"scale": 1, "bias": 0}
_NOT_A_NORM = (
    "norm must be a bnjax.interop.OnnxNorm, got {}. to_onnx writes one normalisation, of the "
    "options and variables of a layer, not the layer or a model: OnnxNorm('bn', 'batch_norm', "
    "{{'axis': 1, 'epsilon': 1e-5, 'train': False}}, {{'params': {{'scale': ..., 'bias': ...}}, "
    "'batch_stats': {{'mean': ..., 'var': ...}}}}). To export a model, install jax2onnx and call "
    "bnjax.interop.register_jax2onnx(), then jax2onnx.to_onnx(lambda x: model.apply(variables, x), "
    "[('N', 224, 224, 3)]), or of nnx jax2onnx.to_onnx(model, ...) after model.eval()."
)
_FIRST_IR = 4  # of ONNX's file format: the first whose initialisers need not be inputs


def to_onnx(
    norm: OnnxNorm,
    shape: Sequence[int | str | None] | None = None,
    dtype: Any = np.float32,
    *,
    opset: int = 23,
) -> onnx.ModelProto:
    r"""An ONNX model that computes ``y = norm.apply(x)``, checked and ready to run.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta

    with the :math:`\gamma, \beta, \mu, v` of ``norm.variables`` as initialisers and
    :math:`\epsilon` in the node. Its input is ``x``, its output ``y``; a batch norm that trains
    has the outputs ``mean`` and ``var`` too, the updated running statistics. For a larger model
    take ``model.graph.node[0]`` and ``model.graph.initializer``, or join models with
    ``onnx.compose.merge_models``.

    Args:
      norm: name of the node, kind, options and variables (linen's, or an ``nnx.State``). Options
        not given have the defaults of the bnjax function; ``"train"`` must be given. It is one
        norm, not a layer or a model: see :func:`bnjax.interop.register_jax2onnx` for these.
      shape: of ``x``, to be given: sizes, or names or None where any size will do. Channels are on
        axis 1.
      dtype: of ``x``. ONNX wants scale and bias of the same, but for batch and RMS norm.
      opset: version of ONNX's operators: 15 at least for batch norm, 6, 17, 21 and 23 for
        instance, layer, group and RMS norm.

    Returns:
      The model. ``scale`` and ``bias`` that ONNX needs and the norm lacks are ones and zeros;
      numbers such as epsilon are rounded to float32.

    Raises:
      ImportError: onnx is not installed.
      TypeError: ``norm`` is a layer or model instead; no ``shape``; dtypes that ONNX does not take
        together.
      ValueError: options that ONNX lacks; channels not on axis 1; axes that are not the last;
        arrays that are unknown, missing or do not fit ``shape``; ``opset``. All of a sort at once.

    Example:
      >>> import numpy as np, onnx.reference
      >>> from bnjax.interop import OnnxNorm, to_onnx
      >>> params = {"scale": np.array([1, 2], np.float32), "bias": np.zeros(2, np.float32)}
      >>> model = to_onnx(OnnxNorm("ln", "layer_norm", {}, {"params": params}), ("N", 2))
      >>> x = np.array([[1, 3], [10, 30]], np.float32)
      >>> print(onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0].round(3))
      [[-1.  2.]
       [-1.  2.]]

    Source: the operators of ONNX, versions 6 to 23. ONNX runtimes may be less accurate than
    bnjax: some take ``E[x²] - E[x]²``. PyTorch's exporter writes other graphs for group norm.
    """
    if not isinstance(norm, OnnxNorm):
        raise TypeError(_NOT_A_NORM.format(type(norm).__name__))
    if shape is None:
        raise TypeError("shape must be that of x, such as ('N', 3, 'H', 'W'), and was not given.")
    if norm.kind not in OP_TYPES:
        raise ValueError(f"kind must be one of {', '.join(OP_TYPES)}, got {norm.kind!r}.")
    if opset < SINCE[norm.kind]:
        raise ValueError(f"opset={opset}, but {norm.kind} needs {SINCE[norm.kind]} at least.")
    schema = schema_of(OP_TYPES[norm.kind], opset)
    options = _options(norm)
    kept = _param_axes(norm.kind, options, len(shape))
    given = _given(norm, schema)
    sizes = _sizes(shape, kept, given)
    arrays = _inputs(given, schema, *_layout(norm.kind, kept, sizes, len(shape)), dtype)
    outputs = {"y": (dtype, shape)}
    if options.get("train"):
        outputs |= {leaf: (arrays[leaf].dtype, arrays[leaf].shape) for leaf in ("mean", "var")}
    return _model(norm.name, schema.name, opset, arrays, outputs, _attributes(options, sizes))


def _model(name, op_type, opset, arrays, outputs, attributes) -> onnx.ModelProto:
    """One node with its initialisers; ``outputs`` are dtypes and shapes, those of y are x's."""
    onnx = optional("onnx")
    helper = onnx.helper

    def value(name, dtype, shape):
        elements = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, elements, shape)

    stored = {leaf: f"{name}.{leaf}" for leaf in arrays}
    node = helper.make_node(op_type, ["x", *stored.values()], list(outputs), name, **attributes)
    graph = helper.make_graph(
        [node],
        name,
        [value("x", *outputs["y"])],
        [value(output, *of) for output, of in outputs.items()],
        [onnx.numpy_helper.from_array(array, stored[leaf]) for leaf, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    ir_version = max(_FIRST_IR, helper.find_min_ir_version_for(imports))
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


def _options(norm: OnnxNorm) -> dict[str, Any]:
    """The defaults of the bnjax function and, over them, what the norm gives; ONNX has them all."""
    parameters = inspect.signature(getattr(core, norm.kind)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    lost = [
        f"{key}={value!r}"
        for key, value in norm.options.items()
        if key not in _WRITTEN[norm.kind]
        and (key not in defaults or repr(value) != repr(defaults[key]))
    ]
    if lost:
        raise ValueError(
            f"options that ONNX's {OP_TYPES[norm.kind]} lacks: {', '.join(lost)}. Those that it "
            f"has are {', '.join(_WRITTEN[norm.kind])}."
        )
    options = {key: defaults[key] for key in _WRITTEN[norm.kind]} | norm.options
    if options.get("train") is inspect.Parameter.empty:
        raise ValueError("options lacks train: True to normalise by the batch, False by var.")
    if options.get("train") and options["decay"] is None:
        raise ValueError("decay=None, the average of all updates, is not in ONNX: give a number.")
    return options


def _param_axes(kind: str, options, rank: int) -> tuple[int, ...]:
    """The axes of x along which scale and bias vary; an error if ONNX cannot normalise so."""
    if "axis" in options:
        if canonical_axes(options["axis"], rank, "axis") != (1,):
            raise ValueError(
                f"axis={options['axis']!r} of rank {rank}, but ONNX has channels on axis 1. Give "
                "the shape of x as (N, C, ...) and axis=1; the arrays stay as they are."
            )
        return (1,)
    axes = canonical_axes(options["axes"], rank, "axes")
    if axes != tuple(range(rank - len(axes), rank)) or not axes:
        raise ValueError(f"axes={options['axes']!r} must be the last axes, as {kind} in ONNX has.")
    param_axes = options["param_axes"]
    return axes if param_axes is None else canonical_axes(param_axes, rank, "param_axes")


def _attributes(options, sizes: tuple[int, ...]) -> dict[str, Any]:
    attributes: dict[str, Any] = {"epsilon": float(options["epsilon"])}
    if "train" in options:
        attributes["training_mode"] = int(options["train"])
        if options["decay"] is not None:
            attributes["momentum"] = float(options["decay"])
    if "axes" in options:
        attributes["axis"] = -np.size(options["axes"])
    if "num_groups" in options:
        groups = groups_of(sizes[0], options["num_groups"], options["group_size"])
        attributes["num_groups"] = groups[0]
    return attributes


def _given(norm: OnnxNorm, schema) -> dict[str, np.ndarray]:
    """The arrays of the norm by leaf: all of the running statistics, and nothing unknown."""
    flat, _ = flatten(norm.variables, "norm.variables")
    leaves = list(LEAVES)[: len(schema.inputs) - 1]
    paths = {(LEAVES[leaf], leaf): leaf for leaf in leaves}
    unknown = [path_name(path) for path in flat if path not in paths]
    missing = [path_name(path) for path in paths if path[0] == "batch_stats" and path not in flat]
    if unknown or missing:
        raise ValueError(
            f"norm.variables of {norm.name!r}: unknown {unknown}, missing {missing}. ONNX's "
            f"{schema.name} has {', '.join(map(path_name, paths))}."
        )
    return {paths[path]: np.asarray(value) for path, value in flat.items()}


def _sizes(shape, kept: tuple[int, ...], given: dict[str, np.ndarray]) -> tuple[int, ...]:
    """The sizes of x along ``kept``, by its shape or else by the arrays, which all must fit."""
    sizes = [shape[axis] for axis in kept]
    for array in given.values():
        if array.ndim == len(sizes):
            both = zip(sizes, array.shape, strict=True)
            sizes = [n if isinstance(n, int) else found for n, found in both]
    if not all(isinstance(n, int) for n in sizes):
        raise ValueError(f"shape={tuple(shape)} must say the size of axes {kept}: no array does.")
    wrong = [f"{leaf} of {a.shape}" for leaf, a in given.items() if a.shape not in ((), (*sizes,))]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} do not fit x of {tuple(shape)}: {tuple(sizes)} on axes {kept}."
        )
    return tuple(sizes)


def _layout(kind: str, kept: tuple[int, ...], sizes: tuple[int, ...], rank: int):
    """Shape of the parameters, and the shape in which ONNX broadcasts them against x."""
    if "axis" in _WRITTEN[kind]:
        return sizes, sizes
    known = dict(zip(kept, sizes, strict=True))
    return sizes, tuple(known.get(axis, 1) for axis in range(min(kept, default=rank), rank))


def _inputs(given, schema, sizes, written, dtype) -> dict[str, np.ndarray]:
    """The arrays in ONNX's shape, with ones and zeros for what it needs and the norm lacks."""
    optional_input = optional("onnx").defs.OpSchema.FormalParameterOption.Optional
    param_dtype = next((given[leaf].dtype for leaf in _FILL if leaf in given), np.dtype(dtype))
    arrays, dtypes = {}, {"T": {"x": np.dtype(dtype)}}
    for leaf, formal in zip(LEAVES, list(schema.inputs)[1:], strict=False):
        if leaf in given:
            arrays[leaf] = np.broadcast_to(given[leaf], sizes).reshape(written)
        elif formal.option != optional_input:
            arrays[leaf] = np.full(written, _FILL[leaf], param_dtype)
        else:
            continue
        dtypes.setdefault(formal.type_str, {})[leaf] = arrays[leaf].dtype
    wrong = [same for same in dtypes.values() if len(set(same.values())) > 1]
    if wrong:
        found = "; ".join(", ".join(f"{k} {v}" for k, v in same.items()) for same in wrong)
        raise TypeError(f"{schema.name} in ONNX wants one dtype for {found}. Cast one of them.")
    return arrays
