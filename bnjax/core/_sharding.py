"""Explicit meshes (``AxisType.Explicit``), where shardings are part of an array's type.

Sums, products and broadcasts find the sharding of their result themselves; a choice between two
arrays (``where``) and a cut of a sharded axis must be told. Elsewhere nothing here does anything.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def spec_of(v: jax.Array) -> tuple:
    """What each axis of ``v`` is sharded over on an explicit mesh; None where it is whole."""
    spec = tuple(jax.typeof(v).sharding.spec)
    return spec + (None,) * (v.ndim - len(spec))


def sharded_like(v, like):
    """``v`` in the sharding of ``like``, an array of the same shape, where that has one.

    An array that was made outside of the mesh is whole on every device of it.
    """
    to = jax.typeof(like).sharding
    v = jnp.asarray(v)
    if to.mesh.empty or v.shape != jnp.shape(like):
        return v
    # From JAX 0.12 on jnp.zeros_like forgets, inside jit, which mesh its argument is on.
    if jax.typeof(v).sharding.mesh == to.mesh and spec_of(v) == spec_of(like):
        return v
    return jax.reshard(v, jax.NamedSharding(to.mesh, jax.P(*spec_of(like))))


def cuttable(v, axis: int, parts: int):
    """``v``, gathered along ``axis`` where ``parts`` equal runs would cross its shards."""
    spec = spec_of(v)
    if spec[axis] is None:
        return v
    mesh = jax.typeof(v).sharding.mesh
    names = spec[axis] if isinstance(spec[axis], tuple) else (spec[axis],)
    if parts % math.prod(mesh.shape[name] for name in names) == 0:
        return v
    whole = (*spec[:axis], None, *spec[axis + 1 :])
    return jax.reshard(v, jax.NamedSharding(mesh, jax.P(*whole)))
