"""The public sets: where their files lie, and what is known of each.

Folder names are matched without regard to case; a layout may begin in the folder given or up to two
below it, as archives unpack. Licences are their owners' to state: what stands here names where.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from jaxfuse.config import ConfigError, counted
from jaxfuse.data.builders import m3fd
from jaxfuse.data.builders.base import Dataset, Entry, Found, Lack, overlaps, time_of
from jaxfuse.data.builders.classes import FMB, MFNET, MSRS
from jaxfuse.data.builders.places import (
    WHOLE,
    Part,
    beginnings,
    find_parts,
    first_below,
    partly,
    require_folder,
    subfolders,
    unrecognised,
)
from jaxfuse.data.folders import (
    INFRARED_NAMES,
    VISIBLE_NAMES,
    list_files,
    parse_split,
)
from jaxfuse.data.headers import FileError
from jaxfuse.data.images import EXTENSIONS

_LABELS, _BOXES = frozenset({"labels"}), frozenset({"boxes"})


def _parts(parts: dict[str, Part], layout: str) -> Callable[[Path], Found]:
    return lambda root: find_parts(root, parts, layout)


def _find_mfnet(root: Path) -> Found:
    require_folder(root, MFNET_LAYOUT)
    lacking = None
    for level in beginnings(root):
        for start in level:
            images, listed = first_below(start, ("images",)), (start / "train.txt").is_file()
            if images is not None and listed:
                return _mfnet_splits(start, images)
            if lacking is None and (images is not None or listed):
                value = "no images/ (there is train.txt)"
                if images is not None:
                    value = f"no train.txt (there is {images.name}/)"
                remedy = f"unpack the whole archive: expected {MFNET_LAYOUT}"
                lacking = FileError(start, value, remedy)
    raise lacking or unrecognised(root, MFNET_LAYOUT)


def _mfnet_splits(start: Path, images: Path) -> Found:
    labels = first_below(start, ("labels",))
    if labels is None:
        raise FileError(start, "no labels/", "unpack the whole archive")
    image_files = list_files(images, {".png"}).files
    label_files = list_files(labels, {".png"}).files
    splits, lacking, errors, notes = {}, {}, [], []
    lists: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        path = start / f"{split}.txt"
        stems, problems = parse_split(path)
        errors += problems
        mirrored = [stem for stem in stems if stem.endswith("_flip")]
        if mirrored:
            notes.append(f"{path}: {len(mirrored)} mirrored copies (*_flip) are left out")
        lists[split] = {stem for stem in stems if not stem.endswith("_flip")}
        whole, lacks = [], []
        for stem in sorted(lists[split]):
            absent = [
                kind
                for kind, files in (("images", image_files), ("labels", label_files))
                if stem not in files
            ]
            if absent:
                lacks.append(Lack(stem, "no file in " + " and ".join(absent)))
            else:
                entry = Entry(stem, image_files[stem], None, label_files[stem])
                whole.append(entry._replace(time=time_of(stem)))
        splits[split], lacking[split] = tuple(whole), tuple(lacks)
    errors += overlaps(lists, {split: start / f"{split}.txt" for split in lists})
    for time, letter in (("day", "D"), ("night", "N")):
        path = start / f"test_{time}.txt"
        if path.is_file():
            stems, problems = parse_split(path)
            errors += problems
            expected = {stem for stem in lists["test"] if stem.endswith(letter)}
            if not problems and set(stems) != expected:
                value = f"{len(set(stems) ^ expected)} names differ from test.txt's *{letter}"
                notes.append(f"{path}: {value}; the names in test.txt are taken")
    listed = set().union(*lists.values())
    unlisted = [s for s in image_files if s not in listed and not s.endswith("_flip")]
    if unlisted:
        notes.append(f"{images}: {counted(len(unlisted), 'image')} in no list, e.g. {unlisted[0]}")
    return Found(start, splits, lacking, tuple(errors), tuple(notes))


_IR_WORD = re.compile(r"(?<![a-z])(lwir|ir|thermal)(?![a-z])")
_VIS_WORD = re.compile(r"(?<![a-z])(vis|visual|visible)(?![a-z])")


def _find_tno(root: Path) -> Found:
    """Pairs in ir/ and vi/, or the published tree: a folder a scene, bands told by file name."""
    require_folder(root, TNO_LAYOUT)
    part = Part(("vi", "vis", "visible"), ("ir", "infrared"))
    refused = None
    names = (*part.visible, *part.infrared)
    if any(first_below(start, names) for level in beginnings(root) for start in level):
        try:
            return find_parts(root, {WHOLE: part}, TNO_LAYOUT)
        except FileError as error:
            refused = error  # The published tree has folders of such names too, for sequences.
    entries, notes = [], []
    for folder in sorted(
        {path.parent for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS}
    ):
        files = list_files(folder, EXTENSIONS).files
        name = "_".join(folder.relative_to(root).parts[-2:]) or folder.name
        infrared = [path for stem, path in files.items() if _IR_WORD.search(_words(stem))]
        visible = [path for stem, path in files.items() if _VIS_WORD.search(_words(stem))]
        if len(files) == 2 and len(infrared) == 1 and not visible:
            visible = [path for path in files.values() if path != infrared[0]]
        # A name such as IR_hei_vis_g carries both words: the one it begins with counts.
        infrared = [path for path in infrared if path not in visible or _starts(path, _IR_WORD)]
        visible = [path for path in visible if path not in infrared]
        if len(infrared) == len(visible) == 1:
            entries.append(Entry(name, visible[0], infrared[0]))
        else:
            notes.append(
                f"{folder}: {len(infrared)} infrared and {len(visible)} visible among "
                f"{counted(len(files), 'picture')}: no pair"
            )
    if not entries:
        raise refused or unrecognised(root, TNO_LAYOUT)
    return Found(root, {WHOLE: tuple(entries)}, {}, (), tuple(notes))


def _words(stem: str) -> str:
    return stem.lower().replace("_", " ")


def _starts(path: Path, word: re.Pattern[str]) -> bool:
    return word.match(_words(path.stem)) is not None


def _find_folders(root: Path) -> Found:
    """ROOT/{ir,vi}, or a folder a split that holds both."""
    require_folder(root, FOLDERS_LAYOUT)

    def part(prefix: str) -> Part:
        visible = [prefix + name for name in VISIBLE_NAMES]
        infrared = [prefix + name for name in INFRARED_NAMES]
        return Part(visible, infrared, (prefix + "labels",), (prefix + "boxes",))

    def images(start: Path) -> list[Path | None]:
        return [_image_folder(start, names) for names in (VISIBLE_NAMES, INFRARED_NAMES)]

    whole = {WHOLE: part("")}
    if all(images(root)):
        return _even(find_parts(root, whole, FOLDERS_LAYOUT))
    there = {child.name: images(child) for child in subfolders(root)}
    # A folder with one of the two is half a split: it is named, not passed over.
    splits = {name: part(f"{name}/") for name, found in there.items() if any(found)}
    if not any(map(all, there.values())):
        lacking = whole if any(images(root)) else splits
        raise partly(root, lacking, FOLDERS_LAYOUT) or unrecognised(root, FOLDERS_LAYOUT)
    return _even(find_parts(root, splits, FOLDERS_LAYOUT))


def _image_folder(start: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of one of these names. Raises FileError where there are several."""
    found = [child for child in subfolders(start) if child.name.lower() in names]
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        role = "visible" if names is VISIBLE_NAMES else "infrared"
        value = f"{both} could both be the {role} folder"
        raise FileError(start, value, "keep the one that is meant, move the others elsewhere")
    return found[0] if found else None


