"""Downstream evaluation: one small run from end to end, cut short and continued, and its words."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxfuse import cli, config, weights
from jaxfuse.config import SourceConfig, UserError
from jaxfuse.data import images
from jaxfuse.data.builders import classes as class_lists
from jaxfuse.data.builders import layouts
from jaxfuse.data.builders.prepare import prepare
from jaxfuse.data.images import FileError
from jaxfuse.data.sources import open_source
from jaxfuse.data.synthetic import CLASSES, SyntheticPairs
from jaxfuse.evaluate import (
    downstream,
    downstream_panels,
    downstream_set,
    downstream_summary,
    panels,
)
from jaxfuse.evaluate import downstream_plan as plans
from jaxfuse.evaluate import downstream_training as training
from jaxfuse.evaluate.downstream import Judged
from jaxfuse.evaluate.downstream_plan import Plan
from jaxfuse.evaluate.plan import Contender, PlanError
from jaxfuse.evaluate.results import MethodRow
from jaxfuse.methods import Facts
from jaxfuse.metrics import semantic
from jaxfuse.train import loop, setup
from tiny_segmenter import quick_segmenter  # noqa: F401 (a fixture)

STEPS = 4
SCENES = {"train": 6, "test": 4}
SEEDS = {"train": 5, "test": 7}
SIZE = {"height": 32, "width": 48}
ROWS = ("mixed", "visible", "infrared")


def synthetic(part: str) -> SourceConfig:
    return SourceConfig("synthetic", scenes=SCENES[part], seed=SEEDS[part], **SIZE)


def write_mixture(folder: Path, part: str) -> None:
    """A method: the mean of both images."""
    pairs = open_source(synthetic(part))
    (folder / part).mkdir(parents=True)
    for i in range(len(pairs)):
        pair = pairs[i]
        images.write(folder / part / f"{pair.stem}.png", (pair.visible + pair.infrared) / 2)


def plan(fused: Path, **changes: Any) -> Plan:
    given = {
        "methods": (Contender("mixed", str(fused / "{part}")),),
        "steps": STEPS,
        "seeds": 2,
        "batch_size": 2,
        "patch_size": 32,
        "devices": 1,
        "reference": "visible",
    }
    return Plan(synthetic("train"), synthetic("test"), **{**given, **changes})


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    for part in SCENES:
        write_mixture(folder, part)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "downstream"


@pytest.fixture(scope="module")
def found(fused: Path, out: Path) -> Judged:
    """The whole evaluation, once; its folder is `out`."""
    return downstream.run(plan(fused), out)


def test_every_row_trains_from_the_same_start(found: Judged, out: Path) -> None:
    assert [row.name for row in found.rows] == list(ROWS)
    networks = {}
    for row in ROWS:
        for seed in (0, 1):
            folder = out / "runs" / row / f"seed{seed}"
            read = weights.load_weights(folder)
            assert (read.name, read.metadata["step"]) == ("segformer_tiny", str(STEPS))
            experiment = config.load_json(folder / "config.json")
            assert experiment.seed == seed and experiment.method.name == "segmentation"
            networks[row, seed] = load_file(folder / "weights.safetensors")
    key = "head/classifier/weight"
    between_rows = np.abs(networks["mixed", 0][key] - networks["visible", 0][key]).mean()
    between_seeds = np.abs(networks["mixed", 0][key] - networks["mixed", 1][key]).mean()
    # Few steps have hardly moved them from where they started, which is the seed's.
    assert 0 < between_rows < 0.5 * between_seeds


def test_confusions_count_every_labelled_pixel(found: Judged, out: Path) -> None:
    labels = [images.read_labels(path) for path in found.pictures["labels"]]
    assert set(found.counts) == {"retrained", "frozen"}
    for rows in found.counts.values():
        for counts in rows.values():
            assert counts.shape == (2, SCENES["test"], len(CLASSES), len(CLASSES))
            for i, each in enumerate(labels):
                there = np.bincount(each[each != 255], minlength=len(CLASSES))
                np.testing.assert_array_equal(counts[:, i].sum(-1), [there, there])
    for row, pictures in found.pictures.items():
        assert len(pictures) == SCENES["test"], row
    # Frozen networks are those trained on visible pictures.
    np.testing.assert_array_equal(
        found.counts["frozen"]["visible"], found.counts["retrained"]["visible"]
    )
    assert (found.counts["frozen"]["mixed"] != found.counts["retrained"]["mixed"]).any()


def test_kept_predictions_are_those_counted(found: Judged) -> None:
    for way, rows in found.maps.items():
        for row, maps in rows.items():
            assert list(maps) == list(downstream.to_show(found.times))
            for i, predicted in maps.items():
                labels = images.read_labels(found.pictures["labels"][i])
                slow = np.zeros((len(CLASSES),) * 2, int)
                for true, seen in zip(labels.ravel(), predicted.ravel(), strict=True):
                    if true != 255:
                        slow[true, seen] += 1
                np.testing.assert_array_equal(slow, found.counts[way][row][0, i])


def test_the_set_is_written_as_it_is(found: Judged, out: Path) -> None:
    pairs = open_source(synthetic("train"))
    read = open_source(
        SourceConfig(
            "folders",
            infrared=str(out / "set/train/ir"),
            visible=str(out / "set/train/vi"),
            labels=str(out / "set/train/labels"),
        )
    )
    for i in range(len(pairs)):
        for ours, theirs in zip(pairs[i][1:4], read[i][1:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert found.times == tuple(open_source(synthetic("test")).time(i) for i in range(4))


def test_what_is_there_is_not_done_again(
    found: Judged, fused: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.loop, "run", None)
    monkeypatch.setattr(training, "confusion", None)
    monkeypatch.setattr(downstream_set, "_write", None)
    assert_equal(downstream.run(plan(fused), out), found)


def test_given_weights_judge_frozen_or_start_the_training(
    found: Judged, fused: Path, out: Path
) -> None:
    network = out / "runs" / "visible" / "seed0"
    again = downstream.run(plan(fused, frozen=str(network)), out)
    for row in ROWS:
        first = found.counts["frozen"][row][0]
        np.testing.assert_array_equal(again.counts["frozen"][row], np.stack([first, first]))
    assert set(downstream.run(plan(fused, frozen="none"), out).counts) == {"retrained"}
    experiment = training.experiment_of(
        plan(fused, start=str(network)), synthetic("train"), len(CLASSES), seed=5
    )
    _, method = setup.build(experiment, Facts(STEPS))
    params = method.init(jax.random.key(0))
    saved = load_file(network / "weights.safetensors")
    np.testing.assert_array_equal(
        params["head"]["classifier"]["weight"], saved["head/classifier/weight"]
    )


def assert_equal(ours: Judged, theirs: Judged) -> None:
    for way, rows in theirs.counts.items():
        for row, counts in rows.items():
            np.testing.assert_array_equal(ours.counts[way][row], counts, err_msg=f"{way} {row}")


@pytest.mark.slow
def test_a_killed_evaluation_continues_to_the_same_end(
    found: Judged, fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the second training, then started anew."""
    asked, stops = plan(fused), []
    update = loop._Session._summary

    def interrupt(self: Any, state: Any, step: int, *rest: Any) -> Any:
        if self.folder.parent.name == "visible" and not stops:
            stops.append(step)
            raise KeyboardInterrupt
        return update(self, state, step, *rest)

    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(loop._Session, "_summary", interrupt)
    with pytest.raises(KeyboardInterrupt):
        downstream.run(asked, tmp_path / "out")
    assert stops == [2]
    assert not (tmp_path / "out" / "runs" / "infrared").exists()
    assert_equal(downstream.run(asked, tmp_path / "out"), found)


