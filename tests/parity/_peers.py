"""The same little experiment, run with bnjax and with every library it is compared with.

An experiment feeds three batches through one batch norm in training mode, takes the gradients of
the first batch for a random cotangent, and evaluates the first batch at the end. Each library is
one function from `Inputs` to a dictionary of the same keys:

``y``, ``dx``, ``dscale``, ``dbias``
    training output and gradients of the first batch,
``mean_1``, ``var_1``, ``mean_3``, ``var_3``
    running statistics after the first and the third batch,
``y_eval``
    output in evaluation mode, with the statistics after the third batch.

Where the conventions of a library differ, its function translates: `decay` is the weight of the
old value everywhere here, and `axis` is the kept feature axis.
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

import bnjax
from bnjax.testing import relative_error
from tests._agree import relaxed  # noqa: F401 (for every test against a peer)

KEYS = ("y", "dx", "dscale", "dbias", "mean_1", "var_1", "mean_3", "var_3", "y_eval")


@dataclasses.dataclass(frozen=True)
class Case:
    """Shape and conventions of one experiment."""

    name: str
    shape: tuple[int, ...]
    axis: int = -1
    decay: float = 0.9
    epsilon: float = 1e-5
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What goes in. Arrays are NumPy and already have the dtype of the experiment."""

    x: np.ndarray  # (3, *shape): three batches
    dy: np.ndarray  # shape
    scale: np.ndarray  # (features,), float32 at least
    bias: np.ndarray  # (features,), float32 at least
    axis: int
    decay: float
    epsilon: float


CASES = (
    Case("dense", (7, 5)),
    Case("nhwc", (4, 3, 2, 5), seed=1),
    Case("nchw", (4, 5, 3, 2), axis=1, seed=2),
    Case("sequence", (4, 5, 6), axis=1, decay=0.7, epsilon=1e-3, seed=3),
)

# The lecture's BatchNorm1d(16) and BatchNorm2d(16) are fed uniform numbers of these shapes.
LECTURE = {"lecture_1d": (100, 16, 784), "lecture_2d": (1, 16, 7, 7)}


def pairs(dtypes) -> list[tuple[Case, str]]:
    """Every case in the first dtype, and one case in each of the others."""
    first, *others = dtypes
    return [(case, first) for case in CASES] + [(CASES[2], dtype) for dtype in others]


def name(v) -> str:
    """For the ids of parametrised tests."""
    return getattr(v, "name", str(v))


def draw(case: Case, dtype=np.float64) -> Inputs:
    """Random inputs; channels differ in location and spread, and so do the three batches."""
    rng = np.random.default_rng(case.seed)
    features = case.shape[case.axis]
    kept = [features if a == case.axis % len(case.shape) else 1 for a in range(len(case.shape))]
    location, spread = rng.normal(size=kept), rng.uniform(0.5, 2.0, kept)
    x = location + spread * rng.normal(size=(3, *case.shape)) + rng.normal(size=(3, *kept))
    param_dtype = np.promote_types(dtype, np.float32)
    return Inputs(
        x=x.astype(dtype),
        dy=rng.normal(size=case.shape).astype(dtype),
        scale=rng.uniform(0.5, 1.5, features).astype(param_dtype),
        bias=rng.normal(size=features).astype(param_dtype),
        axis=case.axis,
        decay=case.decay,
        epsilon=case.epsilon,
    )


def lecture_inputs(shape: tuple[int, ...]) -> Inputs:
    """One batch, redrawn from a seed: RandomState promises the same numbers for ever."""
    rng = np.random.RandomState(0)
    x, dy = rng.uniform(size=(1, *shape)), rng.uniform(size=shape)
    return Inputs(x, dy, np.ones(16), np.zeros(16), axis=1, decay=0.9, epsilon=1e-5)


def relative_errors(got: dict, want: dict) -> dict[str, float]:
    """The relative error of every result that the peer has."""
    return {key: relative_error(got[key], value) for key, value in want.items()}


def run_bnjax(inputs: Inputs, *, ddof: int = 0, debias: bool = False, mask=None) -> dict:
    """The functional core; the other runners are compared with this one."""
    scale, bias = jnp.asarray(inputs.scale), jnp.asarray(inputs.bias)
    options = {"epsilon": inputs.epsilon, "axis": inputs.axis, "decay": inputs.decay}
    options |= {"ddof": ddof, "debias": debias}

    def train(x, scale, bias, stats):
        return bnjax.batch_norm(x, scale, bias, stats, train=True, mask=mask, **options)

    def evaluate(x, stats):
        return bnjax.batch_norm(x, scale, bias, stats, train=False, **options)[0]

    stats = bnjax.init_batch_stats(scale.shape[0], scale.dtype)
    return _experiment(inputs, train, evaluate, stats, scale, bias)


