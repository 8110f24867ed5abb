"""Faults that users reported against other libraries. Each test carries its source's name.

Those already tested where they belong are listed at the end with the test that covers them.
"""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax
import bnjax.diagnostics
import bnjax.nnx
from bnjax import interop, linen, surgery, testing


def normalise(x, **options):
    stats = bnjax.init_batch_stats(x.shape[-1])
    return bnjax.batch_norm(x, None, None, stats, train=True, decay=0.0, **options)


# --- Numerics -----------------------------------------------------------------------------------


@pytest.mark.compiled("as users do")
@pytest.mark.parametrize("offset", [1e1, 1e3, 1e5, 1e6])
def test_flax_1491_variance_is_never_negative_nor_nan(offset):
    x = jnp.asarray(np.random.default_rng(0).normal(offset, 1, (513, 4)), jnp.float32)
    _, stats = normalise(x)
    np.testing.assert_allclose(stats.var, np.asarray(x, np.float64).var(0), rtol=1e-5)


@pytest.mark.compiled("as users do")
def test_jax_30426_gradients_of_nearly_constant_features_are_not_huge():
    x = (np.random.default_rng(1).normal(size=(257, 2)) * 1e-3 + 1e3).astype(np.float32)
    dy = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    _, pullback = jax.vjp(lambda x: normalise(x)[0], x)
    want, *_ = testing.batch_norm_backward(dy, testing.batch_norm_forward(x, None, None).cache)
    assert testing.relative_error(pullback(dy)[0], want) < 1e-5


@pytest.mark.compiled("as users do")
def test_tensorflow_118701_an_outlier_as_the_first_example():
    x = np.random.default_rng(3).normal(size=(1000, 2)).astype(np.float32)
    x[0] = 1e5
    assert (
        testing.relative_error(normalise(x)[0], testing.batch_norm_forward(x, None, None).y) < 1e-6
    )


@pytest.mark.compiled("as users do")
@pytest.mark.parametrize(
    ("dtype", "mean", "std"),
    [(jnp.float16, 300, 1), (jnp.float16, 3e4, 1e3), (jnp.bfloat16, 5, 0.1)],
)
def test_haiku_396_flax_612_tt_metal_45968_half_precision_statistics(dtype, mean, std):
    x = jnp.asarray(np.random.default_rng(4).normal(mean, std, (4096, 3)), dtype)
    exact = np.asarray(x.astype(jnp.float32), np.float64)
    y, stats = normalise(x)
    want = testing.batch_norm_forward(exact, None, None)
    np.testing.assert_allclose(stats.mean, want.mean, rtol=1e-6)
    np.testing.assert_allclose(stats.var, want.var, rtol=1e-5)
    y = np.asarray(y.astype(jnp.float32), np.float64)
    assert testing.relative_error(y, want.y) < float(jnp.finfo(dtype).eps)


def test_flax_nnx_running_variance_beyond_float16():
    x = jnp.full((2, 1), 2000.0, jnp.float16)
    stats = bnjax.BatchStats(jnp.array([1000.0]), jnp.array([1e6]), jnp.array(1))
    y, _ = bnjax.batch_norm(x, None, None, stats, train=False)
    np.testing.assert_allclose(y.astype(jnp.float32), 1.0, rtol=1e-3)


def test_pytorch_115500_pytorch_88474_a_nan_batch_does_not_poison_for_good():
    good = jnp.asarray(np.random.default_rng(5).normal(size=(16, 2)), jnp.float32)
    stats = bnjax.init_batch_stats(2)
    for batch in (good, good.at[3].set(jnp.nan), good.at[3].set(jnp.inf), good):
        _, stats = bnjax.batch_norm(batch, None, None, stats, train=True, skip_nonfinite=True)
    assert stats.count == 2 and all(np.isfinite(leaf).all() for leaf in stats)


def test_pytorch_22192_statistics_of_long_reductions():
    # torch's CPU kernel is 11 % off at 33 million elements a channel.
    x = np.full((2**25, 1), 3.0, np.float32)
    x[::2] = 1.0
    _, stats = normalise(jnp.asarray(x))
    np.testing.assert_allclose(stats.mean, [2.0], rtol=1e-5)
    np.testing.assert_allclose(stats.var, [1.0], rtol=1e-5)


# --- Running statistics -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_equinox_batch_mode_debiases_the_variance_from_its_own_start(steps):
    x = np.random.default_rng(6).normal(3, 0.1, (64, 2)).astype(np.float32)
    stats = bnjax.init_batch_stats(2)
    for _ in range(steps):
        _, stats = bnjax.batch_norm(x, None, None, stats, train=True, debias=True)
    np.testing.assert_allclose(stats.var, x.astype(np.float64).var(0), rtol=1e-5)