def test_other_pictures_than_a_run_began_with_are_noticed(
    found: Judged, fused: Path, out: Path, tmp_path: Path
) -> None:
    other, copied = tmp_path / "fused", tmp_path / "out"
    shutil.copytree(fused, other)
    shutil.copytree(out / "runs", copied / "runs")
    asked = plan(other)
    picture = next((other / "train").glob("*.png"))
    images.write(picture, 1 - images.read_visible(picture))
    experiment = config.load_json(copied / "runs/mixed/seed0/config.json")
    source = dataclasses.replace(
        experiment.data.target, visible=str(other / "train"), split=str(out / "set/train/stems.txt")
    )
    folder = copied / "runs" / "mixed" / "seed0"
    digest = training.digest_of(sorted((other / "train").iterdir()))
    with pytest.raises(PlanError, match="learned from other pictures than there are now"):
        training.learn(experiment, folder, STEPS, digest, overwrite=False)
    changed = training.experiment_of(asked, source, len(CLASSES), 0)
    with pytest.raises(UserError, match=r"data\.target\.visible"):
        training.learn(changed, folder, STEPS, digest, overwrite=False)


# ------------------------------------------------------------------ what confusions say


def judged(
    counts: np.ndarray, times: tuple[str, ...], rows: tuple[str, ...] = ("a", "b")
) -> Judged:
    """counts: (rows, seeds, images, classes, classes)."""
    names = [f"class {i}" for i in range(counts.shape[-1])]
    return Judged(
        class_lists.plain_list("classes", names),
        tuple(MethodRow(name, "pictures", name) for name in rows),
        rows[0],
        tuple(range(counts.shape[1])),
        tuple(f"image{i}" for i in range(len(times))),
        times,
        {"retrained": dict(zip(rows, counts, strict=True))},
        {},
        {},
        {},
        (),
        {},
        "today",
    )


