"""bnjax against recorded answers of five libraries, in float64 and in float32; needs none of them.

``tests/golden/make_golden.py`` wrote the files and says which conventions belong to which library.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax
from bnjax.testing import relative_error

from . import _peers

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {np.float64: 1e-11, np.float32: 2e-5}


def load(library):
    with np.load(GOLDEN / f"{library}.npz") as file:
        return dict(file)


def find_cases():
    for path in sorted(GOLDEN.glob("*.npz")):
        names = {key.split("/")[0] for key in load(path.stem) if not key.startswith("lecture")}
        yield from ((path.stem, name) for name in sorted(names))


CASES = list(find_cases())
# All in float64, and those of one library in float32 too.
EACH = [pytest.param(*c, np.float64, id="-".join(c)) for c in CASES]
EACH += [pytest.param(*c, np.float32, id="-".join(c) + "-float32") for c in CASES if "torch" in c]


def read(library, case, dtype):
    vectors = {k.split("/")[1]: v for k, v in load(library).items() if k.split("/")[0] == case}
    axis, decay, epsilon, ddof, debias = vectors["conventions"]
    arrays = (vectors[k].astype(dtype) for k in ("x", "dy", "scale", "bias"))
    inputs = _peers.Inputs(*arrays, axis=int(axis), decay=decay.item(), epsilon=epsilon.item())
    return vectors, inputs, {"ddof": int(ddof), "debias": bool(debias)}


def test_every_library_is_there():
    libraries = {library for library, _ in CASES}
    assert libraries == {"equinox", "flax", "haiku", "keras", "torch"}


@pytest.mark.parametrize(("library", "case", "dtype"), EACH)
def test_training_gradients_running_statistics_and_evaluation(library, case, dtype):
    vectors, inputs, conventions = read(library, case, dtype)
    with jax.enable_x64(dtype == np.float64):
        got = _peers.run_bnjax(inputs, **conventions)
    tolerance = max(TOLERANCE[dtype], TOLERANCE[vectors["y"].dtype.type])
    for key in set(_peers.KEYS) & set(vectors):
        assert got[key].dtype == dtype, key
        assert relative_error(got[key], vectors[key]) < tolerance, key


@pytest.mark.parametrize("case", ["dense", "nchw"])
@pytest.mark.parametrize("order", ["forward over reverse", "reverse over reverse"])
def test_second_derivative_of_torch(case, order):
    vectors, inputs, _ = read("torch", case, np.float64)
    with jax.enable_x64(True):
        x, v, dy = (jnp.asarray(a) for a in (inputs.x[0], vectors["v"], inputs.dy))
        scale, bias = jnp.asarray(inputs.scale), jnp.asarray(inputs.bias)
        stats = bnjax.init_batch_stats(scale.shape[0], scale.dtype)

        def loss(x):
            options = {"train": True, "axis": inputs.axis, "epsilon": inputs.epsilon}
            return (bnjax.batch_norm(x, scale, bias, stats, **options)[0] * dy).sum()

        if order == "forward over reverse":
            got = jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (v,))[1])(x)
        else:
            got = jax.jit(jax.grad(lambda x: (jax.grad(loss)(x) * v).sum()))(x)
        assert relative_error(got, vectors["second_order"]) < 1e-10
