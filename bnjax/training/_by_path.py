"""Choose parameters by their path: who decays, who trains, who gets which optimizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

# Scale and shift of a norm, and every other bias: pulling these to zero restrains nothing.
NO_DECAY = r"(^|/)(scale|bias)$"


def label_by_path(params: Any, rules: Sequence[tuple[str, Any]]) -> Any:
    """A label for each parameter: that of the first rule whose pattern is found in its path.

    Args:
      params: pytree of parameters.
      rules: pairs ``(pattern, label)``, tried in order. A pattern is a regular expression to be
        found anywhere in a path such as ``"BatchNorm_0/scale"``; ``".*"`` is everything else.

    Returns:
      A pytree like ``params``, of labels: for ``optax.multi_transform``, or as a mask.

    Raises:
      ValueError: parameters that no rule matches, or rules that match no parameter (a rule hidden
        by earlier ones among them, but for a last ``".*"``), are listed.

    Example:
      >>> from bnjax.training import label_by_path
      >>> params = {"Dense_0": {"kernel": 1.0, "bias": 0.0}, "BatchNorm_0": {"scale": 1.0}}
      >>> label_by_path(params, [("BatchNorm", "frozen"), ("kernel$", "adam"), (".*", "sgd")])
      {'BatchNorm_0': {'scale': 'frozen'}, 'Dense_0': {'bias': 'sgd', 'kernel': 'adam'}}

    Source: the regular-expression rules of big_vision and t5x. Flax's ``path_aware_map`` leaves
    unmatched parameters to the function; PyTorch's parameter groups leave them out unnoticed.
    """
    unused = {pattern for pattern, _ in rules if pattern != ".*"}
    unmatched = []

    def label(path, _):
        name = path_name(path)
        for pattern, value in rules:
            if re.search(pattern, name):
                unused.discard(pattern)
                return value
        unmatched.append(name)
        return None

    labels = jax.tree_util.tree_map_with_path(label, params)
    if unmatched:
        raise ValueError(
            f"no rule matches {', '.join(unmatched)}. Add a last rule ('.*', label) for the rest."
        )
    if unused:
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ValueError(
            f"rules that are the first match of no parameter: {', '.join(sorted(unused))}. The "
            f"parameters are {', '.join(names)}."
        )
    return labels


def weight_decay_mask(params: Any) -> Any:
    """True for parameters that weight decay should reach: all but ``scale`` and ``bias``.

    Args:
      params: pytree of parameters.

    Returns:
      A pytree like ``params``, of bools.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from bnjax.training import weight_decay_mask
      >>> tx = optax.adamw(1e-3, weight_decay=0.1, mask=weight_decay_mask)
      >>> weight_decay_mask({"Conv_0": {"kernel": 1.0}, "BatchNorm_0": {"scale": 1.0, "bias": 0.0}})
      {'BatchNorm_0': {'bias': False, 'scale': False}, 'Conv_0': {'kernel': True}}

    Source: Goyal et al. (2017), *Accurate, large minibatch SGD*, §5.1; He et al. (2019), *Bag of
    tricks*, §3.1. optax and PyTorch decay everything unless told otherwise (optax#25).
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(NO_DECAY, path_name(path)) is None, params
    )


def path_name(path) -> str:
    """A path of ``jax.tree_util`` as ``"BatchNorm_0/scale"``."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # inside an nnx.Variable
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")