def random_counts(rows: int, seeds: int, images: int, better: int = 0) -> np.ndarray:
    """Each row hits `better` more pixels of each class than the one before, on average."""
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 6, (rows, seeds, images, 3, 3))
    for row in range(rows):
        counts[row][..., range(3), range(3)] += 20 + better * row
    return counts.astype(np.int64)


def slow_miou(counts: np.ndarray) -> float:
    """Of (images, classes, classes)."""
    total = sum(counts)
    each = []
    for k in range(len(total)):
        union = sum(total[k]) + sum(total[:, k]) - total[k, k]
        if union:
            each.append(total[k, k] / union)
    return float(np.mean(each))


def test_the_summary_is_that_of_slow_numpy() -> None:
    times = ("day", "night", "day", "night", "unknown", "night", "night", "day")
    counts = random_counts(2, 3, len(times), better=30)
    said = downstream_summary.summarise(judged(counts, times), resamples=300)["retrained"]
    assert list(said) == ["all", "day", "night"]
    for time, cells in said.items():
        chosen = [i for i, x in enumerate(times) if time in ("all", x)]
        for r, row in enumerate("ab"):
            each = [slow_miou(counts[r, s][chosen]) for s in range(3)]
            assert cells[row].seeds == pytest.approx(each)
            assert cells[row].mean.value == pytest.approx(np.mean(each))
            assert cells[row].images == len(chosen)
        gap = cells["b"].mean.value - cells["a"].mean.value
        difference = cells["b"].difference
        assert cells["a"].difference is None and difference is not None
        assert difference.value == pytest.approx(gap)
        assert difference.low < gap < difference.high
        wanted = semantic.set_differences(counts[1][:, chosen], counts[0][:, chosen], resamples=300)
        assert (difference, cells["b"].p) == (wanted[0], wanted[2])
        assert cells["b"].adjusted == cells["b"].p < 0.05


def test_day_and_night_stand_apart_only_where_both_are_known() -> None:
    assert list(downstream_summary.groups(("day", "day", "unknown"))) == ["all"]
    assert list(downstream_summary.groups(("day", "night"))) == ["all", "day", "night"]


