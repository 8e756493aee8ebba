"""Class lists of labelled sets, and label maps checked against them.

A label map is a file of the set's own values or colours; what comes out is int32 with 0..C-1 and
255 = ignore. Nothing is guessed: a map that does not fit its list is an error with what was found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from jaxfuse.data.headers import FileError
from jaxfuse.data.images import read_mask
from jaxfuse.data.pairs import IGNORE

Coding = Literal["index", "rgb"]
"""What a label file stores: class indices, or the colours of the class list."""

_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class ClassList:
    """The classes of a labelled set, in order."""

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    """Red, green, blue of each class, as the set's own colour pictures show it."""
    first: int = 0
    """The value that stands for class 0 in the set's files; the others follow."""
    unlabelled: tuple[int, int, int] | None = None
    """The colour of pixels that belong to no class, where the set has such."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ignored(self) -> tuple[int, ...]:
        """Values in files that belong to no class."""
        return (*range(self.first), IGNORE)

    def values(self) -> str:
        """What may stand in a file, for people."""
        last = self.first + len(self) - 1
        void = " and ".join(map(str, self.ignored))
        return f"{self.name} has values {self.first}..{last}, and {void} = ignore"


_STREET_NAMES = (
    "unlabelled",
    "car",
    "person",
    "bike",
    "curve",
    "car stop",
    "guardrail",
    "colour cone",
    "bump",
)
_STREET_COLOURS = (
    (0, 0, 0),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
    (0, 0, 192),
    (128, 128, 0),
    (64, 64, 128),
    (192, 128, 128),
    (192, 64, 0),
)

MFNET = ClassList("mfnet", _STREET_NAMES, _STREET_COLOURS)
"""Nine classes; "unlabelled" is one of them, as in the set's published scores."""

MSRS = ClassList("msrs", _STREET_NAMES, _STREET_COLOURS)
"""MSRS carries MFNet's labels."""

FMB = ClassList(
    "fmb",
    (
        "road",
        "sidewalk",
        "building",
        "traffic light",
        "traffic sign",
        "vegetation",
        "sky",
        "person",
        "car",
        "truck",
        "bus",
        "motorcycle",
        "bicycle",
        "pole",
    ),
    (
        (179, 228, 228),
        (181, 57, 133),
        (67, 162, 177),
        (200, 178, 50),
        (132, 45, 199),
        (66, 172, 84),
        (179, 73, 79),
        (76, 99, 166),
        (66, 121, 253),
        (137, 165, 91),
        (155, 97, 152),
        (105, 153, 140),
        (222, 215, 158),
        (135, 113, 90),
    ),
    first=1,
    unlabelled=(0, 0, 0),
)
"""Fourteen classes; 0 in the files is unlabelled and ignored."""

CLASS_LISTS: dict[str, ClassList] = {"mfnet": MFNET, "msrs": MSRS, "fmb": FMB}


def plain_list(name: str, names: Iterable[str]) -> ClassList:
    """A list of one's own: class i is the i-th name, its colour a fixed function of i."""
    names = tuple(names)
    return ClassList(name, names, tuple(_colour(i) for i in range(len(names))))


def numbered(count: int) -> ClassList:
    """A list of so many classes without names of their own."""
    return plain_list("classes", [f"class {i}" for i in range(count)])


def _colour(index: int) -> tuple[int, int, int]:
    """Bits of the index spread over three channels, high bits first: 256 different colours."""
    red = green = blue = 0
    for bit in range(3):
        part = index >> (3 * bit)
        red |= (part & 1) << (7 - bit)
        green |= (part >> 1 & 1) << (7 - bit)
        blue |= (part >> 2 & 1) << (7 - bit)
    return red, green, blue


