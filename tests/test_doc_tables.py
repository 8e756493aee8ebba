"""The tables of measurements in the documents are those of bench/results.

`python tests/test_doc_tables.py` writes them again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import faults, loader, plan, pretrain, rivals, scaling, ssvif, summary
from jaxfuse import weights

REPO = Path(__file__).parents[1]
RESULTS = REPO / "bench" / "results"
TABLES: dict[tuple[str, str], tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    ("docs/guides/ssvif.md", "bounds"): ("ssvif/bounds.json", ssvif.lines),
    ("docs/guides/ssvif.md", "collapse"): ("ssvif/bounds.json", ssvif.collapse_lines),
    ("docs/guides/ssvif.md", "trials"): ("ssvif/trials.json", ssvif.trial_lines),
    ("docs/guides/scaling.md", "example"): ("plan-cpu.json", plan.example),
    ("docs/guides/scaling.md", "plan"): ("plan-cpu.json", plan.table),
    ("docs/guides/scaling.md", "weak scaling"): ("scaling-cpu.json", scaling.table),
    ("docs/guides/scaling.md", "loader"): ("loader-cpu.json", loader.table),
    ("jaxfuse/pretrained/README.md", "scores"): ("weights/scores.json", pretrain.lines),
    ("jaxfuse/pretrained/README.md", "rims"): ("weights/rims.json", pretrain.rim_lines),
    ("docs/performance.md", "quality"): ("weights/scores.json", summary.quality),
    ("jaxfuse/pretrained/README.md", "downstream"): (
        "weights/downstream.json",
        pretrain.downstream_lines,
    ),
    ("launch/README.md", "faults"): ("processes/faults.json", faults.lines),
}
"""Page and mark on it -> result, how it is told."""
PAGE = "docs/performance.md"
SUMMARIES: dict[tuple[str, str], tuple[tuple[str, ...], Callable[..., list[str]]]] = {
    (PAGE, "goals"): (summary.ASKED, summary.goals),
    (PAGE, "floors"): (("fuse", "step", "realtime", "video", "windowed"), summary.floors),
    (PAGE, "changes"): (summary.CHANGED, summary.changes),
    (PAGE, "precision"): (("precision",), summary.precision),
}
"""The same, of several subjects measured on a processor."""


def with_table(page: str, mark: str) -> str:
    """The page with what a result says between its marks."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
    head, rest = (REPO / page).read_text(encoding="utf8").split(begin)
    _, tail = rest.split(end)
    if (page, mark) in TABLES:
        file, told = TABLES[page, mark]
        lines = told(read(file))
    else:
        subjects, told = SUMMARIES[page, mark]
        lines = told({subject: read(f"{subject}-cpu.json") for subject in subjects})
    return head + begin + "\n".join(lines) + "\n" + end + tail


def read(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / file).read_text(encoding="utf8"))


@pytest.mark.parametrize(("page", "mark"), [*TABLES, *SUMMARIES])
def test_the_page_shows_what_was_measured(page: str, mark: str) -> None:
    text = (REPO / page).read_text(encoding="utf8")
    assert text == with_table(page, mark), "run `python tests/test_doc_tables.py`"


def test_runs_that_were_broken_lost_nothing() -> None:
    text = (RESULTS / "processes" / "faults.json").read_text(encoding="utf8")
    result = json.loads(text)
    assert list(result["rows"]) == list(faults.FAULTS)
    assert all(row["same_end"] for row in result["rows"].values())
    assert len(result["kills"]["at_steps"]) == 20 and result["kills"]["same_end"]
    assert [goal["met"] for goal in result["goals"]] == [True]
    assert "+" not in result["versions"]["commit"] and "/tmp" not in text and "/home" not in text


def test_packaged_weights_say_which_commit_made_them() -> None:
    for name in weights.packaged():
        commit = weights.load_weights(name).metadata["commit"]
        assert re.fullmatch("[0-9a-f]{7,40}", commit), (name, commit)


@pytest.mark.parametrize("file", ["scores", "rims", "downstream"])
def test_what_was_judged_are_the_weights_that_ship(file: str) -> None:
    result = read(f"weights/{file}.json")
    sums = (REPO / "jaxfuse" / "pretrained" / "SHA256SUMS").read_text(encoding="utf8")
    assert "".join(f"{h}  {name}\n" for name, h in result["weights"].items()) == sums


@pytest.mark.parametrize("name", ["lite", "crossfuse"])
def test_what_ships_is_better_than_published_networks_on_most_metrics(name: str) -> None:
    """Over all validation pairs, and than two of them on each set."""
    result = read("weights/scores.json")
    validation = [which for which in result["scores"] if which.endswith("_val")]
    asked = [(validation, rival) for rival in rivals.RIVALS]
    asked += [([which], rival) for which in result["scores"] for rival in ("IFCNN", "DATFuse")]
    for sets, rival in asked:
        won = pretrain.metrics_won(result, sets, name, rival)
        assert len(won) >= 5, (sets, rival, won)


if __name__ == "__main__":
    for each in (*TABLES, *SUMMARIES):
        (REPO / each[0]).write_text(with_table(*each), encoding="utf8")
