"""Layer, RMS, group and instance norm: time forward and backward.

Layer and RMS norm over the last axis of what a transformer holds, ``(N, L, F)`` and ``(N, F)``;
group norm, of 32 groups, and instance norm over images ``(N, H, W, C)``.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from experiments.benchmarks.claims import Claim
from experiments.benchmarks.contestants import FLAX, OURS, TORCH
from experiments.benchmarks.panels import Panel, contestants_of, ratio_panel
from experiments.benchmarks.problem import Problem, draw
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings, shape_name
from experiments.benchmarks.timing import Estimate, geometric_mean, paired_ratios, race
from experiments.common.records import Record

HAIKU, EPSILON, GROUPS = "haiku", 1e-6, 32
LAYER, RMS, GROUP, INSTANCE = "layer", "rms", "group", "instance"
KINDS = {False: (LAYER, RMS), True: (GROUP, INSTANCE)}  # of data that are images, or not
SHAPES = {
    "quick": ((4096, 512), (32, 14, 14, 256)),
    "full": (
        (32, 128, 768),
        (8, 512, 512),
        (64, 128, 256),
        (4096, 512),
        (32, 56, 56, 64),
        (32, 28, 28, 128),
        (32, 14, 14, 256),
        (32, 7, 7, 512),
    ),
}
DEFAULTS = Settings(SHAPES["full"], rounds=20)

CLAIMS = tuple(
    Claim(f"{kind} norm no slower than {FLAX}", f"{OURS} / {FLAX}, {kind}", 1.0, within_noise=True)
    for kinds in KINDS.values()
    for kind in kinds
)


def measure(settings: Settings, progress: Progress) -> Iterator[Record]:
    """One record a turn: `part` (the norm), `shape`, `round`, `contestant` and `seconds`."""
    for shape in settings.shapes:
        problem = draw(shape, settings.dtype)
        for kind in KINDS[len(shape) == 4]:
            calls = training_calls(kind, problem)
            doing = f"{kind} {shape_name(shape)}: {len(calls)} contestants"
            turns = progress.track(
                race(calls, settings.rounds), len(calls) * settings.rounds, doing
            )
            for number, name, seconds in turns:
                where = {"part": kind, "shape": shape_name(shape), "round": number}
                yield where | {"contestant": name, "seconds": seconds}


def training_calls(kind: str, problem: Problem) -> dict[str, Callable[[], Any]]:
    """A call of every contestant that is installed: forward and backward."""
    makers = {OURS: _ours, FLAX: _flax, HAIKU: _haiku}
    packages = {OURS: "bnjax", FLAX: "flax", HAIKU: "haiku"}
    present = [n for n, package in packages.items() if importlib.util.find_spec(package)]
    calls = {name: _jitted(makers[name](kind, problem), kind, problem) for name in present}
    if importlib.util.find_spec("torch") and jax.default_backend() == "cpu":
        from experiments.benchmarks import torch_layer

        calls[TORCH] = torch_layer.norm_step(kind, problem, GROUPS, EPSILON)
    return calls


def params_of(kind: str, problem: Problem) -> tuple[jax.Array, ...]:
    """Scale, and bias where the norm has one."""
    return (problem.scale,) if kind == RMS else (problem.scale, problem.bias)


def _jitted(apply: Callable[..., Any], kind: str, problem: Problem) -> Callable[[], Any]:
    @jax.jit
    def step(x, dy, *params):
        y, pullback = jax.vjp(apply, x, *params)
        return y, pullback(dy.astype(y.dtype))

    params = params_of(kind, problem)
    return lambda: jax.block_until_ready(step(problem.x, problem.dy, *params))


def _ours(kind: str, problem: Problem):
    import bnjax

    norms = {
        LAYER: bnjax.layer_norm,
        RMS: bnjax.rms_norm,
        GROUP: functools.partial(bnjax.group_norm, num_groups=GROUPS),
        INSTANCE: bnjax.instance_norm,
    }
    return functools.partial(norms[kind], epsilon=EPSILON)


def _flax(kind: str, problem: Problem):
    import flax.linen as nn

    modules = {LAYER: nn.LayerNorm, RMS: nn.RMSNorm, GROUP: nn.GroupNorm, INSTANCE: nn.InstanceNorm}
    groups = {"num_groups": GROUPS} if kind == GROUP else {}
    module = modules[kind](epsilon=EPSILON, dtype=problem.x.dtype, **groups)

    def apply(x, *params):
        return module.apply({"params": dict(zip(("scale", "bias"), params, strict=False))}, x)

    return apply


def _haiku(kind: str, problem: Problem):
    import haiku

    def forward(x):
        both = {"create_scale": True, "create_offset": True, "eps": EPSILON}
        if kind == LAYER:
            return haiku.LayerNorm(-1, **both, name="norm")(x)
        if kind == RMS:
            return haiku.RMSNorm(-1, eps=EPSILON, name="norm")(x)
        if kind == GROUP:
            return haiku.GroupNorm(GROUPS, **both, name="norm")(x)
        return haiku.InstanceNorm(**both, name="norm")(x)

    net = haiku.without_apply_rng(haiku.transform(forward))
    shapes = jax.eval_shape(net.init, jax.random.key(0), problem.x)["norm"]

    def apply(x, *params):
        values = dict(zip(("scale", "offset"), params, strict=False))
        ready = {n: values[n].reshape(v.shape).astype(v.dtype) for n, v in shapes.items()}
        return net.apply({"norm": ready}, x)

    return apply


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """Ratios of our time to that of every other, geometric mean over the shapes."""
    found: dict[str, Estimate | None] = {}
    for kind in _kinds(records):
        for name in contestants_of(records, part=kind):
            ratios = paired_ratios(records, OURS, name, part=kind)
            found[f"{OURS} / {name}, {kind}"] = geometric_mean(ratios)
    return {key: estimate for key, estimate in found.items() if estimate is not None}


def panels(records: Sequence[Record]) -> list[Panel]:
    """Times as multiples of Flax's, a panel for each norm."""
    return [
        ratio_panel(f"{kind} norm", records, contestants_of(records, part=kind), FLAX, part=kind)
        for kind in _kinds(records)
    ]


def _kinds(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record["part"] for record in records))
