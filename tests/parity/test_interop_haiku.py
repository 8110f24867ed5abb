"""Parameters and state to and from live Haiku models: they compute and train on the same."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax.nnx
from bnjax.interop import from_haiku, to_haiku
from bnjax.linen import BatchNorm
from bnjax.testing import relative_error

hk = pytest.importorskip("haiku")

DECAY, EPSILON = 0.9, 1e-4
BATCHES = jnp.asarray(np.random.default_rng(0).normal(1, 2, (4, 3, 5, 6, 4)), jnp.float32)


pytestmark = pytest.mark.usefixtures("relaxed")


class HaikuNet(hk.Module):
    def __init__(self, name="net"):
        super().__init__(name)
        self.conv = hk.Conv2D(3, 2, padding="VALID", name="conv")
        self.norm = hk.BatchNorm(True, True, DECAY, EPSILON, name="batch_norm")
        self.fc = hk.Linear(2, name="fc")

    def __call__(self, x, train):
        return self.fc(self.norm(self.conv(x), train).mean((1, 2)))


RENAME = [("^net/~/batch_norm", "norm"), ("^net/~/", "")]
THEIRS = hk.without_apply_rng(hk.transform_with_state(lambda x, train: HaikuNet()(x, train)))
apply_theirs = jax.jit(THEIRS.apply, static_argnums=3)


class Net(nn.Module):
    debias: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (2, 2), padding="VALID", name="conv")(x)
        options = {"momentum": DECAY, "epsilon": EPSILON, "debias": self.debias}
        x = BatchNorm(use_running_average=not train, name="norm", **options)(x)
        return nn.Dense(2, name="fc")(x.mean((1, 2)))


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, x):
    return variables | model.apply(variables, x, train=True, mutable=["batch_stats"])[1]


def template(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), BATCHES[0]))


def trained(steps):
    """Random parameters, and the state after some batches."""
    params, state = THEIRS.init(jax.random.key(0), BATCHES[0], True)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    for x in BATCHES[:steps]:
        _, state = apply_theirs(params, state, x, True)
    return params, state


def assert_states_are_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_model_evaluates_trains_on_and_goes_back(steps):
    params, state = trained(steps)
    variables = from_haiku(params, state, template(Net()), RENAME)
    assert variables["batch_stats"]["norm"]["count"] == steps
    for x in BATCHES[steps:]:
        want, _ = apply_theirs(params, state, x, False)
        assert relative_error(Net().apply(variables, x), want) < 1e-5
        _, state = apply_theirs(params, state, x, True)
        variables = train(Net(), variables, x)
    fresh = jax.eval_shape(lambda: THEIRS.init(jax.random.key(0), BATCHES[0], True))
    again = to_haiku(variables, *fresh, RENAME, decay=DECAY)
    assert_states_are_close(again, (params, state))
    # Haiku goes on where bnjax left off.
    _, after = apply_theirs(*again, BATCHES[0], True)
    _, want = apply_theirs(params, state, BATCHES[0], True)
    assert_states_are_close(after, want)


def test_a_model_that_has_not_been_trained():
    params, state = THEIRS.init(jax.random.key(0), BATCHES[0], True)
    variables = from_haiku(params, state, template(Net()), RENAME)
    again = to_haiku(variables, params, state, RENAME, decay=DECAY)
    assert_states_are_close(again, (params, state))


def test_plain_averages_go_on_as_plain_averages():
    params, state = trained(3)
    ours = Net(debias=False)
    variables = from_haiku(params, state, template(ours), RENAME)
    assert "count" not in variables["batch_stats"]["norm"]
    again = to_haiku(variables, params, state, RENAME)
    x = BATCHES[3]
    want = ours.apply(variables, x)
    assert relative_error(apply_theirs(*again, x, False)[0], want) < 1e-5
    for _ in range(2):
        variables = train(ours, variables, x)
        _, state = apply_theirs(*again, x, True)
        again = again[0], state
    assert relative_error(apply_theirs(*again, x, False)[0], ours.apply(variables, x)) < 1e-5


def test_an_nnx_model():
    params, state = trained(2)
    rngs = nnx.Rngs(0)
    norm = {"momentum": DECAY, "epsilon": EPSILON, "debias": True}

    class NnxNet(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(4, 3, (2, 2), padding="VALID", rngs=rngs)
            self.norm = bnjax.nnx.BatchNorm(3, use_running_average=True, rngs=rngs, **norm)
            self.fc = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.fc(self.norm(self.conv(x)).mean((1, 2)))

    ours = NnxNet()
    nnx.update(ours, from_haiku(params, state, nnx.state(ours), RENAME))
    want, _ = apply_theirs(params, state, BATCHES[0], False)
    assert relative_error(ours(BATCHES[0]), want) < 1e-5
    again = to_haiku(nnx.state(ours), params, state, RENAME, decay=DECAY)
    assert_states_are_close(again, (params, state))


# Haiku's layer and linen's, as many channels in as out.
SINGLE = {
    "transposed": (
        lambda: hk.Conv2DTranspose(4, (3, 2), 2, padding="VALID", name="layer"),
        lambda: nn.ConvTranspose(4, (3, 2), (2, 2), "VALID"),
        {"transposed": "layer"},
    ),
    "depthwise": (
        lambda: hk.DepthwiseConv2D(2, 3, padding="VALID", name="layer"),
        lambda: nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4),
        {},
    ),
    "layer norm": (
        lambda: hk.LayerNorm(-1, True, True, name="layer"),
        lambda: nn.LayerNorm(epsilon=1e-5),
        {},
    ),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_one_layer_computes_the_same(kind, rng):
    make, make_ours, options = SINGLE[kind]
    theirs = hk.without_apply_rng(hk.transform(lambda x: make()(x)))
    x = BATCHES[0]
    params = theirs.init(jax.random.key(1), x)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    ours = make_ours()
    variables = from_haiku(params, None, template(ours), [("layer", "")], **options)
    assert relative_error(ours.apply(variables, x), theirs.apply(params, x)) < 1e-4
    again, _ = to_haiku(variables, params, None, [("layer", "")], **options)
    jax.tree.map(np.testing.assert_array_equal, again, params)
