"""Time left: what the chunks so far took, without what was compiled before the first."""

import io
from dataclasses import replace

import numpy as np
import optax
import pytest
from rich.console import Console

from experiments.common import progress
from experiments.common.data import Dataset, Split
from experiments.common.models import MLP
from experiments.common.population import train_to_end
from experiments.common.progress import Reporter
from experiments.common.settings import Settings
from experiments.common.trials import training


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(clock, events, total, done=0):
    """What a file gets to read, for events of (seconds later, step or the name of a run)."""
    console = Console(file=io.StringIO(), width=110)
    with Reporter(total, console, done) as reporter:
        for seconds, event in events:
            clock[0] += seconds
            if isinstance(event, int):
                reporter.show("run", event, 1.0, None)
            else:
                reporter.say(event)
    return [line for line in console.file.getvalue().splitlines() if "steps" in line]


def test_a_minute_of_compilation_is_no_minute_a_step(clock):
    first, *others = lines(clock, [(60, 1), *[(6, step) for step in range(2, 6)]], total=100)
    assert "left" not in first  # nothing but compilation is known
    assert [line.split("about")[1] for line in others] == [
        f" {6 * left} s left" for left in (98, 97, 96, 95)
    ]


def test_the_first_chunk_tells_where_its_clock_began_at_step_0(clock):
    events = [(1, "a"), (60, 0), (30, 10), (1, "b"), (60, 10), (30, 20)]
    assert [line.split("/100 steps")[1] for line in lines(clock, events, total=100)] == [
        "  loss 1.000",
        "  loss 1.000  about 270 s left",
        "  loss 1.000  about 270 s left",
        "  loss 1.000  about 240 s left",
    ]


def test_nor_is_that_of_a_later_run(clock):
    events = [(1, "a"), (30, 10), (10, 20), (1, "b"), (60, 30), (10, 40)]
    assert lines(clock, events, total=100)[-1].endswith("about 60 s left")


@pytest.mark.parametrize("trial", ["training", "to the end"])
def test_a_trial_tells_when_its_steps_begin(trial, rng):
    split = Split(rng.random((20, 6), np.float32), np.arange(20, dtype=np.int32) % 10)
    data, model = Dataset("random", split, split), MLP(hidden=(4,))
    settings = replace(Settings(), seeds=1, steps=3, batch_size=10, eval_every=2)
    shown = []

    class Seen:
        def say(self, doing):
            shown.append(doing)

        def show(self, doing, step, loss, accuracy):
            shown.append((step, loss is None))

    if trial == "training":
        list(training("a", model, optax.sgd(0.1), data, settings).measure(Seen()))
    else:
        train_to_end("a", Seen(), model, data, settings)
    assert shown == ["a: compiling", (0, True), (2, False), (3, False)]


def test_what_an_earlier_call_has_done_took_no_time(clock):
    shown = lines(clock, [(20, 901), (6, 907)], total=1000, done=900)
    assert shown[-1].endswith("about 93 s left")
