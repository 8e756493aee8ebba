"""Pictures of a run: what alignment selected, how the loss fell, images side by side. PNG."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from jaxfuse.config import UserError

if TYPE_CHECKING:
    from jaxfuse.methods.external import Selection

INK, TARGET, BEFORE, AFTER = "#222222", "#444444", "#c9772c", "#2b6ca3"


class PictureError(UserError, ValueError):
    """A picture that cannot be made; the message names the file and the remedy."""


def _save(figure: Figure, path: str | Path) -> None:
    """Writes the picture whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=110, format="png", facecolor="white")
        os.replace(temporary, path)
    except OSError as error:
        raise PictureError(
            f"{path}: cannot be written ({error.strerror or error}): "
            "free disk space or name another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def mosaic(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Equal images (n, h, w, c) in [0, 1] as one sheet with white gaps, row by row."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    sheet = np.ones((rows * (h + gap) - gap, columns * (w + gap) - gap, c), np.float32)
    for i, image in enumerate(images):
        y, x = i // columns * (h + gap), i % columns * (w + gap)
        sheet[y : y + h, x : x + w] = image
    return sheet


def save_selection(selection: Selection, path: str | Path, show: int = 48) -> None:
    """The kept external patches before and after alignment, with their infrared partners.

    Below them the channel means, the gamma curves and the distances. Shows up to `show` patches,
    evenly spaced over the ranking, so that the last kept ones are seen too.
    """
    count = len(selection.stems)
    picked = np.unique(np.linspace(0, count - 1, min(show, count)).round().astype(int))
    columns = max(4, int(np.ceil(np.sqrt(len(picked) * 0.75))))
    figure = Figure(figsize=(15, 8.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=[2.1, 1.0])
    infrared = np.repeat(selection.infrared, 3, axis=-1)
    for i, (title, images) in enumerate(
        (
            ("external patches, as recorded", selection.original),
            ("aligned to the target sensor", selection.visible),
            ("their infrared partners, untouched", infrared),
        )
    ):
        axis = figure.add_subplot(grid[0, i])
        axis.imshow(mosaic(images[picked], columns), vmin=0, vmax=1)
        axis.set_title(title, color=INK)
        axis.axis("off")
    means = figure.add_subplot(grid[1, 0])
    positions = np.arange(3)
    for offset, values, colour, label in (
        (-0.27, selection.before, BEFORE, "kept, before"),
        (0.0, selection.after, AFTER, "kept, aligned"),
        (0.27, selection.target_means, TARGET, "target"),
    ):
        bars = means.bar(positions + offset, values, 0.26, color=colour, label=label)
        means.bar_label(bars, fmt="%.1f", fontsize=8)
    means.set_xticks(positions, ["red", "green", "blue"])
    means.set_ylim(
        0,
        1.35
        * max(selection.target_means.max(), selection.before.max(), selection.after.max(), 1.0),
    )
    means.set_ylabel("mean, grey levels")
    means.legend(fontsize=8, ncols=3, loc="upper left", frameon=False)
    curves = figure.add_subplot(grid[1, 1])
    x = np.linspace(0, 1, 256)
    for gamma, colour, name in zip(
        selection.gamma, ("#b03030", "#3a8a3a", "#3050b0"), "RGB", strict=True
    ):
        curves.plot(
            255 * x, 255 * x ** (1 / gamma), color=colour, label=f"{name}: gamma {gamma:.2f}"
        )
    curves.plot([0, 255], [0, 255], color="#bbbbbb", lw=0.8, zorder=0)
    curves.set_xlabel("grey level before")
    curves.set_ylabel("after")
    curves.legend(fontsize=8, frameon=False)
    ranking = figure.add_subplot(grid[1, 2])
    ranking.plot(np.arange(1, count + 1), selection.distances, ".-", ms=3, color=INK)
    ranking.set_xlabel("rank")
    ranking.set_ylabel("distance to the target, grey levels")
    ranking.set_ylim(bottom=0)
    shown = f", {len(picked)} of them shown above" if len(picked) < count else ""
    title = f"{count} kept of {selection.candidates}{shown}"
    ranking.set_title(title, color=INK, fontsize=10)
    for axis in (means, curves, ranking):
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def read_log(path: str | Path) -> list[dict]:
    """The records of a run's log.jsonl, without a last line that a kill cut short.

    Raises PictureError, naming file and line, for a line that is no record.
    """
    try:
        lines = Path(path).read_text(encoding="utf8").splitlines(keepends=True)
    except OSError as error:
        raise PictureError(
            f"{path}: cannot be read ({error.strerror}): name a run's log"
        ) from error
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            records.append({"stage": record["stage"], "loss": record["loss"], **record})
        except (ValueError, KeyError, TypeError) as error:
            raise PictureError(
                f"{path}: line {number} is no record of a run: name a run's log.jsonl"
            ) from error
    return records


def save_loss_curve(log: str | Path, path: str | Path) -> None:
    """Training loss over steps, validation loss as dots; a panel for each stage."""
    records = read_log(log)
    if not records:
        raise PictureError(f"{log}: no records yet: let the run reach its first log step")
    stages = list(dict.fromkeys(record["stage"] for record in records))
    figure = Figure(figsize=(5.5 * len(stages), 3.6), layout="constrained")
    axes = figure.subplots(1, len(stages), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        own = [record for record in records if record["stage"] == stage]
        checked = [record for record in own if record.get("validation_loss") is not None]
        for found, name, style, colour in (
            (own, "loss", ".-" if len(own) < 40 else "-", AFTER),
            (checked, "validation_loss", "o", BEFORE),
        ):
            if found:
                label = "training loss" if name == "loss" else "validation loss"
                steps, losses = [r["step"] for r in found], [r[name] for r in found]
                axis.plot(steps, losses, style, color=colour, label=label)
        axis.set_title(f"stage: {stage}", color=INK)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def save_comparison(
    rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]], path: str | Path
) -> None:
    """Images side by side, a row each: (title, visible, infrared, fused), in [0, 1].

    Images are (h, w), (h, w, 1) or (h, w, 3).
    """
    if not rows:
        raise PictureError(f"{path}: no images to compare: give at least one row")
    height, width = rows[0][1].shape[:2]
    figure = Figure(figsize=(12, 12 / 3 * height / width * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for row, (title, *images) in zip(axes, rows, strict=True):
        for axis, name, image in zip(row, ("visible", "infrared", "fused"), images, strict=True):
            shown = image[..., 0] if image.shape[2:] == (1,) else image
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(f"{title}: {name}", fontsize=9, color=INK)
            axis.axis("off")
    _save(figure, path)
