from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxfuse.data.builders.classes import FMB, numbered
from jaxfuse.data.check import Problem, Report, check_folders
from jaxfuse.data.folders import open_folders
from jaxfuse.data.pairs import DataError

H, W = 12, 16


def picture(seed: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (H, W, *channels)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    """Any depth; colour pixels are RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, stem in enumerate(("a", "b", "c")):
        save(tmp_path / "ir" / f"{stem}.png", picture(i))
        save(tmp_path / "vi" / f"{stem}.png", picture(10 + i, 3))
    return tmp_path


def about(problems: list[Problem], name: str) -> str:
    """The lines that speak of a file, without its folder."""
    found = [problem for problem in problems if Path(problem.file).name == name]
    return "\n".join(f"{name}: {problem.value}: {problem.remedy}" for problem in found)


def test_a_good_set(root: Path) -> None:
    report = check_folders(str(root))
    assert report.ok and report.pairs == 3
    assert report.errors == [] and report.warnings == []
    assert report.summary["sizes"] == {f"{H}x{W}": 3}
    infrared, visible = report.summary["infrared"], report.summary["visible"]
    assert infrared["files"] == visible["files"] == 3
    assert infrared["bits"] == visible["bits"] == {"8": 3}
    assert infrared["channels"] == {"1": 3} and visible["channels"] == {"3": 3}
    expected = np.mean([picture(10 + i, 3).mean() for i in range(3)])
    assert visible["mean"] == pytest.approx(expected)
    assert "labels" not in report.summary and "boxes" not in report.summary
    assert json.loads(json.dumps(report.summary)) == report.summary
    text = report.text()
    assert "3 pairs, 0 errors, 0 warnings" in text
    assert f"{H}x{W} (3)" in text and f"mean level {expected:.1f} of 255" in text


def test_every_problem_at_once(root: Path) -> None:
    ir, vi = root / "ir", root / "vi"
    for i, stem in enumerate(("cut", "nan", "pseudo", "size", "black", "deep", "range")):
        save(ir / f"{stem}.png", picture(20 + i))
        save(vi / f"{stem}.png", picture(30 + i, 3))
    whole = (vi / "cut.png").read_bytes()
    (vi / "cut.png").write_bytes(whole[: len(whole) // 2])
    (ir / "nan.png").unlink()
    floats = np.full((H, W), 0.5, np.float32)
    floats[0, :3] = np.nan
    save(ir / "nan.tif", floats)
    save(ir / "pseudo.png", picture(40, 3))
    save(ir / "size.png", picture(41)[:-1])
    save(vi / "black.png", np.zeros((H, W, 3), np.uint8))
    save(ir / "deep.png", (7000 + picture(42).astype(np.uint16)))
    (ir / "range.png").unlink()
    save(ir / "range.tif", np.linspace(0, 300, H * W, dtype=np.float32).reshape(H, W))
    save(ir / "alone.png", picture(43))
    save(vi / "other.png", picture(44, 3))
    save(vi / "a.jpg", picture(45, 3))
    (ir / "notes.raw").write_bytes(b"x")
    (vi / "nested").mkdir()

    report = check_folders(str(root))
    errors, warnings = report.errors, report.warnings
    assert not report.ok and report.pairs == 10
    assert "truncated" in about(errors, "cut.png")
    assert "nan.tif: 3 pixel values are NaN or infinite" in about(errors, "nan.tif")
    assert "pseudo-colour infrared" in about(errors, "pseudo.png")
    size = next(str(problem) for problem in errors if "size.png" in problem.file)
    assert f"{H - 1} x {W} pixels" in size and f"{H} x {W}: register" in size
    assert "float values from 0 to 300" in about(errors, "range.tif")
    assert "has no partner" in about(errors, "alone.png")
    assert "has no partner" in about(errors, "other.png")
    assert "stem 'a' also has a.png: keep one" in about(errors, "a.jpg")
    assert "every pixel lies in 0..0 of 0..255 (all black)" in about(errors, "black.png")
    assert len(errors) == 9
    deep = picture(42)
    expected = f"16-bit values span only {7000 + int(deep.min())}..{7000 + int(deep.max())}"
    assert expected in about(warnings, "deep.png")
    assert "--infrared-stretch minmax" in about(warnings, "deep.png")
    assert "ending '.raw' is not read in ir/" in about(warnings, "notes.raw")
    assert "1 subfolders are not looked into" in about(warnings, "vi")
    assert len(warnings) == 3
    assert report.summary["infrared"]["bits"] == {"16": 1, "8": 8}
    assert report.summary["infrared"]["files"] == 11
    text = report.text()
    assert text.count("\nerror: ") == 9 and text.count("\nwarning: ") == 3
    assert str(root / "ir" / "nan.tif") in text


def test_what_the_check_calls_good_can_be_opened_and_else_not(root: Path) -> None:
    assert check_folders(str(root)).ok
    assert len(open_folders(str(root))) == 3
    save(root / "vi" / "d.png", picture(50, 3))
    assert not check_folders(str(root)).ok
    with pytest.raises(DataError, match=r"d\.png"):
        open_folders(str(root))
    (root / "split.txt").write_text("a\nb\n")
    report = check_folders(str(root), split=str(root / "split.txt"))
    assert report.ok and report.pairs == 2
    assert "has no partner" in about(report.warnings, "d.png")
    assert report.summary["visible"]["files"] == 2
    assert open_folders(str(root), split=str(root / "split.txt")).stems == ("a", "b")


def test_split_errors_all_at_once(root: Path) -> None:
    split = root / "split.txt"
    split.write_text("a\nx\nvi/b\na\nalone\n")
    save(root / "ir" / "alone.png", picture(60))
    report = check_folders(str(root), split=str(split))
    text = about(report.errors, "split.txt")
    assert "stem 'x' has no infrared and no visible file" in text
    assert "stem 'alone' has no visible file" in text
    assert "b': give stems, no folders" in text
    assert "line 4: 'a' again, first in line 1" in text
    assert len(report.errors) == 4 and report.pairs == 1


def test_missing_folders_are_all_named(tmp_path: Path) -> None:
    report = check_folders(str(tmp_path / "none"))
    assert [problem.value for problem in report.errors] == ["no such folder"]
    assert report.pairs == 0 and report.summary["infrared"]["mean"] is None
    (tmp_path / "colour").mkdir()
    report = check_folders(str(tmp_path))
    assert len(report.errors) == 2
    assert "no infrared folder" in report.text() and "no visible folder" in report.text()
    for name in ("ir", "vi"):
        (tmp_path / name).mkdir()
    report = check_folders(str(tmp_path))
    assert [Path(problem.file).name for problem in report.errors] == ["ir", "vi"]
    assert all(problem.value.startswith("no images") for problem in report.errors)


def test_one_empty_folder_does_not_hide_the_other_one(root: Path) -> None:
    for path in (root / "ir").iterdir():
        path.unlink()
    (root / "vi" / "b.png").write_bytes(b"")
    report = check_folders(str(root))
    assert len(report.errors) == 2
    assert "no images" in about(report.errors, "ir")
    assert "an empty file (0 bytes)" in about(report.errors, "b.png")


def test_labels_and_boxes(root: Path) -> None:
    labels = np.zeros((H, W), np.uint8)
    labels[0], labels[1] = 4, 255
    save(root / "labels" / "a.png", labels)
    labels[2] = 9
    save(root / "labels" / "b.png", labels)
    save(root / "labels" / "c.png", labels[:-1])
    save(root / "labels" / "stray.png", labels)
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (root / "boxes").mkdir()
    (root / "boxes" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n2 0.5 0.5 0.2 0.2\n")
    (root / "boxes" / "b.txt").write_text("7 0.5 0.5 0.1 0.1\n")

    report = check_folders(str(root), classes=numbered(5))
    wrong = f"b.png: labels 9 in {W} pixels: classes has values 0..4, and 255 = ignore"
    assert wrong in about(report.errors, "b.png")
    both = about(report.errors, "c.png")
    assert f"{H - 1} x {W} pixels" in both and "labels 9" in both
    assert "class 7: with 5 classes they are 0..4" in about(report.errors, "b.txt")
    assert len(report.errors) == 4
    assert "belongs to no image" in about(report.warnings, "stray.png")
    assert "ending '.txt' is not read in labels/" in about(report.warnings, "a.txt")
    assert "no boxes for 1 of 3 pairs, e.g. 'c'" in about(report.warnings, "boxes")
    assert len(report.warnings) == 3
    assert report.summary["labels"] == {"files": 3, "values": [0, 4, 9, 255]}
    boxes = {"files": 2, "count": 3, "classes": {"0": 1, "2": 1, "7": 1}}
    assert report.summary["boxes"] == boxes
    text = report.text()
    assert "labels (3 files): values 0, 4, 9, 255" in text
    assert "3 boxes, class 0 (1), class 2 (1), class 7 (1)" in text

    (root / "boxes" / "b.txt").write_text("0 0.9 0.5 0.9 0.1\n")
    (root / "labels" / "c.png").unlink()
    report = check_folders(str(root))
    assert len(report.errors) == 1
    assert "keep boxes inside the image" in about(report.errors, "b.txt")


def test_labels_are_those_of_the_list_as_files_hold_them(root: Path) -> None:
    """FMB counts from 1 and ignores 0."""
    labels = np.arange(H * W).reshape(H, W) % 15
    save(root / "labels" / "a.png", labels.astype(np.uint8))
    save(root / "labels" / "b.png", np.zeros((H, W), np.uint8))
    save(root / "labels" / "c.png", np.full((H, W), 15, np.uint8))
    report = check_folders(str(root), classes=FMB)
    assert about(report.errors, "a.png") == ""
    assert "every pixel is ignored (values 0)" in about(report.errors, "b.png")
    assert f"labels 15 in {H * W} pixels: fmb has values 1..14" in about(report.errors, "c.png")
    assert len(report.errors) == 2 and report.summary["labels"]["values"] == [*range(16)]
    assert not check_folders(str(root), classes=numbered(14)).ok
    colours = np.array(FMB.palette, np.uint8)[labels % 14]
    save(root / "labels" / "a.png", colours)
    assert "its 14 colours are those of fmb" in about(
        check_folders(str(root), classes=FMB).errors, "a.png"
    )


def test_flat_images(root: Path) -> None:
    save(root / "vi" / "a.png", np.full((H, W, 3), 200, np.uint8))
    nearly = np.zeros((H, W), np.uint8)
    nearly[0, 0] = 2
    save(root / "ir" / "b.png", nearly)
    save(root / "ir" / "c.png", np.zeros((H, W), np.uint16))
    report = check_folders(str(root))
    assert "every pixel lies in 200..200 of 0..255: record" in about(report.warnings, "a.png")
    assert "0..2 of 0..255 (all black)" in about(report.errors, "b.png")
    assert "0..0 of 0..65535 (all black)" in about(report.errors, "c.png")
    assert (len(report.errors), len(report.warnings)) == (2, 1)


@pytest.mark.parametrize(("top", "warned"), [(16383, True), (16384, False), (65535, False)])
def test_16_bit_range(root: Path, top: int, warned: bool) -> None:
    pixels = np.linspace(0, top, H * W).reshape(H, W).astype(np.uint16)
    save(root / "ir" / "a.png", pixels)
    save(root / "vi" / "a.png", np.stack([pixels] * 3, axis=-1))
    warnings = check_folders(str(root)).warnings
    assert len(warnings) == 2 * warned
    assert all(f"0..{top}" in problem.value for problem in warnings)
    assert sum("stretch" in problem.remedy for problem in warnings) == warned


def test_threads_change_nothing(root: Path) -> None:
    save(root / "ir" / "d.png", picture(70, 3))
    (root / "vi" / "c.png").write_bytes(b"no image")
    assert check_folders(str(root), threads=1) == check_folders(str(root), threads=4)


def test_long_reports_can_be_cut() -> None:
    warnings = [Problem(f"{i}.png", "odd", "mend it") for i in range(30)]
    summary = {"sizes": {}, "infrared": {"files": 0}, "visible": {"files": 0}}
    report = Report(0, [Problem("x.png", "bad", "do")], warnings, summary)
    assert report.text().count("warning: ") == 30
    short = report.text(limit=4)
    assert short.count("warning: ") == 5
    assert "warning: ... and 26 more files: mend it" in short
    assert "error: x.png: bad: do" in short


@pytest.mark.parametrize(("name", "count"), [("roadscene", 171), ("msrs", 181), ("tno", 17)])
def test_real_sets_are_good(shared: Path, name: str, count: int) -> None:
    root = shared / "data" / name
    if not root.is_dir():
        pytest.skip(f"no real pairs in {root}")
    report = check_folders(str(root))
    assert report.pairs == count
    assert report.errors == [] and report.warnings == []
    assert sum(report.summary["sizes"].values()) == count
    assert report.summary["infrared"]["bits"] == {"8": count}
    channels = "3" if name == "tno" else "1"
    assert report.summary["infrared"]["channels"] == {channels: count}
    if name == "msrs":
        assert report.summary["sizes"] == {"480x640": 181}
        expected = {"files": 181, "count": 744, "classes": {"0": 470, "1": 60, "2": 214}}
        assert report.summary["boxes"] == expected


def test_checking_needs_no_jax(
    root: Path, fresh_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = (
        "import sys; from jaxfuse.data.check import check_folders; "
        f"print(check_folders({str(root)!r}).pairs, 'jax' in sys.modules)"
    )
    done = fresh_python("-c", code)
    assert done.stdout.split() == ["3", "False"], done.stderr
