"""Downstream evaluation: does a segmentation network learn more from fused pictures?

Each row's pictures train networks of their own, equal but for the pictures: one a seed, all rows
from the same start. Beside it, networks that have not learned from the row's pictures at all.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfuse import distributed, weights
from jaxfuse.config import SourceConfig, to_dict
from jaxfuse.data import images
from jaxfuse.data.builders.base import Time
from jaxfuse.data.builders.classes import ClassList
from jaxfuse.data.images import FileError
from jaxfuse.data.pairs import Pairs
from jaxfuse.data.sources import require_labels
from jaxfuse.evaluate import downstream_set, score
from jaxfuse.evaluate.downstream_plan import ALONE, PARTS, Plan, source_of
from jaxfuse.evaluate.downstream_set import Part, Progress
from jaxfuse.evaluate.downstream_training import Judge, Seen, digest_of, experiment_of, learn
from jaxfuse.evaluate.plan import Contender, PlanError, find_pictures
from jaxfuse.evaluate.results import MethodRow, make_folder
from jaxfuse.models import create_segmenter
from jaxfuse.train import setup

SHOWN = 6
"""Test images whose predictions are kept to look at."""
Say = Callable[[str], Progress]
"""What is being done -> a counter of it."""
Pictures = dict[str, dict[int, dict[str, tuple[Path, ...]]]]
"""row -> seed -> part -> one picture a pair."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """Everything that was counted."""

    classes: ClassList
    rows: tuple[MethodRow, ...]
    reference: str
    seeds: tuple[int, ...]
    stems: tuple[str, ...]
    """Of the test part."""
    times: tuple[Time, ...]
    counts: dict[str, dict[str, np.ndarray]]
    """"retrained" or "frozen" -> row -> confusions (seeds, images, classes, classes)."""
    maps: dict[str, dict[str, dict[int, np.ndarray]]]
    """The same -> predictions of the first seed by number of the image, for some images."""
    pictures: dict[str, tuple[Path, ...]]
    """Test pictures of each row, of the first seed; "labels" too."""
    settings: dict[str, Any]
    remarks: tuple[str, ...]
    versions: dict[str, Any]
    date: str


def run(
    plan: Plan, out: str | Path, overwrite: bool = False, progress: Say | None = None
) -> Judged:
    """Fuses both parts, trains every network and judges it; what OUT holds of it already stays.

    OUT/set has the two parts, OUT/pictures what weights fused, OUT/runs one run folder for each row
    and seed, OUT/counts what each network saw. overwrite: runs and sets of other settings give way.
    Everything that can be wrong with weights, pictures and labels is found before anything is
    fused. Raises UserErrors of all rooms; `loop.Preempted` where a signal stopped a training: the
    same call continues.
    """
    out = Path(out)
    train, test = (setup.open_set(part, getattr(plan, part)) for part in PARTS)
    for part, pairs in zip(PARTS, (train, test), strict=True):
        require_labels(f"the {part} part", pairs)
    downstream_set.check_apart(train, test)
    classes = downstream_set.class_list(plan.classes, train, test)
    steps = _trial(plan, len(classes))
    _check_sizes(plan, len(classes), test)
    fusers = _fusers(plan, out)
    brought = _brought(plan, {"train": train, "test": test})
    parts = _write_set(plan, out, classes, {"train": train, "test": test}, overwrite, progress)
    pictures = _make(plan, parts, fusers, brought, out, progress)
    networks = _learn(plan, classes, parts, pictures, steps, out, overwrite, progress)
    counts, maps = _judge(plan, classes, parts["test"], pictures, networks, out, progress)
    first = plan.seed_numbers[0]
    shown = {row: of_seed[first]["test"] for row, of_seed in pictures.items()}
    return Judged(
        classes,
        tuple(_row(plan, name) for name in plan.rows),
        plan.compared_to,
        plan.seed_numbers,
        parts["test"].stems,
        parts["test"].times,
        counts,
        maps,
        {
            **shown,
            "infrared": parts["test"].files("ir"),
            "labels": parts["test"].files("labels"),
        },
        {
            "steps": steps,
            **{
                name: getattr(plan, name)
                for name in ("segmenter", "start", "frozen", "batch_size", "patch_size")
            },
            "learning_rate": plan.learning_rate,
            "pairs": {part: len(parts[part]) for part in PARTS},
            "sets": {part: to_dict(getattr(plan, part)) for part in PARTS},
            "weights_sha256": {place: maker.digest for place, maker in fusers.items()},
        },
        tuple(_remarks(plan, classes, parts)),
        score.versions(),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _trial(plan: Plan, classes: int) -> int:
    """Opens the training as it will be, reading sizes only; returns its steps."""
    experiment = experiment_of(plan, plan.train, classes, plan.seed_numbers[0])
    setup.check(experiment, distributed.data_mesh(plan.devices).size)
    _, method = setup.build(experiment, setup.open_data(experiment).facts)
    return method.steps


def _check_sizes(plan: Plan, classes: int, test: Pairs) -> None:
    """Raises where a network cannot take a test image, or the frozen one has other classes."""
    smallest = {plan.segmenter: create_segmenter(plan.segmenter, classes).smallest}
    if plan.frozen not in ("visible", "none"):
        frozen, _ = weights.load_segmenter(plan.frozen, classes)
        if weights.load_weights(plan.frozen, classes).metadata.get("head") == "fresh":
            raise PlanError(
                f"{weights.find(plan.frozen)}: holds an encoder without a segmentation head: a "
                "frozen network must have learned; use it as start instead"
            )
        smallest[frozen.name] = frozen.smallest
    for i in range(len(test)):
        height, width = test.size(i)
        for name, least in smallest.items():
            if min(height, width) < least:
                raise PlanError(
                    f"{test.stem(i)}: {height}x{width} pixels (height x width): {name} needs "
                    f"{least} along each side: leave it out by a split, or choose another segmenter"
                )


def _fusers(plan: Plan, out: Path) -> dict[str, score.Pictures]:
    """What fuses, by the place of its weights."""
    places = [
        source_of(method.weights, seed)
        for method in plan.methods
        if method.weights
        for seed in plan.seed_numbers
    ]
    return {place: score.Pictures(place, out / "pictures") for place in dict.fromkeys(places)}


def _brought(plan: Plan, parts: Mapping[str, Pairs]) -> Pictures:
    """Pictures that methods bring, all there and of the right size."""
    found: Pictures = {}
    for method in plan.methods:
        if not method.fused:
            continue
        found[method.name] = {}
        known: dict[str, tuple[Path, ...]] = {}
        for seed in plan.seed_numbers:
            found[method.name][seed] = {}
            for part, pairs in parts.items():
                folder = source_of(method.fused, seed, part)
                key = f"{part}:{folder}"
                if key not in known:
                    known[key] = find_pictures(method, Path(folder), f"the {part} part", pairs)
                found[method.name][seed][part] = known[key]
    return found


def _write_set(
    plan: Plan,
    out: Path,
    classes: ClassList,
    pairs: Mapping[str, Pairs],
    overwrite: bool,
    progress: Say | None,
) -> dict[str, Part]:
    folder = out / "set"
    marker = folder / "set.json"
    sources = {
        part: to_dict(getattr(plan, part)) | downstream_set.identity(pairs[part]) for part in PARTS
    }
    text = json.dumps({**sources, "classes": classes.names}, indent=1) + "\n"
    if folder.exists() and any(folder.iterdir()):
        same = marker.exists() and marker.read_text(encoding="utf8") == text
        if not same and not (overwrite and marker.exists()):
            raise FileError(
                folder,
                "holds another set",
                "name another --out" + (", or add --overwrite" if marker.exists() else ""),
            )
        if not same:
            shutil.rmtree(folder)
    make_folder(folder)
    images.write_bytes(marker, text.encode("utf8"))
    return {
        part: downstream_set.write(
            part,
            pairs[part],
            folder / part,
            classes,
            progress(f"reading the {part} part") if progress else None,
        )
        for part in PARTS
    }


def _make(
    plan: Plan,
    parts: Mapping[str, Part],
    fusers: Mapping[str, score.Pictures],
    brought: Pictures,
    out: Path,
    progress: Say | None,
) -> Pictures:
    """Every row's pictures; what is not there is made."""
    found: Pictures = dict(brought)
    for method in plan.methods:
        if not method.weights:
            continue
        found[method.name] = {}
        for seed in plan.seed_numbers:
            of_seed = "{seed}" in method.weights
            if not of_seed and found[method.name]:
                found[method.name][seed] = next(iter(found[method.name].values()))
                continue
            maker = fusers[source_of(method.weights, seed)]
            found[method.name][seed] = {
                name: _fuse(
                    maker,
                    f"{method.name}/{f'seed{seed}' if of_seed else 'every'}/{name}",
                    part,
                    progress(f"fusing by {method.name}") if progress else None,
                )
                for name, part in parts.items()
            }
    visible = {name: part.files("vi") for name, part in parts.items()}
    infrared = {
        name: _gray(part, out / "pictures" / "infrared" / name) for name, part in parts.items()
    }
    for name, row in zip(ALONE, (visible, infrared), strict=True):
        found[name] = dict.fromkeys(plan.seed_numbers, row)
    return {row: found[row] for row in plan.rows}


