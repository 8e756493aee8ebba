"""The table of metrics in docs/metrics.md says what the code does.

`python tests/test_metrics_docs.py` writes the table again.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from jaxfuse import metrics
from jaxfuse.metrics.table import Definition, Metric

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
HEAD = "| metric | equation | source | better | definitions: convention [range], how it differs |"
ARROWS = {"higher": "higher", "lower": "lower", "unclear": "unclear"}


def span(d: Definition) -> str:
    low = "-∞" if d.low is None else f"{d.low:g}"
    high = "∞" if d.high is None else f"{d.high:g}"
    return f"[{low}, {high}]" + (f" {d.unit}" if d.unit else "")


def told(d: Definition) -> str:
    """A definition in words: the first paragraph of its docstring."""
    text = inspect.getdoc(d.compute)
    assert text, d.compute
    return " ".join(text.split("\n\n")[0].split())


def definitions(metric: Metric) -> str:
    """Conventions that compute the same stand together."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for convention, d in metric.definitions.items():
        direction = f"; {d.direction}" if d.direction else ""
        groups.setdefault((told(d), span(d), direction), []).append(convention)
    return "<br>".join(
        f"**{', '.join(names)}** {limits}{direction}: {text}"
        for (text, limits, direction), names in groups.items()
    )


def escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def table() -> str:
    lines = [HEAD, "|" + "---|" * 5]
    for name, metric in metrics.METRICS.items():
        cells = (
            f"**{escape(name)}**<br>{metric.title}",
            f"`{metric.equation}`",
            metric.source,
            ARROWS[metric.direction],
            definitions(metric).replace("|", "\\|"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_table_is_that_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf8")
    assert page.split(BEGIN)[1].split(END)[0] == table(), "run python tests/test_metrics_docs.py"


def test_the_page_names_every_convention_and_its_gray() -> None:
    page = PAGE.read_text(encoding="utf8")
    for convention, source in metrics.CONVENTIONS.items():
        assert re.search(rf"\| `{convention}` \|", page), convention
        assert source.split(",")[0] in page, source


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf8")
