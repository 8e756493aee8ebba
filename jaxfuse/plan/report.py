"""A whole plan: every stage compiled, predicted and searched; as a dict for JSON and as lines."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxfuse import distributed
from jaxfuse.config import Experiment, counted
from jaxfuse.plan import predict, programs
from jaxfuse.plan.chips import Slice
from jaxfuse.plan.programs import TooLarge, Work

FORMAT = 1
"""Of the JSON."""
PREDICTED = (
    "Times are predicted from datasheets, not measured: max(compute, memory) + network; a real "
    "step takes longer."
)


def make(
    experiment: Experiment,
    where: Slice,
    batch_per_chip: int,
    stages: Sequence[str] = (),
    search: bool = True,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Plans the named stages, or all, of an experiment on a slice; plain numbers and strings.

    say: is told before each compilation. Raises TopologyError, CompilerError and ConfigError.
    """
    programs.check(experiment)
    mesh = distributed.topology_mesh(where.kind, where.shape, experiment.train.fsdp)
    if mesh.size != where.chips:
        raise distributed.TopologyError(
            f"{where.name}: the compiler takes its {where.chips} chips for {mesh.size} devices"
        )
    names = programs.chosen(experiment, stages)
    compiled: list[float] = []
    most = len(names) * (1 + search * predict.MAX_COMPILATIONS)

    def compile_one(name: str, batch: int) -> Work | TooLarge:
        number = f"{len(compiled) + 1} of {'at most ' * search}{most}"
        pairs = counted(batch, "pair")
        say(f"compiling {name} for {where.name}, {pairs} on each chip ({number}) ...")
        found = programs.compile_step(experiment, name, mesh, batch)
        compiled.append(found.compile_seconds)
        return found

    planned = []
    for name in names:
        found = compile_one(name, batch_per_chip)
        row = _row(found, where)
        if search:
            verdicts: dict[int, tuple[bool, int]] = {batch_per_chip: _verdict(found, where)}
            limit = found.available_bytes if isinstance(found, TooLarge) else 0
            largest = predict.largest_batch(
                lambda batch, name=name: _verdict(compile_one(name, batch), where),
                batch_per_chip,
                limit or where.chip.usable_bytes,
                experiment.train.accumulate,
                verdicts,
            )
            row["largest_batch"] = dataclasses.asdict(largest)
        planned.append(row)
    return {
        "format": FORMAT,
        "experiment": experiment.name,
        "topology": where.name,
        "chips": where.chips,
        "chip": dataclasses.asdict(where.chip),
        "links_per_chip": where.links,
        "batch_per_chip": batch_per_chip,
        "batch": batch_per_chip * where.chips,
        "fsdp": experiment.train.fsdp,
        "compute_dtype": experiment.model.compute_dtype,
        "compilations": len(compiled),
        "compile_seconds": sum(compiled),
        "stages": planned,
        "notes": [PREDICTED],
    }


def _verdict(found: Work | TooLarge, where: Slice) -> tuple[bool, int]:
    """Whether it fits, and bytes. The compiler lets programs pass that need more than there is."""
    if isinstance(found, TooLarge):
        return False, found.needed_bytes
    return found.memory.total <= where.chip.usable_bytes, found.memory.total


def _row(found: Work | TooLarge, where: Slice) -> dict[str, Any]:
    if isinstance(found, TooLarge):
        return {"stage": found.stage, "fits": False, "compiled": False, **_without_stage(found)}
    messages = [(each.kind, each.count, each.link_bytes) for each in found.collectives]
    times = predict.times(where, found.matrix_flops, found.memory_bytes, messages)
    rows = where.chips * found.batch_per_chip
    return {
        "stage": found.stage,
        "fits": _verdict(found, where)[0],
        "compiled": True,
        **_without_stage(found),
        "memory_bytes_needed": found.memory.total,
        "memory_share": found.memory.total / where.chip.usable_bytes,
        "predicted": {
            "compute_seconds": times.compute,
            "memory_seconds": times.memory,
            "network_seconds": times.network,
            "step_seconds": times.step,
            "examples_per_second": rows / times.step,
            "bound": times.bound,
        },
    }


