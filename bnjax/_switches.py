"""Three switches of one batch norm layer, and what carries them in linen's variables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import serialization
from flax.core import FrozenDict
from jax import export

SWITCHES = "switches"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Switches:
    """What of a layer is frozen: written by surgery, read by the modules, outranking the call.

    A part of a tree's *structure*, without leaves: a compiled step that has seen another setting
    is compiled anew.

    Attributes:
      affine: False stops the gradients of scale and bias.
      statistics: whether the running statistics are updated; None leaves it to layer and call.
      train: whether the batch normalises, or the running statistics; None leaves it to the call.
      corrected: False has batch renorm normalise by the batch alone, as batch norm does.
    """

    affine: bool = True
    statistics: bool | None = None
    train: bool | None = None
    corrected: bool = True

    def params(self, scale: Any, bias: Any) -> tuple[Any, Any]:
        """Scale and bias, constants where they are frozen."""
        return (scale, bias) if self.affine else jax.lax.stop_gradient((scale, bias))

    def modes(self, train: bool, update_stats: bool) -> dict[str, bool]:
        """The options ``train`` and ``update_stats`` of the core, given those of the call."""
        return {
            "train": train if self.train is None else self.train,
            "update_stats": update_stats if self.statistics is None else self.statistics,
        }

    def but(self, **fields) -> Switches:
        """These switches with some of them set."""
        return dataclasses.replace(self, **fields)


AS_CALLED = Switches()


class SwitchedStats(FrozenDict):
    """The running statistics of one linen layer, with its switches.

    It stands where linen has a dict, ``batch_stats/.../BatchNorm_0``. As a pytree, and to
    ``flax.serialization``, it has the paths and leaves of that dict and no more: checkpoints of
    frozen and of other variables are the same, and each restores into the other. Read as a
    mapping, it has one entry more, the switches: so code that rebuilds trees from entries, as
    ``flatten_dict`` and ``unflatten_dict`` do, keeps them.

    Flax copies a ``FrozenDict`` by mapping over its ``_dict``, which is this object itself: so a
    call of the model, ``freeze`` and ``unfreeze`` of ``flax.core`` hand it on. What it is of that
    class for is that linen accepts it; it can be written to, in the copy that linen makes.
    """

    __slots__ = ("_leaves", "_seen", "_switches")

    def __init__(self, entries: Mapping[str, Any]):
        self._leaves = {name: v for name, v in entries.items() if name != SWITCHES}
        self._switches: Switches = entries[SWITCHES]
        self._seen = False  # by the layer
        self._hash = None

    @property
    def _dict(self) -> SwitchedStats:
        return self

    def __getitem__(self, name: str) -> Any:
        if name == SWITCHES:
            self._seen = True
            return self._switches
        return self._leaves[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == SWITCHES:
            self._switches, self._seen = value, True
        elif self._seen:
            self._leaves[name] = value
        else:
            raise ValueError(
                f"batch_stats/.../{name} belong to a frozen layer, and are updated by one that "
                "does not read its switches, such as flax.linen.BatchNorm: it would train on. "
                "Import BatchNorm from bnjax.linen, which has the same variables, or freeze model "
                'and variables together with bnjax.surgery.swap(model, variables, "frozen").'
            )

    def __contains__(self, name: object) -> bool:
        return name == SWITCHES or name in self._leaves

    def __iter__(self) -> Iterator[str]:
        return iter((SWITCHES, *self._leaves))

    def __len__(self) -> int:
        return 1 + len(self._leaves)

    def items(self):
        """All entries, the switches first."""
        return {SWITCHES: self._switches, **self._leaves}.items()

    def pretty_repr(self, num_spaces: int = 4) -> str:
        """As of a FrozenDict."""
        return f"{type(self).__name__}({dict(self.items())!r})"

    def __reduce__(self):
        return type(self), (dict(self.items()),)

    def replace_leaves(self, leaves: Mapping[str, Any]) -> SwitchedStats:
        """The same switches beside other leaves."""
        return type(self)({**leaves, SWITCHES: self._switches})


def _flatten(stats: SwitchedStats):
    names = tuple(sorted(stats._leaves))
    return [(jax.tree_util.DictKey(n), stats._leaves[n]) for n in names], (names, stats._switches)


def _unflatten(structure, leaves) -> SwitchedStats:
    names, switches = structure
    return SwitchedStats({**dict(zip(names, leaves, strict=True)), SWITCHES: switches})


def _to_bytes(structure) -> bytes:
    names, switches = structure
    return json.dumps([names, dataclasses.asdict(switches)]).encode()


def _from_bytes(data: bytes | bytearray):
    names, switches = json.loads(data)
    return tuple(names), Switches(**switches)


jax.tree_util.register_pytree_with_keys(SwitchedStats, _flatten, _unflatten)
export.register_pytree_node_serialization(
    SwitchedStats,
    serialized_name="bnjax.SwitchedStats",
    serialize_auxdata=_to_bytes,
    deserialize_auxdata=_from_bytes,
)
serialization.register_serialization_state(
    SwitchedStats,
    lambda stats: serialization.to_state_dict(stats._leaves),
    lambda stats, state: stats.replace_leaves(
        serialization.from_state_dict(dict(stats._leaves), state)
    ),
)
# Where a tree was rebuilt from entries, the switches are one of them: nothing in msgpack files.
serialization.register_serialization_state(
    Switches, lambda switches: {}, lambda switches, _: switches
)
