"""Every norm at every magnitude that float32 can square: y, and gradients in x."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax import testing
from tests._quick import quick_jit

SHAPE = (40, 24)
X, CT = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
MASK = np.arange(40)[:, None] > 2
STATS = bnjax.init_batch_stats(24)
SPECTRAL = bnjax.init_spectral_norm(jax.random.key(0), SHAPE)


def normalize(x, epsilon):
    m = bnjax.moments(x, 0)
    return bnjax.normalize(x, m.mean, m.var(), epsilon=epsilon)


def spectral_norm(x, epsilon):
    return bnjax.spectral_norm(x, SPECTRAL, n_steps=3)[0]  # its epsilon is relative


def instance_norm(x, epsilon):
    return bnjax.instance_norm(x[..., None], None, None, epsilon=epsilon)[..., 0]


def of_batch(**options):
    return lambda x, epsilon: bnjax.batch_norm(
        x, None, None, STATS, train=True, epsilon=epsilon, **options
    )[0]


ACTIVATIONS = {
    "batch_norm": of_batch(),
    "masked": of_batch(mask=MASK),
    "virtual": of_batch(virtual_batch_size=20),
    "layer_norm": lambda x, e: bnjax.layer_norm(x, jnp.linspace(1, 2, 24), None, epsilon=e),
    "rms_norm": lambda x, e: bnjax.rms_norm(x, None, epsilon=e),
    "group_norm": lambda x, e: bnjax.group_norm(x, None, None, num_groups=2, epsilon=e),
    "instance_norm": instance_norm,
    "weight_standardize": lambda x, e: bnjax.weight_standardize(x, epsilon=e),
    "normalize": normalize,
}
WEIGHTS = {
    "weight_norm": lambda x, e: bnjax.weight_norm(x, None, epsilon=e),
    "spectral_norm": spectral_norm,
}


def value_and_gradient(norm, epsilon, jit=jax.jit):
    @jit
    def run(x, ct):
        y, pull = jax.vjp(lambda x: norm(x, epsilon), x)
        return y, pull(ct)[0]

    return run


def check(norm, epsilon, powers, gradients=True):
    """Against the same in float64, which squares all of these."""
    run, exact = (value_and_gradient(norm, epsilon, jit) for jit in (jax.jit, quick_jit))
    for power in powers:
        x = X * np.float32(2.0 ** round(power * np.log2(10)))
        y, grad = run(x, CT)
        with jax.enable_x64(True):
            want, want_grad = exact(x.astype(np.float64), CT.astype(np.float64))
        assert testing.relative_error(y, want) < 1e-5, f"1e{power}"
        assert not gradients or testing.relative_error(grad, want_grad) < 1e-5, f"1e{power}"


# https://github.com/nnstreamer/nntrainer/issues/4336: digits lost, and overflow, in inv_std**3
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nntrainer_4336_gradients_of_large_and_small_data(name):
    # A tiny epsilon, and none to speak of at the magnitude of the data.
    check(ACTIVATIONS[name], 1e-36, (-15, -13, -8, 8, 13, 16))


@pytest.mark.parametrize("name", ACTIVATIONS | WEIGHTS)
def test_nntrainer_4336_with_the_usual_epsilon_small_data_are_no_special_case(name):
    check((ACTIVATIONS | WEIGHTS)[name], 1e-5, (-30, -20, -13, 13))


@pytest.mark.parametrize("name", WEIGHTS)
def test_nntrainer_4336_weights_of_any_magnitude(name):
    check(WEIGHTS[name], 1e-30, (-30, -20, -13, 13, 20, 30))


# https://github.com/tenstorrent/tt-metal/issues/55159: n squares overflow before their mean does
@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "normalize"])
def test_tt_metal_55159_sums_of_squares_do_not_overflow(name):
    check(ACTIVATIONS[name], 1e-5, (18, 18.7), gradients=False)
    np.testing.assert_allclose(bnjax.rms_norm(jnp.full(512, 1e18), None), np.ones(512), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"ddof": 1}, {"virtual_batch_size": 20}, {"mask": MASK}])
def test_tt_metal_55159_nor_do_running_statistics(options):
    x, factor = X[:, :4], 2.0**60
    kept = x[MASK[:, 0]] if "mask" in options else x
    for norm in (bnjax.batch_norm, functools.partial(bnjax.batch_renorm, average="var")):
        _, stats = norm(
            x * np.float32(factor),
            None,
            None,
            STATS._replace(mean=np.zeros(4), var=np.ones(4)),
            train=True,
            decay=0.0,
            skip_nonfinite=True,
            **options,
        )
        want = kept.astype(np.float64).var(0, ddof=options.get("ddof", 0))
        np.testing.assert_allclose(np.asarray(stats.var, float) / factor**2, want, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_narrow_running_statistics_are_used_in_the_dtype_of_the_computation(dtype):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=(6, 3)).astype(dtype) * (1 + (1j if dtype == np.complex128 else 0))
        mean, var = rng.normal(size=3), rng.uniform(1, 3, 3)
        stats = bnjax.BatchStats(mean.astype(np.float32), var.astype(np.float32), np.int32(1))
        mean, var = (np.asarray(v, np.float64) for v in stats[:2])
        want = (x - mean) / np.sqrt(var + 1e-5)
        for y in (
            bnjax.batch_norm(x, None, None, stats, train=False)[0],
            bnjax.batch_renorm(x, None, None, stats, train=False)[0],
            bnjax.normalize(x, stats.mean, stats.var),
        ):
            np.testing.assert_allclose(y, want, rtol=1e-14)
        if dtype == np.float64:
            y, _ = bnjax.batch_renorm(x, None, None, stats, train=True, r_max=1e9, d_max=1e9)
            np.testing.assert_allclose(y, want, rtol=1e-12, atol=1e-13)
