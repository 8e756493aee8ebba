"""Top-K of a million patches, means given; over eight devices, what passes between them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bench import record
from bench.record import Run
from bench.sides import Side, Work

COUNT, K, PATCH, DEVICES = 1_000_000, 1000, 64, 8
TINY_COUNT, TINY_K, TINY_PATCH = 8000, 16, 8

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(COLLECTIVES)})(?:-start)?\((.*?)\)")
_DEFINITION = re.compile(r"^\s*(?:ROOT )?(%[\w.-]+) = (\(.*?\)|\S+) ")
_ARRAY = re.compile(r"\b(?:[a-z]+[0-9]+[a-z0-9]*|pred)\[([0-9,]*)\]")


class Exchange(NamedTuple):
    """An operation of a compiled program that moves data between devices."""

    kind: str
    elements: int
    """Of its largest operand or result."""


def exchanges(program: str) -> list[Exchange]:
    """Every collective in the text of a compiled (HLO) program, largest first."""
    types = {}
    for line in program.splitlines():
        definition = _DEFINITION.match(line)
        if definition:
            types[definition[1]] = definition[2]
    found = []
    for line in program.splitlines():
        match = _COLLECTIVE.search(line)
        if match:
            # Operands count too: the result of a reduce-scatter is a part of what it moves. Their
            # types stand where they are defined, or, in longer texts, here.
            operands = [types.get(name, "") for name in re.findall(r"%[\w.-]+", match[3])]
            shapes = _ARRAY.findall(" ".join([match[1], match[3], *operands]))
            sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
            found.append(Exchange(match[2], max(sizes, default=0)))
    return sorted(found, key=lambda exchange: -exchange.elements)


def largest(moved: Sequence[Exchange]) -> int:
    """Elements of the largest array that moves; 0 where none does."""
    return max((exchange.elements for exchange in moved), default=0)


def _means(options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((options["count"], 3), np.float32) * 255, np.float32([120.0, 100.0, 90.0])


def _floor(options: dict[str, Any]) -> dict[str, float]:
    # A subtraction, a magnitude and a sum per channel, one comparison; the means are read once.
    return {"operations": 10.0 * options["count"], "bytes": 12.0 * options["count"]}


def single(options: dict[str, Any]) -> Work:
    """All rows on one device."""
    import jax

    from jaxfuse.ops import align

    means, target = _means(options)
    select = jax.jit(lambda means: align.select_top_k(means, target, options["k"]))
    rows = jax.device_put(means)
    last: list[Any] = []

    def run() -> None:
        last[:] = [jax.block_until_ready(select(rows))]

    def finish() -> dict[str, Any]:
        np.save(options["chosen"], np.asarray(last[0].indices))
        return _floor(options)

    return Work(run, finish=finish)


def sharded(options: dict[str, Any]) -> Work:
    """Rows split over fake devices on the same cores: what moves matters, not the time."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from jaxfuse import distributed
    from jaxfuse.ops import align

    means, target = _means(options)
    k, patch, mesh = options["k"], options["patch"], distributed.data_mesh(DEVICES)
    by_rows, whole = distributed.by_rows(mesh), distributed.replicated(mesh)
    rows = jax.device_put(means, by_rows)
    goal = jax.device_put(target, whole)
    last: list[Any] = []

    def run() -> None:
        last[:] = [jax.block_until_ready(align.select_top_k_sharded(rows, goal, k, mesh))]

    def text(program: Any, *arguments: Any) -> str:
        return program.lower(*arguments).compile().as_text()

    def finish() -> dict[str, Any]:
        np.save(options["chosen"], np.asarray(last[0].indices))
        select = jax.jit(lambda m, t: align.select_top_k_sharded(m, t, k, mesh))
        # What a plain top-k does with a sharded array: shows that the check would find it.
        plain = jax.jit(
            lambda m, t: align.select_top_k(m, t, k),
            in_shardings=(by_rows, whole),
            out_shardings=whole,
        )
        # Patches as shapes only: a million of them are 12 GB.
        pool = jax.ShapeDtypeStruct(
            (options["count"], patch, patch, 3), jnp.uint8, sharding=by_rows
        )
        split, same = PartitionSpec(distributed.DATA_AXIS), PartitionSpec()
        out = align.Aligned(same, same, same, split, (), same, same)
        aligned = jax.jit(
            jax.shard_map(
                lambda p, t: align.align_top_k(p, t, k, axis_name=distributed.DATA_AXIS),
                mesh=mesh,
                in_specs=(split, same),
                out_specs=out,
                check_vma=False,
            )
        )
        moved = {
            "selection": exchanges(text(select, rows, goal)),
            "selection and alignment of the patches": exchanges(text(aligned, pool, goal)),
            "plain top-k": exchanges(text(plain, rows, goal)),
        }
        pool_elements = options["count"] * patch * patch * 3
        facts = {
            "devices": DEVICES,
            "candidates": DEVICES * k,
            "elements_of_the_means": means.size,
            "elements_of_the_patches": pool_elements,
            "elements_of_the_kept_patches": k * patch * patch * 3,
            "moved": {name: [e._asdict() for e in found] for name, found in moved.items()},
            "largest_moved": {name: largest(found) for name, found in moved.items()},
        }
        return {**facts, **_floor(options)}

    return Work(run, finish=finish)


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    count, k, patch = (TINY_COUNT, TINY_K, TINY_PATCH) if run.tiny else (COUNT, K, PATCH)
    fake = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}

    def side(name: str, target: str, environment: dict[str, str]) -> Side:
        chosen = str(run.scratch / f"{target}.npy")
        options = {"count": count, "k": k, "patch": patch, "chosen": chosen}
        return Side(name, f"bench.topk:{target}", options, environment=environment)

    sides = [side("one device", "single", {}), side("eight fake devices", "sharded", fake)]
    what = f"the {k} closest of {count} patches, means given"
    settings = {"count": count, "k": k, "patch": patch}
    result = record.measure(run, "topk", what, sides, run.rounds(15), settings, rates)
    first, second = (np.load(s.options["chosen"]) for s in sides)
    facts = result["sides"]["eight fake devices"]["facts"]
    sizes = facts["largest_moved"]
    result["agreement"] = {
        "rows that one and eight devices choose differently": int((first != second).sum()),
        **{f"largest array moved, elements: {name}": size for name, size in sizes.items()},
    }
    final, seconds = not run.tiny, result["sides"]["one device"]["median_seconds"]
    result["goals"] = [
        record.goal("seconds on one device", 0.2, seconds, final=final),
        record.goal(
            "elements moved by the selection", DEVICES * k, sizes["selection"], final=final
        ),
        record.goal(
            "elements moved by selection and alignment: no more than the kept patches",
            facts["elements_of_the_kept_patches"],
            sizes["selection and alignment of the patches"],
            final=final,
        ),
        record.goal("rows chosen differently", 0, int((first != second).sum()), final=final),
    ]
    if sizes["plain top-k"] < count:
        result["notes"].append("The check of what moves did not find what a plain top-k gathers.")
    return [result]
