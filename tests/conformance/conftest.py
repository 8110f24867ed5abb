"""What linen and nnx promise alike is tested once, with either as `library`."""

import jax
import pytest

from tests._modules import LIBRARIES


@pytest.fixture(params=LIBRARIES, ids=repr)
def library(request):
    return request.param


@pytest.fixture
def flax_promotes():
    """Flax's own layers, inside of weight norms, promote implicitly."""
    with jax.numpy_dtype_promotion("standard"):
        yield
