"""Every experiment of the laboratory runs from its settings to its picture."""

import json
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.common.verdicts import CLAIM, VERDICTS
from experiments.registry import EXPERIMENTS, PRESETS

NAMES = [experiment.name for experiment in EXPERIMENTS]
# Those that compile little. `.ci/run` runs all, with `--steps 2`.
QUICK = ["convergence", "feature_scaling", "inference"]


@pytest.mark.parametrize("name", QUICK)
def test_two_steps_judge_and_draw(name):
    command = ["run", name, "--steps", "2", "--eval-every", "1", "--seeds", "2", "--out", "result"]
    assert main(command) == 0
    summary = json.loads(Path("result/summary.json").read_text())
    assert summary["experiment"] == name and summary["claims"]
    for row in summary["claims"]:
        assert row["verdict"] in (VERDICTS if row["kind"] == CLAIM else [""])
        assert row["short"] and row["claim"] and row["found"]
    assert Path(f"result/{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=NAMES)
def test_presets_are_quick_and_long_and_have_ten_seeds(experiment):
    presets = experiment.module.PRESETS
    assert experiment.minutes.keys() == presets.keys() <= set(PRESETS)
    assert presets.keys() >= {"quick", "long"}
    assert presets["quick"].data == "digits" and presets["long"].data in ("mnist", "cifar10")
    assert all(settings.seeds >= 10 for settings in presets.values())
    assert experiment.minutes["quick"] <= 2
    assert experiment.denial
