"""Compilation in a third of the time, where the compiler is not what is tested."""

import functools

import jax

# Of equal meaning, but slow code. Accuracy is tested with the code that users get.
_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
quick_jit = functools.partial(jax.jit, compiler_options=_OPTIONS)
