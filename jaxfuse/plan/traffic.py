"""What a compiled program moves: between chips, and between a chip and its memory."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

from jaxfuse.plan.hlo import Computation, Instruction, Program, Shape

LINK_SHARE: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2.0 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: float(n - 1),
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0 if n > 1 else 0.0,
}
"""Bytes that each of n chips sends, as a share of its result, by the ring algorithms."""

FREE = frozenset(
    {
        "after-all",
        "async-start",
        "bitcast",
        "call",
        "conditional",
        "constant",
        "copy-done",
        "get-tuple-element",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "slice-done",
        "tuple",
        "while",
    }
)
"""Instructions that move nothing themselves; what they call is counted where it is defined."""
FREE_CALLS = frozenset({"AllocateBuffer", "ConcatBitcast"})
"""Custom calls that move nothing."""
SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of communication between chips, all its occurrences in a step together."""

    kind: str
    count: float
    """Times a step."""
    bytes: float
    """Of the results, on each chip, a step."""
    link_bytes: float
    """That each chip sends to its neighbours, a step."""


def collectives(program: Program, devices: int) -> tuple[Collective, ...]:
    """What the chips say to each other, by kind; halves of an asynchronous one count once."""
    found: dict[str, list[float]] = {}
    for name, times in program.times.items():
        for instruction in program.computations.get(name, {}).values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in LINK_SHARE:
                continue
            size = sum(shape.bytes for shape in results(instruction))
            sent = LINK_SHARE[kind](group_size(instruction, devices)) * size
            total = found.setdefault(kind, [0.0, 0.0, 0.0])
            for at, amount in enumerate((1.0, size, sent)):
                total[at] += times * amount
    return tuple(Collective(kind, *found[kind]) for kind in sorted(found))


def results(instruction: Instruction) -> tuple[Shape, ...]:
    """What an instruction makes; of the first half of an asynchronous one, without the operands
    that its tuple holds before the results and the contexts after them.
    """
    shapes, given = instruction.shapes, len(instruction.operands)
    if not instruction.opcode.endswith("-start") or len(shapes) <= given:
        return shapes
    made = shapes[given:]
    while len(made) > 1 and made[-1].dtype in ("u32", "s32") and not made[-1].dims:
        made = made[:-1]
    return made


def group_size(instruction: Instruction, devices: int) -> int:
    """How many chips take part together."""
    text = instruction.attributes
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed.group(1).split(","))
    if shaped := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(shaped.group(1))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named.group(2)))
    return devices


def memory_bytes(program: Program) -> float:
    """Bytes a chip reads from and writes to its main memory in a step, padding of tiles included.

    What lies in memory on the chip costs nothing. A slice that is read or replaced inside a larger
    array costs the slice.
    """
    fused = program.fused
    return sum(
        times * sum(_moved(program, program.computations[name]))
        for name, times in program.times.items()
        if name in program.computations and name not in fused
    )


def _moved(program: Program, lines: Computation) -> Iterator[float]:
    for instruction in lines.values():
        opcode = instruction.opcode
        if opcode in FREE or opcode.endswith(("-done", "-update")):
            continue
        if instruction.attribute("custom_call_target").strip('"') in FREE_CALLS:
            continue
        if opcode == "slice-start":
            source, part = instruction.shapes[0], instruction.shapes[1]
            yield part.stored_bytes * (source.main_memory + part.main_memory)
        elif opcode == "copy-start":
            yield sum(_main(shape) for shape in instruction.shapes[:2])
        elif opcode in SLICES:
            yield _read(lines, instruction.operands[1:])
            source = lines.get(instruction.operands[0])
            from_memory = source is None or any(shape.main_memory for shape in source.shapes)
            part = instruction.shapes[0]
            yield part.stored_bytes * from_memory + _main(part)
        elif opcode == "dynamic-update-slice":
            part = lines.get(instruction.operands[1])
            yield 2.0 * sum(map(_main, part.shapes)) if part else 0.0
        elif opcode == "fusion" and instruction.called[0] in program.computations:
            yield from _fusion(program, lines, instruction)
        else:
            yield _read(lines, instruction.operands)
            yield sum(map(_main, results(instruction)))


def _main(shape: Shape) -> float:
    return shape.stored_bytes if shape.main_memory else 0.0


def _read(lines: Computation, names: tuple[str, ...]) -> float:
    return sum(_main(shape) for name in names if name in lines for shape in lines[name].shapes)


def _fusion(program: Program, lines: Computation, fusion: Instruction) -> Iterator[float]:
    inner = program.computations[fusion.called[0]]
    parameters = {
        int(line.inside): line.name for line in inner.values() if line.opcode == "parameter"
    }
    for number, name in enumerate(fusion.operands):
        shapes = lines[name].shapes if name in lines else ()
        whole = sum(map(_main, shapes))
        if whole and number in parameters:
            yield min(whole, _used(program, inner, parameters[number], whole))
    root = next(line for line in inner.values() if line.root)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    for shape, name in zip(fusion.shapes, results, strict=False):
        if shape.main_memory:
            made = _behind(program, inner, name)
            if made is not None and made.opcode == "dynamic-update-slice":
                part = inner.get(made.operands[1])
                yield sum(each.stored_bytes for each in part.shapes) if part else _main(shape)
            else:
                yield _main(shape)


def _used(program: Program, inner: Computation, name: str, whole: float) -> float:
    """Bytes of a fusion's parameter that it reads."""
    total = 0.0
    for line in inner.values():
        if name not in line.operands:
            continue
        if line.operands[0] == name and line.opcode in SLICES:
            total += sum(shape.stored_bytes for shape in line.shapes)
        elif line.operands[0] == name and line.opcode == "dynamic-update-slice":
            continue
        elif _only_renames(program, line):
            total += _used(program, inner, line.name, whole)
        else:
            return whole
    return total


def _behind(program: Program, inner: Computation, name: str) -> Instruction | None:
    """What made a result, through instructions that only give it another shape."""
    line = inner.get(name)
    while line is not None and _only_renames(program, line):
        line = inner.get(line.operands[0])
    return line


def _only_renames(program: Program, line: Instruction) -> bool:
    if line.opcode == "fusion" and len(line.operands) == 1 and line.called:
        body = program.computations.get(line.called[0], {})
        return all(each.opcode in ("parameter", "bitcast") for each in body.values())
    return line.opcode == "bitcast"
