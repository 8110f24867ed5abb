"""Programs that put the claims made for batch norm to the test.

`python -m experiments list` names them, `python -m experiments run NAME` runs one. An experiment
is a package of `lab/` that says only what is its own (settings, what to measure, how to judge, what
to draw); data, models, the training loop and the looks of figures are in `common/`.
"""
