"""What statistics are merged over beside the axes of ``x``, and the two collectives that takes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnjax.core._sharding import cuttable, sharded_like

AxisName = Hashable | tuple[Hashable, ...] | list[Hashable]
IndexGroups = Sequence[Sequence[int]]


class Groups(NamedTuple):
    """Runs of neighbours on a feature axis that share their statistics (static)."""

    axis: int
    size: int  # of a group

    def stack(self, v: jax.Array) -> jax.Array:
        """``v`` with the members of each group on a new leading axis."""
        cut = v.shape[self.axis] // max(self.size, 1), self.size
        v = cuttable(v, self.axis, cut[0])
        v = v.reshape(*v.shape[: self.axis], *cut, *v.shape[self.axis + 1 :])
        return jnp.moveaxis(v, self.axis + 1, 0)

    def share(self, v: jax.Array, like: jax.Array) -> jax.Array:
        """``v`` of each group, for each of its members; in the sharding of ``like``."""
        shape = *v.shape[: self.axis + 1], self.size, *v.shape[self.axis + 1 :]
        each = jnp.broadcast_to(jnp.expand_dims(v, self.axis + 1), shape)
        return sharded_like(each.reshape(like.shape), like)


class Over(NamedTuple):
    """What statistics are merged over, after the axes of ``x``: devices, and groups (static)."""

    axis_name: tuple[Hashable, ...] = ()
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    groups: Groups | None = None


def over_devices(
    x: jax.Array, axis_name: AxisName | None, axis_index_groups: IndexGroups | None = None
) -> Over:
    """The mapped axes of ``axis_name`` (a name, several, or None), as far as ``x`` needs them."""
    if axis_name is None:
        if axis_index_groups is not None:
            raise ValueError("axis_index_groups cut the indices of axis_name, which is None.")
        return Over()
    names = tuple(axis_name) if isinstance(axis_name, (tuple, list)) else (axis_name,)
    for name in names:
        _check_bound(name)
    tracked = jax.typeof(x).manual_axis_type.varying  # by checked shard_map
    if axis_index_groups is not None:
        return Over(names, _index_groups(axis_index_groups, names, tracked))
    # Over one device there is nothing to merge. Only checked shard_map and vmap must see a
    # collective, or they take the statistics to differ from device to device, from lane to lane.
    # (A collective over lanes within checked shard_map is beyond JAX.)
    mesh = jax.sharding.get_abstract_mesh().axis_names

    def idle(name):
        return lax.axis_size(name) == 1 and name not in tracked and bool(name in mesh or tracked)

    return Over(tuple(name for name in names if not idle(name)))


def _check_bound(name) -> None:
    """Raise unless ``name`` is a mapped axis here."""
    try:
        lax.axis_size(name)
    except (NameError, TypeError):
        raise NameError(
            f"unbound axis name: {name}. axis_name must be mapped where the layer is called, by "
            "jax.shard_map or jax.vmap(..., axis_name=...). Under jax.jit with sharded arrays it "
            "stays None."
        ) from None


def _index_groups(groups, names, tracked) -> tuple[tuple[int, ...], ...]:
    """``groups`` as tuples, where JAX can merge within them; or a clear error."""
    size = lax.axis_size(names)
    try:
        groups = tuple(tuple(int(i) for i in group) for group in groups)
    except (TypeError, ValueError):
        raise TypeError(
            f"axis_index_groups must be a list of lists of ints, got {groups!r}."
        ) from None
    members = sorted(i for group in groups for i in group)
    if members != list(range(size)) or len({len(group) for group in groups}) != 1:
        raise ValueError(
            f"axis_index_groups must cut the {size} indices of axis_name={names} into groups of "
            f"equal size, got {[list(group) for group in groups]}."
        )
    mesh = jax.sharding.get_abstract_mesh().axis_names
    if len(names) > 1 or names[0] not in mesh or names[0] in tracked:
        shape = (len(groups), size // len(groups))
        raise ValueError(
            "axis_index_groups needs a single axis_name, of jax.pmap or of "
            f"jax.shard_map(check_vma=False), got {names}. Give the groups an axis of their own "
            f"instead: jax.make_mesh({shape}, ('group', 'member')) (or two nested vmaps of these "
            "sizes), with axis_name='member'."
        )
    return groups


def devices(over: Over) -> int:
    """How many devices (or mapped lanes) are merged; known at trace time."""
    if over.axis_index_groups is not None:
        return len(over.axis_index_groups[0])
    return lax.axis_size(over.axis_name) if over.axis_name else 1


def single_lane(over: Over) -> bool:
    """Whether all axes are of ``vmap`` and of size 1."""
    mesh = jax.sharding.get_abstract_mesh().axis_names
    return devices(over) == 1 and not any(name in mesh for name in over.axis_name)


def merged_sets(over: Over) -> int:
    """How many sets of numbers are merged into one."""
    return devices(over) * (over.groups.size if over.groups else 1)


def sum_over(*sums: jax.Array, over: Over) -> Sequence[jax.Array]:
    """Each of ``sums`` over its group and all devices, in one collective."""
    if over.groups:
        sums = tuple(over.groups.share(jnp.sum(over.groups.stack(v), 0), v) for v in sums)
    if not over.axis_name:
        return sums
    if single_lane(over):
        return [lax.psum(v, over.axis_name) for v in sums]
    stacked, _ = _vary(jnp.stack(sums), over.axis_name)
    return tuple(lax.psum(stacked, over.axis_name, axis_index_groups=over.axis_index_groups))


def all_gather(v: jax.Array, over: Over) -> jax.Array:
    """``v`` of every device, stacked on a new leading axis."""
    if over.axis_index_groups is not None:
        return lax.all_gather(v, over.axis_name, axis_index_groups=over.axis_index_groups)
    mesh_names = jax.sharding.get_abstract_mesh().axis_names
    mesh = tuple(name for name in over.axis_name if name in mesh_names)
    stacked = v[None]
    for name in over.axis_name:
        if name not in mesh:  # an axis of vmap, which gathers one name at a time
            stacked = lax.all_gather(stacked, name).reshape(-1, *v.shape)
    if mesh:
        # Checked shard_map must be told that all devices hold the same, for the statistics to
        # leave it replicated; unchecked, nothing is known to vary.
        stacked, checked = _vary(stacked, mesh)
        stacked = lax.all_gather(stacked, mesh, to="invarying" if checked else "varying")
    return stacked.reshape(-1, *v.shape)


def _vary(v, mesh_names):
    """``v`` as varying over ``mesh_names``, where shard_map tracks that; and whether it does."""
    varying = jax.typeof(v).manual_axis_type.varying
    missing = tuple(name for name in mesh_names if name not in varying)
    checked = len(missing) < len(mesh_names)
    return (lax.pcast(v, missing, to="varying") if checked and missing else v), checked
