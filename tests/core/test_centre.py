"""Where the shift comes from: a sample of x, or a guess with a guard; every form on this machine.

A guess is the running mean in batch norm, and zero in layer norm. It is what a program for TPU
uses; how far it is from the mean must not be seen in any result.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend import core as jax_core

import bnjax
from bnjax import testing
from bnjax.core._shift import too_far
from bnjax.core._xla import STATISTICS, as_on
from tests._derivatives import check_derivatives

PLATFORMS = ("cpu", "gpu", "tpu")
FEATURES = 4


@pytest.fixture(params=PLATFORMS)
def platform(request):
    """Results must be alike whatever the program is made for."""
    with as_on(request.param):
        yield request.param


def stats_of(mean):
    """Running statistics with this mean (one for all features), which have seen data."""
    ones = jnp.ones(FEATURES, jnp.float32)
    return bnjax.BatchStats(jnp.asarray(mean, jnp.float32) * ones, ones, jnp.array(9))


def train(x, scale, bias, stats, **options):
    return bnjax.batch_norm(x, scale, bias, stats, train=True, **options)


@jax.jit
def both(x, scale, bias, mean, dy):
    y, pullback, stats = jax.vjp(
        lambda *args: train(*args, stats_of(mean)), x, scale, bias, has_aux=True
    )
    return (y, *pullback(dy)), stats


def problem(shape=(512, 9, FEATURES), offset=0.0, outlier=0.0):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) + offset).astype(np.float32)
    x[0, 0] += outlier
    scale, bias = rng.normal(size=(2, FEATURES)).astype(np.float32)
    return x, scale, bias, rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("away", [0, 0.5, 2.6, 10, 1e6, np.inf, np.nan])
@pytest.mark.parametrize("offset", [0, 1, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("outlier", [0.0, 1e3])
def test_the_running_mean_is_not_seen_in_values_and_gradients(platform, away, offset, outlier):
    """Sums of squares about it would be 100 % off (flax#1491); a NaN in it would spread."""
    x, scale, bias, dy = problem(offset=offset, outlier=outlier)
    (y, *gradients), stats = both(x, scale, bias, offset + away, dy)
    forward = testing.batch_norm_forward(x, scale, bias)
    want = (forward.y, *testing.batch_norm_backward(dy, forward.cache))
    for name, g, w in zip(("y", "dx", "dscale", "dbias"), (y, *gradients), want, strict=True):
        assert testing.relative_error(g, w) < 1e-6, name
    exact = np.asarray(x, np.float64).reshape(-1, FEATURES)
    np.testing.assert_allclose(stats.var, 0.99 + 0.01 * exact.var(0), rtol=2e-6)


@pytest.mark.parametrize("n", [10, 8192])
@pytest.mark.parametrize("guess", [0.0, 0.3])
def test_a_constant_feature_gives_bias(platform, n, guess):
    """Near zero no second pass sums it; then it is bias to a float32 digit, not to the last bit."""
    x = np.broadcast_to(np.float32([1e-6, -8e-3, 0.1, 1e6]), (n, FEATURES))
    stats = bnjax.BatchStats(jnp.asarray(x[0] * guess), jnp.ones(FEATURES), jnp.array(3))
    y, _ = train(x, None, jnp.full(FEATURES, 0.5), stats)
    np.testing.assert_allclose(y, 0.5, atol=1e-6 if platform == "tpu" else 0)


near_or_far = st.floats(-10, 10) | st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf])


@given(
    means=st.lists(near_or_far, min_size=FEATURES, max_size=FEATURES), offset=st.floats(-1e6, 1e6)
)
def test_any_running_means_near_far_or_not_a_number(means, offset):
    x, scale, bias, _ = problem((64, 1, FEATURES), offset)
    guess = np.float32(offset) + np.asarray(means, np.float32)
    stats = bnjax.BatchStats(jnp.asarray(guess), jnp.ones(FEATURES), jnp.array(9))
    with as_on("tpu"):
        y, _ = train(x, scale, bias, stats)
    assert testing.relative_error(y, testing.batch_norm_forward(x, scale, bias).y) < 1e-6


