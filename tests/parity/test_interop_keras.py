"""Weights to and from live Keras models: they compute and train on the same."""

import os

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import bnjax.nnx
from bnjax.interop import batch_norm_options, check_batch_norms, from_keras, to_keras
from bnjax.linen import BatchNorm
from bnjax.testing import relative_error

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")

layers = keras.layers


pytestmark = pytest.mark.usefixtures("relaxed")


def randomized(rng, model):
    """The model with random parameters and running statistics."""
    weights = [
        rng.uniform(0.5, 2, w.shape) if w.name == "moving_variance" else rng.normal(size=w.shape)
        for w in model.weights
    ]
    model.set_weights(weights)
    return model


def values(model):
    return [keras.ops.convert_to_numpy(w.value) for w in model.weights]


def template(model, x, **kwargs):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), x, **kwargs))


class Separable(nn.Module):
    names: tuple[str, str] = ("depthwise", "pointwise")
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        groups = {"feature_group_count": 4, "use_bias": False, "padding": "VALID"}
        x = nn.Conv(8, (3, 3), name=self.names[0], **groups)(x)
        return nn.Conv(5, (1, 1), use_bias=self.use_bias, name=self.names[1])(x)


# Keras's layer, linen's, and options of from_keras. As many channels in as out where axes may be
# exchanged, so that only the values tell.
SINGLE = {
    "dense": (lambda: layers.Dense(4), lambda: nn.Dense(4), {}),
    "conv": (
        lambda: layers.Conv2D(4, (3, 2), 2, "same"),
        lambda: nn.Conv(4, (3, 2), 2, "SAME"),
        {},
    ),
    "grouped": (
        lambda: layers.Conv2D(6, 3, groups=2),
        lambda: nn.Conv(6, (3, 3), padding="VALID", feature_group_count=2),
        {},
    ),
    "depthwise": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        lambda: nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4),
        {"depthwise": ".*"},
    ),
    "transposed": (
        lambda: layers.Conv2DTranspose(4, (3, 2), 2),
        lambda: nn.ConvTranspose(4, (3, 2), (2, 2), "VALID"),
        {"transposed": ".*"},
    ),
    "transposed kernel": (
        lambda: layers.Conv2DTranspose(4, (3, 2), 2),
        lambda: nn.ConvTranspose(4, (3, 2), (2, 2), "VALID", transpose_kernel=True),
        {"transposed": False},
    ),
    # The type tells.
    "transposed by type": (
        lambda: layers.Conv2DTranspose(4, (3, 2), 2),
        lambda: nn.ConvTranspose(4, (3, 2), (2, 2), "VALID"),
        {},
    ),
    "transposed kernel by shape": (
        lambda: layers.Conv2DTranspose(5, (3, 2), 2),
        lambda: nn.ConvTranspose(5, (3, 2), (2, 2), "VALID", transpose_kernel=True),
        {},
    ),
    "depthwise by type": (
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
        lambda: nn.Conv(8, (3, 3), padding="VALID", feature_group_count=4),
        {},
    ),
    "separable": (
        lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2),
        lambda: Separable(),
        {},
    ),
    "separable without bias": (
        lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2, use_bias=False),
        lambda: Separable(use_bias=False),
        {},
    ),
    "separable under other names": (
        lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2),
        lambda: Separable(names=("a", "b")),
        {"rename": [("depthwise$", "a"), ("pointwise$", "b")]},
    ),
    "layer norm of a map": (
        lambda: layers.LayerNormalization((1, 2, 3), 1e-3),
        lambda: nn.LayerNorm(1e-3, reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3)),
        {},
    ),
    "batch norm": (
        lambda: layers.BatchNormalization(),
        lambda: BatchNorm(use_running_average=True, epsilon=1e-3),
        {},
    ),
    "batch norm without scale": (
        lambda: layers.BatchNormalization(scale=False, center=False),
        lambda: BatchNorm(use_running_average=True, epsilon=1e-3, use_scale=False, use_bias=False),
        {},
    ),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_one_layer_computes_the_same_and_goes_back(kind, rng):
    make, make_ours, options = SINGLE[kind]
    theirs, ours = make(), make_ours()
    x = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
    theirs.build(x.shape)
    randomized(rng, theirs)
    variables = from_keras(theirs, template(ours, x), **options)
    assert relative_error(ours.apply(variables, x), np.asarray(theirs(x))) < 1e-5
    back = to_keras(variables, theirs, **options)
    for want, array in zip(values(theirs), back.values(), strict=True):
        np.testing.assert_array_equal(array, want)


