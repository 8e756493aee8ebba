"""What confusions say together: mIoU with intervals, paired differences, by time of day."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfuse.config import counted
from jaxfuse.data.builders.base import Time
from jaxfuse.data.images import write_bytes
from jaxfuse.evaluate.downstream import Judged
from jaxfuse.evaluate.results import csv_text, make_folder, plain
from jaxfuse.evaluate.summary import LEVEL
from jaxfuse.metrics import semantic, statistics
from jaxfuse.metrics.semantic import Interval

FORMAT = 1
WRITTEN = ("downstream.json", "downstream.npz", "downstream.csv", "table.md")
"""What a downstream evaluation leaves in its folder besides pictures and runs."""
WAYS = {
    "retrained": "networks that learned from the row's own pictures",
    "frozen": "one set of networks for all rows, trained on other pictures or on visible ones",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row at one time of day."""

    mean: Interval
    """mIoU: of each seed's network over the whole set, then the mean over seeds."""
    classes: tuple[Interval, ...]
    """IoU of each class, likewise."""
    seeds: tuple[float, ...]
    """mIoU of each seed."""
    images: int
    difference: Interval | None = None
    """mIoU minus the reference's, paired by image and seed."""
    p: float = math.nan
    """Of no difference, paired by image and seed: see `semantic.set_differences`."""
    adjusted: float = math.nan
    """After Holm's correction over the other rows of this way and time of day."""


Summary = dict[str, dict[str, dict[str, Cell]]]
"""way -> time of day -> row -> cell."""


def groups(times: Sequence[Time]) -> dict[str, np.ndarray]:
    """Numbers of the images of all, and of day and night where both occur."""
    of_time = {time: np.flatnonzero([x == time for x in times]) for time in ("day", "night")}
    both = all(len(found) for found in of_time.values())
    return {"all": np.arange(len(times)), **(of_time if both else {})}


def summarise(found: Judged, resamples: int = 2000) -> Summary:
    """Every row, by time of day."""
    return {
        way: {
            time: _of_images({row: x[:, chosen] for row, x in rows.items()}, found, resamples)
            for time, chosen in groups(found.times).items()
        }
        for way, rows in found.counts.items()
    }


def _of_images(counts: Mapping[str, np.ndarray], found: Judged, resamples: int) -> dict[str, Cell]:
    base = counts[found.reference]
    cells = {}
    for row, each in counts.items():
        mean, classes = semantic.set_scores(each, resamples=resamples)
        seeds = tuple(map(float, semantic.set_iou(each)[1]))
        cells[row] = Cell(mean, classes, seeds, each.shape[1])
        if row != found.reference:
            difference, _, p = semantic.set_differences(each, base, resamples=resamples)
            cells[row] = dataclasses.replace(cells[row], difference=difference, p=p)
    adjusted = statistics.holm([cell.p for cell in cells.values()])
    return {
        row: dataclasses.replace(cell, adjusted=float(p))
        for (row, cell), p in zip(cells.items(), adjusted, strict=True)
    }


def save(found: Judged, said: Summary, out: str | Path) -> list[Path]:
    """Writes the files of `WRITTEN`; returns their paths. The confusions of every image stand in
    downstream.npz as WAY/ROW, int64 (seeds, images, classes, classes): all else follows from them.
    """
    out = Path(out)
    make_folder(out)
    stored = io.BytesIO()
    arrays = {f"{way}/{row}": x for way, rows in found.counts.items() for row, x in rows.items()}
    np.savez_compressed(stored, **arrays)
    files = {
        "downstream.json": to_json(found, said).encode("utf8"),
        "downstream.npz": stored.getvalue(),
        "downstream.csv": csv_text(lines(found)).encode("utf8"),
        "table.md": markdown(found, said).encode("utf8"),
    }
    for name, blob in files.items():
        write_bytes(out / name, blob)
    return [out / name for name in files]


def to_json(found: Judged, said: Summary) -> str:
    """Everything but the confusions."""
    tree: dict[str, Any] = {
        "format": FORMAT,
        "task": "segmentation",
        "date": found.date,
        "versions": found.versions,
        "settings": found.settings,
        "remarks": list(found.remarks),
        "classes": list(found.classes.names),
        "palette": [list(colour) for colour in found.classes.palette],
        "rows": [dataclasses.asdict(row) for row in found.rows],
        "reference": found.reference,
        "seeds": list(found.seeds),
        "images": [
            {"stem": stem, "time": time}
            for stem, time in zip(found.stems, found.times, strict=True)
        ],
        "confusions": "downstream.npz",
        "ways": WAYS,
        "summary": {
            way: {
                time: {row: _tree(cell, found) for row, cell in cells.items()}
                for time, cells in times.items()
            }
            for way, times in said.items()
        },
    }
    return json.dumps(plain(tree), indent=1, allow_nan=False) + "\n"


