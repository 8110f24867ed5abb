"""Fresh population statistics for a trained model, and statistics adapted to a new domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bnjax import _variables
from bnjax._switches import Switches
from bnjax._variables import Flat, Path
from bnjax.core import Moments
from bnjax.core._axes import at_least_float32
from bnjax.training._observe import Step, compiled_observer, frozen, gather, title

V = TypeVar("V")

EVALUATE = Switches(statistics=False, train=False)
BY_BATCH = Switches(statistics=True, train=True, corrected=False)
BY_RUNNING = Switches(statistics=True, train=False)


def recalibrate(
    model: Any,
    variables: V,
    batches: Iterable,
    *,
    call: Callable[[Any, Any], Any] = lambda model, batch: model(batch),
    layers: str = "",
    layer_by_layer: bool = False,
    progress: Callable[[Iterable], Iterable] = lambda batches: batches,
    transform: Callable[[Step], Step] = jax.jit,
) -> V:
    r"""Replace running statistics by those of a data set, the parameters as they are now.

    .. math::
        M = M_1 \oplus M_2 \oplus \dots \oplus M_k, \qquad \mu = \mathrm{mean}(M),\quad
        v = \mathrm{var}(M)

    with :math:`M_j` the moments of a layer's input in batch ``j`` and :math:`\oplus` =
    :func:`bnjax.merge`, in float64: batches of unequal size count by their size, and the spread of
    their means is in the variance. Running averages lag behind the parameters, and average
    variances of small batches; these statistics do neither. When to use it: before evaluating a
    model trained with a high decay, in small batches or with averaged parameters, or after
    anything else that changed what the layers see.

    The chosen layers normalise by the batch meanwhile, all others by their running statistics, so
    call the model as in evaluation (no dropout, no random streams). Then the first layer's result
    does not depend on how the data are cut into batches; that of deeper ones does, through the
    layers before, as in training. ``layer_by_layer`` takes that dependence away: each pass over the
    data settles the next layer, with all before it at their final statistics, as they will be in
    evaluation. It needs as many passes as there are layers, or fewer where some lie side by side.

    Layers whose statistics :func:`bnjax.surgery.freeze` holds are left as they are.

    Args:
      model: a linen module, or the ``nnx.GraphDef`` of ``nnx.split(model)``.
      variables: linen's variables, or the ``nnx.State`` of ``nnx.split(model)``.
      batches: pytrees of arrays. ``layer_by_layer`` needs one that can be gone through again: a
        list or a loader, not a generator.
      call: ``call(model, batch)``: the bound or merged model as it is evaluated; for example
        ``lambda model, batch: model(batch["image"], train=False)``. A mask goes in here too.
        Another call with the same function (not a new lambda) compiles nothing anew.
      layers: regular expression to be found in the paths of the layers to recalibrate.
      layer_by_layer: see above.
      progress: wraps ``batches`` in each pass: ``rich.progress.track`` and ``tqdm.tqdm`` do.
      transform: what compiles the step ``(variables, batch) -> moments``. ``jax.jit`` also takes
        batches that are sharded over devices or processes. For layers with an ``axis_name``::

            lambda step: jax.jit(
                jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
            )

    Returns:
      ``variables`` with new ``mean`` and ``var`` (the population's, ddof=0) in the chosen layers;
      a ``count`` becomes the number of batches. A feature that a mask always hides keeps its own.

    Raises:
      ValueError: there are no batches or no batch norms (folded ones have no statistics), a
        pattern finds no layer or a frozen one, no data reach a layer (it is not called, or is not
        one of bnjax's), or what reaches it is not finite, or its statistics are not in their dtype.
      TypeError: ``batches`` can be gone through only once, but must be again; or ``model`` and
        ``variables`` are not of one kind.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bnjax.linen import BatchNorm
      >>> from bnjax.training import recalibrate
      >>> norm, data = BatchNorm(use_running_average=True), jnp.array([[1.0], [2], [2], [4], [6]])
      >>> variables = norm.init(jax.random.key(0), data)
      >>> variables = recalibrate(norm, variables, [data[:2], data[2:]])
      >>> print(variables["batch_stats"]["mean"], variables["batch_stats"]["var"])
      [3.] [3.2]

    Source: Ioffe & Szegedy (2015), Algorithm 2, line 10; Wu & Johnson (2021), *Rethinking "Batch"
    in BatchNorm*, §3 (precise batch norm). fvcore's ``update_bn_stats`` averages the variances of
    batches of equal weight; PyTorch's ``swa_utils.update_bn`` averages running statistics. Flax has
    nothing like it.
    """
    flat, rebuild = _variables.flatten(variables)
    _check_model(model, variables)
    _variables.refuse_shapes(flat)
    norms = _variables.norms(flat)
    chosen = _thawed(_variables.choose_norms(norms, layers), frozen(model, variables), layers)
    # Stacked statistics, of layers under a scan, have as many layers as leading entries at most.
    depth = sum(math.prod(np.shape(flat["batch_stats", *path, "mean"])[:-1]) for path in chosen)
    passes = depth if layer_by_layer else 1
    if passes > 1 and iter(batches) is batches:
        raise TypeError(
            f"batches is a {type(batches).__name__}, which can be gone through once; "
            f"layer_by_layer=True needs up to {passes} passes. Give a list, or an object whose "
            "__iter__ starts again."
        )

    switch = BY_RUNNING if layer_by_layer else BY_BATCH
    switches = dict.fromkeys(norms, EVALUATE) | dict.fromkeys(chosen, switch)
    step = compiled_observer(model, call, switches, transform)
    for _ in range(passes):
        moments, number = gather(step, rebuild(flat), progress(batches))
        fresh = _fresh(flat, chosen, moments, number)
        settled = all(np.array_equal(flat[path], new) for path, new in fresh.items())
        flat |= fresh
        if settled:
            break
    _check_finite(flat, chosen, moments)
    return rebuild(flat)


def adapt(model: Any, variables: V, batches: Iterable, *, weight: float = 1.0, **options: Any) -> V:
    r"""Move running statistics towards those of a new domain, from unlabelled data of it.

    .. math::
        \mu \leftarrow (1 - w)\, \mu + w\, \mu_{new}, \qquad v \leftarrow (1 - w)\, v + w\, v_{new}

    with :math:`w` = ``weight`` and :math:`\mu_{new}, v_{new}` from :func:`recalibrate`. For data
    that are inverted, dimmer or from another camera: no label and no gradient is needed. With few
    data their statistics are noisy, and a weight below 1 keeps a part of the old: for :math:`n`
    examples :math:`w = n / (N + n)` counts the old statistics like :math:`N` examples.

    Both lines are linear, so a domain half way has half-way statistics; this is not the variance
    of the two domains' data thrown together, which would add :math:`w (1-w) (\mu - \mu_{new})^2`.

    Args:
      model, variables, batches, options: as of :func:`recalibrate`, whose other options these are.
      weight: of the new statistics, from 0 (nothing changes) to 1 (AdaBN).

    Returns:
      ``variables`` with new running statistics in the chosen layers.

    Raises:
      ValueError: ``weight`` is not between 0 and 1; and as :func:`recalibrate`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bnjax.linen import BatchNorm
      >>> from bnjax.training import adapt
      >>> norm, data = BatchNorm(use_running_average=True), jnp.array([[1.0], [2.0], [6.0]])
      >>> variables = norm.init(jax.random.key(0), data)
      >>> print(adapt(norm, variables, [data], weight=0.5)["batch_stats"]["mean"])
      [1.5]

    Source: Li et al. (2016), *Revisiting batch normalization for practical domain adaptation*
    (AdaBN); Schneider et al. (2020), *Improving robustness against common corruptions by covariate
    shift adaptation*, for the weight. PyTorch and Flax have nothing like it.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be between 0 (old) and 1 (new statistics), got {weight!r}.")
    new, rebuild = _variables.flatten(recalibrate(model, variables, batches, **options))
    old, _ = _variables.flatten(variables)
    for path in new:
        if path[0] == "batch_stats" and path[-1] in ("mean", "var"):
            before, after = (at_least_float32(jnp.asarray(v[path])) for v in (old, new))
            new[path] = (before + weight * (after - before)).astype(old[path].dtype)
    return rebuild(new)


def _check_model(model: Any, variables: Any) -> None:
    graph = isinstance(model, nnx.GraphDef)
    if isinstance(model, nnx.Module) or graph != isinstance(variables, nnx.State):
        raise TypeError(
            "model and variables must be a linen module and its variables, or what nnx.split(model)"
            f" returns, got {type(model).__name__} and {type(variables).__name__}."
        )


def _thawed(chosen: list[Path], held: set[Path], layers: str) -> list[Path]:
    """The chosen layers without frozen ones, or an error where those were asked for."""
    found = [title(path) for path in chosen if path in held]
    free = [path for path in chosen if path not in held]
    if found and (layers or not free):
        asked = f"layers={layers!r} is found in layers" if layers else "all layers are those"
        raise ValueError(
            f"{asked} whose statistics are frozen: {', '.join(found)}. Set them free before with "
            "bnjax.surgery.unfreeze(..., affine=False, mode=False), or leave them out."
        )
    return free


def _fresh(flat: Flat, chosen: list[Path], moments: dict[str, Moments], batches: int) -> Flat:
    """The new statistics of the chosen layers, by path."""
    unseen = [title(path) for path in chosen if not np.any(moments[_variables.name(path)].count)]
    if unseen:
        raise ValueError(
            f"no data reach {', '.join(unseen)}: not called, hidden by a mask, or not one of "
            "bnjax's BatchNorm and BatchRenorm. Leave them out with layers=..., or replace Flax's "
            "layer by bnjax's, which has the same variables."
        )
    fresh = {}
    for path in chosen:
        m = moments[_variables.name(path)]
        for name, value in {"mean": m.mean, "var": m.var(), "count": batches}.items():
            leaf = ("batch_stats", *path, name)
            if leaf in flat:
                seen = _seen(m, np.shape(flat[leaf]))
                with np.errstate(over="ignore"):  # half precision; told in the end
                    new = np.where(seen, value, flat[leaf]).astype(flat[leaf].dtype)
                fresh[leaf] = jnp.asarray(new)
    return fresh


def _seen(moments: Moments, shape: tuple[int, ...]) -> Any:
    """Which entries of a leaf data have reached: of each feature, or of each of stacked layers."""
    seen = np.asarray(moments.count) > 0
    if seen.shape[: len(shape)] == shape:
        return seen.any(tuple(range(len(shape), seen.ndim)))
    return seen.any(tuple(range(seen.ndim - len(shape))))  # layers on the last axis


def _check_finite(flat: Flat, chosen: list[Path], moments: dict[str, Moments]):
    bad, narrow = [], []
    for path in chosen:
        mean, var = (flat["batch_stats", *path, leaf] for leaf in ("mean", "var"))
        if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(var))):
            m = moments[_variables.name(path)]
            held = np.all(np.isfinite(m.mean)) and np.all(np.isfinite(m.m2))
            (narrow if held else bad).append(path)
    if bad:
        raise ValueError(
            f"what reaches {', '.join(map(title, bad))} is not finite in some batch. Look for NaN "
            "or infinity in the data, or in the parameters of the layers before the first of these."
        )
    if narrow:
        dtype = flat["batch_stats", *narrow[0], "var"].dtype
        raise ValueError(
            f"{dtype} cannot hold the new statistics of {', '.join(map(title, narrow))}. Keep "
            "batch_stats in float32: bnjax's layers compute with that in any case."
        )
