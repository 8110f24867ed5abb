"""Scale and shift help, can undo the normalisation, and replace the bias before (Raschka; Ng).

What is this experiment's own: networks of three hidden layers of 100 sigmoid units, with batch norm

    y = scale * (x - mean) / sqrt(var + epsilon) + shift

before each sigmoid, with both of scale and shift, with one of them, and with neither. All start
from the same weights and see the same mini-batches. Sigmoids are where the lectures mean it: inputs
of mean 0 and variance 1 keep to the part of a sigmoid that is almost a straight line, and only a
scale lets the network use the rest.

Two more things are measured. With scale = sqrt(var + epsilon) and shift = mean, y should be x, but
for rounding. And a bias before batch norm is taken away with the mean: its gradient should be 0,
but for rounding, and a network that has such biases should train as the one without.
"""

from experiments.lab.affine.figure import draw
from experiments.lab.affine.networks import trials
from experiments.lab.affine.settings import PRESETS
from experiments.lab.affine.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
