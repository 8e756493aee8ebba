"""The example and the table of docs/guides/scaling.md are those of the measured result.

`python tests/test_plan_docs.py` writes them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import plan
from jaxfuse.plan import report

REPO = Path(__file__).parents[1]
PAGE = REPO / "docs" / "guides" / "scaling.md"
RESULT = REPO / "bench" / "results" / "plan-cpu.json"


def example(result: dict[str, Any]) -> list[str]:
    """What `jaxfuse plan` printed for the first of the plans."""
    facts = next(iter(result["sides"].values()))["facts"]
    made = f"$ jaxfuse plan {facts['experiment']} --topology {facts['topology']}"
    shown = report.lines({**facts, "stages": [facts]})
    return ["```", f"{made} --stage {facts['stage']} --no-search", *shown, "```"]


TABLES = {"example": example, "plan": plan.table}


def with_table(text: str, name: str) -> str:
    """The page with what belongs between its marks."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    result = json.loads(RESULT.read_text(encoding="utf8"))
    return head + begin + "\n".join(TABLES[name](result)) + "\n" + end + tail


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_what_was_planned(name: str) -> None:
    text = PAGE.read_text(encoding="utf8")
    assert text == with_table(text, name), "run `python tests/test_plan_docs.py`"


def test_what_was_planned_is_what_is_asked_in_its_order() -> None:
    result = json.loads(RESULT.read_text(encoding="utf8"))
    named = [
        plan.side_name(preset, stage, f"{kind}:{shape}")
        for kind in plan.KINDS
        for preset, stage in plan.STAGES.items()
        for shape in plan.SLICES
    ]
    done = list(result["sides"])
    # One that was cut short says so.
    assert done == named[: len(done)] and not result["tiny"]
    assert len(done) == len(named) or "Not complete." in result["notes"]
    assert len(result["goals"]) == len(done) // 2


def test_efficiency_is_of_rates_per_chip() -> None:
    sides = [
        {"facts": {"chips": chips, "predicted": {"examples_per_second": rate}}}
        for chips, rate in ((4, 400.0), (256, 24_320.0))
    ]
    assert plan.efficiency(*sides) == pytest.approx(0.95)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf8")
    for each in TABLES:
        page = with_table(page, each)
    PAGE.write_text(page, encoding="utf8")
