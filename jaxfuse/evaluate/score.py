"""Scoring: reads each pair once, makes what weights must make, scores all its rows together."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxfuse import __version__, metrics
from jaxfuse.data import images
from jaxfuse.evaluate.plan import BASELINES, Contender, Opened, Plan, open_datasets
from jaxfuse.evaluate.results import Evaluation, MethodRow, MetricRow, Scores, make_folder
from jaxfuse.infer import predict

SOURCES = {
    "visible": "the visible image alone",
    "infrared": "the infrared image alone",
    "average": "mean of the two gray images, rounded up at one half",
    "maximum": "the brighter of the two gray images",
}
"""What the baselines are."""

Progress = Callable[[int, int, str], None]


def run(plan: Plan, out: str | Path, progress: Progress | None = None) -> Evaluation:
    """Scores every method and the baselines on every set.

    out: pictures that weights make go to OUT/pictures/SET/METHOD/STEM.png. progress: called with
    (done, total, name) after each pair. Every file and size is checked before anything is computed.
    Raises FileError, WeightsError or PlanError.
    """
    out = Path(out)
    opened = open_datasets(plan)
    make_folder(out)
    fusers = {m.name: predict.load(m.weights) for m in plan.methods if m.weights}
    for method in fusers:
        for each in opened:
            make_folder(out / "pictures" / each.spec.name / method)
    chosen = plan.metrics or metrics.names(plan.convention)
    total, done = sum(len(each.pairs) for each in opened), 0
    datasets = []
    for each in opened:
        values = {row: {name: [] for name in chosen} for row in plan.rows}
        made: dict[str, list[Path]] = {name: [] for name in fusers}
        for i, job in enumerate(_read_ahead(each)):
            fused = dict(job.fused)
            for name, fuser in fusers.items():
                target = out / "pictures" / each.spec.name / name / f"{job.stem}.png"
                images.write(target, fuser(job.visible, job.infrared))
                # As anybody would score it: from the file, rounded to 8 bits.
                fused[name] = _levels(images.read_visible(target))
                made[name].append(target)
            found = _score(plan, chosen, job, fused)
            for row, numbers in found.items():
                for name, value in numbers.items():
                    values[row][name].append(value)
            done += 1
            if progress:
                progress(done, total, f"{each.spec.name}/{each.pairs.stem(i)}")
        files = {
            "visible": each.pairs.visible,
            "infrared": each.pairs.infrared,
            **each.pictures,
            **made,
        }
        datasets.append(
            Scores(
                each.spec.name,
                each.spec.role,
                tuple(each.pairs.stem(i) for i in range(len(each.pairs))),
                tuple(each.pairs.size(i) for i in range(len(each.pairs))),
                {row: tuple(_seen_from(out, p) for p in paths) for row, paths in files.items()},
                {row: _arrays(of_row) for row, of_row in values.items()},
            )
        )
    return Evaluation(
        metrics=_describe(plan, chosen),
        methods=(
            *(_method_row(method) for method in plan.methods),
            *(MethodRow(name, "baseline", SOURCES[name]) for name in BASELINES),
        ),
        reference=plan.compared_to,
        datasets=tuple(datasets),
        versions=_versions(),
        settings={"convention": plan.convention, "dtype": plan.dtype},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


@dataclasses.dataclass(frozen=True)
class _Job:
    """One pair, read."""

    stem: str
    visible: np.ndarray
    """float32 (h, w, 3) in [0, 1]."""
    infrared: np.ndarray
    """float32 (h, w, 1) in [0, 1]."""
    fused: dict[str, np.ndarray]
    """uint8 (h, w, 3) of methods that bring pictures."""


def _read_ahead(opened: Opened, ahead: int = 2) -> Iterator[_Job]:
    """The pairs in order; while one is scored the next ones are read."""

    def read(i: int) -> _Job:
        pair = opened.pairs[i]
        fused = {
            name: _levels(images.read_visible(files[i])) for name, files in opened.pictures.items()
        }
        return _Job(pair.stem, pair.visible, pair.infrared, fused)

    with ThreadPoolExecutor(ahead) as pool:
        waiting: list[Future[_Job]] = []
        try:
            for i in range(len(opened.pairs)):
                waiting.append(pool.submit(read, i))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _levels(image: np.ndarray) -> np.ndarray:
    """An image in [0, 1] as 8-bit levels."""
    return np.rint(255.0 * np.asarray(image, np.float64)).astype(np.uint8)


def _score(
    plan: Plan, chosen: tuple[str, ...], job: _Job, fused: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """row -> metric -> value, all rows of one pair in one call."""
    infrared = metrics.to_gray(_levels(job.infrared), "jaxfuse")
    visible = _seen_by(plan.convention, _levels(job.visible))
    seen = {name: _seen_by(plan.convention, image) for name, image in fused.items()}
    seen |= baselines(visible, infrared if visible.ndim == 2 else infrared[..., None])
    stack = np.stack([seen[row] for row in plan.rows])
    defined = metrics.names(plan.convention, infrared.shape)
    found = metrics.score(
        stack,
        *(np.broadcast_to(x, (len(stack), *x.shape)) for x in (visible, infrared)),
        convention=plan.convention,
        names=tuple(name for name in chosen if name in defined),
        dtype=plan.dtype,
    )
    return {
        row: {
            name: float(found[name][r]) if name in found else float("nan")  # image too small
            for name in chosen
        }
        for r, row in enumerate(plan.rows)
    }


def _seen_by(convention: str, image: np.ndarray) -> np.ndarray:
    """Levels that the convention scores: gray (h, w), or (h, w, 3) where it scores colours."""
    if convention == metrics.COLOR:
        return image.astype(np.float32)
    return metrics.to_gray(image, convention)


def baselines(visible: np.ndarray, infrared: np.ndarray) -> dict[str, np.ndarray]:
    """The rows every table has, from two images in levels 0..255 that broadcast."""
    return {
        "visible": visible,
        "infrared": np.broadcast_to(infrared, visible.shape),
        "average": np.floor((visible + infrared) / 2 + 0.5),
        "maximum": np.maximum(visible, infrared),
    }


def _arrays(of_row: dict[str, list[float]]) -> dict[str, np.ndarray]:
    return {name: np.array(numbers, np.float64) for name, numbers in of_row.items()}


def _describe(plan: Plan, chosen: tuple[str, ...]) -> tuple[MetricRow, ...]:
    return tuple(
        MetricRow(
            row.metric,
            metrics.METRICS[row.metric].title,
            row.convention,
            row.channel,
            row.direction,
            row.unit,
            row.low,
            row.high,
            row.version,
        )
        for row in metrics.describe(plan.convention, chosen)
    )


def _method_row(method: Contender) -> MethodRow:
    if method.weights:
        return MethodRow(method.name, "weights", method.weights)
    return MethodRow(method.name, "pictures", method.fused)


def _seen_from(out: Path, path: Path) -> str:
    """Relative to the results' folder where the path lies in it, so that it can be moved."""
    path, out = path.resolve(), out.resolve()
    return path.relative_to(out).as_posix() if path.is_relative_to(out) else os.fspath(path)


def _versions() -> dict[str, Any]:
    names = ("jax", "jaxlib", "numpy")
    return {"jaxfuse": __version__, **{name: importlib.metadata.version(name) for name in names}}