def _without_stage(found: Work | TooLarge) -> dict[str, Any]:
    tree = dataclasses.asdict(found)
    del tree["stage"]
    return tree


def lines(plan: dict[str, Any]) -> list[str]:
    """The plan for the eye."""
    text = [
        f"{plan['experiment']} on {plan['topology']}: {counted(plan['chips'], 'chip')}, "
        f"{counted(plan['batch_per_chip'], 'pair')} on each, {plan['batch']} a step, "
        f"{plan['compute_dtype']}"
    ]
    if plan["fsdp"] > 1:
        text[0] += f", parameters split over {plan['fsdp']}"
    for row in plan["stages"]:
        text += ["", f"stage {row['stage']}, on each chip"]
        text += [f"  {name:<16}{value}" for name, value in _facts(row, plan)]
    text += ["", *plan["notes"]]
    text.append(f"{counted(plan['compilations'], 'compilation')}, {plan['compile_seconds']:.0f} s.")
    return text


def _facts(row: dict[str, Any], plan: dict[str, Any]) -> list[tuple[str, str]]:
    there = plan["chip"]["usable_bytes"]
    if not row["compiled"]:
        there = size(row["available_bytes"] or there)
        needed = f"at least {size(row['needed_bytes'])} of" if row["needed_bytes"] else "more than"
        found = [("memory", f"DOES NOT FIT: needs {needed} {there}")]
    else:
        memory, expected = row["memory"], row["predicted"]
        found = [
            (
                "memory",
                f"{'' if row['fits'] else 'DOES NOT FIT: '}{size(row['memory_bytes_needed'])} of "
                f"{size(there)} ({row['memory_share']:.0%}): arguments "
                f"{size(memory['arguments'])}, temporaries {size(memory['temporaries'])}, output "
                f"{size(memory['outputs'])} ({size(memory['aliased'])} in place of arguments), "
                f"code {size(memory['code'])}",
            ),
            (
                "arithmetic",
                f"{row['matrix_flops']:.3g} FLOPs of matrix products and convolutions, "
                f"{row['other_flops']:.3g} others",
            ),
            ("HBM traffic", f"{size(row['memory_bytes'])}"),
            *(
                (
                    each["kind"],
                    f"{each['count']:g} a step, {size(each['bytes'])}; sends "
                    f"{size(each['link_bytes'])}",
                )
                for each in row["collectives"]
            ),
            (
                "predicted step",
                f"{1e3 * expected['step_seconds']:.3g} ms, bound by {expected['bound']}: compute "
                f"{1e3 * expected['compute_seconds']:.3g}, memory "
                f"{1e3 * expected['memory_seconds']:.3g}, network "
                f"{1e3 * expected['network_seconds']:.3g}",
            ),
            ("predicted rate", f"{expected['examples_per_second']:.4g} examples/s in all"),
        ]
        if not row["collectives"]:
            found.insert(3, ("collectives", "none"))
        if row["unknown_loops"]:
            found.append(
                ("loops", f"{row['unknown_loops']} of {row['loops']} of unknown length count once")
            )
    if "largest_batch" in row:
        found.append(("largest batch", _largest(row["largest_batch"])))
    return found


def _largest(found: dict[str, int]) -> str:
    if not found["batch"]:
        return f"none found; too large: {counted(found['too_large'], 'pair')} a chip"
    beyond = f"too large: {found['too_large']}" if found["too_large"] else "more was not tried"
    more = counted(found["compilations"], "more compilation")
    return f"{counted(found['batch'], 'pair')} a chip ({beyond}; {more})"


def size(amount: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.4g} {unit}"
