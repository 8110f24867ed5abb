"""What the axes of pictures say."""

import pytest
from matplotlib.figure import Figure

from experiments.common.plots import percent_axis


@pytest.mark.parametrize("ends", [(0, 1), (0.62, 0.79), (0.944, 0.976), (-5, 1.2), (0, 2.2)])
def test_percents_say_where_they_stand_and_end_at_100(ends):
    ax = Figure().subplots()
    ax.set_ylim(*ends)
    percent_axis(ax.yaxis)
    shown = [
        float(t.get_text().removesuffix("%").replace("\N{MINUS SIGN}", "-"))
        for t in ax.get_yticklabels()
    ]
    assert shown == pytest.approx([100 * place for place in ax.get_yticks()])
    within = [share for share in shown if 100 * ends[0] <= share <= 100 * ends[1]]
    assert 3 <= len(within) <= 9 and max(shown) <= 100