def run_flax_linen(inputs: Inputs, module=None, mask=None) -> dict:
    """`module` is a linen BatchNorm class, Flax's own by default."""
    from flax import linen

    layer = (module or linen.BatchNorm)(
        axis=inputs.axis,
        momentum=inputs.decay,
        epsilon=inputs.epsilon,
        param_dtype=inputs.scale.dtype,
    )
    scale, bias = jnp.asarray(inputs.scale), jnp.asarray(inputs.bias)

    def train(x, scale, bias, stats):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        options = {"use_running_average": False, "mask": mask, "mutable": ["batch_stats"]}
        y, changed = layer.apply(variables, x, **options)
        return y, changed["batch_stats"]

    def evaluate(x, stats):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        return layer.apply(variables, x, use_running_average=True)

    variables = layer.init(jax.random.key(0), jnp.asarray(inputs.x[0]), use_running_average=False)
    stats = _start(variables["batch_stats"], scale.dtype)
    return _experiment(inputs, train, evaluate, stats, scale, bias)


def run_flax_nnx(inputs: Inputs, module=None, mask=None) -> dict:
    """`module` is an nnx BatchNorm class, Flax's own by default."""
    from flax import nnx

    scale, bias = jnp.asarray(inputs.scale), jnp.asarray(inputs.bias)
    features = scale.shape[0]
    layer = (module or nnx.BatchNorm)(
        features,
        axis=inputs.axis,
        momentum=inputs.decay,
        epsilon=inputs.epsilon,
        param_dtype=inputs.scale.dtype,
        rngs=nnx.Rngs(0),
    )
    graph, _, start = nnx.split(layer, nnx.Param, nnx.BatchStat)

    def call(x, scale, bias, stats, **options):
        # A fresh merge each time keeps the experiment pure.
        params = nnx.State({"scale": nnx.Param(scale), "bias": nnx.Param(bias)})
        module = nnx.merge(graph, params, stats, copy=True)
        y = module(x, **options)
        return y, nnx.state(module, nnx.BatchStat)

    def train(x, scale, bias, stats):
        return call(x, scale, bias, stats, use_running_average=False, mask=mask)

    def evaluate(x, stats):
        return call(x, scale, bias, stats, use_running_average=True)[0]

    return _experiment(inputs, train, evaluate, _start(start, scale.dtype), scale, bias)


def run_haiku(inputs: Inputs) -> dict:
    """Haiku keeps debiased averages, so the first update replaces the start altogether."""
    import haiku

    channels_first = inputs.axis == 1 and inputs.x[0].ndim > 2
    layout = "channels_first" if channels_first else "channels_last"

    def forward(x, is_training):
        options = {"create_scale": True, "create_offset": True, "data_format": layout}
        layer = haiku.BatchNorm(decay_rate=inputs.decay, eps=inputs.epsilon, **options)
        return layer(x, is_training)

    net = haiku.transform_with_state(forward)
    params, state = jax.jit(net.init, static_argnums=2)(None, inputs.x[0], True)
    shape = params["batch_norm"]["scale"].shape

    def train(x, scale, bias, stats):
        params = {"batch_norm": {"scale": scale.reshape(shape), "offset": bias.reshape(shape)}}
        return net.apply(params, stats, None, x, True)

    def evaluate(x, stats):
        params = {"batch_norm": {"scale": scale.reshape(shape), "offset": bias.reshape(shape)}}
        return net.apply(params, stats, None, x, False)[0]

    def read(state):
        averages = (state[f"batch_norm/~/{name}_ema"]["average"] for name in ("mean", "var"))
        return tuple(average.reshape(-1) for average in averages)

    scale, bias = (jnp.asarray(v, inputs.x.dtype) for v in (inputs.scale, inputs.bias))
    return _experiment(inputs, train, evaluate, state, scale, bias, read)