CASES = {
    "plain": {},
    "mask": {"mask": np.random.default_rng(2).random((5, 3, 1)) < 0.6},
    "mask_by_feature": {"mask": np.random.default_rng(3).random((5, 1, FEATURES)) < 0.7},
    "virtual": {"virtual_batch_size": 2},
}


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("case, mean", [("plain", 0.0), *((case, 1e3) for case in CASES)])
def test_derivatives_to_second_order_in_both_modes(x64, case, mean):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(5, 3, FEATURES))
    scale, bias = rng.normal(size=(2, FEATURES))
    options = CASES[case]
    stats = stats_of(mean)
    with as_on("tpu"):
        check_derivatives(lambda *args: train(*args, stats, **options)[0], (x, scale, bias), 2)


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("mean", [0.0, 1e3, np.nan])
@pytest.mark.parametrize("case", [c for c in CASES if "mask" in c])
def test_nan_under_a_mask_stays_there(platform, case, mean):
    mask = CASES[case]["mask"]
    x = np.random.default_rng(5).normal(size=(5, 3, FEATURES)).astype(np.float32) + 7
    hidden = ~np.broadcast_to(mask, x.shape)
    y, after = train(np.where(hidden, np.nan, x), None, None, stats_of(mean), mask=mask)
    want, _ = train(np.where(hidden, 0, x), None, None, stats_of(7.0), mask=mask)
    assert testing.relative_error(np.where(hidden, 0, y), np.where(hidden, 0, want)) < 1e-6
    assert np.isfinite(after.var).all()


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("mean", [0.0, 100.0, np.nan])
@pytest.mark.parametrize("way", ["virtual", "renorm", "micro", "track"])
def test_every_user_of_batch_statistics_is_safe(platform, way, mean):
    x = problem((64, 1, FEATURES), 100.0)[0]
    stats, near = stats_of(mean), stats_of(100.0)

    def run(stats):
        if way == "virtual":
            return train(x, None, None, stats, virtual_batch_size=8)
        if way == "renorm":  # which corrects towards the running mean
            stats = stats._replace(mean=jnp.nan_to_num(stats.mean))
            return bnjax.batch_renorm(x, None, None, stats, train=True, r_max=1.0, d_max=0.0)
        if way == "track":
            evaluate = {"train": False, "update_stats": True}
            return 0, bnjax.batch_norm(x, None, None, stats, **evaluate)[1]
        pending = bnjax.begin_update(stats)
        ys = []
        for part in (x[:32], x[32:]):
            y, pending = train(part, None, None, pending)
            ys.append(y)
        return jnp.concatenate(ys), pending.after

    (y, after), (want, settled) = run(stats), run(near)
    assert testing.relative_error(y, want) < 2e-6
    np.testing.assert_allclose(after.var, settled.var, rtol=2e-6)


def test_the_means_of_a_jump_are_found_at_once(platform):
    """The data jump by 10⁴ deviations between two steps."""
    x, scale, bias, _ = problem()
    _, stats = train(x, scale, bias, stats_of(0.0))
    y, _ = train(x + np.float32(1e4), scale, bias, stats)
    want = testing.batch_norm_forward(x + np.float32(1e4), scale, bias).y
    assert testing.relative_error(y, want) < 1e-6


def branches(text):
    """The branches of a compiled program."""
    return len(re.findall(r"= .* conditional\(", text))


@pytest.mark.compiled("quickly")
@pytest.mark.parametrize("mapped", ["x", "x and statistics", "statistics", "x and mask", "twice"])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_under_vmap_the_guard_stays_one_branch(mapped, mean):
    """An ensemble: a branch whose predicate is mapped would be a choice between two results."""
    x = problem((3, 32, 2, FEATURES), 50.0)[0]
    stats = jax.tree.map(lambda v: jnp.stack([v] * 3), stats_of(mean))
    stats = stats._replace(mean=stats.mean.at[1].set(50.0))
    mask = np.random.default_rng(6).random((3, 32, 2, 1)) < 0.7

    def one(x, stats, mask=None):
        return train(x, None, None, stats, mask=mask)

    one_stats = jax.tree.map(lambda v: v[0], stats)
    ways = {
        "x": (lambda x: jax.vmap(lambda x: one(x, one_stats))(x), (x,)),
        "x and statistics": (jax.vmap(one), (x, stats)),
        "statistics": (lambda stats: jax.vmap(lambda s: one(x[0], s))(stats), (stats,)),
        "x and mask": (lambda x, m: jax.vmap(lambda x, m: one(x, one_stats, m))(x, m), (x, mask)),
        "twice": (jax.vmap(jax.vmap(one, (1, None))), (x, stats)),
    }
    function, args = ways[mapped]
    with as_on("tpu"):
        compiled = jax.jit(function).lower(*args).compile()
        assert branches(compiled.as_text()) == 1
        got = compiled(*args)
    with as_on("cpu"):
        want = function(*args)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert testing.relative_error(g, w) < 2e-6


