"""A traced function as a flat list of JAX's primitives, with all that needs weights only computed.

What converts the primitives then meets no calls, no rules for derivatives, and none of the
functions that are made of primitives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend import core

from jaxfuse.shapes import Array

CALLS = frozenset(
    {
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "remat",
        "remat2",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
    }
)
"""Primitives that only call the one program in their parameters."""


class _Name:
    """Stands for the value of one variable."""

    def __init__(self, shape: tuple[Any, ...]):
        self.static = all(isinstance(side, int) for side in shape)


class _Step(NamedTuple):
    primitive: core.Primitive
    inputs: list[Any]
    """Names, and arrays where the value is known already."""
    outputs: list[_Name]
    params: dict[str, Any]

    def run(self, values: dict[_Name, Any]) -> None:
        inputs = [values[x] if isinstance(x, _Name) else x for x in self.inputs]
        if self.primitive.name == "stack":  # not known to jax2onnx
            axis = self.params["axis"]
            result = lax.concatenate([lax.expand_dims(x, (axis,)) for x in inputs], axis)
        else:
            result = self.primitive.bind(*inputs, **self.params)
        several = self.primitive.multiple_results
        values.update(zip(self.outputs, result if several else [result], strict=True))


def _inline(program: Any, consts: Sequence[Any], inputs: list[Any], steps: list[_Step]) -> list:
    known: dict[Any, Any] = dict(zip(program.constvars, consts, strict=True))
    known.update(zip(program.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in program.eqns:
        given = [read(atom) for atom in equation.invars]
        if equation.primitive.name in CALLS:
            inner = next(
                value
                for value in equation.params.values()
                if isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
            )
            results = _inline(
                getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given, steps
            )
        else:
            results = [_Name(variable.aval.shape) for variable in equation.outvars]
            steps.append(_Step(equation.primitive, given, results, equation.params))
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in program.outvars]


def flatten(function: Callable[..., Array], *inputs: jax.ShapeDtypeStruct) -> Callable[..., Array]:
    """A function of the same arrays, of the same sizes, that gives the same one array.

    inputs: abstract; sizes may be symbolic. Loops and branches stay what they are.
    """
    traced = jax.make_jaxpr(function)(*inputs)
    names = [_Name(x.shape) for x in inputs]
    steps: list[_Step] = []
    (result,) = _inline(traced.jaxpr, traced.consts, list(names), steps)

    unknown = set(names)
    early: list[_Step] = []
    late: list[_Step] = []
    for step in steps:
        reads = any(isinstance(x, _Name) and x in unknown for x in step.inputs)
        static = all(name.static for name in step.outputs)
        if reads or not static or step.primitive.name == "dim_as_value":
            unknown.update(step.outputs)
            late.append(step)
        else:
            early.append(step)
    made = {name for step in early for name in step.outputs}
    needed = {x for step in late for x in step.inputs if isinstance(x, _Name) and x in made}
    wanted = list(needed)

    def weights_only() -> list[Array]:
        values: dict[_Name, Any] = {}
        for step in early:
            step.run(values)
        return [values[name] for name in wanted]

    # All of it in one program: compiling each step would take longer than anything else here.
    computed = [np.asarray(value) for value in jax.jit(weights_only)()]

    def flat(*arrays: Array) -> Array:
        values: dict[_Name, Any] = dict(zip(wanted, computed, strict=True))
        values.update(zip(names, arrays, strict=True))
        for step in late:
            step.run(values)
        return values[result]

    return flat
