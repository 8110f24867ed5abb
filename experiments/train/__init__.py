"""Trains one network on one device or on many, and goes on where it was stopped.

In the order in which a run meets them:

* `options`     what can be typed after `python -m experiments train`, and what decides the numbers
* `checks`      what can be refused at once, before JAX is imported
* `processes`   one process or several, and what becomes of the rest when one dies
* `meeting`     how several find out that they mean the same run
* `recorder`    all that a run writes, into a folder that `experiments.common.results` keeps
* `checkpoints` the state of a run on disk
* `runner`      model, optimizer, batches, steps, evaluations, and the loop of them
"""
