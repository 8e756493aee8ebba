"""What scores say together: means with intervals, paired tests, ranks, the drop between sets."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np

from jaxfuse.config import counted
from jaxfuse.evaluate.plan import BASELINES
from jaxfuse.evaluate.results import Evaluation, Scores, csv_text, plain
from jaxfuse.metrics import statistics

LEVEL = 0.05
"""Of significance."""
Cell = dict[str, Any]
"""mean, low, high (95 % interval of the mean), count (images with a finite value), undefined,
infinite (images that have none)."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """One set's scores, summarised."""

    cells: dict[str, dict[str, Cell]]
    """method -> metric -> cell."""
    tests: dict[str, dict[str, dict[str, float]]]
    """method -> metric -> p and adjusted (Holm over the methods), against the reference."""
    ranks: dict[str, float]
    """Mean rank of each row over `ranked_on`; 1 is best."""
    ranked_on: tuple[str, ...]
    """Metrics with a clear direction and a mean for some row."""
    ranked_last: dict[str, tuple[str, ...]]
    """Metric -> rows that share the last ranks because they have no value."""


def summarise(found: Evaluation) -> dict[str, Summary]:
    """A summary of each set."""
    return {scores.name: _summarise(found, scores) for scores in found.datasets}


def _summarise(found: Evaluation, scores: Scores) -> Summary:
    cells = {
        method: {metric: _cell(values) for metric, values in row.items()}
        for method, row in scores.values.items()
    }
    names = [row.name for row in found.methods]
    tests: dict[str, dict[str, dict[str, float]]] = {
        name: {} for name in names if name != found.reference
    }
    for about in found.metrics:
        values = {name: scores.values[name][about.metric] for name in names}
        for name, test in statistics.compare(values, found.reference).items():
            tests[name][about.metric] = {"p": test.p, "adjusted": test.adjusted}
    ranked = statistics.mean_ranks(
        {
            row.metric: {name: cells[name][row.metric]["mean"] for name in names}
            for row in found.metrics
        },
        {row.metric: row.direction for row in found.metrics},
    )
    return Summary(cells, tests, ranked.ranks, ranked.used, ranked.last)


def _cell(values: np.ndarray) -> Cell:
    said = statistics.summarise(values)
    mean = said.mean
    if not said.count and said.infinite:
        # Such as the PSNR of images without any error.
        mean = float(values[np.isinf(values)].mean())
    return {
        "mean": mean,
        "low": said.low,
        "high": said.high,
        "count": said.count,
        "undefined": said.undefined,
        "infinite": said.infinite,
    }


def drop(found: Evaluation, said: dict[str, Summary]) -> dict[str, Any] | None:
    """How much worse each row is on the sets out of distribution than on those in it, in percent of
    the mean there; a loss is negative, whatever the metric's direction. None without both roles.
    Several sets in distribution count alike, however many pairs they have.
    """
    inside = [s.name for s in found.datasets if s.role == "in"]
    outside = [s.name for s in found.datasets if s.role == "out"]
    if not inside or not outside:
        return None
    chosen = [row for row in found.metrics if row.direction != "unclear"]
    rows = []
    for method in found.methods:
        line: list[float] = []
        for about in chosen:
            base = float(
                np.mean([said[name].cells[method.name][about.metric]["mean"] for name in inside])
            )
            line.append(base)
            for name in outside:
                there = said[name].cells[method.name][about.metric]["mean"]
                sound = base and math.isfinite(base) and math.isfinite(there)
                change = 100.0 * (there - base) / abs(base) if sound else math.nan
                line.append(-change if about.direction == "lower" else change)
        rows.append({"name": method.name, "cells": line})
    return {
        "inside": inside,
        "outside": outside,
        "metrics": [row.metric for row in chosen],
        "rows": rows,
    }


def files(found: Evaluation, said: dict[str, Summary]) -> dict[str, str]:
    """summary.csv and summary.json: what the scores say together, name -> text."""
    tree = {
        "reference": found.reference,
        "datasets": {name: dataclasses.asdict(of_set) for name, of_set in said.items()},
        "drop": drop(found, said),
    }
    text = json.dumps(plain(tree), indent=1, allow_nan=False) + "\n"
    return {
        "summary.csv": summary_csv(found, said),
        "summary.json": text,
        "table.md": markdown(found, said),
    }


def markdown(found: Evaluation, said: dict[str, Summary]) -> str:
    """A table for a paper, one a set: mean ± half of the 95 % interval, * as on the console."""
    arrows = {"higher": " ↑", "lower": " ↓"}
    heads = [f"{about.metric}{arrows.get(about.direction, '')}" for about in found.metrics]
    lines = []
    for scores in found.datasets:
        of_set = said[scores.name]
        pairs = counted(len(scores.stems), "pair")
        lines += [f"{scores.name}, {pairs}; {significance(found, scores)}", ""]
        lines.append("| " + " | ".join(["method", *heads, "rank"]) + " |")
        lines.append("|" + "---|" * (len(heads) + 2))
        for method in found.methods:
            words = [method.name.replace("|", "\\|")]
            for about in found.metrics:
                cell = of_set.cells[method.name][about.metric]
                test = of_set.tests.get(method.name, {}).get(about.metric)
                half = (cell["high"] - cell["low"]) / 2
                word = "undefined" if math.isnan(cell["mean"]) else f"{cell['mean']:.4g}"
                word += f" ± {half:.2g}" if math.isfinite(half) else ""
                words.append(word + ("*" if test and test["adjusted"] < LEVEL else ""))
            lines.append("| " + " | ".join([*words, f"{of_set.ranks[method.name]:.2f}"]) + " |")
        lines.append("")
    return "\n".join(lines)


