"""What the numbers of a layer have become, in a few of them: scales, shifts, inputs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes

from experiments.common.histories import last
from experiments.common.loop import Metrics
from experiments.common.records import Record

PERCENTILES = (5, 25, 50, 75, 95)


def norm_names(params: dict[str, Any]) -> list[str]:
    """The names of the batch norms of an `experiments.common.models.MLP`, first layer first."""
    return sorted(name for name in params if name.startswith("BatchNorm"))


def percentiles(name: str, values: jax.Array) -> Metrics:
    """The `PERCENTILES` of `values`, of any shape, such as `scale_5`."""
    found = jnp.percentile(values, jnp.array(PERCENTILES, values.dtype))
    return {f"{name}_{q}": value for q, value in zip(PERCENTILES, found, strict=True)}


def draw_percentiles(
    ax: Axes, place: float, records: Sequence[Record], trial: str, name: str, color: str, **kw: Any
) -> None:
    """All but a tenth of the values as a line, the middle half as a bar, the median as a dot.

    That is after the last step, the mean over seeds; `kw` are options of the dot.
    """
    numbers = [last(records, trial, f"{name}_{q}").mean() for q in PERCENTILES]
    low, quarter, middle, upper, high = numbers
    ax.vlines(place, low, high, color=color, linewidth=1.5)
    ax.vlines(place, quarter, upper, color=color, linewidth=7, alpha=0.5)
    ax.plot(place, middle, **{"marker": "o", "color": color, "markersize": 6} | kw)
