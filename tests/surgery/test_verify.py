"""The comparison itself: it must see a wrong surgery, wherever it shows."""

import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.surgery import fold, verify
from tests.surgery.networks import X, linen_network, nnx_network


@pytest.mark.parametrize("network", [linen_network, nnx_network])
def test_a_wrong_fold_is_caught(network):
    model, variables = network()
    folded = fold(model, variables, X)
    wrong = folded.variables
    if network is linen_network:
        wrong["params"]["block2"]["conv3"]["bias"] += 0.05
    else:
        wrong["block2"]["convs"][2]["bias"].set_value(wrong["block2"]["convs"][2]["bias"] + 0.05)
    with pytest.raises(ValueError, match=r"largest difference .* \(batch 0 of 1\) exceeds tolera"):
        verify((model, variables), (folded.model, wrong), [X])
    loud = verify((model, variables), (folded.model, wrong), [X], tolerance=None)
    assert loud.max_relative > 0.01


def test_the_largest_difference_over_batches_and_outputs(rng):
    batches = [rng.normal(size=(4, 3)).astype(np.float32) for _ in range(3)]

    def before(x):
        return {"a": 1e4 * x, "b": (10 * x, x[0, 0])}

    def after(x):
        third = jnp.all(x == batches[2])
        return {"a": 1e4 * x + 8, "b": (10 * x.at[1, 1].add(jnp.where(third, 0.5, 0.0)), x[0, 0])}

    got = verify(before, after, iter(batches), tolerance=None)
    np.testing.assert_allclose(got.max_abs, 8, rtol=1e-3)
    np.testing.assert_allclose(got.max_relative, 0.5 / np.std(batches[2]), rtol=1e-5)
    assert (got.batch, got.output, got.batches) == (2, "['b'][0]", 3)
    assert str(got).endswith("of the standard deviation (batch 2 of 3, ['b'][0])")


def test_an_offset_does_not_hide_a_difference(rng):
    x = rng.normal(1000, 1, (50,)).astype(np.float32)
    with pytest.raises(ValueError, match=r"exceeds tolerance=0\.001"):
        verify(lambda x: x, lambda x: x + 0.1, [x])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["before", "after", "both"])
def test_what_is_not_finite_is_an_error_even_if_both_have_it(value, which):
    def broken(x):
        return x.at[0].set(value)

    networks = [broken if which in (name, "both") else lambda x: x for name in ("before", "after")]
    first = "before" if which == "both" else which
    with pytest.raises(ValueError, match=rf"{first}: 1 of 4 values are infinite or NaN in batch 1"):
        verify(
            lambda x: x if x.size == 3 else networks[0](x),
            lambda x: x if x.size == 3 else networks[1](x),
            [jnp.ones(3), jnp.ones(4)],
            tolerance=None,
        )


def test_constant_outputs_have_a_relative_difference_too():
    assert verify(lambda x: x, lambda x: x, [jnp.ones(3)]).max_relative == 0
    assert verify(lambda x: 0 * x, lambda x: 0 * x, [jnp.ones(3)]).max_relative == 0
    got = verify(lambda x: 2 * x, lambda x: 3 * x, [jnp.ones(3)], tolerance=None)
    assert got.max_relative == 0.5
    assert (
        verify(lambda x: 0 * x, lambda x: x, [jnp.ones(3)], tolerance=None).max_relative == np.inf
    )


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(ValueError, match="batches is empty"):
        verify(jnp.sin, jnp.sin, iter([]))
    with pytest.raises(ValueError, match="differ in structure"):
        verify(lambda x: x, lambda x: (x,), [X])
    with pytest.raises(ValueError, match=r"shape \(2, 6, 6, 3\) before and \(6, 6, 3\) after"):
        verify(lambda x: x, lambda x: x[0], [X])
    with pytest.raises(TypeError, match=r"functions or pairs \(model, variables\), got int"):
        verify(jnp.sin, 3, [X])


def test_batches_of_several_arguments_and_keywords_for_the_call():
    def network(x, y, *, train):
        return x + y if not train else x

    assert verify(network, network, [(X, X)], train=False).max_abs == 0
    model, variables = linen_network()
    assert verify((model, variables), (model, variables), [X], train=False).max_abs == 0
