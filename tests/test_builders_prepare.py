"""Preparing a set: the same records however it was done, continued after a kill, checked."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tiny_downloads
from jaxfuse import cli
from jaxfuse.config import ConfigError, DataConfig, SourceConfig
from jaxfuse.data import sources
from jaxfuse.data.builders import layouts, marks, shards
from jaxfuse.data.builders.classes import plain_list
from jaxfuse.data.builders.prepare import UnsoundError, prepare
from jaxfuse.data.builders.records import RecordPairs
from jaxfuse.data.builders.soundness import check_download
from jaxfuse.data.images import read_infrared, read_visible
from jaxfuse.data.pairs import DataError, Pairs
from jaxfuse.data.pipeline import Pipeline


def made(name: str, root: Path, out: Path, **more):
    return prepare(layouts.PUBLIC[name], root, out, allow_incomplete=True, **more)


def sums(folder: Path) -> dict[str, str]:
    """Checksum of each shard by file name."""
    return {path.name: marks.checksum(path) for path in folder.glob("*.array_record-*-of-?????")}


def small_shards(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Cuts every split in `count` shards: the unit of --shard-mib is too large for tiny sets."""
    whole = shards.plan

    def plan(soundness, form, shard_bytes):
        pairs = max(len(part) for part in soundness.found.splits.values())
        files = [p for part in soundness.found.splits.values() for e in part for p in e.files()]
        total = sum(path.stat().st_size for path in files)
        return whole(soundness, form, max(1, total // min(count, pairs)))

    monkeypatch.setattr("jaxfuse.data.builders.prepare.plan", plan)


@pytest.mark.parametrize("name", layouts.PUBLIC)
def test_records_read_back_what_the_download_holds(name: str, tmp_path: Path) -> None:
    root = tiny_downloads.make(name, tmp_path / "download")
    done = made(name, root, tmp_path / "out")
    assert done.folder == tmp_path / "out" / name / "1.0.0"
    dataset = layouts.PUBLIC[name]
    for split, count in done.pairs.items():
        raw = sources.open_source(
            SourceConfig(kind="dataset", name=name, root=str(root), split=split)
        )
        source = SourceConfig(kind="records", root=str(tmp_path / "out"), split=split)
        pairs = pickle.loads(pickle.dumps(sources.open_source(source)))
        assert isinstance(pairs, Pairs) and len(pairs) == len(raw) == count
        for i in reversed(range(count)):
            mine, theirs = pairs[i], raw[i]
            assert pairs.stem(i) == mine.stem == theirs.stem
            assert pairs.size(i) == raw.size(i) and pairs.time(i) == raw.time(i)
            for field in ("visible", "infrared", "labels", "boxes"):
                a, b = getattr(mine, field), getattr(theirs, field)
                assert (a is None) == (b is None), field
                assert a is None or (np.array_equal(a, b) and a.dtype == b.dtype), field
        assert pairs.classes == dataset.classes
        assert pairs.box_classes == dataset.box_classes
    assert not list((tmp_path / "out").rglob("*.part"))
    said, wrong = marks.verify(tmp_path / "out")
    assert wrong == [] and said[0].startswith(f"{name} 1.0.0 in ")


def test_tfds_prepares_and_reads_the_same(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    from jaxfuse.data.builders import tfds_builders

    root = tiny_downloads.make("msrs", tmp_path / "download")
    made("msrs", root, tmp_path / "out")
    builder = tfds_builders.create(
        "msrs", root, data_dir=str(tmp_path / "tfds"), allow_incomplete=True
    )
    builder.download_and_prepare()
    ours = tfds.builder_from_directory(str(tmp_path / "out" / "msrs" / "1.0.0"))
    assert ours.info.features.keys() == builder.info.features.keys()
    for split in ("train", "test"):
        mine, theirs = ours.as_data_source(split), builder.as_data_source(split)
        assert len(mine) == len(theirs) == ours.info.splits[split].num_examples > 0
        for a, b in zip(mine, theirs, strict=True):
            assert a.keys() == b.keys() == {"visible", "infrared", "labels", "stem", "time"}
            assert a["visible"].dtype == np.uint8 and a["visible"].shape == (24, 32, 3)
            assert a["infrared"].shape == a["labels"].shape == (24, 32, 1)
            assert all(np.array_equal(a[key], b[key]) for key in a)
    source = tfds.data_source("msrs", split="train[2:]", data_dir=str(tmp_path / "out"))
    assert [record["stem"].decode() for record in source] == ["00002D", "00003N"]
    names = builder.info.features["time"].names
    assert [names[record["time"]] for record in source] == ["day", "night"]


def test_every_set_has_a_tfds_builder() -> None:
    from jaxfuse.data.builders import tfds_builders

    assert tfds_builders.BUILDERS.keys() == layouts.PUBLIC.keys()
    with pytest.raises(ConfigError, match="no data set 'other'"):
        tfds_builders.create("other", "there")


def test_neither_preparing_nor_reading_needs_tensorflow(tmp_path: Path, fresh_python) -> None:
    root = tiny_downloads.make("mfnet", tmp_path / "download")
    code = f"""
import sys
from jaxfuse import cli
arguments = ["data", "prepare", "mfnet", "--root", {str(root)!r}, "--out", "out"]
assert cli.main([*arguments, "--allow-incomplete"]) == 0
from jaxfuse.data.builders.records import RecordPairs
from jaxfuse.data.builders.soundness import check_download
pairs = RecordPairs("out", "test_night")
assert pairs[0].labels.max() == 8
print(sorted({{"tensorflow", "jax", "torch", "apache_beam"}} & set(sys.modules)))
"""
    result = fresh_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_importing_data_does_not_import_tfds(fresh_python) -> None:
    code = (
        "import sys, jaxfuse.data.sources, jaxfuse.data.builders.prepare; "
        "print(sorted({'tensorflow_datasets', 'array_record', 'grain'} & set(sys.modules)))"
    )
    result = fresh_python("-c", code)
    assert result.stdout.strip() == "[]", result.stderr


def test_workers_change_no_byte(tmp_path: Path, monkeypatch) -> None:
    small_shards(monkeypatch, 3)
    root = tiny_downloads.make("llvip", tmp_path / "download")
    first = made("llvip", root, tmp_path / "a", workers=1)
    second = made("llvip", root, tmp_path / "b", workers=3)
    assert first.written == second.written > 2
    assert sums(first.folder) == sums(second.folder)
    assert (first.folder / "complete.json").read_bytes() == (
        second.folder / "complete.json"
    ).read_bytes()


def test_files_that_fit_are_kept_as_they_are_and_others_lose_nothing(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    root = tiny_downloads.make("roadscene", tmp_path / "download")
    made("roadscene", root, tmp_path / "out")
    builder = tfds.builder_from_directory(str(tmp_path / "out" / "roadscene" / "1.0.0"))
    skip = {name: tfds.decode.SkipDecoding() for name in ("visible", "infrared")}
    record = builder.as_data_source("whole", decoders=skip)[0]
    assert record["visible"] == (root / "crop_LR_visible" / "FLIR_00000.jpg").read_bytes()
    assert record["infrared"] == (root / "cropinfrared" / "FLIR_00000.jpg").read_bytes()


@pytest.mark.parametrize("kind", ["turned", "palette", "alpha", "transparent", "gray"])
def test_pictures_that_readers_disagree_about_are_written_anew(kind: str, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds
    from PIL import Image

    root = tiny_downloads.make("folders", tmp_path / "download")
    path = root / "vi" / "a0.png"
    image = Image.fromarray(tiny_downloads.picture(9))
    if kind == "turned":
        path.unlink()
        path = path.with_suffix(".jpg")
        exif = Image.Exif()
        exif[0x0112] = 6
        image.rotate(90, expand=True).save(path, exif=exif)
    elif kind == "palette":
        image.quantize(64).save(path)
    elif kind == "alpha":
        image.putalpha(128)
        image.save(path)
    elif kind == "transparent":
        image.save(path, transparency=image.getpixel((3, 3)))
    else:
        image.convert("L").save(path)
    made("folders", root, tmp_path / "out")
    expected = np.rint(255 * read_visible(path)).astype(np.uint8)
    builder = tfds.builder_from_directory(str(tmp_path / "out" / "folders" / "1.0.0"))
    assert np.array_equal(builder.as_data_source("whole")[0]["visible"], expected)
    assert np.array_equal(RecordPairs(tmp_path / "out")[0].visible, read_visible(path))


def test_sixteen_bits_stay_and_eight_beside_them_widen_exactly(tmp_path: Path) -> None:
    root = tiny_downloads.make("folders", tmp_path / "download")
    made("folders", root, tmp_path / "out", classes=plain_list("mine", "abcd"))
    pairs = RecordPairs(tmp_path / "out")
    for i, path in enumerate(sorted((root / "ir").iterdir())):
        assert np.array_equal(pairs[i].infrared, read_infrared(path))
        assert np.array_equal(pairs[i].visible, read_visible(root / "vi" / path.name))
    assert pairs.classes is not None and pairs.classes.names == ("a", "b", "c", "d")
    stretched = RecordPairs(tmp_path / "out", stretch="minmax")
    assert stretched[1].infrared.min() == 0 and stretched[1].infrared.max() == 1


def test_the_rounded_mean_of_unequal_infrared_channels_is_said(tmp_path: Path) -> None:
    root = tiny_downloads.make("m3fd_fusion", tmp_path / "download")
    path = root / "M3FD_Fusion" / "Ir" / "00001.png"
    pixels = np.repeat(tiny_downloads.picture(4, 1)[..., None] // 2, 3, axis=2)
    pixels[..., 1] += 1
    tiny_downloads.save(path, pixels)
    done = made("m3fd_fusion", root, tmp_path / "out")
    assert done.rounded == 1 and "1 infrared pictures have three unequal channels" in done.text()
    infrared = RecordPairs(tmp_path / "out")[1].infrared
    assert np.abs(infrared - read_infrared(path)).max() <= 0.5 / 255 + 1e-6


def test_training_reads_a_download_and_its_records_alike(tmp_path: Path) -> None:
    root = tiny_downloads.make("msrs", tmp_path / "download")
    made("msrs", root, tmp_path / "out")
    batches = []
    for source in (
        SourceConfig(kind="dataset", name="msrs", root=str(root), split="train"),
        SourceConfig(kind="records", root=str(tmp_path / "out"), split="train"),
    ):
        config = DataConfig(target=source, patch_size=16, stride=8)
        pipeline = Pipeline(sources.open_source(source), config=config, batch_size=4, seed=3)
        stream = pipeline.batches(5)
        batches.append(next(stream))
        stream.close()
    assert batches[0].keys() == batches[1].keys()
    assert all(np.array_equal(batches[0][key], batches[1][key]) for key in batches[0])


def test_lists_of_ones_own_become_splits(tmp_path: Path) -> None:
    root = tiny_downloads.make("roadscene", tmp_path / "download")
    (tmp_path / "a.txt").write_text("FLIR_00000\nFLIR_00074\n", encoding="utf8")
    (tmp_path / "b.txt").write_text("FLIR_00037\n", encoding="utf8")
    lists = {"train": str(tmp_path / "a.txt"), "val": str(tmp_path / "b.txt")}
    done = prepare(layouts.PUBLIC["roadscene"], root, tmp_path / "out", lists=lists)
    assert done.pairs == {"train": 2, "val": 1}
    pairs = RecordPairs(tmp_path / "out", "train")
    assert [pairs.stem(i) for i in range(2)] == ["FLIR_00000", "FLIR_00074"]
    with pytest.raises(ConfigError, match="split 'all': name it by letters"):
        prepare(layouts.PUBLIC["roadscene"], root, tmp_path / "c", lists={"all": "a.txt"})


# What goes wrong.


def test_a_download_with_errors_is_not_prepared(tmp_path: Path) -> None:
    root = tiny_downloads.make("fmb", tmp_path / "download")
    tiny_downloads.save(root / "train" / "Label" / "00001.png", np.full((24, 32), 15, np.uint8))
    with pytest.raises(UnsoundError, match=r"00001\.png: labels 15 in 768 pixels: fmb has"):
        made("fmb", root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def cut(path: Path) -> None:
    """Leaves the header and most of the rest."""
    blob = path.read_bytes()
    path.write_bytes(blob[: len(blob) * 9 // 10])


def of_three_channels(path: Path) -> None:
    tiny_downloads.save(path, tiny_downloads.picture(3, 3))


@pytest.mark.parametrize(
    ("name", "file", "damage", "words"),
    [
        ("fmb", "train/Visible/00001.png", cut, "truncated"),
        ("fmb", "train/Infrared/00001.png", cut, "truncated"),
        ("fmb", "train/Infrared/00001.png", of_three_channels, "pseudo-colour infrared"),
        ("llvip", "LLVIP/visible/test/190001.jpg", cut, "truncated"),
        ("mfnet", "ir_seg_dataset/images/00006N.png", cut, "truncated"),
        ("mfnet", "ir_seg_dataset/images/00006N.png", of_three_channels, "3 channels, where"),
    ],
)
def test_pixels_are_looked_at_before_anything_is_written(
    name: str, file: str, damage, words: str, tmp_path: Path
) -> None:
    root = tiny_downloads.make(name, tmp_path / "download")
    damage(root / file)
    checked = check_download(layouts.PUBLIC[name], root)
    assert [problem.file for problem in checked.errors] == [str(root / file)]
    assert words in checked.errors[0].value
    with pytest.raises(UnsoundError, match=words):
        made(name, root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_incomplete_download_needs_to_be_allowed(tmp_path: Path) -> None:
    root = tiny_downloads.make("fmb", tmp_path / "download")
    with pytest.raises(UnsoundError, match=r"expected 1220 pairs in train, found 3.*--allow-inc"):
        prepare(layouts.PUBLIC["fmb"], root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_picture_stops_its_shard_and_no_other(tmp_path: Path, monkeypatch) -> None:
    small_shards(monkeypatch, 3)
    root = tiny_downloads.make("llvip", tmp_path / "download")
    path = root / "LLVIP" / "infrared" / "train" / "010002.jpg"
    whole = path.read_bytes()
    # Damaged after it was looked at: what was wrong before is found before anything is written.
    with pytest.raises(DataError, match=r"010002\.jpg: truncated at"):
        made("llvip", root, tmp_path / "out", report=lambda _: cut(path))
    work = tmp_path / "out" / "llvip" / "1.0.0.unfinished"
    kept = sums(work)
    assert len(kept) > 2
    with pytest.raises(DataError, match="a preparation that has not ended: run the same"):
        RecordPairs(tmp_path / "out", "train")
    path.write_bytes(whole)
    done = made("llvip", root, tmp_path / "out")
    assert (done.written, done.kept) == (1, len(kept))
    assert sums(done.folder).items() >= kept.items()
    assert not work.exists()


def test_a_complete_set_is_left_alone_and_another_is_not_overwritten(tmp_path: Path) -> None:
    root = tiny_downloads.make("fmb", tmp_path / "download")
    folder = made("fmb", root, tmp_path / "out").folder
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = made("fmb", root, tmp_path / "out")
    assert again.already and "complete already" in again.text()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    tiny_downloads.save(root / "train" / "Visible" / "00000.png", tiny_downloads.picture(77))
    with pytest.raises(DataError, match="made of other files or with other options: remove the"):
        made("fmb", root, tmp_path / "out")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf8")
    with pytest.raises(DataError, match="is there and is no prepared set"):
        made("fmb", root, tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_said_and_leaves_nothing_that_reads(tmp_path: Path, monkeypatch) -> None:
    """The system's device that is always full stands in for the disk from the third shard on."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no device /dev/full on this system")
    from array_record.python import array_record_module

    small_shards(monkeypatch, 3)
    root = tiny_downloads.make("llvip", tmp_path / "download")
    writer, opened = array_record_module.ArrayRecordWriter, []

    def full(path: str, options: str):
        opened.append(path)
        return writer("/dev/full" if len(opened) > 2 else path, options)

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", full)
    complaint = (
        r"array_record-0000\d-of-0000\d: cannot be written \(No space left on device\): free"
    )
    with pytest.raises(DataError, match=complaint):
        made("llvip", root, tmp_path / "out", workers=1)
    work = tmp_path / "out" / "llvip" / "1.0.0.unfinished"
    assert len(sums(work)) == 2 and not list(work.glob("*.part"))
    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", writer)
    done = made("llvip", root, tmp_path / "out")
    assert done.kept == 2 and marks.verify(done.folder)[1] == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch) -> None:
    root = tiny_downloads.make("fmb", tmp_path / "download")
    (tmp_path / "file").write_text("", encoding="utf8")
    with pytest.raises(DataError, match=r"cannot be written \(Not a directory\): choose an --out"):
        made("fmb", root, tmp_path / "file")

    def refuse(self: Path, *rest, **more) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match=r"cannot be written \(Read-only file system\): choose an"):
        made("fmb", root, tmp_path / "out")


def test_two_preparations_do_not_mix(tmp_path: Path) -> None:
    root = tiny_downloads.make("fmb", tmp_path / "download")
    work = tmp_path / "out" / "fmb" / "1.0.0.unfinished"
    work.mkdir(parents=True)
    with (work / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another preparation is writing here: wait for it"):
            made("fmb", root, tmp_path / "out")
    assert made("fmb", root, tmp_path / "out").pairs == {"train": 3, "test": 2}


def test_leftovers_of_other_plans_are_cleared(tmp_path: Path) -> None:
    root = tiny_downloads.make("fmb", tmp_path / "download")
    work = tmp_path / "out" / "fmb" / "1.0.0.unfinished"
    work.mkdir(parents=True)
    for name in ("fmb-train.array_record-00000-of-00009", "fmb-x.part", "complete.json"):
        (work / name).write_text("old", encoding="utf8")
    good = work / "fmb-train.array_record-00000-of-00001"
    good.write_text("cut", encoding="utf8")
    marks.mark_of(good).write_text('{"source": "x", "sha256": "y"}', encoding="utf8")
    done = made("fmb", root, tmp_path / "out")
    assert done.kept == 0 and len(sums(done.folder)) == 2
    assert marks.verify(done.folder)[1] == []


def test_a_changed_prepared_set_is_found_out(tmp_path: Path) -> None:
    root = tiny_downloads.make("fmb", tmp_path / "download")
    folder = made("fmb", root, tmp_path / "out").folder
    shard = folder / "fmb-test.array_record-00000-of-00001"
    whole = shard.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    shard.write_bytes(bytes(changed))
    assert str(marks.verify(folder)[1][0]).startswith(f"{shard}: sha256 ")
    shard.write_bytes(whole[:-9])
    wrong = marks.verify(folder)[1]
    assert f"{len(whole) - 9} bytes, {len(whole)} were written" in str(wrong[0])
    with pytest.raises(DataError, match=r"fmb.1\.0\.0.test.00050: cannot be read .*data check"):
        _ = RecordPairs(folder, "test")[0]
    shard.unlink()
    assert "is missing" in str(marks.verify(folder)[1][0])
    shard.write_bytes(whole)
    (folder / "features.json").write_text("{}", encoding="utf8")
    assert [Path(error.file).name for error in marks.verify(folder)[1]] == ["features.json"]


def test_what_is_no_prepared_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prepared set: give a folder that `jaxfuse data"):
        RecordPairs(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        RecordPairs(tmp_path / "absent")
    root = tiny_downloads.make("fmb", tmp_path / "download")
    shutil.copytree(made("fmb", root, tmp_path / "out").folder, tmp_path / "out" / "two" / "1.0.0")
    with pytest.raises(DataError, match=r"holds several prepared sets: fmb.1\.0\.0, two.1\.0\.0"):
        RecordPairs(tmp_path / "out", "train")
    with pytest.raises(DataError, match="no split 'val': choose one of train, test"):
        RecordPairs(tmp_path / "out" / "fmb", "val")


KILLED = """
import sys, time
from pathlib import Path
from jaxfuse.data.builders import layouts, prepare, shards
write, plan = prepare.write_shard, prepare.plan
def slow(*arguments):
    mark = write(*arguments)
    time.sleep(0.3)
    return mark
prepare.write_shard = slow
prepare.plan = lambda soundness, form, size: plan(soundness, form, 6000)
prepare.prepare(layouts.PUBLIC["msrs"], Path(sys.argv[1]), Path(sys.argv[2]),
                workers=2, allow_incomplete=True)
"""


def test_a_killed_preparation_continues(tmp_path: Path, monkeypatch, repo: Path) -> None:
    root = tiny_downloads.msrs(tmp_path / "download", train=12, test=4)
    whole = shards.plan
    monkeypatch.setattr(
        "jaxfuse.data.builders.prepare.plan", lambda found, form, size: whole(found, form, 6000)
    )
    straight = made("msrs", root, tmp_path / "straight")
    assert straight.written >= 8
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(repo)},
    )
    work = tmp_path / "out" / "msrs" / "1.0.0.unfinished"
    deadline = time.monotonic() + 60
    while len(list(work.glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.with_suffix("") for path in work.glob("*.json")}
    assert 3 <= len(finished) < straight.written
    times = {path.name: path.stat().st_mtime_ns for path in finished}
    with pytest.raises(DataError, match="a preparation that has not ended"):
        RecordPairs(tmp_path / "out", "train")
    done = made("msrs", root, tmp_path / "out")
    assert done.kept == len(finished)
    assert done.written == straight.written - done.kept
    assert {name: (done.folder / name).stat().st_mtime_ns for name in times} == times
    assert sums(done.folder) == sums(straight.folder)


# The command.


def test_data_prepare_list_and_check(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    root = tiny_downloads.make("fmb", tmp_path / "download")
    arguments = ["data", "prepare", "fmb", "--root", str(root), "--out", "out"]
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and "expected 280 pairs in test, found 2" in err
    assert cli.main([*arguments, "--allow-incomplete", "--workers", "2"]) == 0
    out, _ = capsys.readouterr()
    assert "out/fmb/1.0.0: train 3, test 2 pairs" in out and "(2 written, 0 kept)" in out
    assert cli.main(["data", "check", "out"]) == 0
    assert "train: 3 pairs in 1 shard" in capsys.readouterr().out
    shard = next(Path("out").rglob("fmb-train*-00001"))
    shard.write_bytes(b"no records")
    assert cli.main(["data", "check", "out"]) == 1
    assert "error: " in capsys.readouterr().out
    assert cli.main(["data", "list"]) == 0
    out, _ = capsys.readouterr()
    assert all(f"{name} " in out for name in layouts.PUBLIC)
    assert cli.main(["data", "list", "m3fd"]) == 0
    assert "0 People, 1 Car, 2 Bus, 3 Lamp, 4 Motorcycle, 5 Truck" in capsys.readouterr().out
    assert cli.main(["data", "check", str(root), "--dataset", "fmb"]) == 1
    assert "expected 1220 pairs in train, found 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("list nothing", "no data set 'nothing': choose one of msrs"),
        ("prepare nothing --root a --out b", "no data set 'nothing': choose one of msrs"),
        ("prepare msrs --root a --out b --classes c", "--classes c: msrs has its own class list"),
        ("prepare msrs --root a --out b --split c", "--split c: write NAME=FILE"),
        ("prepare msrs --root a --out b --workers -1", "workers = -1: use 0"),
        ("prepare msrs --root a --out b --shard-mib 0", "shard_mib = 0: use at least 1"),
        ("check a --label-coding rgb", "--label-coding rgb: give --dataset NAME as well"),
        ("check a --dataset msrs --split b", "--split b: is not read with --dataset"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: str, complaint: str, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and complaint in err


def test_real_pairs_read_back_bit_for_bit(shared: Path, tmp_path: Path) -> None:
    """RoadScene's JPEG as they are; a few of TNO's, gray in three channels, written anew."""
    data = shared / "data"
    made("roadscene", data / "roadscene", tmp_path)
    made("tno", data / "tno", tmp_path)
    for name, ending, every in (("roadscene", ".jpg", 20), ("tno", ".png", 6)):
        pairs = RecordPairs(tmp_path / name)
        for i in range(0, len(pairs), every):
            file = f"{pairs.stem(i)}{ending}"
            assert np.array_equal(pairs[i].visible, read_visible(data / name / "vi" / file))
            infrared = read_infrared(data / name / "ir" / file)
            assert np.abs(pairs[i].infrared - infrared).max() <= 0.5 / 255 + 1e-6
            assert pairs.size(i) == infrared.shape[:2]


def test_a_mark_says_which_pairs_a_shard_holds(tmp_path: Path) -> None:
    root = tiny_downloads.make("msrs", tmp_path / "download")
    folder = made("msrs", root, tmp_path / "out").folder
    shard = folder / "msrs-test.array_record-00000-of-00001"
    mark = json.loads(marks.mark_of(shard).read_text(encoding="utf8"))
    assert mark["sha256"] == marks.checksum(shard) and mark["bytes"] == shard.stat().st_size
    assert mark["records"] == [
        ["00100D", 24, 32, "day"],
        ["00101N", 24, 32, "night"],
        ["00102D", 24, 32, "day"],
    ]
    complete = json.loads((folder / "complete.json").read_text(encoding="utf8"))
    assert complete["splits"]["test"]["pairs"] == 3
    assert dataclasses.asdict(layouts.PUBLIC["msrs"].classes)["names"] == tuple(
        complete["form"]["classes"]
    )


def test_tfds_refuses_a_download_that_is_not_all_there(tmp_path: Path) -> None:
    from jaxfuse.data.builders import tfds_builders

    root = tiny_downloads.make("msrs", tmp_path / "download")
    builder = tfds_builders.create("msrs", root, data_dir=str(tmp_path / "tfds"))
    with pytest.raises(UnsoundError, match="1083"):
        builder.download_and_prepare()


def test_checking_looks_at_every_prepared_set_that_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = {}
    for name in ("msrs", "roadscene"):
        root = tiny_downloads.make(name, tmp_path / name)
        done[name] = prepare(layouts.named(name), root, out, allow_incomplete=True).folder
    # As a preparation that was killed leaves it beside the set that it is to replace.
    whole = done["msrs"]
    shutil.copytree(whole, whole.with_name(f"{whole.name}{marks.UNFINISHED}"))
    assert marks.all_prepared(out) == sorted(done.values())
    assert cli.main(["data", "check", str(out)]) == 0
    assert "0 errors" in capsys.readouterr().out
    shard = next(done["roadscene"].glob("*.array_record-*-of-?????"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert cli.main(["data", "check", str(out)]) == 1
    assert shard.name in capsys.readouterr().out
