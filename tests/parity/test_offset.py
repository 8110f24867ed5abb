"""Accuracy at an offset, side by side: bnjax against every library that is installed."""

import importlib.util

import numpy as np
import pytest

from bnjax import testing
from tests.parity import _peers
from tests.parity._peers import Inputs

PEERS = {
    "bnjax": (_peers.run_bnjax, "jax"),
    "equinox": (_peers.run_equinox, "equinox"),
    "keras": (_peers.run_keras, "keras"),
    "torch": (_peers.run_torch, "torch"),
    "flax linen": (_peers.run_flax_linen, "flax"),
    "flax nnx": (_peers.run_flax_nnx, "flax"),
    "haiku": (_peers.run_haiku, "haiku"),
}


def errors(run, inputs):
    forward = testing.batch_norm_forward(inputs.x[0], inputs.scale, inputs.bias)
    dx, dscale, _ = testing.batch_norm_backward(inputs.dy, forward.cache)
    with _peers.relaxed():
        got = run(inputs)
    want = {"y": forward.y, "dx": dx, "dscale": dscale}
    return {k: float(testing.relative_error(got[k], v)) for k, v in want.items()}


@pytest.mark.compiled("as users do")
@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
def test_no_library_is_more_accurate(offset):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3, 8191, 16)) + offset).astype(np.float32)
    dy = rng.normal(size=(8191, 16)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 16)).astype(np.float32)
    inputs = Inputs(x, dy, scale, bias, axis=-1, decay=0.9, epsilon=1e-5)
    found = {
        name: errors(run, inputs)
        for name, (run, package) in PEERS.items()
        if importlib.util.find_spec(package)
    }
    print()
    for name, by_output in found.items():
        print(f"offset {offset:7g}  {name:10}", *(f"{k} {v:.0e}" for k, v in by_output.items()))
    for output, ours in found.pop("bnjax").items():
        assert ours < 1e-6
        # Equal to rounding where nothing is lost, better wherever something is.
        assert all(not theirs[output] < ours / 2 for theirs in found.values())
