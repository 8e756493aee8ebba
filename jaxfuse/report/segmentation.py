"""What a downstream evaluation tells: mIoU of each row, IoU of each class, the panels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxfuse.config import counted
from jaxfuse.data import images
from jaxfuse.evaluate import downstream_summary
from jaxfuse.evaluate.results import ResultsError
from jaxfuse.report.thumbnails import webp

FILE = "downstream.json"
SIZES = ((4096, 92), (2400, 90), (1600, 88), (1200, 85), (800, 80), (480, 75))
"""(longest side of a panel in pixels, WebP quality), from best to smallest."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A downstream evaluation, ready for the page."""

    segmentation: dict[str, Any]
    rows: list[dict[str, str]]
    reference: str
    about: str
    configuration: list[dict[str, str]]
    versions: dict[str, str]


def is_one(place: Path) -> bool:
    """Whether a folder, or the file in it, is of a downstream evaluation and of no other."""
    if place.is_dir():
        return not (place / "evaluation.json").exists() and (place / FILE).exists()
    return place.name == FILE


def load(place: Path) -> Judged:
    """Reads what `downstream_summary.save` wrote. place: the folder or its downstream.json.

    Raises ResultsError for a file that cannot be read or is not all there.
    """
    path = place / FILE if place.is_dir() else place
    again = "run `jaxfuse evaluate --task segmentation` again"
    try:
        tree = json.loads(path.read_text(encoding="utf8"))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror}): {again}") from None
    except ValueError as error:
        raise ResultsError(f"{path}: not JSON ({error}): {again}") from None
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != downstream_summary.FORMAT:
        raise ResultsError(
            f"{path}: format {found!r}, this version reads {downstream_summary.FORMAT}: {again}"
        )
    try:
        return _told(tree)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(f"{path}: incomplete ({error!r}): {again}") from None


def _told(tree: dict[str, Any]) -> Judged:
    settings, reference = tree["settings"], tree["reference"]
    names, classes = [row["name"] for row in tree["rows"]], tree["classes"]
    seeds, count = len(tree["seeds"]), len(tree["images"])
    summary = {
        way: {
            time: {row: _cell(cells[row], classes) for row in names}
            for time, cells in times.items()
        }
        for way, times in tree["summary"].items()
    }
    segmentation = {
        "reference": reference,
        "classes": [
            {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
            for name, colour in zip(classes, tree["palette"], strict=True)
        ],
        "ways": [{"name": way, "title": tree["ways"][way]} for way in summary],
        "times": list(next(iter(summary.values()))),
        "summary": summary,
        "remarks": list(tree["remarks"]),
        "note": f"{counted(count, 'test image')}, {counted(seeds, 'training')} of each row.",
        "stems": [image["stem"] for image in tree["images"]],
        "panels": [],
        "panels_note": "",
    }
    told = {key: tree[key] for key in ("settings", "remarks", "seeds", "reference", "date")}
    about = f"{tree['date'][:10]} · {counted(count, 'test image')} · {len(classes)} classes"
    text = json.dumps(told, indent=2, ensure_ascii=False)
    return Judged(
        segmentation,
        [{key: row[key] for key in ("name", "kind", "source")} for row in tree["rows"]],
        reference,
        f"{about} · {settings['segmenter']}",
        [{"title": "Downstream evaluation", "text": text}],
        dict(tree["versions"]),
    )


def _cell(cell: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    """What the page shows of one row at one time of day."""
    return {
        "images": cell["images"],
        "miou": _interval(cell["miou"]),
        "seeds": cell["seeds"],
        "classes": [_interval(cell["classes"][name]) for name in classes],
        "difference": _interval(cell["difference"]) if "difference" in cell else None,
        "p": cell.get("p_holm"),
    }


def _interval(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("value", "low", "high")}


def add_panels(judged: Judged, folder: Path, budget: int, pictures: list[str]) -> None:
    """Adds the panels in FOLDER/panels to the page's pictures, in at most `budget` characters.

    Those that are gone are left out, and a note says so. Raises FileError for a damaged one.
    """
    told = judged.segmentation
    there = [(stem, folder / "panels" / f"{stem}.png") for stem in told["stems"]]
    there = [(stem, path) for stem, path in there if path.is_file()]
    if not there:
        told["panels_note"] = f"There are no panels in {folder / 'panels'}."
        return
    read = [images.read_visible(path) for _, path in there]
    made: list[str] = []
    side, quality = SIZES[0]
    for side, quality in SIZES:
        made = [webp(image, side, quality) for image in read]
        if sum(map(len, made)) <= budget:
            break
    kept = 0
    for (stem, _), picture in zip(there, made, strict=True):
        if sum(map(len, made[: kept + 1])) > budget:
            break
        told["panels"].append({"stem": stem, "picture": len(pictures)})
        pictures.append(picture)
        kept += 1
    reduced = any(max(image.shape[:2]) > side for image in read)
    said = f"reduced to at most {side} pixels a side" if reduced else "in full size"
    few = f" Only {kept} of {len(there)} panels are in the page." if kept < len(there) else ""
    told["panels_note"] = f"Shown {said}, as WebP of quality {quality}.{few}"
