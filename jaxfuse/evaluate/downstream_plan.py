"""What a downstream evaluation is asked to do: two labelled parts, methods, a segmentation network;
from words or a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from jaxfuse.config import ConfigError, SourceConfig
from jaxfuse.data.builders.classes import CLASS_LISTS
from jaxfuse.evaluate.plan import (
    Contender,
    PlanError,
    check_fields,
    check_names,
    contenders,
    read_tables,
    read_toml,
)
from jaxfuse.models import SEGMENTERS

TASK = "segmentation"
ALONE = ("visible", "infrared")
"""Rows that every downstream evaluation has: one source alone."""
PARTS = ("train", "test")
EPOCHS = 20.0
"""Where neither epochs nor steps are given."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A downstream evaluation, whole."""

    train: SourceConfig
    """What the segmentation networks learn from."""
    test: SourceConfig
    """What they are judged on."""
    methods: tuple[Contender, ...] = ()
    """`{seed}` in weights or fused stands for the seed, `{part}` in fused for train or test."""
    classes: int | str = ""
    """How many, or a class list by name or file; empty takes the set's own."""
    segmenter: str = "segformer_tiny"
    start: str = ""
    """Weights that every network starts from; empty starts from random ones, a function of the
    seed."""
    frozen: str = "visible"
    """Networks that see fused pictures without having learned from them: "visible", those trained
    on visible images; weights; or "none"."""
    steps: int = 0
    epochs: float = 0.0
    """How long each network learns: either of the two; without, 20 epochs."""
    batch_size: int = 8
    patch_size: int = 128
    learning_rate: float = 2e-3
    seeds: int | tuple[int, ...] = 3
    """How many trainings of each row, or the seeds themselves."""
    reference: str = ""
    """The row that others are tested against; empty takes the first one."""
    devices: int = 0
    """How many local devices train; 0 uses all."""

    def __post_init__(self) -> None:
        check_names("method", [m.name for m in self.methods], ALONE)
        for name, source in (("train", self.train), ("test", self.test)):
            if source.kind == "none":
                raise PlanError(f"{name}: names no set: give its kind, or a root folder")
        if self.train == self.test:
            raise PlanError(
                "train and test are the same pairs: a network is judged on pictures it has not "
                "learned from; give two splits or two folders"
            )
        for method in self.methods:
            if bool(method.fused) == bool(method.weights):
                raise PlanError(f"method {method.name!r}: give either fused or weights")
        if self.segmenter not in SEGMENTERS:
            raise PlanError(
                f"segmenter {self.segmenter!r}: choose one of {', '.join(sorted(SEGMENTERS))}"
            )
        if self.steps and self.epochs:
            raise PlanError(f"steps = {self.steps} and epochs = {self.epochs:g}: give one of them")
        for field in ("steps", "epochs", "devices"):
            if getattr(self, field) < 0:
                raise PlanError(f"{field} = {getattr(self, field)}: use 0 or more")
        if isinstance(self.classes, int) and not 2 <= self.classes <= 255:
            raise PlanError(f"classes = {self.classes}: use 2 to 255, or name a class list")
        seeds = self.seed_numbers
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise PlanError(f"seeds = {self.seeds}: give 1 or more, each its own, from 0 on")
        if self.reference and self.reference not in self.rows:
            raise PlanError(
                f"reference {self.reference!r} is not a row: choose one of {', '.join(self.rows)}"
            )

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seed of each training."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row of the tables: the methods, then one source alone."""
        return (*(m.name for m in self.methods), *ALONE)

    @property
    def compared_to(self) -> str:
        """The row that others are tested against."""
        return self.reference or self.rows[0]


def is_protocol(path: str | Path) -> bool:
    """Whether a TOML file asks for this task. Raises PlanError where it cannot be read."""
    return read_toml(Path(path)).get("task") == TASK


