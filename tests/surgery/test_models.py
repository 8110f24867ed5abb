"""What surgery returns is a linen model: everything that takes one takes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import bnjax.linen
from bnjax.interop import check_batch_norms
from bnjax.surgery import drop_redundant_biases, find_pairs, fold, swap, verify
from bnjax.training import adapt, recalibrate
from tests.surgery.networks import variables_of

X = jnp.asarray(np.random.default_rng(0).normal(3, 2, (24, 4)), jnp.float32)


class Net(nn.Module):
    norm: type = nn.BatchNorm

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4, use_bias=False, name="dense0")(x)
        x = self.norm(not train, epsilon=1e-3, name="norm0")(x)
        x = nn.relu(nn.Dense(4, name="dense1")(x))
        return self.norm(not train, name="norm1")(x)

    def twice(self, x):
        return 2 * self(x)


def swapped(**options):
    variables = variables_of(Net(), X)
    return swap(Net(), variables, bnjax.linen.BatchNorm, **options)


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_what_swap_returns_is_recalibrated(layer_by_layer):
    got, batches = swapped(), [X[:8], X[8:]]
    options = {"layer_by_layer": layer_by_layer}
    new = recalibrate(got.model, got.variables, batches, **options)
    want = recalibrate(Net(bnjax.linen.BatchNorm), got.variables, batches, **options)
    jax.tree.map(np.testing.assert_array_equal, new, want)
    half = adapt(got.model, got.variables, batches, weight=0.5)
    assert not np.allclose(
        half["batch_stats"]["norm0"]["mean"], new["batch_stats"]["norm0"]["mean"]
    )


def test_what_fold_returns_is_recalibrated_and_folded_again():
    model = swapped()
    folded = fold(model.model, model.variables, X, layers="norm0")
    assert folded.difference.max_relative < 1e-5
    new = recalibrate(folded.model, folded.variables, [X])
    assert list(new["batch_stats"]) == ["norm1"]
    again = swap(folded.model, new, "frozen")
    verify((folded.model, new), (again.model, again.variables), [X], tolerance=1e-5)
    dropped = drop_redundant_biases(folded.model, new, X, layers="dense1")
    assert "relu" in dropped.left_alone["dense1",]


def test_surgery_sees_the_layers_as_they_are_now():
    wide = swapped(epsilon=0.5)
    (pair,) = find_pairs(wide.model, wide.variables, X).pairs
    assert pair.options["epsilon"] == 0.5
    frozen = swap(wide.model, wide.variables, "frozen")
    verify((wide.model, wide.variables), (frozen.model, frozen.variables), [X], tolerance=1e-6)


def test_it_is_initialised_bound_and_called_as_the_module():
    model = swapped()
    folded = fold(model.model, model.variables, X)
    shapes = jax.eval_shape(folded.model.init, jax.random.key(0), X)
    assert jax.tree.structure(shapes) == jax.tree.structure(folded.variables)
    y = folded.model.apply(folded.variables, X)
    bound = folded.model.bind(folded.variables)
    np.testing.assert_array_equal(bound(X), y)
    np.testing.assert_array_equal(bound.twice(X), 2 * y)
    np.testing.assert_array_equal(folded.model.apply(folded.variables, X, method="twice"), 2 * y)


def test_its_options_are_checked():
    options = {"norm0": {"epsilon": 1e-3}, "norm1": {"epsilon": 1e-5}}
    check_batch_norms(swapped().model, options, X)
    with pytest.raises(ValueError, match=r"norm0: epsilon is 0.5, must be 0.001"):
        check_batch_norms(swapped(epsilon=0.5).model, options, X)
    model = swapped()
    folded = fold(model.model, model.variables, X)
    check_batch_norms(folded.model, {"norm1": {"epsilon": 1e-5}}, X)


def test_a_model_that_is_but_a_norm_is_swapped_and_recalibrated():
    norm = bnjax.linen.BatchNorm(True)
    new = swap(norm, norm.init(jax.random.key(0), X), bnjax.linen.BatchNorm, epsilon=0.1)
    stats = recalibrate(new.model, new.variables, [X])["batch_stats"]
    np.testing.assert_allclose(stats["var"], X.var(0), rtol=1e-5)