def significance(found: Evaluation, scores: Scores) -> str:
    """What a star means, or that these pairs are too few for any."""
    others = len(found.methods) - 1
    least = others * 2.0 ** (1 - len(scores.stems))
    if least >= LEVEL:
        return (
            f"{counted(len(scores.stems), 'pair')} cannot show a difference: the smallest p, after "
            f"Holm over {counted(others, 'row')}, is {min(least, 1.0):.2g}"
        )
    return f"* differs from {found.reference}: paired Wilcoxon, Holm over all other rows, 5 %"


def summary_csv(found: Evaluation, said: dict[str, Summary]) -> str:
    """One line for each set, method and metric; the mean rank is a metric's line of its own, the
    drop stands beside the means of sets out of distribution.
    """
    fall = drop(found, said)
    change: dict[tuple[str, str, str], float] = {}
    if fall:
        wide = 1 + len(fall["outside"])
        for row in fall["rows"]:
            for i, metric in enumerate(fall["metrics"]):
                for j, name in enumerate(fall["outside"], start=1):
                    change[name, row["name"], metric] = row["cells"][i * wide + j]
    head = ("dataset", "role", "method", "metric", "convention", "channel", "direction", "unit")
    counts = ("count", "undefined", "infinite")
    more = ("mean", "low", "high", *counts, "p", "p_holm", "reference", "drop_percent", "version")
    lines: list[tuple[Any, ...]] = [(*head, *more)]
    for scores in found.datasets:
        of_set = said[scores.name]
        for method in found.methods:
            for about in found.metrics:
                cell = of_set.cells[method.name][about.metric]
                test = of_set.tests.get(method.name, {}).get(about.metric, {})
                lines.append(
                    (
                        scores.name,
                        scores.role,
                        method.name,
                        about.metric,
                        about.convention,
                        about.channel,
                        about.direction,
                        about.unit,
                        *(cell[key] for key in ("mean", "low", "high", *counts)),
                        test.get("p", ""),
                        test.get("adjusted", ""),
                        found.reference if test else "",
                        change.get((scores.name, method.name, about.metric), ""),
                        about.version,
                    )
                )
        convention = str(found.settings.get("convention", ""))
        for method in found.methods:
            place = (scores.name, scores.role, method.name, "mean rank", convention)
            about_rank = ("", "lower", "", of_set.ranks[method.name], "", "", len(scores.stems))
            lines.append((*place, *about_rank, *[""] * (len(lines[0]) - 12)))
    return csv_text(lines)


def _place(found: Evaluation, scores: Scores) -> str:
    """In or out of distribution, where there are sets of both kinds."""
    if len({each.role for each in found.datasets}) < 2:
        return ""
    return "in distribution, " if scores.role == "in" else "out of distribution, "


def _ranked_last(said: Summary) -> str:
    named = [f"{metric} of {', '.join(rows)}" for metric, rows in said.ranked_last.items()]
    return f"; last, because undefined: {'; '.join(named)}" if named else ""


def text_tables(found: Evaluation, said: dict[str, Summary]) -> list[Any]:
    """Rich tables, metrics down and methods across: one a set, then the drop. The best of a line is
    bold, baselines are dim.
    """
    from rich.markup import escape
    from rich.table import Table

    def columns(table: Table) -> None:
        for method in found.methods:
            style = "dim" if method.name in BASELINES else None
            table.add_column(escape(method.name), justify="right", style=style)

    tables = []
    for scores in found.datasets:
        of_set = said[scores.name]
        table = Table(
            title=f"{escape(scores.name)}: {counted(len(scores.stems), 'pair')}, "
            f"{_place(found, scores)}convention {found.settings.get('convention')}",
            title_justify="left",
            caption=f"{escape(significance(found, scores))}. "
            f"Rank: mean over {len(of_set.ranked_on)} metrics{escape(_ranked_last(of_set))}.",
            caption_justify="left",
        )
        table.add_column("metric", no_wrap=True)
        columns(table)
        table.add_row("rank", *(f"{of_set.ranks[m.name]:.2f}" for m in found.methods))
        table.add_section()
        for about in found.metrics:
            cells = [of_set.cells[m.name][about.metric] for m in found.methods]
            known = [cell["mean"] for cell in cells if not math.isnan(cell["mean"])]
            best = None
            if known and about.direction != "unclear":
                best = min(known) if about.direction == "lower" else max(known)
            words = []
            for method, cell in zip(found.methods, cells, strict=True):
                test = of_set.tests.get(method.name, {}).get(about.metric)
                word = "undefined" if math.isnan(cell["mean"]) else f"{cell['mean']:.4g}"
                word += "*" if test and test["adjusted"] < LEVEL else ""
                for kind in ("undefined", "infinite"):
                    alone = cell[kind] == sum(cell[k] for k in ("count", "undefined", "infinite"))
                    word += f" ({cell[kind]} {kind})" if cell[kind] and not alone else ""
                words.append(f"[bold not dim]{word}[/]" if cell["mean"] == best else word)
            arrow = {"higher": " ↑", "lower": " ↓"}.get(about.direction, "")
            table.add_row(about.metric + arrow, *words)
        tables.append(table)
    fall = drop(found, said)
    if fall:
        title = "Change out of distribution, % of the mean in it (a loss is negative)"
        table = Table(title=title, title_justify="left")
        table.add_column("metric", no_wrap=True)
        columns(table)
        wide = 1 + len(fall["outside"])
        for i, metric in enumerate(fall["metrics"]):
            for j, name in enumerate(fall["outside"], start=1):
                cells = [row["cells"][i * wide + j] for row in fall["rows"]]
                table.add_row(
                    f"{metric}, {escape(name)}",
                    *("undefined" if math.isnan(x) else f"{x:+.1f}" for x in cells),
                )
        tables.append(table)
    return tables