def run_equinox(inputs: Inputs) -> dict:
    """Equinox sees one example at a time under vmap, features first.

    Its ``mode="batch"`` divides both averages by ``1 - decay**t`` at evaluation, although the
    variance starts at 1 and not at 0: the reported ``var_t`` is the corrected one, without the
    ``decay**t / (1 - decay**t)`` that this leaves behind, and ``y_eval`` is left out.
    """
    import equinox

    scale, bias = jnp.asarray(inputs.scale), jnp.asarray(inputs.bias)
    options = {"eps": inputs.epsilon, "momentum": inputs.decay, "dtype": scale.dtype}
    layer, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(
        scale.shape[0], axis_name="batch", mode="batch", **options
    )

    def train(x, scale, bias, stats):
        bound = equinox.tree_at(lambda m: (m.weight, m.bias), layer, (scale, bias))
        apply = jax.vmap(bound, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, stats = apply(jnp.moveaxis(x, inputs.axis, 1), stats)
        return jnp.moveaxis(y, 1, inputs.axis), stats

    def read(state):
        mean, var = state.get(layer.batch_state_index)
        left = layer.momentum ** state.get(layer.batch_counter)
        return mean / (1 - left), (var - left) / (1 - left)

    return _experiment(inputs, train, None, state, scale, bias, read)


def run_keras(inputs: Inputs) -> dict:
    """Keras with its JAX backend, by way of ``stateless_call``."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    layer = keras.layers.BatchNormalization(
        axis=inputs.axis, momentum=inputs.decay, epsilon=inputs.epsilon, dtype=str(inputs.x.dtype)
    )
    layer.build(inputs.x[0].shape)
    scale, bias = jnp.asarray(inputs.scale), jnp.asarray(inputs.bias)
    start = [v.value for v in layer.non_trainable_variables]

    def train(x, scale, bias, stats):
        return layer.stateless_call([scale, bias], stats, x, training=True)

    def evaluate(x, stats):
        return layer.stateless_call([scale, bias], stats, x, training=False)[0]

    return _experiment(inputs, train, evaluate, start, scale, bias, read=tuple)


def run_torch(inputs: Inputs, *, cumulative: bool = False) -> dict:
    """PyTorch wants features at axis 1, stores the sample variance, and has momentum 1 - decay."""
    import torch

    def tensor(a):
        # NumPy has no bfloat16 that torch knows; float32 holds it exactly.
        wide = torch.from_numpy(np.ascontiguousarray(a, np.promote_types(a.dtype, np.float32)))
        return wide.to(getattr(torch, a.dtype.name))

    def features_first(a):
        return tensor(np.moveaxis(a, inputs.axis, 1))

    def back(t):
        wide = t.detach().to(torch.promote_types(t.dtype, torch.float32)).numpy()
        return np.moveaxis(wide, 1, inputs.axis).astype(inputs.x.dtype)

    kind = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d"}[inputs.x[0].ndim]
    momentum = None if cumulative else 1 - inputs.decay
    options = {"eps": inputs.epsilon, "momentum": momentum}
    layer = getattr(torch.nn, kind)(len(inputs.scale), **options).to(tensor(inputs.scale).dtype)
    layer.weight.data, layer.bias.data = tensor(inputs.scale), tensor(inputs.bias)

    x = features_first(inputs.x[0]).requires_grad_()
    y = layer(x)
    leaves = (x, layer.weight, layer.bias)
    dx, dscale, dbias = torch.autograd.grad(y, leaves, features_first(inputs.dy))
    out = {"y": back(y), "dx": back(dx), "dscale": dscale.numpy(), "dbias": dbias.numpy()}
    for step in (1, 2, 3):
        if step > 1:
            layer(features_first(inputs.x[step - 1]))
        out[f"mean_{step}"] = layer.running_mean.numpy().copy()
        out[f"var_{step}"] = layer.running_var.numpy().copy()
    out["y_eval"] = back(layer.eval()(x))
    return {key: out[key] for key in KEYS}


def torch_second_order(inputs: Inputs, v: np.ndarray) -> np.ndarray:
    """Derivative of ``sum(dx * v)`` with respect to x: PyTorch's double backward."""
    import torch

    x = torch.from_numpy(inputs.x[0]).requires_grad_()
    scale, bias, dy = (torch.from_numpy(a) for a in (inputs.scale, inputs.bias, inputs.dy))
    moved = torch.movedim(x, inputs.axis, 1)
    y = torch.nn.functional.batch_norm(
        moved, None, None, scale, bias, training=True, eps=inputs.epsilon
    )
    loss = (torch.movedim(y, 1, inputs.axis) * dy).sum()
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad((dx * torch.from_numpy(v)).sum(), x)[0].numpy()


def _experiment(inputs, train, evaluate, stats, scale, bias, read=None) -> dict:
    """Drive a pair of pure functions; `read` takes the two running statistics out of a state."""
    read = read or _mean_and_var

    @jax.jit
    def step(x, dy, stats):
        forward = functools.partial(train, stats=stats)
        y, vjp, stats = jax.vjp(forward, x, scale, bias, has_aux=True)
        return [y, *vjp(dy.astype(y.dtype))], stats

    out, stats = step(inputs.x[0], inputs.dy, stats)
    out += read(stats)
    for x in inputs.x[1:]:
        stats = step(x, inputs.dy, stats)[1]
    out += read(stats)
    out += [] if evaluate is None else [jax.jit(evaluate)(inputs.x[0], stats)]
    return {key: np.asarray(value) for key, value in zip(KEYS, out, strict=False)}


def _start(stats, dtype):
    # Flax creates float32 statistics even for float64 input; 0.9 times that would be rounded.
    return jax.tree.map(lambda leaf: leaf.astype(dtype), stats)


def _mean_and_var(stats):
    if hasattr(stats, "mean"):
        stats = {"mean": stats.mean, "var": stats.var}
    return tuple(
        v.get_value() if hasattr(v, "get_value") else v for v in (stats["mean"], stats["var"])
    )
