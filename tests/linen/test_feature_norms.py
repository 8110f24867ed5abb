"""The linen modules of layer, RMS, instance and group norm: drop-in for Flax's, and accurate."""

import dataclasses

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import linen
from bnjax.testing import relative_error
from tests import _feature_norms as shared
from tests._feature_norms import NORMS, SHAPE, Case
from tests._quick import quick_jit
from tests.parity._peers import relaxed

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(2, 3, SHAPE), jnp.float32)


def ours(norm, **fields):
    return getattr(linen, norm)(**NORMS[norm] | fields)


def theirs(norm, **fields):
    return getattr(nn, norm)(**NORMS[norm] | {"use_fast_variance": False} | fields)


def apply(module, mask=None):
    def function(params, x):
        return module.apply({"params": params}, x, mask=mask)

    return function


@pytest.mark.parametrize("norm", NORMS)
def test_fields_and_defaults_are_those_of_flax(norm):
    fields = [
        [(f.name, f.default, f.kw_only) for f in dataclasses.fields(getattr(package, norm))]
        for package in (linen, nn)
    ]
    assert fields[0] == fields[1]


@pytest.mark.parametrize("case", shared.cases("linen"), ids=repr)
def test_variables_outputs_and_gradients_are_those_of_flax(case):
    x, dy, mask = shared.draw(case)
    a, b = ours(case.norm, **case.fields), theirs(case.norm, **case.fields)
    with relaxed():
        want = quick_jit(b.init)(KEY, x)
    got = quick_jit(a.init)(KEY, x)
    assert list(got) == list(want)
    shared.assert_agree(got, want, tolerance=0)
    params = shared.perturb(want.get("params", {}))
    with relaxed():
        want = shared.exam(apply(b, mask), params, x, dy)
    shared.assert_agree(shared.exam(apply(a, mask), params, x, dy), want, case.tolerance)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [float, int])
def test_a_mask_of_numbers_is_one_of_booleans(norm, dtype):
    mask = np.random.default_rng(1).random(SHAPE) < 0.8
    params = ours(norm).init(KEY, X)["params"]
    got = apply(ours(norm), mask.astype(dtype))(params, X)
    np.testing.assert_array_equal(got, apply(ours(norm), mask)(params, X))


@pytest.mark.parametrize("norm", NORMS)
def test_what_a_mask_hides_takes_no_part_and_nothing_to_count_gives_bias(norm):
    mask = np.random.default_rng(1).random(SHAPE) < 0.8
    mask[0] = False
    params = shared.perturb(ours(norm).init(KEY, X)["params"])
    loud = jnp.where(mask, X, jnp.nan)
    y = apply(ours(norm), mask)(params, loud)
    quiet = apply(ours(norm), mask)(params, X)
    np.testing.assert_array_equal(np.where(mask, y, 0), np.where(mask, quiet, 0))
    np.testing.assert_array_equal(y[0], jnp.broadcast_to(params.get("bias", 0.0), SHAPE[1:]))


def test_a_mask_of_group_norm_may_have_size_one_along_the_channels():
    mask = np.random.default_rng(1).random((4, 3, 2, 1)) < 0.8
    full = np.broadcast_to(mask, SHAPE)
    module = ours("GroupNorm", use_scale=False, use_bias=False)
    got, want = (apply(module, m)({}, X) for m in (mask, full))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_accurate_where_the_default_of_flax_is_wrong(norm):
    x, x_hat = shared.far_from_zero(norm)
    params = ours(norm).init(KEY, x)["params"]
    assert relative_error(apply(ours(norm))(params, x), x_hat) < 1e-6
    if norm != "RMSNorm":  # it has no difference of large numbers to take
        with relaxed():
            flax = apply(theirs(norm, use_fast_variance=True))(params, jnp.asarray(x))
        assert relative_error(flax, x_hat) > 0.1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_axis_name_under_vmap(norm, masked):
    # With a mask the counts of each lane are equal: Flax averages means, right only then.
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, *SHAPE)), jnp.float32)
    dy = jnp.asarray(np.random.default_rng(2).normal(size=(2, *SHAPE)), jnp.float32)
    mask = np.random.default_rng(3).random(SHAPE) < 0.8 if masked else None
    params = shared.perturb(ours(norm).init(KEY, X)["params"])

    def mapped(module):
        one = apply(module, mask)
        return lambda params, x: jax.vmap(one, (None, 0), axis_name="lane")(params, x)

    with relaxed():
        want = shared.exam(mapped(theirs(norm, axis_name="lane")), params, x, dy)
    got = shared.exam(mapped(ours(norm, axis_name="lane")), params, x, dy)
    shared.assert_agree(got, want, 1e-5)
    alone = shared.exam(mapped(ours(norm)), params, x, dy)
    assert relative_error(alone[0], got[0]) > 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_initialising_needs_no_axis_and_no_more_than_one_value(norm):
    module = ours(norm, axis_name="lane", **({"num_groups": 6} if norm == "GroupNorm" else {}))
    small = jnp.ones((1, 1, 6)) if norm in ("InstanceNorm", "GroupNorm") else jnp.ones((1, 6))
    params = module.init(KEY, small)["params"]
    assert params["scale"].shape == (6,)
    with pytest.raises(NameError, match="lane"):
        module.apply({"params": params}, small)
    if norm in ("InstanceNorm", "GroupNorm"):
        with pytest.warns(UserWarning, match="that of one value"):
            module.clone(axis_name=None).apply({"params": params}, small)


