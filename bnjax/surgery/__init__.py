"""Change a trained model: a tree of variables in, a new one out, and a check that it fits.

Layers, by path: ``freeze``, ``unfreeze``, ``trained``. Two arrays: ``fold_into_previous``,
``fold_into_next``. Whole models of linen or nnx: ``find_pairs`` says what can be folded, ``fold``
does it; ``drop_redundant_biases`` and ``swap`` change what is trained on. Each returns an
``Outcome``: the model, its variables, and what was done and left alone. ``verify`` compares two
networks on data.
"""

from bnjax.surgery._biases import drop_redundant_biases
from bnjax.surgery._fold import fold_into_next, fold_into_previous
from bnjax.surgery._fold_model import fold
from bnjax.surgery._freeze import freeze, trained, unfreeze
from bnjax.surgery._models import AlteredModule
from bnjax.surgery._outcome import Outcome
from bnjax.surgery._pairs import Pair, Pairs, find_pairs
from bnjax.surgery._swap import swap
from bnjax.surgery._verify import Difference, verify

__all__ = [
    "AlteredModule",
    "Difference",
    "Outcome",
    "Pair",
    "Pairs",
    "drop_redundant_biases",
    "find_pairs",
    "fold",
    "fold_into_next",
    "fold_into_previous",
    "freeze",
    "swap",
    "trained",
    "unfreeze",
    "verify",
]
