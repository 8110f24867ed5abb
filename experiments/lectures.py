"""The sentences of the lectures that claim something, and the rows of the laboratory that test them.

In each lecture's own order. `python -m experiments report --gallery` writes them with their
verdicts into lectures.md beside this file.
"""

from typing import NamedTuple

RASCHKA = "Raschka, STAT 453: lecture 11, input normalisation and batch norm"
NG = "Ng, Deep Learning Specialization: course 2, week 3, batch normalisation"
LONG = "Long Liangqu: batch norm in a tutorial of PyTorch"
LEE = "Lee Hung-yi, Machine Learning 2021: batch normalisation"
LECTURES = (RASCHKA, NG, LONG, LEE)


class Sentence(NamedTuple):
    """What a lecture says, and where that is tested."""

    lecture: str  # one of LECTURES
    said: str
    program: str  # an experiment
    row: str  # the short name of a row of its table


SENTENCES: tuple[Sentence, ...] = ()
