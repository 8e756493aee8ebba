from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxfuse.config import SourceConfig
from jaxfuse.data.folders import FolderPairs, open_folders, parse_split, read_boxes
from jaxfuse.data.pairs import DataError


def put(path: Path, value: int = 100, size: tuple[int, int] = (6, 9), mode: str = "L") -> Path:
    """A small image; its pixels differ, so that it is no flat picture. size: height, width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    h, w = size
    pixels = (value + np.arange(h * w).reshape(h, w)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three complete pairs, written out of order."""
    for stem, value in (("c", 30), ("a", 10), ("b.2", 20)):
        put(tmp_path / "set" / "ir" / f"{stem}.png", value)
        put(tmp_path / "set" / "vi" / f"{stem}.bmp", value + 100, mode="RGB")
    return tmp_path / "set"


def test_pairs_are_matched_by_stem_and_sorted(root: Path) -> None:
    pairs = open_folders(str(root))
    assert len(pairs) == 3
    assert [pairs.stem(i) for i in range(3)] == ["a", "b.2", "c"]
    for i, value in enumerate((10, 20, 30)):
        pair = pairs[i]
        assert pair.stem == pairs.stem(i) and pairs.size(i) == (6, 9)
        assert pair.infrared.shape == (6, 9, 1) and pair.visible.shape == (6, 9, 3)
        assert pair.infrared.dtype == pair.visible.dtype == np.float32
        assert round(255 * float(pair.infrared[0, 0, 0])) == value
        assert round(255 * float(pair.visible[0, 0, 2])) == value + 100
        assert pair.labels is None and pair.boxes is None
    with pytest.raises(IndexError):
        pairs[3]


@pytest.mark.parametrize(
    ("infrared", "visible"),
    [("infrared", "visible"), ("Ir", "Vis"), ("IR", "VI"), ("thermal", "RGB"), ("lwir", "vi")],
)
def test_common_folder_names(root: Path, infrared: str, visible: str) -> None:
    (root / "ir").rename(root / "one")
    (root / "vi").rename(root / "two")
    (root / "one").rename(root / infrared)
    (root / "two").rename(root / visible)
    pairs = open_folders(str(root))
    assert len(pairs) == 3
    assert pairs.infrared[0].parent.name == infrared and pairs.visible[0].parent.name == visible


def test_two_given_folders(root: Path, tmp_path: Path) -> None:
    (root / "ir").rename(tmp_path / "cam1")
    (root / "vi").rename(tmp_path / "cam2")
    pairs = open_folders(infrared=str(tmp_path / "cam1"), visible=str(tmp_path / "cam2"))
    assert pairs.stems == ("a", "b.2", "c")
    assert pairs[0].infrared[0, 0, 0] < pairs[0].visible[0, 0, 0]


def test_opening_by_config(root: Path) -> None:
    (root / "split.txt").write_text("c\n")
    source = SourceConfig(kind="folders", root=str(root), split=str(root / "split.txt"))
    assert FolderPairs.open(source).stems == ("c",)


def test_pickled_pairs_read_the_same(root: Path) -> None:
    pairs = open_folders(str(root), stretch="minmax")
    again = pickle.loads(pickle.dumps(pairs))
    assert again == pairs
    np.testing.assert_array_equal(again[1].infrared, pairs[1].infrared)
    assert pairs[1].infrared.min() == 0 and pairs[1].infrared.max() == 1


def test_endings_in_capitals(root: Path) -> None:
    put(root / "ir" / "D.PNG")
    put(root / "vi" / "D.Jpg", mode="RGB")
    assert open_folders(str(root)).stems == ("D", "a", "b.2", "c")


def test_litter_is_passed_over(root: Path) -> None:
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._a.png", "notes.txt"):
        (root / "ir" / name).write_bytes(b"x")
    (root / "vi" / "more").mkdir()
    assert open_folders(str(root)).stems == ("a", "b.2", "c")


# Splits


