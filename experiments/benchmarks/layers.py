"""Batch norm as each JAX library has it: one builder a library, from a `Problem` to a `Layer`.

With `axis_name` a layer merges its statistics over the devices of that mesh axis.
"""

import functools
import importlib
import os

import jax
import jax.numpy as jnp

from experiments.benchmarks.problem import DECAY, EPSILON, Layer, Problem


def core(problem: Problem, **options) -> Layer:
    import bnjax

    options |= {"axis": problem.axis, "decay": DECAY, "epsilon": EPSILON}
    apply = functools.partial(bnjax.batch_norm, unseen="allow", **options)

    def train(x, scale, bias, stats):
        return apply(x, scale, bias, stats, train=True)

    def evaluate(x, scale, bias, stats):
        return apply(x, scale, bias, stats, train=False)[0]

    return Layer(train, evaluate, bnjax.init_batch_stats(problem.scale.size))


def linen(problem: Problem, *, library: str, **options) -> Layer:
    module = importlib.import_module(library).BatchNorm
    options |= {"axis": problem.axis, "momentum": DECAY, "epsilon": EPSILON}
    layer = module(dtype=problem.x.dtype, **options)

    def variables(scale, bias, stats):
        return {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}

    def train(x, scale, bias, stats):
        y, changed = layer.apply(
            variables(scale, bias, stats), x, use_running_average=False, mutable=["batch_stats"]
        )
        return y, changed["batch_stats"]

    def evaluate(x, scale, bias, stats):
        return layer.apply(variables(scale, bias, stats), x, use_running_average=True)

    features = problem.scale.size
    return Layer(train, evaluate, {"mean": jnp.zeros(features), "var": jnp.ones(features)})


def nnx(problem: Problem, *, library: str, **options) -> Layer:
    from flax import nnx

    module = importlib.import_module(library).BatchNorm
    options |= {"axis": problem.axis, "momentum": DECAY, "epsilon": EPSILON}
    layer = module(problem.scale.size, dtype=problem.x.dtype, **options, rngs=nnx.Rngs(0))
    graph, _, start = nnx.split(layer, nnx.Param, nnx.BatchStat)

    def call(x, scale, bias, stats, use_running_average):
        params = nnx.State({"scale": nnx.Param(scale), "bias": nnx.Param(bias)})
        bound = nnx.merge(graph, params, stats, copy=True)
        y = bound(x, use_running_average=use_running_average)
        return y, nnx.state(bound, nnx.BatchStat)

    def train(x, scale, bias, stats):
        return call(x, scale, bias, stats, False)

    def evaluate(x, scale, bias, stats):
        return call(x, scale, bias, stats, True)[0]

    return Layer(train, evaluate, start)


def haiku(problem: Problem, axis_name: str | None = None) -> Layer:
    import haiku

    layout = "channels_first" if problem.axis == 1 and problem.x.ndim > 2 else "channels_last"
    options = {"decay_rate": DECAY, "eps": EPSILON, "data_format": layout}

    def forward(x, is_training, axis_name=axis_name):
        options["cross_replica_axis"] = axis_name
        layer = haiku.BatchNorm(create_scale=True, create_offset=True, **options)
        return layer(x, is_training)

    net = haiku.transform_with_state(forward)
    # Outside the mesh, where no axis has a name.
    params, state = jax.jit(net.init, static_argnums=(2, 3))(None, problem.x, True, None)
    like = params["batch_norm"]["scale"]

    def bind(scale, bias):
        ready = (v.reshape(like.shape).astype(like.dtype) for v in (scale, bias))
        return {"batch_norm": dict(zip(("scale", "offset"), ready, strict=True))}

    def train(x, scale, bias, stats):
        return net.apply(bind(scale, bias), stats, None, x, True)

    def evaluate(x, scale, bias, stats):
        return net.apply(bind(scale, bias), stats, None, x, False)[0]

    return Layer(train, evaluate, state)


def equinox(problem: Problem) -> Layer:
    """Equinox sees one example at a time under vmap, features first."""
    import equinox

    layer, state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(
        problem.scale.size, axis_name="batch", mode="batch", eps=EPSILON, momentum=DECAY
    )

    def train(x, scale, bias, stats):
        bound = equinox.tree_at(lambda m: (m.weight, m.bias), layer, (scale, bias))
        apply = jax.vmap(bound, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, stats = apply(jnp.moveaxis(x, problem.axis, 1), stats)
        return jnp.moveaxis(y, 1, problem.axis).astype(x.dtype), stats

    return Layer(train, None, state)


def keras(problem: Problem) -> Layer:
    os.environ.setdefault("KERAS_BACKEND", "jax")  # before its import
    import keras

    policy = "float32" if problem.x.dtype == jnp.float32 else f"mixed_{problem.x.dtype}"
    layer = keras.layers.BatchNormalization(
        axis=problem.axis, momentum=DECAY, epsilon=EPSILON, dtype=policy
    )
    layer.build(problem.x.shape)

    def train(x, scale, bias, stats):
        return layer.stateless_call([scale, bias], stats, x, training=True)

    def evaluate(x, scale, bias, stats):
        return layer.stateless_call([scale, bias], stats, x, training=False)[0]

    return Layer(train, evaluate, [v.value for v in layer.non_trainable_variables])
