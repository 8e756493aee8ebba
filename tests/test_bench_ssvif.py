"""The bench of SSVIF: its results, and that it runs from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench import ssvif
from tiny_segmenter import quick_segmenter  # noqa: F401 (a fixture)

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "ssvif"


def test_results_name_no_folder() -> None:
    for path in RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf8")
        assert re.findall(r"(?<![\w.>])/\w+/[\w./]*", text) == [], path.name
        assert json.loads(text)["format"] == ssvif.FORMAT


@pytest.mark.slow
def test_the_bench_runs_from_end_to_end(tmp_path: Path) -> None:
    given = ["--work", str(tmp_path / "work"), "--out", str(tmp_path), "--tiny"]
    assert ssvif.main(given) == 0
    result = json.loads((tmp_path / "bounds.json").read_text(encoding="utf8"))
    assert list(result["rows"]) == [*ssvif.BOUNDS, "visible", "infrared"]
    ours = result["rows"]["ssvif"]
    assert ours["difference"]["low"] <= ours["difference"]["value"] <= ours["difference"]["high"]
    assert set(ours["quality"]) == set(ssvif.METRICS)
    assert ours["curves_of_seed_0"]["classes_in_use"][-1] > 1
    assert "curves_of_seed_0" not in result["rows"]["fusion_only"]
    table = ssvif.lines(result)
    assert len(table) == 2 + len(result["rows"]) and len({row.count("|") for row in table}) == 1
    assert set(result["no_anchor"]) == {"curves", "doubts"}
    assert len({row.count("|") for row in ssvif.collapse_lines(result)}) == 1
