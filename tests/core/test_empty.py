"""Arrays without entries: every function returns one, and no update is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax

pytestmark = pytest.mark.compiled("quickly")

SHAPES = [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)]


def spectral(w):
    state = bnjax.SpectralState(jnp.ones((1, w.shape[-1])), jnp.ones(()))
    return bnjax.spectral_norm(w, state, n_steps=2)[0]


NORMS = {
    "layer": lambda x: bnjax.layer_norm(x, None, None),
    "layer, all axes": lambda x: bnjax.layer_norm(x, None, None, axes=(1, 2)),
    "rms": lambda x: bnjax.rms_norm(x, None),
    "instance": lambda x: bnjax.instance_norm(x, None, None),
    "group": lambda x: bnjax.group_norm(x, None, None, num_groups=2),
    "group, by size": lambda x: bnjax.group_norm(x, None, None, num_groups=None, group_size=2),
    "group, no positions": lambda x: bnjax.group_norm(x, None, None, num_groups=2, axes=-1),
    "weight": lambda x: bnjax.weight_norm(x, None),
    "weight, one norm": lambda x: bnjax.weight_norm(x, None, axis=None),
    "spectral": spectral,
    "standardize": bnjax.weight_standardize,
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_of_nothing_is_nothing(norm):
    fn, xs = NORMS[norm], [jnp.zeros(shape) for shape in SHAPES]
    assert [fn(x).shape for x in xs] == SHAPES
    grads = jax.jit(jax.grad(lambda xs: sum(fn(x).sum() for x in xs)))(xs)
    assert [dx.shape for dx in grads] == SHAPES


def test_the_power_iteration_waits_for_weights():
    for shape in ((0, 4), (4, 0)):
        before = bnjax.init_spectral_norm(jax.random.key(0), shape)
        _, after = bnjax.spectral_norm(jnp.zeros(shape), before)
        np.testing.assert_array_equal(after.u, before.u)
        assert after.sigma == 0


MODES = {
    "train": {"train": True},
    "masked": {"train": True, "mask": True},
    "virtual": {"train": True, "virtual_batch_size": 2},
    "track": {"train": False, "update_stats": True, "unseen": "allow"},
    "debias": {"train": True, "debias": True},
    "average": {"train": True, "decay": None},
    "sample variance": {"train": True, "ddof": 1},
    "renorm": {"train": True},
    "pending": {"train": True},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("jit", [False, True])
def test_a_batch_of_nothing_is_no_update(mode, jit):
    options = dict(MODES[mode])
    norm = bnjax.batch_renorm if mode == "renorm" else bnjax.batch_norm
    for shape in ((0, 2), (5, 0)):
        stats = bnjax.init_batch_stats(shape[-1])
        if "mask" in options:
            options["mask"] = jnp.ones(shape, bool)

        def step(x, stats):
            state = bnjax.begin_update(stats) if mode == "pending" else stats
            y, new = norm(x, None, None, state, **options)
            return y, new.after if mode == "pending" else new

        y, new = (jax.jit(step) if jit else step)(jnp.zeros(shape), stats)
        assert y.shape == shape
        jax.tree.map(np.testing.assert_array_equal, new, stats)


def test_moments_of_nothing_are_no_update():
    empty = bnjax.moments(jnp.zeros((0, 2)), 0)
    stats = bnjax.init_batch_stats(2)
    jax.tree.map(np.testing.assert_array_equal, bnjax.update_batch_stats(stats, empty), stats)
