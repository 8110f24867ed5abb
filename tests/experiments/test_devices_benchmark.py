"""The benchmark of several devices: what it counts, what it claims, and what it costs on paper."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import cost, devices
from experiments.benchmarks.claims import FAILS, check
from experiments.benchmarks.collectives import (
    Traffic,
    bytes_of,
    count_instructions,
    count_traffic,
)
from experiments.benchmarks.contestants import FLAX, OURS, OURS_LINEN
from experiments.benchmarks.devices import BACKWARD, BACKWARD_ALL, DIFFERENCE, FORWARD
from experiments.benchmarks.sharded import ALL, INPUT, JIT, MERGED, WAYS, make_mesh, program
from tests._agree import relaxed

KNOWN_PROGRAM = """
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %moved = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (x: f32[2,4], k: bf16[3]) -> f32[8,4] {
  %x = f32[2,4]{1,0} parameter(0)
  %k = bf16[3]{0} parameter(1)
  %start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), dimensions={0}
  %done = f32[8,4]{1,0} all-gather-done(%start)
  %sums = (f32[2,4]{1,0}, /*index=1*/bf16[3]{0}) all-reduce(%x, /*index=1*/%k), to_apply=%add
  ROOT %same = f32[8,4]{1,0} copy(%done), control-predecessors={%sums}
}
"""


def test_traffic_of_a_known_program():
    """A pair counts once, operands and not results; other computations count too."""
    assert count_traffic(KNOWN_PROGRAM) == Traffic(3, 16 + 32 + (32 + 6))
    assert count_instructions(KNOWN_PROGRAM) == 3 + 2 + 6
    assert Traffic(3, 86).beyond(Traffic(1, 16)) == (2, 70)


@pytest.mark.parametrize(
    "type_, size", [("f32[]", 4), ("(bf16[2,3]{1,0}, pred[5], u4[4])", 12 + 5 + 2), ("token[]", 0)]
)
def test_bytes_of_a_type(type_, size):
    assert bytes_of(type_) == size


def collectives_of_two_sums(x):
    total = jax.lax.psum(x, "devices")
    return total, jax.lax.all_gather(total * x, "devices")


def test_traffic_of_a_compiled_program():
    mesh = make_mesh(jax.devices())
    specs = {"in_specs": jax.P("devices"), "out_specs": (jax.P(), jax.P("devices"))}
    fn = jax.shard_map(collectives_of_two_sums, mesh=mesh, **specs)
    text = jax.jit(fn).lower(jnp.ones(40)).compile().as_text()
    assert count_traffic(text) == (2, 2 * 20)


def record(contestant, which, collectives, sent, n=2):
    found = {"collectives": collectives, "bytes": sent}
    return {"contestant": contestant, "part": "traffic", "pass": which, "devices": n} | found


def test_a_claim_about_devices_can_fail():
    records = [record(OURS, w, 1, 8.0) for w in (FORWARD, BACKWARD, BACKWARD_ALL)]
    records += [record(OURS_LINEN, FORWARD, 3, 16.0)]
    for peer, number in ((FLAX, 2), ("haiku", 5)):
        records += [record(peer, which, number, 4.0) for which in (FORWARD, BACKWARD)]
    records += [{"contestant": OURS, "part": "one device", "devices": 1, "left": 1, "added": 7}]
    records += [{"contestant": OURS, "part": "error", "devices": 2, "error": float("nan")}]
    found = devices.estimates(records)
    assert found[f"{OURS}, {devices.LAG}"].value == 1
    assert found[f"{OURS}, {devices.ADDED}"].value == 7
    verdicts = {f.quantity: f.verdict for f in check(devices.CLAIMS, found)}
    failed = {quantity for quantity, verdict in verdicts.items() if verdict == FAILS}
    assert failed == {
        f"{OURS}, {quantity}"
        for quantity in (
            f"collectives, {FORWARD}",
            f"bytes, {FORWARD}",
            *(devices.LAG, devices.LEFT, devices.ADDED, DIFFERENCE),
        )
    }


def test_virtual_devices_are_asked_for_before_jax_starts(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda *args: asked.append(args))
    assert devices.ready_devices(8) == jax.device_count()
    assert asked == [("jax_num_cpu_devices", 8)]
    monkeypatch.undo()
    assert devices.ready_devices(99) == jax.device_count() < 99  # too late for more


def test_what_is_worked_out_on_paper_is_what_is_counted():
    mesh, features = make_mesh(jax.devices()), 5
    with relaxed():
        problem = devices.draw((8, 3, 3, features))
        for name, sends in ((OURS, cost.NAMED), (JIT, cost.PLAIN), (MERGED, cost.MERGED)):
            counted = count_traffic(program(WAYS[name], problem, mesh, INPUT).text)
            sent = features * (sends.gathered + sends.reduced)
            assert counted == (sends.gathers + sends.reduces, sent), name
        assert count_traffic(program(WAYS[OURS], problem, mesh, ALL).text).payload == 5 * (12 + 8)


def test_batch_norms_of_resnet50():
    features = tuple(cost.resnet50_features())
    assert (len(features), sum(features)) == (53, 26_560)


def test_the_model_of_links():
    links = cost.Links(node=4, inside=100.0, between=10.0, latency=1.0, doubling=0.5)
    assert [cost.latency(n, links) for n in (1, 4, 16)] == [1.0, 1.0, 2.0]
    # From 3 like it elsewhere 3 x 20 bytes, then from 3 neighbours 4 x 20 bytes each.
    assert cost.gathering(20, 16, links) == pytest.approx(60 / 10 + 240 / 100)
    assert cost.gathering(20, 1, links) == cost.reducing(20, 1, links) == 0
    # A quarter of 20 bytes over 4 nodes in a ring, and twice three quarters in the node.
    assert cost.reducing(20, 16, links) == pytest.approx(2 * 0.75 * 5 / 10 + 2 * 15 / 100)
    assert cost.layers(cost.Sends(), 4096, (64, 64)) == 0


def test_the_turning_point():
    n = cost.turning_point(2048)
    slower, faster = (cost.layers(s, n, (2048,)) for s in (cost.NAMED, cost.PLAIN))
    assert slower > faster
    slower, faster = (cost.layers(s, n // 2, (2048,)) for s in (cost.NAMED, cost.PLAIN))
    assert slower <= faster


def test_the_readme_has_the_tables_of_the_paper():
    root = Path(__file__).parents[2] / "experiments"
    text = re.sub(r" +", " ", (root / "README.md").read_text())
    for table in (cost.step_table(), cost.turning_table()):
        assert table in text
