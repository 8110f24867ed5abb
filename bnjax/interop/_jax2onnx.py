"""The norms of this library for jax2onnx, which exports functions and models of JAX to ONNX.

jax2onnx traces a function while shims stand in the place of functions of ``jax.numpy`` and of
Flax's modules, then writes the jaxpr by a table of plugins, one a primitive. So there are two
primitives here: a whole norm, bound where the core would call a jitted program; and a node of ONNX,
which the norm is made of when its turn to be written comes. What has no node is traced then, by
what JAX itself has.

The shims must not reach the core. They make arrays of shapes; and what they make would stay in the
caches of its jitted programs, to fail when these are called next. Nor may those on linen's layers
pass by what intercepts a layer, which is how :mod:`bnjax.surgery` alters one: a folded convolution
would lack its bias.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Primitive
from jax.interpreters import batching

from bnjax.core import _feature_norms, _normalize, _programs
from bnjax.core._merge import Groups
from bnjax.core._rule import Rule
from bnjax.core._xla import as_on
from bnjax.interop import _onnx_operators
from bnjax.interop._optional import optional

# Where the core looks up the programs that normalise, and what writes each of them.
_PROGRAMS = {
    (_programs, "_evaluate"): _onnx_operators.evaluate,
    (_feature_norms, "by_own_statistics"): _onnx_operators.by_own_statistics,
    (_normalize, "_normalize"): _onnx_operators.normalize,
}
_LAYERS = [v for v in vars(nn).values() if isinstance(v, type) and issubclass(v, nn.Module)]
_CALLS = {layer: layer.__call__ for layer in _LAYERS}
_CLEAN_NUMPY = types.ModuleType(jnp.__name__)
vars(_CLEAN_NUMPY).update(vars(jnp))


def register_jax2onnx() -> None:
    r"""Teach ``jax2onnx.to_onnx`` the norms of bnjax, for the rest of the process.

    From then on it exports whatever normalises by bnjax: its functions, its modules for linen
    and nnx, what :mod:`bnjax.surgery` makes of a model. A model of linen is passed as ``lambda x:
    model.apply(variables, x)``, one of nnx as it is after ``model.eval()``. In evaluation, a norm

    .. math::
        y = \gamma\, \frac{x - \mu}{\sqrt{v + \epsilon}} + \beta

    becomes one node of ONNX where there is one that means the same:

    ===================================================  =========================  =====
    norm                                                 node                       opset
    ===================================================  =========================  =====
    batch norm and renorm by running statistics, and     ``BatchNormalization``     15
    :func:`bnjax.normalize`, of one feature axis
    layer norm                                           ``LayerNormalization``     17
    RMS norm (its bias is added after it)                ``RMSNormalization``       23
    instance norm                                        ``InstanceNormalization``  6
    group norm                                           ``GroupNormalization``     21
    ===================================================  =========================  =====

    ONNX has channels on axis 1 and reduces the last axes: for others there are transpositions
    before and after, most of which jax2onnx removes in pairs. Scale and bias along other axes than
    are reduced become a product and a sum. All else is written in elementary operators, by the
    algorithm of bnjax: masks, statistics of the batch, norms of weights, float64 except in batch
    norm, an older opset; and everything, with ``normalization_mode="force_decomposed"``.

    bnjax itself computes as before, inside and outside of ``to_onnx``.

    Raises:
      ImportError: jax2onnx is not installed. Release 0.17 asks for an older orbax-checkpoint than
        ``bnjax[interop]`` and does not import it. To have both, add to that ``onnxruntime`` and
        ``equinox``, and then ``pip install --no-deps jax2onnx onnx-ir dm_pix einops``.

    Example:
      >>> import jax2onnx
      >>> import jax.numpy as jnp, bnjax
      >>> from bnjax.interop import register_jax2onnx
      >>> register_jax2onnx()
      >>> scale = jnp.ones(4)
      >>> model = jax2onnx.to_onnx(lambda x: bnjax.layer_norm(x, scale, None), [("B", 4)])
      >>> print([node.op_type for node in model.graph.node])
      ['LayerNormalization']

    Source: the operators of ONNX, versions 6 to 23, and the plugins of jax2onnx 0.17. A runtime's
    nodes may be less accurate than bnjax: of features with a mean of 10⁴ standard deviations,
    onnxruntime's LayerNormalization is off by 5·10⁻⁴, and the elementary operators by 10⁻⁶. What
    takes a gradient of a norm cannot be exported.
    """
    plugins = optional("jax2onnx.plugins.plugin_system", "jax2onnx")
    plugins.import_all_plugins()  # before the ones below, which find their shims in place

    class Norm(plugins.PrimitiveLeafPlugin):
        plugin_binding = staticmethod(_in_place_of_programs)

        def lower(self, ctx, eqn):
            opset = None if ctx.normalization_mode == "force_decomposed" else ctx.opset
            shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
            with as_on("plain"):
                body = jax.make_jaxpr(functools.partial(eqn.params["call"].written, opset))(*shapes)
            call = types.SimpleNamespace(
                params={"jaxpr": body}, invars=eqn.invars, outvars=eqn.outvars
            )
            plugins.PLUGIN_REGISTRY["pjit"].lower(ctx, call)

    class Node(plugins.PrimitiveLeafPlugin):
        def lower(self, ctx, eqn):
            operator, attributes = eqn.params["operator"], dict(eqn.params["attributes"])
            x, *others = map(ctx.get_value_for_var, eqn.invars)
            name = ctx.fresh_name(operator)
            y = getattr(ctx.builder, operator)(x, *others, _outputs=[name], **attributes)
            y.type, y.shape = x.type, x.shape
            ctx.bind_value_for_var(eqn.outvars[0], y)

    plugins.register_primitive(jaxpr_primitive=_norm_p.name)(Norm)
    plugins.register_primitive(jaxpr_primitive=_node_p.name)(Node)


class Call(NamedTuple):
    """A call of a program of the core: all but its arrays."""

    place: tuple[Any, str]
    program: Any
    static: tuple[tuple[str, Any], ...]
    tree: Any  # of the arrays, by the names of the arguments

    def arguments(self, leaves) -> dict[str, Any]:
        return jax.tree.unflatten(self.tree, leaves)

    def plain(self, *leaves) -> jax.Array:
        """What the program computes."""
        return self.program.__wrapped__(**self.arguments(leaves), **dict(self.static))

    def written(self, opset: int | None, *leaves) -> jax.Array:
        """The same by a node, if there is one in this opset."""
        if opset is None:
            return self.plain(*leaves)
        write = _PROGRAMS[self.place]
        y = write(_node, opset, **self.arguments(leaves), **dict(self.static))
        return self.plain(*leaves) if y is None else y

    def x(self, leaves) -> Any:
        """The one of ``leaves`` that is normalised."""
        given = self.arguments(leaves)
        return given["inputs"].x if "inputs" in given else given["x"]

    def of_many(self) -> Call:
        """The call for an ``x`` with one more axis, the first."""
        static = dict(self.static)
        return self._replace(static=tuple({**static, "rule": _moved(static["rule"])}.items()))


def _moved(rule: Rule) -> Rule:
    groups = rule.over.groups
    if groups is not None:
        groups = Groups(groups.axis + 1, groups.size)
    return rule._replace(
        axes=tuple(a + 1 for a in rule.axes),
        features=tuple(a + 1 for a in rule.features),
        over=rule.over._replace(groups=groups),
    )


_norm_p = Primitive("bnjax.norm")
_norm_p.def_abstract_eval(lambda *leaves, call: _like(call.x(leaves), dict(call.static)["rule"]))
_node_p = Primitive("bnjax.onnx_node")
_node_p.def_abstract_eval(lambda x, *_, operator, attributes: x)


def _like(x, rule: Rule):
    return x.update(dtype=rule.dtype, weak_type=False)


def _node(operator: str, x: jax.Array, others: list[Any], attributes: dict[str, Any]) -> jax.Array:
    return _node_p.bind(x, *others, operator=operator, attributes=tuple(attributes.items()))


def _norm_of_many(leaves, axes, *, call: Call):
    """The norm under ``vmap``: one of higher rank, where all examples have the same parameters."""
    batched = [axis is not None for axis in axes]
    if not call.x(batched) or sum(batched) > 1:
        return jax.vmap(call.plain, in_axes=tuple(axes))(*map(jnp.asarray, leaves)), 0
    at = batched.index(True)
    x = jnp.moveaxis(leaves[at], axes[at], 0)
    return _norm_p.bind(*leaves[:at], x, *leaves[at + 1 :], call=call.of_many()), 0


batching.primitive_batchers[_norm_p] = _norm_of_many


def _bound(place: tuple[Any, str]):
    """What takes the place of a program while jax2onnx traces."""
    program = getattr(*place)
    signature = inspect.signature(program)

    def bind(*args):
        given = signature.bind(*args).arguments
        static = {name: given.pop(name) for name in ("rule", "poison") if name in given}
        if static["rule"].over.axis_name:  # which vmap must see
            return program(*args)
        leaves, tree = jax.tree.flatten(dict(given))
        return _norm_p.bind(*leaves, call=Call(place, program, tuple(static.items()), tree))

    return bind


_BOUND = {place: _bound(place) for place in _PROGRAMS}


@contextlib.contextmanager
def _in_place_of_programs():
    """The core as jax2onnx is to trace it: without shims, and with norms in one piece."""
    ours = [module for name, module in sys.modules.items() if name.startswith("bnjax.")]
    with_numpy = [module for module in ours if vars(module).get("jnp") is jnp]
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_on("plain"))
        for module in with_numpy:
            _replace(stack, module, "jnp", _CLEAN_NUMPY)
        for (module, name), bind in _BOUND.items():
            _replace(stack, module, name, bind)
        for layer, call in _CALLS.items():
            if layer.__call__ is not call:
                _replace(stack, layer, "__call__", _as_method(layer.__call__))
        yield


def _as_method(shim):
    """A method that linen calls as any other, so that what intercepts a layer sees it."""

    def call(self, *args, **kwargs):
        return shim(self, *args, **kwargs)

    call.__name__ = "__call__"
    return nn.module.wrap_method_once(call)


def _replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
