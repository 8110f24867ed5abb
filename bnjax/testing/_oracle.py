"""The oracle: batch normalization in NumPy, written down once and derived by hand.

It shares no code and no algorithm with the library. Everything is computed in the widest float
NumPy has (80-bit ``longdouble`` on x86), in the plain order of the definitions: mean first, then
the differences from the mean, then their squares. Results come back as float64 or complex128.

Conventions, the same in every function:

* ``axis`` names the kept feature axis or axes; all other axes are averaged over. Per-channel
  arrays (``mean``, ``var``, ``count``, ``scale``, ``bias``) have the kept axes in ascending order.
* ``mask`` is anything that broadcasts to ``x``; True counts. An entry that does not count takes no
  part in the statistics, yet is normalised like the others. If such an entry is not finite, its
  output is ``bias`` and its gradient is zero. A channel without any valid entry outputs ``bias``.
* Complex cotangents follow JAX: a cotangent ``dy`` stands for the change ``Re(sum(dy * delta_y))``
  of a real loss, so derivatives multiply and nothing is conjugated on the way. (PyTorch's
  gradients are the complex conjugates of these.)
"""

from typing import Any, NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Number of valid entries, their mean, and the sum of their squared distances from it."""

    count: np.ndarray  # per channel
    mean: np.ndarray  # per channel
    m2: np.ndarray  # per channel, real

    def var(self, ddof: int = 0) -> np.ndarray:
        """``m2 / (count - ddof)``; 0 where no degree of freedom is left."""
        freedom = self.count - ddof
        return np.where(freedom > 0, self.m2 / np.maximum(freedom, 1), 0.0)


class Cache(NamedTuple):
    """What the forward pass hands to the backward pass; all but `axes` in the widest float."""

    x_hat: np.ndarray  # shape of x
    centered: np.ndarray  # shape of x; 0 where the entry is cut off from the graph
    rstd: np.ndarray  # 1 / sqrt(var + epsilon), with kept dimensions
    share: np.ndarray  # weight of each entry in the mean: 1 / count if valid, otherwise 0
    live: np.ndarray  # False where the output is `bias` whatever x is
    scale: np.ndarray | None  # with kept dimensions
    bias: np.ndarray | None  # with kept dimensions
    axes: tuple[int, ...]  # the reduced axes


class Forward(NamedTuple):
    """Result of `batch_norm_forward`; `var` is the population variance."""

    y: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    count: np.ndarray
    cache: Cache


def moments(x: Any, axes: int | tuple[int, ...], mask: Any = None) -> Moments:
    """Count, mean and summed squared deviation of the valid entries of `x` over `axes`."""
    x = _wide(x)
    axes = _canonical(axes, x.ndim)
    valid = _valid(mask, x.shape)
    count = valid.sum(axes, keepdims=True)
    mean = np.where(valid, x, 0).sum(axes, keepdims=True) / np.maximum(count, 1)
    centered = np.where(valid, x - mean, 0)
    m2 = _abs2(centered).sum(axes)
    return Moments(_narrow(count.squeeze(axes)), _narrow(mean.squeeze(axes)), _narrow(m2))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets of entries."""
    count = a.count + b.count
    some = np.maximum(count, 1)
    mean = (a.count * a.mean + b.count * b.mean) / some
    m2 = a.m2 + b.m2 + _abs2(a.mean - b.mean) * a.count * b.count / some
    return Moments(count, mean, m2)


def normalize(
    x: Any, mean: Any, var: Any, *, epsilon: float = 1e-5, axis: int | tuple[int, ...] = -1
) -> np.ndarray:
    """``(x - mean) / sqrt(var + epsilon)`` with given statistics: the evaluation path."""
    x = _wide(x)
    mean, var = (_expand(_wide(v), axis, x) for v in (mean, var))
    return _narrow((x - mean) / np.sqrt(var + epsilon))


def scale_shift(
    x_hat: Any, scale: Any, bias: Any, *, axis: int | tuple[int, ...] = -1
) -> np.ndarray:
    """``x_hat * scale + bias``; either may be None."""
    y = _wide(x_hat)
    y = y if scale is None else y * _expand(_wide(scale), axis, y)
    y = y if bias is None else y + _expand(_wide(bias), axis, y)
    return _narrow(y)


