"""Verdicts on made-up ranks, gradients and branches; the arithmetic of what is measured."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.settings import NORMALISED, PLAIN
from experiments.common.verdicts import FAILS, HOLDS, IN_PART
from experiments.lab import rank_collapse
from experiments.lab.rank_collapse import LINEAR, RELU, RESIDUAL, YANG
from tests.experiments.lab._made import judged, logged, seeds

SETTINGS = rank_collapse.RankSettings(depth=20)
EXPLODES = f"explodes ×{YANG:.2f} a layer"


def made(ranks, growth=YANG, power=0.5):
    """Ranks of ReLU with and without batch norm, linear with and without."""
    records = []
    names = [f"{kind} {network}" for kind in (RELU, LINEAR) for network in (NORMALISED, PLAIN)]
    for layer in range(2, SETTINGS.depth + 1):
        for name, rank in zip(names, ranks, strict=True):
            metrics = {"rank": rank * seeds(1), "centred_rank": rank * seeds(1)}
            if RELU in name:
                factor = growth if NORMALISED in name else 1.0
                metrics["gradient"] = factor ** (SETTINGS.depth - layer) * seeds(1)
            records += logged(name, layer, **metrics)
        for network, slope in ((NORMALISED, power), (PLAIN, 0.0)):
            ratio = (layer - 1.0) ** slope * seeds(1)
            grown = {"skip_to_branch": ratio, "gradient": ratio}
            records += logged(f"{RESIDUAL} {network}", layer, **grown)
    return records


@pytest.mark.parametrize(
    "ranks, expected",
    [
        ((16, 1, 11, 1.5), HOLDS),
        ((16, 1, 1.5, 11), IN_PART),
        ((1, 1, 1, 1), FAILS),
        ((np.nan, 1, np.nan, 1), FAILS),
    ],
)
def test_a_higher_rank_holds(ranks, expected):
    assert judged(rank_collapse, made(ranks), SETTINGS)["avoids rank collapse"].verdict == expected


@pytest.mark.parametrize("growth, expected", [(YANG, HOLDS), (1.0, FAILS), (1.3, FAILS)])
def test_gradients_grow_as_in_theory(growth, expected):
    rows = judged(rank_collapse, made((16, 1, 11, 1.5), growth=growth), SETTINGS)
    assert rows[EXPLODES].verdict == expected


@pytest.mark.parametrize("power, expected", [(0.5, HOLDS), (0.0, FAILS), (1.0, FAILS)])
def test_branches_shrink_with_the_root(power, expected):
    rows = judged(rank_collapse, made((16, 1, 11, 1.5), power=power), SETTINGS)
    assert rows["scales branches down"].verdict == expected


def test_effective_rank_counts_directions():
    equal = np.vstack([np.eye(4), -np.eye(4)])
    one = np.ones((8, 1)) * np.array([1.0, 2, 3, 4])
    found = rank_collapse.effective_rank(jnp.float32([equal, one, 1e-30 * equal]))
    np.testing.assert_allclose(found, [4, 1, 4], rtol=1e-5)
    centred = rank_collapse.of_layers(jnp.float32(5 + equal)[None, None])
    assert centred["centred_rank"][0, 0] == pytest.approx(4) and centred["rank"][0, 0] < 1.1


def test_skip_connection_over_branch_is_a_ratio_of_root_mean_squares():
    seen = {"skip": jnp.full((1, 2, 3, 4), -6.0), "branch": jnp.full((1, 2, 3, 4), 2.0)}
    np.testing.assert_allclose(rank_collapse.of_blocks(seen)["skip_to_branch"], [[3, 3]])