@pytest.mark.several_devices
@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_devices_take_the_second_pass_by_themselves_and_without_a_collective(check_vma, mean):
    """Half of the devices have data near the running mean, half far from it."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x = problem((64, 4, FEATURES))[0]
    x[32:] += np.float32(50)
    split, whole = jax.P("d"), jax.P()

    function = jax.shard_map(
        lambda x, stats: train(x, None, None, stats, axis_name="d"),
        mesh=mesh,
        in_specs=(split, whole),
        out_specs=(split, whole),
        check_vma=check_vma,
    )
    with as_on("tpu"):
        compiled = jax.jit(function).lower(x, stats_of(mean)).compile()
        text = compiled.as_text()
        got = compiled(x, stats_of(mean))
    want = train(x, None, None, stats_of(mean))
    assert branches(text) == 1
    assert len(re.findall(r"= .* all-(gather|reduce)(-start)?\(", text)) == 1
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert testing.relative_error(g, w) < 2e-6


@pytest.mark.several_devices
def test_sharded_under_plain_jit_there_is_one_all_reduce_outside_of_the_branch():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(problem((64, 4, FEATURES))[0], jax.NamedSharding(mesh, jax.P("d")))
    stats = jax.device_put(stats_of(0.0), jax.NamedSharding(mesh, jax.P()))

    def loss(x, stats):
        y, stats = train(x, None, None, stats)
        return jnp.sum(jnp.sin(y)), stats

    with as_on("tpu"):
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        text = step.lower(x, stats).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert len(re.findall(r"= .* all-reduce(-start)?\(", entry)) == 2  # forward and backward
    assert branches(text) == 1


@pytest.mark.several_devices
def test_explicit_meshes_have_a_branch_too():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = problem((64, 4, FEATURES), 50.0)[0]
    want, after = train(x, None, None, stats_of(0.0))
    with jax.set_mesh(mesh), as_on("tpu"):
        y, stats = jax.jit(lambda x: train(x, None, None, stats_of(0.0)))(
            jax.device_put(x, jax.P("d"))
        )
    assert testing.relative_error(y, want) < 1e-6
    np.testing.assert_allclose(stats.var, after.var, rtol=2e-6)


@pytest.mark.parametrize("lag, far", [(2e-3, False), (0.1, True)])
def test_a_dead_feature_whose_mean_lags_a_little_is_not_far(lag, far):
    """Relative to its own variance any distance is infinite, in every step there is."""
    found = too_far(jnp.array([lag]), jnp.zeros(1), 1e-5)
    assert bool(found[0]) == far


def test_one_traced_program_has_the_form_of_where_it_is_lowered():
    """A program may be traced here, and exported to where it runs."""
    x, v = jnp.ones((4096, FEATURES)), jnp.ones(FEATURES)
    stats = stats_of(0.0)
    traced = jax.jit(lambda x, v: train(x, v, v, stats)).trace(x, v)
    text = {
        name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")
    }
    cases = {name: text[name].count("stablehlo.case") for name in text}
    assert cases["tpu"] > cases["cpu"] == cases["cuda"]  # that of the guard
    barriers = {name: text[name].count("optimization_barrier") for name in text}
    assert barriers["cuda"] > max(barriers["cpu"], barriers["tpu"])  # sums in two steps
    # What keeps vectors from being computed again for every element, on CPU alone.
    divisions = {name: text[name].count("stablehlo.divide") for name in text}
    assert divisions["cpu"] > divisions["cuda"] == divisions["tpu"]


def test_a_plain_program_tells_a_compiler_nothing():
    """Of which other formats, such as ONNX, would make something long or nothing at all."""
    x, scale, bias, _ = problem()

    def program(x):
        return train(x, scale, bias, stats_of(0.0))[0], bnjax.weight_norm(x, scale)

    with as_on("plain"):
        text, got = str(jax.make_jaxpr(program)(x)), program(x)
    for told in ("platform_index", "reduce_precision", "optimization_barrier", STATISTICS):
        assert told not in text
    for plain, usual in zip(got, program(x), strict=True):
        assert testing.relative_error(plain, usual) < 1e-6


@pytest.mark.parametrize("shape", [(4, 3, 16), (4, 4096, 16), (32, 14, 14, 16)])
@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_a_sum_to_be_subtracted_is_not_repeated_by_its_readers(norm, shape):
    """XLA for GPU repeats short sums in each kernel that reads them, unless a barrier stands there.

    Rounded in another order, the means that two kernels know may differ in their last place.
    """
    functions = {
        "batch": lambda x: train(x, None, None, bnjax.init_batch_stats(16)),
        "group": lambda x: bnjax.group_norm(x, None, None, num_groups=2),
        "instance": lambda x: bnjax.instance_norm(x, None, None),
    }
    with as_on("gpu"):
        jaxpr = jax.make_jaxpr(functions[norm])(jnp.ones(shape))
    sources = [source for inner in _jaxprs(jaxpr.jaxpr) for source in _sources_of_pinned(inner)]
    assert set(sources) == {"optimization_barrier"}
    assert len(sources) >= 2  # the shift, and the mean about it


def _jaxprs(jaxpr):
    """This one and all within."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for inner in jax_core.jaxprs_in_params(equation.params):
            yield from _jaxprs(inner)


def _sources_of_pinned(jaxpr):
    """What the numbers that are rounded to 22 bits were made by, but for a factor."""
    made_by = {v: equation for equation in jaxpr.eqns for v in equation.outvars}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "reduce_precision":
            source = made_by[equation.invars[0]]
            while source.primitive.name == "mul":
                source = made_by[source.invars[0]]
            yield source.primitive.name
