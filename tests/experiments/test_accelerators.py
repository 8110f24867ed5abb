"""What the benchmark of accelerators counts and claims; no compiler of another device is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.benchmarks import accelerators, machine, networks, programs, steps, targets
from experiments.benchmarks.claims import FAILS, HOLDS, SHORT, SKIPPED, check
from experiments.benchmarks.contestants import FLAX, OURS_LINEN
from experiments.benchmarks.counted import (
    ACCESSED,
    COLLECTIVES,
    CYCLES,
    HBM,
    SECONDS,
    TEMPORARY,
    costs,
    count_work,
)
from experiments.benchmarks.moved import Moved, Run, count
from experiments.benchmarks.networks import ResNet, classifier_step
from experiments.benchmarks.panels import table
from experiments.benchmarks.programs import FORWARD, JIT, RESNET, SHARDED, Work
from experiments.benchmarks.progress import Progress
from experiments.benchmarks.settings import Settings
from experiments.cli import main
from experiments.common.errors import UserError
from tests._agree import relaxed

KNOWN_PROGRAM = """
HloModule jit_f, is_scheduled=true

%keep (k: (f32[4])) -> f32[4] {
  %k = (f32[4]{0:S(1)}) parameter(0)
  ROOT %kept = f32[4]{0:S(1)} get-tuple-element(%k), index=0
}

%again (a: f32[8,4]) -> f32[4] {
  %a = f32[8,4]{1,0} parameter(0)
  %s = f32[4]{0} fusion(%a), kind=kLoop, calls=%sums, backend_config={"estimated_cycles":"70"}
  ROOT %r = f32[4]{0:S(1)} all-reduce(%s), to_apply=%add
}

%sums (c: f32[8,4]) -> f32[4] {
  %c = f32[8,4]{1,0} parameter(0)
  %w = f32[4]{0} parameter(1)
  %zero = f32[] constant(0)
  ROOT %z = f32[4]{0} reduce(%c, %zero), dimensions={0}, to_apply=%add
}

%sliced (p0: f32[8,4], p1: f32[4]) -> f32[2,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  %b = f32[8,4]{1,0} bitcast(%p0)
  %part = f32[1,4]{1,0} slice(%b), slice={[0:1], [0:4]}
  %other = f32[1,4]{1,0} slice(%p0), slice={[4:5], [0:4]}
  ROOT %both = f32[2,4]{1,0} concatenate(%part, %other), dimensions={0}
}

%turn (q: f32[8,4]) -> f32[8,4] {
  %q = f32[8,4]{1,0} parameter(0)
  ROOT %n = f32[8,4]{1,0} negate(%q)
}