def batch_norm_forward(
    x: Any,
    scale: Any,
    bias: Any,
    *,
    axis: int | tuple[int, ...] = -1,
    epsilon: float = 1e-5,
    mask: Any = None,
) -> Forward:
    """Training-mode batch normalization as a graph of ten nodes.

    ``w`` is 1 for a valid entry and 0 for a masked one, ``n = sum(w)`` over a channel.

    ====  ==============================  ====================================
    node  forward                         shape
    ====  ==============================  ====================================
    1     mean = sum(w * x) / n           channel
    2     centered = x - mean             entry
    3     square = abs(centered)**2       entry, real
    4     var = sum(w * square) / n       channel, real
    5     shifted = var + epsilon         channel, real
    6     std = sqrt(shifted)             channel, real
    7     rstd = 1 / std                  channel, real
    8     x_hat = centered * rstd         entry
    9     scaled = x_hat * scale          entry
    10    y = scaled + bias               entry
    ====  ==============================  ====================================

    ``centered`` is the constant 0 where an entry is masked and not finite, or where its channel
    has no valid entry: such an entry is not *live*, and node 10 gives ``bias``.

    Returns:
        ``Forward(y, mean, var, count, cache)``.
    """
    x = _wide(x)
    axes = tuple(a for a in range(x.ndim) if a not in _canonical(axis, x.ndim))
    scale, bias = (v if v is None else _expand(_wide(v), axis, x) for v in (scale, bias))
    valid = _valid(mask, x.shape)
    n = valid.sum(axes, keepdims=True)
    share = valid / np.maximum(n, 1).astype(np.longdouble)
    live = (valid | np.isfinite(x)) & (n > 0)

    mean = (share * np.where(valid, x, 0)).sum(axes, keepdims=True)  # 1
    centered = np.where(live, x - mean, 0)  # 2
    square = _abs2(centered)  # 3
    var = (share * np.where(valid, square, 0)).sum(axes, keepdims=True)  # 4
    shifted = var + np.longdouble(epsilon)  # 5
    std = np.sqrt(shifted)  # 6
    rstd = 1 / std  # 7
    x_hat = centered * rstd  # 8
    scaled = x_hat if scale is None else x_hat * scale  # 9
    y = scaled if bias is None else scaled + bias  # 10

    cache = Cache(x_hat, centered, rstd, share, live, scale, bias, axes)
    mean, var, n = (_narrow(v.squeeze(axes)) for v in (mean, var, n))
    return Forward(_narrow(y), mean, var, n, cache)


