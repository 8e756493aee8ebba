"""Pictures small enough that hundreds of pairs fit one page."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from jaxfuse.config import counted
from jaxfuse.data import images
from jaxfuse.evaluate.results import Evaluation, Scores

SIZES = ((10_000, 90), (1024, 85), (800, 82), (640, 80), (480, 75), (400, 72), (320, 70), (240, 65))
SIZES += ((200, 60), (160, 55), (120, 45))
"""(longest side in pixels, WebP quality), from best to smallest."""
_SAMPLE = 24


@dataclasses.dataclass(frozen=True)
class Shown:
    """Encoded pictures and which is which."""

    pictures: list[str]
    """WebP as base64."""
    of: dict[str, dict[str, list[int]]]
    """set -> row -> number of each pair's picture."""
    note: str
    """What was reduced, in words."""


def encode(found: Evaluation, folder: Path, budget: int, first: int = 0) -> Shown:
    """Every picture of the evaluation in at most `budget` characters, as large as that allows.

    folder: what relative paths are seen from. first: number of the first picture. Pictures that are
    gone are left out, and the note says how many. Raises FileError for one that is damaged.
    """
    every = [
        (scores.name, row, path, row == "infrared")
        for scores in found.datasets
        for row, path in _files(scores, folder)
    ]
    there = [number for number, job in enumerate(every) if job[2].exists()]
    jobs = [every[number] for number in there]
    gone = [job[2] for job in every if not job[2].exists()]
    lost = f" Gone: {counted(len(gone), 'picture')}, such as {gone[0]}." if gone else ""
    if not jobs:
        return Shown([], {scores.name: {} for scores in found.datasets}, lost.strip())
    sample = jobs[:: max(1, len(jobs) // _SAMPLE)]
    with ThreadPoolExecutor(2) as pool:
        # One decoding serves all sizes of a sampled picture.
        trial = list(pool.map(lambda job: [len(e) for e in _encode(job[2], job[3], SIZES)], sample))
        guess = np.array(trial).mean(axis=0) * len(jobs)
        for at, size in enumerate(SIZES):
            if guess[at] > budget and at + 1 < len(SIZES):
                continue
            made = list(pool.map(lambda job, s=size: _encode(job[2], job[3], (s,))[0], jobs))
            if sum(map(len, made)) <= budget or at + 1 == len(SIZES):
                break
    if sum(map(len, made)) > budget:  # not even the smallest: every other pair, and so on
        made, kept = _thin(jobs, made, budget)
    else:
        kept = list(range(len(jobs)))
    of: dict[str, dict[str, list[int]]] = {scores.name: {} for scores in found.datasets}
    chosen = {there[job]: number for number, job in enumerate(kept)}
    for job, (name, row, _, _) in enumerate(every):
        of[name].setdefault(row, []).append(first + chosen[job] if job in chosen else -1)
    largest = max(max(size) for scores in found.datasets for size in scores.sizes)
    side, quality = size
    reduced = f"reduced to at most {side} pixels a side" if side < largest else "in full size"
    note = (
        f"Pictures are shown {reduced}, as WebP of quality {quality}, so that the page stays "
        "small; all scores are of the original files."
    )
    if len(kept) < len(jobs):
        note += f" Only {len(kept)} of {len(jobs)} pictures are in the page."
    note += lost
    return Shown([made[i] for i in range(len(made))], of, note)


def _thin(jobs: list, made: list[str], budget: int) -> tuple[list[str], list[int]]:
    """Whole pairs from the front, as many as fit; jobs of a pair share their file's stem."""
    kept, used = [], 0
    groups: dict[tuple[str, str], list[int]] = {}
    for number, (name, _, path, _) in enumerate(jobs):
        groups.setdefault((name, path.stem), []).append(number)
    for members in groups.values():
        cost = sum(len(made[i]) for i in members)
        if used + cost > budget:
            break
        used += cost
        kept += members
    kept.sort()
    return [made[i] for i in kept], kept


def _files(scores: Scores, folder: Path) -> Iterator[tuple[str, Path]]:
    for row, paths in scores.files.items():
        for path in paths:
            yield row, Path(path) if Path(path).is_absolute() else folder / path


def webp(image: np.ndarray, side: int, quality: int) -> str:
    """An RGB image in [0, 1] as base64 WebP, its longest side at most `side`."""
    levels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    h, w = levels.shape[:2]
    if max(h, w) > side:
        scale = side / max(h, w)
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        levels = cv2.resize(levels, size, interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".webp", levels[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not ok:
        raise RuntimeError("OpenCV could not encode a WebP picture")
    return base64.b64encode(data.tobytes()).decode("ascii")


def _encode(path: Path, infrared: bool, sizes: tuple[tuple[int, int], ...]) -> list[str]:
    image = images.read_infrared(path).repeat(3, -1) if infrared else images.read_visible(path)
    return [webp(image, *size) for size in sizes]
