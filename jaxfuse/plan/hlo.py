"""Reads the text of a compiled XLA program: its computations, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once, however often it runs, and does not say
which collectives a program has.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of a result."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""
    """What stands in braces, such as 1,0:T(8,128)S(1)."""

    @property
    def item_bytes(self) -> float:
        if self.dtype == "pred":
            return 1.0
        bits = re.search(r"\d+", self.dtype)
        return int(bits.group()) / 8 if bits else 0.0

    @property
    def bytes(self) -> float:
        return math.prod(self.dims) * self.item_bytes

    @property
    def main_memory(self) -> bool:
        """Whether it lies in a chip's main memory (HBM), not in memory on the chip."""
        space = re.search(r"S\((\d+)\)", self.layout)
        return space is None or space.group(1) == "0"

    @property
    def stored_bytes(self) -> float:
        """Bytes it takes in memory, where its layout pads it to whole tiles."""
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        order = re.match(r"[\d,]+", self.layout)
        if tile is None or order is None:
            return self.bytes
        sides = [int(side) for side in tile.group(1).split(",")]
        axes = [int(axis) for axis in order.group().split(",")]
        dims = list(self.dims)
        for axis, side in zip(axes, reversed(sides), strict=False):
            dims[axis] = -(-dims[axis] // side) * side
        return math.prod(dims) * self.item_bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """Of the result; those of a tuple in order, nested ones flat."""
    operands: tuple[str, ...]
    inside: str
    """What stands between the parentheses: operands, or a constant's value."""
    attributes: str
    root: bool = False

    def attribute(self, name: str) -> str:
        """The value up to the next comma; "" where there is none."""
        found = re.search(rf"\b{name}=([^,\s]+)", self.attributes)
        return found.group(1) if found else ""

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that run as part of this instruction, once each; loops are apart."""
        if self.opcode in ("fusion", "call", "async-start"):
            names = (
                self.attribute("calls")
                or self.attribute("to_apply")
                or self.attribute("called_computation")
            )
            return (names.strip("%{}"),) if names else ()
        if self.opcode == "conditional":
            listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
            if listed:
                return tuple(name.strip(" %") for name in listed.group(1).split(","))
            both = (self.attribute(f"{way}_computation") for way in ("true", "false"))
            return tuple(name.strip("%") for name in both if name)
        return ()


Computation = dict[str, Instruction]
"""Instructions by name, in order."""

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at
    raise ValueError(f"no closing parenthesis: {text[:80]!r}")


def _instruction(line: str) -> Instruction | None:
    found = _LINE.match(line)
    if found is None:
        return None
    root, name, rest = found.groups()
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(d.strip("<=")) for d in dims.split(",") if d), layout or "")
        for dtype, dims, layout in _SHAPE.findall(re.sub(r"/\*.*?\*/", "", rest[:end]))
    )
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name,
        rest[end:opening].strip(),
        shapes,
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside,
        rest[closing + 1 :],
        bool(root),
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, of one device."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def times(self) -> dict[str, float]:
        """How often each computation runs, those inside of instructions (fusions) too.

        Every branch of a conditional counts. A loop of unknown length counts once; `unknown_loops`
        says how many there are.
        """
        found: dict[str, float] = {}

        def visit(name: str, times: float) -> None:
            found[name] = found.get(name, 0.0) + times
            for instruction in self.computations.get(name, {}).values():
                if instruction.opcode == "while":
                    length = self._length(name, instruction) or 1
                    visit(instruction.attribute("body").strip("%"), times * length)
                for called in instruction.called:
                    visit(called, times)

        visit(self.entry, 1.0)
        return found

    @property
    def fused(self) -> set[str]:
        """Computations that run inside one instruction: nothing in them goes through memory."""
        return {
            called
            for computation in self.computations.values()
            for instruction in computation.values()
            if instruction.opcode == "fusion"
            for called in instruction.called
        }

    def loops(self) -> Iterator[int | None]:
        """The length of each loop that runs; None where the text does not say."""
        for name in self.times:
            for instruction in self.computations.get(name, {}).values():
                if instruction.opcode == "while":
                    yield self._length(name, instruction)

    def _length(self, computation: str, loop: Instruction) -> int | None:
        known = re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes)
        if known:
            return int(known.group(1))
        # A counted loop: `while (i < constant)`, i from a constant on in steps of one.
        condition = self.computations.get(loop.attribute("condition").strip("%"), {})
        test = next((i for i in condition.values() if i.root), None)
        if test is None or test.opcode != "compare" or test.attribute("direction") != "LT":
            return None
        counter, limit = (condition.get(name) for name in test.operands)
        if counter is None or limit is None or limit.opcode != "constant":
            return None
        if counter.opcode != "get-tuple-element":
            return None
        start = self._start(computation, loop, int(counter.attribute("index")))
        return None if start is None else max(0, int(limit.inside) - start)

    def _start(self, computation: str, loop: Instruction, index: int) -> int | None:
        """The value a loop's counter begins with."""
        lines = self.computations[computation]
        packed = lines.get(loop.operands[0])
        if packed is None or packed.opcode != "tuple":
            return None
        first = lines.get(packed.operands[index])
        while first is not None and first.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            first = lines.get(first.operands[0])
        if first is None or first.opcode != "constant" or not first.inside.isdigit():
            return None
        return int(first.inside)


def parse(text: str) -> Program:
    """The program of a compiled executable's `as_text()`. Raises ValueError where there is none."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _instruction(line)
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: not the text of a compiled program")
    return Program(computations, entry)
