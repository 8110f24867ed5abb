"""Landscape: verdicts on made-up records, and the arithmetic of what is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.models import MLP
from experiments.common.records import per_seed
from experiments.common.settings import NORMALISED, PLAIN
from experiments.common.sweep import at_rate
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import _deep_linear, landscape
from experiments.lab._explore import along_gradient, covariate_shift, kernels, layers
from experiments.lab.landscape import L1, LINEAR, LINF, NOISY, NORMS, Settings
from tests.experiments.lab._made import judged
from tests.experiments.lab._made import seeds as made_up

SMOOTH = {"width": 0.1, "change": 1.0, "beta": 5.0, "shift": 2.0, "cosine": 0.2, "slow": 20}
ROUGH = {"width": 3.0, "change": 9.0, "beta": 30.0, "shift": 1.0, "cosine": 0.9, "slow": 80}
SEEDS = 10  # fewer can not decide as many tests as there are
SETTINGS = Settings(steps=300, rates=(0.1, 1.0), linear_rates=(1e-3, 1e-2))


def seeds(mean, spread=0.01):
    return made_up(mean, spread, SEEDS)


def network(trial, width, change, beta, shift, cosine, slow):
    """Accuracy is `1 - exp(-step / slow)`."""
    for step in range(0, 301, 10):
        accuracy = 1 - np.exp(-step / seeds(slow, 0.05))
        metrics = {
            "loss_low": np.ones(SEEDS),
            "loss_high": 1 + seeds(width),
            "change": seeds(change),
            "beta": seeds(beta),
            "shift": seeds(shift),
            "shift_cosine": seeds(cosine),
            "loss": seeds(2 - step / 300),
            "test_accuracy": accuracy,
            "validation_accuracy": accuracy,
        }
        yield from per_seed(step, trial, metrics)


def made(plain, **others):
    """All networks, those not named like that with batch norm; the smaller rate is the slower."""
    kinds = {name: others.get(name, others["normalised"]) for name in NORMS} | {PLAIN: plain}
    kinds |= {LINEAR[PLAIN]: plain, LINEAR[NORMALISED]: others["normalised"]}
    records = []
    for name, kind in kinds.items():
        small, large = SETTINGS.linear_rates if name in LINEAR.values() else SETTINGS.rates
        records += network(at_rate(name, large), **kind)
        records += network(at_rate(name, small), **kind | {"slow": 3 * kind["slow"]})
    return records


def verdicts(records):
    return {short: row.verdict for short, row in judged(landscape, records, SETTINGS).items()}


def test_holds_or_fails():
    assert set(verdicts(made(ROUGH, normalised=SMOOTH)).values()) == {HOLDS}
    slow = {NOISY: ROUGH | {"slow": 200}, L1: ROUGH | {"slow": 200}, LINF: ROUGH | {"slow": 200}}
    found = verdicts(made(SMOOTH | {"slow": 50}, normalised=ROUGH, **slow))
    assert set(found.values()) == {FAILS}


def test_other_norms_are_judged_by_themselves():
    found = verdicts(made(ROUGH, normalised=SMOOTH, **{LINF: ROUGH | {"beta": 90.0}}))
    assert [short for short, verdict in found.items() if verdict == IN_PART] == [
        "others as fast",
        "others smooth as well",
    ]


def test_a_rate_at_which_one_network_diverges_counts_for_neither():
    records = made(ROUGH, normalised=SMOOTH)
    for record in records:
        if record["network"] == at_rate(PLAIN, 1.0):
            record |= {"beta": None, "change": None, "loss_high": None, "test_accuracy": 0.1}
    found = judged(landscape, records, SETTINGS)
    assert found["smoother loss"].verdict == HOLDS
    assert "mean over rates 0.1" in found["smoother loss"].tests[0].of
    assert found["noise: still faster"].verdict == HOLDS


def test_divergence_supports_nothing():
    records = made(ROUGH, normalised=SMOOTH)
    kept = ("network", "seed", "step")
    records = [{k: v if k in kept else None for k, v in record.items()} for record in records]
    assert HOLDS not in verdicts(records).values()


def test_noise_that_keeps_it_from_the_target_slows_it_down():
    records = made(ROUGH, normalised=SMOOTH, **{NOISY: SMOOTH | {"slow": 500}})
    row = judged(landscape, records, SETTINGS)["noise: as fast"]
    assert row.verdict == FAILS and f"never in {SEEDS} of {SEEDS}" in row.found


def test_along_the_gradient_of_a_parabola():
    curvature = jnp.array([1.0, 4.0])
    loss_and_grad = jax.value_and_grad(lambda p: 0.5 * jnp.sum(curvature * p["w"] ** 2))
    params = {"w": jnp.array([0.0, 1.0])}  # along the steep axis: gradient 4, beta 4
    _, grads = loss_and_grad(params)
    found = along_gradient(loss_and_grad, params, grads, jnp.array([0.1, 0.5]))
    # w goes to 1 - 4 eta: 0.6 and -1; the loss is 2 w^2, the gradient changes by 16 eta.
    expected = {"loss_low": 0.72, "loss_high": 2.0, "change": 8.0, "beta": 4.0}
    assert {k: float(v) for k, v in found.items()} == pytest.approx(expected, rel=1e-5)


def test_covariate_shift_of_three_layers():
    # L = (a b c - 1)^2 / 2 of layers a, b, c; only what comes before a layer has moved.
    def loss(p):
        return 0.5 * jnp.sum(jnp.prod(jnp.stack([v["kernel"] for v in p.values()])) - 1) ** 2

    weights, rate = np.array([2.0, 3.0, 0.5]), 0.1
    params = {f"Dense_{i}": {"kernel": jnp.full((1, 1), w)} for i, w in enumerate(weights)}
    loss_and_grad = jax.value_and_grad(loss)
    around = (loss_and_grad, params, loss_and_grad(params)[1], jnp.asarray(rate))
    found = covariate_shift(*around, layers(params), kernels)

    def gradient(w):
        return (w.prod() - 1) * w.prod() / w

    before, moved = gradient(weights), weights - rate * gradient(weights)
    after = [gradient(np.append(moved[:i], weights[i:]))[i] for i in (1, 2)]
    assert float(found["shift"]) == pytest.approx(np.abs(after - before[1:]).mean(), rel=1e-5)
    cosine = np.sign(after * before[1:]).mean()
    assert float(found["shift_cosine"]) == pytest.approx(cosine, rel=1e-5)


def test_a_norm_belongs_to_the_layer_it_follows():
    model = MLP((4,) * 11, batch_norm=True)
    params = model.init(jax.random.key(0), jnp.zeros((2, 4)), train=False)["params"]
    of = layers(params)
    assert of["BatchNorm_10"]["scale"] == of["Dense_10"]["kernel"] == 10
    assert [kernel.size for kernel in kernels(params)] == [16] * 11 + [40]


def test_the_deep_linear_network_multiplies_its_matrices(rng):
    kernel = rng.normal(size=(25, 10, 10)).astype(np.float32)
    x = rng.normal(size=(6, 10)).astype(np.float32)
    plain = np.asarray(_deep_linear.output({"kernel": jnp.asarray(kernel)}, jnp.asarray(x)))
    wanted = np.linalg.multi_dot([x.astype(float), *kernel])
    np.testing.assert_allclose(plain, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    affine = {"scale": jnp.full((24, 10), 2.0), "bias": jnp.zeros((24, 10))}
    normalised = _deep_linear.output({"kernel": jnp.asarray(kernel), **affine}, jnp.asarray(x))
    hidden = np.asarray(normalised) @ np.linalg.inv(kernel[-1].astype(float))
    np.testing.assert_allclose(hidden.std(0), 2, rtol=1e-2)


def test_the_deep_linear_network_descends():
    found = list(_deep_linear.descend("deep", True, (1e-4,), seeds=2, steps=4))
    assert [(r["step"], r["seed"]) for r in found] == [(s, i) for s in range(5) for i in (0, 1)]
    assert {r["network"] for r in found} == {at_rate("deep", 1e-4)}
    assert found[8]["loss"] < found[4]["loss"] < found[0]["loss"]
