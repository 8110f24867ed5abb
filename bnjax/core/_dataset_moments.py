"""Mean and variance of a whole data set, from batches of it."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bnjax.core._axes import Axes, other_axes
from bnjax.core._checks import as_array, canonical_axes
from bnjax.core._moments import Moments, merge, moments


def dataset_moments(batches: Iterable[ArrayLike], *, axis: Axes = -1) -> Moments:
    r"""Moments of each feature over all batches, for standardising inputs.

    .. math::
        M = M_1 \oplus M_2 \oplus \dots, \qquad \hat x = \frac{x - \mu}{\sqrt{v + \epsilon}}

    with :math:`\oplus` = :func:`bnjax.merge`, in float64, so the result does not depend on how
    the data are cut into batches, even of unequal sizes. Apply it with :func:`bnjax.normalize`,
    to training *and* test data. The well-known constants of ImageNet are such moments::

        mean, std = jnp.array([0.485, 0.456, 0.406]), jnp.array([0.229, 0.224, 0.225])
        x_hat = bnjax.normalize(images / 255, mean, std**2, epsilon=0.0)

    Args:
      batches: arrays with the same features; integers (uint8 images) are taken as float32. For a
        progress bar wrap it: ``rich.progress.track(batches)``.
      axis: the feature axis or axes: -1 for one mean a channel of NHWC, (1, 2, 3) for one a pixel.

    Returns:
      :class:`Moments`, float32 at least.

    Raises:
      ValueError: there is no batch, or one has other features than the first.

    Example:
      >>> import jax.numpy as jnp, bnjax
      >>> data = jnp.array([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0]])
      >>> m = bnjax.dataset_moments(data[i : i + 2] for i in (0, 2))
      >>> print(m.count, m.mean, m.m2)
      3.0 [ 3. 30.] [  8. 800.]
      >>> print(bnjax.normalize(data, m.mean, m.var()).round(3)[0])
      [-1.225 -1.225]

    Source: LeCun et al. (1998), *Efficient BackProp*, §4.3. Keras has ``Normalization.adapt``,
    scikit-learn ``StandardScaler.partial_fit``; PyTorch and Flax leave it to the user.
    """
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of arrays, got {type(batches).__name__}.")
    step = jax.jit(lambda x: moments(x, other_axes(canonical_axes(axis, x.ndim, "axis"), x.ndim)))
    total = None
    for number, batch in enumerate(batches):
        # A copy, for the reason told in `owned`; here lists and torch's tensors will do too.
        own = batch if isinstance(batch, jax.Array) else np.array(batch)
        x = as_array(own, "each of batches")
        part = step(x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32))
        jax.block_until_ready(part)  # a JAX array may share the memory that is refilled, too
        if total is not None and part.mean.shape != total.mean.shape:
            raise ValueError(
                f"batch {number} has features of shape {part.mean.shape}, those before "
                f"{total.mean.shape} (axis={axis!r})."
            )
        total = part if total is None else merge_in_float64(total, part)
    if total is None:
        raise ValueError("batches is empty: there is nothing to take moments of.")
    return jax.tree.map(lambda v, like: jnp.asarray(v, like.dtype), total, part)


def merge_in_float64(a: Moments, b: Moments) -> Moments:
    # Thousands of merges in float32 would add up thousands of roundings.
    with jax.enable_x64(True):
        return merge(*(jax.tree.map(_wide, m) for m in (a, b)))


def _wide(v):
    return jnp.asarray(v, jnp.complex128 if jnp.iscomplexobj(v) else jnp.float64)
