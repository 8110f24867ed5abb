"""Other norms in place of batch norm: where they stand, what they carry, and that they train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import bnjax.linen
import bnjax.nnx
from bnjax import _variables
from bnjax.surgery import fold, freeze, swap, verify
from tests.surgery.networks import X, linen_network, nnx_network, variables_of

LINEN_NORMS = [nn.BatchNorm, bnjax.linen.BatchNorm]
NNX_NORMS = [nnx.BatchNorm, bnjax.nnx.BatchNorm]


def close(a, b, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4), a, b)


def group_norm(x, scale, bias, num_groups, epsilon):
    n, h, w, _ = x.shape
    parts = np.asarray(x, np.float64).reshape(n, h, w, num_groups, -1)
    centred = parts - parts.mean((1, 2, 4), keepdims=True)
    y = centred / np.sqrt(parts.var((1, 2, 4), keepdims=True) + epsilon)
    return y.reshape(x.shape) * np.asarray(scale) + np.asarray(bias)


@pytest.mark.parametrize("norm", LINEN_NORMS)
def test_linen_to_group_norm(norm):
    model = nn.Sequential([nn.Conv(4, (3, 3)), norm(True, epsilon=0.1), nn.relu])
    variables = variables_of(model, X)
    swapped = swap(model, variables, bnjax.linen.GroupNorm, num_groups=2)
    assert list(swapped.variables) == ["params"]
    assert swapped.changed == {("layers_1",): "is now GroupNorm"}
    params = variables["params"]
    jax.tree.map(np.testing.assert_array_equal, swapped.variables["params"], params)
    y = nn.Conv(4, (3, 3)).apply({"params": params["layers_0"]}, X)
    want = np.maximum(group_norm(y, *(params["layers_1"][p] for p in ("scale", "bias")), 2, 0.1), 0)
    close(jax.jit(swapped.model.apply)(swapped.variables, X), want)


@pytest.mark.parametrize("norm", NNX_NORMS)
def test_nnx_to_group_norm(norm):
    model, variables = nnx_network(norm)
    swapped = swap(model, variables, bnjax.nnx.GroupNorm, num_groups=2)
    network, old = nnx.merge(swapped.model, swapped.variables), nnx.merge(model, variables)
    new = network.block1.bns[0]
    assert isinstance(new, bnjax.nnx.GroupNorm) and not hasattr(new, "mean")
    y = old.block1.convs[0](X)
    scale, bias = (np.asarray(v[...]) for v in (old.block1.bns[0].scale, old.block1.bns[0].bias))
    close(new(y, use_running_average=True), group_norm(y, scale, bias, 2, 1e-5))
    assert network(X).shape == (2, 2) and len(swapped.changed) == 7
    assert not isinstance(old.block1.bns[0], bnjax.nnx.GroupNorm)


def test_a_swapped_linen_model_trains():
    model, variables = linen_network(nn.BatchNorm)
    swapped = swap(model, variables, bnjax.linen.GroupNorm, num_groups=2)
    tx = optax.sgd(1e-3)

    @jax.jit
    def step(params, state):
        loss = lambda p: jnp.mean(swapped.model.apply({"params": p}, X, train=True) ** 2)  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, value, grads

    params, state = swapped.variables["params"], tx.init(swapped.variables["params"])
    params, state, first, grads = step(params, state)
    for leaf in ("scale", "bias"):
        assert np.abs(grads["block1"]["bn1"][leaf]).max() > 0
    assert step(params, state)[2] < first


def test_a_swapped_nnx_model_trains():
    model, variables = nnx_network(train=True)
    swapped = swap(model, variables, nnx.LayerNorm)
    network = nnx.merge(swapped.model, swapped.variables)
    network.train()
    grads = nnx.jit(nnx.grad(lambda m: jnp.mean(m(X) ** 2)))(network)
    for leaf in ("scale", "bias"):
        assert np.abs(grads["block1"]["bns"][0][leaf][...]).max() > 0


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize("axis", [1, (1,)])
def test_features_stay_on_the_axis_of_the_old_norm(kind, axis):
    x = X.transpose(0, 3, 1, 2)
    if kind == "linen":
        model = bnjax.linen.BatchNorm(True, axis=axis)
        variables = variables_of(model, x)
        swapped = swap(model, variables, nn.InstanceNorm)
        scale, bias = (variables["params"][leaf] for leaf in ("scale", "bias"))
        got = swapped.model.apply(swapped.variables, x)
    else:
        norm = nnx.BatchNorm(3, axis=axis, use_running_average=True, rngs=nnx.Rngs(0))
        norm.scale.set_value(jnp.arange(3.0))
        scale, bias = norm.scale[...], norm.bias[...]
        swapped = swap(*nnx.split(norm), nnx.InstanceNorm, epsilon=1e-5)
        got = nnx.merge(swapped.model, swapped.variables)(x)
    close(got, group_norm(X, scale, bias, 3, 1e-5).transpose(0, 3, 1, 2))


def test_a_mask_is_handed_on():
    model = bnjax.linen.BatchNorm(True, axis=1)
    variables, x = variables_of(model, X.transpose(0, 3, 1, 2)), X.transpose(0, 3, 1, 2)
    swapped = swap(model, variables, bnjax.linen.InstanceNorm)
    mask = np.arange(6).reshape(6, 1) < 4
    got = swapped.model.apply(swapped.variables, x, mask=mask)
    want = swapped.model.apply(swapped.variables, x[:, :, :4])
    close(got[:, :, :4], want)


@pytest.mark.parametrize("norm", LINEN_NORMS)
def test_linen_frozen_is_evaluation_whatever_the_call_says(norm):
    model, variables = linen_network(norm)
    frozen = swap(model, variables, "frozen")
    want = model.apply(variables, X)
    options = {"train": True, "mutable": ["batch_stats"]}
    y, updates = jax.jit(lambda v: frozen.model.apply(v, X, **options))(frozen.variables)
    close(y, want, atol=1e-4)
    after = frozen.variables["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], after)
    loss = lambda v: jnp.sum(frozen.model.apply(v, X, **options)[0])  # noqa: E731
    params = jax.jit(jax.grad(loss, allow_int=True))(frozen.variables)["params"]
    assert not np.any(params["block1"]["bn1"]["scale"]) and np.any(
        params["block1"]["conv1"]["kernel"]
    )


@pytest.mark.parametrize("norm", NNX_NORMS)
def test_nnx_frozen_is_evaluation_whatever_the_mode(norm):
    model, variables = nnx_network(norm)
    frozen = swap(model, variables, "frozen", layers="bns")
    network = nnx.merge(frozen.model, frozen.variables)
    for bn in (*network.block1.bns, *network.block2.bns):
        assert isinstance(bn, bnjax.nnx.BatchNorm)
        bn.use_running_average = False
    close(nnx.jit(lambda m: m(X))(network), nnx.merge(model, variables)(X), atol=1e-4)
    mean = nnx.merge(model, variables).block1.bns[0].mean[...]
    np.testing.assert_array_equal(network.block1.bns[0].mean[...], mean)


def test_frozen_norms_fold_in_training_mode_too():
    model, variables = linen_network(nn.BatchNorm)
    frozen = swap(model, variables, "frozen")
    folded = fold(frozen.model, frozen.variables, X, train=True)
    assert len(folded.changed) == 7
    assert verify((model, variables), (folded.model, folded.variables), [X], tolerance=1e-5)


def test_flax_to_bnjax_goes_on_with_the_statistics():
    """Another arithmetic, the same training: what is carried is all there is."""
    model, variables = linen_network(nn.BatchNorm)
    swapped = swap(model, variables, bnjax.linen.BatchNorm, debias=True)
    options = {"train": True, "mutable": ["batch_stats"]}
    y, updates = model.apply(variables, X, **options)
    swapped_plain = swap(model, variables, bnjax.linen.BatchNorm)
    z, others = jax.jit(lambda v: swapped_plain.model.apply(v, X, **options))(variables)
    close((y, updates), (z, others), atol=1e-4)
    # Trained, nobody knows how often.
    assert swapped.variables["batch_stats"]["block1"]["bn1"]["count"] == 0


# https://github.com/ultralytics/yolov5/issues/459
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_yolov5_459_statistics_swapped_into_a_norm_that_counts_are_not_overwritten(kind):
    old = {"mean": jnp.array([5.0]), "var": jnp.array([9.0])}
    batch = jnp.full((8, 1), -50.0)
    if kind == "linen":
        variables = {"params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}, "batch_stats": old}
        new = swap(nn.BatchNorm(False), variables, bnjax.linen.BatchNorm, debias=True)
        _, updates = new.model.apply(new.variables, batch, mutable=["batch_stats"])
        mean = updates["batch_stats"]["mean"]
    else:
        norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
        norm.mean.set_value(old["mean"])
        norm.var.set_value(old["var"])
        new = swap(*nnx.split(norm), bnjax.nnx.BatchNorm, debias=True)
        norm = nnx.merge(new.model, new.variables)
        norm(batch)
        mean = norm.mean.get_value()
    np.testing.assert_allclose(mean, 4.45, rtol=1e-5)  # 0.99 · 5 − 0.01 · 50


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_counts_and_switches_go_where_statistics_go(kind):
    if kind == "linen":
        model = bnjax.linen.BatchNorm(True, debias=True)
        variables = freeze(variables_of(model, X))
        run = lambda m, v: m.apply(v, X)  # noqa: E731
    else:
        norm = bnjax.nnx.BatchNorm(3, use_running_average=True, debias=True, rngs=nnx.Rngs(0))
        norm.count.set_value(jnp.array(3))
        model, variables = nnx.split(norm)
        run = lambda m, v: nnx.merge(m, v)(X)  # noqa: E731
    frozen = swap(model, variables, "frozen")
    close(run(frozen.model, frozen.variables), run(model, variables))
    norms = bnjax.linen if kind == "linen" else bnjax.nnx
    other = swap(model, variables, norms.LayerNorm)
    assert {path[0] for path in _variables.flatten(other.variables)[0]} == {"params"}
    assert np.isfinite(run(other.model, other.variables)).all()


@pytest.mark.parametrize("options", [{"use_scale": False}, {"use_bias": False}])
def test_norms_without_scale_or_bias_stay_without(options):
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(True, **options)])
    variables = variables_of(model, X)
    swapped = swap(model, variables, bnjax.linen.LayerNorm)
    assert swapped.variables["params"]["layers_1"].keys() == variables["params"]["layers_1"].keys()
    swapped.model.apply(swapped.variables, X)


def test_only_some_layers():
    model, variables = linen_network()
    swapped = swap(model, variables, bnjax.linen.GroupNorm, layers="block1/bn[12]", num_groups=4)
    assert [*swapped.changed] == [("block1", "bn1"), ("block1", "bn2")]
    assert "bn1" not in swapped.variables["batch_stats"]["block1"]
    assert "bn3" in swapped.variables["batch_stats"]["block1"]
    assert np.isfinite(swapped.model.apply(swapped.variables, X)).all()


@pytest.mark.parametrize("network", [linen_network, nnx_network])
def test_all_layers_that_do_not_fit_are_listed(network):
    norms = bnjax.linen if network is linen_network else bnjax.nnx
    with pytest.raises(ValueError, match="GroupNorm does not fit 4 layers") as error:
        swap(*network(), norms.GroupNorm, num_groups=8)
    for layer in ("block1/bn1", "block2/bn2") if network is linen_network else ("block1/bns/1",):
        assert f"{layer}: " in str(error.value)
    assert "bn3" not in str(error.value) and "down" not in str(error.value)
    with pytest.raises(ValueError, match="RMSNorm has no bias to take over"):
        swap(*network(), norms.RMSNorm)


def test_what_is_no_replacement_is_refused():
    model, variables = linen_network()
    for wrong in (bnjax.nnx.GroupNorm, bnjax.linen.GroupNorm(), "group", None):
        with pytest.raises(TypeError, match="replacement must be 'frozen' or a class of linen"):
            swap(model, variables, wrong)
    with pytest.raises(ValueError, match="layers='stage' is found in no layer"):
        swap(model, variables, "frozen", layers="stage")
