"""Every experiment of the laboratory runs from its settings to its picture."""

import json
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.common.claims import VERDICTS
from experiments.registry import EXPERIMENTS

NAMES = [experiment.name for experiment in EXPERIMENTS]
# Those that compile little. `.ci/run` runs all, with `run all --steps 2`.
QUICK = ["convergence", "feature_scaling", "inference"]


@pytest.mark.parametrize("name", QUICK)
def test_two_steps_judge_and_draw(name):
    command = ["run", name, "--steps", "2", "--eval-every", "1", "--seeds", "2", "--out", "result"]
    assert main(command) == 0
    summary = json.loads(Path("result/summary.json").read_text())
    assert summary["experiment"] == name and summary["claims"]
    for claim in summary["claims"]:
        assert claim["verdict"] in VERDICTS
        assert claim["claim"] and claim["paper"] and claim["found"] and claim["test"]
    assert Path(f"result/{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_presets_are_those_of_the_lectures(experiment):
    presets = experiment.module.PRESETS
    assert presets.keys() == {"quick", "paper"}
    assert presets["quick"].data == "digits" and presets["paper"].data in ("mnist", "cifar10")
    assert all(settings.seeds >= 5 for settings in presets.values())
    assert experiment.minutes[0] <= 2
