"""Merging over named axes: the same result as one device, however the axis is mapped."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax
from bnjax import linen as bnn
from bnjax import nnx as bnnx
from bnjax import testing

pytestmark = pytest.mark.several_devices

FEATURES = 3
P = jax.P


def mesh(size):
    return jax.sharding.Mesh(jax.devices()[:size], ("d",))


def over_shards(fn, size, checked):
    """``fn`` of local arrays with replicated scale and bias; on arrays of ``(size, ...)``."""
    specs = {"in_specs": (P("d"), P(), P(), P("d")), "out_specs": (P("d"), P())}

    def local(x, scale, bias, mask):
        y, stats = fn(x[0], scale, bias, mask[0])
        return y[None], stats

    return jax.shard_map(local, mesh=mesh(size), check_vma=checked, **specs)


def over_lanes(fn, size, transform):
    """The same with ``jax.vmap`` or ``jax.pmap``, where every lane returns the statistics."""

    def mapped(x, scale, bias, mask):
        y, stats = transform(fn, axis_name="d", in_axes=(0, None, None, 0))(x, scale, bias, mask)
        return y, jax.tree.map(lambda v: v[-1], stats)

    return mapped


KINDS = {
    "checked shard_map": functools.partial(over_shards, checked=True),
    "unchecked shard_map": functools.partial(over_shards, checked=False),
    "vmap": functools.partial(over_lanes, transform=jax.vmap),
    "pmap": functools.partial(over_lanes, transform=jax.pmap),
}
# devices, examples on each, mask
CASES = [(2, 16, "none"), (4, 1, "none"), (8, 16, "none"), (2, 16, "unequal"), (8, 2, "unequal")]


def layer(x, scale, bias, mask, **options):
    stats = bnjax.init_batch_stats(FEATURES)
    return bnjax.batch_norm(x, scale, bias, stats, train=True, decay=0.5, mask=mask, **options)


def problem(size, examples, offset, masks):
    rng = np.random.default_rng(size)
    x = rng.normal(offset, 1, (size, examples, FEATURES)).astype(np.float32)
    dy = rng.normal(size=x.shape).astype(np.float32)
    scale, bias = rng.normal(size=(2, FEATURES)).astype(np.float32)
    mask = np.ones((size, examples, 1), bool)
    if masks == "unequal":
        mask = rng.random(mask.shape) < 0.6
        mask[0] = False  # a device without any data
        mask[1, :2] = True
        x, dy = np.where(mask, x, np.nan), np.where(mask, dy, 0)
    return x, scale, bias, mask, dy


@functools.partial(jax.jit, static_argnums=0)
def gradients(fn, x, scale, bias, mask, dy):
    (y, stats), pullback = jax.vjp(lambda *args: fn(*args, mask), x, scale, bias)
    return y, stats, *pullback((dy, jax.tree.map(jnp.zeros_like, stats)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size, examples, masks", CASES)
def test_everything_equals_one_device_at_a_large_offset(kind, size, examples, masks):
    # flax#2417, pytorch PR#36382, #36530, #64039: unequal, empty and size-1 shards, and gradients.
    x, scale, bias, mask, dy = problem(size, examples, 1e4, masks)
    fn = KINDS[kind](functools.partial(layer, axis_name="d"), size)
    got = gradients(fn, x, scale, bias, mask, dy)
    flat = lambda v: v.reshape(-1, v.shape[-1])  # noqa: E731
    want = gradients(layer, flat(x), scale, bias, flat(mask), flat(dy))
    for name, g, w in zip(("y", "stats", "dx", "dscale", "dbias"), got, want, strict=True):
        if name in ("y", "dx"):
            g, w = np.where(mask, g, 0), np.where(mask, w.reshape(x.shape), 0)
        if name == "stats":
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), g, w)
        else:
            assert testing.relative_error(g, w) < 1e-6, name


@pytest.mark.parametrize("kind", ["unchecked shard_map", "pmap"])
def test_over_one_device_nothing_is_added(kind):
    x, scale, bias, mask, dy = problem(1, 16, 0.0, "none")

    def instructions(axis_name):
        fn = KINDS[kind](functools.partial(layer, axis_name=axis_name), 1)
        program = jax.jit(lambda *args: gradients(fn, *args))
        return re.findall(
            r" = .*? ([\w-]+)\(", program.lower(x, scale, bias, mask, dy).as_text("hlo")
        )

    assert instructions("d") == instructions(None)


def test_a_single_lane_costs_no_collective_and_no_pass():
    # vmap must be told that the lane's statistics are those of all lanes, and is told in passing.
    x, scale, bias, mask, dy = problem(1, 4096, 0.0, "none")

    def program(axis_name):
        fn = KINDS["vmap"](functools.partial(layer, axis_name=axis_name), 1)
        compiled = jax.jit(lambda *args: gradients(fn, *args)).lower(x, scale, bias, mask, dy)
        return compiled.compile()

    alone, lane = program(None), program("d")
    moved = [p.cost_analysis()["bytes accessed"] for p in (alone, lane)]
    assert moved[1] < 1.01 * moved[0]
    assert not re.findall(r" (all-\w+|collective-\w+|reduce-scatter)\(", lane.as_text())
    got, want = (p(x, scale, bias, mask, dy) for p in (lane, alone))
    jax.tree.map(np.testing.assert_array_equal, got, want)


ONE_LANE = {
    "batch norm": {},
    "masked": {"mask": np.arange(16)[:, None] > 3},
    "virtual": {"virtual_batch_size": 4},
    "track": {"train": False, "update_stats": True, "unseen": "allow"},
}


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("case", ONE_LANE)
@pytest.mark.parametrize("lanes", [(1,), (1, 1), (3, 1), (1, 3)])
def test_statistics_of_a_single_lane_are_those_of_all_lanes(case, lanes):
    names = ("a", "b")[-len(lanes) :]
    options = {"train": True, **ONE_LANE[case]}
    x = np.random.default_rng(0).normal(5, 2, (*lanes, 16, FEATURES)).astype(np.float32)

    def update(x, **options):
        stats = bnjax.init_batch_stats(FEATURES)
        return bnjax.batch_norm(x, None, None, stats, **options)[1]

    mapped = functools.partial(update, axis_name=names, **options)
    for name in reversed(names):
        mapped = jax.vmap(mapped, axis_name=name, out_axes=None)
    if "mask" in options:
        options["mask"] = np.tile(options["mask"], (math.prod(lanes), 1))
    want = update(x.reshape(-1, FEATURES), **options)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-6), mapped(x), want)


def test_a_single_lane_of_linen_has_one_state():
    norm = bnn.BatchNorm(use_running_average=False, axis_name="b")
    x = jnp.arange(6.0).reshape(1, 3, 2)
    variables = norm.init(jax.random.key(0), x[0])
    step = functools.partial(norm.apply, variables, mutable=["batch_stats"])
    y, after = jax.vmap(step, axis_name="b", out_axes=(0, None))(x)
    alone = bnn.BatchNorm(use_running_average=False)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-6),
        (y[0], after),
        alone.apply(variables, x[0], mutable=["batch_stats"]),
    )


def test_over_one_device_checked_shard_map_costs_its_collectives_only():
    # They tell it that the statistics are replicated; nothing else can.
    x, scale, bias, mask, dy = problem(1, 16, 0.0, "none")
    fn = KINDS["checked shard_map"](functools.partial(layer, axis_name="d"), 1)
    got = gradients(fn, x, scale, bias, mask, dy)
    want = gradients(layer, x[0], scale, bias, mask[0], dy[0])
    assert testing.relative_error(got[0][0], want[0]) < 1e-6
    text = jax.jit(fn).lower(x, scale, bias, mask).compile().as_text()
    assert len(re.findall(r" all-gather\(", text)) == 1


GROUPS = [[0, 1], [2, 3]]


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("kind", ["unchecked shard_map", "pmap"])
def test_groups_of_indices_are_merged_separately(kind):
    x, scale, bias, mask, _ = problem(4, 16, 5.0, "none")
    fn = functools.partial(layer, axis_name="d", axis_index_groups=GROUPS)
    y = KINDS[kind](fn, 4)(x, scale, bias, mask)[0]
    for half in (slice(0, 2), slice(2, 4)):
        want, _ = layer(x[half].reshape(-1, 3), scale, bias, None)
        assert testing.relative_error(y[half].reshape(-1, 3), want) < 1e-6


def linen_layer(**options):
    module = bnn.BatchNorm(use_running_average=False, **options)
    variables = module.init(jax.random.key(0), jnp.ones((4, FEATURES)))
    return lambda x: module.apply(variables, x, mutable=["batch_stats"])[0]


def nnx_layer(**options):
    return lambda x: bnnx.BatchNorm(FEATURES, rngs=nnx.Rngs(0), **options)(x)


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("make", [linen_layer, nnx_layer])
def test_modules_take_groups_under_pmap_and_show_the_mesh_form_elsewhere(make):
    x, *_ = problem(4, 16, 5.0, "none")
    layer = make(axis_name="d", axis_index_groups=GROUPS)
    y = jax.pmap(layer, axis_name="d", devices=jax.devices()[:4])(x)
    want = make()(jnp.asarray(x[2:].reshape(-1, FEATURES)))
    assert testing.relative_error(y[2:].reshape(-1, FEATURES), want) < 1e-6
    with pytest.raises(ValueError, match=r"make_mesh\(\(2, 2\), \('group', 'member'\)\)"):
        jax.vmap(layer, axis_name="d")(x)
    with pytest.raises(ValueError, match=r"make_mesh\(\(2, 2\), \('group', 'member'\)\)"):
        jax.shard_map(layer, mesh=mesh(4), in_specs=P("d"), out_specs=P("d"))(x)


@pytest.mark.compiled("quickly")
def test_sub_groups_are_mesh_axes():
    x, scale, bias, _, _ = problem(4, 16, 5.0, "none")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("group", "member"))

    def local(x):
        return layer(x, scale, bias, None, axis_name="member")[0]

    spec = P(("group", "member"))
    y = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(x.reshape(-1, FEATURES))
    want, _ = layer(x[2:].reshape(-1, FEATURES), scale, bias, None)
    assert testing.relative_error(y[32:], want) < 1e-6


@pytest.mark.parametrize("groups", [[[0, 1], [2]], [[0, 1], [1, 2]], [[0, 1, 2, 4]]])
def test_groups_that_do_not_fit_are_refused(groups):
    with pytest.raises(ValueError, match="axis_index_groups must cut the 4 indices"):
        jax.vmap(
            lambda x: layer(x, None, None, None, axis_name="d", axis_index_groups=groups),
            axis_name="d",
        )(jnp.ones((4, 8, FEATURES)))


def test_virtual_batches_on_their_device_need_one_collective_for_the_running_statistics():
    x, scale, bias, mask, dy = problem(4, 16, 100.0, "none")

    def program(**options):
        fn = KINDS["checked shard_map"](functools.partial(layer, **options), 4)
        return lambda *args: gradients(fn, *args)[0]

    def collectives(fn):
        text = jax.jit(fn).lower(x, scale, bias, mask, dy).compile().as_text()
        return re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text)

    merged = program(axis_name="d", virtual_batch_size=8)
    assert collectives(merged) == []  # y alone needs none
    y = merged(x, scale, bias, mask, dy)
    want, want_stats = layer(x[2, :8], scale, bias, None)
    assert testing.relative_error(y[2, :8], want) < 1e-6
    fn = KINDS["checked shard_map"](
        functools.partial(layer, axis_name="d", virtual_batch_size=8), 4
    )
    _, stats = fn(x, scale, bias, mask)
    _, want_stats = layer(x.reshape(-1, FEATURES), scale, bias, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stats, want_stats)
    assert len(collectives(lambda *args: fn(*args[:4]))) == 1


def test_a_typo_in_the_modules_is_an_error_too():
    for make in (linen_layer, nnx_layer):
        with pytest.raises(NameError, match="devcies"):
            jax.vmap(make(axis_name="devcies"), axis_name="d")(jnp.ones((2, 8, FEATURES)))