def test_images_to_show_are_spread_over_day_and_night() -> None:
    times = ("day",) * 20 + ("night",) * 3
    shown = downstream.to_show(times, 6)
    assert shown == (0, 10, 19, 20, 21, 22)
    assert downstream.to_show(("unknown",)) == (0,)
    assert downstream.to_show(("day", "night"), 1) == (0, 1)


def test_files_tell_the_same(found: Judged, tmp_path: Path) -> None:
    said = downstream_summary.summarise(found, resamples=20)
    written = downstream_summary.save(found, said, tmp_path)
    assert [path.name for path in written] == list(downstream_summary.WRITTEN)
    tree = json.loads((tmp_path / "downstream.json").read_text(encoding="utf8"))
    assert tree["classes"] == list(CLASSES) and tree["reference"] == "visible"
    with np.load(tmp_path / tree["confusions"]) as arrays:
        for way, rows in found.counts.items():
            for row, counts in rows.items():
                np.testing.assert_array_equal(arrays[f"{way}/{row}"], counts)
    with (tmp_path / "downstream.csv").open(encoding="utf8") as file:
        lines = list(csv.DictReader(file))
    values = [
        float(line["iou"])
        for line in lines
        if (line["way"], line["row"], line["time"], line["class"])
        == ("retrained", "mixed", "all", "mean")
    ]
    cell = tree["summary"]["retrained"]["all"]["mixed"]
    assert values == cell["seeds"] and np.mean(values) == pytest.approx(cell["miou"]["value"])
    table = (tmp_path / "table.md").read_text(encoding="utf8")
    assert f"{100 * cell['miou']['value']:.1f} [" in table
    assert "4 images, 2 seeds" in table and "2 seeds say little" in found.remarks[0]


def test_panels_show_every_row_in_the_colours_of_the_list(found: Judged, tmp_path: Path) -> None:
    written = downstream_panels.write(found, tmp_path)
    assert [path.stem for path in written] == [
        found.stems[i] for i in downstream.to_show(found.times)
    ]
    number = downstream.to_show(found.times)[0]
    picture = downstream_panels.panel(found, number)
    labels = images.read_labels(found.pictures["labels"][number])
    shown = panels.colours(labels, found.classes)
    top = SIZE["height"] + panels.LINE + panels.GAP + panels.LINE
    np.testing.assert_array_equal(picture[top : top + 32, :48], shown)
    assert [tuple(x) for x in panels.colours(np.array([255, 1]), found.classes)] == [
        (255, 255, 255),
        found.classes.palette[1],
    ]


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": (Contender("visible", "x"),)}, "method 'visible': the baseline is called so"),
        ({"methods": (Contender("a"),)}, "give either fused or weights"),
        ({"train": synthetic("test")}, "train and test are the same pairs"),
        ({"train": SourceConfig()}, "train: names no set"),
        ({"segmenter": "unet"}, "segmenter 'unet': choose one of segformer_b0"),
        ({"epochs": 2.0}, "steps = 4 and epochs = 2: give one of them"),
        ({"steps": -1}, "steps = -1: use 0 or more"),
        ({"classes": 1}, "classes = 1: use 2 to 255"),
        ({"seeds": 0}, "seeds = 0: give 1 or more"),
        ({"seeds": (1, 1)}, r"seeds = \(1, 1\)"),
        ({"reference": "other"}, "reference 'other' is not a row: choose one of mixed, visible"),
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, Any], words: str, fused: Path) -> None:
    with pytest.raises(PlanError, match=words):
        dataclasses.replace(plan(fused), **changes)


def labelled(root: Path, stems: str = "abcd", classes: int = 3, seed: int = 0) -> Path:
    """A small labelled set of folders, 32 x 32."""
    rng = np.random.default_rng(seed)
    for name in ("ir", "vi", "labels"):
        (root / name).mkdir(parents=True)
    for stem in stems:
        images.write(root / "vi" / f"{stem}.png", rng.random((32, 32, 3), np.float32))
        images.write(root / "ir" / f"{stem}.png", rng.random((32, 32, 1), np.float32))
        write_labels(root / "labels" / f"{stem}.png", rng.integers(0, classes, (32, 32)))
    for name, some in (("train", stems[:2]), ("test", stems[2:])):
        (root / f"{name}.txt").write_text("\n".join(some), encoding="utf8")
    return root


