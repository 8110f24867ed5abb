"""The noise of batch statistics regularises, that of large batches less (Ng).

Mean and variance of a batch are those of the population and noise, of a spread that should fall as
1 / sqrt(batch size). It is measured on inputs of batch norm, of images drawn independently; for
such draws that is arithmetic, and the row shows it rather than puts it to the test.

A network is then trained with batches of 64 and of 512, with the same learning rate and for the
same number of steps, and the gap between test and training loss at the end is compared (both by
running statistics). The training set is small enough to be fitted by both. But a larger batch also
takes the noise out of the gradient, so that a smaller gap at 64 may not be batch norm's doing.
Two more comparisons tell the noises apart: batches of 512 of which every 64 images are normalised
by themselves (virtual batches), with the gradient's noise of 512 and the statistics' noise of 64;
and networks without batch norm, where only the gradient's noise can differ.
"""

from experiments.lab.regularisation.figure import draw
from experiments.lab.regularisation.networks import trials
from experiments.lab.regularisation.settings import PRESETS
from experiments.lab.regularisation.verdict import judge

__all__ = ["PRESETS", "draw", "judge", "trials"]
