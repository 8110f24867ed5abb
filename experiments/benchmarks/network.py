"""Training step of a small residual network: with the batch norm of bnjax, and with Flax's.

The network is that of `experiments.common.resnet`: a stem and six residual blocks of two 3x3
convolutions, each convolution followed by the norm. With a bare scale and bias in the place of the
norm, the rest of the step can be told from batch norm.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import bnjax.linen
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.contestants import FLAX, OURS_LINEN
from experiments.benchmarks.panels import Panel, ratio_panel
from experiments.benchmarks.problem import DECAY
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings, Shape, shape_name
from experiments.benchmarks.timing import Estimate, geometric_mean, paired_ratios, race
from experiments.common.records import Record
from experiments.common.resnet import ResNet

SHAPES = {"quick": ((32, 32, 32, 3),), "full": ((32, 32, 32, 3), (64, 32, 32, 3))}
DEFAULTS = Settings(SHAPES["full"], rounds=20)
DTYPES = ("float32", "bfloat16")
CLASSES = 10
BARE = "scale and bias"

CLAIMS = tuple(
    Claim(f"a training step no slower than Flax's, {d}", f"{OURS_LINEN} / {FLAX}, {d}", 1.0, True)
    for d in DTYPES
)


class ScaleAndBias(nn.Module):
    """What is left of batch norm without statistics."""

    use_running_average: bool = False
    momentum: float = DECAY
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return (x.astype(scale.dtype) * scale + bias).astype(self.dtype)


NORMS = {OURS_LINEN: bnjax.linen.BatchNorm, FLAX: nn.BatchNorm, BARE: ScaleAndBias}


def measure(settings: Settings, progress: Progress, **network: Any) -> Iterator[Record]:
    """One record a turn: `dtype`, `shape`, `round`, `contestant` and `seconds`.

    `network` may give `widths` and `blocks`.
    """
    for shape in settings.shapes:
        for dtype in DTYPES:
            progress.say(f"{shape_name(shape)} {dtype}: compiling")
            calls = {n: training_call(norm, shape, dtype, **network) for n, norm in NORMS.items()}
            doing = f"{shape_name(shape)} {dtype}: {settings.rounds} rounds"
            turns = progress.track(
                race(calls, settings.rounds), len(calls) * settings.rounds, doing
            )
            for number, name, seconds in turns:
                where = {"dtype": dtype, "shape": shape_name(shape), "round": number}
                yield where | {"contestant": name, "seconds": seconds}


def training_call(norm: Any, shape: Shape, dtype: str, **network: Any) -> Callable[[], Any]:
    """A call of one step of SGD with momentum, always from the same state."""
    model = ResNet(norm, jnp.dtype(dtype), momentum=DECAY, **network)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=shape), dtype)
    labels = jnp.asarray(rng.integers(CLASSES, size=shape[0]))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(params, batch_stats, opt_state, images, labels):
        def loss(params):
            logits, changed = model.apply(
                {"params": params, "batch_stats": batch_stats}, images, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changed.get("batch_stats", {})

        gradients, stats = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), stats, state

    arguments = params, batch_stats, optimizer.init(params), images, labels
    return lambda: jax.block_until_ready(step(*arguments))


def estimates(records: Sequence[Record]) -> dict[str, Estimate]:
    """Our step as a multiple of Flax's, and the share of batch norm in each."""
    found: dict[str, Estimate | None] = {}
    for dtype in DTYPES:
        ratios = paired_ratios(records, OURS_LINEN, FLAX, dtype=dtype)
        found[f"{OURS_LINEN} / {FLAX}, {dtype}"] = geometric_mean(ratios)
        for name in (OURS_LINEN, FLAX):
            found[f"share of {name}, {dtype}"] = share(records, name, dtype)
    return {key: estimate for key, estimate in found.items() if estimate is not None}


def share(records: Sequence[Record], name: str, dtype: str) -> Estimate | None:
    """The part of the step that would be saved by a bare scale and bias in the norm's place."""
    rest = geometric_mean(paired_ratios(records, BARE, name, dtype=dtype))
    return None if rest is None else Estimate(1 - rest.value, 1 - rest.high, 1 - rest.low)


def panels(records: Sequence[Record]) -> list[Panel]:
    """Times of the step, and the share of the norm in it."""
    made = []
    for dtype in DTYPES:
        title = f"training step, {dtype}"
        made.append(ratio_panel(title, records, NORMS, FLAX, dtype=dtype))
    for dtype in DTYPES:
        shares = {name: share(records, name, dtype) for name in (OURS_LINEN, FLAX)}
        bars = {name: found for name, found in shares.items() if found is not None}
        made.append(Panel(f"share of batch norm in the step, {dtype}", "share of time", bars))
    return made
