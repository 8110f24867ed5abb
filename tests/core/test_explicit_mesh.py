"""Explicit meshes, the default of ``jax.make_mesh``: every function, wherever x is sharded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax

pytestmark = [pytest.mark.compiled("quickly"), pytest.mark.several_devices]

P = jax.P
FEATURES = 12
LAYOUTS = [P("i", None, "j"), P(None, "i", "j"), P(None, None, ("i", "j")), P(("j", "i"))]
# All but one of which virtual batches of 4 could not be made without moving examples.
FEW = LAYOUTS[:3]


def batch_norm(**options):
    return lambda x, s, b, mask, stats: bnjax.batch_norm(x, s, b, stats, **options)


def masked(**options):
    return lambda x, s, b, m, stats: bnjax.batch_norm(x, s, b, stats, mask=m, **options)


def renorm(**options):
    return lambda x, s, b, mask, stats: bnjax.batch_renorm(x, s, b, stats, **options)


def feature_norm(norm, **options):
    return lambda x, s, b, mask, stats: norm(x, s, b, **options)


def groups(number, **options):
    return feature_norm(bnjax.group_norm, num_groups=number, **options)


def spectral(x, s, b, mask, stats):
    state = bnjax.SpectralState(stats.mean[None], stats.var[0])
    return bnjax.spectral_norm(x, state, n_steps=2)


def taken_apart(x, s, b, mask, stats):
    m = bnjax.merge(bnjax.moments(x, (0, 1)), bnjax.moments(x, (0, 1), mask=mask))
    after = bnjax.update_batch_stats(stats, m, debias=True)
    return bnjax.scale_shift(bnjax.normalize(x, m.mean, m.var()), s, b), m.mean, after


CASES = {
    "taken apart": (taken_apart, LAYOUTS),
    "train": (batch_norm(train=True, skip_nonfinite=True), LAYOUTS),
    "evaluate": (batch_norm(train=False), LAYOUTS),
    "masked": (masked(train=True), FEW),
    "virtual": (batch_norm(train=True, virtual_batch_size=4), FEW),
    "track": (batch_norm(train=False, update_stats=True), FEW[::2]),
    "renorm": (renorm(train=True), FEW[::2]),
    "renorm, virtual": (renorm(train=True, virtual_batch_size=4), FEW[:1]),
    "one update": (
        lambda x, s, b, m, stats: bnjax.batch_norm(
            x, s, b, bnjax.begin_update(stats), train=True, skip_nonfinite=True
        ),
        FEW[:1],
    ),
    "layer": (feature_norm(bnjax.layer_norm), LAYOUTS),
    "layer, all axes": (feature_norm(bnjax.layer_norm, axes=(1, 2), param_axes=-1), FEW[1:]),
    "rms": (feature_norm(bnjax.rms_norm), FEW[::2]),
    "instance": (feature_norm(bnjax.instance_norm), FEW),
    "one group": (groups(1), FEW),
    "2 groups": (groups(2), FEW),
    "3 groups": (groups(3), FEW),
    "4 groups": (groups(4), FEW[::2]),
    "3 groups, no positions": (groups(3, axes=2), FEW[::2]),
    "2 groups, no positions": (groups(2, axes=2), FEW[2:]),
    "weight": (lambda x, s, b, m, stats: bnjax.weight_norm(x, s), FEW[::2]),
    "spectral": (spectral, LAYOUTS),
    "standardize": (lambda x, s, b, m, stats: bnjax.weight_standardize(x, s), FEW[1:]),
}


@pytest.fixture(scope="module")
def mesh():
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    return jax.make_mesh((2, 2), ("i", "j"), axis_types=kinds, devices=jax.devices()[:4])


@pytest.fixture(scope="module")
def arguments():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 2, (8, 4, FEATURES)).astype(np.float32)
    s, b, mean, var = rng.uniform(0.5, 2, (4, FEATURES)).astype(np.float32)
    stats = bnjax.BatchStats(mean, var, np.int32(3))
    return jax.tree.map(jnp.asarray, (x, s, b, rng.random((8, 4, 1)) < 0.7, stats))


def on(mesh, v, spec):
    return jax.device_put(v, jax.NamedSharding(mesh, spec))


def with_gradients(fn):
    """``fn``, and the gradients in x, scale and bias of a sum that weighs its results."""

    def loss(*args):
        out = fn(*args)
        return sum(jnp.sum(jnp.sin(v / 4)) for v in jax.tree.leaves(out) if v.ndim), out

    def both(*args):
        grads, out = jax.grad(loss, (0, 1, 2), has_aux=True)(*args)
        return out, grads

    return both


def agree(got, want):
    def check(g, w):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-5 * max(1e-3, np.max(np.abs(w))))

    jax.tree.map(check, got, want)


# https://github.com/jax-ml/jax/issues/28538
@pytest.mark.parametrize("case", CASES)
def test_jax_28538_every_layout_on_an_explicit_mesh_is_one_device(case, mesh, arguments):
    fn, layouts = CASES[case]
    fn = with_gradients(fn)
    want = jax.jit(fn)(*arguments)
    x, *params, mask, stats = arguments
    put = functools.partial(on, mesh)
    for number, layout in enumerate(layouts):
        features = P(*layout[2:])
        # Parameters of the features' layout, and state of none: what comes out is as it went in.
        spread = [put(v, features if number % 2 == 0 else P()) for v in params]
        whole = jax.tree.map(lambda v: put(v, P()), (mask, stats))
        got = jax.jit(fn)(put(x, layout), *spread, *whole)
        agree(got, want)
        y = jax.tree.leaves(got[0])[0]
        assert y.sharding.is_equivalent_to(jax.NamedSharding(mesh, layout), 3)
        if case != "taken apart":
            state = jax.tree.leaves(got[0])[1:]
            assert all(v.sharding.is_fully_replicated for v in state)
    agree(CASES[case][0](put(x, layout), *spread, *whole), want[0])


def test_jax_28538_training_steps_on_an_explicit_mesh_are_a_scan(mesh, arguments):
    x, scale, bias, _, stats = arguments
    put = functools.partial(on, mesh)

    def steps(x, stats):
        def step(stats, _):
            y, stats = bnjax.batch_norm(x, scale, bias, stats, train=True)
            return stats, y.sum()

        return jax.lax.scan(step, stats, None, 3)[0]

    whole = jax.tree.map(lambda v: put(v, P()), stats)
    agree(jax.jit(steps)(put(x, P("i", None, "j")), whole), steps(x, stats))


def test_jax_28538_moments_of_sharded_batches_of_a_data_set(mesh, arguments):
    x = arguments[0]
    batches = [on(mesh, x, P("i", None, "j"))] * 3
    agree(bnjax.dataset_moments(batches), bnjax.dataset_moments([x] * 3))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["statistics", "pending", "counts"])
def test_jax_28538_statistics_made_outside_of_the_mesh(kind, masked):
    x = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    stats = bnjax.init_batch_stats(8)
    if kind == "counts":
        stats = stats._replace(count=jnp.zeros(8, jnp.int32))
    state = bnjax.begin_update(stats) if kind == "pending" else stats

    @jax.jit
    def step(x, state):
        mask = x > -1 if masked else None
        return bnjax.batch_norm(x, None, None, state, train=True, mask=mask, debias=True)

    want = step(x, state)
    mesh = jax.make_mesh((2, 2), ("i", "j"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        got = step(jax.device_put(x, jax.P("i", None, "j")), state)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
