"""What a run folder tells: the losses over time, what Top-K selected, the configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxfuse import config
from jaxfuse.config import Experiment, SSVIFConfig, UserError, counted
from jaxfuse.data.patches import read_patches
from jaxfuse.data.sources import open_source
from jaxfuse.methods import ssvif
from jaxfuse.report.pictures import mosaic, read_log
from jaxfuse.report.thumbnails import webp

POINTS = 600
"""Points of a curve; longer ones show means of neighbours."""
PATCHES = 64
"""Kept patches shown, evenly spaced over the ranking."""


class RunError(UserError, ValueError):
    """A folder that is no run; the message names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run, ready for the page."""

    training: dict[str, Any]
    selection: dict[str, Any] | None
    configuration: list[dict[str, str]]
    version: str
    pictures: list[str]
    """WebP as base64; the first ones of the page."""


def read_run(folder: Path) -> Trained:
    """Reads a run folder. Raises RunError where it is none."""
    try:
        marker = json.loads((folder / "run.json").read_text(encoding="utf8"))
        version = str(marker["jaxfuse"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{folder}: not a run: give a folder that `jaxfuse train` wrote") from None
    experiment = config.load_json(folder / "config.json")
    log = folder / "log.jsonl"
    records = read_log(log) if log.exists() else []
    for number, record in enumerate(records, start=1):
        if not {"step", "stage"} <= record.keys():
            raise RunError(f"{log}: record {number} names no step or stage: remove that line")
    pictures: list[str] = []
    selection = None
    if (folder / "selection.json").exists():
        selection = _selection(folder / "selection.json", experiment, pictures)
    return Trained(
        _curves(records, experiment),
        selection,
        [{"title": "Training", "text": config.to_json(experiment)}],
        version,
        pictures,
    )


def _curves(records: list[dict[str, Any]], experiment: Experiment) -> dict[str, Any]:
    stages = []
    for name in dict.fromkeys(record["stage"] for record in records):
        own = [record for record in records if record["stage"] == name]
        skip = {"step", "stage", "time"}
        numbers = [
            key
            for key in dict.fromkeys(key for record in own for key in record)
            if key not in skip and any(isinstance(r.get(key), (int, float)) for r in own)
        ]
        charts = []
        for key in numbers:
            plain = key.removeprefix("validation_")
            if key != plain and plain in numbers:
                continue  # drawn beside its training curve
            curves = [{"name": "training", "points": _points(own, key)}]
            if f"validation_{key}" in numbers:
                curves.append({"name": "validation", "points": _points(own, f"validation_{key}")})
            charts.append({"title": key, "curves": curves})
        stages.append({"name": name, "charts": charts})
    last = f", {counted(records[-1]['step'], 'step')}" if records else ", no log line yet"
    note = f"{experiment.name}{last}, seed {experiment.seed}."
    if records and isinstance(experiment.method, SSVIFConfig):
        last_signs = {k: x for k, x in records[-1].items() if isinstance(x, (int, float))}
        for doubt in ssvif.collapse(experiment.method, 0, last_signs):
            note += f" {doubt[0].upper()}{doubt[1:]}."
    return {"note": note, "stages": stages}


def _points(records: list[dict[str, Any]], key: str) -> list[list[float | None]]:
    """[step, value]; null where the loss was not finite."""
    found = [(r["step"], r.get(key)) for r in records if key in r]
    size = -(-len(found) // POINTS)
    points: list[list[float | None]] = []
    for at in range(0, len(found), max(size, 1)):
        part = found[at : at + size]
        values = [float(v) for _, v in part if v is not None]
        step = sum(s for s, _ in part) / len(part)
        mean = float(np.mean(values)) if values else None
        points.append([step if size > 1 else part[0][0], mean])
    return points


def _selection(path: Path, experiment: Experiment, pictures: list[str]) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf8"))
        rows = [
            {"name": "target mean, levels", "values": told["target_means"]},
            {"name": "kept patches before", "values": told["means_before"]},
            {"name": "after alignment", "values": told["means_after"]},
            {"name": "gamma", "values": told["gamma"]},
        ]
        patches = [
            {"stem": p["stem"], "y": p["y"], "x": p["x"], "distance": p["distance"]}
            for p in told["patches"]
        ]
        text = (
            f"{told['kept']} of {told['candidates']} external patches kept; after alignment their "
            f"channel means are {told['error']:.4f} grey levels off the target's in sum."
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({error!r}): remove it, or train again") from None
    found: dict[str, Any] = {
        "text": text,
        "rows": rows,
        "patches": patches,
        "pictures": [],
        "note": "",
    }
    try:
        shown = _cut(patches, experiment, np.asarray(told["gamma"], np.float64))
    except (UserError, KeyError, ValueError) as error:
        found["note"] = f"The patches themselves are not shown: {error}"
        return found
    for title, image in shown:
        found["pictures"].append({"title": title, "picture": len(pictures)})
        pictures.append(webp(image, 1280, 80))
    return found


def _cut(
    patches: list[dict[str, Any]], experiment: Experiment, gamma: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """Cuts the kept patches out of their images again."""
    data = experiment.data
    external = open_source(data.external)
    index = {external.stem(i): i for i in range(len(external))}
    last = len(patches) - 1
    picked = np.unique(np.linspace(0, last, min(PATCHES, len(patches))).round().astype(int))
    chosen = [patches[i] for i in picked]
    images = np.array([index[p["stem"]] for p in chosen])
    positions = np.array([(p["y"], p["x"]) for p in chosen])
    cut = read_patches(external, images, positions, data.patch_size, data.threads)
    columns = max(4, int(np.ceil(np.sqrt(len(picked) * 2.5))))
    parts = (
        ("External patches as recorded, closest first", cut.visible),
        ("Aligned to the target sensor", cut.visible ** (1 / gamma)),
        ("Their infrared partners, untouched", cut.infrared.repeat(3, -1)),
    )
    return [(title, mosaic(part.astype(np.float32), columns)) for title, part in parts]
