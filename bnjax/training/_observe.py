"""Run a model over batches and gather the moments of what reaches its batch norm layers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from bnjax import _variables
from bnjax._switches import SWITCHES, Switches
from bnjax._variables import Path
from bnjax.core import Moments
from bnjax.core._dataset_moments import merge_in_float64
from bnjax.core._owned import owned
from bnjax.nnx import BatchNorm
from bnjax.nnx._one_update import open_update
from bnjax.training._begin_update import opened

# A step is (variables, batch) -> moments of each layer in that batch.
Step = Callable[[Any, Any], dict[str, Moments]]


def compiled_observer(
    model: Any,
    call: Callable[[Any, Any], Any],
    switches: Mapping[Path, Switches],
    transform: Callable[[Step], Step],
) -> Step:
    """``transform(observer(...))``, the same object for the same arguments.

    A training loop that recalibrates at each evaluation then compiles the step once.
    """
    arguments = model, call, tuple(switches.items()), transform
    make = _compile if _is_hashable(arguments) else _compile.__wrapped__
    return make(*arguments)


@functools.lru_cache(maxsize=8)  # programs are large, and few models are in use at a time
def _compile(model, call, switches, transform) -> Step:
    return transform(observer(model, call, dict(switches)))


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def observer(
    model: Any, call: Callable[[Any, Any], Any], switches: Mapping[Path, Switches]
) -> Step:
    """The step of a model whose batch norm layers are set by ``switches``; by name of the layer.

    Only layers that are to update their statistics are watched.
    """
    watched = [path for path, each in switches.items() if each.statistics]
    if isinstance(model, nnx.GraphDef):
        return _observe_nnx(model, call, switches, watched)
    return _observe_linen(model, call, switches, watched)


def gather(step: Step, variables: Any, batches: Iterable) -> tuple[dict[str, Moments], int]:
    """Merged moments of all ``batches``, and how many batches there were."""
    total, part, number = None, None, 0
    for number, batch in enumerate(batches, 1):  # noqa: B007 (used after the loop)
        # Until it has been read: a loader may refill what a JAX array shares with NumPy, too.
        part = jax.block_until_ready(step(variables, owned(batch)))
        total = part if total is None else {n: merge_in_float64(total[n], part[n]) for n in part}
    if total is None:
        raise ValueError("batches is empty: there are no data to take statistics of.")
    return jax.tree.map(lambda v, like: jnp.asarray(v, like.dtype), total, part), number


def frozen(model: Any, variables: Any) -> set[Path]:
    """The layers whose running statistics are held by :func:`bnjax.surgery.freeze`."""
    if isinstance(model, nnx.GraphDef):
        nodes = nnx.iter_graph(nnx.merge(model, variables))
        held = {path: node.switches for path, node in nodes if isinstance(node, BatchNorm)}
    else:
        held = _variables.switches(variables)
    return {path for path, switches in held.items() if switches.statistics is False}


def title(path: Path) -> str:
    """The name of a layer in messages."""
    return _variables.name(path) or "(the model itself)"


def _observe_linen(model: nn.Module, call, switches, watched):
    def step(variables, batch):
        flat, rebuild = _variables.flatten(variables)
        variables = rebuild(flat)
        for path, setting in switches.items():
            functools.reduce(operator.getitem, path, variables["batch_stats"])[SWITCHES] = setting
        variables["batch_stats"] = opened(variables["batch_stats"])
        run = nn.apply(call, model, mutable=["batch_stats"])
        new, _ = _variables.flatten(run(variables, batch)[1])
        return {
            _variables.name(path): new["batch_stats", *path, "pending"].moments for path in watched
        }

    return step


def _observe_nnx(graphdef: nnx.GraphDef, call, switches, watched):
    def step(state, batch):
        model = nnx.merge(graphdef, state)
        layers = {path: node for path, node in nnx.iter_graph(model) if path in switches}
        for path, layer in layers.items():
            if not isinstance(layer, BatchNorm):
                raise TypeError(
                    f"{title(path)} is a {type(layer).__module__}.{type(layer).__name__},"
                    " which does not tell what it sees. Use bnjax.nnx.BatchNorm in its place: same "
                    "constructor, same variables."
                )
            layer.switches = switches[path]
            open_update(layer)
        call(model, batch)
        return {_variables.name(path): layers[path].pending.get_value().moments for path in watched}

    return step
