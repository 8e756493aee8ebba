"""Results as JSON: what was measured, where, against what, and how far from the floor."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.floor import floor
from bench.sides import BenchError, Side, alternate, one_by_one

FORMAT = 1
KEYS = {
    "format": int,
    "subject": str,
    "what": str,
    "device": str,
    "tiny": bool,
    "date": str,
    "command": str,
    "machine": dict,
    "versions": dict,
    "settings": dict,
    "reference": (dict, type(None)),
    "sides": dict,
    "ratios": dict,
    "agreement": dict,
    "goals": list,
    "notes": list,
}
"""Keys of every result and what they hold."""

BUSY = 0.1
"""Share of the cores in others' hands above which a result says so."""
NO_REFERENCE = "The published code was not measured: give its checkout with --reference DIR."


@dataclasses.dataclass(frozen=True)
class Run:
    """What was asked for."""

    command: str
    out: Path
    scratch: Path
    """A folder for what sides hand each other; gone afterwards."""
    reference: Path | None = None
    repeat: int | None = None
    tiny: bool = False
    accelerator: bool = False
    zoo: Path | None = None
    """A checkout of IVIF_ZOO's evaluator."""
    rivals: Path | None = None
    """A folder of checkouts, see `bench.rivals`."""

    @property
    def environment(self) -> dict[str, str]:
        """What to add to the environment of a process that measures."""
        return {} if self.accelerator else {"JAX_PLATFORMS": "cpu"}

    def rounds(self, default: int) -> int:
        """How often everything is run."""
        if self.repeat is not None:
            return self.repeat
        return min(default, 2) if self.tiny else default

    def rates(self) -> dict[str, Any]:
        """What the machine does at best, now; measured in a process of its own."""
        command = [sys.executable, "-m", "bench.machine", *(["--tiny"] if self.tiny else [])]
        done = subprocess.run(
            command,
            cwd=machine.ROOT,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"the machine's speed could not be measured (code {done.returncode})")
        return json.loads(done.stdout.splitlines()[-1])


def ratio(slower: Sequence[float], faster: Sequence[float]) -> dict[str, Any]:
    """How many times as long the first takes: a quotient per round of both, and their median."""
    quotients = [a / b for a, b in zip(slower, faster, strict=False)]
    if not quotients:
        raise ValueError("a ratio of nothing: both sides need at least one run")
    return {
        "per_round": quotients,
        "median": statistics.median(quotients),
        "lowest": min(quotients),
        "highest": max(quotients),
    }


def goal(
    what: str, bound: float, measured: float, at_least: bool = False, final: bool = True
) -> dict[str, Any]:
    """A number to reach, and whether it was; a tiny run measures without judging."""
    met = (measured >= bound if at_least else measured <= bound) if final else None
    side = "at least" if at_least else "at most"
    return {"what": what, "goal": f"{side} {bound:g}", "measured": measured, "met": met}


