"""Features of unlike scale make a ravine of the loss; standardising rounds it (Lee; Ng).

What is this experiment's own: a linear model of two weights, so that all of its loss can be drawn.
It tells even digits from odd ones, t = +1 or -1, by two pixels, of which the second is counted in
hundredths, as a price may be in cents:

    y = w1 x1 + w2 x2,   x1 in [0, 1],   x2 in [0, 100],     loss = mean (y - t)^2 / 2

The loss is a bowl with the Hessian  H = mean x x^T.  The square root of its condition number
(largest by smallest eigenvalue) says how many times longer than wide the bowl is, and gradient
descent is stable below the learning rate  2 / largest eigenvalue.  A seed draws the two pixels,
the images and the first weights. The same is done to the standardised pixels, and to what a
batch-norm layer makes of the raw ones.

The lectures name no learning rate. Here the largest stable one is found by trying, and every input
is given the same share of its own, so none is slow for a rate that suits another. All images are
one batch: the statistics of batch norm have no noise, and only the shape of the bowl differs.
"""

from experiments.lab.feature_scaling.descent import trials
from experiments.lab.feature_scaling.figure import draw
from experiments.lab.feature_scaling.settings import PRESETS
from experiments.lab.feature_scaling.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