def read_class_list(where: str) -> ClassList:
    """A known list by name, or a text file with one class name a line, in order of the values."""
    if where in CLASS_LISTS:
        return CLASS_LISTS[where]
    path = Path(where)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a UTF-8 text"
        known = ", ".join(CLASS_LISTS)
        remedy = f"give a text file with one class name a line, or one of {known}"
        raise FileError(where, f"cannot be read ({why})", remedy) from None
    names = [line.strip() for line in lines if line.strip()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or repeated or len(names) > IGNORE:
        found = "names no class" if not names else f"{len(names)} classes"
        if repeated:
            found = f"names {repeated[0]!r} twice"
        raise FileError(where, found, "write 1 to 255 different class names, one a line")
    return plain_list(path.stem, names)


def _codes(colours: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) to one int32 per colour."""
    red, green, blue = (colours[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def _known(classes: ClassList) -> dict[int, int]:
    """Code of each colour of the list -> label."""
    table = {} if classes.unlabelled is None else {_code(classes.unlabelled): IGNORE}
    return {_code(colour): label for label, colour in enumerate(classes.palette)} | table


def _code(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _shown(values: np.ndarray) -> str:
    text = ", ".join(map(str, values[:_SHOWN].tolist()))
    return text + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")


def _colour_mask(mask: np.ndarray, file: str | Path) -> FileError:
    """What to say of a colour picture where class indices are due."""
    codes = np.unique(_codes(mask))
    gray = np.array_equal(mask[..., 0], mask[..., 1]) and np.array_equal(mask[..., 0], mask[..., 2])
    fitting = [
        name for name, known in CLASS_LISTS.items() if set(codes.tolist()) <= _known(known).keys()
    ]
    if gray and len(codes) > 1:
        value = f"an index mask stored in three equal channels (values {_shown(np.unique(mask))})"
        return FileError(file, value, "save it with one channel")
    if fitting:
        value = (
            f"a colour mask (RGB); its {len(codes)} colours are those of {' and '.join(fitting)}"
        )
        remedy = (
            "save class indices in one channel, or read it as such: label_coding rgb of a public "
            "set, `jaxfuse data prepare folders --label-coding rgb` for folders of yours"
        )
        return FileError(file, value, remedy)
    value = f"a colour mask (RGB) of {len(codes)} colours that fit no known class list"
    return FileError(file, value, "save class indices in one channel, 255 = ignore")


def from_colours(mask: np.ndarray, classes: ClassList, file: str | Path) -> np.ndarray:
    """int32 (h, w) labels of a uint8 (h, w, 3) picture in the list's colours.

    Raises FileError for class indices, and for a colour that is not in the list: no nearest colour
    is taken.
    """
    if mask.ndim != 3:
        value = f"class indices ({_shown(np.unique(mask))}) in one channel, where colours are due"
        raise FileError(file, value, "read it with label coding index")
    known = _known(classes)
    codes, inverse = np.unique(_codes(mask), return_inverse=True)
    strange = [code for code in codes.tolist() if code not in known]
    if strange:
        count = int(np.isin(_codes(mask), strange).sum())
        code = strange[0]
        example = (code >> 16, code >> 8 & 255, code & 255)
        value = (
            f"{len(strange)} of {len(codes)} colours, in {count} pixels, are not in the palette "
            f"of {classes.name}, e.g. {example}"
        )
        remedy = "give the mask as published, without interpolation or JPEG, or another class list"
        raise FileError(file, value, remedy)
    table = np.array([known[code] for code in codes.tolist()], np.int32)
    return table[inverse].reshape(mask.shape[:2])


def check_labels(
    labels: np.ndarray,
    classes: ClassList | None,
    file: str | Path,
    size: tuple[int, int] | None = None,
    coding: Coding = "index",
) -> np.ndarray:
    """int32 (h, w) labels 0..C-1 and 255 = ignore, from what a label file stores.

    labels: integers (h, w), or uint8 (h, w, 3) colours. classes: None takes any value. size: that
    of the image, height and width. Raises FileError, naming the file and what was found, for a map
    of another size, colours where indices are due and the other way round, values or colours that
    are not in the list, and a map in which every pixel is ignored.
    """
    if size is not None and labels.shape[:2] != tuple(size):
        (h, w), (height, width) = labels.shape[:2], size
        value = f"{h} x {w} pixels (height x width), but its image has {height} x {width}"
        remedy = "save the label map at the image's size, without interpolation"
        raise FileError(file, value, remedy)
    if coding == "rgb":
        if classes is None:
            raise FileError(
                file,
                "label coding rgb without a class list",
                "prepare the set with one: jaxfuse data prepare folders --classes FILE",
            )
        found = from_colours(labels, classes, file)
    elif labels.ndim == 3:
        raise _colour_mask(labels, file)
    else:
        found = _from_values(labels, classes, file)
    if (found == IGNORE).all():
        values = _shown(np.unique(labels if labels.ndim == 2 else _codes(labels)))
        value = f"every pixel is ignored (values {values})"
        raise FileError(file, value, "label it, or leave the pair out by a split")
    return found


def _from_values(labels: np.ndarray, classes: ClassList | None, file: str | Path) -> np.ndarray:
    if classes is None:
        return labels.astype(np.int32)
    table = np.full(IGNORE + 1, -1, np.int32)
    table[list(classes.ignored)] = IGNORE
    table[classes.first : classes.first + len(classes)] = np.arange(len(classes))
    values = np.unique(labels)
    inside = (values >= 0) & (values <= IGNORE)
    wrong = values[~inside | (table[np.where(inside, values, 0)] < 0)]
    if len(wrong):
        count = int(np.isin(labels, wrong).sum())
        value = f"labels {_shown(wrong)} in {count} pixels"
        remedy = f"{classes.values()}: give labels of this set, or another class list"
        raise FileError(file, value, remedy)
    return table[labels]


def read_classes(
    path: str | Path,
    classes: ClassList | None,
    size: tuple[int, int] | None = None,
    coding: Coding = "index",
) -> np.ndarray:
    """A label file, read and checked: `read_mask`, then `check_labels`."""
    return check_labels(read_mask(path), classes, path, size, coding)
