"""Every warning names the line of the user that it is about."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import bnjax
from bnjax import linen as bnn
from bnjax import nnx as bnnx

pytestmark = pytest.mark.compiled("quickly")

X = jnp.ones((1, 4))
STATS = bnjax.init_batch_stats(4)
TRAIN = {"use_running_average": False, "single_value": "warn"}
UNSEEN = {"use_running_average": True, "debias": True}

FUNCTIONS = {
    "single value": lambda x: bnjax.batch_norm(
        x, None, None, STATS, train=True, single_value="warn"
    ),
    "unseen": lambda x: bnjax.batch_norm(x, None, None, STATS, train=False),
    "renorm": lambda x: bnjax.batch_renorm(x, None, None, STATS, train=True, single_value="warn"),
    "renorm, unseen": lambda x: bnjax.batch_renorm(x, None, None, STATS, train=False),
    "layer": lambda x: bnjax.layer_norm(x[:, :1], None, None),
    "instance": lambda x: bnjax.instance_norm(x, None, None),
    "group": lambda x: bnjax.group_norm(x, None, None, num_groups=4),
}
LAYERS = {
    "batch": ("BatchNorm", TRAIN),
    "unseen": ("BatchNorm", UNSEEN),
    "renorm": ("BatchRenorm", TRAIN),
    "instance": ("InstanceNorm", {}),
    "group": ("GroupNorm", {"num_groups": 4}),
}


def lines(call):
    """Where the warnings of ``call`` point to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(w.filename, w.lineno) for w in caught]


def here():
    """The line of the caller, as ``lines`` gives it."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return [(__file__, frame.f_back.f_lineno)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_a_function(name):
    fn = FUNCTIONS[name]
    first = fn.__code__.co_firstlineno
    calls = (lambda: fn(X), lambda: jax.jit(fn)(X), lambda: jax.vmap(fn)(X[None]))
    for call in calls:
        ((file, line),) = lines(call)
        assert file == __file__ and first <= line <= first + 2


@pytest.mark.parametrize("name", LAYERS)
def test_of_a_linen_module(name):
    kind, options = LAYERS[name]
    norm = getattr(bnn, kind)(**options)
    variables = norm.init(jax.random.key(0), X)
    assert lines(lambda: norm.apply(variables, X, mutable=["batch_stats"])) == here()

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return norm.copy()(x)

    net = Net()
    variables = net.init(jax.random.key(0), X)
    ((file, line),) = lines(lambda: net.apply(variables, X, mutable=["batch_stats"]))
    assert (file, line) == (__file__, Net.__call__.__wrapped__.__code__.co_firstlineno + 2)


@pytest.mark.parametrize("name", LAYERS)
def test_of_an_nnx_module(name):
    kind, options = LAYERS[name]
    norm = getattr(bnnx, kind)(4, rngs=nnx.Rngs(0), **options)
    assert lines(lambda: norm(X)) == here()
    if name != "unseen":  # under jit nobody knows the count
        assert lines(lambda: nnx.jit(lambda n, x: n(x))(norm, X)) == here()
