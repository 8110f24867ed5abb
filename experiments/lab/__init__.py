"""The laboratory: one file a claim, read from top to bottom: settings, trials, judgement, drawing.

`experiments.registry` lists them. Every module has

* `PRESETS`                    `experiments.common.settings.Settings` by name: "quick", "long", and
                               "paper" where it is the paper's setting
* `trials(settings, data)`     what is trained or measured, a list of
                               `experiments.common.trials.Trial`
* `judge(records, settings)`   the rows of the closing table, of `experiments.common.verdicts`; the
                               first claim among them gives the picture its title
* `draw(records, settings)`    a matplotlib figure; title and badges are put about it

`judge` and `draw` read the records that the trials have yielded, and nothing else.
"""