def _fuse(
    maker: score.Pictures, inside: str, part: Part, progress: Progress | None
) -> tuple[Path, ...]:
    made = []
    for i, sources in enumerate(zip(part.files("vi"), part.files("ir"), strict=True)):
        target, there = maker.find(inside, part.stems[i], sources)
        if not there:
            visible, infrared = images.read_visible(sources[0]), images.read_infrared(sources[1])
            images.write(target, maker.fuser(visible, infrared))
        made.append(target)
        if progress:
            progress(i + 1, len(part), part.stems[i])
    return tuple(made)


def _gray(part: Part, folder: Path) -> tuple[Path, ...]:
    """The infrared pictures in a folder of their own, 8 bits deep like the fused ones."""
    make_folder(folder)
    made = []
    for stem, source in zip(part.stems, part.files("ir"), strict=True):
        target = folder / f"{stem}.png"
        if not target.exists() or target.stat().st_mtime_ns <= source.stat().st_mtime_ns:
            images.write(target, images.read_infrared(source))
        made.append(target)
    return tuple(made)


def _learn(
    plan: Plan,
    classes: ClassList,
    parts: Mapping[str, Part],
    pictures: Pictures,
    steps: int,
    out: Path,
    overwrite: bool,
    progress: Say | None,
) -> dict[str, dict[int, Path]]:
    """row -> seed -> weights of the network that learned from its pictures."""
    part, labels = parts["train"], parts["train"].files("labels")
    found: dict[str, dict[int, Path]] = {row: {} for row in plan.rows}
    digests: dict[tuple[Path, ...], str] = {}
    count = len(plan.rows) * len(plan.seed_numbers)
    # Seed by seed: what is cut short has whole comparisons.
    for seed in plan.seed_numbers:
        for row in plan.rows:
            files = pictures[row][seed]["train"]
            if files not in digests:
                digests[files] = digest_of((*files, *labels))
            source = SourceConfig(
                "folders",
                infrared=str(part.folder / "ir"),
                visible=str(files[0].parent),
                labels=str(part.folder / "labels"),
                split=str(part.folder / "stems.txt"),
            )
            experiment = experiment_of(plan, source, len(classes), seed)
            folder = out / "runs" / row / f"seed{seed}"
            found[row][seed] = learn(experiment, folder, steps, digests[files], overwrite)
            if progress:
                done = sum(map(len, found.values()))
                progress("training")(done, count, f"{row}, seed {seed}")
    return found