def test_a_split_chooses(root: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.txt"
    split.write_text("\ufeff# chosen\n\nc.png\n  a   # the first\r\n#b.2\n", encoding="utf8")
    put(root / "ir" / "alone.png")  # Not chosen, so it needs no partner,
    put(root / "ir" / "twin.png")
    put(root / "ir" / "twin.jpg")  # nor to be the only one of its stem.
    put(root / "vi" / "twin.jpg")
    assert open_folders(str(root), split=str(split)).stems == ("a", "c")


def test_stems_may_hold_dots_and_hashes(root: Path, tmp_path: Path) -> None:
    put(root / "ir" / "n#1.png")
    put(root / "vi" / "n#1.png")
    (tmp_path / "split.txt").write_text("b.2\nn#1\n")
    assert open_folders(str(root), split=str(tmp_path / "split.txt")).stems == ("b.2", "n#1")


def test_a_split_that_names_what_is_not_there(root: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.txt"
    split.write_text("a\nzebra\n")
    with pytest.raises(DataError, match=r"split\.txt: 1 stem without .*: zebra: remove them"):
        open_folders(str(root), split=str(split))
    split.write_text("".join(f"x{i}\n" for i in range(9)))
    with pytest.raises(DataError, match=r"9 stems .*x0, x1, x2, x3, x4 and 4 more"):
        open_folders(str(root), split=str(split))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"split\.txt: names no stem"),
        (b"# a\n\n", r"split\.txt: names no stem"),
        (b"a\nc\na.png\n", r"split\.txt: line 3: 'a' again, first in line 1"),
        (b"a\nvi/c.png\n", r"split\.txt: line 2: 'vi/c\.png': give stems, no folders"),
        (b"a\n\xff\xfe\n", r"split\.txt: not a UTF-8 text"),
    ],
)
def test_bad_splits_are_named(root: Path, tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "split.txt").write_bytes(text)
    with pytest.raises(DataError, match=message):
        open_folders(str(root), split=str(tmp_path / "split.txt"))


def test_a_split_that_is_missing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: cannot be read \(No such file"):
        open_folders(str(root), split=str(tmp_path / "none.txt"))


def test_all_problems_of_a_split_are_collected(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("a\nb/c\na\nd\n")
    stems, problems = parse_split(tmp_path / "s.txt")
    assert stems == ("a", "d")
    assert [problem.value.split(":")[0] for problem in problems] == ["line 2", "line 3"]


# Folders that cannot be used


def test_missing_root_and_folders(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        open_folders(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no infrared folder given: give a root, or both"):
        open_folders(visible=str(root / "vi"))
    with pytest.raises(DataError, match=r"nowhere: no such folder \(visible\)"):
        open_folders(infrared=str(root / "ir"), visible=str(tmp_path / "nowhere"))
    (root / "vi").rename(root / "colour")
    message = r"set: no visible folder \(looked for vi/, vis/, .*; there is colour, ir\): name it"
    with pytest.raises(DataError, match=message):
        open_folders(str(root))


def test_ambiguous_folders(root: Path) -> None:
    shutil.copytree(root / "ir", root / "Infrared")
    with pytest.raises(DataError, match=r"Infrared and ir could both be the infrared folder"):
        open_folders(str(root))


def test_one_folder_for_both(root: Path) -> None:
    with pytest.raises(DataError, match=r"ir: is both infrared and visible: give two folders"):
        open_folders(infrared=str(root / "ir"), visible=str(root / "vi" / ".." / "ir"))


def test_empty_folders_tell_what_they_hold(root: Path) -> None:
    for path in (root / "ir").iterdir():
        path.unlink()
    (root / "ir" / "train").mkdir()
    (root / "ir" / "a.raw").write_bytes(b"x")
    message = r"ir: no images \(1 other files, 1 subfolders\): put the infrared images directly"
    with pytest.raises(DataError, match=message):
        open_folders(str(root))


def test_unpaired_files(root: Path) -> None:
    put(root / "ir" / "x.png")
    put(root / "vi" / "y.png")
    with pytest.raises(
        DataError, match=r"set: 2 files without a partner: .*x\.png, .*y\.png: stems"
    ):
        open_folders(str(root))
    for i in range(6):
        put(root / "vi" / f"z{i}.png")
    with pytest.raises(DataError, match=r"8 files without a partner: .* and 3 more: stems must"):
        open_folders(str(root))


@pytest.mark.parametrize("folder", ["ir", "vi"])
def test_duplicate_stems(root: Path, folder: str) -> None:
    put(root / folder / "a.jpg")
    with pytest.raises(DataError, match=rf"{folder}: stem 'a' twice: a\.\w+, a\.\w+: keep one"):
        open_folders(str(root))


def test_unequal_sizes_name_both_files(root: Path) -> None:
    put(root / "ir" / "c.png", size=(7, 9))
    pairs = open_folders(str(root))
    message = r"ir.c\.png: 7 x 9 pixels \(height x width\), but .*vi.c\.bmp has 6 x 9: register"
    with pytest.raises(DataError, match=message):
        pairs[2]
    assert pairs[1].stem == "b.2"


def test_a_broken_file_is_named_at_reading(root: Path) -> None:
    whole = (root / "ir" / "a.png").read_bytes()
    (root / "ir" / "a.png").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"a\.png: truncated"):
        open_folders(str(root))[0]


# Labels and boxes


def test_labels_are_read(root: Path) -> None:
    values = np.zeros((6, 9), np.uint8)
    values[1], values[2] = 3, 255
    (root / "Labels").mkdir()
    Image.fromarray(values).save(root / "Labels" / "a.png")
    pairs = open_folders(str(root))
    labels = pairs[0].labels
    assert labels is not None and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, values)
    assert pairs[1].labels is None
    Image.fromarray(values[:5]).save(root / "Labels" / "a.png")
    with pytest.raises(DataError, match=r"Labels.a\.png: 5 x 9 pixels .* has 6 x 9"):
        pairs[0]


def test_boxes_are_read(root: Path) -> None:
    (root / "boxes").mkdir()
    (root / "boxes" / "a.txt").write_text("2  0.5  0.5  0.5 1.0  \n\n0 0.25 0.25 0.5 0.5")
    (root / "boxes" / "c.txt").write_text("")
    pairs = open_folders(str(root))
    boxes = pairs[0].boxes
    assert boxes is not None and boxes.dtype == np.float32
    # Image of 6 x 9 (height x width).
    expected = [[2.25, 0, 6.75, 6, 2], [0, 0, 4.5, 3, 0]]
    np.testing.assert_allclose(boxes, expected, rtol=1e-6)
    assert pairs[1].boxes is None
    empty = pairs[2].boxes
    assert empty is not None and empty.shape == (0, 5) and empty.dtype == np.float32


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", r"line 2: '0 0\.5 0\.5 0\.5': write five numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", r"line 2: .*: write five numbers"),
        ("cat 0.5 0.5 0.5 0.5", r"line 2: 'cat .*: write five numbers"),
        ("1.5 0.5 0.5 0.5 0.5", r"line 2: .*: the class must be 0, 1, 2"),
        ("-1 0.5 0.5 0.5 0.5", r"line 2: .*: the class must be"),
        ("nan 0.5 0.5 0.5 0.5", r"line 2: .*: the class must be"),
        ("0 0.5 0.5 0 0.5", r"line 2: .*: width and height must be positive"),
        ("0 nan 0.5 0.5 0.5", r"line 2: .*: width and height must be positive"),
        ("0 0.9 0.5 0.5 0.5", r"pixels 65\.0 25\.0 115\.0 75\.0 of 100 x 100: keep boxes inside"),
        ("0 50 50 20 20", r"pixels 4000\.0 .* of 100 x 100: keep boxes inside"),
    ],
)
def test_bad_boxes_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n" + line + "\n")
    with pytest.raises(DataError, match=r"a\.txt: .*" + message):
        read_boxes(tmp_path / "a.txt", 100, 100)