def measure(
    run: Run,
    subject: str,
    what: str,
    sides: Sequence[Side],
    rounds: int,
    settings: dict[str, Any],
    rates: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures the machine, then the sides in turn, and gives the result without ratios and goals.

    A side whose facts hold `operations` and `bytes` (and, where it is not float32, `dtype`) gets a
    floor and its distance from it; `floor_of` in a side's options takes another side's.
    """
    # First of all: what is committed while this runs is not what was measured.
    versions = machine.versions()
    load, busy = machine.load_average(), machine.busy_share()
    rates = run.rates() if rates is None else rates
    for side in sides:
        side.environment = {**run.environment, **side.environment}
    notes = []
    if run.accelerator:
        notes += one_by_one(sides, rounds)
        sides = [side for side in sides if side.report]
        if not sides:
            raise BenchError(f"{subject}: no side could be measured: see above")
    else:
        alternate(sides, rounds)
    found: dict[str, Any] = {}
    for side in sides:
        report = side.report
        report["median_seconds"] = statistics.median(report["seconds"])
        facts = report["facts"]
        if "operations" in facts:
            speed = rates["operations_per_second"][facts.get("dtype", "float32")]
            copied = rates["copy_bytes_per_second"]
            amount = (facts.pop("operations"), facts.pop("bytes"))
            report["floor"] = floor(*amount, speed, copied)
        found[side.name] = report
    for side in sides:
        if "floor_of" in side.options:
            found[side.name]["floor"] = found[side.options["floor_of"]]["floor"]
        if "floor" in found[side.name]:
            least = found[side.name]["floor"]["seconds"]
            found[side.name]["gap"] = found[side.name]["median_seconds"] / least
    name = machine.slug(rates["device"]) if run.accelerator else "cpu"
    if busy is not None and busy > BUSY:
        notes.append(
            f"The machine was busy before this began ({busy:.0%} of its {machine.cores()} cores): "
            "measure again when it is quiet; threads that wait for each other suffer more than "
            "their share."
        )
    return assemble(
        run,
        subject,
        what,
        {"busy_before": busy, "load_average_before": load, **rates},
        versions,
        {**settings, "rounds": rounds},
        found,
        notes,
        device=name,
    )


def assemble(
    run: Run,
    subject: str,
    what: str,
    machine_then: dict[str, Any],
    versions: dict[str, Any],
    settings: dict[str, Any],
    sides: dict[str, Any],
    notes: list[str],
    device: str = "cpu",
) -> dict[str, Any]:
    """A result, without ratios and goals. machine_then: how busy the machine was before, and its
    rates.
    """
    return {
        "format": FORMAT,
        "subject": subject,
        "what": what,
        "device": device,
        "tiny": run.tiny,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": run.command,
        "machine": {
            **machine.hardware(),
            "environment": machine.environment(),
            "load_average_after": machine.load_average(),
            **machine_then,
        },
        "versions": versions,
        "settings": settings,
        "reference": None,
        "sides": sides,
        "ratios": {},
        "agreement": {},
        "goals": [],
        "notes": notes,
    }


def compare(result: dict[str, Any], slower: str, faster: str) -> dict[str, Any]:
    """Adds the ratio of two sides, time and peak memory, and gives it; {} where one is missing."""
    if not {slower, faster} <= set(result["sides"]):
        return {}
    a, b = result["sides"][slower], result["sides"][faster]
    entry = {
        "time": ratio(a["seconds"], b["seconds"]),
        "peak_rss": a["peak_rss_bytes"] / b["peak_rss_bytes"],
    }
    result["ratios"][f"{slower} / {faster}"] = entry
    return entry


def problems(result: Any) -> list[str]:
    """What is wrong with a result; empty where nothing is."""
    if not isinstance(result, dict):
        return ["not an object"]
    found = [f"no {key}" for key in KEYS if key not in result]
    found += [f"unknown {key}" for key in result if key not in KEYS]
    for key, kind in KEYS.items():
        if key in result and not isinstance(result[key], kind):
            found.append(f"{key} is a {type(result[key]).__name__}")
    if found:
        return found
    if result["format"] != FORMAT:
        return [f"format {result['format']}, not {FORMAT}"]
    for key in ("processor", "cores", "busy_before", "operations_per_second"):
        if key not in result["machine"]:
            found.append(f"machine has no {key}")
    if not result["sides"]:
        found.append("no side was measured")
    for name, side in result["sides"].items():
        seconds = side.get("seconds") or [math.nan]
        if not all(math.isfinite(s) and s > 0 for s in seconds):
            found.append(f"{name}: its seconds are {seconds}")
        elif not math.isclose(side.get("median_seconds", math.nan), statistics.median(seconds)):
            found.append(f"{name}: median_seconds is not the median of its seconds")
        if not side.get("peak_rss_bytes", 0) > 0:
            found.append(f"{name}: no peak_rss_bytes")
        if ("floor" in side) != ("gap" in side):
            found.append(f"{name}: floor and gap go together")
    for name, entry in result["ratios"].items():
        if not set(name.split(" / ")) <= set(result["sides"]):
            found.append(f"ratio {name!r}: of sides that are not there")
        elif not entry["time"]["median"] > 0:
            found.append(f"ratio {name!r}: {entry['time']['median']}")
    for entry in result["goals"]:
        if set(entry) != {"what", "goal", "measured", "met"}:
            found.append(f"goal {entry}: needs what, goal, measured, met")
    return found


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become words, rather than lose a measurement."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write(result: dict[str, Any], out: Path) -> Path:
    """Saves a result as `<subject>-<device>.json`; refuses one that is not whole."""
    wrong = problems(result)
    if wrong:
        raise ValueError(f"{result.get('subject')}: {'; '.join(wrong)}")
    out.mkdir(parents=True, exist_ok=True)
    tiny = "-tiny" if result["tiny"] else ""
    path = out / f"{result['subject']}-{result['device']}{tiny}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        json.dumps(_strict(result), indent=1, allow_nan=False) + "\n", encoding="utf8"
    )
    os.replace(temporary, path)
    return path


def lines(result: dict[str, Any]) -> list[str]:
    """A result for the eye."""
    text = [f"{result['subject']}: {result['what']}"]
    for name, side in result["sides"].items():
        low, high = min(side["seconds"]), max(side["seconds"])
        line = f"  {name:<32} {side['median_seconds']:>9.4g} s ({low:.4g} to {high:.4g})"
        line += f"  {side['peak_rss_bytes'] / 1e9:6.2f} GB"
        if "gap" in side:
            line += f"  {side['gap']:.3g} x its floor ({side['floor']['bound']})"
        text.append(line)
    for name, entry in result["ratios"].items():
        time = entry["time"]
        text.append(
            f"  {name}: {time['median']:.3g} x the time ({time['lowest']:.3g} to "
            f"{time['highest']:.3g}), {entry['peak_rss']:.3g} x the memory"
        )
    text += [f"  {name}: {value}" for name, value in result["agreement"].items()]
    for entry in result["goals"]:
        verdict = {True: "met", False: "NOT met", None: "not judged"}[entry["met"]]
        text.append(f"  {entry['what']}: {entry['measured']:.4g}, {entry['goal']}: {verdict}")
    text += [f"  {note}" for note in result["notes"]]
    return text
