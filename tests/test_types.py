"""What an editor sees: a small user program, type-checked; its mistakes are found, and no others.

Needs mypy and pyright, of the ``lint`` extra.
"""

import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    from collections.abc import Callable

    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import bnjax
    import bnjax.linen
    import bnjax.nnx

    x = jax.random.normal(jax.random.key(0), (8, 3))
    stats = bnjax.init_batch_stats(3)
    y, stats = bnjax.batch_norm(x, None, None, stats, train=True)
    y, stats = bnjax.batch_norm(np.ones((8, 3)), np.ones(3), 0.0, stats, train=False, axis=(1,))

    def r_max(count: jax.Array) -> jax.Array:
        return 1.0 + count

    y, stats = bnjax.batch_renorm(x, None, None, stats, train=True, r_max=r_max, d_max=5)
    pending = bnjax.begin_update(stats)
    y, pending = bnjax.batch_norm(x, None, None, pending, train=True, decay=x[0, 0])
    stats = pending.after
    stats = pending.before.after
    moments = bnjax.merge(bnjax.moments(x, 0), bnjax.moments(x, (0,), mask=x > 0))
    stats = bnjax.update_batch_stats(stats, moments, decay=None)
    y = bnjax.layer_norm(x, None, None, axes=-1, dtype=jnp.bfloat16)
    y = bnjax.group_norm(y, None, None, num_groups=None, group_size=1, axis_name="batch")
    y = bnjax.scale_shift(bnjax.normalize(y, stats.mean, stats.var), None, 1.0)
    w, state = bnjax.spectral_norm(y, bnjax.init_spectral_norm(jax.random.key(0), (8, 3)))
    state.sigma.item()
    layer = bnjax.nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    y = layer(x, use_running_average=False, mask=np.ones((8, 1), bool))
    module: nn.Module = bnjax.linen.BatchNorm(momentum=0.9, axis=1)

    def once(x: jax.Array, stats: bnjax.BatchStats) -> bnjax.BatchStats:
        return bnjax.batch_norm(x, None, None, stats, train=True)[1]

    step: Callable[[jax.Array, bnjax.BatchStats], bnjax.BatchStats] = once

    bnjax.batch_norm(x, None, None, stats)  # wrong: train is missing
    bnjax.batch_norm(x, None, None, {"mean": x, "var": x}, train=True)  # wrong: no state
    bnjax.batch_norm(x, None, None, stats, train=True, decay="0.9")  # wrong: no number
    bnjax.batch_norm(x, None, None, stats, train=True, single_value="maybe")  # wrong: no choice
    other: bnjax.PendingUpdate = bnjax.batch_norm(x, 1.0, 0.0, stats, train=True)[1]  # wrong
    bnjax.layer_norm(x, None, None, axis=-1)  # wrong: called axes
    bnjax.moments(x, 0).variance()  # wrong: called var
    bnjax.moments(x, 0, mask="all")  # wrong: no array
    bnjax.nnx.BatchNorm(3)  # wrong: rngs are missing
    bnjax.linen.BatchNorm(momentun=0.9)  # wrong: misspelt
    number: int = bnjax.rms_norm(x, None)  # wrong: an array
"""
WRONG = {
    number
    for number, line in enumerate(textwrap.dedent(PROGRAM).splitlines(), 1)
    if "# wrong" in line
}


PACKAGES = ("", ".linen", ".nnx", ".training", ".surgery", ".interop", ".diagnostics", ".testing")


def public_functions():
    """Public functions, and what can be called of public classes."""
    for package in map(importlib.import_module, (f"bnjax{name}" for name in PACKAGES)):
        for name in package.__all__:
            thing = getattr(package, name)
            own = vars(thing).items() if inspect.isclass(thing) else [("", thing)]
            for part, value in own:
                called = not part.startswith("_") or part in ("__init__", "__call__")
                ours = getattr(value, "__module__", "").startswith("bnjax")
                if called and ours and inspect.isfunction(value):
                    yield f"{package.__name__}.{name}.{part}".rstrip("."), value


@pytest.mark.parametrize(("name", "function"), list(public_functions()))
def test_public_signatures_are_annotated(name, function):
    signature = inspect.signature(function)
    parts = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    bare = [p.name for p in parts if p.annotation is p.empty]
    if signature.return_annotation is signature.empty and not name.endswith("__init__"):
        bare.append("what it returns")
    assert not bare


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    return path


def run(*command, cwd):
    process = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=600
    )
    return process.stdout, process.stdout + process.stderr


def needs(module):
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"{module} is not installed"
    )


@needs("mypy")
def test_mypy_strict_finds_the_planted_mistakes_and_no_others(program):
    out, all_said = run(
        "mypy", "--strict", "--cache-dir", ".cache", program.name, cwd=program.parent
    )
    found = {int(n) for n in re.findall(r"^program\.py:(\d+): error", out, re.MULTILINE)}
    assert found == WRONG, all_said


@needs("pyright")
def test_pyright_strict_finds_the_planted_mistakes_and_no_others(program):
    command = "pyright", "--outputjson", "--pythonpath", sys.executable, program.name
    out, all_said = run(*command, cwd=program.parent)
    found = {
        each["range"]["start"]["line"] + 1
        for each in json.loads(out)["generalDiagnostics"]
        if each["severity"] == "error"
    }
    assert found == WRONG, all_said