@pytest.mark.parametrize("direction", ["from Flax", "to Flax"])
@pytest.mark.parametrize("norm", NORMS)
def test_checkpoint_moves(norm, direction):
    source, target = ours(norm), theirs(norm)
    if direction == "from Flax":
        source, target = target, source
    with relaxed():
        saved = shared.perturb(source.init(KEY, X))
        template = target.init(KEY, X)
        loaded = flax.serialization.from_bytes(template, flax.serialization.to_bytes(saved))
        y, y_loaded = source.apply(saved, X), target.apply(loaded, X)
    shared.assert_agree(loaded, saved, 0)
    assert relative_error(y_loaded, y) < 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_integer_input_is_computed_in_float32(norm):
    x = jnp.arange(4 * 3 * 6).reshape(4, 3, 6) * 7919 % 10007  # not whole in bfloat16
    for options in ({}, {"use_scale": False, "dtype": jnp.bfloat16}):
        params = ours(norm, **options).init(KEY, x).get("params", {})
        y = apply(ours(norm, **options))(params, x)
        assert y.dtype == options.get("dtype", jnp.float32)
        want = apply(ours(norm, **options))(params, x.astype(jnp.float32))
        np.testing.assert_array_equal(y.astype(jnp.float32), want.astype(jnp.float32))


@pytest.mark.parametrize("norm", NORMS)
def test_only_the_call_is_a_call_to_flax(norm):
    called = []

    def record(method, args, kwargs, context):
        called.append(context.method_name)
        return method(*args, **kwargs)

    with nn.intercept_methods(record):
        ours(norm).init(KEY, X)
    assert called == ["__call__"]
    table = nn.tabulate(ours(norm), KEY, compute_flops=True, compute_vjp_flops=True)(X)
    assert f"Total Parameters: {6 if norm == 'RMSNorm' else 12}" in table


@pytest.mark.parametrize("norm", NORMS)
def test_half_precision_leaves_no_float32_copy_for_the_backward_pass(norm):
    # Statistics are a vector of each set of numbers: of 4 x 64 for layer norm.
    x = jnp.ones((4, 64, 96), jnp.bfloat16) * jnp.arange(96, dtype=jnp.bfloat16)[None, None]
    params = ours(norm).init(KEY, x)["params"]
    _, pullback = jax.vjp(lambda x: apply(ours(norm))(params, x), x)
    large = [leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size]
    assert large == [jnp.bfloat16]


class Net(nn.Module):
    """Norms as users write them, one after the other."""

    @nn.compact
    def __call__(self, x):
        for norm in NORMS:
            x = ours(norm)(nn.relu(nn.Dense(6)(x)))
        return nn.Dense(3)(x.mean((1, 2)))


def test_inside_a_model_under_jit_and_grad():
    params = Net().init(KEY, X)["params"]
    assert set(NORMS) <= {name.removesuffix("_0") for name in params}

    @jax.jit
    def step(params):
        loss = lambda params: jnp.mean(jnp.square(apply_net(params) - 1))  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

    def apply_net(params):
        return Net().apply({"params": params}, X)

    losses = []
    for _ in range(30):
        value, params = step(params)
        losses.append(float(value))
    assert losses[-1] < 0.1 * losses[0]


def test_errors_name_argument_and_remedy():
    def run(norm, x=X, **fields):
        getattr(linen, norm)(**fields).init(KEY, x)

    for groups in ({"num_groups": 3, "group_size": 2}, {"num_groups": None}, {"group_size": 2}):
        with pytest.raises(ValueError, match="num_groups=None as well"):
            run("GroupNorm", **groups)
    with pytest.raises(ValueError, match="num_groups=4 does not divide the 6 channels"):
        run("GroupNorm", num_groups=4)
    with pytest.raises(ValueError, match="group_size=4 does not divide the 6 channels"):
        run("GroupNorm", num_groups=None, group_size=4)
    for groups in ({"num_groups": 0}, {"num_groups": None, "group_size": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            run("GroupNorm", **groups)
    with pytest.raises(ValueError, match="must hold the channel axis"):
        run("GroupNorm", num_groups=2, reduction_axes=(1, 2))
    with pytest.raises(ValueError, match="keeps axis 0"):
        run("InstanceNorm", feature_axes=(0, 3))
    with pytest.raises(ValueError, match=r"feature_axes=4 is out of range"):
        run("LayerNorm", feature_axes=4)
    with pytest.raises(ValueError, match=r"axes=\(1, 1\) names an axis twice"):
        run("RMSNorm", reduction_axes=(1, 1))
    with pytest.raises(ValueError, match="epsilon must be"):
        run("LayerNorm", epsilon=-1.0)
    with pytest.raises(ValueError, match="dtype must be inexact"):
        run("LayerNorm", dtype=jnp.int32)
    params = {"scale": jnp.ones(5), "bias": jnp.zeros(5)}
    with pytest.raises(Exception, match="shape"):
        linen.LayerNorm().apply({"params": params}, X)
    with pytest.raises(ValueError, match="mask of shape"):
        linen.LayerNorm().init(KEY, X, mask=jnp.ones((5,), bool))


def test_the_modules_are_the_core():
    scale, bias = jnp.arange(6.0), jnp.ones(6)
    params = {"scale": scale, "bias": bias}
    want = {
        "LayerNorm": bnjax.layer_norm(X, scale, bias),
        "RMSNorm": bnjax.rms_norm(X, scale),
        "InstanceNorm": bnjax.instance_norm(X, scale, bias),
        "GroupNorm": bnjax.group_norm(X, scale, bias, num_groups=3),
    }
    for norm in NORMS:
        np.testing.assert_array_equal(apply(ours(norm))(params, X), want[norm])


def test_case_names_are_distinct():
    names = [repr(case) for case in shared.CASES]
    assert len(set(names)) == len(names)
    assert all(isinstance(case, Case) for case in shared.CASES)
