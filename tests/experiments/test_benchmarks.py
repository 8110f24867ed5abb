"""The benchmarks run, count and judge; how fast anything is, is not tested here."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import (
    BENCHMARKS,
    contestants,
    cuts,
    devices,
    figure,
    floor,
    guard,
    layer,
    networks,
    norms,
    programs,
    runner,
    summary,
    targets,
)
from experiments.benchmarks.claims import (
    FAILS,
    HOLDS,
    SHORT,
    SKIPPED,
    UNDECIDED,
    Claim,
    all_hold,
    check,
    misses_aim,
)
from experiments.benchmarks.contestants import PACKAGES, installed, train_step
from experiments.benchmarks.hlo import count_passes
from experiments.benchmarks.machine import MARK, prepare
from experiments.benchmarks.panels import ratio_panel, with_interval
from experiments.benchmarks.problem import draw
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings
from experiments.benchmarks.timing import (
    Estimate,
    geometric_mean,
    paired_ratios,
    quartiles,
    race,
    sample,
    worst,
)
from experiments.cli import main
from experiments.common.records import to_json
from tests._agree import relaxed

SMALL = {
    "layer": Settings(((2, 4, 4, 3),), rounds=2),
    "network": Settings(((4, 8, 8, 3),), rounds=2),
    "compile": Settings(((4, 3),), rounds=2),
    "memory": Settings(((32, 8, 8, 16),)),
    "accuracy": Settings(((97, 3),)),
    "devices": Settings(((8, 3, 3, 5),), rounds=2),
    "norms": Settings(((5, 7, 32), (3, 4, 4, 32)), rounds=2),
    "guard": Settings(((16,),), rounds=12),
    "accelerators": Settings(((8, 3),)),
    "checkpoint": Settings(((2, 4, 4, 3),)),
    "steps": Settings(((2, 4, 32),), rounds=2),
}
HERE = targets.H100._replace(plugins=("jax",), find=lambda n: jax.devices()[:n], options=None)


def few_works(shape):
    chosen = ("bnjax linen", "flax linen")
    return [w for w in programs.works(shape) if w.contestant in chosen and w.dtype == "float32"]


def a_step(shape):
    """Of a small transformer, on the CPU."""
    norms_ = networks.NORMS[networks.LAYER]
    models = {n: networks.Transformer(norms_[n], blocks=1) for n in ("bnjax linen", "flax linen")}
    steps = {n: networks.transformer_step(model, shape) for n, model in models.items()}
    return {f"transformer, {networks.LAYER}": steps}


EXTRA = {"network": {"widths": (4,), "blocks": 1}, "compile": {"depth": 2}}
FEWER = {  # parts of a benchmark left out here, for they take long
    # A collection between turns, which after thousands of tests takes a second.
    "compile": {"gc": SimpleNamespace(collect=lambda: None)},
    "network": {"DTYPES": ("bfloat16",)},
    "memory": {"LAYERS": {n: contestants.LAYERS[n] for n in ("bnjax", "flax linen", "equinox")}},
    "accuracy": {"OFFSETS": (0.0, 1e6)},
    "devices": {
        "WAYS": {n: devices.WAYS[n] for n in ("bnjax", devices.EACH, devices.MERGED, "flax linen")},
        "DEVICES": (2,),
    },
    "guard": {"NETWORKS": guard.NETWORKS[:1], "MOMENTA": (0.9,)},
    "accelerators": {"TARGETS": (HERE,), "works": few_works},
    "checkpoint": {
        "TARGETS": (HERE,),
        "works": lambda shape: cuts.works_of(cuts.SCAN, shape),
    },
    "steps": {"at_hand": lambda: True, "trained": a_step},
}
# Exact: what they claim holds at any size and on any machine.
COUNTED = ("memory", "accuracy", "devices")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_measures_and_judges(name, monkeypatch):
    module = importlib.import_module(f"experiments.benchmarks.{name}")
    for attribute, value in FEWER.get(name, {}).items():
        monkeypatch.setattr(module, attribute, value)
    with relaxed():
        records = list(module.measure(SMALL[name], Progress(), **EXTRA.get(name, {})))
    assert all(json.loads(to_json(record)) for record in records)
    findings = check(module.CLAIMS, module.estimates(records))
    assert any(finding.verdict != SKIPPED for finding in findings)
    if name in COUNTED:
        assert all_hold(findings), findings
    panels = module.panels(records)
    assert all(panel.bars for panel in panels)
    json.dumps([panel.as_json() for panel in panels])
    assert len(figure.draw(name, panels).axes) == len(panels)


def test_the_guard_counts_the_layers_with_a_feature_too_far():
    before = {
        "a": {"mean": np.zeros(2), "var": np.ones(2)},
        "b": {"mean": np.ones(1), "var": np.ones(1)},
    }
    # By one tenth of the way to batches of mean (0, 3) and 3, and variance 1.
    after = {
        "a": {"mean": np.array([0.0, 0.3]), "var": np.ones(2)},
        "b": {"mean": np.array([1.2]), "var": np.ones(1)},
    }
    before, after = (jax.tree.map(jnp.float32, tree) for tree in (before, after))
    assert guard.far_layers(0.9, before, after).tolist() == [True, False]


@pytest.mark.parametrize("kind", [kind for kinds in norms.KINDS.values() for kind in kinds])
def test_contestants_of_the_norms_compute_the_same(kind):
    images = kind in norms.KINDS[True]
    problem = draw((3, 4, 4, 64) if images else (5, 7, 32))
    with relaxed():
        made = {
            n: jax.tree.map(np.asarray, call())
            for n, call in norms.training_calls(kind, problem).items()
        }
    assert {"bnjax", "flax linen"} <= set(made)
    for name, got in made.items():
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(made["bnjax"]), strict=True):
            np.testing.assert_allclose(g.reshape(w.shape), w, rtol=1e-4, atol=1e-4, err_msg=name)


def fake_benchmark(monkeypatch, seconds):
    """`layer` with made-up times of one shape, in training."""

    def measure(settings, progress):
        return turns({n: {"1x1": [v] * settings.rounds} for n, v in seconds.items()})

    def panels(records):
        return [ratio_panel("train", records, seconds, floor.SEPARATE)]

    monkeypatch.setattr(layer, "measure", measure)
    monkeypatch.setattr(layer, "panels", panels)


@pytest.mark.parametrize("ours, code, verdict", [(1.0, 0, HOLDS), (1.2, 0, SHORT), (2.0, 1, FAILS)])
def test_a_claim_that_fails_is_the_exit_code(monkeypatch, capsys, ours, code, verdict):
    fake_benchmark(monkeypatch, {floor.SEPARATE: 1.0, "bnjax": ours, "flax linen": 5.0})
    assert main(["benchmark", "layer", "--rounds", "2", "--out", "result"]) == code
    files = {path.name for path in Path("result").iterdir()}
    assert files == {"metrics.jsonl", "config.json", "summary.json", "layer.png"}
    claims = json.loads(Path("result/summary.json").read_text())["claims"]
    claim = {claim["quantity"]: claim for claim in claims}
    judged = claim["bnjax / floor (separate), train"]
    assert (judged["bound"], judged["aim"], judged["verdict"]) == (1.65, 1.1, verdict)
    assert claim["bnjax / flax linen, train"]["verdict"] == HOLDS
    assert claim["bnjax / torch, train"]["verdict"] == SKIPPED
    config = json.loads(Path("result/config.json").read_text())
    assert config["settings"]["rounds"] == 2 and config["cpu"]["model"]
    out = capsys.readouterr().out
    assert "aimed" in out and "verdict" in out


def test_claims_are_about_float32(monkeypatch):
    fake_benchmark(monkeypatch, {floor.SEPARATE: 1.0, "bnjax": 9.0})
    assert main(["benchmark", "layer", "--dtype", "bfloat16", "--out", "result"]) == 0


@pytest.mark.parametrize(
    "args, message",
    [
        (["nope"], "'nope' is not one of accelerators, checkpoint"),
        (["accuracy", "--rounds", "3"], "--rounds means nothing to benchmark accuracy"),
        (["network", "--axis", "first"], "--axis means nothing to benchmark network"),
        (["layer", "--rounds", "1"], "'1' is not a whole number from 2"),
        (["layer", "--shapes", "odd"], "'odd' is not one of quick, full"),
    ],
)
def test_user_errors(args, message, capsys, tmp_path):
    assert main(["benchmark", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_finished_result_is_kept(monkeypatch, capsys):
    fake_benchmark(monkeypatch, {floor.SEPARATE: 1.0, "bnjax": 1.0})
    words = ["benchmark", "layer", "--out", "result"]
    assert [main(words), main(words), main([*words, "--overwrite"])] == [0, 2, 0]
    assert "add --overwrite" in capsys.readouterr().err


def test_the_process_starts_again_once(monkeypatch):
    calls = []
    monkeypatch.setattr("os.execve", lambda *args: calls.append(args))
    monkeypatch.delenv(MARK, raising=False)
    prepare()
    ((_, _, environment),) = calls
    assert environment["MALLOC_MMAP_MAX_"] == "0" and environment["OMP_WAIT_POLICY"] == "passive"
    assert "TPU_ACCELERATOR_TYPE" not in environment
    monkeypatch.setenv(MARK, environment[MARK])
    prepare()
    assert len(calls) == 1


def turns(seconds):
    """Records of made-up times: contestant -> shape -> seconds of each round."""
    return [
        {"contestant": name, "shape": shape, "round": i, "seconds": value, "part": "train"}
        for name, by_shape in seconds.items()
        for shape, values in by_shape.items()
        for i, value in enumerate(values)
    ]


def test_ratios_are_paired_by_round():
    noise = np.array([1.0, 10.0, 3.0])  # of the round, met by both
    records = turns({"a": {"s": 2 * noise}, "b": {"s": noise, "t": noise}})
    ratios = paired_ratios(records, "a", "b", part="train")
    assert list(ratios) == ["s"]
    np.testing.assert_allclose(ratios["s"], 2.0)
    assert geometric_mean(ratios) == pytest.approx((2.0, 2.0, 2.0))
    assert paired_ratios(records, "a", "b", part="evaluate") == {}
    assert geometric_mean({}) is None and worst({}) is None


def test_geometric_mean_over_shapes_and_worst_shape():
    ratios = {"s": np.array([0.5, 0.5, 9.0]), "t": np.array([2.0, 2.0, 2.0])}
    assert geometric_mean(ratios).value == pytest.approx(1.0)
    assert worst(ratios) == pytest.approx((2.0, 2.0, 2.0))
    assert quartiles(np.arange(5.0)) == [1.0, 2.0, 3.0]


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        found = geometric_mean({s: np.exp(0.1 * rng.normal(size=30)) for s in "st"})
        assert found.low <= found.value <= found.high < 1.2
        hits += found.low <= 1 <= found.high
    assert 87 <= hits <= 100


def test_every_contestant_once_a_round_in_changing_order():
    calls = []
    found = list(race({n: lambda n=n: calls.append(n) for n in "abc"}, rounds=8))
    assert calls[:3] == ["a", "b", "c"]
    orders = ["".join(name for number, name, _ in found if number == i) for i in range(8)]
    assert {"".join(sorted(order)) for order in orders} == {"abc"} and len(set(orders)) > 2


def test_a_turn_drops_the_first_call_and_results():
    calls = []
    sample(lambda: calls.append(None), calls=3, seconds=0)
    assert len(calls) == 4


def test_claims():
    estimates = {"a": Estimate(1.02, 0.98, 1.05), "b": Estimate(float("nan"))}
    claims = [
        Claim("strict", "a", 1.0),
        Claim("strict", "a", 1.1),
        Claim("no slower", "a", 1.0, within_noise=True),
        Claim("slower", "a", 0.97, within_noise=True),
        Claim("nonsense", "b", 1.0),
        Claim("absent", "c", 1.0),
    ]
    findings = check(claims, estimates)
    assert [f.verdict for f in findings] == [FAILS, HOLDS, UNDECIDED, FAILS, FAILS, SKIPPED]
    assert not all_hold(findings) and all_hold([findings[1], findings[2], findings[5]])
    assert not any(map(misses_aim, findings))
    assert with_interval(Estimate(0.5)) == "0.5"
    assert with_interval(estimates["a"]) == "1.02 [0.98, 1.05]"


def test_a_claim_that_is_short_of_its_aim_does_not_fail():
    estimates = {"a": Estimate(1.02, 0.98, 1.05), "b": Estimate(float("nan"))}
    claims = [
        Claim("reached", "a", 1.2, aim=1.1),
        Claim("not reached", "a", 1.2, aim=1.0),
        Claim("perhaps reached", "a", 1.2, within_noise=True, aim=1.0),
        Claim("surely not reached", "a", 1.2, within_noise=True, aim=0.9),
        Claim("perhaps not even the bound", "a", 1.0, within_noise=True, aim=0.9),
        Claim("not even the bound", "a", 1.0, aim=0.9),
        Claim("nonsense", "b", 1.2, within_noise=True, aim=1.0),
        Claim("absent", "c", 1.2, aim=1.0),
    ]
    findings = check(claims, estimates)
    want = [HOLDS, SHORT, UNDECIDED, SHORT, UNDECIDED, FAILS, FAILS, SKIPPED]
    assert [f.verdict for f in findings] == want
    assert all_hold(findings[:5]) and not any(map(all_hold, [[findings[5]], [findings[6]]]))
    assert [misses_aim(f) for f in findings] == [False, *[True] * 5, False, False]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_aim_is_more_than_the_bound(name):
    for claim in summary.module_of(name).CLAIMS:
        assert claim.aim is None or claim.aim < claim.bound, claim


FOLDERS = sorted(path.parent for path in summary.COMMITTED.glob("*/*/summary.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_results_keep_the_bounds(folder):
    """And are judged as they would be today: see `experiments.benchmarks.summary`."""
    content = json.loads((folder / "summary.json").read_text())
    findings = summary.judge(content)
    assert content == summary.rejudged(content)
    assert all_hold(findings), [f for f in findings if f.verdict == FAILS]
    settings = json.loads((folder / "config.json").read_text())["settings"]
    measured = settings["dtype"] == "float32"
    assert all((f.verdict != SKIPPED) == measured for f in findings)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_time_that_help_tells_is_that_of_the_committed_result(folder):
    config = json.loads((folder / "config.json").read_text())
    full = summary.module_of(config["benchmark"]).DEFAULTS
    names = ("shapes", "rounds", "dtype")  # in bfloat16 some contestants take ten times as long
    settings = {name: config["settings"][name] for name in names}
    if settings != json.loads(json.dumps({name: getattr(full, name) for name in names})):
        pytest.skip("of other settings")
    minutes = float(BENCHMARKS[config["benchmark"]].takes.partition(" min")[0])
    assert 0.4 * minutes < config["seconds"] / 60 < 1.05 * minutes


def test_the_readmes_name_each_aim_that_is_not_reached():
    root = Path(__file__).parents[2]
    assert summary.aims_table() in (root / "experiments/benchmarks/README.md").read_text()
    assert summary.aims_in_words() in " ".join((root / "README.md").read_text().split())


KNOWN_PROGRAM = """
HloModule jit_f, is_scheduled=true

