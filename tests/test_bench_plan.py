"""The bench of plans: what it keeps, how it is shown, that it continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import plan, record
from bench.sides import BenchError
from jaxfuse.plan import chips, report

RESULT = Path(__file__).parents[1] / "bench" / "results" / "plan-cpu.json"


def test_a_result_is_whole() -> None:
    result = json.loads(RESULT.read_text(encoding="utf8"))
    named = [
        plan.side_name(preset, stage, f"{kind}:{shape}")
        for kind in plan.KINDS
        for preset, stage in plan.STAGES.items()
        for shape in plan.SLICES
    ]
    assert list(result["sides"]) == named and not result["tiny"]
    assert plan.UNFINISHED not in result["notes"]
    assert all(side["facts"]["fits"] for side in result["sides"].values())
    assert [goal["met"] for goal in result["goals"]] == [True] * (len(named) // 2)


def planned(topology: str, chips: int, rate: float) -> dict[str, Any]:
    """A side as the bench makes it, as far as the page shows it."""
    return {
        "median_seconds": 61.0,
        "peak_rss_bytes": 5 << 30,
        "facts": {
            "experiment": "crossfuse",
            "stage": "fusion",
            "topology": topology,
            "chips": chips,
            "chip": {"memory_bytes": 16 << 30, "usable_bytes": int(15.75 * 2**30)},
            "fsdp": 1,
            "batch": 8 * chips,
            "batch_per_chip": 8,
            "compute_dtype": "float32",
            "compilations": 1,
            "compile_seconds": 2.0,
            "notes": [report.PREDICTED],
            "fits": True,
            "compiled": True,
            "memory": dict.fromkeys(("arguments", "temporaries", "outputs", "aliased", "code"), 1),
            "memory_bytes_needed": 4 << 30,
            "memory_share": 0.25,
            "matrix_flops": 2.3e11,
            "other_flops": 1e9,
            "memory_bytes": 3.9e10,
            "collectives": [
                {"kind": "all-reduce", "count": 13.0, "bytes": 2.9e6, "link_bytes": 4.3e6}
            ],
            "loops": 8,
            "unknown_loops": 0,
            "predicted": {
                "step_seconds": 0.048,
                "compute_seconds": 0.001,
                "memory_seconds": 0.0475,
                "network_seconds": 0.0005,
                "examples_per_second": rate,
                "bound": "memory",
            },
        },
    }


def refused(topology: str, needed: int) -> dict[str, Any]:
    """A side of a stage that the compiler could not fit."""
    side = planned(topology, 4, 1.0)
    for name in ("predicted", "memory", "memory_bytes_needed", "collectives"):
        del side["facts"][name]
    side["facts"].update(fits=False, compiled=False, needed_bytes=needed, available_bytes=0)
    return side


def test_how_plans_are_shown() -> None:
    sides = {name: planned(name, 4, 667.0) for name in ("v5e:2x2",)}
    sides["refused"] = refused("v5e:16x16", 20 << 30)
    sides["unsaid"] = refused("v5e:16x16", 0)
    sides["beyond"] = planned("v5e:2x2", 4, 667.0)
    sides["beyond"]["facts"].update(fits=False, memory_bytes_needed=16 << 30)
    goal = {"what": "predicted efficiency", "goal": "", "measured": 0.9932, "met": True}
    *table, _, took, _, told = plan.table({"sides": sides, "goals": [goal]})
    assert took == "A plan took 61 to 61 s and at most 5 GiB of memory."
    assert told == "Predicted efficiency: 99.3%."
    assert len({row.count("|") for row in table}) == 1
    assert "| 4.0 of 15.75 GiB | 230 | 39.0 GB | 13 | 4.3 MB | 48.0 ms | memory | 667 |" in table[2]
    assert "| does not fit: 20.0 of 15.75 GiB | - | - |" in table[3]
    assert "| does not fit: more than 15.75 GiB | - | - |" in table[4]
    assert "| does not fit: 16.0 of 15.75 GiB | 230 |" in table[5]
    shown = plan.example({"sides": sides})
    assert shown[1] == "$ jaxfuse plan crossfuse --topology v5e:2x2 --stage fusion --no-search"
    assert any("4 GiB of 15.75 GiB (25%)" in line for line in shown)
    assert any("bound by memory" in line for line in shown)


def test_a_bench_that_was_stopped_continues(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(plan.machine, "versions", lambda: {"commit": "abc"})
    made: list[str] = []

    def one(run: record.Run, preset: str, stage: str, topology: str) -> dict[str, Any]:
        made.append(f"{preset} {topology}")
        where = chips.parse(topology)
        side = planned(topology, where.chips, 100.0 * where.chips)
        return {**side, "seconds": [1.0], "median_seconds": 1.0, "peak_rss_bytes": 1}

    monkeypatch.setattr(plan, "one", one)
    run = record.Run("python -m bench plan", tmp_path, tmp_path)
    rates = {"operations_per_second": {"float32": 1e9}}
    results = plan.measure(run, rates)
    for _ in range(3):
        record.write(next(results), tmp_path)
    results.close()
    (*_, last) = plan.measure(run, rates)
    assert made == [
        *("crossfuse v5e:2x2", "crossfuse v5e:16x16", "ssvif v5e:2x2", "ssvif v5e:16x16"),
        *("crossfuse v6e:2x2", "crossfuse v6e:16x16", "ssvif v6e:2x2", "ssvif v6e:16x16"),
    ]
    assert record.problems(last) == [] and plan.UNFINISHED not in last["notes"]
    assert [goal["met"] for goal in last["goals"]] == [True] * 4


def command(path: Path, monkeypatch, *lines: str) -> None:
    """Makes `path` the interpreter that the bench starts, a shell script."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf8")
    path.chmod(0o755)
    monkeypatch.setattr(plan.sys, "executable", str(path))


