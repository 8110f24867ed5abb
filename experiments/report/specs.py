"""What the charts look like, in Vega-Lite by Altair.

The figures' data come later, by the names of the data sets here; so do scales, where they hang on
the data, and colours, as parameters, where they hang on the reader's.
"""

from typing import Any

import altair as alt

STRIP_HEIGHT, HEIGHT = 84, 300  # pixels
INK, TEXT = alt.expr("ink"), alt.expr("text")  # of the outcome, and of the page


def specs() -> dict[str, Any]:
    """Of every kind of chart."""
    return {"evidence": evidence(), "lines": lines(), "spread": spread()}


def evidence() -> dict[str, Any]:
    """A dot a seed, the mean and its interval, and a line where there is no difference."""
    mean = alt.Chart(alt.NamedData("mean"))
    dash = alt.condition("datum.margin", alt.value([5, 4]), alt.value([1, 0]))
    seeds = alt.Chart(alt.NamedData("seeds")).mark_circle(color=INK, size=80, opacity=0.85)
    return _finished(
        mean.mark_rect(color=INK, opacity=0.22).encode(_number(alt.X, "low"), alt.X2("high")),
        alt.Chart(alt.NamedData("lines"))
        .mark_rule(color=TEXT)
        .encode(_number(alt.X, "at"), strokeDash=dash),
        mean.mark_rule(color=INK, strokeWidth=3).encode(_number(alt.X, "mean")),
        seeds.encode(
            _number(alt.X, "value"),
            alt.Y("seed:Q", axis=None, scale=alt.Scale(padding=12)),
            tooltip=_words("seed", "difference", "mean and 95 % interval", "p", "outcome"),
        ),
        height=STRIP_HEIGHT,
    )


def lines() -> dict[str, Any]:
    """A line a network, the mean over seeds, and a band from the least to the largest."""
    base = alt.Chart(alt.NamedData("points")).encode(
        _number(alt.X, "x"), color=_network(alt.Color), detail="network:N"
    )
    mean = _number(alt.Y, "mean")
    near = alt.selection_point(
        "near", nearest=True, on="pointerover", clear="pointerout", empty=False
    )
    return _finished(
        base.mark_area(opacity=0.16, line=False).encode(_number(alt.Y, "low"), alt.Y2("high")),
        base.mark_line(strokeWidth=2).encode(mean, strokeDash=_network(alt.StrokeDash)),
        base.mark_point(size=130, strokeWidth=2, filled=False).encode(
            mean, opacity=alt.condition("datum.chosen", alt.value(1), alt.value(0))
        ),
        base.mark_circle(size=70)
        .encode(
            mean,
            opacity=alt.condition(near, alt.value(1), alt.value(0)),
            tooltip=_words("network", "at", "mean over seeds", "95 % interval", "seeds"),
        )
        .add_params(near),
        height=HEIGHT,
    )


def spread() -> dict[str, Any]:
    """By layer: all but a tenth of the values as a line, half as a bar, the median as a dot."""
    base = alt.Chart(alt.NamedData("bars")).encode(
        alt.X("layer:N", axis=alt.Axis(title="hidden layer", labelAngle=0)),
        xOffset="name:N",
        color=alt.Color("name:N", title=None),
        tooltip=_words("layer", "of", "median", "25 % to 75 %", "5 % to 95 %"),
    )
    return _finished(
        base.mark_rule(strokeWidth=2).encode(_number(alt.Y, "p5"), alt.Y2("p95")),
        base.mark_rule(strokeWidth=12, opacity=0.5).encode(_number(alt.Y, "p25"), alt.Y2("p75")),
        base.mark_circle(size=110, opacity=1).encode(_number(alt.Y, "p50")),
        height=HEIGHT,
    )


def _number(channel: Any, field: str) -> Any:
    """`field` on an axis without a title, that begins where the data do."""
    axis = alt.Axis(title=None, tickCount=6)
    scale = alt.Scale(nice=False, zero=False)
    return channel(field, type="quantitative", axis=axis, scale=scale)


def _network(channel: Any) -> Any:
    return channel("network:N", title=None)


def _words(*fields: str) -> list[alt.Tooltip]:
    """What stands at a mark that is pointed at: fields that hold words."""
    return [alt.Tooltip(field, type="nominal") for field in fields]


def _finished(*layers: Any, height: int) -> dict[str, Any]:
    """The specification as JSON has it; Altair raises an error if it is none."""
    chart = alt.layer(*layers).properties(width="container", height=height)
    colours = [alt.param(name=name, value="#777777") for name in ("ink", "text")]
    spec = chart.add_params(*colours).to_dict()
    del spec["$schema"], spec["config"]  # an address that nothing has to load, and sizes
    return spec
