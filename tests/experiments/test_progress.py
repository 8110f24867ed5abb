"""Time left: what the chunks so far took, without what was compiled before the first."""

import io

import pytest
from rich.console import Console

from experiments.common import progress
from experiments.common.progress import Reporter


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


def test_nor_is_that_of_a_later_run(clock):
    events = [(1, "a"), (30, 10), (10, 20), (1, "b"), (60, 30), (10, 40)]
    assert lines(clock, events, total=100)[-1].endswith("about 60 s left")


def test_what_an_earlier_call_has_done_took_no_time(clock):
    shown = lines(clock, [(20, 901), (6, 907)], total=1000, done=900)
    assert shown[-1].endswith("about 93 s left")
