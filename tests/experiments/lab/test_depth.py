"""Verdicts on made-up gradients and accuracies; the networks and their gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.deep import DeepNet, gradient_norms, norms
from experiments.common.loop import init_state
from experiments.common.models import ACTIVATIONS
from experiments.common.rates import SGD
from experiments.common.settings import NETWORKS, NORMALISED, PLAIN
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART, UNDECIDED
from experiments.lab import depth
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = depth.DepthSettings(steps=100, depths=(2, 4), rates=(0.1, 1.0))
SMALL, KEPT, LARGE = 1e-6, 1.5, 1e3  # changes of the gradient from the last layer to the second
BADGES = ["gradients keep size", "deep networks train", "needs skip connections"]


def made(changes, finals):
    """A change of the gradient and an accuracy by kind and network; rate 0.1 is the worse one."""
    records = []
    for (kind, network), change in changes.items():
        for layer, norm in enumerate((1.0, change, 1.0, 1.0), 1):
            records += logged(f"{kind} {network}", layer, gradient=norm * seeds(1))
    for (kind, network), accuracy in finals.items():
        for layers in SETTINGS.depths:
            for rate, share in ((0.1, 0.5), (1.0, 1.0)):
                name = at_rate(f"{kind} {network}, {layers} layers", rate)
                values = share * accuracy * seeds(1)
                records += logged(name, 100, test_accuracy=values, validation_accuracy=values)
    return records


def both(kinds, plain, normalised):
    return {
        (kind, network): value
        for kind in kinds
        for network, value in zip(NETWORKS, (plain, normalised), strict=True)
    }


def verdicts(changes, finals):
    rows = judged(depth, made(changes, finals), SETTINGS)
    return [rows[short].verdict for short in BADGES]


@pytest.mark.parametrize(
    "plain, normalised, expected",
    [
        (SMALL, KEPT, HOLDS),
        (1 / SMALL, 1 / KEPT, HOLDS),
        (KEPT, LARGE, FAILS),
        (0.0, KEPT, HOLDS),  # underflow
        (SMALL, float("nan"), FAILS),
    ],
)
def test_gradients_that_change_less_hold(plain, normalised, expected):
    finals = both(depth.TRAINED, 0.1, 0.9)
    assert verdicts(both(depth.KINDS, plain, normalised), finals)[0] == expected


def test_gradients_hold_in_part_where_one_activation_explodes():
    changes = both(depth.KINDS, SMALL, KEPT) | {(depth.RELU, NORMALISED): 1e9}
    assert verdicts(changes, both(depth.TRAINED, 0.1, 0.9))[0] == IN_PART


def test_deep_networks_train_and_need_skips():
    changes = both(depth.KINDS, SMALL, KEPT)
    finals = both(depth.TRAINED, 0.1, 0.5) | {(depth.RESIDUAL, NORMALISED): 0.9}
    assert verdicts(changes, finals)[1:] == [HOLDS, HOLDS]
    finals |= {(depth.RELU, PLAIN): 0.8}
    assert verdicts(changes, finals)[1] == IN_PART
    finals |= {(depth.SIGMOID, PLAIN): 0.8, (depth.RESIDUAL, NORMALISED): 0.4}
    assert verdicts(changes, finals)[1:] == [FAILS, FAILS]


def test_a_network_that_diverged_is_at_zero():
    changes = both(depth.KINDS, SMALL, KEPT)
    finals = both(depth.TRAINED, 0.1, float("nan"))
    assert verdicts(changes, finals)[1] in (FAILS, UNDECIDED)


def test_each_depth_is_seen_at_its_best_rate():
    records = made(both(depth.KINDS, SMALL, KEPT), both(depth.TRAINED, 0.2, 0.8))
    found = depth.accuracies(records, SETTINGS, depth.RELU, NORMALISED)
    np.testing.assert_allclose(found.mean(0), [0.8, 0.8], rtol=0.01)


def test_residual_blocks_add_their_branch():
    """Against the equation, x + branch W relu(x + b), block after block."""
    model = DeepNet(3, 5, ACTIVATIONS["ReLU"], False, 0.5)
    state = init_state(jax.random.key(1), model, SGD, pixels=6)
    images = jax.random.normal(jax.random.key(2), (8, 6))
    params = jax.tree.map(np.asarray, state.params)
    x = np.maximum(images @ params["first"]["Dense_0"]["kernel"], 0)
    for kernel in params["others"]["Dense_0"]["kernel"]:
        x = x + 0.5 * np.maximum(x, 0) @ kernel
    found: Any = model.apply({"params": state.params}, images, train=False)
    np.testing.assert_allclose(found, x @ params["Dense_0"]["kernel"], rtol=1e-5, atol=1e-6)


def test_weights_start_by_hes_rule_for_relu_and_lecuns_for_others():
    for name, variance in (("ReLU", 2 / 64), ("tanh", 1 / 64), ("sigmoid", 1 / 64)):
        model = DeepNet(4, 64, ACTIVATIONS[name], True)
        params = init_state(jax.random.key(0), model, SGD, pixels=64).params
        kernels = np.asarray(params["others"]["Dense_0"]["kernel"])
        assert kernels.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradient_norms_are_those_of_the_weights(batch_norm):
    """Against the network written out layer by layer, differentiated by central differences."""
    model = DeepNet(3, 5, ACTIVATIONS["tanh"], batch_norm)
    init = jax.jit(partial(init_state, model=model, optimizer=SGD, pixels=6))
    state = init(jax.random.key(1))
    images = jax.random.normal(jax.random.key(2), (8, 6))
    labels = jnp.arange(8) % 10
    norms = jax.jit(partial(gradient_norms, model=model))(state, (images, labels))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    kernels = [params["first"]["Dense_0"]["kernel"], *params["others"]["Dense_0"]["kernel"]]
    for layer, kernel in enumerate(kernels):
        gradient = np.zeros_like(kernel)
        for place in np.ndindex(kernel.shape):
            losses = []
            for step in (1e-5, -1e-5):
                moved = [each.copy() for each in kernels]
                moved[layer][place] += step
                losses.append(written_out(moved, params, images, labels, batch_norm))
            gradient[place] = (losses[0] - losses[1]) / 2e-5
        np.testing.assert_allclose(norms[layer], np.linalg.norm(gradient), rtol=2e-4)


def test_depth_compares_networks_with_the_same_first_weights():
    """And bias: what nn.scan draws must not hang on what else there is in a layer."""
    plain, normalised = (
        init_state(
            jax.random.key(0), DeepNet(4, 5, ACTIVATIONS["tanh"], batch_norm), SGD, pixels=6
        ).params
        for batch_norm in (False, True)
    )
    for name in ("first", "others"):
        np.testing.assert_array_equal(
            plain[name]["Dense_0"]["kernel"], normalised[name]["Dense_0"]["kernel"]
        )
    np.testing.assert_array_equal(plain["Dense_0"]["kernel"], normalised["Dense_0"]["kernel"])
    assert plain["others"]["bias"].shape == (3, 5)


def test_norms_do_not_underflow():
    matrices = np.array([1e-30, 0.0, 1e20], np.float32)[:, None, None] * np.ones(
        (3, 4, 5), np.float32
    )
    np.testing.assert_allclose(
        norms(jnp.asarray(matrices)), [20**0.5 * 1e-30, 0, 20**0.5 * 1e20], rtol=1e-5
    )


def written_out(kernels, params, images, labels, batch_norm) -> float:
    """Mean cross-entropy in float64; biases, shifts and scales are as they start."""
    x = np.asarray(images, np.float64)
    for kernel in kernels:
        x = x @ kernel
        if batch_norm:
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = np.tanh(x)
    logits = x @ params["Dense_0"]["kernel"]
    chosen = logits[np.arange(len(labels)), np.asarray(labels)]
    return float(np.mean(np.log(np.exp(logits).sum(1)) - chosen))
