"""What the tests of ONNX share: norms of every kind, and nodes written by hand."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnjax.interop import OnnxNorm

# kind: options beside epsilon, by name of the case, with the axes of x that have parameters.
CASES = {
    "batch": ("batch_norm", {"axis": 1, "decay": 0.75, "ddof": 0, "train": False}, (1,)),
    "batch, training": ("batch_norm", {"axis": 1, "decay": 0.75, "ddof": 0, "train": True}, (1,)),
    "instance": ("instance_norm", {"axis": 1}, (1,)),
    "layer": ("layer_norm", {"axes": (-1,)}, (-1,)),
    "layer, three axes": ("layer_norm", {"axes": (-3, -2, -1)}, (-3, -2, -1)),
    "layer, few": ("layer_norm", {"axes": (-3, -2, -1), "param_axes": (-3,)}, (-3,)),
    "layer, many": ("layer_norm", {"axes": (-1,), "param_axes": (-3, -1)}, (-3, -1)),
    "group": ("group_norm", {"axis": 1, "num_groups": 3}, (1,)),
    "rms": ("rms_norm", {"axes": (-2, -1)}, (-2, -1)),
}


def draw(case, shape, dtype, epsilon=1e-5, seed=0):
    """A norm with random arrays."""
    kind, options, axes = CASES[case]
    rng = np.random.default_rng(seed)
    features = [shape[a] for a in axes]
    params = {"scale": rng.uniform(0.5, 1.5, features).astype(dtype)}
    if kind != "rms_norm":
        params["bias"] = rng.normal(size=features).astype(dtype)
    variables = {"params": params}
    if kind == "batch_norm":
        mean, var = rng.normal(size=features), rng.uniform(0.5, 1.5, features)
        variables["batch_stats"] = {"mean": mean.astype(dtype), "var": var.astype(dtype)}
    return OnnxNorm(case, kind, options | {"epsilon": epsilon}, variables)


def model(*nodes, arrays=(), shapes=None, opset=21, **options):
    """A model of these nodes; ``arrays`` are initialisers by name, ``shapes`` those of inputs."""
    float32 = onnx.TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(name, float32, shape)
        for name, shape in ({"x": None} if shapes is None else shapes).items()
    ]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], float32, None)]
    stored = [numpy_helper.from_array(np.asarray(a), name) for name, a in dict(arrays).items()]
    graph = helper.make_graph(list(nodes), "graph", inputs, outputs, stored)
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, **options)


def node(op_type, *params, name=None, outputs=None, **attributes):
    """A node of ``x``; its outputs have names of their own."""
    outputs = [f"{name or op_type} of x"] if outputs is None else outputs
    return helper.make_node(op_type, ["x", *params], outputs, name, **attributes)


def ones(*names, size=3):
    """Initialisers for :func:`model`."""
    return {name: np.ones(size, np.float32) for name in names}