def test_flax_1489_flax_2279_flax_3982_a_forgotten_update_is_noticed():
    x, stats = jnp.ones((4, 2)) * 100, bnjax.init_batch_stats(2)
    bnjax.batch_norm(x, None, None, stats, train=True)  # the new state is dropped
    with pytest.warns(UserWarning, match="never been updated"):
        bnjax.batch_norm(x, None, None, stats, train=False)
    evaluate = jax.jit(lambda s: bnjax.batch_norm(x, None, None, s, train=False, unseen="nan")[0])
    assert np.isnan(evaluate(stats)).all()
    module = linen.BatchNorm()
    variables = module.init(jax.random.key(0), x, use_running_average=False)
    with pytest.raises(Exception, match="immutable"):
        module.apply(variables, x, use_running_average=False)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("update", [True, False])
def test_algorithmic_efficiency_798_pytorch_66073_two_switches(train, update):
    x = jnp.asarray(np.random.default_rng(7).normal(5, 2, (32, 2)), jnp.float32)
    stats = bnjax.init_batch_stats(2)._replace(count=jnp.array(1))
    y, after = bnjax.batch_norm(x, None, None, stats, train=train, update_stats=update)
    assert bool(jnp.all(jnp.abs(y.mean(0)) < 1e-5)) == train
    assert (int(after.count) == 2) == update


def test_pytorch_96136_sam_17_one_update_from_several_forward_passes():
    x = jnp.asarray(np.random.default_rng(8).normal(size=(32, 2)), jnp.float32)
    stats = bnjax.init_batch_stats(2)
    _, first = bnjax.batch_norm(x, None, None, stats, train=True)
    y, second = bnjax.batch_norm(x + 1, None, None, first, train=True, update_stats=False)
    assert second is first and first.count == 1
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)


def test_keras_10666_early_evaluation_is_useful_when_debiased():
    x = jnp.asarray(np.random.default_rng(9).normal(50, 3, (64, 2)), jnp.float32)
    _, stats = bnjax.batch_norm(
        x, None, None, bnjax.init_batch_stats(2), train=True, decay=0.99, debias=True
    )
    y, _ = bnjax.batch_norm(x, None, None, stats, train=False)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-3)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-3)


def test_scvi_tools_2309_transformers_19454_decay_is_the_weight_of_the_old_value():
    x = jnp.array([[10.0], [20.0]])
    _, stats = bnjax.batch_norm(x, None, None, bnjax.init_batch_stats(1), train=True, decay=0.9)
    np.testing.assert_allclose(stats.mean, [0.1 * 15], rtol=1e-6)
    with pytest.raises(ValueError, match="PyTorch"):
        bnjax.batch_norm(x, None, None, bnjax.init_batch_stats(1), train=True, decay=-0.1)


@pytest.mark.parametrize("ddof", [0, 1])
def test_pytorch_19902_mlx_3817_population_or_sample_variance_is_a_choice(ddof):
    x = np.random.default_rng(10).normal(size=(5, 2)).astype(np.float32)
    y, stats = normalise(jnp.asarray(x), ddof=ddof)
    np.testing.assert_allclose(stats.var, x.var(0, ddof=ddof), rtol=1e-5)
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), rtol=1e-4)


# https://github.com/ultralytics/yolov5/issues/459: statistics that come without their counter
def update_flax_variables(kind, uncounted, **options):
    """New statistics of a layer that counts, from variables of one that does not."""
    x = jnp.full((3, 2), -50.0)
    stats = {"mean": jnp.full(2, 5.0), "var": jnp.full(2, 9.0)}
    if kind == "functional":
        state = bnjax.BatchStats(**stats, count=jnp.int32(0))
        decay = options.pop("momentum")
        return bnjax.batch_norm(x, None, None, state, train=True, decay=decay, **options)[1].mean
    if kind == "linen":
        norm = linen.BatchNorm(use_running_average=False, **options)
        variables = norm.init(jax.random.key(0), x)
        stats |= {} if uncounted else {"count": variables["batch_stats"]["count"]}
        variables = variables | {"batch_stats": stats}
        return norm.apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"]["mean"]
    norm = bnjax.nnx.BatchNorm(2, **options, rngs=nnx.Rngs(0))
    flax_norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    flax_norm.mean[...], flax_norm.var[...] = stats.values()
    nnx.update(norm, nnx.state(flax_norm))
    norm(x)
    return norm.mean[...]


