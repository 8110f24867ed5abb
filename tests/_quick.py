"""Compilation in a fifth of the time, where the compiler is not what is tested.

The options give code of equal meaning that runs slowly. Which tests compile so, `conftest.py` says.
"""

import functools

import jax

_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}

# A part of every cache key of jax: what one test compiled quickly, no other test takes for
# the code that users get.
compiling = jax.make_user_context("as users do")


def _is_known(name) -> bool:
    """Whether the compiler has an option, which may come and go with its version."""
    try:
        jax.jit(lambda: 0, compiler_options={name: _OPTIONS[name]}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


KNOWN = {name: option for name, option in _OPTIONS.items() if _is_known(name)}
# The same for the XLA_FLAGS of another process.
FLAGS = "".join(f" --{name}={str(option).lower()}" for name, option in KNOWN.items())
quick_jit = functools.partial(jax.jit, compiler_options=KNOWN)


def teach_the_compiler() -> None:
    """Let ``with compiling("quickly")`` reach what eager operations and inner functions compile.

    `jax.jit` takes the same options in public, but only at the outermost call. A jax without
    the private function is one whose tests take longer.
    """
    from jax._src import compiler

    plain = getattr(compiler, "get_compile_options", None)

    def get_compile_options(*args, env_options_overrides=None, **kw):
        quick = KNOWN if compiling.value == "quickly" else {}
        return plain(*args, env_options_overrides={**quick, **(env_options_overrides or {})}, **kw)

    if plain is not None:
        compiler.get_compile_options = get_compile_options