def write_labels(path: Path, labels: np.ndarray) -> None:
    images.write(path, labels.astype(np.float32) / np.float32(255))


def asked_of(root: Path, **changes: Any) -> Plan:
    given = {"classes": 3, "steps": 1, "batch_size": 2, "patch_size": 32, "devices": 1}
    return plans.from_words(
        "",
        (str(root), str(root / "test.txt")),
        ("", str(root / "train.txt")),
        "",
        (),
        (),
        **{**given, **changes},
    )


def remove_labels(root: Path) -> None:
    (root / "labels" / "d.png").unlink()


def wrong_values(root: Path) -> None:
    write_labels(root / "labels" / "a.png", np.full((32, 32), 7))


def wrong_size(root: Path) -> None:
    write_labels(root / "labels" / "c.png", np.zeros((32, 16)))


def all_ignored(root: Path) -> None:
    write_labels(root / "labels" / "b.png", np.full((32, 32), 255))


def colours(root: Path) -> None:
    images.write(root / "labels" / "b.png", np.random.default_rng(0).random((32, 32, 3)))


def in_both(root: Path) -> None:
    (root / "test.txt").write_text("b\nc\n", encoding="utf8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_labels, r"vi: no label map for 1 of 2 pairs of the test part: d: put index PNG"),
        (wrong_values, r"a\.png: labels 7 in 1024 pixels: classes has values 0\.\.2"),
        (wrong_size, r"c\.png: 32 x 16 pixels"),
        (all_ignored, r"b\.png: every pixel is ignored"),
        (colours, r"b\.png: a colour mask \(RGB\)"),
        (in_both, r"b\.png: is in both parts \(1 pair in all\):"),
    ],
)
def test_bad_labels_are_found_before_anything_is_computed(
    damage: Callable[[Path], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = labelled(tmp_path / "set")
    damage(root)
    monkeypatch.setattr(downstream, "_make", None)
    with pytest.raises(UserError, match=words):
        downstream.run(asked_of(root), tmp_path / "out")


def test_what_does_not_fit_the_set_is_refused(tmp_path: Path, found: Judged, out: Path) -> None:
    root = labelled(tmp_path / "set")
    network = out / "runs" / "visible" / "seed0" / "weights.safetensors"
    for changes, words in (
        ({"frozen": str(network)}, r"weights\.safetensors: has 9 classes, 3 are asked for"),
        ({"start": str(network)}, r"weights\.safetensors: has 9 classes, 3 are asked for"),
        ({"frozen": "crossfuse"}, "a fusion network: give weights of a segmentation network"),
        ({"start": str(network), "classes": 9, "segmenter": "segformer_b0"}, "segformer_tiny, but"),
        ({"patch_size": 64}, "at most 32"),
        ({"patch_size": 16, "segmenter": "segformer_b0"}, "data.patch_size = 16"),
        ({"batch_size": 3}, "2 training patches are fewer than train.batch_size = 3"),
        ({"classes": ""}, "classes: these sets do not say what their labels mean"),
        ({"classes": str(tmp_path / "none.txt")}, "none.txt: cannot be read"),
        ({"methods": (Contender("m", str(root / "vi" / "{part}")),)}, "no such folder"),
        ({"methods": (Contender("m", weights="no/such"),)}, "no/such: no such file"),
    ):
        with pytest.raises(UserError, match=words):
            downstream.run(
                dataclasses.replace(asked_of(root), **changes), tmp_path / "out", overwrite=True
            )
    # Methods that bring pictures of one part only.
    (tmp_path / "half").mkdir()
    images.write(tmp_path / "half" / "c.png", np.full((32, 32, 3), 0.5, np.float32))
    images.write(tmp_path / "half" / "d.png", np.full((32, 32, 3), 0.5, np.float32))
    half = (Contender("half", str(tmp_path / "half")),)
    with pytest.raises(FileError, match="no picture for 2 of 2 pairs of the train part: a, b"):
        downstream.run(dataclasses.replace(asked_of(root), methods=half), tmp_path / "out")


def test_another_set_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("x", encoding="utf8")
    root = labelled(tmp_path / "pairs")
    with pytest.raises(FileError, match="set: holds another set: name another --out"):
        downstream.run(asked_of(root), tmp_path, overwrite=True)
    assert (tmp_path / "set" / "mine.txt").exists()


def records(root: Path, out: Path, **lists: str) -> SourceConfig:
    """A set of folders, prepared; lists: stems of each split, a letter each."""
    files = {name: root / f"{name}_list.txt" for name in lists}
    for name, stems in lists.items():
        files[name].write_text("\n".join(stems), encoding="utf8")
    given = {name: str(path) for name, path in files.items()}
    folder = prepare(
        layouts.PUBLIC["folders"], root, out, lists=given, classes=class_lists.numbered(3)
    ).folder
    return SourceConfig("records", root=str(folder))


def split_of(source: SourceConfig, split: str) -> Any:
    return open_source(dataclasses.replace(source, split=split))


def test_records_of_the_same_pair_are_found_in_other_splits_and_sets(tmp_path: Path) -> None:
    root = labelled(tmp_path / "pairs")
    first = records(root, tmp_path / "one", train="ab", test="cd")
    other = records(root, tmp_path / "two", train="bc", test="d")
    downstream_set.check_apart(split_of(first, "train"), split_of(first, "test"))
    for train, test in (
        (split_of(first, "train"), split_of(other, "train")),
        (split_of(other, "train"), split_of(first, "test")),
        (split_of(first, "train"), split_of(first, "train")),
        (open_source(SourceConfig("folders", root=str(root))), split_of(first, "test")),
    ):
        with pytest.raises(PlanError, match=r"is in both parts \((1 pair|2 pairs) in all\):"):
            downstream_set.check_apart(train, test)
    # The same names of other pictures are no leak.
    apart = records(labelled(tmp_path / "more", seed=1), tmp_path / "three", train="ab", test="cd")
    downstream_set.check_apart(split_of(first, "train"), split_of(apart, "train"))


def test_a_set_of_records_made_anew_is_another_set(tmp_path: Path) -> None:
    root = labelled(tmp_path / "pairs")
    source = records(root, tmp_path / "prepared", train="ab", test="cd")
    asked = dataclasses.replace(
        asked_of(root),
        train=dataclasses.replace(source, split="train"),
        test=dataclasses.replace(source, split="test"),
    )
    out = tmp_path / "out"

    def write(overwrite: bool = False) -> dict[str, downstream_set.Part]:
        pairs = {part: open_source(getattr(asked, part)) for part in ("train", "test")}
        classes = class_lists.numbered(3)
        return downstream._write_set(asked, out, classes, pairs, overwrite, None)

    write()
    before = images.read_visible(out / "set" / "train" / "vi" / "a.png")
    write()
    images.write(root / "vi" / "a.png", 1 - before)
    shutil.rmtree(tmp_path / "prepared")
    records(root, tmp_path / "prepared", train="ab", test="cd")
    with pytest.raises(FileError, match="set: holds another set: name another --out, or add"):
        write()
    write(overwrite=True)
    after = images.read_visible(out / "set" / "train" / "vi" / "a.png")
    np.testing.assert_allclose(after, 1 - before, atol=1e-6)


def test_scenes_that_look_otherwise_are_another_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Plan(synthetic("train"), synthetic("test"))
    pairs = {part: open_source(synthetic(part)) for part in SCENES}
    classes = pairs["train"].classes
    downstream._write_set(asked, tmp_path, classes, pairs, False, None)
    downstream._write_set(asked, tmp_path, classes, pairs, False, None)
    drawn = SyntheticPairs.__getitem__
    monkeypatch.setattr(
        SyntheticPairs,
        "__getitem__",
        lambda self, i: drawn(self, i)._replace(visible=1 - drawn(self, i).visible),
    )
    with pytest.raises(FileError, match="set: holds another set"):
        downstream._write_set(asked, tmp_path, classes, pairs, False, None)


PROTOCOL = """
task = "segmentation"
classes = "names.txt"
seeds = [1, 2, 3]
frozen = "none"
[train]
root = "street"
split = "train.txt"
[test]
kind = "dataset"
name = "msrs"
root = "street"
split = "test"
[[methods]]
name = "ours"
weights = "runs/{seed}"
[[methods]]
name = "theirs"
fused = "theirs/{part}"
"""


def test_a_protocol_file_is_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "protocol.toml"
    path.write_text(PROTOCOL, encoding="utf8")
    (tmp_path / "names.txt").write_text("road\ncar\n", encoding="utf8")
    found = plans.read_protocol(path)
    assert plans.is_protocol(path)
    assert found.train == SourceConfig(
        "folders", root=str(tmp_path / "street"), split=str(tmp_path / "train.txt")
    )
    assert (found.test.kind, found.test.split) == ("dataset", "test")
    assert found.classes == str(tmp_path / "names.txt") and found.seed_numbers == (1, 2, 3)
    assert found.methods[0].weights == str(tmp_path / "runs/{seed}")
    assert plans.source_of(found.methods[0].weights, 2) == str(tmp_path / "runs/2")
    assert found.methods[1].fused == str(tmp_path / "theirs/{part}")
    assert (found.compared_to, found.rows) == ("ours", ("ours", "theirs", "visible", "infrared"))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('task = "segmentation"', 'task = "detection"', "task = 'detection': write task ="),
        ('frozen = "none"', "rate = 1", "the file: unknown 'rate': use train, test"),
        ('fused = "theirs/{part}"', 'pictures = "x"', "methods 2: unknown 'pictures'"),
        ('split = "train.txt"', 'splits = "x"', r"\[train\]: unknown 'splits'"),
        ("[train]", "[other]", r"\[train\] is missing"),
        ("seeds = [1, 2, 3]", 'seeds = "three"', "seeds"),
        ('name = "msrs"', "", "source.name"),
    ],
)
def test_a_protocol_says_what_is_wrong_with_it(
    before: str, after: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "protocol.toml"
    path.write_text(PROTOCOL.replace(before, after), encoding="utf8")
    with pytest.raises(PlanError, match=words) as error:
        plans.read_protocol(path)
    assert "protocol.toml" in str(error.value)


def test_the_command_line_replaces_the_length_that_a_protocol_gives(tmp_path: Path) -> None:
    path = tmp_path / "protocol.toml"
    for length, changes, expected in (
        ("steps = 40", {"epochs": 2.0, "steps": 0}, (0, 2.0)),
        ("epochs = 3.0", {"steps": 7}, (7, 0.0)),
        ("steps = 40", {"steps": 7}, (7, 0.0)),
        ("steps = 40", {"batch_size": 4}, (40, 0.0)),
    ):
        path.write_text(f"{length}\n{PROTOCOL}", encoding="utf8")
        found = plans.from_words(str(path), ("", ""), ("", ""), "", (), (), **changes)
        assert (found.steps, found.epochs) == expected
    with pytest.raises(PlanError, match="steps = 7 and epochs = 2: give one of them"):
        plans.from_words(str(path), ("", ""), ("", ""), "", (), (), steps=7, epochs=2.0)


@pytest.mark.parametrize(
    ("test", "train", "complaint"),
    [
        (("set", "a.txt"), ("", ""), "--root set: give --train-split FILE too"),
        (("set", ""), ("", "a.txt"), "--root set: give --split FILE too"),
        (("set", "a.txt"), ("set", "a.txt"), "--split a.txt: is --train-split too"),
        (("", ""), ("", ""), "no labelled pairs: give --root"),
    ],
)
def test_one_folder_needs_two_splits(test: tuple, train: tuple, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        plans.from_words("", test, train, "", (), ())


def test_the_download_of_a_public_set_knows_its_parts() -> None:
    found = plans.from_words("", ("msrs", ""), ("", ""), "msrs", (), ())
    assert (found.train.split, found.test.split) == ("train", "test")
    assert found.train.kind == "dataset" and found.train.name == found.test.name == "msrs"
    other = plans.from_words("", ("mfnet", ""), ("", "val"), "mfnet", (), ())
    assert (other.train.split, other.test.split) == ("val", "test")


def test_a_stop_in_the_last_step_of_a_training_stops_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = loop.Outcome(1, 0.5, tmp_path, asked_to_stop=True)
    monkeypatch.setattr(loop, "run", lambda experiment, folder: ended)
    monkeypatch.setattr(training.setup, "may_continue", lambda folder, experiment: False)
    with pytest.raises(loop.Preempted, match="give the same command again"):
        training.learn(config.Experiment(), tmp_path / "row" / "seed0", 1, "0", False)


def test_words_on_the_command_line_are_a_plan(tmp_path: Path) -> None:
    root = labelled(tmp_path / "set")
    assert asked_of(root, classes="3").classes == 3
    for given, words in (
        (("", ("", ""), ("", "")), "no labelled pairs: give --root DIR"),
        (("", ("a", ""), ("", "")), "--root a: give --train-split FILE"),
        (("p.toml", ("a", ""), ("", "")), "--protocol p.toml names the sets"),
    ):
        with pytest.raises(PlanError, match=words):
            plans.from_words(*given, "", (), ())


def test_synthetic_scenes_tell_their_time_and_classes() -> None:
    pairs = SyntheticPairs(8, 32, 48, seed=2)
    times = [pairs.time(i) for i in range(8)]
    assert set(times) == {"day", "night"}
    assert [pairs.stem(i)[-1] for i in range(8)] == [{"day": "D", "night": "N"}[t] for t in times]
    assert pairs.classes.names == CLASSES


def test_the_command_writes_everything(
    found: Judged, fused: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the folder of the run above: nothing is trained again."""
    path = tmp_path / "protocol.toml"
    parts = "".join(
        f'[{part}]\nkind = "synthetic"\nscenes = {count}\nseed = {SEEDS[part]}\nheight = 32\n'
        "width = 48\n"
        for part, count in SCENES.items()
    )
    path.write_text(
        'task = "segmentation"\nseeds = 2\nbatch_size = 2\npatch_size = 32\ndevices = 1\n'
        f'reference = "visible"\nsteps = {STEPS}\n{parts}[[methods]]\nname = "mixed"\n'
        f"fused = {json.dumps(str(fused / '{part}'))}\n",
        encoding="utf8",
    )
    assert cli.main(["evaluate", "--protocol", str(path), "--out", str(out), "--report"]) == 0
    said = capsys.readouterr()
    assert str(out / "report.html") in said.out
    assert "networks that learned from the row" in (out / "report.html").read_text(encoding="utf8")
    assert cli.main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert "page.html (0." in capsys.readouterr().out
    assert "retrained: networks that learned" in said.out and "mIoU night" in said.out
    assert "2 seeds say little" in said.err
    for name in downstream_summary.WRITTEN:
        assert str(out / name) in said.out and (out / name).exists()
    assert len(list((out / "panels").glob("*.png"))) == len(downstream.to_show(found.times))
    assert cli.main(["evaluate", "--protocol", str(path), "--out", str(out)]) == 1
    assert "downstream.json: is there already: name another --out" in capsys.readouterr().err
    assert cli.main(["evaluate", "--task", "segmentation", "--seeds", "2"]) == 1
    assert "no labelled pairs" in capsys.readouterr().err
    assert math.isfinite(
        json.loads((out / "downstream.json").read_text())["summary"]["frozen"]["all"]["mixed"][
            "miou"
        ]["value"]
    )