@pytest.mark.parametrize("kind", ["functional", "linen", "nnx"])
@pytest.mark.parametrize(("momentum", "mean"), [(0.99, 4.45), (None, -22.5)])
def test_yolov5_459_variables_of_flax_are_not_overwritten_by_the_first_batch(kind, momentum, mean):
    for uncounted in (True, False):
        got = update_flax_variables(kind, uncounted, momentum=momentum, debias=True)
        np.testing.assert_allclose(got, [mean, mean], rtol=1e-5)


def test_yolov5_459_a_counter_of_0_beside_real_statistics_is_evaluated():
    stats = bnjax.BatchStats(jnp.full(2, 5.0), jnp.full(2, 9.0), jnp.int32(0))
    x = jnp.array([[5.0, 8.0]])
    for unseen in ("warn", "nan"):
        options = {"train": False, "unseen": unseen, "epsilon": 0.0}
        y, _ = bnjax.batch_norm(x, None, None, stats, **options)
        np.testing.assert_allclose(y, [[0.0, 1.0]], atol=1e-6)
    fresh = bnjax.init_batch_stats(2)
    assert np.isnan(bnjax.batch_norm(x, None, None, fresh, train=False, unseen="nan")[0]).all()
    each = fresh._replace(mean=jnp.array([5.0, 0.0]), count=jnp.zeros(2, jnp.int32))
    y, _ = bnjax.batch_norm(x, None, None, each, train=False, unseen="nan")
    np.testing.assert_array_equal(np.isnan(y), [[False, True]])
    variables = {"batch_stats": {"bn": stats._asdict()}}
    assert bnjax.diagnostics.report(variables).ok


# --- Masks and transformations --------------------------------------------------------------------


def test_keras_19848_a_broadcast_mask_counts_elements_of_x():
    x = np.random.default_rng(11).normal(size=(4, 6, 3)).astype(np.float32)
    mask = np.array([True, True, False, True]).reshape(4, 1, 1)
    got = bnjax.moments(x, (0, 1), mask=mask)
    assert got.count == 18
    np.testing.assert_allclose(got.mean, x[[0, 1, 3]].mean((0, 1)), rtol=1e-5)


@pytest.mark.several_devices
@pytest.mark.parametrize("checked", [True, False])
def test_jax_21855_gradients_under_shard_map_are_summed_once(checked):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(12)
    x = (rng.normal(size=(32, 3)) + 100).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)
    scale, bias = rng.normal(size=(2, 3)).astype(np.float32)
    stats = bnjax.init_batch_stats(3)

    def layer(x, scale, bias, axis_name=None):
        return bnjax.batch_norm(x, scale, bias, stats, train=True, axis_name=axis_name)

    sharded = jax.shard_map(
        lambda *args: layer(*args, axis_name="data"),
        mesh=mesh,
        in_specs=(jax.P("data"), jax.P(), jax.P()),
        out_specs=(jax.P("data"), jax.P()),
        check_vma=checked,
    )
    for mapped, plain in zip(sharded(x, scale, bias), layer(x, scale, bias), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), mapped, plain)

    def grads(fn):
        return jax.grad(lambda *args: jnp.sum(weights * fn(*args)[0]), argnums=(0, 1, 2))(
            x, scale, bias
        )

    for mapped, plain in zip(grads(sharded), grads(layer), strict=True):
        assert testing.relative_error(mapped, plain) < 1e-6


# --- Files and models -----------------------------------------------------------------------------


