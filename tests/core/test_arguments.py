"""Illegal arguments: whatever can be known at trace time is an error that names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax
from bnjax import linen as bnn
from bnjax import nnx as bnnx

pytestmark = pytest.mark.compiled("quickly")

X = jnp.arange(24.0).reshape(6, 4)
V = jnp.ones(4)
STATS = bnjax.init_batch_stats(4)
MOMENTS = bnjax.moments(X, 0)
NAN = float("nan")

# What no argument of a kind may be.
KINDS = {
    "array": ["abc", {}, object()],
    "parameter": ["abc", {}, object(), jnp.ones(3), V.astype(jnp.complex64)],
    "flag": ["no", 1, None, 0.5, jnp.array(True)],
    "flag or None": ["no", 1, 0.5],
    "epsilon": ["a", -1, NAN, float("inf"), jnp.array(-1.0), 1j, None, jnp.ones(3)],
    "decay": [
        "a",
        1.5,
        jnp.array(1.5),
        jnp.array(-1.0),
        NAN,
        jnp.array(NAN),
        1j,
        jnp.ones(3),
        True,
    ],
    "axis": ["a", 1.5, 9, (0, 0), None],
    "axis or None": ["a", 1.5, 9, (0, 0)],
    "mask": ["abc", jnp.ones((6, 1)), jnp.ones((6, 1), int), np.ones((5, 1), bool), 1.0],
    "module's mask": [
        "abc",
        jnp.full((6, 1), 0.5),
        np.full((6, 1), NAN),
        np.ones((5, 1), bool),
        2.0,
    ],
    "axis name": ["unheard", ("unheard",), 5.5, jnp.ones(2)],
    "int": ["a", 1.5, -1, 0],
    "ddof": [2, -1, "a", 0.5, None, True],
    "choice": ["unheard", None, 1],
    "dtype": ["abc", int, jnp.int32, bool, 5],
    "state": [None, {"mean": V}, (V, V, 0), "a", MOMENTS],
    "moments": [
        None,
        (1.0, V, V),
        "a",
        STATS,
        bnjax.moments(X[:, :1], 0),
        bnjax.moments(X[:, :3], 0),
    ],
    "r_max": ["a", 0.5, jnp.array(0.5), NAN, jnp.array(NAN), None, 1j],
    "d_max": ["a", -1, jnp.array(-0.5), NAN, None, 1j, lambda count: -1.0],
}

NORM = {"x": "array", "scale": "parameter", "bias": "parameter", "epsilon": "epsilon"}
NORM |= {"mask": "mask", "axis_name": "axis name", "dtype": "dtype"}
BATCH = {"batch_stats": "state", "train": "flag", "decay": "decay", "axis": "axis", "ddof": "ddof"}
BATCH |= {"debias": "flag", "update_stats": "flag or None", "skip_nonfinite": "flag"}
BATCH |= {"virtual_batch_size": "int", "single_value": "choice", "unseen": "choice"}
AXES = {"axes": "axis", "param_axes": "axis or None"}
given = {"x": X, "scale": V, "bias": V}
FUNCTIONS = {
    "batch_norm": ({**given, "batch_stats": STATS, "train": True}, NORM | BATCH),
    "batch_renorm": (
        {**given, "batch_stats": STATS, "train": True},
        NORM | BATCH | {"r_max": "r_max", "d_max": "d_max"},
    ),
    "layer_norm": (given, NORM | AXES | {"single_value": "choice"}),
    "rms_norm": (given, NORM | AXES),
    "instance_norm": (given | {"x": X.reshape(2, 3, 4)}, NORM | {"axis": "axis"}),
    "group_norm": (
        {**given, "num_groups": 2},
        NORM | {"axis": "axis", "axes": "axis or None", "num_groups": "int"},
    ),
    "moments": ({"x": X, "axes": 0}, {"x": "array", "axes": "axis", "mask": "mask"}),
    "merge": ({"a": MOMENTS, "b": MOMENTS}, {"a": "moments", "b": "moments"}),
    "normalize": (
        {"x": X, "mean": V, "var": V},
        {"x": "array", "mean": "parameter", "var": "parameter", "epsilon": "epsilon"},
    ),
    "scale_shift": (
        {"x_hat": X, "scale": V, "bias": V},
        {"x_hat": "array", "scale": "parameter", "bias": "parameter", "axis": "axis"},
    ),
    "init_batch_stats": ({"num_features": 4}, {"dtype": "dtype"}),
    "update_batch_stats": (
        {"stats": STATS, "moments": MOMENTS},
        {"stats": "state", "moments": "moments", "decay": "decay", "ddof": "ddof"}
        | {"debias": "flag", "skip_nonfinite": "flag"},
    ),
    "begin_update": ({"batch_stats": STATS}, {"batch_stats": "state"}),
    "dataset_moments": ({"batches": [X]}, {"batches": "array", "axis": "axis"}),
    "weight_norm": (
        {"w": X, "scale": V},
        {"w": "array", "scale": "parameter", "axis": "axis or None", "epsilon": "epsilon"},
    ),
    "weight_standardize": (
        {"w": X, "gain": V},
        {"w": "array", "gain": "parameter", "axis": "axis", "epsilon": "epsilon"},
    ),
    "spectral_norm": (
        {"w": X, "state": bnjax.init_spectral_norm(jax.random.key(0), X.shape)},
        {"w": "array", "state": "state", "n_steps": "int", "update": "flag"},
    ),
    "init_spectral_norm": (
        {"key": jax.random.key(0), "shape": X.shape},
        {"shape": "array", "dtype": "dtype"},
    ),
}


def refuses(name, call, value):
    """Whether ``call`` of ``value`` is an error that names the argument."""
    try:
        call(value)
    except (TypeError, ValueError, NameError) as error:
        return name in str(error)
    return False


@pytest.mark.parametrize("norm", [bnjax.batch_norm, bnjax.batch_renorm])
def test_scale_and_bias_may_be_left_out_and_running_statistics_may_not(norm):
    y, stats = norm(X, batch_stats=STATS, train=True)
    wanted = norm(X, None, None, STATS, train=True)
    for a, b in zip((y, *stats), (wanted[0], *wanted[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    for given in ((X,), (X, STATS), (X, V, V)):
        with pytest.raises(TypeError, match=r"batch_stats is missing.*init_batch_stats"):
            norm(*given, train=True)


@pytest.mark.parametrize("bias", [None, V])
@pytest.mark.parametrize("norm", [bnjax.layer_norm, bnjax.instance_norm, bnjax.scale_shift])
def test_norms_by_name_are_norms_by_place(norm, bias):
    x = X.reshape(2, 3, 4)
    np.testing.assert_array_equal(norm(x, bias=bias), norm(x, None, bias))
    grouped = bnjax.group_norm(x, bias=bias, num_groups=2)
    np.testing.assert_array_equal(grouped, bnjax.group_norm(x, None, bias, num_groups=2))
    np.testing.assert_array_equal(bnjax.rms_norm(x), bnjax.rms_norm(x, None))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_a_function(name):
    legal, arguments = FUNCTIONS[name]
    fn = getattr(bnjax, name)
    if name != "dataset_moments":  # which loops over what it is given
        jax.eval_shape(lambda: fn(**legal))
    for argument, kind in arguments.items():
        called = lambda value: fn(**legal | {argument: value})  # noqa: B023, E731
        taken = [v for v in KINDS[kind] if not refuses(argument, called, v)]
        if (name, argument) == ("init_batch_stats", "dtype"):
            taken = [v for v in taken if v is not None]
        assert not taken, f"{argument}: {taken}"


PARAMETERS = {"use_scale": "flag", "epsilon": "epsilon", "dtype": "dtype", "param_dtype": "dtype"}
AXES_OF = {"reduction_axes": "axis or None", "feature_axes": "axis"}
CALLS = {"mask": "module's mask"}
BATCH_OPTIONS = PARAMETERS | {"use_bias": "flag", "axis": "axis", "momentum": "decay"}
BATCH_OPTIONS |= {"ddof": "ddof", "debias": "flag", "update_stats": "flag"}
BATCH_OPTIONS |= {"skip_nonfinite": "flag", "virtual_batch_size": "int", "single_value": "choice"}
BATCH_CALLS = CALLS | {"use_running_average": "flag or None"}
MODULES = {
    "BatchNorm": ({}, BATCH_OPTIONS, BATCH_CALLS),
    "BatchRenorm": ({}, {"r_max": "r_max", "d_max": "d_max"}, BATCH_CALLS),
    "LayerNorm": ({}, PARAMETERS | AXES_OF | {"use_bias": "flag"}, CALLS),
    "RMSNorm": ({}, PARAMETERS | AXES_OF, CALLS),
    "InstanceNorm": ({}, PARAMETERS | {"feature_axes": "axis"}, {}),
    "GroupNorm": ({"num_groups": 2}, PARAMETERS | {"num_groups": "int"}, CALLS),
}


def run_linen(name, options, call):
    norm, x = getattr(bnn, name)(**options), X.reshape(2, 3, 4) if name == "InstanceNorm" else X
    variables = norm.init(jax.random.key(0), x, **call)
    norm.apply(variables, x, **call, mutable=["batch_stats"])


def run_nnx(name, options, call):
    norm = getattr(bnnx, name)(4, rngs=nnx.Rngs(0), **options)
    norm(X.reshape(2, 3, 4) if name == "InstanceNorm" else X, **call)


@pytest.mark.parametrize("run", [run_linen, run_nnx])
@pytest.mark.parametrize("name", MODULES)
def test_of_a_module(name, run):
    legal, options, calls = MODULES[name]
    call = {"use_running_average": False} if name.startswith("Batch") else {}
    run(name, legal, call)
    for argument, kind in options.items():
        seen = "decay (momentum" if argument == "momentum" else argument
        called = lambda v: run(name, legal | {argument: v}, call)  # noqa: B023, E731
        taken = [v for v in KINDS[kind] if not refuses(seen, called, v)]
        assert not taken, f"{argument}: {taken}"
    for argument, kind in calls.items():
        called = lambda v: run(name, legal, call | {argument: v})  # noqa: B023, E731
        taken = [v for v in KINDS[kind] if not refuses(argument, called, v)]
        assert not taken, f"{argument}: {taken}"


def test_numbers_may_mask_in_modules_as_in_flax():
    mask = jnp.array([1, 0, 1, 1, 0, 1])[:, None]
    norm = bnnx.BatchNorm(4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(norm(X, mask=mask), norm(X, mask=mask.astype(bool)))


def test_complex_parameters_are_kept_where_the_output_is_complex():
    scale = jnp.full(4, 1j, jnp.complex64)
    y = bnjax.layer_norm(X, scale, None, dtype=jnp.complex64)
    np.testing.assert_array_equal(jnp.imag(y), bnjax.layer_norm(X, None, None))


def test_traced_scalars_are_not_known_and_taken():
    @jax.jit
    def step(decay, r_max):
        options = {"train": True, "decay": decay, "r_max": r_max}
        return bnjax.batch_renorm(X, None, None, STATS, **options)[1]

    np.testing.assert_array_equal(step(0.5, 2.0).count, 1)


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "moments", "weight_norm"])
def test_a_scalar_has_no_axes(name):
    legal, _ = FUNCTIONS[name]
    first = next(iter(legal))
    with pytest.raises(ValueError, match=r"x must have at least one axis .* got a scalar"):
        getattr(bnjax, name)(**legal | {first: jnp.float32(1)})


def test_virtual_batches_of_a_symbolic_batch_are_refused():
    batch = jax.export.symbolic_shape("b, 4")
    x = jax.ShapeDtypeStruct(batch, jnp.float32)

    def layer(x, train):
        options = {"train": train, "virtual_batch_size": 4, "unseen": "allow"}
        return bnjax.batch_norm(x, None, None, STATS, **options)[0]

    with pytest.raises(ValueError, match=r"virtual_batch_size=4 .* symbolic size b"):
        jax.export.export(jax.jit(lambda x: layer(x, True)))(x)
    jax.export.export(jax.jit(lambda x: layer(x, False)))(x)
