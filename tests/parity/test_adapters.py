"""The layers of the guide for other libraries, beside those libraries' own."""

import os
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.testing import relative_error
from experiments.site.cells import NEEDS, cells
from experiments.site.runner import SOURCE

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports keras

CELLS = cells((SOURCE / "guides/pure-jax.md").read_text(encoding="utf-8"))
LIBRARIES = ("equinox", "haiku", "keras")
STEPS, TOLERANCE = 10, 1e-5

pytestmark = pytest.mark.usefixtures("relaxed")


def needs(cell):
    """The library that a cell needs."""
    return next((tag[len(NEEDS) :] for tag in cell.tags if tag.startswith(NEEDS)), "")


def adapter(library):
    """The cell with the layer for a library."""
    (cell,) = [c for c in CELLS if needs(c) == library and "class BatchNorm(" in c.code]
    return cell


def run(cells):
    names = {"__name__": "__main__"}
    for cell in cells:
        exec(compile(cell.code, "pure-jax.md", "exec"), names)
    return names


@pytest.fixture(name="layer")
def _layer(request):
    """The adapter of a library, as the guide has it."""
    library = request.param
    pytest.importorskip(library)
    return run([CELLS[0], adapter(library)])["BatchNorm"]


def of(library):
    return pytest.mark.parametrize("layer", [library], indirect=True)


@pytest.fixture(name="batches")
def _batches():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(3, 2, (STEPS, 8, 5, 5, 3)), jnp.float32)


@pytest.mark.parametrize("library", ["", *LIBRARIES])
def test_the_loops_of_the_guide_train(library):
    if library and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    run([cell for cell in CELLS if needs(cell) in ("", library)])


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_adapter_has_from_8_to_14_lines(library):
    code = adapter(library).code
    lines = code[code.index("class BatchNorm(") :].splitlines()
    assert 8 <= len([line for line in lines if line.strip()]) <= 14


@of("equinox")
def test_equinox(layer, batches):
    import equinox as eqx

    # Its variance starts at 1 and is debiased as if it had started at 0: so fast that it is no
    # matter after ten steps.
    options = {"axis_name": "batch", "eps": 1e-4, "momentum": 0.1, "mode": "batch"}
    theirs = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, **options)
    ours = eqx.nn.make_with_state(layer)(3, decay=0.1, epsilon=1e-4, debias=True)

    @eqx.filter_jit
    def call(model, state, x):
        apply = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return apply(jnp.moveaxis(x, -1, 1), state)

    states = [ours[1], theirs[1]]
    for x in batches:
        (got, states[0]), (want, states[1]) = (
            call(model, state, x) for (model, _), state in zip((ours, theirs), states, strict=True)
        )
        assert relative_error(got, want) < TOLERANCE
    stats = states[0].get(ours[0].stats)
    mean, var = states[1].get(theirs[0].batch_state_index)
    left = 0.1**STEPS
    assert relative_error(stats.mean, mean / (1 - left)) < TOLERANCE
    assert relative_error(stats.var, (var - left) / (1 - left)) < TOLERANCE
    assert stats.count == STEPS
    got, want = (
        call(eqx.nn.inference_mode(model), state, batches[0])[0]
        for (model, _), state in zip((ours, theirs), states, strict=True)
    )
    assert relative_error(got, want) < TOLERANCE


@of("haiku")
def test_haiku(layer, batches):
    import haiku as hk

    def norm(make):
        net = hk.without_apply_rng(hk.transform_with_state(lambda x, train: make()(x, train)))
        return net, jax.jit(net.apply, static_argnums=3)

    ours, call = norm(lambda: layer(decay=0.8, epsilon=1e-4, debias=True, name="bn"))
    theirs, call_theirs = norm(lambda: hk.BatchNorm(True, True, 0.8, 1e-4, name="bn"))
    params, state = ours.init(None, batches[0], True)
    params_theirs, state_theirs = theirs.init(None, batches[0], True)
    for x in batches:
        got, state = call(params, state, x, True)
        want, state_theirs = call_theirs(params_theirs, state_theirs, x, True)
        assert relative_error(got, want) < TOLERANCE
    stats = state["bn"]["stats"]
    for ema, ours_there in (("mean", stats.mean), ("var", stats.var)):
        average = state_theirs[f"bn/~/{ema}_ema"]["average"].reshape(-1)
        assert relative_error(ours_there, average) < TOLERANCE
    got = call(params, state, batches[0], False)[0]
    want = call_theirs(params_theirs, state_theirs, batches[0], False)[0]
    assert relative_error(got, want) < TOLERANCE


@of("keras")
def test_keras(layer, batches):
    import keras

    ours, theirs = layer(), keras.layers.BatchNormalization()
    for norm in (ours, theirs):
        norm.build(batches[0].shape)
    rng = np.random.default_rng(1)
    start = [rng.uniform(1, 2, w.shape).astype("float32") for w in theirs.weights]
    for norm in (ours, theirs):
        norm.set_weights(start)
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    for x in batches:
        assert relative_error(ours(x, training=True), theirs(x, training=True)) < TOLERANCE
    for got, want in zip(ours.weights, theirs.weights, strict=True):
        assert relative_error(got.value, want.value) < TOLERANCE
    assert relative_error(ours(x, training=False), theirs(x, training=False)) < TOLERANCE
