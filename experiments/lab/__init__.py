"""The laboratory: one package a claim, each saying what it trains, how it is judged and drawn.

`experiments.registry` lists them. Every package has

* `PRESETS`                    `experiments.common.settings.Settings` by name: "quick" and "paper"
* `trials(settings, data)`     what is trained or measured, a list of
                               `experiments.common.trials.Trial`
* `judge(records, settings)`   the rows of the closing table, a list of `Claim`
* `draw(records, settings)`    a matplotlib figure

`judge` and `draw` read the records that the trials have yielded, and nothing else.
"""
