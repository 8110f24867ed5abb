"""PyTorch's ``state_dict`` as variables, and back."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bnjax.interop import _mapping
from bnjax.interop._limits import Limit, TooLarge, check_zip, limit_of
from bnjax.interop._names import Choice, Rename
from bnjax.interop._optional import optional
from bnjax.interop._safetensors import is_safetensors, read_safetensors
from bnjax.interop._torch_names import names_of

_READS = 2  # instructions of a pickle, at least, that make an entry of a tree


def from_torch(
    source: Any,
    variables: Any,
    rename: Rename = (),
    *,
    transposed: Choice = None,
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
    channels_first: Choice = None,
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
    ``weight`` of a norm over   ``params/scale``, and ``bias`` alike  as it is, or CHW → HWC
    several axes
    ``bias``, other parameters  ``params/bias``, same name            as they are
    ``running_mean``, ``_var``  ``batch_stats/mean``, ``var``         as they are
    ``num_batches_tracked``     ``batch_stats/count``                 left out where the layer has
                                                                      no ``count``
    ``in_proj_weight``,         ``query``, ``key``, ``value`` of      in three, (out, in) →
    ``in_proj_bias``            Flax's attention                      (in, heads, features)
    ``out_proj.weight``         ``out``                               (heads, features, out)
    ==========================  ====================================  ===========================

    The running statistics mean the same in both; how training moves them does not, nor is
    epsilon in a ``state_dict``: see :func:`batch_norm_options`. A norm that has statistics but no
    ``num_batches_tracked`` (a frozen one, an old file) leaves ``count`` at 0, which beside them
    means an unknown number of updates.

    A module knows more than its ``state_dict``. Its transposed convolutions are known by their
    type; and buffers that have no leaf are left out where they are constants (tables of
    positions, anchors, masks): all but those of norms, and those whose name says that training
    keeps them (``ema_w``, ``cluster_size``). Given names alone, a kernel of as many channels in as
    out is taken for that of an ordinary convolution, unless something speaks for the other; then
    an error asks for ``transposed``. That is the layer's own name on either side (``up``,
    ``deconv``, ``ConvTranspose_0``); or, where neither side says ``conv`` or ``down``, a mere
    number for a name or an even size, such as 2 × 2; or a shape that fits in no other way.

    Args:
      source: a ``state_dict`` of tensors or NumPy arrays (then torch need not be installed), or
        the ``torch.nn.Module`` itself.
      variables: what is to be filled: linen's ``{"params": ..., "batch_stats": ...}`` or an
        ``nnx.State``, of arrays or ``jax.ShapeDtypeStruct``. It says which paths, shapes and
        dtypes are expected. Other collections are carried along.
      rename: pairs (regular expression, replacement) and functions from a name to the new one,
        applied in turn to the name of each layer, such as ``"layer1.0.bn1"``; or one such
        function. Dots that are left separate the path.
      transposed: regular expression, found in the names of the transposed convolutions whose
        target is Flax's ``ConvTranspose``; all others are then ordinary ones, or have a target
        with ``transpose_kernel=True``. False if there is none. None goes by types and shapes,
        and takes a target that fits both ways for one with ``transpose_kernel=False``.
      flattened: (C, H, W) by regular expression, for linear layers that read a flattened map
        whose channels come first in torch and last in Flax.
      channels_first: regular expression, found in the names of the norms over several axes whose
        channels come first in torch and last in Flax, as in ``LayerNorm([C, H, W])``; the axes of
        all others keep their order. False if there is none. Needed where the sizes are equal;
        None goes by the shapes.
      ignore: regular expression; names and leaves in which it is found are left as they are, such
        as the head for other classes: ``r"^fc\b"``. What is left must have a value, which
        ``jax.eval_shape`` does not give.

    Returns:
      A tree of the kind, the shapes and the dtypes of ``variables``.

    Raises:
      ValueError: lists all unknown, missing, doubly led to, mis-shaped and doubtful names; or all
        values that do not fit into the dtype of their leaf; or all leaves that nothing fills, and
        that are a ``jax.ShapeDtypeStruct`` without a value to be left at.
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
    names = names_of(foreign, source, rename, transposed, flattened, channels_first)
    return _mapping.read(foreign, variables, names, "torch", ignore)


def to_torch(
    variables: Any,
    like: Any,
    rename: Rename = (),
    *,
    transposed: Choice = None,
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
    channels_first: Choice = None,
    ignore: str | None = None,
) -> dict[str, Any]:
    r"""A ``state_dict`` with the values of variables: :func:`from_torch` read backwards.

    Args:
      variables: of linen or nnx.
      like: the ``torch.nn.Module`` to be filled (on the device ``"meta"`` if its values are of
        no use) or its ``state_dict``: it says which names, shapes and dtypes are expected. It is
        left as it is.
      rename, transposed, flattened, channels_first: those of :func:`from_torch`, from torch's names
        to paths.
      ignore: regular expression; names in which it is found, or whose leaves it is found in,
        keep the value of ``like``.

    Returns:
      A ``state_dict`` for ``module.load_state_dict``: tensors, or NumPy arrays where ``like`` has
      those. In layers without ``count`` ``num_batches_tracked`` keeps the value of ``like``, 0 in
      a new module; so do constant buffers.

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
    names = names_of(foreign, like, rename, transposed, flattened, channels_first)
    new = _mapping.write(variables, foreign, names, "torch", ignore)
    return {
        name: _like(new[name], old) if name in new else _left(name, old)
        for name, old in foreign.items()
    }