def a_torch_state_dict():
    """Of a convolution and a batch norm; all arrays of one layer have shapes of their own kind."""
    rng = np.random.default_rng(13)
    names = ("weight", "bias", "running_mean")
    norm = {f"stem.bn.{name}": rng.normal(size=4).astype(np.float32) for name in names}
    norm["stem.bn.running_var"] = rng.uniform(0.5, 2, 4).astype(np.float32)
    norm["stem.bn.num_batches_tracked"] = np.array(100)
    return {"stem.conv.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32)} | norm


class Stem(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (2, 2), padding="VALID", use_bias=False)(x)
        return linen.BatchNorm(use_running_average=True)(x)


STEM = [(r"^stem\.conv$", "Conv_0"), (r"^stem\.bn$", "BatchNorm_0")]


def test_flaxmodels_15_a_plain_layer_takes_pretrained_statistics():
    # There it took a layer of its own, whose initialisers return what the checkpoint holds.
    source = a_torch_state_dict()
    x = np.random.default_rng(14).normal(size=(2, 3, 5, 5)).astype(np.float32)
    images = x.transpose(0, 2, 3, 1)
    variables = interop.from_torch(
        source, jax.eval_shape(Stem().init, jax.random.key(0), images), STEM
    )
    patches = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (2, 2), (2, 3))
    conv = np.einsum("nchwij,ocij->nhwo", patches, source["stem.conv.weight"])
    scale, bias, mean, var = (
        source[f"stem.bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    want = (conv - mean) / np.sqrt(var + 1e-5) * scale + bias
    assert testing.relative_error(Stem().apply(variables, images), want) < 1e-5


@pytest.mark.parametrize("rename", [[], STEM[:1], [(r"^stem\.", "")]])
def test_transformers_21581_statistics_that_find_no_place_are_an_error(rename):
    # There running_mean and running_var were dropped with a warning, and evaluation used 0 and 1.
    variables = jax.eval_shape(Stem().init, jax.random.key(0), np.ones((1, 5, 5, 3), np.float32))
    with pytest.raises(ValueError) as error:
        interop.from_torch(a_torch_state_dict(), variables, rename)
    for text in ("stem.bn.running_var (no batch_stats", "batch_stats/BatchNorm_0/var"):
        assert text in str(error.value)


@pytest.mark.compiled("as users do")
@pytest.mark.parametrize("fold", [surgery.fold_into_previous, surgery.fold_into_next])
def test_detectron2_pr3160_a_variance_below_epsilon_folds_without_nan(fold):
    # There epsilon was subtracted from the variance, for a layer that adds it again.
    rng, epsilon = np.random.default_rng(15), 1e-3
    var = np.array([0, 1e-12, 1e-4, 1.0], np.float32)
    stats = bnjax.BatchStats(rng.normal(size=4).astype(np.float32), var, 1)
    x, kernel = rng.normal(size=(5, 4)), rng.normal(size=(4, 4)).astype(np.float32)
    new, bias = fold(kernel, None, None, None, stats, epsilon=epsilon)

    def norm(x):
        return (x - stats.mean.astype(np.float64)) / np.sqrt(var.astype(np.float64) + epsilon)

    want = norm(x @ kernel) if fold is surgery.fold_into_previous else norm(x) @ kernel
    got = x @ np.asarray(new, np.float64) + np.asarray(bias, np.float64)
    assert testing.relative_error(got, want) < 1e-6


COVERED_ELSEWHERE = {
    "flax#5576": "tests.nnx.test_weight_norms:test_flax_5576_a_call_leaves_the_parameters_alone",
    "constant features": "tests.core.test_batch_norm:"
    "test_constant_features_give_exactly_bias_and_finite_gradients",
    "pytorch#196699, pytorch#61222": "tests.core.test_standardize:"
    "test_nested_modes_agree_with_finite_differences",
    "flax#4760, flax#4061": "tests.nnx.test_batch_norm:"
    "test_layers_made_by_vmap_are_mapped_and_scanned",
    "flax#4734": "tests.nnx.test_batch_norm:test_eval_shape",
    "pytorch#4534, tensorflow#34062": "tests.core.test_batch_norm:"
    "test_one_value_a_feature_must_be_a_choice",
    "flax#2417, pytorch PR#36382, #36530, #64039": "tests.core.test_devices:"
    "test_everything_equals_one_device_at_a_large_offset",
    "pytorch#96136, sam#17": "tests.training.test_begin_update:"
    "test_a_layer_called_twice_updates_once_by_both",
    "pytorch#88474, under a training step": "tests.training.test_step:"
    "test_pytorch_88474_a_batch_of_nan_is_skipped_and_counted",
    "orbax#1305, flax#5030": "tests.training.test_state:"
    "test_orbax_1305_flax_5030_restores_equal_types_and_integer_keys",
    "optax#25": "tests.training.test_by_path:"
    "test_optax_25_weight_decay_leaves_scale_and_bias_alone",
    "keras PR#22104": "tests.surgery.test_freeze:"
    "test_keras_22104_a_freeze_after_the_first_step_is_not_ignored",
    "tabnet#384": "tests.core.test_standardize:test_virtual_batches_spread_the_remainder",
    "keras#15790": "tests.core.test_standardize:test_virtual_batches_are_not_applied_in_evaluation",
}


@pytest.mark.parametrize("source", COVERED_ELSEWHERE)
def test_what_is_covered_elsewhere_exists(source):
    module, _, name = COVERED_ELSEWHERE[source].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
