"""Several calls of an nnx model, one update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bnjax.nnx import BatchNorm, one_update


def draw(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(3, 2, (12, 4)), jnp.float32)


def model(**options):
    return nnx.Sequential(BatchNorm(4, rngs=nnx.Rngs(0), **options), nnx.relu)


@pytest.mark.parametrize("options", [{}, {"debias": True}, {"momentum": None}])
@pytest.mark.parametrize("jit", [False, True])
def test_micro_batches_update_as_the_whole_batch_would(options, jit):
    def micro(net, x):
        with one_update(net):
            for part in jnp.split(x, 3):
                net(part)

    got, want = model(**options), model(**options)
    (nnx.jit(micro) if jit else micro)(got, draw())
    want(draw())
    for name in ("mean", "var", "count"):
        if hasattr(got.layers[0], name):
            g, w = getattr(got.layers[0], name), getattr(want.layers[0], name)
            np.testing.assert_allclose(g[...], w[...], rtol=1e-5)
    assert nnx.graphdef(got) == nnx.graphdef(want)  # nothing is left behind


def test_a_second_forward_pass_does_not_forget_the_first():
    net, x = model(momentum=0.0), draw()
    with one_update(net):
        net(x)
        net(x + 10)
    np.testing.assert_allclose(net.layers[0].mean[...], x.mean(0) + 5, rtol=1e-5)
    net(x)
    np.testing.assert_allclose(net.layers[0].mean[...], x.mean(0), rtol=1e-5)


def test_the_block_closes_after_an_error_and_nests():
    net, x = model(momentum=0.0), draw()
    with pytest.raises(ValueError), one_update(net):
        net(jnp.ones((2, 5)))
    assert not hasattr(net.layers[0], "pending")
    with one_update(net):
        net(x)
        with one_update(net):
            net(x + 10)
        net(x + 20)
    np.testing.assert_allclose(net.layers[0].mean[...], x.mean(0) + 10, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_scan_over_micro_batches_with_a_mask_of_the_shape_of_x(dtype):
    got, want = (BatchNorm(4, momentum=0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    for norm in (got, want):  # a state that was cast whole
        nnx.update(norm, jax.tree.map(lambda v: v.astype(dtype), nnx.state(norm)))
    x = draw()
    mask = x > 3

    def micro(norm, x, mask):
        return norm, norm(x, mask=mask)

    with one_update(got):
        scan = nnx.scan(micro, in_axes=(nnx.Carry, 0, 0), out_axes=(nnx.Carry, 0))
        scan(got, x.reshape(2, 6, 4), mask.reshape(2, 6, 4))
    want(x, mask=mask)
    np.testing.assert_allclose(got.mean[...], want.mean[...], rtol=1e-5)
    np.testing.assert_allclose(got.var[...], want.var[...], rtol=1e-5)


def test_layers_under_a_scan_whose_axes_name_the_statistics():
    make = nnx.vmap(lambda key: BatchNorm(4, momentum=0.0, rngs=nnx.Rngs(key)))
    norms, x = make(jax.random.split(jax.random.key(0), 2)), draw()
    axes = nnx.StateAxes({(nnx.Param, nnx.BatchStat): 0, ...: None})
    scan = nnx.scan(lambda norm, x: norm(x) + x, in_axes=(axes, nnx.Carry), out_axes=nnx.Carry)
    with one_update(norms):
        for part in jnp.split(x, 2):
            scan(norms, part)
    np.testing.assert_allclose(norms.mean[...][0], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norms.var[...][0], x.var(0), rtol=1e-5)