def load_torch(path: str | Path, *, max_bytes: int | None = None) -> dict[str, Any]:
    """The weights in a file that PyTorch or safetensors wrote. No pickled code is run.

    Args:
      path: a file of ``torch.save`` (read with ``weights_only=True``, to the CPU, and needing
        torch), or one of safetensors (which needs no torch); the first bytes say which.
      max_bytes: how much may be read; by default four times the size of the file, and 256 MiB at
        least.

    Returns:
      What was saved: tensors by name, or NumPy arrays out of safetensors. Of a checkpoint with
      more in it, the ``state_dict`` is one entry.

    Raises:
      ValueError: the file holds more than weights, is damaged, or promises more than
        ``max_bytes``; or it is a pipe, a socket or a device. Nothing of it was run.
      OSError: there is no such file, or it cannot be opened.
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
    path = Path(path)
    if path.exists():
        limit_of(max_bytes, path)  # refuses what is no file, before it is opened
    torch = None if _is_safetensors(path) else optional("torch", "torch")
    limit = limit_of(max_bytes, path)
    try:
        if torch is None:
            return {name: leaf for (name,), leaf in read_safetensors(path, max_bytes).items()}
        _check_archive(path, limit)
        with _Counted(path, limit) as file:  # of a path torch goes by the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except (ImportError, FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except TooLarge as error:
        raise ValueError(f"{path}: {error}.") from error
    except Exception as error:  # what is damaged gives errors of every kind
        raise ValueError(
            f"{path} holds more than tensors, or is damaged; nothing of it was run. Where it was "
            "written, save only weights: torch.save(model.state_dict(), path)."
        ) from error


class _Counted(io.BufferedReader):
    """A file that refuses to be read in too many pieces: a pickle is read instruction by
    instruction, and each of one byte can be a list."""

    def __init__(self, path: Path, limit: Limit):
        super().__init__(io.FileIO(path))
        self._limit, self._reads = limit, 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if not self._reads % 2**16:  # to ask every time would take longer than to read
            self._limit.check_nodes(self._reads // _READS)
        return super().read(size)


def _check_archive(path: Path, limit: Limit) -> None:
    """Raise if what is packed in a file of torch comes to more than may be read."""
    if not zipfile.is_zipfile(path):
        return
    check_zip(path, limit)
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
    for member in members:
        if member.filename.endswith(".pkl"):
            limit.check_nodes(member.file_size // _READS)
    limit.check_arrays(len(members), sum(member.file_size for member in members))


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
