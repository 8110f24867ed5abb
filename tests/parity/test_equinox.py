"""Live parity with Equinox, which sees one example at a time and puts features first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.testing import relative_error

from . import _peers

eqx = pytest.importorskip("equinox")

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


@pytest.mark.parametrize(("case", "dtype"), _peers.pairs(TOLERANCE), ids=_peers.name)
def test_batch_mode(case, dtype):
    inputs = _peers.draw(case, np.dtype(dtype))
    with jax.enable_x64(dtype == "float64"):
        got = _peers.run_bnjax(inputs, debias=True)
        with _peers.relaxed():
            want = _peers.run_equinox(inputs)
    errors = _peers.relative_errors(got, want)
    assert max(errors.values()) < TOLERANCE[dtype], errors


def test_evaluation_differs_by_the_start_that_equinox_leaves_in():
    # Equinox divides by 1 - decay**t as if the variance had started at 0, but it starts at 1:
    # 99 too large after one step at 0.99. Ours is the variance of the batch, at any decay.
    decay = 0.99
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)), jnp.float32)
    make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
    with _peers.relaxed():
        layer, state = make(3, axis_name="batch", mode="batch", momentum=decay, dtype=x.dtype)
        apply = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        _, state = apply(x, state)
        y_theirs, _ = jax.vmap(
            lambda x: layer(x, state, inference=True), axis_name="batch", out_axes=(0, None)
        )(x)
    stats = bnjax.init_batch_stats(3)
    options = {"decay": decay, "debias": True}
    _, stats = bnjax.batch_norm(x, None, None, stats, train=True, **options)
    batch_var = bnjax.moments(x, 0).var()
    assert relative_error(stats.var, batch_var) < 1e-6
    y = bnjax.normalize(x, stats.mean, stats.var)
    assert relative_error(y_theirs * jnp.sqrt((batch_var + 99) / batch_var)[None], y) < 1e-3


def test_ema_mode_starts_from_the_first_batch():
    # Its other mode normalises by the running average while training. The average itself is
    # ours with the first batch put in by hand.
    inputs = _peers.draw(_peers.CASES[0], np.dtype("float32"))
    make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
    with _peers.relaxed():
        layer, state = make(5, axis_name="batch", mode="ema", momentum=0.9, dtype=jnp.float32)
        apply = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        for x in inputs.x:
            _, state = apply(jnp.asarray(x), state)
        mean, var = state.get(layer.ema_state_index)
    first = bnjax.moments(jnp.asarray(inputs.x[0]), 0)
    stats = bnjax.BatchStats(first.mean, first.var(), jnp.int32(1))
    for x in inputs.x[1:]:
        stats = bnjax.update_batch_stats(stats, bnjax.moments(jnp.asarray(x), 0), decay=0.9)
    assert relative_error(stats.mean, mean) < 1e-6
    assert relative_error(stats.var, var) < 1e-6
