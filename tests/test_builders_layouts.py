"""Every public set's layout, read from folders that look like its download."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import tiny_downloads
from jaxfuse.config import ConfigError, SourceConfig
from jaxfuse.data import sources
from jaxfuse.data.builders import layouts, m3fd
from jaxfuse.data.builders.base import time_at, time_of
from jaxfuse.data.builders.boxes import odd_boxes, read_voc
from jaxfuse.data.builders.soundness import check_download, chosen_by_lists, form_of
from jaxfuse.data.pairs import DataError, Pairs
from jaxfuse.data.patches import read_pair

COUNTS = {
    "msrs": {"train": 4, "test": 3},
    "msrs_detection": {"whole": 3},
    "mfnet": {"train": 2, "val": 1, "test": 3},
    "fmb": {"train": 3, "test": 2},
    "m3fd": {"train": 3, "val": 2},
    "m3fd_fusion": {"whole": 2},
    "roadscene": {"whole": 3},
    "tno": {"whole": 5},
    "llvip": {"train": 3, "test": 2},
    "folders": {"whole": 3},
}


def opened(name: str, root: Path, split: str = "", **more) -> Pairs:
    source = SourceConfig(kind="dataset", name=name, root=str(root), split=split, **more)
    return sources.open_source(source)


def test_every_set_is_tested_here() -> None:
    assert set(COUNTS) == set(layouts.PUBLIC)


@pytest.mark.parametrize("name", COUNTS)
def test_a_download_is_found_and_read(name: str, tmp_path: Path) -> None:
    dataset = layouts.PUBLIC[name]
    root = tiny_downloads.make(name, tmp_path)
    found = dataset.find(root)
    assert {split: len(part) for split, part in found.splits.items()} == COUNTS[name]
    assert found.errors == () and not any(found.lacking.values())
    assert set(dataset.splits) <= set(COUNTS[name])
    for split in COUNTS[name]:
        pairs = opened(name, root, split)
        again = pickle.loads(pickle.dumps(pairs))
        assert isinstance(pairs, Pairs) and len(pairs) == COUNTS[name][split]
        for i in range(len(pairs)):
            patches = read_pair(pairs, i)
            assert patches.visible.shape == (*pairs.size(i), 3)
            pair = again[i]
            assert pair.stem == pairs.stem(i)
            assert np.array_equal(pair.visible, patches.visible)
            assert (pair.labels is not None) == (dataset.labelled or name == "folders")
            assert (pair.boxes is not None) == (dataset.boxed or name == "folders")
            if pair.labels is not None and dataset.classes:
                values = set(np.unique(pair.labels).tolist()) - {255}
                assert values == set(range(len(dataset.classes)))


def test_mfnet_keeps_infrared_in_the_fourth_channel(tmp_path: Path) -> None:
    tiny_downloads.mfnet(tmp_path)
    pairs = opened("mfnet", tmp_path, "test")
    assert [pairs.stem(i) for i in range(3)] == ["00004D", "00005N", "00008D"]
    expected = tiny_downloads.picture(5, 4)
    assert np.array_equal(pairs[1].visible, expected[..., :3] / np.float32(255))
    assert np.array_equal(pairs[1].infrared[..., 0], expected[..., 3] / np.float32(255))
    assert np.array_equal(pairs[1].labels, tiny_downloads.label_map(5, 9))


def test_mfnet_of_three_channels_is_refused(tmp_path: Path) -> None:
    start = tiny_downloads.mfnet(tmp_path)
    tiny_downloads.save(start / "images" / "00006N.png", tiny_downloads.picture(1, 3))
    with pytest.raises(DataError, match=r"00006N\.png: 3 channels, where the fourth is"):
        _ = opened("mfnet", tmp_path, "val")[0]


def test_mirrored_copies_of_mfnet_are_left_out_and_said(tmp_path: Path) -> None:
    start = tiny_downloads.mfnet(tmp_path)
    for stem in ("00001D", "00003N"):
        for folder in ("images", "labels"):
            shutil.copy(start / folder / f"{stem}.png", start / folder / f"{stem}_flip.png")
    found = layouts.PUBLIC["mfnet"].find(tmp_path)
    assert [entry.stem for entry in found.splits["train"]] == ["00001D", "00003N"]
    assert len(found.notes) == 1 and "2 mirrored copies (*_flip) are left out" in found.notes[0]
    (start / "test_day.txt").write_text("00004D\n", encoding="utf8")
    notes = layouts.PUBLIC["mfnet"].find(tmp_path).notes
    assert any("test_day.txt: 1 names differ from test.txt's *D" in note for note in notes)


def test_day_and_night_split_any_part_of_a_set_that_tells(tmp_path: Path) -> None:
    tiny_downloads.msrs(tmp_path)
    day, night = (opened("msrs", tmp_path, f"train_{time}") for time in ("day", "night"))
    assert [day.stem(i) for i in range(len(day))] == ["00000D", "00002D"]
    assert [night.stem(i) for i in range(len(night))] == ["00001N", "00003N"]
    assert (day.time(0), night.time(1)) == ("day", "night")
    tiny_downloads.fmb(tmp_path / "fmb")
    with pytest.raises(DataError, match=r"'test_day': no pair of 'test' is known to be of the day"):
        opened("fmb", tmp_path / "fmb", "test_day")


def test_the_time_of_day_of_any_set(tmp_path: Path) -> None:
    scenes = sources.open_source(SourceConfig(kind="synthetic", scenes=6))
    letters = {"day": "D", "night": "N"}
    assert [letters[time_at(scenes, i)] for i in range(6)] == [scenes.stem(i)[-1] for i in range(6)]
    tiny_downloads.msrs(tmp_path)
    assert time_at(opened("msrs", tmp_path, "test"), 1) == "night"
    assert [time_of(stem) for stem in ("00001X", "D", "FLIR_00001N", "1")] == ["unknown"] * 4


def test_fmb_gives_fourteen_classes_and_ignores_the_unlabelled(tmp_path: Path) -> None:
    tiny_downloads.fmb(tmp_path)
    stored = tiny_downloads.label_map(0, 15).astype(int)
    labels = opened("fmb", tmp_path, "train")[0].labels
    assert np.array_equal(labels, np.where(stored == 0, 255, stored - 1))


def test_label_colours_are_decoded_only_when_asked_for(tmp_path: Path) -> None:
    start = tiny_downloads.msrs(tmp_path)
    dataset = layouts.PUBLIC["msrs"]
    assert dataset.classes is not None
    path = start / "test" / "Segmentation_labels" / "00100D.png"
    labels = tiny_downloads.label_map(3, 9)
    tiny_downloads.save(path, np.array(dataset.classes.palette, np.uint8)[labels])
    with pytest.raises(DataError, match=r"00100D\.png: a colour mask .*mfnet and msrs.*coding rgb"):
        _ = opened("msrs", tmp_path, "test")[0]
    pairs = opened("msrs", tmp_path, "test", label_coding="rgb")
    assert np.array_equal(pairs[0].labels, labels)
    with pytest.raises(DataError, match=r"00101N\.png: class indices .* where colours are due"):
        _ = pairs[1]


def test_a_label_map_of_another_size_is_refused(tmp_path: Path) -> None:
    start = tiny_downloads.msrs(tmp_path)
    path = start / "test" / "Segmentation_labels" / "00100D.png"
    tiny_downloads.save(path, tiny_downloads.label_map(3, 9, 0, (12, 16)))
    with pytest.raises(DataError, match=r"00100D\.png: 12 x 16 pixels .* image has 24 x 32"):
        _ = opened("msrs", tmp_path, "test")[0]
    report = check_download(layouts.PUBLIC["msrs"], tmp_path)
    assert [problem.file for problem in report.errors] == [str(path)]


# M3FD's split.


def test_m3fd_blocks_stay_together_and_keep_apart() -> None:
    parts = [m3fd.block_part(number) for number in range(4200)]
    assert parts.count("val") == layouts.PUBLIC["m3fd"].splits["val"] == 800
    assert parts.count("train") == layouts.PUBLIC["m3fd"].splits["train"] == 3230
    last = {"train": -(10**6), "val": -(10**6)}
    for number, part in enumerate(parts):
        if part:
            other = "val" if part == "train" else "train"
            assert number - last[other] > m3fd.GUARD, number
            last[part] = number
    changes = sum(a != b for a, b in itertools.pairwise(parts))
    assert changes <= 4 * 9


def test_m3fd_split_does_not_move_when_files_are_missing(tmp_path: Path) -> None:
    numbers = list(range(0, 400, 20))
    tiny_downloads.m3fd(tmp_path / "a", numbers)
    tiny_downloads.m3fd(tmp_path / "b", numbers[3:])
    parts = []
    for name in "ab":
        found = layouts.PUBLIC["m3fd"].find(tmp_path / name)
        parts.append({e.stem: split for split, part in found.splits.items() for e in part})
    assert parts[1].items() <= parts[0].items()
    assert set(parts[0].values()) == {"train", "val"}


def test_m3fd_reads_boxes_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    tiny_downloads.m3fd(tmp_path, [0, 1, 2, 195])
    (tmp_path / "M3FD_Detection" / "meta").mkdir()
    found = layouts.PUBLIC["m3fd"].find(tmp_path)
    assert any(note.startswith("1 pair beside validation blocks") for note in found.notes)
    assert any("has neither list of train.txt and val.txt" in note for note in found.notes)
    pairs = opened("m3fd", tmp_path, "train")
    assert [pair.boxes.tolist() for pair in pairs] == [
        [],
        [[2, 3, 10, 20, 0]],
        [[2, 3, 10, 20, 0], [0, 0, 32, 24, 5]],
    ]
    vis = tmp_path / "M3FD_Detection"
    for folder, ending in (("Vis", "png"), ("Ir", "png"), ("Annotation", "xml")):
        shutil.copy(vis / folder / f"00000.{ending}", vis / folder / f"first.{ending}")
    with pytest.raises(DataError, match=r"stem 'first' is no number"):
        opened("m3fd", tmp_path, "train")


def test_m3fd_takes_its_own_lists_where_they_are_there(tmp_path: Path) -> None:
    start = tiny_downloads.m3fd(tmp_path, [0, 1, 150, 195, 205, 250]) / "M3FD_Detection"
    (start / "meta").mkdir()
    (start / "meta" / "train.txt").write_text("00000.png\n00195.png\n00250.png\n", encoding="utf8")
    assert sum(map(len, layouts.PUBLIC["m3fd"].find(tmp_path).splits.values())) == 5  # by blocks
    (start / "meta" / "val.txt").write_text("00001.png\n00205.png\n00300.png\n", encoding="utf8")
    report = check_download(layouts.PUBLIC["m3fd"], tmp_path)
    stems = {name: [e.stem for e in part] for name, part in report.found.splits.items()}
    assert stems == {"train": ["00000", "00195", "00250"], "val": ["00001", "00205"]}
    assert report.errors == []
    assert [p.value for p in report.incomplete] == [
        "expected 3 pairs in val, found 2; not whole: 00300 (no file)"
    ]
    assert any("1 pair in no list, e.g. 00150" in note for note in report.found.notes)
    (start / "meta" / "val.txt").write_text("00001.png\n00195.png\n", encoding="utf8")
    with pytest.raises(DataError, match=r"val\.txt: 1 stem in .*train\.txt as well: 00195"):
        opened("m3fd", tmp_path, "train")


def test_m3fd_takes_the_scenes_of_its_scenario_file(tmp_path: Path) -> None:
    start = tiny_downloads.m3fd(tmp_path, [0, 1, 2, 3, 4]) / "M3FD_Detection"
    spans = {"train": [(0, 1), (4, 4)], "val": [(2, 3)]}
    scenes = [
        {"name": mode, "mode": mode, "range": [{"min": a, "max": b} for a, b in found]}
        for mode, found in spans.items()
    ]
    (start / "meta").mkdir()
    path = start / "meta" / "scenario.json"
    path.write_text(json.dumps([{"name": "road", "scene": scenes}]), encoding="utf8")
    report = check_download(layouts.PUBLIC["m3fd"], tmp_path)
    stems = {name: [e.stem for e in part] for name, part in report.found.splits.items()}
    assert stems == {"train": ["00000", "00001", "00004"], "val": ["00002", "00003"]}
    assert report.ok
    path.write_text('[{"scenes": 1}]', encoding="utf8")
    with pytest.raises(DataError, match=r"scenario\.json: no list of scenes"):
        opened("m3fd", tmp_path, "train")


def test_both_archives_of_m3fd_may_lie_side_by_side(tmp_path: Path) -> None:
    tiny_downloads.m3fd_fusion(tmp_path)
    tiny_downloads.m3fd(tmp_path, [0, 1, 250])
    assert len(opened("m3fd", tmp_path, "train")) == 2
    assert len(opened("m3fd_fusion", tmp_path)) == 2


# Boxes.


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<annotation><object>", "no XML"),
        ("<svg/>", "an XML of <svg>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "declares entities"),
        ("<annotation><object><name>tram</name></object></annotation>", "object 1: class 'tram'"),
        (
            "<annotation><object><name>person</name><bndbox><xmin>a</xmin></bndbox></object>"
            "</annotation>",
            "object 1: corners a, None, None, None",
        ),
    ],
)
def test_a_broken_annotation_is_named(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text, encoding="utf8")
    with pytest.raises(DataError, match=rf"a\.xml: {complaint}"):
        read_voc(path, ("person",))


def test_boxes_stand_as_annotated_and_odd_ones_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    tiny_downloads.voc(
        path, [("PERSON", 1, 2, 9, 20), ("person", 5, 5, 5, 9), ("person", 0, 0, 40, 9)]
    )
    boxes = read_voc(path, ("person",))
    assert boxes.dtype == np.float32 and boxes[:, 4].tolist() == [0, 0, 0]
    assert boxes[2].tolist() == [0, 0, 40, 9, 0]
    assert odd_boxes(boxes, 24, 32) == 2


def test_odd_boxes_and_odd_sizes_are_warnings(tmp_path: Path) -> None:
    start = tiny_downloads.llvip(tmp_path)
    tiny_downloads.voc(start / "Annotations" / "010001.xml", [("person", 0, 0, 99, 9)])
    report = check_download(layouts.PUBLIC["llvip"], tmp_path)
    assert report.errors == []
    said = [str(warning) for warning in report.warnings]
    assert any("010001.xml: 1 boxes are empty or leave the image" in line for line in said)
    assert sum("24 x 32 pixels" in line and "1024 x 1280" in line for line in said) == 5
    assert report.boxes == {"person": 5}


# What a download may lack.


def test_an_incomplete_download_says_what_is_missing(tmp_path: Path) -> None:
    start = tiny_downloads.msrs(tmp_path)
    (start / "train" / "ir" / "00002D.png").unlink()
    (start / "train" / "Segmentation_labels" / "00003N.png").unlink()
    report = check_download(layouts.PUBLIC["msrs"], tmp_path)
    assert report.errors == [] and not report.ok
    train, test = report.incomplete
    assert "expected 1083 pairs in train, found 2; not whole: " in train.value
    assert "00002D (no infrared file), 00003N (no labels file)" in train.value
    assert test.value == "expected 361 pairs in test, found 3"
    assert "unpack the whole download again" in test.remedy
    assert "incomplete: " in report.text() and "2 incomplete" in report.text()
    with pytest.raises(DataError, match=r"2 pairs of train not whole: 00002D \(no infrared"):
        opened("msrs", tmp_path, "test")


def test_a_part_that_was_not_unpacked_is_said(tmp_path: Path) -> None:
    start = tiny_downloads.llvip(tmp_path)
    shutil.rmtree(start / "visible" / "train")
    report = check_download(layouts.PUBLIC["llvip"], tmp_path)
    assert any("expected 12025 pairs in train, found 0" in p.value for p in report.incomplete)
    there = "there is infrared/train/, Annotations/"
    assert report.found.notes == (f"train: no visible/train/ in {start} ({there})",)
    with pytest.raises(DataError, match="no pair in 'train': unpack the download again"):
        opened("llvip", tmp_path, "train")
    assert len(opened("llvip", tmp_path, "test")) == 2
    shutil.rmtree(start / "Annotations")
    report = check_download(layouts.PUBLIC["llvip"], tmp_path)
    assert [error.value for error in report.errors] == ["no Annotations/"]


def test_only_the_folders_that_are_absent_are_named(tmp_path: Path) -> None:
    start = tiny_downloads.msrs(tmp_path)
    shutil.rmtree(start / "train" / "ir")
    found = layouts.PUBLIC["msrs"].find(tmp_path)
    there = "there is train/vi/, train/Segmentation_labels/"
    assert found.notes == (f"train: no train/ir/ in {start} ({there})",)
    shutil.rmtree(start / "test" / "ir")
    with pytest.raises(DataError) as error:
        layouts.PUBLIC["msrs"].find(tmp_path)
    there += ", test/vi/, test/Segmentation_labels/"
    expected = f"{start}: no train/ir/ and no test/ir/ ({there}): unpack the whole download again"
    assert str(error.value).startswith(expected) and layouts.MSRS_LAYOUT in str(error.value)


@pytest.mark.parametrize(
    ("name", "gone", "words"),
    [
        ("mfnet", "ir_seg_dataset/train.txt", r"no train\.txt \(there is images/\)"),
        ("mfnet", "ir_seg_dataset/images", r"no images/ \(there is train\.txt\)"),
        ("mfnet", "ir_seg_dataset/labels", "no labels/"),
        ("roadscene", "cropinfrared", r"no cropinfrared/ or ir/ \(there is crop_LR_visible/\)"),
        ("folders", "vi", r"no vi/ or vis/ or visible/ or rgb/ \(there is ir/, labels/, boxes/\)"),
        ("m3fd", "M3FD_Detection/Ir", r"no Ir/ \(there is Vis/, Annotation/\)"),
    ],
)
def test_half_a_layout_is_not_called_another_one(
    name: str, gone: str, words: str, tmp_path: Path
) -> None:
    path = tiny_downloads.make(name, tmp_path) / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=words):
        layouts.PUBLIC[name].find(tmp_path)


def test_half_of_tno_is_not_called_another_layout(tmp_path: Path) -> None:
    tiny_downloads.save(tmp_path / "ir" / "a.bmp", tiny_downloads.picture(0, 1))
    with pytest.raises(DataError, match=r"no vi/ or vis/ or visible/ \(there is ir/\)"):
        layouts.PUBLIC["tno"].find(tmp_path)


def test_a_complete_set_is_said_to_be_sound(tmp_path: Path) -> None:
    tiny_downloads.msrs(tmp_path, size=(480, 640))
    dataset = layouts.PUBLIC["msrs"]
    whole = dataset.__class__(**{**vars(dataset), "splits": {"train": 4, "test": 3}})
    report = check_download(whole, tmp_path)
    assert report.ok and report.warnings == []
    assert report.sizes == {"480x640": 7}
    assert report.times == {"day": 4, "night": 3}
    assert report.labels["car"] == 7
    assert "train 4, test 3 pairs; 0 errors, 0 incomplete, 0 warnings" in report.text()


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "tno"])
def test_another_layout_is_refused_with_what_is_expected(name: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"not this set's layout \(there is pictures\): expected "):
        layouts.PUBLIC[name].find(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        layouts.PUBLIC[name].find(tmp_path / "absent")


def test_two_copies_of_a_layout_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiny_downloads.roadscene(tmp_path / name)
    with pytest.raises(DataError, match="one and two both hold this set's layout"):
        layouts.PUBLIC["roadscene"].find(tmp_path)


def test_duplicate_stems_are_named(tmp_path: Path) -> None:
    tiny_downloads.roadscene(tmp_path)
    tiny_downloads.save(tmp_path / "cropinfrared" / "FLIR_00037.png", tiny_downloads.picture(1, 1))
    with pytest.raises(DataError, match=r"stem 'FLIR_00037' also has FLIR_00037\.png"):
        opened("roadscene", tmp_path)


def test_tno_pairs_bands_by_name_and_says_what_it_cannot_pair(tmp_path: Path) -> None:
    tiny_downloads.tno(tmp_path)
    found = layouts.PUBLIC["tno"].find(tmp_path)
    names = {
        entry.stem: (entry.infrared.name, entry.visible.name) for entry in found.splits["whole"]
    }
    assert names == {
        "Athena_images_bunker": ("IR_bunker_g.bmp", "bunker_r.bmp"),
        "Athena_images_heather": ("IR_hei_vis_g.bmp", "VIS_hei_vis_r.bmp"),
        "Athena_images_lake": ("IR_lake_g.bmp", "VIS_lake_r.bmp"),
        "Triclobs_images_Farm": ("Farm_IR.bmp", "Farm_Vis.bmp"),
        "Triclobs_images_Kaptein_01": ("IR01.bmp", "Vis01.bmp"),
    }
    assert len(found.notes) == 1 and "DHV_images/house" in found.notes[0]


def test_pairs_of_ones_own_may_have_parts(tmp_path: Path) -> None:
    for part in ("train", "night"):
        tiny_downloads.folders(tmp_path / part, 2)
    (tmp_path / "notes").mkdir()
    found = layouts.PUBLIC["folders"].find(tmp_path)
    assert {split: len(part) for split, part in found.splits.items()} == {"night": 2, "train": 2}
    (tmp_path / "train" / "labels" / "a1.png").unlink()
    with pytest.raises(DataError, match=r"labels for 3 of 4 pairs, none e\.g\. for 'a1'"):
        opened("folders", tmp_path, "train")


def test_half_a_split_of_ones_own_is_named_and_two_candidates_are_refused(tmp_path: Path) -> None:
    for part in ("train", "night"):
        tiny_downloads.folders(tmp_path / part, 2)
    shutil.rmtree(tmp_path / "night" / "ir")
    found = layouts.PUBLIC["folders"].find(tmp_path)
    assert {split: len(part) for split, part in found.splits.items()} == {"night": 0, "train": 2}
    assert len(found.notes) == 1 and found.notes[0].startswith("night: no night/ir/ or ")
    # As two folders that could be meant are refused where pairs are read from folders.
    (tmp_path / "train" / "RGB").mkdir()
    with pytest.raises(DataError, match="train: RGB and vi could both be the visible folder"):
        layouts.PUBLIC["folders"].find(tmp_path)
    with pytest.raises(DataError, match="RGB and vi could both be the visible folder"):
        sources.open_source(SourceConfig("folders", root=str(tmp_path / "train")))


def test_no_stem_may_be_in_two_lists(tmp_path: Path) -> None:
    tiny_downloads.roadscene(tmp_path)
    lists = {name: str(tmp_path / f"{name}.txt") for name in ("train", "val")}
    for path, stems in zip(lists.values(), ("FLIR_00000\nFLIR_00037", "FLIR_00037"), strict=True):
        Path(path).write_text(stems, encoding="utf8")
    found = layouts.PUBLIC["roadscene"].find(tmp_path)
    with pytest.raises(DataError, match=r"val\.txt: 1 stem in .*train\.txt as well: FLIR_00037"):
        chosen_by_lists(found, lists)


def test_no_stem_may_be_in_two_of_mfnets_lists(tmp_path: Path) -> None:
    start = tiny_downloads.mfnet(tmp_path)
    (start / "val.txt").write_text("00006N\n00001D\n00008D\n", encoding="utf8")
    report = check_download(layouts.PUBLIC["mfnet"], tmp_path)
    assert [(Path(p.file).name, p.value) for p in report.errors] == [
        ("test.txt", f"1 stem in {start / 'val.txt'} as well: 00008D"),
        ("val.txt", f"1 stem in {start / 'train.txt'} as well: 00001D"),
    ]
    with pytest.raises(DataError, match=r"train\.txt as well: 00001D"):
        opened("mfnet", tmp_path, "train")


def test_lists_of_ones_own_choose_other_splits(tmp_path: Path) -> None:
    tiny_downloads.roadscene(tmp_path)
    (tmp_path / "val.txt").write_text("FLIR_00037.jpg\n", encoding="utf8")
    found = layouts.PUBLIC["roadscene"].find(tmp_path)
    chosen = chosen_by_lists(found, {"val": str(tmp_path / "val.txt")})
    assert [entry.stem for entry in chosen.splits["val"]] == ["FLIR_00037"]
    (tmp_path / "val.txt").write_text("FLIR_1\n", encoding="utf8")
    with pytest.raises(DataError, match=r"val\.txt: 1 stem without a whole pair: FLIR_1"):
        chosen_by_lists(found, {"val": str(tmp_path / "val.txt")})


def test_splits_are_named_not_guessed(tmp_path: Path) -> None:
    tiny_downloads.fmb(tmp_path)
    with pytest.raises(DataError, match=r"has the splits train, test: name one of them"):
        opened("fmb", tmp_path)
    with pytest.raises(DataError, match=r"no split 'valid': choose one of train, test"):
        opened("fmb", tmp_path, "valid")
    with pytest.raises(ConfigError, match=r"no data set 'fbm': choose one of msrs, .*fmb"):
        opened("fbm", tmp_path, "train")


def test_bits_are_told_from_headers(tmp_path: Path) -> None:
    tiny_downloads.folders(tmp_path)
    dataset = layouts.PUBLIC["folders"]
    form = form_of(dataset, dataset.find(tmp_path))
    assert (form.visible_bits, form.infrared_bits, form.labels, form.boxes) == (8, 16, True, True)
    tiny_downloads.save(tmp_path / "ir" / "a1.tiff", np.zeros((24, 32), np.float32))
    (tmp_path / "ir" / "a1.png").unlink()
    with pytest.raises(DataError, match=r"a1\.tiff: 32 bits per channel"):
        form_of(dataset, dataset.find(tmp_path))


@pytest.mark.parametrize("name", COUNTS)
def test_a_description_names_source_and_layout(name: str) -> None:
    dataset = layouts.PUBLIC[name]
    said = layouts.describe(dataset)
    assert dataset.source in said and dataset.layout in said
    assert all(label in said for label in (dataset.classes.names if dataset.classes else ()))


@pytest.mark.parametrize(
    ("name", "folder", "pairs"),
    [("roadscene", "roadscene", 171), ("tno", "tno", 17), ("folders", "msrs", 181)],
)
def test_real_pairs_are_found_and_sound(name: str, folder: str, pairs: int, shared: Path) -> None:
    report = check_download(layouts.PUBLIC[name], shared / "data" / folder)
    assert report.errors == [] and report.warnings == []
    assert sum(report.sizes.values()) == pairs
    if folder == "msrs":
        assert report.times["day"] + report.times["night"] == 181
