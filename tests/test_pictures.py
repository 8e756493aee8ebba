"""Pictures: the right pixels in the right place, whole files or none, clear words for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxfuse.methods.external import Selection
from jaxfuse.report import pictures
from jaxfuse.report.pictures import PictureError

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def plain(colour: str, height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.float32(COLOURS[colour]), (height, width, 3))


def read(path: Path) -> np.ndarray:
    """RGB, 0..255."""
    image = cv2.imread(str(path))
    assert image is not None
    return image[..., ::-1]


def share(image: np.ndarray, colour: str) -> float:
    """Share of the pixels that have exactly this colour."""
    return float((image == 255 * np.array(COLOURS[colour])).all(-1).mean())


def columns_of(image: np.ndarray, colour: str) -> tuple[int, int]:
    found = (image == 255 * np.array(COLOURS[colour])).all(-1).any(0).nonzero()[0]
    return int(found[0]), int(found[-1])


def selection(count: int) -> Selection:
    """Red patches that become green; infrared is mid-grey."""
    size = 8
    return Selection(
        target_means=np.array([40.0, 50.0, 60.0]),
        candidates=90,
        stems=tuple(f"{i:03}" for i in range(count)),
        positions=np.zeros((count, 2), np.int32),
        distances=np.linspace(1, 9, count, dtype=np.float32),
        gamma=np.array([0.8, 1.0, 1.3], np.float32),
        reached=np.array([True, False, True]),
        before=np.array([30.0, 50.0, 70.0]),
        after=np.array([40.0, 50.0, 60.0]),
        original=np.stack([plain("red", size, size)] * count),
        visible=np.stack([plain("green", size, size)] * count),
        infrared=np.full((count, size, size, 1), 0.5, np.float32),
    )


def test_a_mosaic_has_every_image_in_its_place() -> None:
    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1) * np.ones((1, 2, 3, 1), np.float32)
    sheet = pictures.mosaic(images / 10, columns=3, gap=1)
    assert sheet.shape == (5, 11, 1)
    expected = np.ones((5, 11), np.float32)
    for i, (y, x) in enumerate([(0, 0), (0, 4), (0, 8), (3, 0), (3, 4)]):
        expected[y : y + 2, x : x + 3] = i / 10
    np.testing.assert_array_equal(sheet[..., 0], expected)


@pytest.mark.parametrize("count", [1, 3, 90])
def test_the_selection_is_shown_before_and_after(count: int, tmp_path: Path) -> None:
    pictures.save_selection(selection(count), tmp_path / "new" / "a.png")
    image = read(tmp_path / "new" / "a.png")
    assert share(image, "red") > 0.005 * min(count, 4)
    assert share(image, "green") == pytest.approx(share(image, "red"), rel=0.05)
    assert columns_of(image, "red")[1] < columns_of(image, "green")[0]
    grey = (image == 128).all(-1) | (image == 127).all(-1)
    assert grey.any(0).nonzero()[0].max() > columns_of(image, "green")[1]


def write_log(path: Path, records: list[dict], end: str = "") -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + end, encoding="utf8")
    return path


def record(step: int, stage: str = "fusion", **more: float | None) -> dict:
    return {"step": step, "stage": stage, "loss": 1.0 / step, **more}


def test_a_loss_curve_has_a_panel_for_each_stage(tmp_path: Path) -> None:
    records = [record(i, "reconstruction") for i in (1, 2, 3)]
    one = write_log(tmp_path / "one.jsonl", records)
    records += [record(4, validation_loss=0.5), record(5, validation_loss=None), record(6)]
    two = write_log(tmp_path / "two.jsonl", records, end='{"step": 7, "sta')
    assert pictures.read_log(two) == records
    for log in (one, two):
        pictures.save_loss_curve(log, log.with_suffix(".png"))
    first, second = read(tmp_path / "one.png"), read(tmp_path / "two.png")
    assert second.shape[1] == pytest.approx(2 * first.shape[1], abs=2)
    dot = np.array([0xC9, 0x77, 0x2C])  # the validation loss is drawn in the second panel only
    where = (second == dot).all(-1).any(0).nonzero()[0]
    assert len(where) and where.min() > first.shape[1]
    assert not (first == dot).all(-1).any()


def test_a_log_that_is_none_is_named(tmp_path: Path) -> None:
    for text, words in (
        ("", r"log\.jsonl: no records yet"),
        ('{"step": 1, "stage": "a", "loss": 1}\nrubbish\n', r"log\.jsonl: line 2 is no record"),
        ('{"loss": 1}\n', r"log\.jsonl: line 1 is no record"),
        ("[1]\n", r"log\.jsonl: line 1 is no record"),
    ):
        (tmp_path / "log.jsonl").write_text(text, encoding="utf8")
        with pytest.raises(PictureError, match=words):
            pictures.save_loss_curve(tmp_path / "log.jsonl", tmp_path / "loss.png")
    with pytest.raises(PictureError, match=r"absent: cannot be read \(No such file"):
        pictures.read_log(tmp_path / "absent")
    assert not (tmp_path / "loss.png").exists()


def test_a_comparison_has_a_row_for_each_scene(tmp_path: Path) -> None:
    grey = np.full((30, 40, 1), 0.25, np.float32)
    rows = [
        ("a", plain("red", 30, 40), grey, plain("green", 30, 40)),
        ("b", grey, grey, grey[..., 0]),
    ]
    sizes = []
    for count in (1, 2):
        pictures.save_comparison(rows[:count], tmp_path / "c.png")
        sizes.append(read(tmp_path / "c.png").shape[:2])
    image = read(tmp_path / "c.png")
    assert sizes[1][0] > 1.7 * sizes[0][0] and sizes[1][1] == sizes[0][1]
    assert 0.08 < share(image, "red") < 1 / 6
    assert share(image, "green") == pytest.approx(share(image, "red"), rel=0.05)
    assert columns_of(image, "red")[1] < columns_of(image, "green")[0]
    # 0.25 of the range, not of the image's own: a plain picture is not stretched.
    assert (image == 64).all(-1).mean() + (image == 63).all(-1).mean() > 0.3
    with pytest.raises(PictureError, match="no images to compare"):
        pictures.save_comparison([], tmp_path / "d.png")


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf8")
    rows = [("a", plain("red", 9, 9), plain("red", 9, 9), plain("red", 9, 9))]
    for target in (tmp_path / "taken.png", tmp_path / "file" / "a.png"):
        with pytest.raises(PictureError, match=rf"{target.name}: cannot be written \("):
            pictures.save_comparison(rows, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.png"]


def test_a_picture_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    rows = [("a", plain("red", 9, 9), plain("red", 9, 9), plain("red", 9, 9))]
    pictures.save_comparison(rows, path)
    before = path.read_bytes()

    def interrupted(figure: pictures.Figure, target: Path, **settings: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.Figure, "savefig", interrupted)
    with pytest.raises(
        PictureError, match=r"a\.png: cannot be written \(No space left on device\)"
    ):
        pictures.save_comparison(rows, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
