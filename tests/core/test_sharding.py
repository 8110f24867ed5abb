"""Arrays spread over devices: plain jit, explicit meshes, named axes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import testing

pytestmark = pytest.mark.several_devices

KINDS = {"auto": jax.sharding.AxisType.Auto, "explicit": jax.sharding.AxisType.Explicit}


def layer(x, **options):
    stats = bnjax.init_batch_stats(x.shape[-1])
    return bnjax.batch_norm(x, None, None, stats, train=True, **options)


def close(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-6, atol=2e-6), got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 3), (32, 8, 8, 3), (64, 9, 3), (1024, 4)])
def test_a_sharded_batch_needs_no_axis_name(kind, shape):
    rng = np.random.default_rng(0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(KINDS[kind],))
    x = rng.normal(100, 2, shape).astype(np.float32)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    close(jax.jit(layer)(sharded), layer(x))
    close(layer(sharded), layer(x))
    compiled = jax.jit(layer).lower(sharded).compile().as_text()
    moved = set(re.findall(r"(all-gather|collective-permute|all-to-all)\(", compiled))
    assert not moved  # sums over devices, and no data


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("kind", KINDS)
def test_virtual_batches_of_a_sharded_batch(kind):
    x = np.random.default_rng(0).normal(100, 2, (32, 3)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(KINDS[kind],), devices=jax.devices()[:4])
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))

    def run(x, size):
        return layer(x, virtual_batch_size=size)

    for size in (4, 8, 32):
        close(run(sharded, size), run(x, size))
    alone = jax.jit(lambda x: run(x, 4)[0]).lower(sharded).compile().as_text()
    assert not re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", alone)
    if kind == "auto":
        close(run(sharded, 5), run(x, 5))
        return
    for size in (5, 16):
        with pytest.raises(ValueError, match=r"cross the 4 shards of axis 0.*divides the 8"):
            run(sharded, size)


@pytest.mark.compiled("quickly")
def test_features_sharded_on_an_explicit_mesh_with_replicated_state():
    rng = np.random.default_rng(0)
    kinds = (KINDS["explicit"],) * 2
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)
    x = rng.normal(size=(32, 6)).astype(np.float32)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", "model")))
    stats = jax.device_put(bnjax.init_batch_stats(6), jax.NamedSharding(mesh, jax.P()))
    got = bnjax.batch_norm(sharded, None, None, stats, train=True)
    close(got, layer(x))


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("order", [("i", "j"), ("j", "i")])
def test_several_axes_of_nested_vmaps(order):
    rng = np.random.default_rng(0)
    z = rng.normal(3, 2, (2, 3, 8, 4)).astype(np.float32)
    fn = lambda x: layer(x, axis_name=order)  # noqa: E731
    y, stats = jax.vmap(jax.vmap(fn, axis_name="j"), axis_name="i")(z)
    want, want_stats = layer(z.reshape(-1, 4))
    close(y.reshape(-1, 4), want)
    close(jax.tree.map(lambda v: v[1, 2], stats), want_stats)


def map_over(mesh, fn, **specs):
    return jax.shard_map(fn, mesh=mesh, **specs)


@pytest.fixture
def mesh():
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(KINDS["auto"],) * 2)


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("checked", [True, False])
def test_several_mesh_axes_with_unequal_masks(mesh, checked):
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1, (32, 3)).astype(np.float32)
    mask = rng.random((32, 1)) < 0.4
    mask[:4] = False  # a shard without any data
    x = np.where(mask, x, np.nan)
    specs = {"in_specs": jax.P(("a", "b")), "out_specs": (jax.P(("a", "b")), jax.P())}
    fn = map_over(
        mesh, lambda x, m: layer(x, mask=m, axis_name=("a", "b")), check_vma=checked, **specs
    )
    y, stats = fn(x, mask)
    want, want_stats = layer(x, mask=mask)
    assert testing.relative_error(y, want) < 1e-6
    close(stats, want_stats)


@pytest.mark.compiled("quickly")
def test_an_axis_along_which_the_data_are_equal(mesh):
    rng = np.random.default_rng(0)
    x = rng.normal(5, 1, (32, 3)).astype(np.float32)
    specs = {"in_specs": jax.P("a"), "out_specs": (jax.P("a"), jax.P())}
    fn = map_over(mesh, lambda x: layer(x, axis_name=("a", "b")), **specs)
    close(fn(x), layer(x))
    weights = rng.normal(size=x.shape).astype(np.float32)
    grads = [jax.grad(lambda x, f=f: jnp.sum(weights * f(x)[0]))(x) for f in (fn, layer)]
    close(*grads)


@pytest.mark.compiled("quickly")
def test_features_sharded_under_shard_map_leave_the_count_replicated(mesh):
    rng = np.random.default_rng(0)
    x = rng.normal(5, 1, (32, 6)).astype(np.float32)
    stats = bnjax.BatchStats(jax.P("b"), jax.P("b"), jax.P())

    def local(x):
        return layer(x, axis_name="a")

    fn = map_over(mesh, local, in_specs=jax.P("a", "b"), out_specs=(jax.P("a", "b"), stats))
    close(fn(x), layer(x))


@pytest.mark.parametrize("size", [2, 8])
def test_one_collective_each_way(size):
    mesh = jax.make_mesh((size,), ("d",), axis_types=(KINDS["auto"],), devices=jax.devices()[:size])

    def local(x, scale):
        stats = bnjax.init_batch_stats(5)
        return bnjax.batch_norm(x, scale, None, stats, train=True, axis_name="d")

    specs = {"in_specs": (jax.P("d"), jax.P()), "out_specs": (jax.P("d"), jax.P())}
    fn = map_over(mesh, local, **specs)
    x, scale = jnp.ones((16, 5)), jnp.ones(5)

    def collectives(f):
        text = jax.jit(f).lower(x, scale).compile().as_text()
        return re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text)

    assert collectives(fn) == ["all-gather"]
    both = collectives(jax.grad(lambda *args: jnp.sum(jnp.sin(fn(*args)[0])), argnums=(0, 1)))
    assert sorted(both) == ["all-gather", "all-reduce"]
