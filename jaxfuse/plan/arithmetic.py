"""How much arithmetic a program does, counted in its trace: nothing is compiled or computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# fmt: off
ARITHMETIC = frozenset({
    "abs", "add", "atan2", "cbrt", "ceil", "clamp", "cos", "cosh", "div", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "floor", "integer_pow", "is_finite", "log", "log1p",
    "logistic", "max", "min", "mul", "neg", "pow", "rem", "round", "rsqrt", "sign", "sin", "sinh",
    "sqrt", "square", "sub", "tan", "tanh",
})
# fmt: on
"""Primitives that count as one operation for each element of their result."""

# fmt: off
REDUCTIONS = frozenset({
    "argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "reduce",
    "reduce_max", "reduce_min", "reduce_prod", "reduce_sum",
})
# fmt: on
"""Primitives that count as one operation for each element of what they reduce."""


class Operations(NamedTuple):
    """Floating point operations; a multiply-add is two."""

    matrix: float
    """Of matrix products and convolutions."""
    other: float
    """Of arithmetic element by element and reductions; moving data is not counted."""

    @property
    def total(self) -> float:
        return self.matrix + self.other


def _inner(value: Any) -> Iterator[Any]:
    """The programs inside an equation's parameter."""
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from _inner(value.jaxpr)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _inner(item)


def count(program: Any) -> Operations:
    """Operations of a jaxpr. Loops of known length count that often, the body of a `while` once, of
    a `cond` the cheaper branch: a lower bound.
    """
    matrix = other = 0.0
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        result = equation.outvars[0].aval if equation.outvars else None
        operands = [variable.aval for variable in equation.invars]
        parts = [count(p) for value in params.values() for p in _inner(value)]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(operands[0].shape[axis] for axis in contracted)
            matrix += 2.0 * result.size * depth
        elif name == "conv_general_dilated":
            kernel = operands[1]
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            matrix += 2.0 * result.size * kernel.size / outputs
        elif name == "cond":
            matrix += min(part.matrix for part in parts)
            other += min(part.other for part in parts)
        elif name in REDUCTIONS:
            other += sum(operand.size for operand in operands if operand.size > 1)
        elif parts:
            times = params["length"] if name == "scan" else 1
            matrix += times * sum(part.matrix for part in parts)
            other += times * sum(part.other for part in parts)
        elif name in ARITHMETIC:
            other += result.size
    return Operations(matrix, other)


def operations(function: Callable[..., Any], *arguments: Any) -> Operations:
    """Floating point operations of one call, from its trace; nothing is computed.

    arguments: arrays or `jax.ShapeDtypeStruct`s.
    """
    import jax

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)
