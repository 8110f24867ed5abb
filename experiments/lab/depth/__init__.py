"""Batch norm keeps gradients from vanishing or exploding (Raschka; Ioffe & Szegedy 2015).

Networks of 5 to 50 hidden layers of one width, with sigmoid, tanh or ReLU, with and without batch
norm, are trained from the same weights on the same mini-batches by gradient descent with one
learning rate. Before, meanwhile and after, the norm of the gradient of every layer's weights is
taken, for a batch of test images that batch norm normalises by their own statistics, as in
training.

Weights start as usual, with a variance of one over the number of inputs (LeCun's rule, Flax's
default), whatever the activation. He's rule, twice that, would suit ReLU better and let gradients
neither vanish nor explode without batch norm. What the lectures leave out: at the first step batch
norm with ReLU makes gradients explode with depth (Yang et al. 2019, "A mean field theory of batch
normalization": a factor of sqrt(pi / (pi - 1)) = 1.21 a layer), which is why 50 layers need
skip connections too. That disproves the conjecture of Ioffe & Szegedy for the first step. The
judgement therefore asks which network is the nearer to a gradient that does not depend on depth:

    change = log10(norm of the first layer in the deepest / in the shallowest network)

and compares the absolute values. With batch norm it must be below 2 itself for the claim to hold in
full.
"""

from experiments.lab.depth.figure import draw
from experiments.lab.depth.networks import trials
from experiments.lab.depth.settings import PRESETS
from experiments.lab.depth.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
