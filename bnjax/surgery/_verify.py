"""Compare a network with what a surgery made of it, on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.core._owned import owned
from bnjax.surgery._models import Model, run

Network = Callable[..., Any] | tuple[Model, Any]


class Difference(NamedTuple):
    """The largest differences between the outputs of two networks.

    Attributes:
      max_abs: largest absolute difference.
      max_relative: largest difference in standard deviations of that output in that batch.
      batch: index of the batch in which ``max_relative`` occurs.
      output: which output that is, as a path in the tree of outputs; empty for a single array.
      batches: number of batches compared.

    Example:
      >>> from bnjax.surgery import Difference
      >>> print(Difference(2e-6, 1e-6, 3, "", 10))
      largest difference 2e-06, 1e-06 of the standard deviation (batch 3 of 10)

    Source: bnjax.
    """

    max_abs: float
    max_relative: float
    batch: int
    output: str
    batches: int

    def __str__(self) -> str:
        where = f"batch {self.batch} of {self.batches}" + (
            f", {self.output}" if self.output else ""
        )
        return (
            f"largest difference {self.max_abs:.3g}, {self.max_relative:.3g} of the standard "
            f"deviation ({where})"
        )


def verify(
    before: Network,
    after: Network,
    batches: Iterable[Any],
    *,
    tolerance: float | None = 1e-3,
    **kwargs: Any,
) -> Difference:
    r"""Compare two networks on data, and refuse if they differ.

    .. math::
        \max_i \frac{|y_i - y'_i|}{\operatorname{std}(y)}

    over all batches and outputs: :math:`y` of ``before`` and :math:`y'` of ``after``, the standard
    deviation that of one output in one batch. Both are compiled, and multiply matrices in full
    precision, so that TensorFloat-32 does not hide what is looked for.

    Args:
      before, after: functions of a batch, or pairs of a model and its variables as the functions
        of :mod:`bnjax.surgery` take and return them.
      batches: each an array, or a tuple of arguments.
      tolerance: largest legal value; None reports only.
      **kwargs: passed to every call, ``train=False`` for example.

    Returns:
      :class:`Difference`.

    Raises:
      ValueError: the difference exceeds ``tolerance``, an output is infinite or NaN, outputs have
        different shapes or trees, or there is no batch.

    Example:
      >>> import jax.numpy as jnp
      >>> from bnjax.surgery import verify
      >>> x = jnp.arange(8.0)
      >>> print(verify(lambda x: 2 * x, lambda x: x + x + 1e-3, [x, -x]))
      largest difference 0.001, 0.000218 of the standard deviation (batch 0 of 2)

    Source: bnjax. PyTorch and Flax leave it to ``allclose``.
    """
    return compare(
        _network(before, kwargs), _network(after, kwargs), map(_as_tuple, batches), tolerance
    )


def compare(before, after, batches: Iterable[tuple], tolerance: float | None) -> Difference:
    """:func:`verify` of pairs ``(function of variables and arrays, variables)``."""
    old, new = (jax.jit(call) for call, _ in (before, after))
    found = []
    with jax.default_matmul_precision("highest"):
        for index, batch in enumerate(batches):
            found += _differences(old(before[1], *batch), new(after[1], *batch), index)
    if not found:
        raise ValueError("batches is empty: there is nothing to compare.")
    worst = max(found, key=lambda difference: difference.max_relative)
    largest = max(difference.max_abs for difference in found)
    worst = worst._replace(max_abs=largest, batches=1 + found[-1].batch)
    if tolerance is not None and worst.max_relative > tolerance:
        raise ValueError(f"{worst} exceeds tolerance={tolerance:.3g}.")
    return worst


def _network(network: Network, kwargs):
    if callable(network):
        return (lambda _, *batch: network(*batch, **kwargs)), None
    if isinstance(network, tuple) and len(network) == 2:
        model, variables = network
        return (lambda variables, *batch: run(model, variables, batch, kwargs)), variables
    raise TypeError(
        "before and after must be functions or pairs (model, variables), got "
        f"{type(network).__name__}."
    )


def _as_tuple(batch):
    batch = owned(batch)
    return batch if isinstance(batch, tuple) else (batch,)


def _differences(before, after, batch):
    """One :class:`Difference` for each output."""
    trees = jax.tree.structure(before), jax.tree.structure(after)
    if trees[0] != trees[1]:
        raise ValueError(f"outputs differ in structure: {trees[0]} before, {trees[1]} after.")
    found = []
    for (path, y), z in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        output = jax.tree_util.keystr(path)
        y, z = _on_host(y, "before", batch, output), _on_host(z, "after", batch, output)
        if y.shape != z.shape:
            raise ValueError(f"output {output} has shape {y.shape} before and {z.shape} after.")
        if y.size:
            largest = float(np.abs(y - z).max())
            found.append(Difference(largest, _relative(largest, y), batch, output, 0))
    return found


def _on_host(y, which, batch, output):
    """The output in double precision; infinities and NaN are an error, whatever the other has."""
    y = np.asarray(jnp.asarray(y).astype(jnp.float32) if jnp.asarray(y).dtype.itemsize < 4 else y)
    y = y.astype(np.complex128 if np.iscomplexobj(y) else np.float64)
    bad = int((~np.isfinite(y)).sum())
    if bad:
        raise ValueError(
            f"{which}: {bad} of {y.size} values are infinite or NaN in batch {batch}"
            f"{', output ' + output if output else ''}. Nothing can be compared."
        )
    return y


def _relative(largest, y) -> float:
    """In standard deviations; of a constant output, in parts of it."""
    unit = float(np.std(y)) or float(np.abs(y).max())
    return largest / unit if unit else (np.inf if largest else 0.0)
