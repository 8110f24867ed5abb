"""Benchmarks that state their claims and check them: `python -m experiments benchmark NAME`.

What each one measures stands at the head of its module: `layer` · `network` · `compile` · `memory`
· `accuracy`. They share `problem`, `layers`, `torch_layer`, `contestants` and `floor` (what
runs), `machine` and `timing` (how it is timed), `hlo` (what XLA made of it), `claims` (what was
promised), and `panels` and `figure` (how it is shown). The way of measuring is explained in
README.md beside this file.
"""

NAMES = ("layer", "network", "compile", "memory", "accuracy")
