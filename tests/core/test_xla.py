"""What XLA is told shows in what it compiles: bfloat16 is widened where it is summed."""

import re

import jax
import jax.numpy as jnp
import pytest

import bnjax

STATS = bnjax.init_batch_stats(32)
NORMS = {
    "batch": lambda x, v: bnjax.batch_norm(x, v, v, STATS, train=True)[0],
    "layer": lambda x, v: bnjax.layer_norm(x, v, v),
    "group": lambda x, v: bnjax.group_norm(x, v, v, num_groups=1),
}


@pytest.mark.parametrize("direction", ["forward", "forward and backward"])
@pytest.mark.parametrize("name", NORMS)
def test_no_float32_copy_of_x_is_stored(name, direction, on_cpu):
    x, v = jnp.ones((4096, 32), jnp.bfloat16), jnp.ones(32)

    def forward(x, v, dy):
        return NORMS[name](x, v)

    def both(x, v, dy):
        y, vjp = jax.vjp(NORMS[name], x, v)
        return y, vjp(dy)

    step = jax.jit(forward if direction == "forward" else both)
    text = step.lower(x, v, x).compile().as_text()
    main = text[text.index("ENTRY") :]
    stored = [
        line for line in main.splitlines() if re.search(r"= f32\[4096,32\]\S* \S+\(.*%x[.,)]", line)
    ]
    assert not stored
