"""Networks cut by `jax.checkpoint`: the cuts change no gradient, and what is claimed can fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import checkpoint, cuts
from experiments.benchmarks.contestants import OURS
from experiments.benchmarks.counted import HBM, TEMPORARY
from experiments.benchmarks.cuts import (
    CHAIN,
    EACH_BLOCK,
    EACH_LINK,
    FLAX_NOTHING_KEPT,
    NOTHING_KEPT,
    RESIDUAL,
)
from experiments.benchmarks.programs import RESNET
from tests._agree import relaxed

SHAPE = (4, 6, 6, 8)
TINY = {"stages": (1,), "stem": False, "width": 4, "classes": 3}
PROGRAMS = (*cuts.LINKS, RESNET)


@pytest.fixture
def steps(monkeypatch):
    """The steps of a program, small, by what stands in a checkpoint; in float32."""
    monkeypatch.setattr(cuts, "LINKS", {p: (2, *more) for p, (_, *more) in cuts.LINKS.items()})
    monkeypatch.setattr(cuts, "resnets", functools.partial(cuts.resnets, **TINY))
    with relaxed():
        yield functools.partial(cuts.steps, shape=SHAPE, dtype=jnp.float32)


def arguments(steps):
    """The same for each step; no weight is zero, as the scale of a norm may be at the start."""
    params, *rest = steps[OURS].start(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    noise = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    params = jax.tree.map(lambda v, key: v + 0.1 * jax.random.normal(key, v.shape), params, noise)
    leaves = jax.tree.leaves((params, *rest))
    for name, step in steps.items():
        x, *labels = step.data
        data = jax.random.normal(jax.random.key(2), x.shape), *(jnp.zeros(4, int) for _ in labels)
        yield name, step.run, jax.tree.unflatten(jax.tree.structure(step.state), leaves), data


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_cut_changes_no_gradient(program, steps):
    made = {name: step for name, step in steps(program).items() if name != FLAX_NOTHING_KEPT}
    calls = {name: jax.jit(run)(state, *data) for name, run, state, data in arguments(made)}
    for name, got in calls.items():
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(calls[OURS]), strict=True):
            assert np.abs(w).max() > 0
            np.testing.assert_allclose(g, w, atol=1e-5 * float(np.abs(w).max()), err_msg=name)


def policies(step):
    """How many parts keep the statistics alone, as traced."""
    return str(jax.make_jaxpr(step.run)(step.state, *step.data)).count("save_norm_statistics")


def test_a_network_is_cut_where_its_name_says(steps):
    def found(program):
        return {name: policies(step) for name, step in steps(program).items()}

    assert found(CHAIN) == {OURS: 0, EACH_LINK: 2}
    assert found(RESIDUAL) == {OURS: 0, EACH_LINK: 4, EACH_BLOCK: 2}
    cut = {OURS: 0, EACH_LINK: 2, EACH_BLOCK: 1}
    assert found(RESNET) == cut | {NOTHING_KEPT: 0, FLAX_NOTHING_KEPT: 0}


def record(cut, memory, moved, program=CHAIN, target="H100"):
    where = {"part": "counted", "target": target, "program": program, "shape": "1x1"}
    return where | {"dtype": "bfloat16", "contestant": cut, TEMPORARY: memory, HBM: moved}


def test_estimates_are_multiples_of_the_network_without_a_cut():
    records = [
        record(OURS, 20.0, 100.0),
        record(EACH_LINK, 10.0, 110.0),
        record(OURS, 50.0, 100.0, target="TPU v5e"),
        record(EACH_LINK, 25.0, 100.0, target="TPU v5e"),
        record(OURS, 80.0, 100.0, RESNET),
        record(EACH_BLOCK, 20.0, 120.0, RESNET),
        record(FLAX_NOTHING_KEPT, 40.0, 160.0, RESNET),
    ]
    found = checkpoint.estimates(records)
    ratio = checkpoint.ratio
    assert found[ratio("H100", CHAIN, TEMPORARY)].value == 0.5
    assert found[ratio("H100", CHAIN, HBM)].value == pytest.approx(1.1)
    assert found[ratio("TPU v5e", CHAIN, TEMPORARY)].value == 0.5
    assert found[ratio("H100", RESNET, TEMPORARY, EACH_BLOCK)].value == 0.25
    assert found[ratio("H100", RESNET, HBM, EACH_BLOCK, FLAX_NOTHING_KEPT)].value == 0.75
    titles = [panel.title for panel in checkpoint.panels(records)]
    assert titles == 2 * ["H100: 16 convolutions"] + 2 * ["TPU v5e: 16 convolutions"] + 2 * [
        "H100: ResNet-50"
    ]
