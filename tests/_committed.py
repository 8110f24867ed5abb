"""For tests of the committed results, which an sdist leaves out for their weight."""

import pytest

from experiments.report.collect import COMMITTED, Result, collect

needs_results = pytest.mark.skipif(not COMMITTED.is_dir(), reason="an sdist has no results")


def committed() -> list[Result]:
    """Those of the experiments; none in an sdist."""
    return collect([COMMITTED]) if COMMITTED.is_dir() else []