def test_a_box_may_leave_the_image_by_a_rounding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 0.5 0.5 1.01 1\n")
    boxes = read_boxes(tmp_path / "a.txt", 100, 100)
    np.testing.assert_allclose(boxes, [[-0.5, 0, 100.5, 100, 0]], atol=1e-4)


# The real sets


@pytest.mark.parametrize(
    ("name", "count", "splits"),
    [
        ("roadscene", 171, {"train": 149, "val": 22}),
        ("msrs", 181, {"train": 121, "val": 60}),
        ("tno", 17, {}),
    ],
)
def test_real_sets(shared: Path, name: str, count: int, splits: dict[str, int]) -> None:
    data = shared / "data"
    if not (data / name).is_dir():
        pytest.skip(f"no real pairs in {data / name}")
    pairs = open_folders(str(data / name))
    assert len(pairs) == count and list(pairs.stems) == sorted(pairs.stems)
    seen: list[str] = []
    for part, number in splits.items():
        chosen = open_folders(str(data / name), split=str(data / "splits" / f"{name}_{part}.txt"))
        assert len(chosen) == number
        seen += chosen.stems
    if splits:
        assert sorted(seen) == list(pairs.stems)
    for index in (0, count // 2, count - 1):
        pair = pairs[index]
        assert pair.visible.shape[:2] == pair.infrared.shape[:2] == pairs.size(index)
        with Image.open(pairs.visible[index]) as image:
            expected = np.asarray(image.convert("RGB"), np.float32) / 255
        assert np.abs(pair.visible - expected).max() <= 1 / 255
        with Image.open(pairs.infrared[index]) as image:
            expected = np.asarray(image.convert("L"), np.float32)[..., None] / 255
        assert np.abs(pair.infrared - expected).max() <= 1 / 255
        assert (pair.boxes is not None) == (name == "msrs")


def test_real_boxes(shared: Path) -> None:
    root = shared / "data" / "msrs"
    if not root.is_dir():
        pytest.skip(f"no real pairs in {root}")
    boxes = [read_boxes(path, 480, 640) for path in sorted((root / "boxes").glob("*.txt"))]
    assert len(boxes) == 181
    assert sum(map(len, boxes)) == 744
    assert any(len(found) == 0 for found in boxes)
    every = np.concatenate(boxes)
    assert set(every[:, 4]) == {0, 1, 2}
    assert (every[:, :2] < every[:, 2:4]).all()
