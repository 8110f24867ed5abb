"""The health of all running statistics of a network, as plain data."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from bnjax.core._checks import check_decay, check_epsilon, whole_number
from bnjax.diagnostics._checks import Finding, examine
from bnjax.diagnostics._layers import LayerStatistics, read_layers, shown
from bnjax.diagnostics._limits import Limits, Settings, check_limits


class Report(NamedTuple):
    """What :func:`report` found: plain data, printed readably.

    Attributes:
      layers: the numbers of every layer with running statistics.
      findings: what is wrong, layer by layer.
      settings: what the report was asked for.

    Example:
      >>> import bnjax
      >>> from bnjax.diagnostics import report
      >>> found = report({"batch_stats": {"bn": bnjax.init_batch_stats(2)._asdict()}})
      >>> print(found.ok, "|", found.headline())
      False | 1 layer, 2 channels: 1 error, 0 warnings

    Source: bnjax's own. PyTorch and Flax have nothing like it.
    """

    layers: tuple[LayerStatistics, ...]
    findings: tuple[Finding, ...]
    settings: Settings

    @property
    def ok(self) -> bool:
        """Whether nothing was found, not even a warning."""
        return not self.findings

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make evaluation wrong."""
        return tuple(f for f in self.findings if f.severity == "error")

    def of_layers(self) -> dict[str, list[Finding]]:
        """The findings of each layer, by its name."""
        found: dict[str, list[Finding]] = {layer.name: [] for layer in self.layers}
        for finding in self.findings:
            found[finding.layer].append(finding)
        return found

    def table(self) -> Any:
        """One row a layer, as a ``rich.table.Table`` to print on a console.

        Raises:
          ImportError: rich is not installed.
        """
        from bnjax.diagnostics._table import make_table

        return make_table(self)

    def figure(self) -> Any:
        """One row a layer, one panel a quantity, as a ``matplotlib.figure.Figure`` to save.

        Raises:
          ImportError: matplotlib is not installed.
        """
        from bnjax.diagnostics._figure import make_figure

        return make_figure(self)

    def headline(self) -> str:
        """How many layers, channels, errors and warnings there are."""
        channels = sum(layer.mean.size for layer in self.layers)
        warnings = len(self.findings) - len(self.errors)
        found = f"{plural(len(self.errors), 'error')}, {plural(warnings, 'warning')}"
        size = f"{plural(len(self.layers), 'layer')}, {plural(channels, 'channel')}"
        return f"{size}: {'no findings' if self.ok else found}"

    def __str__(self) -> str:
        blocks = [self.headline()]
        ordered = (*self.errors, *self.findings)
        for check in dict.fromkeys(finding.check for finding in ordered):
            blocks.append(_describe([f for f in self.findings if f.check == check]))
        return "\n\n".join(blocks)


def report(
    variables: Any,
    history: Sequence[Any] | None = None,
    data: Any = None,
    *,
    decay: float | None = None,
    steps: int | None = None,
    epsilon: float = 1e-5,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
) -> Report:
    r"""Judge the running statistics, scales and biases of every batch norm layer.

    A channel with running mean :math:`\mu`, variance :math:`v`, scale :math:`\gamma` and bias
    :math:`\beta` is taken to have normal inputs, so its outputs are

    .. math::
        y \sim \mathcal N(\beta, \gamma^2), \qquad \sigma = \sqrt{v + \epsilon}

    Checks (thresholds are in :class:`Limits`): statistics that are not finite, negative, never
    updated, stuck or still moving; a variance below ``epsilon``; dead and saturated channels; a
    train/eval gap :math:`|\mu - \mu_B| / \sigma_B` or ratio :math:`v / v_B`; overflow in float16;
    an offset :math:`|\mu| / \sigma` that half precision cannot resolve; a ``decay`` too slow for
    the number of steps. Each finding says what to do. Nothing is computed on a device.

    Args:
      variables: linen's ``{"params": ..., "batch_stats": ...}`` or an ``nnx.State``.
      history: ``batch_stats``, or variables, at two or more times, oldest first.
      data: what the layers saw in training: a mapping from layer names to :class:`bnjax.Moments`
        (or :class:`bnjax.BatchStats`), or the collection ``batch_moments`` that
        :func:`bnjax.training.begin_update` opens. By default that of ``variables``, if there.
        Layers without data are not compared.
      decay: weight of the old value in the running averages (``momentum`` in Flax,
        ``1 - momentum`` in PyTorch), to see what is left of the initial values; leave it out if the
        layers debias.
      steps: number of updates so far; by default that which the layers count, if they do.
      epsilon: that of the layers; checkpoints do not tell it.
      limits: thresholds.

    Returns:
      :class:`Report`: ``str(report)`` to read, ``.table()``, ``.figure()``, ``.findings``.

    Raises:
      TypeError: ``variables`` or ``data`` is of no legal kind.
      ValueError: there are no running statistics, shapes or names do not fit each other, or an
        option is illegal.

    Example:
      >>> import numpy as np
      >>> from bnjax.diagnostics import report
      >>> variables = {"params": {"bn": {"scale": np.ones(3), "bias": np.array([0.0, -5.0, 0.0])}},
      ...              "batch_stats": {"bn": {"mean": np.full(3, 0.5), "var": np.ones(3)}}}
      >>> for finding in report(variables).findings:
      ...     print(finding.layer, "|", finding.check, "|", finding.message)
      bn | dead under ReLU | 1 of 3 channels (1): bias / |scale| down to -5 (limit -3.1)

    Source: bnjax's own; Wu & Johnson (2021), *Rethinking "Batch" in BatchNorm*, for the gap.
    PyTorch and Flax have nothing like it.
    """
    check_decay(decay)
    steps = None if steps is None else whole_number(steps, "steps", 0)
    check_limits(limits)
    if history is not None and len(history) < 2:
        raise ValueError(f"history needs at least 2 snapshots to compare, got {len(history)}.")
    settings = Settings(check_epsilon(epsilon), decay, steps, limits)
    layers = tuple(read_layers(variables, history, data))
    findings = tuple(finding for layer in layers for finding in examine(layer, settings))
    return Report(layers, findings, settings)


def plural(number: int, noun: str) -> str:
    """``"1 layer"``, ``"2 layers"``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _describe(findings: list[Finding]) -> str:
    """All findings of one check: which layers, what it means, what to do."""
    severity = min(finding.severity for finding in findings)  # "error" comes first
    first = findings[0]
    layers: dict[str, list[str]] = {}
    for finding in findings:
        layers.setdefault(finding.message, []).append(shown(finding.layer))
    where = [f"{', '.join(names)}: {message}" for message, names in layers.items()]
    lines = [*where, first.meaning, f"What to do: {first.remedy}"]
    wrapped = [textwrap.fill(line, 98, break_on_hyphens=False) for line in lines]
    head = f"{severity}: {first.check} ({plural(len(findings), 'layer')})"
    return "\n".join([head, *(textwrap.indent(line, "  ") for line in wrapped)])
