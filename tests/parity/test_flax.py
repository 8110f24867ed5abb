"""Drop-in parity with Flax: the same model built twice, with only the norm's import changed.

Names, shapes, dtypes and collections of the variables, outputs, gradients, updated statistics and
checkpoints have to agree, whatever field of the module is used.
"""

import dataclasses
import functools
from typing import Any

import flax.linen
import flax.nnx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax.linen
import bnjax.nnx
from bnjax.testing import relative_error
from tests._agree import assert_agree, perturb, relaxed
from tests._quick import quick_jit

nn, nnx = flax.linen, flax.nnx
normal, uniform = jax.nn.initializers.normal(1.0), jax.nn.initializers.uniform(2.0)


# --- The models: a line of a user's code each, `norm` is all that differs ------------------------


class LinenNet(nn.Module):
    """`kind` is "conv" (NHWC), "mlp" or "norm" (a norm alone)."""

    norm: Any
    kind: str

    @nn.compact
    def __call__(self, x, train: bool, mask=None):
        norm = functools.partial(self.norm, use_running_average=not train)
        if self.kind == "norm":
            return norm()(x, mask=mask)
        layer = functools.partial(nn.Conv, kernel_size=(3, 3)) if self.kind == "conv" else nn.Dense
        x = nn.gelu(norm()(layer(6, use_bias=False, dtype=x.dtype)(x)))
        return norm(name="last")(nn.Dense(4, use_bias=False, dtype=x.dtype)(x))


class NnxNet(nnx.Module):
    """The same in NNX; `features` only matters for a norm alone, and `dtype` for the others."""

    def __init__(self, norm, kind, features, dtype, rngs):
        self.kind = kind
        if kind == "norm":
            self.norm = norm(features, rngs=rngs)
            return
        layer = functools.partial(nnx.Conv, kernel_size=(3, 3)) if kind == "conv" else nnx.Linear
        options = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.first = layer(5, 6, **options)
        self.norm = norm(6, rngs=rngs)
        self.second = nnx.Linear(6, 4, **options)
        self.last = norm(4, rngs=rngs)

    def __call__(self, x, mask=None):
        if self.kind == "norm":
            return self.norm(x, mask=mask)
        x = nnx.gelu(self.norm(self.first(x)))
        return self.last(self.second(x))


# --- One interface for both: variables and a pure apply ------------------------------------------


@dataclasses.dataclass
class Pure:
    """A model as ``apply(params, stats, x, train, mask) -> (y, stats)``."""

    params: Any
    stats: Any
    apply: Any


def linen_model(module, case, x) -> Pure:
    net = LinenNet(functools.partial(module, **case.fields), case.kind)
    variables = quick_jit(net.init, static_argnums=2)(jax.random.key(0), x, False)
    assert set(variables) <= {"params", "batch_stats"}

    def apply(params, stats, x, train, mask=None):
        variables = {"params": params, "batch_stats": stats}
        y, changed = net.apply(variables, x, train, mask, mutable=["batch_stats"])
        return y, changed["batch_stats"]

    return Pure(variables.get("params", {}), variables["batch_stats"], apply)


def nnx_model(module, case, x) -> Pure:
    features = x.shape[case.fields.get("axis", -1)]
    norm = functools.partial(module, **case.fields)
    net = NnxNet(norm, case.kind, features, case.dtype, nnx.Rngs(0))
    graph, params, stats = nnx.split(net, nnx.Param, nnx.BatchStat)

    def apply(params, stats, x, train, mask=None):
        net = nnx.merge(graph, params, stats, copy=True)
        net.train() if train else net.eval()
        y = net(x, mask=mask)
        return y, nnx.state(net, nnx.BatchStat)

    return Pure(params, stats, apply)


LIBRARIES = {
    "linen": (linen_model, flax.linen.BatchNorm, bnjax.linen.BatchNorm),
    "nnx": (nnx_model, flax.nnx.BatchNorm, bnjax.nnx.BatchNorm),
}


def build_both(library, case, x):
    """Flax's model and ours. Flax runs under JAX's default promotion rules, ours under strict."""
    make, theirs, ours = LIBRARIES[library]
    with relaxed():
        want = make(theirs, case, x)
    return want, make(ours, case, x)


