"""Fold every batch norm of a model that has a neighbour to absorb it."""

from __future__ import annotations

from typing import Any

from bnjax import _variables
from bnjax.surgery._changes import BiasAsStored, Passes
from bnjax.surgery._fold import fold_into_next, fold_into_previous
from bnjax.surgery._models import Change, Model, alter
from bnjax.surgery._neighbours import norm_arrays
from bnjax.surgery._outcome import Outcome, verified
from bnjax.surgery._pairs import Pair, find_pairs


def fold(model: Model, variables: Any, *args: Any, layers: str = "", **kwargs: Any) -> Outcome:
    """Fold each batch norm of a model into the dense layer or convolution before or after it.

    For evaluation: a folded norm has no statistics left to follow. The pairs are those of
    :func:`find_pairs`, the arithmetic that of :func:`fold_into_previous`, which is preferred, and
    :func:`fold_into_next`. A bias is made where there is none. Then the network is compared with
    the original on the example that was given.

    The variables of linen have the names that the model would give them without its norms and with
    ``use_bias=True``, so they load into such a model as well as into :class:`AlteredModule`.

    Args:
      model, variables, args, layers, kwargs: as of :func:`find_pairs`; from arrays, not shapes,
        for the comparison to take place.

    Returns:
      :class:`Outcome`. A norm whose folded kernel would not be finite in its dtype is left alone.

    Raises:
      ValueError: ``layers`` is found in the path of no norm, or the outputs differ by more than
        rounding errors, or ``variables`` are shapes alone.
      TypeError: ``model`` or ``variables`` is neither linen's nor nnx's.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from bnjax.surgery import fold
      >>> norm = nn.BatchNorm(use_running_average=True)
      >>> model = nn.Sequential([nn.Dense(3, use_bias=False), norm])
      >>> x = jnp.ones((2, 4))
      >>> folded = fold(model, model.init(jax.random.key(0), x), x)
      >>> print(folded.changed, jax.tree.map(jnp.shape, folded.variables["params"]))
      {('layers_1',): 'into layers_0 before it'} {'layers_0': {'bias': (3,), 'kernel': (4, 3)}}

    Source: Jacob et al. (2018), *Quantization and training*, §3.2. As ``fuse`` of ``torch.fx``, but
    with reasons, with layers after the norm, and with a comparison.
    """
    flat, _ = _variables.flatten(variables)
    _variables.refuse_shapes(flat)
    pairs = find_pairs(model, variables, *args, layers=layers, **kwargs)
    left_alone = dict(pairs.left_alone)
    changes: dict[_variables.Path, Change] = {}
    changed: dict[_variables.Path, str] = {}
    for pair in pairs.pairs:
        try:
            flat = _without(flat, pair)
        except ValueError as why:  # too large for the dtype
            left_alone[pair.norm] = str(why)
            continue
        changes |= {pair.norm: Passes(pair.cast), pair.layer: BiasAsStored(True)}
        changed[pair.norm] = pair.where()
    after = alter(model, variables, flat, changes)
    difference = verified((model, variables), after, args, kwargs, pairs.eps)
    return Outcome(*after, changed, left_alone, difference)


def _without(flat: _variables.Flat, pair: Pair) -> _variables.Flat:
    """The leaves after folding one pair."""
    start = ("params", *pair.layer)
    fold_into = fold_into_previous if pair.side == "previous" else fold_into_next
    kernel, bias = flat[(*start, "kernel")], flat.get((*start, "bias"))
    kernel, bias = fold_into(kernel, bias, *norm_arrays(flat, pair.norm), **pair.options)
    kept = {path: v for path, v in flat.items() if path[1:-1] != pair.norm}
    return kept | {(*start, "kernel"): kernel, (*start, "bias"): bias}
