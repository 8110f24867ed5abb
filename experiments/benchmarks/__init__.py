"""Benchmarks that state their claims and check them: `python -m experiments benchmark NAME`.

What each one measures stands at the head of its module: `accelerators` · `checkpoint` · `steps` ·
`layer` · `network` · `compile` · `memory` · `accuracy` · `devices` · `norms` · `guard`. They share
`problem`, `layers`, `torch_layer`, `contestants`, `sharded`, `networks`, `programs`, `cuts` and
`floor` (what runs), `targets` (where it would run, if it were here), `machine` and `timing` (how it
is timed), `hlo`, `collectives`, `moved` and `counted` (what XLA made of it), `claims` and `summary`
(what was promised, and what was found), and `compared`, `panels` and `figure` (how it is shown).
`cost` works out on paper what `devices` counts. The way of measuring is explained in README.md
beside this file.
"""

from typing import NamedTuple


class Benchmark(NamedTuple):
    """One line of `python -m experiments benchmark --help`; the module of its name measures."""

    measures: str
    takes: str  # with `--shapes full`, on two cores that do nothing else
    options: tuple[str, ...]  # the fields of `Settings` that it heeds, besides `shapes`


BENCHMARKS = {
    "accelerators": Benchmark(
        "what batch norm costs in programs for a TPU and a GPU, compiled and counted without them",
        "42 min beside a training run, with the extras tpu and cuda",
        ("rounds",),
    ),
    "checkpoint": Benchmark(
        "what save_norm_statistics saves in networks, and what it costs, compiled as above",
        "48 min beside training runs, with the extras tpu and cuda",
        (),
    ),
    "steps": Benchmark(
        "time of training steps of the same networks",
        "5 min, on the accelerator that it needs",
        ("rounds",),
    ),
    "layer": Benchmark(
        "time of one layer in training and in evaluation", "2 min", ("rounds", "dtype", "axis")
    ),
    "network": Benchmark("time of a training step of a small ResNet", "3 min", ("rounds",)),
    "compile": Benchmark("time to trace, lower and compile fifty layers", "2 min", ("rounds",)),
    "memory": Benchmark("what a layer keeps for its backward pass, and moves", "1 min", ("axis",)),
    "accuracy": Benchmark("errors of a layer on data far from zero", "1 min", ()),
    "devices": Benchmark(
        "what a layer makes 1 to 8 devices send, and how far they agree", "1 min", ("rounds",)
    ),
    "norms": Benchmark("time of layer, RMS, group and instance norm", "1 min", ("rounds", "dtype")),
    "guard": Benchmark(
        "how often, in training, the running mean is far from the mean of a batch",
        "40 min, with MNIST and CIFAR-10 in $BNJAX_DATA_DIR",
        ("rounds",),
    ),
}
