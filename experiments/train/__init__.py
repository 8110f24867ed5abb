"""Trains one network on one device or on many, and goes on where it was stopped.

In the order in which a run meets them:

* `options`     what can be typed after `python -m experiments train`
* `processes`   one process or several, and what becomes of the rest when one dies
* `settings`    what decides the numbers of a run, written down and compared on the way back
* `folder`      the folder of a run: new, unfinished or finished
* `networks`    the model, its norm and its loss
* `optimizers`  the optimizer and its schedule
* `batches`     which images a step sees, and each device's share of them
* `steps`       one training step and one evaluation, compiled for the devices
* `checkpoints` the state of a run on disk
* `recorder`    all that a run writes
* `loop`        steps, evaluations and checkpoints
* `runner`      all of it
"""