def test_types_in_a_model_and_by_path_alone(rng):
    x = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
    theirs = keras.Sequential(
        [
            keras.Input((5, 6, 4)),
            layers.SeparableConv2D(4, 3, name="separable"),
            layers.Conv2DTranspose(4, 2, 2, name="up"),
            layers.TimeDistributed(layers.Conv1DTranspose(4, 3, name="inner"), name="rows"),
            layers.Conv2D(4, 2, name="conv"),
        ]
    )
    randomized(rng, theirs)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            groups = {"feature_group_count": 4, "use_bias": False, "padding": "VALID"}
            x = nn.Conv(4, (3, 3), name="separable_depthwise", **groups)(x)
            x = nn.Conv(4, (1, 1), name="separable_pointwise")(x)
            x = nn.ConvTranspose(4, (2, 2), (2, 2), "VALID", name="up")(x)
            x = nn.ConvTranspose(4, (3,), padding="VALID", name="inner")(x)
            return nn.Conv(4, (2, 2), padding="VALID", name="conv")(x)

    rename = [("^rows/inner", "inner"), lambda path: path.replace("separable/", "separable_")]
    variables = from_keras(theirs, template(Net(), x), rename)
    assert relative_error(Net().apply(variables, x), np.asarray(theirs(x))) < 1e-5
    back = to_keras(variables, theirs, rename)
    for want, array in zip(values(theirs), back.values(), strict=True):
        np.testing.assert_array_equal(array, want)
    # By path alone a separable convolution is known by its names, a transposed one is asked for.
    with pytest.raises(ValueError, match=r"transposed= must .*none\): up/kernel, perhaps"):
        from_keras(back, template(Net(), x), rename)
    named = from_keras(back, template(Net(), x), rename, transposed="^up|inner")
    jax.tree.map(np.testing.assert_array_equal, named, variables)


# https://github.com/ultralytics/yolov5/issues/459
def test_yolov5_459_statistics_of_keras_have_a_count_of_zero(rng):
    theirs = layers.BatchNormalization()
    theirs.build((2, 4))
    ours = BatchNorm(use_running_average=True, momentum=None)
    variables = from_keras(randomized(rng, theirs), template(ours, np.ones((2, 4), np.float32)))
    count = variables["batch_stats"]["count"]
    assert isinstance(count, jax.Array) and count.dtype == "int32" and count == 0
    back = to_keras(variables, theirs)
    for want, array in zip(values(theirs), back.values(), strict=True):
        np.testing.assert_array_equal(array, want)


