"""What batch norm adds to a step of ResNet-50 on many accelerators, on paper.

What each layer sends is counted by `devices`; what a link carries is assumed, see `Links`. A
collective takes a latency, and its bytes over the bandwidth (the alpha-beta model). Accelerators
stand in nodes; a collective goes through the node first and then between nodes, where each doubling
of their number is one step more. `python -m experiments.benchmarks.cost` prints the tables of
experiments/README.md.
"""

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # of ResNet-50: width, blocks
PARAMETERS = 25.6e6
STEP = 32 / 2900  # seconds: images a device, images a second
SIZES = (8, 256, 4096)  # accelerators
WIDTHS = (64, 256, 512, 2048)  # features of a layer


class Links(NamedTuple):
    """What is assumed of a machine."""

    node: int  # accelerators
    inside: float  # bytes a second, into each accelerator from its node
    between: float  # bytes a second, into each accelerator from other nodes
    latency: float  # seconds, of a small collective in a node
    doubling: float  # seconds, more for each doubling of the number of nodes


class Sends(NamedTuple):
    """What one layer sends, forward and backward; bytes a feature."""

    gathers: int = 0
    gathered: int = 0
    reduces: int = 0
    reduced: int = 0


# NVLink 4 in a node, 400 Gb/s InfiniBand for each accelerator between nodes.
H100 = Links(node=8, inside=450e9, between=50e9, latency=10e-6, doubling=10e-6)
NAMED = Sends(gathers=1, gathered=12, reduces=1, reduced=8)  # axis_name under shard_map
PLAIN = Sends(reduces=3, reduced=12 + 8)  # a sharded array under plain jit
MERGED = Sends(gathers=1, gathered=12)  # statistics of each device, running statistics merged


def resnet50_features() -> Iterator[int]:
    """Features of every batch norm: the stem, and three a block, one more where a stage begins."""
    yield 64
    for width, blocks in STAGES:
        yield 4 * width  # on the shortcut of the first block
        for _ in range(blocks):
            yield from (width, width, 4 * width)


def latency(n: int, links: Links = H100) -> float:
    """Seconds of a collective of nothing over `n` accelerators."""
    return links.latency + links.doubling * math.log2(_nodes(n, links))


def gathering(size: float, n: int, links: Links = H100) -> float:
    """Seconds to bring `size` bytes of each of `n` accelerators to all, beyond the latency.

    Each fetches the share of its like in the other nodes, and then all shares from its neighbours.
    """
    inside, nodes = min(n, links.node), _nodes(n, links)
    return size * ((nodes - 1) / links.between + nodes * (inside - 1) / links.inside)


def reducing(size: float, n: int, links: Links = H100) -> float:
    """Seconds to sum `size` bytes over `n` accelerators, beyond the latency.

    Scattered over the node, summed between nodes, and gathered in the node.
    """
    inside, nodes = min(n, links.node), _nodes(n, links)
    between = 2 * (nodes - 1) / nodes / inside / links.between
    return size * (between + 2 * (inside - 1) / inside / links.inside)


def _nodes(n: int, links: Links) -> float:
    return max(1.0, n / links.node)


def layers(sends: Sends, n: int, features: tuple[int, ...]) -> float:
    """Seconds that layers with so many features wait in a step."""
    waits = len(features) * (sends.gathers + sends.reduces) * latency(n)
    total = sum(features)
    return waits + gathering(sends.gathered * total, n) + reducing(sends.reduced * total, n)


def turning_point(features: int) -> int:
    """The smallest power of two at which plain jit is faster than `axis_name`."""
    n = 2
    while layers(NAMED, n, (features,)) <= layers(PLAIN, n, (features,)):
        n *= 2
    return n


def step_table() -> str:
    """Bytes and milliseconds a step, in Markdown."""
    features = tuple(resnet50_features())
    received = [NAMED.gathered * sum(features) * (n - 1) / 1e6 for n in SIZES]
    gradients = [latency(n) + reducing(4 * PARAMETERS, n) for n in SIZES]
    rows = {
        "all as one batch, `axis_name`": [layers(NAMED, n, features) for n in SIZES],
        "all as one batch, plain `jit`": [layers(PLAIN, n, features) for n in SIZES],
        "groups of 64, `axis_name`": [layers(NAMED, min(n, 64), features) for n in SIZES],
        "groups of 8, `axis_name`": [layers(NAMED, min(n, 8), features) for n in SIZES],
        "each its own, merged ¹": [layers(MERGED, n, features) for n in SIZES],
        "each its own": [0.0 for _ in SIZES],
        "sum of the gradients ¹": gradients,
    }
    lines = [
        _row("accelerators", *(f"{n:,}" for n in SIZES)),
        _row(*["---"] * (1 + len(SIZES))),
        _row("received forward by each with `axis_name`, MB", *(f"{mb:,.1f}" for mb in received)),
        *(_row(name, *map(_milliseconds, seconds)) for name, seconds in rows.items()),
    ]
    return "\n".join(lines)


def turning_table() -> str:
    """From how many accelerators on plain jit is faster, in Markdown."""
    points = (f"{turning_point(width):,}" for width in WIDTHS)
    rows = ("features of the layer", *(f"{w:,}" for w in WIDTHS)), ("accelerators", *points)
    return "\n".join([_row(*rows[0]), _row(*["---"] * (1 + len(WIDTHS))), _row(*rows[1])])


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms, {100 * seconds / STEP:.0f} %"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.cost",
        description="Print the tables of what batch norm adds to a step on many accelerators.",
    ).parse_args()
    print(step_table(), turning_table(), sep="\n\n")
