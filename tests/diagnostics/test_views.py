"""Reports as a table and as a figure."""

import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from bnjax.diagnostics import report


def variables(layers=3, channels=8):
    rng = np.random.default_rng(0)
    names = [f"stage_[red]{i}/BatchNorm_0" for i in range(layers)]
    stats = {n: {"mean": rng.normal(size=channels), "var": np.ones(channels)} for n in names}
    params = {n: {"scale": np.ones(channels), "bias": np.zeros(channels)} for n in names}
    stats[names[0]]["var"][2] = 0
    stats[names[1]]["mean"][:2] = np.nan
    params[names[2]]["bias"][5:] = -7.0
    return {"params": params, "batch_stats": stats}


def printed(table, width):
    console = Console(width=width, record=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_shows_every_layer_and_finding(width):
    text = printed(report(variables()).table(), width)
    assert max(map(len, text.splitlines())) <= width
    for name in ("tiny variance (1)", "not finite (2)", "dead under ReLU (3)"):
        assert name in text
    assert "_[red]2" in text  # names are not markup
    assert "0.00316" in text  # the least σ: √ε


def test_a_layer_without_parameters_or_without_a_finite_number():
    stats = {"bn": {"mean": np.full(2, np.nan), "var": np.full(2, np.nan)}}
    found = report({"batch_stats": stats})
    assert "not finite (2)" in printed(found.table(), 80)
    assert len(found.figure().axes) == 4


def test_the_figure_names_layers_findings_and_panels(tmp_path):
    found = report(variables())
    figure = found.figure()
    first, *_, last = figure.axes
    assert [t.get_text() for t in first.get_yticklabels()] == [x.name for x in found.layers]
    assert "dead under ReLU (3)" in [t.get_text() for t in last.texts]
    assert all("\n" in ax.get_title() for ax in figure.axes)
    figure.savefig(tmp_path / "report.png", dpi=50)
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_the_figure_marks_the_channels_concerned_and_no_others():
    place = report(variables()).figure().axes[3]
    marked = [line for line in place.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal([line.get_xdata() for line in marked], [[-7.0, -7.0, -7.0]])
    np.testing.assert_array_equal(marked[0].get_ydata(), [2, 2, 2])


def test_the_figure_shows_median_and_range():
    tree = variables()
    scale = tree["params"]["stage_[red]1/BatchNorm_0"]["scale"]
    scale[:] = [0.5, 1, 1, 2, 3, 3, 4, 8]
    panel = report(tree).figure().axes[2]
    drawn = [line.get_xdata() for line in panel.lines if line.get_ydata()[0] == 1]
    np.testing.assert_allclose(drawn[0], [0.5, 8])
    np.testing.assert_allclose(drawn[1], np.quantile(scale, [0.05, 0.95]))
    np.testing.assert_allclose(drawn[2], [2.5])


def test_comparisons_get_panels_where_there_is_something_to_compare():
    tree = variables()
    history = [tree["batch_stats"], tree["batch_stats"]]
    assert len(report(tree, history).figure().axes) == 5


def test_importing_brings_in_nothing_but_flax():
    heavy = ("matplotlib", "orbax", "safetensors", "torch", "rich")
    code = (
        "import flax.nnx, sys; before = set(sys.modules)\n"
        "import bnjax.diagnostics, bnjax.interop, bnjax.__main__\n"
        "new = set(sys.modules) - before\n"
        f"print(*[m for m in {heavy!r} if m in new])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


@pytest.mark.parametrize("view", ["table", "figure"])
def test_a_missing_library_is_named_with_what_to_install(view, monkeypatch):
    for module in ("rich.table", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'bnjax\[interop\]'"):
        getattr(report(variables()), view)()
