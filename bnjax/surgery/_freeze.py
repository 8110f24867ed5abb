"""Freeze batch norm layers by path: what they learn, what they record, what normalises."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from flax import nnx, traverse_util

from bnjax import _variables
from bnjax._switches import AS_CALLED
from bnjax.nnx import BatchNorm

T = TypeVar("T")


def freeze(
    target: T, layers: str = "", *, affine: bool = True, statistics: bool = True, mode: bool = True
) -> T:
    r"""Make batch norm layers a fixed scale and shift, whatever the training step calls for.

    .. math::
        y = a x + b, \qquad a = \frac{\gamma}{\sqrt{v + \epsilon}}, \quad b = \beta - a \mu

    with :math:`\mu, v` the running statistics and :math:`\gamma, \beta` scale and bias, none of
    which changes any more: one pass over ``x`` forward and one over the gradient backward, no
    reduction. Three switches, each by itself:

    ==============  =================================================================
    ``affine``      scale and bias get no gradient; hand :func:`trained` to optax, so
                    that neither weight decay nor momentum moves them
    ``statistics``  the running statistics are not updated
    ``mode``        the running statistics normalise, in training too
    ==============  =================================================================

    The usual recipes: all three for a pretrained backbone and small batches; ``statistics`` and
    ``mode`` to fine-tune scale and bias; ``statistics`` alone for a second forward pass with other
    data; ``mode`` alone to train as at evaluation while the statistics follow the new data.

    Works on :class:`bnjax.linen.BatchNorm`, :class:`bnjax.nnx.BatchNorm` and their batch renorm.
    Flax's own layers do not read the switches: training one with frozen variables is an error,
    and ``swap(model, variables, "frozen")`` freezes it. (In evaluation there is nothing to notice:
    it computes what a frozen layer does, but its scale and bias have gradients.)

    The switches are a part of the tree's structure, at the layer's place in ``batch_stats``, and
    add no leaf: ``apply`` with ``mutable=["batch_stats"]`` hands them on, and a jitted step that
    has been called before is compiled anew. They are a setting of the run, not data. A checkpoint
    of frozen variables is one of their arrays: it restores into frozen variables, which stay so,
    as into others, which do not become so.

    Args:
      target: linen's variables (``{"batch_stats": state.batch_stats}`` will do), or an
        ``nnx.Module``.
      layers: regular expression to be found in a layer's path, as ``"backbone/.*BatchNorm"``;
        by default every layer.
      affine, statistics, mode: which switches to freeze; the others stay as they are.

    Returns:
      Variables of the same arrays; of a module a view that shares its variables.

    Raises:
      ValueError: no layer has such a path, or one that has is of Flax's own class (of an
        ``nnx.Module``; in variables of linen there is no telling before it trains).
      TypeError: ``target`` is neither.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bnjax.linen import BatchNorm
      >>> from bnjax.surgery import freeze
      >>> norm, x = BatchNorm(use_running_average=False), jnp.array([[1.0], [3.0]])
      >>> variables = freeze(norm.init(jax.random.key(0), x))
      >>> y, updates = norm.apply(variables, x, mutable=["batch_stats"])
      >>> print(jnp.allclose(y, x, atol=1e-4), updates["batch_stats"]["mean"])
      True [0.]

    Source: the frozen batch norm of detection models, He et al. (2016), *Deep residual learning*,
    appendix A; Wu & He (2018), *Group normalization*, section 4.2.
    PyTorch's ``eval()`` of a layer is ``statistics`` and ``mode`` until the next ``train()`` of the
    model undoes it; torchvision's ``FrozenBatchNorm2d`` is another class. Flax has
    ``use_running_average``, which is mode and statistics at once, for each layer's author.
    """
    if isinstance(target, nnx.Module):
        _refuse_flax(target, layers)
    return _switch(target, layers, _fields(affine, statistics, mode))


def unfreeze(
    target: T, layers: str = "", *, affine: bool = True, statistics: bool = True, mode: bool = True
) -> T:
    """Undo :func:`freeze`: layers do again what the model's call says.

    Args:
      target, layers: as of :func:`freeze`.
      affine, statistics, mode: which switches to set free.

    Returns:
      As :func:`freeze`.

    Raises:
      ValueError, TypeError: as :func:`freeze`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx, traverse_util
      >>> from bnjax.nnx import BatchNorm
      >>> from bnjax.surgery import freeze, unfreeze
      >>> norm = freeze(BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0)))
      >>> x = jnp.array([[1.0], [3.0]])
      >>> y = unfreeze(norm, mode=False, affine=False)(x)
      >>> print(jnp.allclose(y, x, atol=1e-4), norm.mean[...])
      True [0.2]

    Source: see :func:`freeze`.
    """
    free = {name: getattr(AS_CALLED, name) for name in _fields(affine, statistics, mode)}
    return _switch(target, layers, free)


def trained(target: Any) -> Any:
    """True for parameters that learn: all but scale and bias of layers frozen with ``affine``.

    Args:
      target: linen's variables with ``params`` and ``batch_stats``, or an ``nnx.Module``.

    Returns:
      A pytree of bools like ``variables["params"]``, or like ``nnx.state(model, nnx.Param)``: for
      ``optax.masked`` (frozen parameters then keep their gradient, 0, as update).

    Raises:
      TypeError: ``target`` is neither.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from bnjax.linen import BatchNorm
      >>> from bnjax.surgery import freeze, trained
      >>> variables = BatchNorm().init(jax.random.key(0), jnp.ones((2, 1)), True)
      >>> tx = optax.masked(optax.sgd(0.1, momentum=0.9), trained(freeze(variables)))
      >>> print(trained(variables), trained(freeze(variables)))
      {'bias': True, 'scale': True} {'bias': False, 'scale': False}

    Source: see :func:`freeze`. PyTorch's ``requires_grad``, which the optimizer reads by itself.
    """
    if isinstance(target, nnx.Module):
        params = nnx.state(target, nnx.Param)
        frozen = {path for path, layer in _layers(target).items() if not layer.switches.affine}
        # Bare bools: a prefix of the state for tx.init, and of its arrays for tx.update.
        return nnx.from_flat_state(
            {path: path[:-1] not in frozen for path, _ in nnx.to_flat_state(params)}
        )
    flat, _ = _flatten(target)
    held = _variables.switches(target)
    learns = {p: held.get(p[1:-1], AS_CALLED).affine for p in flat if p[0] == "params"}
    # In the order of jax.tree; a box has one bool for all that is in it.
    return jax.tree.map(lambda v: v, traverse_util.unflatten_dict(learns).get("params", {}))


def _fields(affine, statistics, mode) -> dict[str, bool]:
    """What is frozen, as fields of `Switches`."""
    chosen = {"affine": affine, "statistics": statistics, "train": mode}
    return {name: False for name, given in chosen.items() if given}


def _switch(target, layers, fields) -> Any:
    if isinstance(target, nnx.Module):
        return _switch_view(target, layers, fields)
    flat, _ = _flatten(target)
    held = _variables.switches(target)
    for path in _variables.choose_norms(_variables.norms(flat), layers):
        held[path] = held.get(path, AS_CALLED).but(**fields)
    return _variables.with_switches(target, held)


def _flatten(target):
    if isinstance(target, nnx.State):
        raise TypeError(
            "target must be linen's variables or an nnx.Module, got an nnx.State, which has no "
            "layers to freeze: freeze(nnx.merge(graphdef, state)) before nnx.split."
        )
    return _variables.flatten(target, "target")


def _switch_view(model, layers, fields):
    found = _layers(model)
    chosen = set(_variables.choose_norms(found, layers))
    for switches in {found[path].switches for path in chosen}:
        same = {path for path in chosen if found[path].switches == switches}
        model = nnx.view(
            model,
            only=lambda path, node, same=same: isinstance(node, BatchNorm) and path in same,
            switches=switches.but(**fields),
        )
    return model


def _refuse_flax(model: nnx.Module, layers: str) -> None:
    """Raise where ``layers`` chooses a layer that would train on."""
    norms = [(p, n) for p, n in nnx.iter_graph(model) if isinstance(n, BatchNorm | nnx.BatchNorm)]
    chosen = _variables.choose_norms([path for path, _ in norms], layers)
    deaf = [path for path, node in norms if isinstance(node, nnx.BatchNorm) and path in chosen]
    if deaf:
        names = ", ".join(_variables.name(path) or "(the model itself)" for path in deaf)
        raise ValueError(
            f"{names}: flax.nnx.BatchNorm has no switches and would train on. Use "
            "bnjax.nnx.BatchNorm, which has the same variables, or freeze the layers of a model as "
            'it is: bnjax.surgery.swap(*nnx.split(model), "frozen").'
        )


def _layers(model: nnx.Module) -> dict[_variables.Path, BatchNorm]:
    return {path: node for path, node in nnx.iter_graph(model) if isinstance(node, BatchNorm)}
