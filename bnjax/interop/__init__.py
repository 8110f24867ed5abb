"""Variables from and for other programs; each foreign library is imported where it is needed.

Checkpoints: ``load_variables`` reads orbax, safetensors, msgpack and npz, whatever tree was saved;
``save_safetensors`` writes one.

Models of other libraries: ``from_torch``, ``from_keras``, ``from_haiku`` and ``from_equinox`` fill
a tree of variables, ``to_torch``, ``to_keras``, ``to_haiku`` and ``to_equinox`` read the same rules
backwards, ``load_torch`` reads torch's files. ``batch_norm_options`` are momentum, epsilon and
convention of each layer, which no file of weights holds; ``check_batch_norms`` compares them.

ONNX: ``from_onnx`` reads every norm of a model as an ``OnnxNorm``, ``to_onnx`` writes one; whole
models are exported by jax2onnx, which ``register_jax2onnx`` teaches the norms of bnjax.
"""

from bnjax.interop._batch_norms import batch_norm_options, check_batch_norms
from bnjax.interop._equinox import from_equinox, to_equinox
from bnjax.interop._files import load_variables
from bnjax.interop._from_onnx import from_onnx
from bnjax.interop._haiku import from_haiku, to_haiku
from bnjax.interop._jax2onnx import register_jax2onnx
from bnjax.interop._keras import from_keras, to_keras
from bnjax.interop._onnx import OnnxNorm
from bnjax.interop._safetensors import save_safetensors
from bnjax.interop._to_onnx import to_onnx
from bnjax.interop._torch import from_torch, load_torch, to_torch

__all__ = [
    "OnnxNorm",
    "batch_norm_options",
    "check_batch_norms",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_onnx",
    "from_torch",
    "load_torch",
    "load_variables",
    "register_jax2onnx",
    "save_safetensors",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_onnx",
    "to_torch",
]
