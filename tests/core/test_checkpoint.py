"""What is kept for the backward pass, counted rather than timed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bnjax

FEATURES, LAYERS = 8, 12


def block(x, kernel):
    """Norm, activation, convolution."""
    y, _ = bnjax.batch_norm(x, None, None, bnjax.init_batch_stats(FEATURES), train=True)
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        jax.nn.relu(y), kernel, (1, 1), "SAME", dimension_numbers=layout
    )
    return y, None


def network(kernels, x, block=block):
    return jnp.mean(jnp.square(jax.lax.scan(block, x, kernels)[0]))


def lean(kernels, x):
    kept = {"policy": bnjax.save_norm_statistics, "prevent_cse": False}
    return network(kernels, x, jax.checkpoint(block, **kept))


@pytest.fixture(params=["float32", "bfloat16"])
def problem(request):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 12, 12, FEATURES)), request.param)
    kernels = rng.normal(size=(LAYERS, 3, 3, FEATURES, FEATURES)) / 9
    return jnp.asarray(kernels, request.param), x


def stacked_activations(loss, kernels, x):
    """How many arrays the size of all layers' activations the backward pass is handed."""
    _, pullback = jax.vjp(loss, kernels, x)
    return sum(
        leaf.nbytes / x.nbytes / LAYERS
        for leaf in jax.tree.leaves(pullback)
        if leaf.size >= x.size * LAYERS
    )


def test_the_policy_halves_what_is_kept(problem):
    plain, kept = (stacked_activations(loss, *problem) for loss in (network, lean))
    assert kept == 1  # the input of each norm, in its own dtype
    assert plain >= 2


def compiled(loss, *args):
    return jax.jit(jax.grad(loss)).lower(*args).compile()


def test_the_policy_saves_memory_and_repeats_no_convolution_and_no_reduction():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 12, 12, FEATURES)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(LAYERS, 3, 3, FEATURES, FEATURES)), jnp.float32)
    plain, kept = (compiled(loss, kernels, x) for loss in (network, lean))
    for operation in (" convolution(", " reduce("):
        assert kept.as_text().count(operation) == plain.as_text().count(operation)
    sizes = [c.memory_analysis().temp_size_in_bytes / x.nbytes for c in (plain, kept)]
    assert sizes[1] < sizes[0] - 0.9 * LAYERS


def test_without_the_name_reductions_would_be_repeated():
    x, kernels = jnp.ones((16, 12, 12, FEATURES)), jnp.ones((LAYERS, 3, 3, FEATURES, FEATURES))

    def nothing_kept(kernels, x):
        return network(kernels, x, jax.checkpoint(block, prevent_cse=False))

    counts = [compiled(f, kernels, x).as_text().count(" reduce(") for f in (lean, nothing_kept)]
    assert counts[0] < counts[1]


def test_the_policy_changes_no_gradient(problem):
    plain, kept = (jax.grad(loss)(*problem).astype(jnp.float32) for loss in (network, lean))
    rtol = 1e-5 if problem[1].dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(kept, plain, rtol=rtol, atol=rtol * float(jnp.abs(plain).max()))


def optimized(fn, *args):
    text = jax.jit(fn).lower(*args).compile().as_text()
    return text[text.index("ENTRY") :].splitlines()[1:]


def activations_written(lines, elements):
    """Instructions of the program that write an array of at least so many elements."""
    written = []
    for line in lines:
        match = re.match(r"\s*(?:ROOT )?%\S+ = (\w+)\[([\d,]+)\]\S* ([\w-]+)\(", line)
        if match and match[3] not in {"parameter", "bitcast", "tuple", "get-tuple-element"}:
            size = np.prod([int(n) for n in match[2].split(",")])
            written += [match[3]] * bool(size >= elements)
    return written


@pytest.mark.usefixtures("on_cpu")
def test_the_compiled_layer_writes_y_and_dx_and_nothing_else_of_their_size():
    x, dy, v = jnp.ones((64, 8, 8, 32)), jnp.ones((64, 8, 8, 32)), jnp.ones(32)

    def forward(x, scale, bias):
        return bnjax.batch_norm(x, scale, bias, bnjax.init_batch_stats(32), train=True)[0]

    def both(x, dy, scale, bias):
        y, pullback = jax.vjp(forward, x, scale, bias)
        return y, pullback(dy)

    lines = optimized(both, x, dy, v, v)
    assert activations_written(lines, x.size) == ["fusion", "fusion"]
    assert not any(" transpose(" in line for line in lines)
    assert activations_written(optimized(forward, x, v, v), x.size) == ["fusion"]


@pytest.mark.usefixtures("on_cpu")
def test_the_counter_of_writes_sees_a_stored_intermediate():
    def stores(x):
        d = jnp.sort(x, 0)
        return jnp.sin(d), jnp.cos(d)

    assert len(activations_written(optimized(stores, jnp.ones((64, 8))), 512)) >= 3