ENTRY %main (x: f32[8,4], v: f32[4]) -> (f32[8,4], f32[4]) {
  %x = f32[8,4]{1,0:T(8,128)} parameter(0)
  %v = f32[4]{0:T(128)S(1)} parameter(1)
  %start = (f32[8,4]{1,0:S(1)}, f32[8,4]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[8,4]{1,0:S(1)} copy-done(%start)
  %fast = f32[4]{0:S(1)} fusion(%done, %v), kind=kLoop, calls=%sums, backend_config={"estimated_cycles":"50"}
  %few = f32[2,4]{1,0} fusion(%x, /*index=1*/%v), kind=kLoop, calls=%sliced
  %t = (f32[4]{0:S(1)}) tuple(%fast)
  %if = f32[4]{0:S(1)} conditional(%pred, %t, %x), branch_computations={%keep, %again}
  %loop = f32[8,4]{1,0} while(%x), condition=%cond, body=%turn, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = (f32[8,4]{1,0}, f32[4]{0:S(1)}) tuple(%loop, %if)
}
"""  # noqa: E501


def test_a_known_program():
    """x has 128 bytes, v 16; fast memory is not moved to or from, only touched."""
    run = count(KNOWN_PROGRAM)
    copied, summed, sliced, looped = 128, 0, 32 + 32, 3 * 256
    assert run.outside.bytes == copied + summed + sliced + looped
    assert run.outside.touched == 256 + (128 + 16 + 16) + (32 + 32 + 16) + looped
    assert (run.outside.kernels, run.outside.cycles, run.outside.collectives) == (1 + 1 + 3, 50, 0)
    assert run.light == Moved()
    assert run.heavy == Moved(128 + 16 + 16, 128 + 16 + 32, kernels=2, cycles=70, collectives=1)
    assert run.usual == run.outside and run.worst == run.outside.plus(run.heavy)


def test_a_loop_whose_turns_are_not_told_counts_up_to_its_limit():
    told = ', backend_config={"known_trip_count":{"n":"3"}}'
    condition = """
%cond (i: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %limit = s32[] constant(3)
  ROOT %more = pred[] compare(%i, %limit), direction=LT
}

ENTRY"""
    untold = KNOWN_PROGRAM.replace(told, "").replace("ENTRY", condition.lstrip())
    assert untold != KNOWN_PROGRAM and count(untold) == count(KNOWN_PROGRAM)


def test_the_other_way_to_write_a_branch():
    branches = "branch_computations={%keep, %again}"
    other = "true_computation=%again, false_computation=%keep"
    assert count(KNOWN_PROGRAM.replace(branches, other)) == count(KNOWN_PROGRAM)


@pytest.mark.compiled("as users do")
def test_a_compiled_program():
    def f(x, y):
        z = jax.lax.cond(y[0, 0] > 0, lambda x: x - jnp.sum(x), lambda x: x[::-1], x * y)
        return jax.lax.scan(lambda c, _: (c * 2, None), z, length=5)[0]

    x = jnp.ones((64, 32))
    run = count(jax.jit(f).lower(x, x).compile().as_text())
    assert run.light.bytes == 2 * x.nbytes  # what is fused is not moved
    assert 3 * x.nbytes < run.heavy.bytes < 4 * x.nbytes  # x is summed first
    numbers = run.outside.bytes - (3 + 5 * 2) * x.nbytes  # a product, and five turns
    assert 0 < numbers < 200


UPDATES = """
HloModule jit_f, is_scheduled=true

%view (q: f32[8,4]) -> f32[8,4] {
  %q = f32[8,4]{1,0} parameter(0)
  ROOT %c = f32[8,4]{1,0} copy(%q)
}

%part (w: f32[8,4], j: s32[]) -> f32[1,4] {
  %w = f32[8,4]{1,0} parameter(0)
  %j = s32[] parameter(1)
  ROOT %d = f32[1,4]{1,0} dynamic-slice(%w, %j, %j), dynamic_slice_sizes={1,4}
}

%nested (u: f32[8,4], l: s32[]) -> f32[1,4] {
  %u = f32[8,4]{1,0} parameter(0)
  %l = s32[] parameter(1)
  %there = f32[1,4]{1,0} fusion(%u, %l), kind=kLoop, calls=%part
  ROOT %negated = f32[1,4]{1,0} negate(%there)
}

%both (p0: f32[8,4], p1: f32[4], p2: s32[]) -> (f32[8,4], f32[4]) {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %row = f32[1,4]{1,0} bitcast(%p1)
  %same = f32[8,4]{1,0} fusion(%p0), kind=kLoop, calls=%view
  %new = f32[8,4]{1,0} dynamic-update-slice(%same, %row, %p2, %p2)
  %n = f32[4]{0} negate(%p1)
  ROOT %t = (f32[8,4]{1,0}, f32[4]{0}) tuple(%new, %n)
}

ENTRY %main (x: f32[8,4], v: f32[4], i: s32[], two: f32[2,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %v = f32[4]{0} parameter(1)
  %i = s32[] parameter(2)
  %two = f32[2,4]{1,0} parameter(3)
  %fused = (f32[8,4]{1,0}, f32[4]{0}) fusion(%x, %v, %i), kind=kLoop, calls=%both
  %first = f32[8,4]{1,0} get-tuple-element(%fused), index=0
  %second = f32[8,4]{1,0} dynamic-update-slice(%first, %two, %i, %i)
  ROOT %third = f32[1,4]{1,0} fusion(%second, %i), kind=kLoop, calls=%nested
}
"""


def test_of_an_array_that_is_updated_in_its_place_only_the_part_moves():
    """And what a fusion inside a fusion slices is a slice."""
    read, written, index = 16, 16 + 16, 4
    fused, second, third = read + written + index, 2 * 32, 16 + index + 16
    assert count(UPDATES).outside.bytes == fused + second + third


@pytest.mark.compiled("as users do")
def test_a_loop_that_stacks():
    def f(x):
        return jax.lax.scan(lambda c, _: (c * 2, c), x, length=5)

    x = jnp.ones((64, 32))
    moved = count(jax.jit(f).lower(x).compile().as_text()).outside.bytes / x.nbytes
    a_turn = 2 + 2 + 2  # a copy, the product, and one of the stack
    assert 5 * (2 + 2) < moved < 5 * a_turn + 10


def test_what_a_compiler_says_holds_the_heavy_branch():
    run = Run(Moved(700, 900, cycles=40), Moved(0, 10), Moved(300, 100, cycles=9))
    said = {"bytes accessed": 1000.0, "optimal_seconds": -2 + 0.25}
    found = costs(said, run)
    assert found[ACCESSED] == 910 and found[SECONDS] == pytest.approx(0.25 * 0.91)
    assert (found[HBM], found[CYCLES]) == (700, 40)
    assert costs({}, run) == {ACCESSED: 700, HBM: 700}


def record(contestant, accessed, target=targets.TPU, program=RESNET, dtype="bfloat16", **counted):
    counted = {"size": 10.0, ACCESSED: accessed} | counted
    where = {"part": "counted", "target": target.name, "program": program, "shape": "1x1"}
    return where | {"dtype": dtype, "contestant": contestant} | counted


def test_claims_about_accelerators_can_fail():
    records = [
        record(OURS_LINEN, 95.0, **{SECONDS: 0.8, CYCLES: 106}),
        record(FLAX, 100.0, **{SECONDS: 1.0, CYCLES: 100}),
        record(OURS_LINEN, 0.0, targets.H100, FORWARD, "float32", **{HBM: 34.0}),
        record(OURS_LINEN, 0.0, targets.H100, FORWARD, "bfloat16", **{HBM: 35.0}),
        record(JIT, 1.0, program=SHARDED, **{COLLECTIVES: 3}),
    ]
    found = accelerators.estimates(records)
    verdicts = {f.quantity: f.verdict for f in check(accelerators.CLAIMS, found)}
    ratio, times_x = accelerators.ratio, accelerators.times_x
    assert verdicts[ratio("TPU v5e", RESNET, ACCESSED)] == SHORT
    assert verdicts[ratio("TPU v5e", RESNET, SECONDS)] == HOLDS
    assert verdicts[ratio("TPU v5e", RESNET, CYCLES)] == FAILS
    assert verdicts[ratio("TPU v5e", RESNET, HBM)] == SKIPPED
    assert verdicts[times_x("H100", FORWARD, "float32")] == HOLDS
    assert verdicts[times_x("H100", FORWARD, "bfloat16")] == FAILS
    assert verdicts[f"{JIT}, TPU v5e, {SHARDED}, {COLLECTIVES}"] == FAILS


def without(monkeypatch, *missing):
    """As if the plugins of some targets were not installed, and all others were the CPU."""
    monkeypatch.setattr(targets, "_installed", lambda package: package not in missing)
    return [t._replace(find=lambda n: jax.devices()[:n]) for t in targets.TARGETS]


def test_a_missing_compiler_is_one_line(monkeypatch, capsys):
    lines = []
    both = without(monkeypatch, "libtpu")
    assert [t.name for t in targets.present(both, lines.append)] == ["H100"]
    (line,) = lines
    assert "TPU v5e" in line and "pip install 'bnjax[tpu]'" in line
    without(monkeypatch, *machine.PLUGINS)
    assert main(["benchmark", "accelerators", "--out", "result"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "bnjax[tpu]" in error and "bnjax[cuda]" in error


def test_a_compiler_that_does_not_start_is_left_out(monkeypatch):
    def find(number):
        raise RuntimeError("no such topology\nand more")

    tpu, gpu = without(monkeypatch)
    lines = []
    assert targets.present([tpu._replace(find=find), gpu], lines.append) == [gpu]
    assert lines == ["left out: TPU v5e (no such topology)"]
    with pytest.raises(UserError, match="no such topology"):
        targets.present([tpu._replace(find=find)], lines.append)


@pytest.mark.parametrize("card, set_", [(False, True), (True, False)])
def test_jax_looks_for_no_device_where_there_is_none(card, set_, monkeypatch):
    environments = []
    monkeypatch.setattr("os.execve", lambda *args: environments.append(args[2]))
    monkeypatch.setattr("os.path.exists", lambda path: card and path == "/dev/nvidia0")
    for name in (machine.MARK, *machine.ELSEWHERE):
        monkeypatch.delenv(name, raising=False)
    machine.prepare(elsewhere=True)
    assert (environments[0].get("JAX_PLATFORMS") == "cpu") == set_
    assert ("TPU_ACCELERATOR_TYPE" in environments[0]) == set_


TINY, SHAPE = {"stages": (1,), "stem": False, "width": 4, "classes": 3}, (4, 8, 8, 16)


def test_a_tiny_network_is_compiled_and_timed(monkeypatch):
    """On the CPU, in the place of an accelerator."""
    monkeypatch.setattr(programs, "NETWORKS", {"tiny": TINY})
    monkeypatch.setattr(programs, "PROGRAMS", {SHAPE: "tiny"})
    monkeypatch.setattr(programs, "TRAINED", ("tiny",))
    monkeypatch.setattr(programs, "BATCH_NORMS", {FLAX: nn.BatchNorm})
    monkeypatch.setattr(steps, "at_hand", lambda: True)
    here = targets.TPU._replace(find=lambda n: jax.devices()[:n])
    with relaxed():
        (work,) = programs.works(SHAPE)
        counted = count_work(work, here, SHAPE)
        timed = list(steps.measure(Settings((SHAPE,), rounds=2), Progress()))
    assert counted[ACCESSED] > 20 * counted["size"] and counted[TEMPORARY] > 0
    assert len(timed) == 2 and all(r["seconds"] > 0 for r in timed)
    panels = accelerators.panels([counted, *timed])
    assert [panel.bars[FLAX].value for panel in panels] == [1, 1]
    assert [table(panel).row_count for panel in panels] == [1, 1]


def test_there_is_nothing_to_time_without_an_accelerator(capsys):
    assert main(["benchmark", "steps", "--out", "result"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "finds none" in error and "accelerators" in error


def test_a_layer_on_a_mesh_is_compiled(monkeypatch):
    monkeypatch.setattr(programs, "MESHED", (JIT,))
    monkeypatch.setattr(programs, "PROGRAMS", {(8, 5): SHARDED})
    (work,) = programs.works((8, 5))
    assert isinstance(work, Work)
    here = targets.TPU._replace(find=lambda n: jax.devices()[:n])
    with relaxed():
        found = count_work(work, here, (8, 5))
    assert found[COLLECTIVES] == 3  # on CPU the sample is merged as well


def test_networks_are_those_of_the_papers():
    with relaxed():
        step = classifier_step(ResNet(nn.BatchNorm), (2, 224, 224, 3))
    params, stats, _ = step.state
    assert sum(v.size for v in jax.tree.leaves(params)) == 25_557_032
    assert len(jax.tree.leaves(stats)) == 2 * 53


def test_haiku_in_a_flax_network():
    pytest.importorskip("haiku")
    x = jax.random.normal(jax.random.key(0), (8, 6)) + 1
    with relaxed():
        y, changed = networks.HaikuNorm().init_with_output(jax.random.key(1), x)
        want, _ = nn.BatchNorm(use_running_average=False).init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose(y, want, atol=1e-5)
    assert set(changed) == {"params", "batch_stats"}