def _tree(cell: Cell, found: Judged) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "images": cell.images,
        "miou": cell.mean._asdict(),
        "seeds": list(cell.seeds),
        "classes": {
            name: each._asdict()
            for name, each in zip(found.classes.names, cell.classes, strict=True)
        },
    }
    if cell.difference is not None:
        tree |= {
            "difference": cell.difference._asdict(),
            "p": cell.p,
            "p_holm": cell.adjusted,
        }
    return tree


def lines(found: Judged) -> list[tuple[Any, ...]]:
    """One line for each way, row, seed, time of day and class, and for their mean."""
    head = ("way", "row", "seed", "time", "images", "class", "iou")
    table: list[tuple[Any, ...]] = [head]
    for way, rows in found.counts.items():
        for row, counts in rows.items():
            for time, chosen in groups(found.times).items():
                each, mean = semantic.set_iou(counts[:, chosen])
                for s, seed in enumerate(found.seeds):
                    place = (way, row, seed, time, len(chosen))
                    table.append((*place, "mean", repr(float(mean[s]))))
                    for name, value in zip(found.classes.names, each[s], strict=True):
                        table.append((*place, name, repr(float(value))))
    return table


def significance(found: Judged) -> str:
    """How many images and seeds stand behind the numbers, and what a star means."""
    images, seeds = len(found.stems), len(found.seeds)
    behind = f"{counted(images, 'image')}, {counted(seeds, 'seed')}"
    if images == 1:
        return f"{behind}: one image has no interval"
    over = "images and seeds" if seeds > 1 else "images; other trainings are not covered"
    return (
        f"{behind}, 95 % intervals over {over}; * differs from {found.reference}: paired test over "
        f"the same, Holm over the rows of a table, 5 %"
    )


def _interval(x: Interval, signed: bool = False) -> str:
    """In percent."""
    if math.isnan(x.value):
        return "undefined"
    sign = "+" if signed else ""
    word = f"{100 * x.value:{sign}.1f}"
    if math.isnan(x.low):
        return word
    return f"{word} [{100 * x.low:{sign}.1f}, {100 * x.high:{sign}.1f}]"


def _p(p: float) -> str:
    return "" if math.isnan(p) else f"{p:.2g}"


def tables(found: Judged, said: Summary) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, heads, lines) of mIoU and of each class, for every way."""
    made = []
    for way, times in said.items():
        heads = ["row", *(f"mIoU {time}" for time in times)]
        heads += [f"{time} - {found.reference}" for time in times] + ["p (Holm)"]
        rows = []
        for about in found.rows:
            cells = [cells[about.name] for cells in times.values()]
            whole = cells[0]
            star = "*" if whole.adjusted < LEVEL else ""
            line = [about.name, *(_interval(cell.mean) for cell in cells)]
            line += [_interval(x.difference, True) if x.difference else "" for x in cells]
            rows.append([*line, _p(whole.adjusted) + star])
        made.append((f"{way}: {WAYS[way]}; mIoU in %", heads, rows))
        each = [
            [about.name, *(_interval(x) for x in times["all"][about.name].classes)]
            for about in found.rows
        ]
        made.append(
            (f"{way}: IoU of each class in %, all images", ["row", *found.classes.names], each)
        )
    return made


def markdown(found: Judged, said: Summary) -> str:
    """The tables for a paper."""
    words = [significance(found), ""]
    for title, heads, rows in tables(found, said):
        words += [title, ""]
        for at, line in enumerate([heads, *rows]):
            words.append("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |")
            if not at:
                words.append("|" + "---|" * len(heads))
        words.append("")
    return "\n".join(words)


def text_tables(found: Judged, said: Summary) -> list[Any]:
    """Rich tables of mIoU and of each class; classes stand below each other."""
    from rich.markup import escape
    from rich.table import Table

    made = []
    for title, heads, rows in tables(found, said):
        turned = heads[1:] == list(found.classes.names)
        if turned:
            heads, *rows = (list(line) for line in zip(heads, *rows, strict=True))
            heads[0] = "class"
        table = Table(title=escape(title), title_justify="left")
        for at, head in enumerate(heads):
            table.add_column(escape(head), justify="right" if at else "left")
        for line in rows:
            table.add_row(*map(escape, line))
        if not turned:
            table.caption, table.caption_justify = escape(significance(found)), "left"
        made.append(table)
    return made
