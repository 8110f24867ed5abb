"""What two implementations agree in, under rules of promotion that both can bear."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from bnjax.testing import relative_error


@contextlib.contextmanager
def relaxed():
    """JAX's default rules for dtypes and ranks: other libraries rely on them, bnjax does not."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def assert_agree(got, want, tolerance):
    """The same leaves under the same names, of the same dtypes, with nearly the same values."""
    got, want = flatten(got), flatten(want)
    assert describe(got) == describe(want)
    errors = {name: relative_error(got[name], want[name]) for name in want}
    assert all(e < tolerance or e == tolerance == 0 for e in errors.values()), errors


def flatten(tree):
    """Leaves by the text of their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def describe(tree):
    """Shapes and dtypes in place of the leaves."""
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), leaf.dtype), tree)


def perturb(tree):
    """Away from scale 1, bias 0, mean 0 and var 1, which hide mistakes; var stays positive."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda v: v + jnp.asarray(rng.uniform(0.1, 1, v.shape), v.dtype), tree)