def read_protocol(path: str | Path) -> Plan:
    """A plan from a TOML file with task = "segmentation": the fields of `Plan`, with tables
    [train], [test] and [[methods]].

    Relative places in it are meant from the file's own folder. Raises PlanError.
    """
    path = Path(path)
    tree = read_toml(path)
    task = tree.pop("task", "fusion")
    if task != TASK:
        raise PlanError(f"{path}: task = {task!r}: write task = {TASK!r}, or leave out --task")
    for number, entry in enumerate(read_tables(path, tree, "methods"), start=1):
        check_fields(path, f"methods {number}", entry, Contender)
        _place(path, entry, "fused")
        _place_if_there(path, entry, "weights")
    for part in PARTS:
        entry = tree.get(part)
        if not isinstance(entry, dict):
            raise PlanError(f"{path}: [{part}] is missing: name its set as in the guide")
        check_fields(path, f"[{part}]", entry, SourceConfig)
        entry.setdefault("kind", "folders")
        for name in ("root", "infrared", "visible", "labels"):
            _place(path, entry, name)
        if entry["kind"] == "folders":
            _place(path, entry, "split")
    check_fields(path, "the file", tree, Plan)
    for name in ("start", "frozen", "classes"):
        if tree.get(name) not in (*CLASS_LISTS, "visible", "none"):
            _place_if_there(path, tree, name)
    try:
        return msgspec.convert(tree, Plan)
    except (msgspec.ValidationError, PlanError) as error:
        raise PlanError(f"{path}: {error}") from None


def _place(path: Path, entry: dict[str, Any], name: str) -> None:
    if entry.get(name) and isinstance(entry[name], str):
        entry[name] = str(path.parent / entry[name])


def _place_if_there(path: Path, entry: dict[str, Any], name: str) -> None:
    """Else it is the name of something that comes with the package. A seed may stand in it."""
    given = entry.get(name, "")
    if given and isinstance(given, str):
        before = path.parent / given.partition("{seed}")[0]
        if "{seed}" in given or before.exists():
            entry[name] = str(path.parent / given)


def from_words(
    protocol: str,
    test: tuple[str, str],
    train: tuple[str, str],
    dataset: str,
    fused: Sequence[str],
    weights: Sequence[str],
    **changes: Any,
) -> Plan:
    """A plan from a protocol file, or from folders, with more methods as [NAME=]PLACE.

    test, train: root and split file; train's root is test's where it is empty. dataset: the public
    set that the root is a download of, whose splits are named (train and test). changes: fields of
    `Plan`, taken where they are not empty; steps take the place of a file's epochs, and the other
    way round. Raises PlanError.
    """
    given = {name: value for name, value in changes.items() if value}
    if str(given.get("classes", "")).isdigit():
        given["classes"] = int(given["classes"])
    methods = contenders(fused, weights)
    if protocol:
        if any((*test, *train, dataset)):
            raise PlanError(
                f"--protocol {protocol} names the sets: leave out --root, --split, --train-root, "
                "--train-split and --dataset"
            )
        base = read_protocol(protocol)
        lengths = {name: 0 for name in ("steps", "epochs")}
        if lengths.keys() & given.keys():
            given = lengths | given
        return dataclasses.replace(base, methods=(*base.methods, *methods), **given)
    if not test[0]:
        raise PlanError("no labelled pairs: give --root DIR, or --protocol FILE")
    asked = ((train[0] or test[0], train[1]), test)
    if not dataset and asked[0][0] == test[0]:
        for option, split in (("--train-split", train[1]), ("--split", test[1])):
            if not split:
                raise PlanError(
                    f"--root {test[0]}: give {option} FILE too (one stem a line), or --train-root "
                    "DIR, or --dataset NAME for the download of a public set: the networks learn "
                    "from other pairs than they are judged on"
                )
        if train[1] == test[1]:
            raise PlanError(
                f"--split {test[1]}: is --train-split too: the networks learn from other pairs "
                "than they are judged on: give another file"
            )
    parts = []
    for (root, split), part in zip(asked, PARTS, strict=True):
        try:
            if dataset:
                parts.append(SourceConfig("dataset", root=root, name=dataset, split=split or part))
            else:
                parts.append(SourceConfig("folders", root=root, split=split))
        except ConfigError as error:
            raise PlanError(str(error)) from None
    return Plan(parts[0], parts[1], tuple(methods), **given)


def source_of(place: str, seed: int, part: str = "") -> str:
    """Weights or folder of a seed and a part."""
    return place.replace("{seed}", str(seed)).replace("{part}", part)