def exam(model: Pure, params, stats, x, dy, mask=None) -> dict:
    """Training output, all gradients, statistics after two steps, and evaluation."""

    @quick_jit
    def step(params, stats, x, dy):
        forward = functools.partial(model.apply, train=True, mask=mask)
        y, vjp, stats = jax.vjp(lambda p, x: forward(p, stats, x), params, x, has_aux=True)
        return y, vjp(dy.astype(y.dtype)), stats

    y, grads, stats_1 = step(params, stats, x, dy)
    stats_2 = step(params, stats_1, x + x, dy)[2]
    y_eval, kept = quick_jit(functools.partial(model.apply, train=False))(params, stats_2, x)
    stats = {"after 1": stats_1, "after 2": stats_2, "after evaluation": kept}
    return {"y": y, "grads": grads, "stats": stats, "y_eval": y_eval}


# --- Every field ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """Which model, which fields of its norms, and which input."""

    name: str
    kind: str = "norm"
    fields: dict = dataclasses.field(default_factory=dict)
    shape: tuple[int, ...] = (6, 4, 3, 5)
    dtype: Any = jnp.float32  # of the input
    tolerance: float = 1e-5
    only: str | None = None  # "linen" where Flax's nnx has no such field or fails


CASES = (
    Case("conv", "conv", tolerance=1e-4),
    Case("mlp", "mlp", shape=(16, 5), tolerance=1e-4),
    Case("mlp in bfloat16", "mlp", {"dtype": jnp.bfloat16}, (16, 5), jnp.bfloat16, tolerance=0.1),
    Case("mlp, other fields", "mlp", {"momentum": 0.5, "epsilon": 0.1}, (16, 5), tolerance=1e-4),
    Case("axis 1", fields={"axis": 1}),
    Case("axis -2", fields={"axis": -2}),
    Case("axes 1 and 3", fields={"axis": (1, 3)}, shape=(6, 4, 3, 5), only="linen"),
    Case("no bias", fields={"use_bias": False}),
    Case("no scale", fields={"use_scale": False}),
    Case("neither", fields={"use_bias": False, "use_scale": False}),
    Case("initialisers", fields={"bias_init": normal, "scale_init": uniform}),
    Case("slow variance", fields={"use_fast_variance": False}),
    Case("float16 output", fields={"dtype": jnp.float16}, tolerance=2e-3),
    Case("bfloat16 output", fields={"dtype": jnp.bfloat16}, tolerance=2e-2),
    Case("bfloat16 parameters", fields={"param_dtype": jnp.bfloat16}, tolerance=2e-2),
    Case("bfloat16 input", dtype=jnp.bfloat16, tolerance=2e-2),
    Case("float16 input", dtype=jnp.float16, tolerance=2e-3),
    Case("float32 output", fields={"dtype": jnp.float32}, dtype=jnp.bfloat16, tolerance=2e-2),
    Case(
        "all bfloat16",
        fields={"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16},
        dtype=jnp.bfloat16,
        tolerance=2e-2,
    ),
    Case("reductions not forced", fields={"force_float32_reductions": False}, only="linen"),
    Case(
        "reductions and parameters in bfloat16",
        fields={"force_float32_reductions": False, "param_dtype": jnp.bfloat16},
        dtype=jnp.bfloat16,
        tolerance=5e-2,
        only="linen",
    ),
    # The statistics of Flax's nnx module are float32 for ever, and drop the imaginary part.
    Case("complex input", dtype=jnp.complex64, only="linen"),
)
BOTH = [(lib, case) for case in CASES for lib in LIBRARIES if case.only in (None, lib)]


def draw(case):
    rng = np.random.default_rng(0)
    x, dy = (random_like(rng, case.shape, case.dtype) for _ in "xy")
    if case.kind == "conv":
        dy = random_like(rng, (*case.shape[:-1], 4), case.dtype)
    if case.kind == "mlp":
        dy = random_like(rng, (case.shape[0], 4), case.dtype)
    return x, dy


def random_like(rng, shape, dtype):
    imaginary = 1j * rng.normal(size=shape) if jnp.issubdtype(dtype, jnp.complexfloating) else 0
    return jnp.asarray(rng.normal(size=shape) + imaginary, dtype)


@pytest.mark.parametrize(("library", "case"), BOTH, ids=lambda v: getattr(v, "name", v))
def test_every_field(library, case):
    x, dy = draw(case)
    theirs, ours = build_both(library, case, x)
    for ours_tree, theirs_tree in ((ours.params, theirs.params), (ours.stats, theirs.stats)):
        assert jax.tree.structure(ours_tree) == jax.tree.structure(theirs_tree)
        assert_agree(ours_tree, theirs_tree, 0)
    params, stats = perturb(theirs.params), perturb(theirs.stats)
    with relaxed():
        want = exam(theirs, params, stats, x, dy)
    assert_agree(exam(ours, params, stats, x, dy), want, case.tolerance)


def test_nnx_variables_have_the_types_of_flax():
    case = Case("mlp", "mlp", shape=(16, 5))
    theirs, ours = build_both("nnx", case, draw(case)[0])
    for got, want in ((ours.params, theirs.params), (ours.stats, theirs.stats)):
        got, want = (dict(nnx.to_flat_state(state)) for state in (got, want))
        assert {k: type(v) for k, v in got.items()} == {k: type(v) for k, v in want.items()}


# --- Masks ---------------------------------------------------------------------------------------

MASKS = {
    "entries": ((6, 4, 3, 5), bool),
    "positions": ((6, 4, 3, 1), bool),
    "examples": ((6, 1, 1, 1), bool),
    "numbers": ((6, 4, 3, 1), jnp.float32),
    "integers": ((6, 4, 3, 1), jnp.int32),
    "fewer dimensions": ((3, 1), bool),
}
# Flax's own nnx module wants a boolean mask; linen takes any numbers.
TAKES = {bool: ("linen", "nnx"), jnp.float32: ("linen",), jnp.int32: ("linen",)}


MASKED = [(lib, k) for k, (_, dtype) in MASKS.items() for lib in LIBRARIES if lib in TAKES[dtype]]


@pytest.mark.parametrize(("library", "kind"), MASKED)
def test_mask(library, kind):
    shape, dtype = MASKS[kind]
    mask = jnp.asarray(np.random.default_rng(3).uniform(size=shape) < 0.7, dtype)
    case = Case("mask")
    x, dy = draw(case)
    theirs, ours = build_both(library, case, x)
    params, stats = perturb(theirs.params), perturb(theirs.stats)
    with relaxed():
        want = exam(theirs, params, stats, x, dy, mask)
    assert_agree(exam(ours, params, stats, x, dy, mask), want, 1e-5)


# --- Mapped axes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_axis_name_under_vmap(library, masked):
    # With a mask the counts per device are equal: Flax averages means, which is right only then.
    case = Case("axis_name", fields={"axis_name": "device", "momentum": 0.5}, shape=(4, 6, 5))
    x, dy = draw(case)
    mask = jnp.asarray([True, False, True, True, False, True])[:, None] if masked else None
    # Flax insists on the axis when it initialises an nnx module, so the variables come from one
    # that is not told of it.
    theirs, _ = build_both(library, dataclasses.replace(case, fields={}), x[0])
    params, stats = perturb(theirs.params), perturb(theirs.stats)
    with relaxed():
        want = mapped(library, 1, case, params, stats, x, dy, mask)
    got = mapped(library, 2, case, params, stats, x, dy, mask)
    assert_agree(got, want, 1e-5)


def mapped(library, which, case, params, stats, x, dy, mask):
    """Output, statistics and gradients of a norm that is told of the mapped axis."""
    make = LIBRARIES[library][0]
    model = make(LIBRARIES[library][which], case, x[0])

    def forward(params, x):
        one = functools.partial(model.apply, params, stats, train=True, mask=mask)
        return jax.vmap(one, axis_name="device")(x)

    y, vjp, stats_1 = quick_jit(lambda p, x: _vjp(forward, p, x))(params, x)
    return {"y": y, "stats": stats_1, "grads": vjp(dy)}


def _vjp(forward, params, x):
    y, vjp, stats = jax.vjp(forward, params, x, has_aux=True)
    return y, vjp, stats


# --- Checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["from Flax", "to Flax"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_checkpoint_moves(library, direction):
    case = Case("mlp", "mlp", shape=(16, 5))
    x, _ = draw(case)
    theirs, ours = build_both(library, case, x)
    source, target = (theirs, ours) if direction == "from Flax" else (ours, theirs)
    saved = perturb(as_dict(source))
    data = flax.serialization.to_bytes(saved)
    loaded = flax.serialization.from_bytes(as_dict(target), data)
    assert_agree(loaded, saved, 0)
    with relaxed():
        y, _ = source.apply(*from_dict(source, saved), x, False)
        y_loaded, _ = target.apply(*from_dict(target, loaded), x, False)
    assert relative_error(y_loaded, y) < 1e-5


def as_dict(model):
    trees = {"params": model.params, "batch_stats": model.stats}
    return {k: nnx.to_pure_dict(v) if isinstance(v, nnx.State) else v for k, v in trees.items()}


def from_dict(model, trees):
    if not isinstance(model.params, nnx.State):
        return trees["params"], trees["batch_stats"]
    params, stats = (jax.tree.map(jnp.asarray, s) for s in (model.params, model.stats))
    nnx.replace_by_pure_dict(params, trees["params"])
    nnx.replace_by_pure_dict(stats, trees["batch_stats"])
    return params, stats