def _even(found: Found) -> Found:
    """Labels and boxes for all pairs or for none: a record cannot say that one is missing."""
    errors = list(found.errors)
    pairs = [entry for entries in found.splits.values() for entry in entries]
    for kind in ("labels", "boxes"):
        without = [entry for entry in pairs if getattr(entry, kind) is None]
        if without and len(without) < len(pairs):
            value = f"{kind} for {len(pairs) - len(without)} of {len(pairs)} pairs, none e.g. for "
            remedy = f"add the missing {kind}, or leave these pairs out by a split"
            errors.append(FileError(found.root, value + repr(without[0].stem), remedy))
    return dataclasses.replace(found, errors=tuple(errors))


MSRS_LAYOUT = "{train,test}/{ir,vi,Segmentation_labels}/*.png"
MFNET_LAYOUT = "images/*.png (4 channels), labels/*.png, train.txt, val.txt, test.txt"
FMB_LAYOUT = "{train,test}/{Infrared,Visible,Label}/*.png"
ROADSCENE_LAYOUT = "cropinfrared/*.jpg, crop_LR_visible/*.jpg (or ir/, vi/)"
TNO_LAYOUT = "ir/, vi/, or the published tree with a folder a scene (IR_*.bmp, VIS_*.bmp)"
LLVIP_LAYOUT = "{infrared,visible}/{train,test}/*.jpg, Annotations/*.xml"
FOLDERS_LAYOUT = "ir/, vi/ [labels/*.png, boxes/*.txt], or a folder a split that holds these"
_DETECTION_LAYOUT = "detection/{ir,vi}/*.png, detection/labels/*.txt"
_FUSION_LAYOUT = "M3FD_Fusion/{Ir,Vis}/*.png"

