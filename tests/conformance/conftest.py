"""What linen and nnx promise alike is tested once, with either as `library`."""

import pytest

from tests._modules import LIBRARIES


@pytest.fixture(params=LIBRARIES, ids=repr)
def library(request):
    return request.param