%fused (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %n = f32[8,4]{1,0} negate(%p)
}

ENTRY %main (x: f32[8,4], v: f32[4]) -> (f32[8,4], f32[4]) {
  %x.1 = f32[8,4]{1,0} parameter(0), metadata={op_name="x"}
  %v.1 = f32[4]{0} parameter(1)
  %b = f32[32]{0} bitcast(%x.1)
  %both = (f32[8,4]{1,0}, /*index=1*/f32[4]{0}) fusion(%x.1, %v.1), kind=kLoop, calls=%fused
  %first = f32[8,4]{1,0} get-tuple-element(%both), index=0
  %sum = f32[4]{0} fusion(%first, /*index=1*/%b), kind=kLoop, calls=%fused, control-predecessors={%x.1}
  ROOT %t = (f32[8,4]{1,0}, f32[4]{0}) tuple(%first, %sum)
}
"""  # noqa: E501


def test_passes_of_a_known_program():
    assert count_passes(KNOWN_PROGRAM, 32) == (3, 1)
    assert count_passes(KNOWN_PROGRAM, 33) == (0, 0)
    assert count_passes(KNOWN_PROGRAM, 4).total == 7


def test_passes_of_a_compiled_program():
    x = jnp.ones((64, 32))
    compiled = jax.jit(lambda x, y: x + y).lower(x, x).compile()
    assert count_passes(compiled.as_text(), x.size) == (2, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("axis", ["last", "first"])
def test_contestants_compute_the_same(dtype, axis):
    """In both layouts and dtypes; all are given the same arrays, and answer in their dtype."""
    problem = draw((4, 5, 5, 3), dtype, axis)
    with relaxed():
        outputs = {name: train_step(name, problem)() for name in filter(installed, PACKAGES)}
    tolerance = 1e-5 if dtype == "float32" else 0.05
    ours = outputs["bnjax"]
    for name, out in outputs.items():
        assert str(out.y.dtype).removeprefix("torch.") == dtype, name
        for got, want in zip((out.y, *out.gradients), (ours.y, *ours.gradients), strict=True):
            got, want = _float(got), _float(want)
            assert got.shape == want.shape, name
            assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), name


def _float(v):
    return np.asarray(v.astype("float32") if hasattr(v, "astype") else v.float())


def test_the_floor_runs_in_both_dtypes():
    for dtype in ("float32", "bfloat16"):
        problem = draw((4, 3), dtype)
        x = problem.x.astype(jnp.float32)
        total, y, products, dx = floor.separate(problem)()
        np.testing.assert_allclose(total, x.sum(0), rtol=1e-5)
        np.testing.assert_allclose(products, (x * problem.dy.astype(x.dtype)).sum(0), rtol=1e-5)
        assert y.dtype == dx.dtype == problem.x.dtype
        assert len(floor.one_program(problem)()) == 4


def test_runner_knows_every_benchmark():
    for name, entry in BENCHMARKS.items():
        module = importlib.import_module(f"experiments.benchmarks.{name}")
        assert runner.title_of(module, module.DEFAULTS) and set(module.SHAPES) == {"quick", "full"}
        assert set(entry.options) <= {"rounds", "dtype", "axis"}