def _judge(
    plan: Plan,
    classes: ClassList,
    test: Part,
    pictures: Pictures,
    networks: Mapping[str, Mapping[int, Path]],
    out: Path,
    progress: Say | None,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, dict[int, np.ndarray]]]]:
    judge = Judge(test, len(classes), out / "counts", to_show(test.times))

    def seen(row: str, network: Callable[[int], Path]) -> list[Seen]:
        counter = progress(f"segmenting {row}") if progress else None
        return [
            judge(network(seed), pictures[row][seed]["test"], counter) for seed in plan.seed_numbers
        ]

    found = {"retrained": {row: seen(row, networks[row].__getitem__) for row in plan.rows}}
    if plan.frozen == "visible":
        found["frozen"] = {row: seen(row, networks["visible"].__getitem__) for row in plan.rows}
    elif plan.frozen != "none":
        file = weights.find(plan.frozen)
        found["frozen"] = {row: seen(row, lambda seed: file) for row in plan.rows}
    return (
        {
            way: {
                row: np.stack([each.counts for each in all_seen]) for row, all_seen in rows.items()
            }
            for way, rows in found.items()
        },
        {way: {row: seen[0].maps for row, seen in rows.items()} for way, rows in found.items()},
    )


def to_show(times: Sequence[Time], count: int = SHOWN) -> tuple[int, ...]:
    """Numbers of a handful of images, spread over the set, by night and by day alike."""
    groups = [[i for i, time in enumerate(times) if time == kind] for kind in dict.fromkeys(times)]
    share = math.ceil(count / len(groups))
    chosen = [
        group[round(k * (len(group) - 1) / max(1, share - 1))]
        for group in groups
        for k in range(min(share, len(group)))
    ]
    return tuple(sorted(set(chosen))[: max(count, len(groups))])


def _row(plan: Plan, name: str) -> MethodRow:
    if name in ALONE:
        return MethodRow(name, "baseline", score.SOURCES[name])
    method: Contender = next(m for m in plan.methods if m.name == name)
    if method.weights:
        return MethodRow(name, "weights", method.weights)
    return MethodRow(name, "pictures", method.fused)


def _remarks(plan: Plan, classes: ClassList, parts: Mapping[str, Part]) -> list[str]:
    found = []
    count = len(plan.seed_numbers)
    if count < 2:
        found.append(
            "one seed: the intervals cover other test images, not other trainings; give 3 or more"
        )
    elif count < 3:
        found.append(f"{count} seeds say little about other trainings; give 3 or more")
    if len(parts["test"]) < 2:
        found.append("one test image: there are no intervals")
    learned, asked = parts["train"].pixels, parts["test"].pixels
    unseen = [name for name, a, b in zip(classes.names, learned, asked, strict=True) if b and not a]
    if unseen:
        found.append(f"in the test part and nowhere in the train part: {', '.join(unseen)}")
    absent = [name for name, b in zip(classes.names, asked, strict=True) if not b]
    if absent:
        found.append(f"nowhere in the test part, so in no mean: {', '.join(absent)}")
    return found
