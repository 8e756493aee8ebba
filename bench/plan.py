"""Plans for pods that are not here: what a step is predicted to take, from 4 chips to 256.

What is measured is the time and memory of planning; the rest is prediction, and so are the goals.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench import machine, record
from bench.record import Run
from bench.sides import BenchError

STAGES = {"crossfuse": "fusion", "ssvif": "guided"}
"""Presets and their longest or heaviest stage."""
KINDS = ("v5e", "v6e")
SLICES = ("2x2", "16x16")
EFFICIENCY = 0.95
UNFINISHED = "Not complete: the same command continues."
TINY = ("ssvif_small", "fusion", ("v5e",), ("2x2",))


def one(run: Run, preset: str, stage: str, topology: str) -> dict[str, Any] | None:
    """The plan of one stage, made in a process of its own, as a side of a result; None where it
    was killed, as the system does for want of memory, or crashed.
    """
    command = [sys.executable, "-m", "jaxfuse", "plan", preset, "--topology", topology]
    command += ["--stage", stage, "--no-search", "--json", "-"]
    if run.tiny:
        command += ["--batch-per-chip", "1"]
    told, began = run.scratch / "plan.json", time.perf_counter()
    with told.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=machine.ROOT, env={**os.environ, **run.environment}, stdout=out
        )
        # Not Popen.wait: this says what that one process took.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode < 0:
        return None
    try:
        # Of a stage that does not fit there is a plan too, though the command ends with code 1.
        plan = json.loads(told.read_text(encoding="utf8"))
        (row,) = plan.pop("stages")
    except (ValueError, KeyError) as error:
        raise BenchError(
            f"{preset} on {topology}: no plan (code {process.returncode}): see above"
        ) from error
    return {
        "seconds": [seconds],
        "median_seconds": seconds,
        "cpu_seconds": [used.ru_utime + used.ru_stime],
        "peak_rss_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "facts": {**plan, **row},
    }


def side_name(preset: str, stage: str, topology: str) -> str:
    return f"{preset}, {stage}, {topology}"


def efficiency(small: dict[str, Any], large: dict[str, Any]) -> float:
    """Examples a second and chip of the large slice over those of the small one, batch per chip
    the same."""
    few, many = (
        side["facts"]["predicted"]["examples_per_second"] / side["facts"]["chips"]
        for side in (small, large)
    )
    return many / few


def kept(run: Run, versions: dict[str, Any]) -> dict[str, Any]:
    """The plans of a run of the same versions that was stopped before its end."""
    path = run.out / f"plan-cpu{'-tiny' if run.tiny else ''}.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf8"))
    return found["sides"] if UNFINISHED in found["notes"] and found["versions"] == versions else {}


def measure(run: Run, rates: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Gives the result after every plan, which takes minutes, with what there is so far; a run that
    was stopped is continued."""
    if importlib.util.find_spec("libtpu") is None:
        raise BenchError("plan: needs the TPU compiler, which the extra tpu brings")
    versions, load, busy = machine.versions(), machine.load_average(), machine.busy_share()
    rates = run.rates() if rates is None else rates
    presets, kinds, slices = STAGES, KINDS, SLICES
    if run.tiny:
        presets, kinds, slices = {TINY[0]: TINY[1]}, TINY[2], TINY[3]
    before = kept(run, versions)
    sides: dict[str, Any] = {}
    goals: list[dict[str, Any]] = []
    wanted = [(p, k, s) for k in kinds for p in presets for s in slices]
    notes = ["Measured: seconds and memory of planning. Predicted: everything under facts."]
    for preset, kind, shape in wanted:
        stage, topology = presets[preset], f"{kind}:{shape}"
        name = side_name(preset, stage, topology)
        side = before.get(name) or one(run, preset, stage, topology)
        if side is None:
            notes.append(f"{name}: no plan: the compiler was killed (want of memory?) or crashed")
        else:
            sides[name] = side
            if not side["facts"]["fits"]:
                notes.append(f"{name}: does not fit")
        if len(slices) > 1 and shape == slices[-1]:
            pair = [sides.get(side_name(preset, stage, f"{kind}:{each}")) for each in slices]
            if all(each and each["facts"]["fits"] for each in pair):
                goals.append(
                    record.goal(
                        f"predicted efficiency of {preset} on {kind}, 4 to 256 chips",
                        EFFICIENCY,
                        efficiency(*pair),
                        at_least=True,
                    )
                )
        if not sides:  # a result without any is none
            continue
        result = record.assemble(
            run,
            "plan",
            "plans of training steps for TPU slices that are not here",
            {"busy_before": busy, "load_average_before": load, **rates},
            versions,
            {"stages": presets, "kinds": list(kinds), "slices": list(slices)},
            sides,
            [*notes, *([UNFINISHED] if len(sides) < len(wanted) else [])],
        )
        yield {**result, "goals": goals}
    if not sides:
        raise BenchError(f"plan: nothing could be planned: {'; '.join(notes[1:])}")


def table(result: dict[str, Any]) -> list[str]:
    """The plans as a Markdown table."""
    rows = [
        "| preset, stage | slice | batch per chip | memory per chip | matrix GFLOPs | HBM traffic "
        "| collectives | sent by a chip | step | bound | examples/s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    for side in result["sides"].values():
        facts = side["facts"]
        named = f"| {facts['experiment']}, {facts['stage']} | {facts['topology']} | "
        named += f"{facts['batch_per_chip']} | "
        there = f"{facts['chip']['usable_bytes'] / 2**30:.4g} GiB"
        if not facts["compiled"]:
            least = f"{facts['needed_bytes'] / 2**30:.1f} of " if facts["needed_bytes"] else ""
            rows.append(f"{named}does not fit: {least or 'more than '}{there} |{' - |' * 7}")
            continue
        expected = facts["predicted"]
        count = sum(each["count"] for each in facts["collectives"])
        sent = sum(each["link_bytes"] for each in facts["collectives"])
        refused = "" if facts["fits"] else "does not fit: "
        rows.append(
            f"{named}{refused}{facts['memory_bytes_needed'] / 2**30:.1f} of {there} | "
            f"{facts['matrix_flops'] / 1e9:.0f} | {facts['memory_bytes'] / 1e9:.1f} GB | "
            f"{count:g} | {sent / 1e6:.1f} MB | "
            f"{1e3 * expected['step_seconds']:.1f} ms | {expected['bound']} | "
            f"{expected['examples_per_second']:.0f} |"
        )
    seconds = [side["median_seconds"] for side in result["sides"].values()]
    peak = max(side["peak_rss_bytes"] for side in result["sides"].values())
    told = f"A plan took {min(seconds):.0f} to {max(seconds):.0f} s and at most {peak / 2**30:.0f} "
    rows += ["", f"{told}GiB of memory."]
    for goal in result["goals"]:
        rows += ["", f"{goal['what'][0].upper()}{goal['what'][1:]}: {goal['measured']:.1%}."]
    return rows


def example(result: dict[str, Any]) -> list[str]:
    """What `jaxfuse plan` printed for the first of the plans."""
    from jaxfuse.plan import report

    facts = next(iter(result["sides"].values()))["facts"]
    made = f"$ jaxfuse plan {facts['experiment']} --topology {facts['topology']}"
    shown = report.lines({**facts, "stages": [facts]})
    return ["```", f"{made} --stage {facts['stage']} --no-search", *shown, "```"]
