"""The training loop."""

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnjax.training import train_step
from experiments.common.data import Dataset, Split
from experiments.common.loop import init_state, one_by_one, train_chunk, train_seeds
from experiments.common.loss import make_loss_fn
from experiments.common.metrics import evaluate, evaluate_with_inputs
from experiments.common.models import MLP
from experiments.common.norms import batch_norm

RNG = np.random.default_rng(0)
IMAGES = RNG.random((33, 6)).astype(np.float32)
LABELS = RNG.integers(0, 10, 33).astype(np.int32)
BATCH = {"images": jnp.asarray(IMAGES[:20]), "labels": jnp.asarray(LABELS[:20])}
MODELS = {batch_norm: MLP(hidden=(5, 4), batch_norm=batch_norm) for batch_norm in (False, True)}
LOSSES = {batch_norm: make_loss_fn(model) for batch_norm, model in MODELS.items()}
STEP = jax.jit(train_step, static_argnums=2)


@cache
def make_state(batch_norm: bool):
    """The same object every time, so that `STEP` is compiled once for each network."""
    model = MODELS[batch_norm]
    return init_state(jax.random.key(0), model=model, optimizer=optax.sgd(0.5), pixels=6)


def test_batch_norm_replaces_the_bias():
    plain, normalised = make_state(False), make_state(True)
    assert plain.batch_stats == {}
    assert set(normalised.batch_stats) == {"BatchNorm_0", "BatchNorm_1"}
    assert set(plain.params["Dense_0"]) == {"kernel", "bias"}
    assert set(normalised.params["Dense_0"]) == {"kernel"}
    assert set(normalised.params["Dense_2"]) == {"kernel", "bias"}  # the logits


def test_both_networks_start_from_the_same_weights():
    for layer in ("Dense_0", "Dense_1", "Dense_2"):
        plain, normalised = (make_state(b).params[layer]["kernel"] for b in (False, True))
        np.testing.assert_array_equal(plain, normalised)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_steps_lower_the_loss(batch_norm):
    state = make_state(batch_norm)
    losses = []
    for _ in range(200):
        state, metrics = STEP(state, BATCH, LOSSES[batch_norm])
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    assert int(state.step) == 200


def test_running_statistics_move_towards_the_batch():
    state, _ = STEP(make_state(True), BATCH, LOSSES[True])
    kernel = make_state(True).params["Dense_0"]["kernel"]
    expected = 0.1 * (BATCH["images"] @ kernel).mean(0)  # momentum 0.9, from 0
    np.testing.assert_allclose(state.batch_stats["BatchNorm_0"]["mean"], expected, rtol=1e-4)


def test_an_epoch_shows_no_image_twice():
    """Three batches of 10 out of 33 images make an epoch, which keeps one order."""
    images, labels = jnp.asarray(IMAGES), jnp.arange(33) % 10
    orders = []
    state, order = make_state(False), jnp.zeros(33, jnp.int32)
    chunk = jax.jit(partial(train_chunk, loss_fn=LOSSES[False], num_steps=1, batch_size=10))
    for first in range(7):
        state, order, _ = chunk(state, order, jax.random.key(1), (images, labels), first)
        orders.append(np.asarray(order))
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(33))
    for first, second in ((0, 1), (1, 2), (3, 4), (4, 5)):  # within an epoch
        np.testing.assert_array_equal(orders[first], orders[second])
    assert not np.array_equal(orders[2], orders[3])  # a new epoch, a new order
    assert not np.array_equal(orders[5], orders[6])


@cache
def collect(eval_every: int, num_steps: int = 8, num_seeds: int = 2):
    """Evaluations of a small network with batch norm."""
    held_out = Split(IMAGES[:8], (LABELS[:8] + 1) % 10)
    data = Dataset("random", Split(IMAGES, LABELS), Split(IMAGES[:8], LABELS[:8]))
    data = data._replace(validation=held_out if num_seeds == 1 else None)
    return list(
        train_seeds(
            MLP(hidden=(5, 4), batch_norm=True),
            optax.sgd(0.5),
            evaluate_with_inputs,
            data,
            num_seeds=num_seeds,
            num_steps=num_steps,
            batch_size=10,
            eval_every=eval_every,
        )
    )


