"""Reports: every check finds what it is for, and nothing in a healthy network."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given

import bnjax
from bnjax.diagnostics import Limits, report
from bnjax.linen import BatchNorm
from bnjax.nnx import BatchNorm as NnxBatchNorm
from bnjax.nnx import one_update
from bnjax.training import begin_update

C = 4


def layer(mean=0.3, var=0.8, scale=1.1, bias=-0.2, **more):
    """Variables of one layer ``bn``; each field a number or ``(channel, number)``."""
    fields = {}
    for name, value in {"mean": mean, "var": var, "scale": scale, "bias": bias}.items():
        usual = {"mean": 0.3, "var": 0.8, "scale": 1.1, "bias": -0.2}[name]
        array = np.full(C, usual, np.float32)
        channel, number = value if isinstance(value, tuple) else (slice(None), value)
        array[channel] = number
        fields[name] = array
    stats = {"mean": fields["mean"], "var": fields["var"], **more}
    return {
        "params": {"bn": {"scale": fields["scale"], "bias": fields["bias"]}},
        "batch_stats": {"bn": stats},
    }


SICK = {
    "not finite mean": (layer(mean=(1, np.nan)), "not finite", "error", (1,)),
    "not finite bias": (layer(bias=(3, np.inf)), "not finite", "error", (3,)),
    "negative": (layer(var=(2, -1e-6)), "negative variance", "error", (2,)),
    "fresh": (layer(mean=0.0, var=1.0), "never updated", "error", (0, 1, 2, 3)),
    "count 0": (layer(0.0, 1.0, count=np.int32(0)), "never updated", "error", (0, 1, 2, 3)),
    "a count 0": (
        layer((1, 0.0), (1, 1.0), count=np.array([5, 0, 5, 5])),
        "never updated",
        "error",
        (1,),
    ),
    "constant": (layer(var=(0, 0.0)), "tiny variance", "warning", (0,)),
    "tiny": (layer(var=(0, 0.9e-5)), "tiny variance", "warning", (0,)),
    "dead": (layer(scale=(2, -1e-7)), "dead", "warning", (2,)),
    "relu": (layer(bias=(1, -3.5)), "dead under ReLU", "warning", (1,)),
    "saturated": (layer(bias=(1, 7.5)), "saturated", "warning", (1,)),
    "large inputs": (layer(var=(3, 1.3e8)), "float16 overflow", "warning", (3,)),
    "large variance": (layer(var=(3, 7e4)), "float16 overflow", "warning", (3,)),
    "large outputs": (layer(scale=(3, 2e4)), "float16 overflow", "warning", (3,)),
    "offset": (layer(mean=(0, -30.0)), "large offset", "warning", (0,)),
}


@pytest.mark.parametrize("case", SICK)
def test_each_fault_is_found_once_and_where_it_is(case):
    variables, check, severity, channels = SICK[case]
    (finding,) = report(variables).findings
    assert (finding.layer, finding.check, finding.severity) == ("bn", check, severity)
    assert finding.channels == channels
    assert finding.message and finding.meaning and finding.remedy


# https://github.com/ultralytics/yolov5/issues/459: a counter of 0 beside real statistics
@pytest.mark.parametrize("count", [np.int32(0), np.zeros(C, np.int32), np.array([5, 0, 5, 5])])
def test_yolov5_459_statistics_without_their_counter_are_healthy(count):
    assert report(layer(count=count)).ok


def test_thresholds_are_where_they_are_said_to_be():
    small = layer(mean=0.0, var=(0, 1.1e-5))
    assert report(small).ok and not report(small, epsilon=1e-4).ok
    assert report(layer(bias=-3.3)).ok  # 3.0 σ below 0: 1.35 in 1,000 values pass
    assert not report(layer(bias=-3.3), limits=Limits(active=2e-3)).ok
    assert report(layer(scale=1.1e-4, bias=0.0)).ok and not report(layer(scale=0.9e-4)).ok
    assert report(layer(mean=22.0)).ok and not report(layer(mean=24.0)).ok  # 25.6 σ


def test_inputs_overflow_six_sigma_from_their_mean():
    near, beyond = layer(mean=64_000.0, var=62_500.0), layer(mean=64_100.0, var=62_500.0)
    assert [f.check for f in report(near).findings] == ["large offset"]
    overflow, _ = report(beyond).findings
    assert overflow.check == "float16 overflow" and overflow.value == pytest.approx(65_600)


def test_what_is_not_finite_is_nothing_else_and_hides_nothing_else():
    variables = layer(mean=(0, np.inf), var=(2, -1.0))
    found = [(f.check, f.channels) for f in report(variables).findings]
    assert found == [("not finite", (0,)), ("negative variance", (2,))]
    lost = report(layer(mean=np.nan, count=np.int32(9)), decay=0.9)
    assert [f.check for f in lost.findings] == ["not finite"]


@given(st.floats(-6, 0), st.floats(0.1, 3))
def test_dead_under_relu_is_what_a_relu_lets_through(bias, scale):
    x_hat = np.random.default_rng(0).normal(size=200_000)
    share = np.mean(bias + scale * x_hat > 0)
    checks = [f.check for f in report(layer(bias=bias, scale=scale)).findings]
    if not 0.7e-3 < share < 1.4e-3:  # as sure as the sample is
        assert ("dead under ReLU" in checks) == (share < 1e-3)


@given(st.integers(0, 2**32 - 1))
def test_healthy_statistics_of_any_scale_give_no_findings(seed):
    rng = np.random.default_rng(seed)
    std = 10 ** rng.uniform(-2, 2, C)
    variables = layer(mean=0.0, var=1.0)
    variables["batch_stats"]["bn"] = {"mean": std * rng.normal(size=C) * 3, "var": std**2}
    variables["params"]["bn"] = {
        "scale": rng.choice([-1, 1], C) * rng.uniform(0.05, 2, C),
        "bias": np.zeros(C),
    }
    assert report(variables).ok


class Net(nn.Module):
    """A residual branch whose last norm starts at zero."""

    @nn.compact
    def __call__(self, x, train: bool):
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.9)
        branch = nn.relu(norm()(nn.Dense(16)(x)))
        branch = norm(scale_init=nn.initializers.zeros)(nn.Dense(8)(branch))
        return x + branch


@pytest.fixture(scope="module")
def trained():
    """A small network after 60 steps, and the moments of the last batch."""
    model, key = Net(), jax.random.key(0)
    variables = model.init(key, jnp.zeros((2, 8)), train=False)

    def loss_fn(params, stats, x):
        collections = {"batch_stats": stats, "batch_moments": begin_update(stats)}
        y, new = model.apply(
            {"params": params, **collections},
            x,
            train=True,
            mutable=["batch_stats", "batch_moments"],
        )
        return jnp.mean((y - jnp.sin(x[:, ::-1])) ** 2), new

    @jax.jit
    def step(params, stats, key):
        x = 1 + 2 * jax.random.normal(key, (256, 8))
        grads, new = jax.grad(loss_fn, has_aux=True)(params, stats, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), new

    params, new = variables["params"], {"batch_stats": variables["batch_stats"]}
    for k in jax.random.split(key, 60):
        params, new = step(params, new["batch_stats"], k)
    return {"params": params, **new}


def test_a_healthy_network_has_no_findings(trained):
    found = report(trained, decay=0.9, steps=60)  # with the moments of its last batch
    assert [layer.name for layer in found.layers] == ["BatchNorm_0", "BatchNorm_1"]
    assert all(layer.batch is not None for layer in found.layers)
    assert found.ok, str(found)
    assert "no findings" in str(found)


def test_a_layer_of_zeros_is_dead_only_once_it_is_trained():
    zeros = layer(scale=0.0)  # the last norm of a residual branch starts so
    assert report(zeros).ok and report(zeros, steps=1).ok
    assert [f.check for f in report(zeros, steps=100).findings] == ["dead"]


def test_statistics_that_lag_behind_the_data_are_a_gap(trained):
    moments = trained["batch_moments"]
    stale = jax.tree.map(lambda v: v, trained["batch_stats"])
    stale["BatchNorm_0"]["mean"] = stale["BatchNorm_0"]["mean"].at[3].add(40.0)
    stale["BatchNorm_1"]["var"] = stale["BatchNorm_1"]["var"].at[:2].multiply(3.0)
    first, second = report({"params": trained["params"], "batch_stats": stale}, None, moments)[1]
    assert (first.layer, first.check, first.channels) == ("BatchNorm_0", "train/eval gap", (3,))
    assert first.severity == "error" and second.severity == "warning"
    assert (second.layer, second.channels) == ("BatchNorm_1", (0, 1))
    batch = moments["BatchNorm_0"]["pending"].moments
    expected = 40 / np.sqrt(np.float64(batch.var()[3]) + 1e-5)
    np.testing.assert_allclose(first.value, expected, rtol=0.05)


def test_moments_of_few_values_are_not_trusted_more_than_they_deserve():
    shifted = bnjax.Moments(8.0, np.full(C, 0.3 + 0.8, np.float32), np.full(C, 8 * 0.8, np.float32))
    assert report(layer(), data={"bn": shifted}).ok
    narrow = bnjax.Moments(8.0, np.full(C, 0.3, np.float32), np.full(C, 8 * 0.2, np.float32))
    assert report(layer(), data={"bn": narrow}).ok
    many = shifted._replace(count=800.0, m2=shifted.m2 * 100)
    assert [f.check for f in report(layer(), data={"bn": many}).findings] == ["train/eval gap"]


def test_an_update_without_any_batch_is_no_data():
    variables = layer() | {"batch_moments": begin_update(layer()["batch_stats"])}
    assert report(variables).layers[0].batch is None


def test_nnx_states_and_their_open_updates():
    model = nnx.List([NnxBatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(11)])
    fresh = report(nnx.state(model))
    assert [layer.name for layer in fresh.layers] == [str(i) for i in range(11)]  # 2 before 10
    assert {f.check for f in fresh.findings} == {"never updated"}
    with one_update(model):
        model[0](5 + jax.random.normal(jax.random.key(0), (64, 3)))
        (finding,) = [f for f in report(nnx.state(model)).findings if f.check == "train/eval gap"]
    assert finding.layer == "0"


@pytest.mark.parametrize(
    ("decay", "steps", "severity"),
    [(0.99, 60, "error"), (0.99, 300, "warning"), (0.99, 460, None), (0.9, 44, None)],
)
def test_momentum_too_slow_for_the_steps_run(decay, steps, severity):
    found = report(layer(), decay=decay, steps=steps)
    assert [f.severity for f in found.findings] == ([severity] if severity else [])
    counted = report(layer(count=np.int32(steps)), decay=decay).findings
    assert [f.value for f in counted] == [f.value for f in found.findings]
    if severity:
        np.testing.assert_allclose(found.findings[0].value, decay**steps)


def test_history_tells_stuck_and_moving_statistics():
    before, after = layer()["batch_stats"], layer(mean=(1, 1.3))["batch_stats"]
    assert [f.check for f in report(layer(), [before, before]).findings] == ["stuck"]
    (moving,) = report(layer(), [before, after]).findings
    assert (moving.check, moving.severity, moving.channels) == ("still moving", "warning", (1,))
    np.testing.assert_allclose(moving.value, 1 / np.sqrt(0.8), rtol=1e-4)
    calm = layer(mean=0.31)["batch_stats"]
    assert report(layer(), [before, after, before, {"batch_stats": calm}]).ok


def test_stacked_layers_are_one_list_of_channels():
    mean = np.array([[0.1] * 3, [0.0] * 3])
    stats = {"mean": mean, "var": np.ones((2, 3)), "count": np.array([4, 0])}
    (finding,) = report({"batch_stats": {"bn": stats}}).findings
    assert (finding.check, finding.channels) == ("never updated", (3, 4, 5))


def test_complex_layers():
    stats = {"mean": np.full(2, 30j, np.complex64), "var": np.ones(2, np.float32)}
    params = {"scale": np.ones(2, np.complex64), "bias": np.zeros(2, np.complex64)}
    found = report({"params": {"bn": params}, "batch_stats": {"bn": stats}})
    assert [f.check for f in found.findings] == ["large offset"]


def test_the_text_says_each_check_once_and_errors_first():
    variables = {
        "batch_stats": {
            "a": {"mean": np.array([90.0]), "var": np.array([1.0])},
            "b": {"mean": np.array([np.nan]), "var": np.array([1.0])},
            "c": {"mean": np.array([np.nan]), "var": np.array([1.0])},
        }
    }
    text = str(report(variables))
    assert text.startswith("3 layers, 3 channels: 2 errors, 1 warning\n")
    assert text.index("error: not finite (2 layers)") < text.index("warning: large offset")
    assert "  b, c: its channel: in mean\n" in text and text.count("What to do:") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": {"params": {"d": {"kernel": np.ones(2)}}}}, "no running statistics"),
        ({"variables": {"params": {}}}, r"If bnjax\.surgery\.fold took the norms away"),
        ({"variables": jax.eval_shape(layer)}, "no values at .*batch_stats/bn/mean.*only shapes"),
        ({"variables": layer(count=np.zeros(3))}, r"bn/count has shape \(3,\)"),
        ({"variables": layer(), "history": [layer()]}, "at least 2 snapshots, *|got 1"),
        ({"variables": layer(), "history": [{}, {}]}, r"history\[0\] lacks layers.*bn"),
        ({"variables": layer(), "steps": -1}, "steps must be at least 0"),
        ({"variables": layer(), "decay": 1.1}, "decay"),
        ({"variables": layer(), "epsilon": -1.0}, "epsilon"),
        ({"variables": layer(), "limits": Limits(active=0.7)}, "limits.active must lie between 0"),
        ({"variables": layer(), "data": {"x": bnjax.Moments(1.0, 0, 0)}}, "not have: x. .*bn"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        report(**options)


def test_data_of_another_kind_or_size():
    with pytest.raises(TypeError, match=r"data of bn must be bnjax.Moments.*got float"):
        report(layer(), data={"bn": 3.0})
    with pytest.raises(TypeError, match="data must be a mapping"):
        report(layer(), data=[1])
    moments = bnjax.Moments(9.0, np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="bn has 4 channels in variables, 3 in data"):
        report(layer(), data={"bn": moments})
