"""What is linen's own about its feature norms. What nnx promises too: tests/conformance."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax import linen
from tests.conformance._feature_norms import NORMS, SHAPE

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(2, 3, SHAPE), jnp.float32)


def ours(norm, **fields):
    return getattr(linen, norm)(**NORMS[norm] | fields)


@pytest.mark.parametrize("norm", NORMS)
def test_initialising_needs_no_axis_and_no_more_than_one_value(norm):
    module = ours(norm, axis_name="lane", **({"num_groups": 6} if norm == "GroupNorm" else {}))
    small = jnp.ones((1, 1, 6)) if norm in ("InstanceNorm", "GroupNorm") else jnp.ones((1, 6))
    variables = module.init(KEY, small)
    assert variables["params"]["scale"].shape == (6,)
    with pytest.raises(NameError, match="lane"):
        module.apply(variables, small)


def test_parameters_of_another_shape_are_refused():
    params = {"scale": jnp.ones(5), "bias": jnp.zeros(5)}
    with pytest.raises(Exception, match="shape"):
        linen.LayerNorm().apply({"params": params}, X)


def test_a_feature_axis_that_the_input_lacks_is_named():
    with pytest.raises(ValueError, match=r"feature_axes=4 is out of range"):
        linen.LayerNorm(feature_axes=4).init(KEY, X)


@pytest.mark.parametrize("norm", NORMS)
def test_only_the_call_is_a_call_to_flax(norm):
    called = []

    def record(method, args, kwargs, context):
        called.append(context.method_name)
        return method(*args, **kwargs)

    with nn.intercept_methods(record):
        ours(norm).init(KEY, X)
    assert called == ["__call__"]
    table = nn.tabulate(ours(norm), KEY, compute_flops=True, compute_vjp_flops=True)(X)
    assert f"Total Parameters: {6 if norm == 'RMSNorm' else 12}" in table


class Net(nn.Module):
    """Norms as users write them, one after the other."""

    @nn.compact
    def __call__(self, x):
        for norm in NORMS:
            x = ours(norm)(nn.relu(nn.Dense(6)(x)))
        return nn.Dense(3)(x.mean((1, 2)))


def test_inside_a_model_under_jit_and_grad():
    params = Net().init(KEY, X)["params"]
    assert set(NORMS) <= {name.removesuffix("_0") for name in params}

    @jax.jit
    def step(params):
        loss = lambda params: jnp.mean(jnp.square(apply_net(params) - 1))  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

    def apply_net(params):
        return Net().apply({"params": params}, X)

    losses = []
    for _ in range(30):
        value, params = step(params)
        losses.append(float(value))
    assert losses[-1] < 0.1 * losses[0]
