"""M3FD's part for detection: its own lists where a download has them, else blocks of names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from jaxfuse.config import counted
from jaxfuse.data.builders.base import Entry, Found, Lack, overlaps
from jaxfuse.data.builders.places import WHOLE, Part, find_parts, first_below
from jaxfuse.data.folders import parse_split
from jaxfuse.data.headers import FileError

LAYOUT = "Ir/*.png, Vis/*.png, Annotation/*.xml"

BLOCK = 100
"""Consecutive names that stay together."""
EVERY = 5
"""One of so many blocks validates: the third of each five."""
GUARD = 10
"""Names beside a validation block that belong to neither part: they may show the same scene."""
PARTS = ("train", "val")


def block_part(number: int) -> str:
    """ "train", "val" or "" (a guard) for the image with this number.

    Names are taken to be frames in order, so that neighbours look alike and a random split would
    test on what it trained on. Blocks of BLOCK consecutive numbers stay together; every EVERY-th
    validates; the GUARD numbers on either side of a validation block are left out. The part follows
    from the number alone, so that it does not move when files are missing.
    """
    if number // BLOCK % EVERY == EVERY // 2:
        return "val"
    beside = {(number - GUARD) // BLOCK % EVERY, (number + GUARD) // BLOCK % EVERY}
    return "" if EVERY // 2 in beside else "train"


def find(root: Path) -> Found:
    """The pairs, split by the lists in meta/ or, where there are none, by blocks.

    Lists are meta/train.txt and meta/val.txt, or else the ranges of numbers in meta/scenario.json.
    """
    part = Part(("Vis", "vi"), ("Ir",), boxes=("Annotation", "labels"), needs=frozenset({"boxes"}))
    found = find_parts(root, {WHOLE: part}, LAYOUT)
    meta = first_below(found.root, ("meta",))
    if meta is None:
        return _by_blocks(found, ())
    files = {name: meta / f"{name}.txt" for name in PARTS}
    there = [path for path in files.values() if path.is_file()]
    if len(there) == len(files):
        lists: dict[str, tuple[str, ...]] = {}
        errors: list[FileError] = []
        for name, path in files.items():
            lists[name], problems = parse_split(path)
            errors += problems
        return _by_lists(found, lists, files, errors)
    scenario = meta / "scenario.json"
    if scenario.is_file():
        try:
            lists = _scenario(scenario)
        except FileError as error:
            return _by_lists(found, {}, {}, [error])
        return _by_lists(found, lists, dict.fromkeys(PARTS, scenario), [])
    alone = there[0].name if there else "neither list"
    note = f"{meta}: has {alone} of train.txt and val.txt, and no scenario.json: split by blocks"
    return _by_blocks(found, (note,))


def _by_blocks(found: Found, notes: tuple[str, ...]) -> Found:
    splits: dict[str, list[Entry]] = {name: [] for name in PARTS}
    errors, guards = list(found.errors), 0
    for entry in found.splits[WHOLE]:
        if not entry.stem.isdigit():
            value = f"stem {entry.stem!r} is no number"
            remedy = "the names must be as published, 00000 to 04199: the split goes by them"
            errors.append(FileError(entry.visible, value, remedy))
        elif chosen := block_part(int(entry.stem)):
            splits[chosen].append(entry)
        else:
            guards += 1
    beside = (f"{counted(guards, 'pair')} beside validation blocks in no split",) if guards else ()
    return Found(
        found.root,
        {name: tuple(entries) for name, entries in splits.items()},
        {"train": found.lacking[WHOLE]},
        tuple(errors),
        (*found.notes, *beside, *notes),
    )


def _by_lists(
    found: Found,
    lists: Mapping[str, tuple[str, ...]],
    files: Mapping[str, Path],
    errors: list[FileError],
) -> Found:
    pairs = {entry.stem: entry for entry in found.splits[WHOLE]}
    halves = {lack.stem: lack for lack in found.lacking[WHOLE]}
    listed = set().union(*lists.values())
    notes = [*found.notes]
    if files:
        notes.append(f"split by {' and '.join(dict.fromkeys(map(str, files.values())))}")
    unlisted = sorted(pairs.keys() - listed)
    if lists and unlisted:
        notes.append(f"{counted(len(unlisted), 'pair')} in no list, e.g. {unlisted[0]}")
    return Found(
        found.root,
        {
            name: tuple(pairs[stem] for stem in stems if stem in pairs)
            for name, stems in lists.items()
        },
        {
            name: tuple(
                halves.get(stem, Lack(stem, "no file")) for stem in stems if stem not in pairs
            )
            for name, stems in lists.items()
        },
        (*found.errors, *errors, *overlaps(lists, files)),
        tuple(notes),
        {name: len(stems) for name, stems in lists.items()},
    )


def _scenario(path: Path) -> dict[str, tuple[str, ...]]:
    """Stems by part of a list of scenarios, each with scenes of a mode and ranges of numbers.

    As TarDAL's own reader takes them: both ends of a range count, and what is not "train" is "val".
    """
    numbers: dict[str, set[int]] = {name: set() for name in PARTS}
    try:
        for scenario in json.loads(path.read_text(encoding="utf8")):
            for scene in scenario["scene"]:
                part = "train" if scene["mode"] == "train" else "val"
                for span in scene["range"]:
                    numbers[part] |= set(range(int(span["min"]), int(span["max"]) + 1))
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "give the file as published, or remove it: the pairs are then split by blocks"
        raise FileError(path, f"no list of scenes ({error!r})", remedy) from None
    return {name: tuple(f"{i:05d}" for i in sorted(found)) for name, found in numbers.items()}
