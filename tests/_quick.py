"""Compilation in a third of the time, where the compiler is not what is tested."""

import functools

import jax

# Of equal meaning, but slow code. Accuracy is tested with the code that users get.
_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def _is_known(name) -> bool:
    """Whether the compiler has an option, which may come and go with its version."""
    try:
        jax.jit(lambda: 0, compiler_options={name: _OPTIONS[name]}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


quick_jit = functools.partial(
    jax.jit, compiler_options={n: option for n, option in _OPTIONS.items() if _is_known(n)}
)
