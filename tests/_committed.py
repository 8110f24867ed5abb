"""For tests of the committed results, which an sdist leaves out for their weight."""

import pytest

from experiments.report.collect import COMMITTED

needs_results = pytest.mark.skipif(not COMMITTED.is_dir(), reason="an sdist has no results")
