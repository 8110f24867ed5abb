"""Live parity of layer, RMS, instance and group norm with PyTorch and Haiku.

Both put epsilon inside the root and PyTorch orders groups as here; it has channels on axis 1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from tests._agree import assert_agree

from . import _peers

RMS_EPSILON = float(np.finfo(np.float32).eps)  # PyTorch's default for float32
# name: (function, shape of x, shape of the parameters, epsilon)
NORMS = {
    "layer": (bnjax.layer_norm, (4, 7, 6), (6,), 1e-5),
    "layer, two axes": (functools.partial(bnjax.layer_norm, axes=(1, 2)), (4, 7, 6), (7, 6), 1e-5),
    "rms": (bnjax.rms_norm, (4, 7, 6), (6,), 1e-2),
    "rms, two axes": (
        functools.partial(bnjax.rms_norm, axes=(-2, -1)),
        (4, 7, 6),
        (7, 6),
        RMS_EPSILON,
    ),
    "instance": (functools.partial(bnjax.instance_norm, axis=1), (4, 6, 3, 5), (6,), 1e-5),
    "group": (functools.partial(bnjax.group_norm, axis=1, num_groups=3), (4, 6, 5), (6,), 1e-3),
    "group, one": (functools.partial(bnjax.group_norm, axis=1, num_groups=1), (4, 6), (6,), 1e-5),
}


def draw(name, dtype):
    """x, scale, bias and dy."""
    _, shape, features, _ = NORMS[name]
    rng = np.random.default_rng(0)
    x, dy = rng.normal(1, 2, shape), rng.normal(size=shape)
    scale, bias = rng.uniform(0.5, 1.5, features), rng.normal(size=features)
    return [np.asarray(v, dtype) for v in (x, scale, bias, dy)]


def run(function, *arrays):
    """Output and gradients."""

    @jax.jit
    def exam(x, scale, bias, dy):
        y, pullback = jax.vjp(function, x, scale, bias)
        return named(y, *pullback(dy))

    return exam(*arrays)


def named(*arrays):
    return dict(zip(("y", "dx", "dscale", "dbias"), arrays, strict=True))


def run_bnjax(name, arrays):
    function, *_, epsilon = NORMS[name]
    function = functools.partial(function, epsilon=epsilon)
    if name.startswith("rms"):
        return run(lambda x, scale, bias: function(x, scale), *arrays)
    return run(function, *arrays)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name", NORMS)
def test_torch(name, dtype, tolerance):
    torch = pytest.importorskip("torch")
    fn = torch.nn.functional
    arrays = draw(name, dtype)
    x, scale, bias, dy = (torch.from_numpy(v).requires_grad_() for v in arrays)
    _, _, features, epsilon = NORMS[name]
    kind = name.split(",")[0]
    if kind == "layer":
        y = fn.layer_norm(x, features, scale, bias, epsilon)
    elif kind == "rms":
        eps = None if epsilon == RMS_EPSILON and dtype == "float32" else epsilon
        y = fn.rms_norm(x, features, scale, eps)
    elif kind == "instance":
        layer = torch.nn.InstanceNorm2d(6, eps=epsilon, affine=True)
        y = torch.func.functional_call(layer, {"weight": scale, "bias": bias}, x)
    else:
        y = fn.group_norm(x, 1 if name == "group, one" else 3, scale, bias, epsilon)
    leaves = (x, scale, bias)
    grads = torch.autograd.grad(y, leaves, dy, allow_unused=True)
    want = {k: v.detach().numpy() for k, v in named(y, *grads).items() if v is not None}
    assert ("dbias" not in want) == (kind == "rms")
    with jax.enable_x64(dtype == "float64"):
        got = run_bnjax(name, [jnp.asarray(v) for v in arrays])
    assert_agree({k: got[k] for k in want}, want, tolerance)


@pytest.mark.parametrize("name", ["layer", "layer, two axes", "rms", "instance", "group"])
def test_haiku(name):
    hk = pytest.importorskip("haiku")
    epsilon = NORMS[name][-1]
    affine = {"create_scale": True, "create_offset": True, "eps": epsilon}

    def layer():
        if name == "rms":
            return hk.RMSNorm(-1, eps=epsilon)
        if name == "instance":
            return hk.InstanceNorm(True, True, epsilon, data_format="channels_first")
        if name == "group":
            return hk.GroupNorm(3, data_format="channels_first", **affine)
        two = name == "layer, two axes"
        axis = (1, 2) if two else -1
        return hk.LayerNorm(axis, param_axis=axis, **affine)

    arrays = [jnp.asarray(v) for v in draw(name, "float32")]
    net = hk.without_apply_rng(hk.transform(lambda x: layer()(x)))
    with _peers.relaxed():
        ((module, start),) = net.init(None, arrays[0]).items()

        def function(x, scale, bias):
            params = {"scale": scale, "offset": bias}
            return net.apply({module: {k: params[k].reshape(v.shape) for k, v in start.items()}}, x)

        want = run(function, *arrays)
    assert_agree(run_bnjax(name, arrays), want, 1e-5)
