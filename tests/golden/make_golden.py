"""Writes the golden vectors: what other libraries answer, kept so that tests need none of them.

Run ``python -m tests.golden.make_golden`` where torch, flax, dm-haiku, keras and equinox are
installed; a library that is missing keeps the file it has. Everything is float64 but Keras, whose
JAX backend computes in float32 whatever it is asked for.

Each ``<library>.npz`` holds, for every case, the inputs ``<case>/x`` (three batches), ``dy``,
``scale``, ``bias``, and the results described in ``tests/parity/_peers.py``. The conventions under
which bnjax gives the same numbers stand in ``<case>/conventions`` as
``(axis, decay, epsilon, ddof, debias)``:

=========  =====================================================================================
library    conventions
=========  =====================================================================================
torch      momentum 0.1 is decay 0.9; the running variance is the sample variance (ddof 1), while
           the batch itself is normalised with the population variance
flax       momentum is decay; population variance throughout; starts at mean 0, var 1
haiku      ExponentialMovingAverage with zero_debias: debias True
keras      momentum is decay, 0.99 by default; epsilon 1e-3 by default; population variance
equinox    ``mode="batch"``; debias True for the mean. Its variance, debiased although it starts
           at 1, is too large by ``decay**t / (1 - decay**t)``, which is taken off here
=========  =====================================================================================

``torch.npz`` also holds double backward (``second_order`` along ``v``) and the two examples of the
lecture, ``lecture_1d`` and ``lecture_2d``, whose inputs are redrawn from a seed.
"""

import argparse
import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np

from tests.parity import _peers

HERE = Path(__file__).parent
KERAS_DEFAULTS = _peers.Case("defaults", (6, 4), decay=0.99, epsilon=1e-3, seed=4)
LIBRARIES = {
    # library: (runner, ddof, debias, dtype, cases)
    "torch": (_peers.run_torch, 1, False, np.float64, _peers.CASES),
    "flax": (_peers.run_flax_linen, 0, False, np.float64, _peers.CASES),
    "haiku": (_peers.run_haiku, 0, True, np.float64, _peers.CASES),
    "keras": (_peers.run_keras, 0, False, np.float32, (*_peers.CASES, KERAS_DEFAULTS)),
    "equinox": (_peers.run_equinox, 0, True, np.float64, _peers.CASES),
}


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m tests.golden.make_golden", description=__doc__.partition(":")[0]
    ).parse_args()
    jax.config.update("jax_enable_x64", True)
    for library, recipe in LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            print(f"{library}: not installed, file left as it is")
            continue
        vectors = record(*recipe)
        vectors |= extras() if library == "torch" else {}
        np.savez_compressed(HERE / f"{library}.npz", **vectors)
        print(f"{library}: {len(vectors)} arrays")


def record(run, ddof: int, debias: bool, dtype, cases) -> dict[str, np.ndarray]:
    """Inputs, results and conventions of all cases."""
    vectors = {}
    for case in cases:
        inputs = _peers.draw(case, dtype)
        arrays = {k: getattr(inputs, k) for k in ("x", "dy", "scale", "bias")}
        arrays["conventions"] = np.array([case.axis, case.decay, case.epsilon, ddof, debias])
        vectors |= {f"{case.name}/{k}": v for k, v in (arrays | run(inputs)).items()}
    return vectors


def extras() -> dict[str, np.ndarray]:
    """Double backward, and the lecture's BatchNorm1d(16) and BatchNorm2d(16)."""
    vectors = {}
    for case in _peers.CASES:
        inputs = _peers.draw(case)
        v = np.random.default_rng(9).normal(size=case.shape)
        vectors[f"{case.name}/v"] = v
        vectors[f"{case.name}/second_order"] = _peers.torch_second_order(inputs, v)
    for name, shape in _peers.LECTURE.items():
        inputs = _peers.lecture_inputs(shape)
        result = _peers.run_torch(dataclasses.replace(inputs, x=np.stack([inputs.x[0]] * 3)))
        # The first example and two entries a channel are enough to notice a difference.
        vectors[f"{name}/y"] = result["y"][:1].reshape(16, -1)[:, :2]
        vectors[f"{name}/mean_1"] = result["mean_1"]
        vectors[f"{name}/var_1"] = result["var_1"]
    return vectors


if __name__ == "__main__":
    main()
