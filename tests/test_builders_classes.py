"""Class lists, and label maps that do not fit them: what was found is said."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_downloads
from jaxfuse.data.builders.classes import (
    CLASS_LISTS,
    FMB,
    MSRS,
    check_labels,
    from_colours,
    plain_list,
    read_class_list,
    read_classes,
)
from jaxfuse.data.pairs import DataError


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_a_list_has_a_colour_for_each_class_and_no_colour_twice(name: str) -> None:
    classes = CLASS_LISTS[name]
    colours = [*classes.palette] + ([classes.unlabelled] if classes.unlabelled else [])
    assert len(classes.names) == len(classes.palette) == len(set(classes.names))
    assert len(set(colours)) == len(colours)
    assert all(0 <= level <= 255 for colour in colours for level in colour)


def test_published_class_counts() -> None:
    assert {name: len(known) for name, known in CLASS_LISTS.items()} == {
        "mfnet": 9,
        "msrs": 9,
        "fmb": 14,
    }


def test_values_become_labels_from_zero_with_255_ignored() -> None:
    stored = np.array([[0, 1, 14], [255, 7, 2]], np.uint8)
    labels = check_labels(stored, FMB, "a.png")
    assert labels.dtype == np.int32
    assert labels.tolist() == [[255, 0, 13], [255, 6, 1]]
    stored = np.array([[0, 8, 255]], np.int32)
    assert check_labels(stored, MSRS, "a.png").tolist() == [[0, 8, 255]]
    assert check_labels(np.array([[200, 3]]), None, "a.png").tolist() == [[200, 3]]


@pytest.mark.parametrize(
    ("labels", "classes", "complaint"),
    [
        (np.array([[0, 9, 11]]), MSRS, r"labels 9, 11 in 2 pixels: msrs has values 0\.\.8"),
        (np.array([[15, 1]]), FMB, r"labels 15 in 1 pixels: fmb has values 1\.\.14, and 0 and 255"),
        (np.full((4, 4), 255), MSRS, r"every pixel is ignored \(values 255\)"),
        (np.array([[0, 255]]), FMB, r"every pixel is ignored \(values 0, 255\)"),
        (np.arange(20).reshape(1, 20) * 10, MSRS, r"labels 10, 20, .* and 11 more in 19 pixels"),
    ],
)
def test_wrong_values_are_named(labels, classes, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.png: {complaint}"):
        check_labels(labels, classes, "a.png")


def test_another_size_is_named_with_both_sizes() -> None:
    with pytest.raises(DataError, match=r"a\.png: 2 x 3 pixels .*, but its image has 4 x 6"):
        check_labels(np.zeros((2, 3), int), MSRS, "a.png", (4, 6))
    assert check_labels(np.zeros((2, 3), int), MSRS, "a.png", (2, 3)).shape == (2, 3)


def coloured(labels: np.ndarray, classes) -> np.ndarray:
    return np.array(classes.palette, np.uint8)[labels]


def test_a_colour_mask_where_indices_are_due_names_the_palette_it_fits() -> None:
    mask = coloured(np.arange(14).reshape(2, 7), FMB)
    with pytest.raises(
        DataError, match=r"a\.png: a colour mask \(RGB\); its 14 colours .* fmb: .*rgb"
    ):
        check_labels(mask, MSRS, "a.png")
    mask = coloured(np.arange(9).reshape(3, 3), MSRS)
    with pytest.raises(DataError, match=r"its 9 colours are those of mfnet and msrs"):
        check_labels(mask, MSRS, "a.png")
    mask[0, 0] = (1, 2, 3)
    with pytest.raises(DataError, match=r"9 colours that fit no known class list"):
        check_labels(mask, MSRS, "a.png")
    gray = np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2, 1), 3, axis=2)
    with pytest.raises(DataError, match=r"stored in three equal channels \(values 0, 1, 2, 3\)"):
        check_labels(gray, MSRS, "a.png")


def test_indices_where_colours_are_due_are_named() -> None:
    with pytest.raises(DataError, match=r"class indices \(0, 3\) in one channel, where colours"):
        check_labels(np.array([[0, 3]]), MSRS, "a.png", coding="rgb")
    with pytest.raises(DataError, match="without a class list"):
        check_labels(np.zeros((2, 2, 3), np.uint8), None, "a.png", coding="rgb")


@pytest.mark.parametrize("classes", CLASS_LISTS.values(), ids=CLASS_LISTS)
def test_colours_decode_to_what_they_were_made_of(classes) -> None:
    labels = np.random.default_rng(0).integers(0, len(classes), (12, 17))
    assert np.array_equal(from_colours(coloured(labels, classes), classes, "a.png"), labels)


def test_unlabelled_colour_is_ignored_and_a_foreign_colour_is_named() -> None:
    mask = coloured(np.zeros((2, 2), int), FMB)
    mask[0, 0] = (0, 0, 0)
    assert from_colours(mask, FMB, "a.png").tolist() == [[255, 0], [0, 0]]
    mask[1, 1] = mask[1, 0] = (178, 228, 228)
    complaint = (
        r"1 of 3 colours, in 2 pixels, are not in the palette of fmb, e\.g\. \(178, 228, 228\)"
    )
    with pytest.raises(DataError, match=complaint):
        from_colours(mask, FMB, "a.png")


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    labels = tiny_downloads.label_map(1, 9)
    plain, colours = tmp_path / "plain.png", tmp_path / "colours.png"
    cv2.imwrite(str(plain), labels)
    tiny_downloads.save(colours, coloured(labels, MSRS))
    assert np.array_equal(read_classes(plain, MSRS, labels.shape), labels)
    assert np.array_equal(read_classes(colours, MSRS, labels.shape, "rgb"), labels)
    with pytest.raises(DataError, match=r"colours\.png: a colour mask"):
        read_classes(colours, MSRS)
    with pytest.raises(DataError, match=r"plain\.png: class indices"):
        read_classes(plain, MSRS, coding="rgb")


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("road\n\n car \n", encoding="utf8")
    classes = read_class_list(str(path))
    assert (classes.name, classes.names, classes.first) == ("mine", ("road", "car"), 0)
    assert read_class_list("fmb") is FMB
    many = plain_list("many", map(str, range(255)))
    assert len(set(many.palette)) == 255
    for text, complaint in (("", "names no class"), ("a\na\n", "names 'a' twice")):
        path.write_text(text, encoding="utf8")
        with pytest.raises(DataError, match=rf"mine\.txt: {complaint}"):
            read_class_list(str(path))
    with pytest.raises(DataError, match=r"absent: cannot be read .*mfnet, msrs, fmb"):
        read_class_list("absent")
