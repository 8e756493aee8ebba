"""Scoring: reads each pair once, makes what weights must make, scores all its rows together."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxfuse import __version__, metrics, weights
from jaxfuse.data import images
from jaxfuse.data.folders import require_equal_sizes
from jaxfuse.evaluate.plan import BASELINES, Contender, Opened, Plan, open_datasets
from jaxfuse.evaluate.results import Evaluation, MethodRow, Scores, make_folder
from jaxfuse.infer import predict

SOURCES = {
    "visible": "the visible image alone",
    "infrared": "the infrared image alone",
    "average": "mean of the two images, rounded up at one half",
    "maximum": "the brighter of the two images, pixel by pixel",
}
"""What the baselines are."""

LITTLE = 32
"""Grey levels; a fused picture that spans less has hardly been meant so."""

Progress = Callable[[int, int, str], None]


def run(plan: Plan, out: str | Path, progress: Progress | None = None) -> Evaluation:
    """Scores every method and the baselines on every set.

    out: pictures that weights make go to OUT/pictures/SET/METHOD/STEM.png; those that the same
    weights made of the same pairs before are not made again. progress: called with (done, total,
    name) at the beginning, when the files are read, and after each pair. Every file is read once
    and every size checked before anything is computed. Pairs of one size are scored together, since
    what is compiled serves one size. Raises FileError, WeightsError or PlanError.
    """
    out = Path(out)
    plan.check_reference()
    opened = open_datasets(plan)
    total, done = sum(len(each.pairs) for each in opened), 0
    if progress:
        progress(done, total, "reading all files")
    remarks = check_files(opened)
    if progress:
        way = "fusing and scoring" if any(m.weights for m in plan.methods) else "scoring"
        progress(done, total, f"{way} the first pair")
    make_folder(out)
    fusers = {m.name: Pictures(m.weights, out / "pictures") for m in plan.methods if m.weights}
    chosen = plan.metrics or metrics.names(plan.convention)
    datasets = []
    for each in opened:
        count = len(each.pairs)
        values = {row: {name: np.full(count, np.nan) for name in chosen} for row in plan.rows}
        made: dict[str, dict[int, Path]] = {name: {} for name in fusers}
        last: tuple[int, int] | None = None
        for job in _read_ahead(each):
            fused = dict(job.fused)
            for name, maker in fusers.items():
                made[name][job.number] = maker.make(each, name, job)
                # As anybody would score it: from the file, rounded to 8 bits.
                fused[name] = _levels(images.read_visible(made[name][job.number]))
            if last is not None and last != job.infrared.shape[:2]:
                metrics.forget()  # programs of another size, a hundred megabytes
            last = job.infrared.shape[:2]
            found = _score(plan, chosen, job, fused)
            for row, numbers in found.items():
                for name, value in numbers.items():
                    values[row][name][job.number] = value
            done += 1
            if progress:
                progress(done, total, f"{each.spec.name}/{job.stem}")
        metrics.forget()
        files = {
            "visible": each.pairs.visible,
            "infrared": each.pairs.infrared,
            **each.pictures,
            **{name: [paths[i] for i in range(count)] for name, paths in made.items()},
        }
        datasets.append(
            Scores(
                each.spec.name,
                each.spec.role,
                tuple(each.pairs.stem(i) for i in range(count)),
                tuple(each.pairs.size(i) for i in range(count)),
                {row: tuple(seen_from(out, p) for p in paths) for row, paths in files.items()},
                values,
            )
        )
    return Evaluation(
        metrics=metrics.describe(plan.convention, chosen),
        methods=(
            *(_method_row(method) for method in plan.methods),
            *(MethodRow(name, "baseline", SOURCES[name]) for name in BASELINES),
        ),
        reference=plan.compared_to,
        datasets=tuple(datasets),
        versions=versions(),
        settings={
            "convention": plan.convention,
            "dtype": plan.dtype,
            "datasets": [dataclasses.asdict(each.spec) for each in opened],
            "remarks": remarks,
            "weights_sha256": {name: maker.digest for name, maker in fusers.items()},
        },
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def check_files(opened: tuple[Opened, ...]) -> list[str]:
    """Reads every picture once; returns which fused ones look wrong and why.

    Raises FileError for the first that is damaged, or whose infrared and visible sizes differ:
    better now than after half an hour of fusing.
    """

    def check(job: tuple[Opened, int]) -> list[str]:
        each, i = job
        infrared, visible = each.pairs.infrared[i], each.pairs.visible[i]
        sizes = images.read_infrared(infrared).shape[:2], images.read_visible(visible).shape[:2]
        require_equal_sizes(infrared, sizes[0], visible, sizes[1])
        found = []
        for files in each.pictures.values():
            fused = images.read_visible(files[i])
            low, high = 255 * float(fused.min()), 255 * float(fused.max())
            if high - low < LITTLE:
                found.append(
                    f"{files[i]}: levels {low:.0f} to {high:.0f} of 255: is it scaled to its bits?"
                )
        return found

    jobs = [(each, i) for each in opened for i in range(len(each.pairs))]
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(check, job) for job in jobs]
        try:
            return [remark for result in results for remark in result.result()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Pictures:
    """Fuses pairs with weights and keeps the pictures.

    Attributes: digest, sha256 of the weights file.
    """

    def __init__(self, named: str, folder: Path) -> None:
        self.fuser = predict.load(named)
        self.folder = folder
        file = weights.find(named)
        self.digest = hashlib.sha256(file.read_bytes()).hexdigest()

    def find(self, inside: str, stem: str, sources: Sequence[Path]) -> tuple[Path, bool]:
        """The file of a fused picture in the folder `inside`, and whether the same weights made it
        of these files already.
        """
        folder = self.folder / inside
        marker = folder / "weights.sha256"
        mark = f"{self.digest} {__version__}\n"
        if not marker.exists() or marker.read_text(encoding="utf8") != mark:
            make_folder(folder)
            for old in folder.glob("*.png"):
                old.unlink()
            images.write_bytes(marker, mark.encode("utf8"))
        target = folder / f"{stem}.png"
        newest = max(path.stat().st_mtime_ns for path in sources)
        return target, target.exists() and target.stat().st_mtime_ns > newest

    def make(self, opened: Opened, method: str, job: _Job) -> Path:
        """The file of the fused picture; made unless it is there."""
        sources = opened.pairs.visible[job.number], opened.pairs.infrared[job.number]
        target, there = self.find(f"{opened.spec.name}/{method}", job.stem, sources)
        if not there:
            images.write(target, self.fuser(job.visible, job.infrared))
        return target


@dataclasses.dataclass(frozen=True)
class _Job:
    """One pair, read."""

    number: int
    """Of the pair in its set."""
    stem: str
    visible: np.ndarray
    """float32 (h, w, 3) in [0, 1]."""
    infrared: np.ndarray
    """float32 (h, w, 1) in [0, 1]."""
    fused: dict[str, np.ndarray]
    """uint8 (h, w, 3) of methods that bring pictures."""


def _read_ahead(opened: Opened, ahead: int = 2) -> Iterator[_Job]:
    """The pairs by size, equal sizes in order; while one is scored the next ones are read.

    Labels and boxes that may lie beside the pictures are not read.
    """
    pairs = opened.pairs

    def read(i: int) -> _Job:
        fused = {
            name: _levels(images.read_visible(files[i])) for name, files in opened.pictures.items()
        }
        visible, infrared = images.read_visible(pairs.visible[i]), pairs.infrared[i]
        return _Job(i, pairs.stem(i), visible, images.read_infrared(infrared), fused)

    order = sorted(range(len(pairs)), key=lambda i: (pairs.size(i), i))
    with ThreadPoolExecutor(ahead) as pool:
        waiting: list[Future[_Job]] = []
        try:
            for i in order:
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
    asked = tuple(name for name in chosen if name in defined)
    found = {}
    if asked:
        scored = metrics.score(
            stack,
            *(np.broadcast_to(x, (len(stack), *x.shape)) for x in (visible, infrared)),
            convention=plan.convention,
            names=asked,
            dtype=plan.dtype,
        )
        # One transfer a metric, not one a number.
        found = {name: np.asarray(value) for name, value in scored.items()}
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


def _method_row(method: Contender) -> MethodRow:
    if method.weights:
        return MethodRow(method.name, "weights", method.weights)
    return MethodRow(method.name, "pictures", method.fused)


def seen_from(out: Path, path: Path) -> str:
    """Relative to the results' folder where the path lies in it, so that it can be moved."""
    path, out = path.resolve(), out.resolve()
    return path.relative_to(out).as_posix() if path.is_relative_to(out) else os.fspath(path)


def versions() -> dict[str, Any]:
    """Of what the numbers depend on."""
    names = ("jax", "jaxlib", "flax", "numpy", "opencv-python-headless")
    return {"jaxfuse": __version__, **{name: importlib.metadata.version(name) for name in names}}