def test_evaluations_come_at_the_interval_and_at_the_end():
    evaluations = collect(eval_every=3)
    assert [evaluation.step for evaluation in evaluations] == [0, 3, 6, 8]
    assert "train_loss" not in evaluations[0].metrics
    for evaluation in evaluations[1:]:
        percentiles = evaluation.metrics.pop("percentiles")
        assert percentiles.shape == (2, 3, 4)
        assert all(value.shape == (2,) for value in evaluation.metrics.values())
        low, middle, high = percentiles.swapaxes(0, 1)
        assert (low < middle).all() and (middle < high).all()


def test_percentiles_are_of_what_the_activations_get():
    model = MLP(hidden=(5, 4), batch_norm=True)
    state = init_state(jax.random.key(0), model, optax.sgd(0.5), IMAGES.shape[1])
    images, labels = jnp.asarray(IMAGES[:20]), jnp.asarray(LABELS[:20])
    metrics = evaluate_with_inputs(state, (images, labels), model=model)
    first, second = state.params["Dense_0"], state.params["Dense_1"]
    # The running statistics are 0 and 1 before training, so batch norm does next to nothing.
    inputs = np.float64(images) @ np.float64(first["kernel"])
    last = (1 / (1 + np.exp(-inputs))) @ np.float64(second["kernel"])
    each_unit = np.percentile(last, (15, 50, 85), axis=0)
    np.testing.assert_allclose(metrics["percentiles"], each_unit, rtol=1e-4, atol=1e-5)
    for number, values in enumerate((inputs, last), 1):
        found = [metrics[f"input_{number}_{q}"] for q in (5, 25, 50, 75, 95)]
        wanted = np.percentile(values, (5, 25, 50, 75, 95))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_interval_changes_no_weights():
    often, seldom = collect(eval_every=3)[-1], collect(eval_every=8)[-1]
    for name in ("test_loss", "test_accuracy"):
        np.testing.assert_allclose(often.metrics[name], seldom.metrics[name], rtol=1e-5)


def test_seeds_differ_and_do_not_depend_on_their_number():
    two, one = collect(8)[-1].metrics, collect(8, num_seeds=1)[-1].metrics
    assert two["test_loss"][0] != two["test_loss"][1]
    assert "validation_accuracy" not in two
    # The same images, with other labels: what is right of one is wrong of the other.
    assert 0 < one["test_accuracy"] <= 1 - one["validation_accuracy"]
    np.testing.assert_allclose(two["test_loss"][:1], one["test_loss"], rtol=1e-5)


def test_seeds_one_by_one_are_seeds_side_by_side(rng):
    split = Split(rng.uniform(0, 1, (24, 4)).astype(np.float32), np.arange(24, dtype=np.int32) % 3)
    data = Dataset("made up", split, split, (2, 2, 1))
    model = MLP((6,), 3, batch_norm=True, norm=batch_norm(), activation=nn.relu)
    sizes: dict[str, Any] = {"num_seeds": 2, "num_steps": 5, "batch_size": 8, "eval_every": 3}
    optimizer = optax.sgd(0.1, momentum=0.9)
    for one, other in zip(
        train_seeds(model, optimizer, evaluate, data, **sizes),
        train_seeds(model, optimizer, evaluate, data, across_seeds=one_by_one, **sizes),
        strict=True,
    ):
        assert one.step == other.step and one.metrics.keys() == other.metrics.keys()
        for metric, values in one.metrics.items():
            np.testing.assert_allclose(other.metrics[metric], values, rtol=1e-4)


@pytest.fixture(scope="module")
def compilations():
    """Grows by one with every program that is compiled, or fetched from a folder of them."""
    seen = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: seen.append(name) if "backend_compile" in name else None
    )
    return seen


@pytest.mark.parametrize("across_seeds", [jax.vmap, one_by_one])
def test_all_is_compiled_before_the_first_step_and_once_for_all_trials(across_seeds, compilations):
    data = Dataset("random", Split(IMAGES, LABELS), Split(IMAGES[:8], LABELS[:8]))
    model, sizes = MLP(hidden=(5, 4)), {"num_seeds": 2, "num_steps": 8, "batch_size": 10}

    def compiled(optimizer):
        """How many programs there are by each evaluation."""
        options = {"eval_every": 3, "across_seeds": across_seeds, **sizes}
        evaluations = train_seeds(model, optimizer, evaluate, data, **options)
        return [len(compilations) for _ in evaluations]

    compiled(optax.sgd(0.5))  # what another optimizer shares, such as the stacking of arrays
    compilations.clear()
    optimizer = optax.sgd(0.25)
    first, *later = compiled(optimizer)
    assert 0 < first == later[-1]
    assert compiled(optimizer)[-1] == first
