"""The modules of layer, RMS, instance and group norm: drop-in for Flax's, and accurate."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.testing import relative_error
from tests._agree import assert_agree, describe, perturb, relaxed
from tests._modules import LIBRARIES, signature

from . import _feature_norms as shared
from ._feature_norms import CASES, NORMS, SHAPE

X = jnp.asarray(np.random.default_rng(0).normal(2, 3, SHAPE), jnp.float32)
MASK = np.random.default_rng(1).random(SHAPE) < 0.8
every_norm = pytest.mark.parametrize("norm", NORMS)


def ours(library, norm, x=X, **fields):
    return library.make(norm, x, **NORMS[norm] | fields)


def theirs(library, norm, x=X, **fields):
    fields = NORMS[norm] | {"use_fast_variance": False} | fields
    with relaxed():
        return library.make(norm, x, True, **fields)


def function(layer, mask=None):
    """Of parameters and input, as `shared.exam` wants it."""
    return lambda params, x: layer.y(x, mask=mask, **params)


@every_norm
def test_signatures_are_those_of_flax(library, norm):
    mine, flaxs = getattr(library.ours, norm), getattr(library.theirs, norm)
    for method in ("__init__", "__call__"):
        got, want = (signature(getattr(cls, method)) for cls in (mine, flaxs))
        assert list(got.items()) == list(want.items())


@pytest.mark.parametrize(
    ("library", "case"),
    [(lib, case) for case in CASES for lib in LIBRARIES if case.only in (None, repr(lib))],
    ids=repr,
)
def test_variables_outputs_and_gradients_are_those_of_flax(library, case):
    x, dy, mask = shared.draw(case)
    mine, flaxs = (make(library, case.norm, x, **case.fields) for make in (ours, theirs))
    assert_agree(mine.variables, flaxs.variables, 0)
    params = perturb(flaxs.variables["params"])
    with relaxed():
        want = shared.exam(function(flaxs, mask), params, x, dy)
    assert_agree(shared.exam(function(mine, mask), params, x, dy), want, case.tolerance)


@every_norm
@pytest.mark.parametrize("dtype", [float, int])
def test_a_mask_of_numbers_is_one_of_booleans(library, norm, dtype):
    layer = ours(library, norm)
    np.testing.assert_array_equal(layer.y(X, mask=MASK.astype(dtype)), layer.y(X, mask=MASK))


@every_norm
def test_what_a_mask_hides_takes_no_part(library, norm):
    layer = ours(library, norm)
    y, quiet = (layer.y(x, mask=MASK) for x in (jnp.where(MASK, X, jnp.nan), X))
    np.testing.assert_array_equal(np.where(MASK, y, 0), np.where(MASK, quiet, 0))


@every_norm
def test_nothing_to_count_gives_bias(library, norm):
    mask = MASK.copy()
    mask[0] = False
    layer = ours(library, norm)
    params = perturb(layer.variables["params"])
    y = layer.y(X, mask=mask, **params)
    np.testing.assert_array_equal(y[0], jnp.broadcast_to(params.get("bias", 0.0), SHAPE[1:]))


def test_a_mask_of_group_norm_may_have_size_one_along_the_channels(library):
    mask = np.random.default_rng(1).random((4, 3, 2, 1)) < 0.8
    layer = ours(library, "GroupNorm", use_scale=False, use_bias=False)
    got, want = (layer.y(X, mask=m) for m in (mask, np.broadcast_to(mask, SHAPE)))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.compiled("as users do")
@every_norm
def test_accurate_at_a_large_offset(library, norm):
    x, x_hat = shared.far_from_zero(norm)
    assert relative_error(ours(library, norm, x).y(x), x_hat) < 1e-6


@pytest.mark.compiled("as users do")
@pytest.mark.parametrize("norm", [n for n in NORMS if n != "RMSNorm"])  # which takes no difference
def test_the_default_of_flax_is_wrong_at_a_large_offset(library, norm):
    x, x_hat = shared.far_from_zero(norm)
    layer = theirs(library, norm, x, use_fast_variance=True)
    with relaxed():
        assert relative_error(layer.y(jnp.asarray(x)), x_hat) > 0.1


@pytest.mark.compiled("as users do")
@every_norm
def test_input_is_not_rounded_to_the_dtype_of_the_output(library, norm):
    # Flax's nnx casts first: of 1,000 with a spread of 1, bfloat16 keeps steps of 4.
    x = jnp.asarray(np.random.default_rng(1).normal(1e3, 1, SHAPE), jnp.float32)
    got = ours(library, norm, dtype=jnp.bfloat16).y(x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, ours(library, norm).y(x).astype(jnp.bfloat16))


@every_norm
@pytest.mark.parametrize("masked", [False, True])
def test_axis_name_under_vmap(library, norm, masked):
    # With a mask the counts of each lane are equal: Flax averages means, right only then.
    x, dy = np.random.default_rng(1).normal(size=(2, 2, *SHAPE)).astype(np.float32)
    mask = MASK if masked else None
    alone = ours(library, norm)
    params = perturb(alone.variables["params"])

    def exam(layer):
        one = function(layer, mask)
        lanes = lambda params, x: jax.vmap(one, (None, 0), axis_name="lane")(params, x)  # noqa: E731
        return shared.exam(lanes, params, jnp.asarray(x), jnp.asarray(dy))

    with relaxed():
        want = exam(theirs(library, norm, axis_name="lane"))
    got = exam(ours(library, norm, axis_name="lane"))
    assert_agree(got, want, 1e-5)
    assert relative_error(exam(alone)[0], got[0]) > 0.01


@every_norm
@pytest.mark.parametrize("direction", ["from Flax", "to Flax"])
def test_checkpoint_moves(library, norm, direction):
    source, target = ours(library, norm), theirs(library, norm)
    if direction == "from Flax":
        source, target = target, source
    saved = perturb(source.variables)
    loaded = flax.serialization.from_bytes(target.variables, flax.serialization.to_bytes(saved))
    assert_agree(loaded, saved, 0)
    with relaxed():
        loaded = jax.tree.map(jnp.asarray, loaded)
        y, y_loaded = source.apply(saved, X)[0], target.apply(loaded, X)[0]
    assert relative_error(y_loaded, y) < 1e-6


@every_norm
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_integer_input_is_computed_in_float32(library, norm, dtype):
    x = jnp.arange(4 * 3 * 6).reshape(4, 3, 6) * 7919 % 10007  # not whole in bfloat16
    layer = ours(library, norm, x, dtype=dtype)
    y, want = layer.y(x), layer.y(x.astype(jnp.float32))
    assert y.dtype == want.dtype == (dtype or jnp.float32)
    np.testing.assert_array_equal(y.astype(jnp.float32), want.astype(jnp.float32))


@every_norm
def test_half_precision_leaves_no_float32_copy_for_the_backward_pass(library, norm):
    # Statistics are a vector of each set of numbers: of 4 x 64 for layer norm.
    x = jnp.ones((4, 64, 96), jnp.bfloat16) * jnp.arange(96, dtype=jnp.bfloat16)[None, None]
    _, pullback = jax.vjp(ours(library, norm, x).y, x)
    large = [leaf.dtype for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size]
    assert large == [jnp.bfloat16]


@every_norm
def test_jit_and_eval_shape(library, norm):
    layer = ours(library, norm)
    want = layer.y(X)
    assert_agree(jax.jit(layer.y)(X), want, 1e-6)
    assert describe(jax.eval_shape(layer.y, X)) == describe(want)


@every_norm
def test_the_modules_are_the_core(library, norm):
    core = {
        "LayerNorm": bnjax.layer_norm,
        "RMSNorm": bnjax.rms_norm,
        "InstanceNorm": bnjax.instance_norm,
        "GroupNorm": bnjax.group_norm,
    }
    layer = ours(library, norm)
    params = {"scale": jnp.arange(6.0), "bias": jnp.ones(6)}
    given = {name: params[name] for name in layer.variables["params"]}
    want = core[norm](X, *(params[name] for name in params if name in given), **NORMS[norm])
    np.testing.assert_array_equal(layer.y(X, **given), want)


# Fields, and what the error of a module with them says.
WRONG = [
    *(("GroupNorm", groups, "num_groups=None as well")
      for groups in ({"num_groups": 3, "group_size": 2}, {"num_groups": None}, {"group_size": 2})),
    ("GroupNorm", {"num_groups": 4}, "num_groups=4 does not divide the 6 channels"),
    ("GroupNorm", {"num_groups": None, "group_size": 4}, "group_size=4 does not divide the 6 chan"),
    ("GroupNorm", {"num_groups": 0}, "must be at least 1"),
    ("GroupNorm", {"num_groups": None, "group_size": 0}, "must be at least 1"),
    ("GroupNorm", {"num_groups": 2, "reduction_axes": (1, 2)}, "must hold the channel axis"),
    ("InstanceNorm", {"feature_axes": 0}, "keeps axis 0"),
    ("RMSNorm", {"reduction_axes": (1, 1)}, r"axes=\(1, 1\) names an axis twice"),
    ("LayerNorm", {"epsilon": -1.0}, "epsilon must be"),
    ("LayerNorm", {"dtype": jnp.int32}, "dtype must be inexact"),
]  # fmt: skip


@pytest.mark.parametrize(("norm", "fields", "says"), WRONG, ids=repr)
def test_errors_name_argument_and_remedy(library, norm, fields, says):
    with pytest.raises(ValueError, match=says):
        library.make(norm, X, **fields).y(X)


@every_norm
def test_a_mask_that_does_not_fit_is_refused(library, norm):
    with pytest.raises(ValueError, match="mask of shape"):
        ours(library, norm).y(X, mask=jnp.ones((5,), bool))


@pytest.mark.parametrize("norm", ["InstanceNorm", "GroupNorm"])
def test_sets_of_one_value_warn(library, norm):
    fields = {"num_groups": 6} if norm == "GroupNorm" else {}
    with pytest.warns(UserWarning, match="that of one value"):
        ours(library, norm, **fields).y(X[:, :1, :1])


def test_case_names_are_distinct():
    names = [repr(case) for case in CASES]
    assert len(set(names)) == len(names)