_ROADS = {
    split: Part(
        (f"{split}/vi",),
        (f"{split}/ir",),
        (f"{split}/Segmentation_labels", f"{split}/labels"),
        needs=_LABELS,
    )
    for split in ("train", "test")
}
_FULL_TIME = {
    split: Part((f"{split}/Visible",), (f"{split}/Infrared",), (f"{split}/Label",), needs=_LABELS)
    for split in ("train", "test")
}
_LOW_LIGHT = {
    split: Part((f"visible/{split}",), (f"infrared/{split}",), boxes=("Annotations",), needs=_BOXES)
    for split in ("train", "test")
}

_SETS = (
    Dataset(
        "msrs",
        "MSRS, road scenes by day and night",
        _parts(_ROADS, MSRS_LAYOUT),
        {"train": 1083, "test": 361},
        MSRS_LAYOUT,
        "PIAFusion, Information Fusion 2022; repository Linfeng-Tang/MSRS",
        "none stated; made from MFNet",
        (480, 640),
        MSRS,
        labelled=True,
    ),
    Dataset(
        "msrs_detection",
        "MSRS' 80 pairs with boxes; they occur in its train and test parts as well",
        _parts(
            {
                WHOLE: Part(
                    ("detection/vi",), ("detection/ir",), boxes=("detection/labels",), needs=_BOXES
                )
            },
            _DETECTION_LAYOUT,
        ),
        {WHOLE: 80},
        _DETECTION_LAYOUT,
        "PIAFusion, Information Fusion 2022; repository Linfeng-Tang/MSRS",
        "none stated; made from MFNet",
        (480, 640),
        box_classes=("person", "bicycle", "car"),
        boxed=True,
    ),
    Dataset(
        "mfnet",
        "MFNet, road scenes by day and night; infrared is the fourth channel",
        _find_mfnet,
        {"train": 784, "val": 392, "test": 393},
        MFNET_LAYOUT,
        "MFNet, IROS 2017; The University of Tokyo, Multi-spectral semantic segmentation dataset",
        "see the publication's site",
        (480, 640),
        MFNET,
        labelled=True,
    ),
    Dataset(
        "fmb",
        "FMB, full-time road scenes",
        _parts(_FULL_TIME, FMB_LAYOUT),
        {"train": 1220, "test": 280},
        FMB_LAYOUT,
        "SegMiF, ICCV 2023; repository JinyuanLiu-CV/SegMiF",
        "see the repository",
        (600, 800),
        FMB,
        labelled=True,
    ),
    Dataset(
        "m3fd",
        "M3FD, streets and campus with boxes; split by its lists in meta/, else by blocks of names",
        m3fd.find,
        {
            part: sum(m3fd.block_part(number) == part for number in range(4200))
            for part in m3fd.PARTS
        },
        m3fd.LAYOUT,
        "TarDAL, CVPR 2022; repository JinyuanLiu-CV/TarDAL",
        "see the repository",
        (768, 1024),
        box_classes=("People", "Car", "Bus", "Lamp", "Motorcycle", "Truck"),
        boxed=True,
    ),
    Dataset(
        "m3fd_fusion",
        "M3FD's 300 pairs for fusion, without annotations",
        _parts({WHOLE: Part(("M3FD_Fusion/Vis", "Vis"), ("M3FD_Fusion/Ir", "Ir"))}, _FUSION_LAYOUT),
        {WHOLE: 300},
        _FUSION_LAYOUT,
        "TarDAL, CVPR 2022; repository JinyuanLiu-CV/TarDAL",
        "see the repository",
    ),
    Dataset(
        "roadscene",
        "RoadScene, pairs from FLIR's video",
        _parts({WHOLE: Part(("crop_LR_visible", "vi"), ("cropinfrared", "ir"))}, ROADSCENE_LAYOUT),
        {WHOLE: 221},
        ROADSCENE_LAYOUT,
        "U2Fusion, TPAMI 2020; repository hanna-xu/RoadScene",
        "see the repository; made from FLIR's video",
    ),
    Dataset(
        "tno",
        "TNO Image Fusion Dataset, military scenes, gray in both bands",
        _find_tno,
        {WHOLE: 0},
        TNO_LAYOUT,
        "Toet, TNO Image Fusion Dataset, 2014; figshare 1008029",
        "research use with reference, see figshare",
    ),
    Dataset(
        "llvip",
        "LLVIP, pedestrians in low light",
        _parts(_LOW_LIGHT, LLVIP_LAYOUT),
        {"train": 12025, "test": 3463},
        LLVIP_LAYOUT,
        "LLVIP, ICCV workshops 2021; repository bupt-ai-cz/LLVIP",
        "non-commercial, terms in the repository",
        (1024, 1280),
        box_classes=("person",),
        boxed=True,
    ),
    Dataset(
        "folders",
        "any pairs of yours",
        _find_folders,
        {},
        FOLDERS_LAYOUT,
        "your own",
        "your own",
        any_extras=True,
    ),
)