class Residual(keras.layers.Layer):
    """A layer with layers inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(3, 3, padding="same", use_bias=False, name="conv")
        self.norm = layers.BatchNormalization(momentum=0.8, epsilon=1e-2, name="norm")

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build(shape)
        super().build(shape)

    def call(self, x, training=False):
        return x + self.norm(self.conv(x), training=training)


def functional():
    x = inputs = keras.Input((4, 5, 3))
    x = Residual(name="a")(x)
    x = layers.BatchNormalization(momentum=0.9, scale=False, name="b")(x)
    return keras.Model(inputs, layers.Dense(2, name="fc")(keras.ops.mean(x, (1, 2))), name="m")


def sequential():
    block, norm = Residual(name="a"), layers.BatchNormalization(momentum=0.9, scale=False, name="b")
    pool, fc = layers.GlobalAveragePooling2D(), layers.Dense(2, name="fc")
    return keras.Sequential([keras.Input((4, 5, 3)), block, norm, pool, fc])


OPTIONS = {
    "a/norm": {
        "momentum": 0.8,
        "epsilon": 1e-2,
        "ddof": 0,
        "use_scale": True,
        "use_bias": True,
    },
    "b": {"momentum": 0.9, "epsilon": 1e-3, "ddof": 0, "use_scale": False, "use_bias": True},
}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(3, (3, 3), use_bias=False, name="conv")(x)
        norm = BatchNorm(use_running_average=not train, name="norm", **OPTIONS["a/norm"])
        return x + norm(y)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = Block(name="a")(x, train)
        x = BatchNorm(use_running_average=not train, name="b", **OPTIONS["b"])(x)
        return nn.Dense(2, name="fc")(x.mean((1, 2)))


@pytest.mark.parametrize("make", [functional, sequential])
def test_a_model_evaluates_and_trains_the_same(make, rng):
    theirs, ours = randomized(rng, make()), Net()
    x = rng.normal(size=(3, 4, 5, 3)).astype(np.float32)
    assert batch_norm_options(theirs) == OPTIONS
    check_batch_norms(ours, OPTIONS, x)
    variables = from_keras(theirs, template(ours, x))
    assert relative_error(ours.apply(variables, x), np.asarray(theirs(x))) < 1e-5
    for _ in range(2):
        want = np.asarray(theirs(x, training=True))
        y, updates = ours.apply(variables, x, train=True, mutable=["batch_stats"])
        variables |= updates
        assert relative_error(y, want) < 1e-4
    trained = to_keras(variables, theirs)
    for want, (name, array) in zip(values(theirs), trained.items(), strict=True):
        assert relative_error(array, want) < 1e-5, name
    back = make()
    back.set_weights(list(to_keras(variables, back).values()))
    assert relative_error(np.asarray(back(x)), ours.apply(variables, x)) < 1e-5


def test_an_nnx_model_and_another_epsilon(rng):
    theirs = keras.Sequential([layers.Dense(4), layers.BatchNormalization()])
    x = rng.normal(size=(6, 5)).astype(np.float32)
    theirs.build(x.shape)
    randomized(rng, theirs)
    rename = [("^dense.*", "layers/0"), ("^batch_normalization.*", "layers/1")]
    rngs = nnx.Rngs(0)
    norm = bnjax.nnx.BatchNorm(4, epsilon=1e-3, rngs=rngs)
    ours = nnx.Sequential(nnx.Linear(5, 4, rngs=rngs), norm)
    nnx.update(ours, from_keras(theirs, nnx.state(ours), rename))
    ours.eval()
    assert relative_error(ours(x), np.asarray(theirs(x))) < 1e-5
    check_batch_norms(ours, batch_norm_options(theirs, rename))
    norm.epsilon = 1e-5
    with pytest.raises(ValueError, match=r"layers/1: epsilon is 1e-05, must be 0.001"):
        check_batch_norms(ours, batch_norm_options(theirs, rename))


class Own(keras.layers.Layer):
    """A batch norm in user code."""

    def build(self, shape):
        self.epsilon, self.momentum = 1e-2, 0.8
        options = {"shape": shape[-1:], "trainable": False}
        self.moving_mean = self.add_weight(name="moving_mean", **options)
        self.moving_variance = self.add_weight(name="moving_variance", **options)
        self.beta = self.add_weight(name="beta", shape=shape[-1:])

    def call(self, x):
        return (x - self.moving_mean) / (self.moving_variance + self.epsilon) ** 0.5 + self.beta


# https://github.com/pytorch/vision/issues/2169
def test_vision_2169_what_holds_moving_averages_is_a_batch_norm():
    norm = layers.BatchNormalization(momentum=0.5, scale=False, name="norm", trainable=False)
    rows = layers.TimeDistributed(norm, name="rows")
    theirs = keras.Sequential([keras.Input((3, 2)), Own(name="own"), rows])
    want = {"momentum": 0.8, "epsilon": 1e-2, "ddof": 0, "use_scale": False, "use_bias": True}
    options = batch_norm_options(theirs)
    assert options.pop("own") == want
    assert options == {"rows/norm": want | {"momentum": 0.5, "epsilon": 1e-3}}
    assert set(from_keras(theirs, stats_of(theirs))["batch_stats"]) == {"own", "rows"}
    assert batch_norm_options(layers.BatchNormalization(center=False)) == {
        "": {"momentum": 0.99, "epsilon": 1e-3, "ddof": 0, "use_scale": True, "use_bias": False}
    }
    with pytest.raises(ValueError, match="late: must be built to have a path"):
        batch_norm_options(keras.Sequential([layers.BatchNormalization(name="late")]))


def stats_of(model):
    """What from_keras fills of a model without scales."""
    names = {"moving_mean": "mean", "moving_variance": "var"}
    tree = {"params": {}, "batch_stats": {}}
    for weight in model.weights:
        *path, leaf = weight.path.split("/")[1:]
        node = tree["params" if leaf == "beta" else "batch_stats"]
        for key in path:
            node = node.setdefault(key, {})
        node[names.get(leaf, "bias")] = jax.ShapeDtypeStruct(weight.shape, weight.dtype)
    return tree


def test_weights_of_one_name_are_refused():
    class Twice(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="twice")
            self.parts = [layers.Dense(2, name="fc"), layers.Dense(2, name="fc")]

        def build(self, shape):
            for part in self.parts:
                part.build(shape)

    theirs = Twice()
    theirs.build((1, 2))
    with pytest.raises(ValueError, match="several weights of the keras model are called fc/bias"):
        from_keras(theirs, {"params": {}})
