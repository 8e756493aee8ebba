"""The tables of docs/guides/ssvif.md are those of the measured results.

`python tests/test_ssvif_docs.py` writes them again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench import ssvif
from tiny_segmenter import quick_segmenter  # noqa: F401 (a fixture)

REPO = Path(__file__).parents[1]
PAGE = REPO / "docs" / "guides" / "ssvif.md"
RESULTS = REPO / "bench" / "results" / "ssvif"
TABLES = {
    "bounds": ("bounds", ssvif.lines),
    "collapse": ("bounds", ssvif.collapse_lines),
    "trials": ("trials", ssvif.trial_lines),
}
"""Mark on the page -> result, how it is told."""


def with_table(text: str, name: str) -> str:
    """The page with the table of a result between its marks."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    file, told = TABLES[name]
    result = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf8"))
    return head + begin + "\n".join(told(result)) + "\n" + end + tail


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_what_was_measured(name: str) -> None:
    text = PAGE.read_text(encoding="utf8")
    assert text == with_table(text, name), "run `python tests/test_ssvif_docs.py`"


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


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf8")
    for each in TABLES:
        page = with_table(page, each)
    PAGE.write_text(page, encoding="utf8")