def batch_norm_backward(
    dy: Any, cache: Cache, *, dmean: Any = None, dvar: Any = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Gradients of a loss with respect to `x`, `scale` and `bias`, given `dy`.

    The graph of `batch_norm_forward` walked from the last node to the first. ``d(v)`` is the
    cotangent of ``v``: the loss changes by ``Re(sum(d(v) * delta_v))``. Every node knows only its
    own local derivative; what reaches it is multiplied by that and passed on to its inputs, and
    where a value fed two nodes the two contributions are added.

    **10** ``y = scaled + bias``. An addition passes the cotangent on unchanged. `bias` was
    broadcast along the reduced axes, so its contributions are summed::

        d(scaled) = dy                             d(bias) = sum(dy)

    **9** ``scaled = x_hat * scale``. A product swaps its factors::

        d(x_hat) = dy * scale                      d(scale) = sum(dy * x_hat)

    **8** ``x_hat = centered * rstd``. Again a product; ``rstd`` is one real number a channel, and
    of the change it can cause only the real part is seen. ``centered`` has a second user, node 3;
    this is the first part of its cotangent::

        d(centered) = d(x_hat) * rstd              d(rstd) = Re(sum(d(x_hat) * centered))

    **7** ``rstd = 1 / std`` has the derivative ``-1 / std**2``::

        d(std) = -rstd**2 * d(rstd)

    **6** ``std = sqrt(shifted)`` has the derivative ``1 / (2 * std)``::

        d(shifted) = rstd / 2 * d(std)             (= -rstd**3 / 2 * d(rstd))

    **5** ``shifted = var + epsilon``; epsilon is a constant::

        d(var) = d(shifted)                        (+ dvar, if var itself is used by the loss)

    **4** ``var = sum(w * square) / n``. A mean deals its cotangent out in equal shares, to the
    valid entries alone::

        d(square) = w / n * d(var)

    **3** ``square = abs(centered)**2 = centered * conj(centered)`` changes by
    ``2 Re(conj(centered) * delta)``. The second part of the cotangent of ``centered``::

        d(centered) += 2 * conj(centered) * d(square)

    **2** ``centered = x - mean``, where the entry is live. ``x`` gets its first part; ``mean``,
    broadcast, collects minus the sum::

        d(x) = d(centered)                         d(mean) = -sum(d(centered))

    (Node 3's part of that sum is zero, as valid deviations from a mean sum to zero. The graph does
    not know; it comes out by itself. `dmean` is added here if the loss uses mean itself.)

    **1** ``mean = sum(w * x) / n``. Equal shares again, the second part for ``x``::

        d(x) += w / n * d(mean)

    Without a mask and for real x, insert 8 to 1 into each other and the usual formula appears::

        dx = rstd * (d(x_hat) - mean(d(x_hat)) - x_hat * mean(d(x_hat) * x_hat))

    A masked finite entry receives ``d(centered)`` of node 8 alone, and still moves the others
    through ``mean`` and ``var``: it is normalised by them. An entry that is not live has
    ``x_hat = 0``, gives its ``dy`` to `bias` and receives nothing.

    Args:
        dy: cotangent of ``y``, in the shape of ``x``.
        cache: from `batch_norm_forward`.
        dmean, dvar: cotangents of the returned ``mean`` and ``var``, zero if None.

    Returns:
        ``(dx, dscale, dbias)``; None for a scale or bias that was None.
    """
    x_hat, centered, rstd, share, live, scale, bias, axes = cache
    dy = _wide(dy)

    dbias = _total(dy, axes)  # 10
    dx_hat = dy if scale is None else dy * scale  # 9
    dscale = _total(dy * x_hat, axes)
    dcentered = np.where(live, dx_hat * rstd, 0)  # 8
    drstd = np.real(_total(dx_hat * centered, axes))
    dstd = -(rstd**2) * drstd  # 7
    dshifted = rstd / 2 * dstd  # 6
    dvar = dshifted + np.real(_channel(dvar, rstd))  # 5
    dsquare = share * dvar  # 4
    dcentered = dcentered + 2 * np.conj(centered) * dsquare  # 3
    dmean = _channel(dmean, rstd) - _total(dcentered, axes)  # 2
    dx = _like(dcentered + share * dmean, centered)  # 1
    return _narrow(dx), _gradient(dscale, scale, axes), _gradient(dbias, bias, axes)


def batch_norm_jvp(
    dx: Any, dscale: Any, dbias: Any, cache: Cache
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tangents of ``y``, ``mean`` and ``var`` along ``(dx, dscale, dbias)``; None means zero.

    The same ten nodes, each differentiated in the order in which they were computed.
    """
    x_hat, centered, rstd, share, live, scale, _, axes = cache
    dx = _wide(dx)
    dscale, dbias = (_channel(v, rstd) for v in (dscale, dbias))

    dmean = _total(share * np.where(share > 0, dx, 0), axes)  # 1
    dcentered = np.where(live, dx - dmean, 0)  # 2
    dsquare = 2 * np.real(np.conj(centered) * dcentered)  # 3
    dvar = _total(share * np.where(share > 0, dsquare, 0), axes)  # 4, 5
    drstd = -(rstd**3) / 2 * dvar  # 6, 7
    dx_hat = dcentered * rstd + centered * drstd  # 8
    dscaled = dx_hat if scale is None else dx_hat * scale + x_hat * dscale  # 9
    dy = dscaled + dbias  # 10
    return _narrow(dy), _narrow(dmean.squeeze(axes)), _narrow(dvar.squeeze(axes))


def update_batch_stats(
    mean: Any,
    var: Any,
    count: int,
    batch_mean: Any,
    batch_var: Any,
    n: Any,
    *,
    decay: float | None = 0.99,
    ddof: int = 0,
    debias: bool = False,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Running statistics after one more batch: ``old + weight * (new - old)``.

    Args:
        mean, var, count: running statistics, and the number of updates they have seen.
        batch_mean, batch_var: of the batch; `batch_var` is the population variance.
        n: number of valid entries in the batch, a scalar or one number a channel.
        decay: weight of the old value (``momentum`` in Flax); None gives every update the same.
        ddof: 1 stores the sample variance ``batch_var * n / (n - 1)``.
        debias: divide by the weights seen so far, so that the first update replaces the start.

    Returns:
        ``(mean, var, count)``. A channel with ``n <= ddof`` keeps its values, and if that is so
        for all channels the count stays as well.
    """
    mean, var, batch_mean, batch_var = (_wide(v) for v in (mean, var, batch_mean, batch_var))
    n = np.broadcast_to(_wide(n), mean.shape)
    enough = n > ddof
    batch_var = batch_var * n / np.where(enough, n - ddof, 1)
    weight = np.longdouble(_update_weight(int(count), decay, debias))
    mean = np.where(enough, mean + weight * (batch_mean - mean), mean)
    var = np.where(enough, var + weight * (batch_var - var), var)
    return _narrow(mean), _narrow(var), int(count) + bool(enough.any())


def relative_error(got: Any, want: Any) -> float:
    """``max|got - want| / max|want|``; the plain difference if `want` is all zeros.

    A NaN on either side makes the result NaN, which no ``error < tolerance`` lets pass.
    """
    got, want = _wide(got), _wide(want)
    if got.shape != want.shape:
        raise ValueError(f"got has shape {got.shape} and want has {want.shape}; they must agree.")
    if want.size == 0:
        return 0.0
    largest = np.max(np.abs(want))
    return float(np.max(np.abs(got - want)) / (largest if largest != 0 else 1))


def _update_weight(count: int, decay: float | None, debias: bool) -> float:
    if decay is None or (debias and decay == 1):  # the limit of what follows
        return 1 / (count + 1)
    if debias:
        return (1 - decay) / (1 - decay ** (count + 1))
    return 1 - decay


def _wide(x: Any) -> np.ndarray:
    # By way of float64, as bfloat16 arrays know no conversion to longdouble.
    x = np.asarray(x)
    if np.iscomplexobj(x):
        return x.astype(np.clongdouble)
    return x if x.dtype == np.longdouble else x.astype(np.float64).astype(np.longdouble)


def _narrow(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)


def _canonical(axes: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    return tuple(sorted(a % ndim for a in axes))


def _expand(v: np.ndarray, axis: int | tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """A per-channel array with dimensions of size 1 put in for the reduced axes."""
    kept = _canonical(axis, x.ndim)
    features = tuple(x.shape[a] for a in kept)
    if v.shape != features:
        raise ValueError(f"A per-channel array has shape {v.shape}; x needs {features}.")
    return v.reshape([size if a in kept else 1 for a, size in enumerate(x.shape)])


def _channel(v: Any, like: np.ndarray) -> np.ndarray:
    return np.zeros_like(like) if v is None else _wide(v).reshape(like.shape)


def _valid(mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.asarray(True if mask is None else mask, bool)
    return np.broadcast_to(mask, shape)


def _abs2(x: np.ndarray) -> np.ndarray:
    return np.real(x) ** 2 + np.imag(x) ** 2


def _total(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return x.sum(axes, keepdims=True)


def _like(cotangent: np.ndarray, primal: np.ndarray) -> np.ndarray:
    """The cotangent of a real input is real."""
    return cotangent if np.iscomplexobj(primal) else np.real(cotangent)


def _gradient(
    cotangent: np.ndarray, param: np.ndarray | None, axes: tuple[int, ...]
) -> np.ndarray | None:
    return None if param is None else _narrow(_like(cotangent, param).squeeze(axes))
