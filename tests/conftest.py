"""A strict climate for every test: eight CPU devices, no implicit promotion, no warnings."""

import gc
import os
import shutil
import tempfile

# Tests meet most programs more than once, but jax forgets one with the function it came from.
# A folder for each worker: jax may read what another process is still writing.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="bnjax-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Before jax starts its backend, hence before anything imports it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] != "cpu":  # or products of matrices have three digits there
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import hypothesis
import jax
import numpy as np
import pytest

from tests._agree import relaxed
from tests._quick import compiling, teach_the_compiler

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A compilation may take seconds on a loaded machine: deadlines would test the machine.
hypothesis.settings.register_profile("bnjax", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("bnjax")


# Most tests are no matter of the last bit, of memory or of compiled text. Those of the core are;
# where it is otherwise, a test is marked with how it is compiled.
USUAL = {"core": "as users do"}

# Tracing makes a great many objects, and hardly any garbage in cycles.
gc.set_threshold(20_000, 20, 20)


def pytest_configure(config):
    config.addinivalue_line("markers", 'compiled(how): "quickly" or "as users do"')
    config.addinivalue_line("markers", "several_devices: skipped where there are fewer than eight")
    teach_the_compiler()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    mark = item.get_closest_marker("compiled")
    usual = USUAL.get(item.path.parent.name, "quickly")
    with compiling(mark.args[0] if mark else usual):
        result = yield
    if nextitem is None or nextitem.path != item.path:
        forget_programs()
    return result


def forget_programs():
    """Every program that JAX keeps makes it slower to trace the next: thousands, several times."""
    jax.clear_caches()
    gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    with compiling("quickly"):  # what modules make on import
        return (yield)


def pytest_runtest_setup(item):
    if item.get_closest_marker("several_devices") and jax.device_count() < 8:
        pytest.skip("needs eight devices, as the CPU has in these tests")


def pytest_collection_finish():
    # What is imported stays: it need not be searched for garbage with every collection.
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def rng():
    """Random numbers that do not hang on which tests ran before."""
    return np.random.default_rng(0)


@pytest.fixture
def on_cpu():
    """The CPU for one test, wherever the others run: such as counts what XLA makes for it."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(name="relaxed")
def _relaxed():
    """JAX's default rules for dtypes and ranks, for one test of a library that relies on them."""
    with relaxed():
        yield
