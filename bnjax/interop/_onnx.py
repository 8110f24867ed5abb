"""A normalisation of ONNX in this library's terms, and ONNX's own tables of what it may hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bnjax import core
from bnjax._variables import flatten
from bnjax.interop._optional import optional

# Operator of ONNX, and the function of this library that computes it.
KINDS = {
    "BatchNormalization": "batch_norm",
    "InstanceNormalization": "instance_norm",
    "LayerNormalization": "layer_norm",
    "GroupNormalization": "group_norm",
    "RMSNormalization": "rms_norm",
}
# Versions of these operators (the opsets that changed them) whose meaning is known here.
VERSIONS = {
    "BatchNormalization": (7, 9, 14, 15),
    "InstanceNormalization": (6, 22),
    "LayerNormalization": (17,),
    "GroupNormalization": (18, 21),
    "RMSNormalization": (23,),
}
# Collection of each input after X, in ONNX's order. Its own names differ (B, bias; input_mean).
LEAVES = {"scale": "params", "bias": "params", "mean": "batch_stats", "var": "batch_stats"}


class OnnxNorm(NamedTuple):
    r"""One normalisation of an ONNX model: a function of bnjax, its options and its arrays.

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta

    with :math:`\gamma, \beta` in ``variables["params"]``, :math:`\epsilon` in ``options``, and
    :math:`\mu, v` taken from ``x`` or, by a batch norm that evaluates, from
    ``variables["batch_stats"]``. Made by :func:`bnjax.interop.from_onnx`, or by hand for
    :func:`bnjax.interop.to_onnx`.

    Attributes:
      name: that of the node.
      kind: ``"batch_norm"``, ``"instance_norm"``, ``"layer_norm"``, ``"group_norm"`` or
        ``"rms_norm"``: the function of :mod:`bnjax`.
      options: its keyword arguments. ONNX has channels on axis 1; ``axes`` are counted from the
        end.
      variables: ``{"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}``, as far as the
        kind has them, or an ``nnx.State`` of these. They fit the linen module of the kind: for a
        batch norm, ``bnjax.linen.BatchNorm(axis=1, momentum=options["decay"],
        epsilon=options["epsilon"])``.

    Example:
      >>> import numpy as np
      >>> from bnjax.interop import OnnxNorm
      >>> params = {"scale": np.array([1, 2], np.float32), "bias": np.zeros(2, np.float32)}
      >>> norm = OnnxNorm("ln", "layer_norm", {"epsilon": 1e-5}, {"params": params})
      >>> y, _ = norm.apply(np.array([[1, 3], [10, 30]], np.float32))
      >>> print(y.round(3))
      [[-1.  2.]
       [-1.  2.]]

    Source: the operators of ONNX. PyTorch's and Flax's epsilons, momenta and axes differ; see
    ``bnjax/core/_feature_norms.py``.
    """

    name: str
    kind: str
    options: dict[str, Any]
    variables: Any

    def apply(self, x: Any) -> tuple[Any, Any]:
        """What the node computes.

        Args:
          x: its input X.

        Returns:
          ``(y, variables)``; the variables differ from those of the norm in ``batch_stats`` alone,
          and only in training.
        """
        norm = getattr(core, self.kind)
        flat, rebuild = flatten(self.variables)
        scale, bias = flat.get(("params", "scale")), flat.get(("params", "bias"))
        if self.kind != "batch_norm":
            return norm(x, scale, bias, **self.options), self.variables
        # ONNX does not count updates: its statistics are taken as seen.
        mean, var = flat["batch_stats", "mean"], flat["batch_stats", "var"]
        stats = core.BatchStats(mean, var, np.ones((), np.int32))
        y, stats = norm(x, scale, bias, stats, **self.options)
        # A node's new statistics have the type of the old.
        new = {("batch_stats", "mean"): stats.mean.astype(mean.dtype)}
        new["batch_stats", "var"] = stats.var.astype(var.dtype)
        return y, rebuild(flat | new)


def schema_of(op_type: str, opset: int) -> Any:
    """ONNX's description of ``op_type`` in ``opset``, if its meaning is known here."""
    defs = optional("onnx").defs
    newest = defs.onnx_opset_version()
    if opset > newest:
        raise ValueError(
            f"opset {opset} is newer than {newest}, the last that the installed onnx knows. "
            "Upgrade onnx, or convert the model with onnx.version_converter."
        )
    try:
        schema = defs.get_schema(op_type, opset, "")
    except defs.SchemaError:
        schema = None
    if schema is None:
        raise ValueError(
            f"in opset {opset} {op_type} does not exist, so that the model is not valid, nor can "
            f"onnx.version_converter convert it. Export it with opset {VERSIONS[op_type][0]} or "
            "later"
        )
    if schema.since_version not in VERSIONS[op_type]:
        raise ValueError(
            f"in opset {opset} {op_type} is of version {schema.since_version}; known versions are "
            f"{', '.join(map(str, VERSIONS[op_type]))}. Convert the model with "
            "onnx.version_converter.convert_version(model, 21), or later."
        )
    return schema