def test_what_does_not_fit_is_a_plan_too(tmp_path: Path, monkeypatch) -> None:
    run = record.Run("python -m bench plan", tmp_path, tmp_path)
    facts = refused("v5e:2x2", 20 << 30)["facts"]
    told = {"experiment": "crossfuse", "chip": facts["chip"], "stages": [facts]}
    (tmp_path / "said.json").write_text(json.dumps(told), encoding="utf8")
    command(tmp_path / "python", monkeypatch, f"cat {tmp_path / 'said.json'}", "exit 1")
    side = plan.one(run, "crossfuse", "fusion", "v5e:2x2")
    assert side and side["facts"]["needed_bytes"] == 20 << 30 and not side["facts"]["fits"]
    command(tmp_path / "python", monkeypatch, "echo jaxfuse: nothing", "exit 1")
    with pytest.raises(BenchError, match=r"crossfuse on v5e:2x2: no plan \(code 1\)"):
        plan.one(run, "crossfuse", "fusion", "v5e:2x2")
    for number in (9, 11):
        command(tmp_path / "python", monkeypatch, f"kill -{number} $$")
        assert plan.one(run, "crossfuse", "fusion", "v5e:2x2") is None


def test_a_bench_goes_on_after_what_was_killed_or_does_not_fit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(plan.machine, "versions", lambda: {"commit": "abc"})
    killed = {("crossfuse", "v5e:2x2"), ("ssvif", "v6e:16x16")}

    def one(run: record.Run, preset: str, stage: str, topology: str) -> dict[str, Any] | None:
        if (preset, topology) in killed:
            return None
        where = chips.parse(topology)
        side = planned(topology, where.chips, 100.0 * where.chips)
        if (preset, topology) == ("crossfuse", "v6e:2x2"):
            side = refused(topology, 20 << 30)
        return {**side, "seconds": [1.0], "median_seconds": 1.0, "peak_rss_bytes": 1}

    monkeypatch.setattr(plan, "one", one)
    run = record.Run("python -m bench plan", tmp_path, tmp_path)
    rates = {"operations_per_second": {"float32": 1e9}}
    (*_, last) = plan.measure(run, rates)
    assert record.problems(last) == [] and len(last["sides"]) == 6
    assert [goal["what"] for goal in last["goals"]] == [
        "predicted efficiency of ssvif on v5e, 4 to 256 chips"
    ]
    why = "no plan: the compiler was killed (want of memory?) or crashed"
    assert last["notes"][1:] == [
        f"crossfuse, fusion, v5e:2x2: {why}",
        "crossfuse, fusion, v6e:2x2: does not fit",
        f"ssvif, guided, v6e:16x16: {why}",
        plan.UNFINISHED,
    ]
    # The next run tries again what was killed, and nothing else.
    record.write(last, tmp_path)
    killed.clear()
    made: list[str] = []
    monkeypatch.setattr(plan, "one", lambda *given: made.append(given[-1]) or one(*given))
    (*_, last) = plan.measure(run, rates)
    assert made == ["v5e:2x2", "v6e:16x16"]
    assert len(last["sides"]) == 8 and plan.UNFINISHED not in last["notes"]
    monkeypatch.setattr(plan, "one", lambda *given: None)
    with pytest.raises(BenchError, match="nothing could be planned"):
        list(plan.measure(record.Run("", tmp_path / "new", tmp_path), rates))


def test_efficiency_is_of_rates_per_chip() -> None:
    sides = planned("v5e:2x2", 4, 400.0), planned("v5e:16x16", 256, 24_320.0)
    assert plan.efficiency(*sides) == pytest.approx(0.95)