PUBLIC: dict[str, Dataset] = {dataset.name: dataset for dataset in _SETS}


def named(name: str) -> Dataset:
    """A set by name. Raises ConfigError with the list of names."""
    if name not in PUBLIC:
        raise ConfigError(f"no data set {name!r}: choose one of {', '.join(PUBLIC)}")
    return PUBLIC[name]


def contents(dataset: Dataset) -> str:
    """Splits, size and classes of a set on one line."""
    parts = [f"{name} {count or 'any'}" for name, count in dataset.splits.items()]
    size = f"{dataset.size[0]}x{dataset.size[1]}" if dataset.size else "many sizes"
    facts = [", ".join(parts) or "any splits", size]
    if dataset.classes:
        facts.append(f"{len(dataset.classes)} classes")
    if dataset.box_classes:
        facts.append(f"boxes of {len(dataset.box_classes)} classes")
    return "; ".join(facts)


def describe(dataset: Dataset) -> str:
    """Everything known of a set, for people."""
    lines = [
        f"{dataset.name}: {dataset.title}",
        f"  pairs    {contents(dataset)}",
        f"  layout   {dataset.layout}",
        f"  source   {dataset.source}",
        f"  licence  {dataset.licence}",
    ]
    if dataset.classes:
        rows = zip(dataset.classes.names, dataset.classes.palette, strict=True)
        lines.append(f"  labels   {dataset.classes.values()}")
        lines += [f"    {i:3} {name:15} {colour}" for i, (name, colour) in enumerate(rows)]
    if dataset.box_classes:
        lines.append(
            "  boxes    " + ", ".join(f"{i} {n}" for i, n in enumerate(dataset.box_classes))
        )
    return "\n".join(lines)
