"""Benchmarks that state their claims and check them: `python -m experiments benchmark NAME`.

What each one measures stands at the head of its module: `accelerators` · `steps` · `layer` ·
`network` · `compile` · `memory` · `accuracy` · `devices` · `norms` · `guard`. They share `problem`,
`layers`, `torch_layer`, `contestants`, `sharded`, `networks`, `programs` and `floor` (what runs),
`targets` (where it would run, if it were here), `machine` and `timing` (how it is timed), `hlo`,
`collectives`, `moved` and `counted` (what XLA made of it), `claims` and `summary` (what was
promised, and what was found), and `compared`, `panels` and `figure` (how it is shown). `cost` works
out on paper what `devices` counts. The way of measuring is explained in README.md beside this file.
"""

NAMES = (
    "accelerators",
    "checkpoint",
    "steps",
    "layer",
    "network",
    "compile",
    "memory",
    "accuracy",
    "devices",
    "norms",
    "guard",
)
