"""Trained on black cats, tested on coloured ones (Ng; Li et al. 2016).

A network is trained on images in grey, and then sees the same kind of image in other paint::

    x  ->  ground + (ink - ground) x        one colour for 0, one for 1, in each of three channels

    inverted       white ground, black ink
    coloured       blue ground, yellow ink
    low contrast   grey ground, slightly lighter ink

Nothing is learned again. `bnjax.training.adapt` replaces the running statistics by those of images
in the new paint, without their labels: all of the new statistics (AdaBN), or a weighted mean with
the old ones, which then count like `prior` images (Schneider et al. 2020). The images to
adapt to are painted training images, so none that is tested has been seen.

What to expect: batch norm after a linear layer undoes a change of mean and of scale. Low contrast
is no more than that. Inverted images change the sign of every input, which no mean and no positive
scale can undo. Colours are in between: each channel has its own scale, and blue changes its sign.
Li et al. adapt mostly from one photo collection to another, which is a milder shift than these.
"""

from experiments.lab.covariate_shift.figure import draw
from experiments.lab.covariate_shift.measure import trials
from experiments.lab.covariate_shift.settings import PRESETS
from experiments.lab.covariate_shift.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
