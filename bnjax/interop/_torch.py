"""PyTorch's ``state_dict`` as variables, and back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnjax.interop import _mapping
from bnjax.interop._mapping import Layout, Place, Places, Rename, Shape, leaf_name, reshaped
from bnjax.interop._optional import optional
from bnjax.interop._safetensors import is_safetensors, read_safetensors

# torch's names of what a norm or a layer holds, but for weights: collection and name in Flax.
LEAVES = {
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
    "num_batches_tracked": ("batch_stats", "count"),
}


def from_torch(
    source: Any,
    variables: Any,
    rename: Rename = (),
    *,
    transposed: str | None = None,
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
    ignore: str | None = None,
) -> Any:
    r"""Variables with the weights and running statistics of a PyTorch model.

    ==========================  ====================================  ===========================
    torch                       Flax                                  how
    ==========================  ====================================  ===========================
    ``weight``, 1 axis          ``params/scale``                      as it is
    ``weight``, 2 axes          ``params/kernel``, or ``embedding``   (out, in) → (in, out), or
                                                                      as it is
    ``weight``, 3 to 5 axes     ``params/kernel``                     OIHW → HWIO, groups alike
    ``bias``, other parameters  ``params/bias``, same name            as they are
    ``running_mean``, ``_var``  ``batch_stats/mean``, ``var``         as they are
    ``num_batches_tracked``     ``batch_stats/count``                 left out where the layer has
                                                                      no ``count``
    ==========================  ====================================  ===========================

    The running statistics mean the same in both; how training moves them does not, nor is
    epsilon in a ``state_dict``: see :func:`batch_norm_options`.

    Args:
      source: a ``state_dict`` of tensors or NumPy arrays (then torch need not be installed), or
        the ``torch.nn.Module`` itself.
      variables: what is to be filled: linen's ``{"params": ..., "batch_stats": ...}`` or an
        ``nnx.State``, of arrays or ``jax.ShapeDtypeStruct``. It says which paths, shapes and
        dtypes are expected. Other collections are carried along.
      rename: pairs (regular expression, replacement), applied in turn to the name of each layer,
        such as ``"layer1.0.bn1"``; dots that are left separate the path.
      transposed: regular expression, found in the names of the transposed convolutions whose
        target is Flax's ``ConvTranspose``. Leave out those with ``transpose_kernel=True``.
      flattened: (C, H, W) by regular expression, for linear layers that read a flattened map
        whose channels come first in torch and last in Flax.
      ignore: regular expression; names and leaves in which it is found are left as they are.

    Returns:
      A tree of the kind, the shapes and the dtypes of ``variables``.

    Raises:
      ValueError: lists all unknown, missing, doubly led to and mis-shaped names; or all values
        that do not fit into the dtype of their leaf.
      TypeError: an entry of ``source`` is no array.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from bnjax.interop import from_torch
      >>> from bnjax.linen import BatchNorm
      >>> names = ("weight", "bias", "running_mean", "running_var")
      >>> state_dict = {name: np.arange(2.0) for name in names}
      >>> norm = BatchNorm(use_running_average=True)
      >>> variables = jax.eval_shape(norm.init, jax.random.key(0), jnp.ones((1, 2)))
      >>> print(from_torch(state_dict, variables)["batch_stats"]["mean"])
      [0. 1.]

    Source: PyTorch's ``load_state_dict(strict=True)``, which neither transposes nor renames, and
    casts 1e6 to an infinite half without a word.
    """
    foreign = _state_dict(source)
    places = _places_of(foreign, rename, transposed, flattened)
    return _mapping.read(foreign, variables, places, "torch", ignore)


def to_torch(
    variables: Any,
    like: Any,
    rename: Rename = (),
    *,
    transposed: str | None = None,
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
    ignore: str | None = None,
) -> dict[str, Any]:
    r"""A ``state_dict`` with the values of variables: :func:`from_torch` read backwards.

    Args:
      variables: of linen or nnx.
      like: the ``torch.nn.Module`` to be filled (on the device ``"meta"`` if its values are of
        no use) or its ``state_dict``: it says which names, shapes and dtypes are expected. It is
        left as it is.
      rename, transposed, flattened: those of :func:`from_torch`, from torch's names to paths.
      ignore: regular expression; names in which it is found, or whose leaves it is found in,
        keep the value of ``like``.

    Returns:
      A ``state_dict`` for ``module.load_state_dict``: tensors, or NumPy arrays where ``like`` has
      those. In layers without ``count`` ``num_batches_tracked`` keeps the value of ``like``, 0 in
      a new module.

    Raises:
      ValueError, TypeError: as :func:`from_torch`.

    Example:
      >>> import numpy as np
      >>> from bnjax.interop import to_torch
      >>> variables = {"params": {"kernel": np.arange(6.0).reshape(3, 2), "bias": np.ones(2)}}
      >>> like = {"weight": np.zeros((2, 3)), "bias": np.zeros(2)}
      >>> print(to_torch(variables, like)["weight"])
      [[0. 2. 4.]
       [1. 3. 5.]]

    Source: PyTorch's layouts of ``Linear`` and ``Conv2d``; the names come from the model rather
    than from a second list of rules, so that both directions agree.
    """
    foreign = _state_dict(like)
    places = _places_of(foreign, rename, transposed, flattened)
    new = _mapping.write(variables, foreign, places, "torch", ignore)
    return {
        name: _like(new[name], old) if name in new else _left(name, old)
        for name, old in foreign.items()
    }


def load_torch(path: str | Path) -> dict[str, Any]:
    """The weights in a file that PyTorch or safetensors wrote. No pickled code is run.

    Args:
      path: a file of ``torch.save`` (read with ``weights_only=True``, to the CPU, and needing
        torch), or one of safetensors (which needs no torch); the first bytes say which.

    Returns:
      What was saved: tensors by name, or NumPy arrays out of safetensors. Of a checkpoint with
      more in it, the ``state_dict`` is one entry.

    Raises:
      ValueError: the file holds more than weights, or is damaged. Nothing of it was run.
      ImportError: torch or safetensors is not installed.

    Example:
      >>> import pathlib, tempfile, numpy as np
      >>> from safetensors.numpy import save_file
      >>> from bnjax.interop import load_torch
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "weights.safetensors")
      ...     save_file({"bn.weight": np.ones(2)}, path)
      ...     print(load_torch(path))
      {'bn.weight': array([1., 1.])}

    Source: ``torch.load(weights_only=True)``, which in its errors advises to switch that off.
    """
    torch = None if _is_safetensors(Path(path)) else optional("torch", "torch")
    try:
        if torch is None:
            return {name: leaf for (name,), leaf in read_safetensors(Path(path)).items()}
        with open(path, "rb") as file:  # of a path torch goes by the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except (ImportError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # what is damaged gives errors of every kind
        raise ValueError(
            f"{path} holds more than tensors, or is damaged; nothing of it was run. Where it was "
            "written, save only weights: torch.save(model.state_dict(), path)."
        ) from error


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError:
        head = b""
    torch = head[:2] in (b"PK", b"\x80\2")
    return is_safetensors(head) or (path.suffix == ".safetensors" and not torch)


def _state_dict(source: Any) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if hasattr(source, "state_dict"):
        return source.state_dict()
    raise TypeError(
        "torch's weights must be a state_dict or a torch.nn.Module, got "
        f"{type(source).__name__}. A file is read by load_torch(path)."
    )


def _places_of(
    foreign: Mapping[str, Any],
    rename: Rename,
    transposed: str | None,
    flattened: Mapping[str, tuple[int, int, int]] | None,
) -> Places:
    """The rules for the layers of ``foreign``."""
    convolutions = _mapping.layers_with(foreign, "weight", ".", _mapping.CONVOLUTION)
    linear = _mapping.layers_with(foreign, "weight", ".", range(2, 3))
    maps = {
        layer: shape
        for pattern, shape in (flattened or {}).items()
        for layer in _mapping.chosen(linear, pattern, "flattened")
    }
    chosen = _mapping.chosen(convolutions, transposed, "transposed")
    return functools.partial(_places, rename=rename, transposed=chosen, flattened=maps)


def _places(
    name: str,
    shape: Shape,
    leaves: Iterable[str],
    *,
    rename: Rename,
    transposed: set[str],
    flattened: Mapping[str, tuple[int, int, int]],
) -> Sequence[Place] | None:
    layer, _, leaf = name.rpartition(".")
    path = _mapping.renamed(layer, rename).replace(".", "/")
    if leaf == "num_batches_tracked" and _uncounted(path, leaves):
        return None  # only an average of all updates needs to know how many there were
    if leaf != "weight" or len(shape) < 2:
        collection, ours = LEAVES.get(leaf, ("params", "scale" if leaf == "weight" else leaf))
        return [Place(leaf_name(collection, path, ours), reshaped(shape))]
    kernel = _kernel(shape, layer in transposed, flattened.get(layer))
    return [
        Place(leaf_name("params", path, "kernel"), kernel),
        Place(leaf_name("params", path, "embedding"), reshaped(shape)),
    ]


def _uncounted(path: str, leaves: Iterable[str]) -> bool:
    """Whether a layer has running statistics and does not count their updates."""
    mean, count = (leaf_name("batch_stats", path, leaf) for leaf in ("mean", "count"))
    return mean in leaves and count not in leaves


def _kernel(shape: Shape, transposed: bool, flattened: tuple[int, int, int] | None) -> Layout:
    if flattened:
        channels, height, width = flattened
        split = (shape[0], channels, height, width)
        return Layout(split, (2, 3, 1, 0), (height * width * channels, shape[0]))
    space = range(2, len(shape))
    if transposed:  # torch's is the gradient of a convolution: (in, out, ...), running backwards
        return _mapping.transposed(shape, [*space, 0, 1], tuple(range(len(space))))
    return _mapping.transposed(shape, [*space, 1, 0])


def _like(x: np.ndarray, old: Any) -> Any:
    """``x`` as a tensor if ``old`` is one."""
    if not hasattr(old, "detach"):
        return x
    # NumPy has no bfloat16 that torch knows of; float32 holds all narrower values.
    narrow = x.dtype.kind not in "iubc" and x.itemsize < 4
    x = np.array(x, np.float32 if narrow else x.dtype)
    return optional("torch", "torch").from_numpy(x).to(old.dtype)


def _left(name: str, old: Any) -> Any:
    """What a name without a counterpart keeps; a counter without a value starts at 0."""
    if name.endswith("num_batches_tracked") and getattr(old, "is_meta", False):
        return optional("torch", "torch").zeros_like(old, device="cpu")
    return old
