"""Models and states to and from Equinox: they compute and train on the same."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax.interop import batch_norm_options, check_batch_norms, from_equinox, to_equinox
from bnjax.testing import relative_error

eqx = pytest.importorskip("equinox")

pytestmark = pytest.mark.usefixtures("relaxed")

DECAY, EPSILON = 0.9, 1e-4
BATCHES = jnp.asarray(np.random.default_rng(0).normal(1, 2, (4, 6, 5, 5, 4)), jnp.float32)
NORM = {"momentum": DECAY, "epsilon": EPSILON}


class Theirs(eqx.Module):
    blocks: list
    fc: eqx.nn.Linear

    def __init__(self, key, mode="batch"):
        norm = eqx.nn.BatchNorm(3, "batch", eps=EPSILON, momentum=DECAY, mode=mode)
        self.blocks = [eqx.nn.Conv2d(4, 3, 2, key=key), norm, jax.nn.relu]
        self.fc = eqx.nn.Linear(3, 2, key=key)

    def __call__(self, x, state):
        conv, norm, relu = self.blocks
        x, state = norm(conv(x), state)
        return self.fc(relu(x).mean((1, 2))), state


class Ours(nn.Module):
    debias: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (2, 2), padding="VALID", name="conv")(x)
        options = NORM | {"debias": self.debias, "use_running_average": not train}
        x = nn.relu(bnjax.linen.BatchNorm(**options, name="norm")(x))
        return nn.Dense(2, name="fc")(x.mean((1, 2)))


RENAME = [(r"blocks\.0", "conv"), (r"blocks\.1", "norm")]


@eqx.filter_jit
def apply_theirs(model, state, x, train):
    model = eqx.nn.inference_mode(model, not train)
    call = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return call(jnp.moveaxis(x, -1, 1), state)


@functools.partial(jax.jit, static_argnums=0)
def train_ours(model, variables, x):
    return variables | model.apply(variables, x, train=True, mutable=["batch_stats"])[1]


def template(model, x=BATCHES[0]):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), x))


def made(make, *args, **options):
    """Model and state with random weights."""
    model, state = eqx.nn.make_with_state(make)(*args, **options)
    rng = np.random.default_rng(1)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    arrays = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), arrays)
    return eqx.combine(arrays, static), state


def trained(steps, mode="batch"):
    model, state = made(Theirs, jax.random.key(0), mode)
    for x in BATCHES[:steps]:
        _, state = apply_theirs(model, state, x, True)
    return model, state


def is_numeric(leaf):
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.number)


def assert_same(got, want, tolerance=2e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    arrays = (eqx.filter(tree, is_numeric) for tree in (got, want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, tolerance, 2e-6), *arrays)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_model_evaluates_trains_on_and_goes_back(steps):
    model, state = trained(steps)
    variables = from_equinox(model, state, template(Ours()), RENAME)
    assert variables["batch_stats"]["norm"]["count"] == steps
    for x in BATCHES[steps:]:
        want, _ = apply_theirs(model, state, x, False)
        assert relative_error(Ours().apply(variables, x), want) < 1e-5
        _, state = apply_theirs(model, state, x, True)
        variables = train_ours(Ours(), variables, x)
    shapes = eqx.filter_eval_shape(eqx.nn.make_with_state(Theirs), jax.random.key(0))
    again = to_equinox(variables, *shapes, RENAME)
    assert_same(again, (model, state))
    # Equinox goes on where bnjax left off.
    _, after = apply_theirs(*again, BATCHES[0], True)
    assert_same(after, apply_theirs(model, state, BATCHES[0], True)[1])


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_a_model_that_has_not_been_trained(mode):
    model, state = trained(0, mode)
    variables = from_equinox(model, state, template(Ours()), RENAME)
    norm = variables["batch_stats"]["norm"]
    np.testing.assert_array_equal(norm["mean"], np.zeros(3))
    np.testing.assert_array_equal(norm["var"], np.ones(3))
    assert norm["count"] == 0
    again = to_equinox(variables, model, state, RENAME)
    _, after = apply_theirs(*again, BATCHES[0], True)
    assert_same(after, apply_theirs(model, state, BATCHES[0], True)[1])


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_plain_averages_go_on_as_plain_averages(mode):
    ours = Ours(debias=False)
    model, state = trained(3, mode)
    variables = from_equinox(model, state, template(ours), RENAME)
    again = to_equinox(variables, model, state, RENAME)
    x = BATCHES[3]
    for _ in range(2):
        assert relative_error(apply_theirs(*again, x, False)[0], ours.apply(variables, x)) < 1e-5
        again = again[0], apply_theirs(*again, x, True)[1]
        variables = train_ours(ours, variables, x)


def test_the_ema_mode_evaluates_the_same_and_its_updates_are_of_an_unknown_number():
    model, state = trained(3, "ema")
    variables = from_equinox(model, state, template(Ours()), RENAME)
    assert variables["batch_stats"]["norm"]["count"] == 0
    want, _ = apply_theirs(model, state, BATCHES[3], False)
    assert relative_error(Ours().apply(variables, BATCHES[3]), want) < 1e-5
    assert_same(to_equinox(variables, model, state, RENAME), (model, state))
    # In the other mode there is a counter to make up: that of a settled average.
    _, fresh = trained(0, "batch")
    batch_model, _ = trained(0, "batch")
    again = to_equinox(variables, batch_model, fresh, RENAME)
    assert relative_error(apply_theirs(*again, BATCHES[3], False)[0], want) < 1e-5


def test_an_nnx_model():
    model, state = trained(2)
    rngs = nnx.Rngs(0)

    class NnxNet(nnx.Module):
        def __init__(self):
            norm = bnjax.nnx.BatchNorm(3, **NORM, debias=True, use_running_average=True, rngs=rngs)
            conv = nnx.Conv(4, 3, (2, 2), padding="VALID", rngs=rngs)
            self.blocks = nnx.List([conv, norm])
            self.fc = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            conv, norm = self.blocks
            return self.fc(nn.relu(norm(conv(x))).mean((1, 2)))

    ours = NnxNet()
    nnx.update(ours, from_equinox(model, state, nnx.state(ours)))
    want, _ = apply_theirs(model, state, BATCHES[0], False)
    assert relative_error(ours(BATCHES[0]), want) < 1e-5
    assert_same(to_equinox(nnx.state(ours), model, state), (model, state))


def test_options_of_each_layer_are_those_it_is_trained_with():
    model, _ = trained(0)
    options = batch_norm_options(model, RENAME)
    check_batch_norms(Ours(), options, BATCHES[0])
    with pytest.raises(ValueError, match="debias is False, must be True"):
        check_batch_norms(Ours(debias=False), options, BATCHES[0])
    ema, _ = trained(0, "ema")
    assert batch_norm_options(ema)["blocks/1"]["debias"] is False


KEY = jax.random.key(1)
# Equinox's layer, Flax's, the shape of one example as Flax has it, and options.
SINGLE = {
    "1-d convolution": (
        lambda: eqx.nn.Conv1d(4, 3, 2, key=KEY),
        lambda: nn.Conv(3, (2,), padding="VALID"),
        (6, 4),
    ),
    "groups": (
        lambda: eqx.nn.Conv2d(4, 6, 3, groups=2, key=KEY),
        lambda: nn.Conv(6, (3, 3), padding="VALID", feature_group_count=2),
        (5, 6, 4),
    ),
    "transposed": (
        lambda: eqx.nn.ConvTranspose2d(4, 4, (3, 2), 2, key=KEY),
        lambda: nn.ConvTranspose(4, (3, 2), (2, 2), "VALID"),
        (3, 4, 4),
    ),
    "transposed, with the kernel of the convolution": (
        lambda: eqx.nn.ConvTranspose2d(4, 3, (3, 2), 2, key=KEY),
        lambda: nn.ConvTranspose(3, (3, 2), (2, 2), "VALID", transpose_kernel=True),
        (3, 4, 4),
    ),
    "layer norm": (
        lambda: eqx.nn.LayerNorm(4),
        lambda: bnjax.linen.LayerNorm(epsilon=1e-5),
        (4,),
    ),
    "layer norm over several axes": (
        lambda: eqx.nn.LayerNorm((4, 2, 3)),
        lambda: bnjax.linen.LayerNorm(
            epsilon=1e-5, reduction_axes=(-3, -2, -1), feature_axes=(-3, -2, -1)
        ),
        (2, 3, 4),
    ),
    "group norm": (
        lambda: eqx.nn.GroupNorm(2, 4),
        lambda: bnjax.linen.GroupNorm(2, epsilon=1e-5),
        (3, 2, 4),
    ),
    "RMS norm": (
        lambda: eqx.nn.RMSNorm(4, use_bias=False),
        lambda: bnjax.linen.RMSNorm(epsilon=1e-5),
        (4,),
    ),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_one_layer_computes_the_same(kind, rng):
    make, make_ours, shape = SINGLE[kind]
    layer, _ = made(make)
    x = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
    ours = make_ours()
    variables = from_equinox(layer, None, template(ours, x))
    want = jnp.moveaxis(jax.vmap(layer)(jnp.moveaxis(x, -1, 1)), 1, -1)
    assert relative_error(ours.apply(variables, x), want) < 1e-4
    assert_same(to_equinox(variables, layer, None)[0], layer, 0)


def test_attention_and_embedding(rng):
    class Text(eqx.Module):
        embed: eqx.nn.Embedding
        attn: eqx.nn.MultiheadAttention

        def __init__(self):
            self.embed = eqx.nn.Embedding(7, 8, key=KEY)
            self.attn = eqx.nn.MultiheadAttention(
                2, 8, use_query_bias=True, use_key_bias=True, use_value_bias=True,
                use_output_bias=True, key=KEY,
            )  # fmt: skip

        def __call__(self, tokens):
            x = jax.vmap(self.embed)(tokens)
            return self.attn(x, x, x)

    class OurText(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(7, 8, name="embed")(tokens)
            return nn.MultiHeadDotProductAttention(2, name="attn")(x)

    model, _ = made(Text)
    tokens = jnp.asarray(rng.integers(0, 7, (5,)))
    variables = from_equinox(model, None, template(OurText(), tokens))
    assert relative_error(OurText().apply(variables, tokens), model(tokens)) < 1e-4
    assert_same(to_equinox(variables, model, None)[0], model, 0)


def test_layers_stacked_by_vmap_are_layers_under_a_scan(rng):
    keys = jax.random.split(KEY, 3)
    stacked = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(keys)

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            body = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return body(nn.Dense(4, name="layer"), x, None)[0]

    x = jnp.asarray(rng.normal(size=4), jnp.float32)
    variables = from_equinox(stacked, None, template(Scanned(), x), [("^$", "layer")])
    arrays, static = eqx.partition(stacked, eqx.is_array)
    want, _ = jax.lax.scan(lambda x, one: (eqx.combine(one, static)(x), None), x, arrays)
    assert relative_error(Scanned().apply(variables, x), want) < 1e-5
    assert_same(to_equinox(variables, stacked, None, [("^$", "layer")])[0], stacked, 0)


def test_an_ensemble_has_a_counter_for_each_member():
    def make(_):
        return eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch", momentum=DECAY)

    model, state = eqx.filter_vmap(make)(jnp.arange(2))
    leaf, count = np.zeros((2, 3), np.float32), np.zeros(2, np.int32)
    variables = {
        "params": {"scale": leaf, "bias": leaf + 1},
        "batch_stats": {"mean": leaf + 3, "var": leaf + 2, "count": count + np.array([0, 5])},
    }
    new = to_equinox(variables, model, state)
    again = from_equinox(*new, variables)
    count = again["batch_stats"].pop("count")
    variables["batch_stats"].pop("count")
    np.testing.assert_array_equal(count, [2**30, 5])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, variables)


def test_what_the_equal_sizes_of_a_norm_do_not_tell_is_asked_for(rng):
    layer, _ = made(eqx.nn.LayerNorm, (2, 2, 2))
    variables = {"params": {name: np.zeros((2, 2, 2)) for name in ("scale", "bias")}}
    with pytest.raises(ValueError, match="channels_first= must"):
        from_equinox(layer, None, variables)
    new = from_equinox(layer, None, variables, channels_first="")
    np.testing.assert_array_equal(new["params"]["scale"], np.moveaxis(layer.weight, 0, -1))
    assert_same(to_equinox(new, layer, None, channels_first="")[0], layer, 0)


def test_half_precision_and_half_frozen_models():
    model, state = trained(2)
    half = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, (model, state)
    )
    variables = from_equinox(*half, template(Ours()), RENAME)
    assert variables["params"]["conv"]["kernel"].dtype == jnp.float32
    again = to_equinox(variables, *half, RENAME)
    assert_same(again[0], half[0], 0)
    assert again[1].get(model.blocks[1].batch_state_index)[0].dtype == jnp.bfloat16
    # A half may leave activations out, but no weights.
    arrays, static = eqx.partition(model, eqx.is_array)
    from_equinox(arrays, state, template(Ours()), RENAME)
    frozen = eqx.tree_at(lambda m: m.fc.weight, model, None)
    for part, lost in ((static, "blocks.0.weight"), (frozen, "fc.weight")):
        with pytest.raises(ValueError, match=rf"None at {lost}.*eqx\.combine"):
            from_equinox(part, state, template(Ours()), RENAME)


def test_statistics_too_large_for_the_dtype_of_the_state():
    model, state = trained(1)
    half = jax.tree.map(lambda x: x.astype(jnp.float16) if eqx.is_inexact_array(x) else x, state)
    variables = from_equinox(model, state, template(Ours()), RENAME)
    variables["batch_stats"]["norm"]["var"] *= 1e6
    with pytest.raises(ValueError, match=r"blocks\.1: .*infinite in float16"):
        to_equinox(variables, model, half, RENAME)


def used_up(model, state):
    index = model.blocks[1].batch_counter
    state.set(index, state.get(index))  # and what it returns is lost
    return model, state


MISTAKES = {
    "no state": (lambda m, s: (m, None), ValueError, "state must be .*got None.*make_with_state"),
    "variables for the state": (lambda m, s: (m, {}), TypeError, "state must be .*got dict"),
    "both in one": (lambda m, s: ((m, s), s), TypeError, "model must be .*got a State in it"),
    "another library": (lambda m, s: (np.ones(3), s), TypeError, "model must be .*got ndarray"),
    "another model's state": (
        lambda m, s: (m, eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "b", mode="batch")[1]),
        ValueError,
        r"state has nothing of blocks\.1\.batch_counter",
    ),
    "a state that was replaced": (used_up, ValueError, "old state"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake):
    change, error, match = MISTAKES[mistake]
    model, state = change(*trained(0))
    for convert in (from_equinox, lambda m, s, v, r: to_equinox(v, m, s, r)):
        with pytest.raises(error, match=match):
            convert(model, state, template(Ours()), RENAME)


def test_layers_of_unknown_kinds_are_listed_and_can_be_left_out():
    class Odd(eqx.Module):
        norm: eqx.nn.SpectralNorm
        token: jax.Array
        key: jax.Array

        def __init__(self):
            self.norm = eqx.nn.SpectralNorm(eqx.nn.Linear(2, 3, key=KEY), "weight", key=KEY)
            self.token, self.key = jnp.arange(3.0), KEY

    model, state = eqx.nn.make_with_state(Odd)()
    variables = {
        "params": {
            "norm": {"layer": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}},
            "token": np.zeros(3),
        }
    }
    with pytest.raises(ValueError, match=r"unknown names of equinox: norm\.uv_index\.0 .*index\.1"):
        from_equinox(model, state, variables)
    new = from_equinox(model, state, variables, ignore="uv_index")
    np.testing.assert_array_equal(new["params"]["token"], [0, 1, 2])
    again = to_equinox(new, *eqx.nn.make_with_state(Odd)(), ignore="uv_index")
    assert_same(again, (model, state), 0)


def test_the_layout_of_states_before_equinox_0_13(monkeypatch):
    class Old(eqx.Module):  # the fields of 0.11 and 0.12
        weight: jax.Array | None
        bias: jax.Array | None
        first_time_index: eqx.nn.StateIndex
        state_index: eqx.nn.StateIndex
        momentum: float = eqx.field(static=True)
        eps: float = eqx.field(static=True)
        channelwise_affine: bool = eqx.field(static=True)

        def __init__(self):
            self.weight, self.bias = jnp.full(2, 3.0), jnp.ones(2)
            self.first_time_index = eqx.nn.StateIndex(jnp.array(False))
            self.state_index = eqx.nn.StateIndex((jnp.full(2, 5.0), jnp.full(2, 7.0)))
            self.momentum, self.eps, self.channelwise_affine = 0.9, 1e-3, True

    monkeypatch.setattr(eqx.nn, "BatchNorm", Old)
    model, state = eqx.nn.make_with_state(Old)()
    leaves = {name: np.zeros(2) for name in ("scale", "bias", "mean", "var")}
    variables = {
        "params": {name: leaves[name] for name in ("scale", "bias")},
        "batch_stats": {name: leaves[name] for name in ("mean", "var")},
    }
    new = from_equinox(model, state, variables)
    np.testing.assert_array_equal(new["batch_stats"]["var"], [7, 7])
    np.testing.assert_array_equal(new["params"]["scale"], [3, 3])
    assert batch_norm_options(model)[""]["epsilon"] == 1e-3
    assert_same(to_equinox(new, model, state), (model, state), 0)
