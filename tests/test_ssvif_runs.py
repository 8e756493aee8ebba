"""SSVIF through the loop: continued bit for bit, doubted where it collapsed, bad labels refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_network
from jaxfuse import cli, config, models, weights
from jaxfuse.config import Experiment, SegmentationConfig, SourceConfig, SSVIFConfig, UserError
from jaxfuse.data.sources import open_source
from jaxfuse.data.synthetic import CLASSES
from jaxfuse.evaluate import panels, segments
from jaxfuse.ops import color
from jaxfuse.train import loop
from run_folders import arrays, assert_equal_runs, records, saved_steps, upto
from tiny_segmenter import quick_segmenter  # noqa: F401 (a fixture)

SIZE = 32


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)


def experiment(method: Any, **changes: Any) -> Experiment:
    """12 steps of 8 patches of 32x32 on generated scenes; stage II begins at step 4."""
    changes = {"data__patch_size": SIZE, "train__devices": 1, **changes}
    given = tiny_network.experiment(**changes)
    alone = dataclasses.replace(given.data, external=config.ExternalConfig())
    return dataclasses.replace(given, method=method, data=alone)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a segmentation network with four classes."""
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    segmenter = models.create_segmenter("segformer_tiny", 4)
    params = jax.device_get(segmenter.init(jax.random.key(7)))
    weights.save_weights(path, segmenter.name, params, {})
    return path


@pytest.fixture(scope="module")
def remembering(start: Path) -> Experiment:
    """Everything a method may remember from step to step: loss averages and a slow teacher."""
    method = SSVIFConfig(
        stage1_epochs=1,
        stage2_epochs=2,
        classes=4,
        anchor="pretrained",
        teacher_decay=0.9,
        segmenter_weights=str(start),
        weighting="dwa",
        weighting_window=2,
    )
    return experiment(method, train__keep_last=100)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, remembering: Experiment) -> Path:
    """A run that was never interrupted. Not to be written to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)
        loop.run(remembering, folder)
    return folder


def test_a_run_continued_in_the_middle_of_stage_two_is_the_same(
    straight: Path, remembering: Experiment, tmp_path: Path
) -> None:
    assert saved_steps(straight) == [3, 4, 6, 9, 12]
    at_nine = arrays(upto(straight, 9, tmp_path / "run"))
    memory = {name: x for name, x in at_nine.items() if name.startswith(".memory")}
    assert {name.split("'")[1] for name in memory} == {"dwa", "teacher"}
    assert memory[".memory['dwa']['count']"] == 1  # in the middle of a window of two
    loop.run(remembering, tmp_path / "run")
    assert_equal_runs(tmp_path / "run", straight)


def test_the_signs_are_logged(straight: Path) -> None:
    last = records(straight)[-1]
    assert last["stage"] == "guided"
    assert 1 <= last["classes_in_use"] <= 4
    assert 0.25 <= last["confidence"] <= 1 and 0 <= last["agreement"] <= 1
    assert last["weight_fusion"] + last["weight_guidance"] == pytest.approx(2, rel=1e-5)


def test_what_is_kept_is_the_fusion_network_only(straight: Path) -> None:
    kept = weights.load_weights(straight / "weights.safetensors")
    assert kept.name == tiny_network.NAME
    fresh = models.create(tiny_network.NAME).init(jax.random.key(0))
    assert jax.tree.structure(kept.params) == jax.tree.structure(fresh)


@pytest.mark.slow
def test_a_collapsed_run_does_not_succeed(
    tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A segmentation network that starts from one class everywhere, and nothing against it."""
    read = weights.load_weights(start, 4)
    head = read.params["head"]["classifier"]
    biased = {**head, "bias": np.array([40, 0, 0, 0], np.float32)}
    params = {**read.params, "head": {**read.params["head"], "classifier": biased}}
    weights.save_weights(tmp_path / "constant.safetensors", read.name, params, {})
    method = SSVIFConfig(
        stage1_epochs=0,
        stage2_epochs=1,
        classes=4,
        anchor="none",
        segmenter_weights=str(tmp_path / "constant.safetensors"),
        segmenter_learning_rate=0.1,
    )
    path = tmp_path / "collapse.json"
    asked = experiment(method, train__steps_per_epoch=20)
    path.write_text(config.to_json(asked), encoding="utf8")
    assert cli.main(["train", str(path), "--run", str(tmp_path / "run")]) == 1
    said = capsys.readouterr()
    assert "have collapsed" in said.err and "of 4 classes in use" in said.err
    assert "method.anchor = 'balanced' or 'pretrained'" in said.err
    assert records(tmp_path / "run")[-1]["classes_in_use"] < 1.5
    assert (tmp_path / "run" / "weights.safetensors").exists()  # nothing is lost
    # Asked for again, it is complete, and has still not succeeded.
    assert cli.main(["train", str(path), "--run", str(tmp_path / "run")]) == 1
    assert "have collapsed" in capsys.readouterr().err


# Bad labels.


def pairs(root: Path) -> Path:
    """Two labelled pairs of 40x48, three classes."""
    rng = np.random.default_rng(0)
    for name in ("ir", "vi", "labels"):
        (root / name).mkdir(parents=True)
    for stem in "ab":
        cv2.imwrite(str(root / "vi" / f"{stem}.png"), rng.integers(0, 256, (40, 48, 3), np.uint8))
        cv2.imwrite(str(root / "ir" / f"{stem}.png"), rng.integers(0, 256, (40, 48), np.uint8))
        labels = rng.integers(0, 3, (40, 48)).astype(np.uint8)
        cv2.imwrite(str(root / "labels" / f"{stem}.png"), labels)
    return root


def learn_from(root: Path, method: Any) -> Experiment:
    source = SourceConfig(kind="folders", root=str(root))
    return experiment(method, data__target=source, train__steps_per_epoch=1, train__batch_size=4)


LABELS = SSVIFConfig(guidance="labels", classes=3, stage1_epochs=0, stage2_epochs=1)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda x: np.where(x == 2, 7, x), "labels 7 in * pixels, but there are 3 classes, 0 to 2"),
        (lambda x: x[:20], "b.png: 20 x 48 pixels (height x width), but * has 40 x 48"),
        (
            lambda x: np.stack([x, x, x], -1),
            "b.png: an index mask stored in three equal channels (values 0, 1, 2)",
        ),
        (
            lambda x: np.array([[0, 0, 0], [128, 0, 64], [0, 128, 64]], np.uint8)[x],
            "b.png: a colour mask (RGB)",
        ),
        (lambda x: np.full_like(x, 255), "b.png: every pixel is ignored (values 255)"),
    ],
    ids=["outside the classes", "another size", "three channels", "colours", "all ignored"],
)
@pytest.mark.parametrize("method", [LABELS, SegmentationConfig(classes=3, epochs=1)], ids=type)
def test_bad_labels_end_training_with_the_values_found(
    tmp_path: Path, method: Any, spoil: Any, complaint: str
) -> None:
    root = pairs(tmp_path / "set")
    path = root / "labels" / "b.png"
    cv2.imwrite(str(path), spoil(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
    with pytest.raises(UserError) as caught:
        loop.run(learn_from(root, method), tmp_path / "run")
    said = str(caught.value)
    assert all(part in said for part in complaint.split("*")), said
    assert "b.png: " in said and "\n" not in said


def test_missing_label_maps_are_named_before_a_run_begins(tmp_path: Path) -> None:
    root = pairs(tmp_path / "set")
    (root / "labels" / "b.png").unlink()
    with pytest.raises(UserError, match=r"no label map for 1 of 2 pairs of data\.target: b"):
        loop.run(learn_from(root, LABELS), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_set_with_other_classes_is_refused(tmp_path: Path) -> None:
    complaint = rf"method\.classes = 3, .* data\.target have {len(CLASSES)} classes \(background"
    with pytest.raises(UserError, match=complaint):
        loop.run(experiment(LABELS), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_with_other_classes_are_refused(tmp_path: Path, start: Path) -> None:
    method = dataclasses.replace(LABELS, segmenter_weights=str(start))
    with pytest.raises(UserError, match=r"start\.safetensors.*4 classes.*3"):
        loop.run(learn_from(pairs(tmp_path / "set"), method), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_label_map_may_ignore_some_pixels(tmp_path: Path) -> None:
    root = pairs(tmp_path / "set")
    for stem in "ab":
        path = root / "labels" / f"{stem}.png"
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        labels[:20] = 255
        cv2.imwrite(str(path), labels)
    loop.run(learn_from(root, SegmentationConfig(classes=3, epochs=1)), tmp_path / "run")
    (last,) = records(tmp_path / "run")
    assert np.isfinite(last["loss"]) and 0 <= last["accuracy"] <= 1


# What the two segmentations see.


def test_segments_before_and_after_stage_two(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seen"
    assert cli.main(["segments", str(straight), "--out", str(out), "--limit", "3"]) == 0
    assert "3 pictures of 4 (--limit 0 for all)" in capsys.readouterr().out
    assert len(list(out.glob("*.png"))) == 3
    assert cli.main(["segments", str(straight), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "before stage II: A and B agree" in said and "after stage II: A and B agree" in said
    files = sorted(out.glob("*.png"))
    assert len(files) == 4
    told = json.loads((out / "segments.json").read_text(encoding="utf8"))
    assert [f"{stem}.png" for stem in told["images"]] == [file.name for file in files]
    each = [x["after"]["agreement"] for x in told["images"].values()]
    assert (
        told["means"]["after"]["agreement"] == pytest.approx(np.mean(each)) and told["step"] == 12
    )
    run = segments.load(straight)
    assert run.step == 12
    for module in ("fusion", "head"):
        pairs = zip(*map(jax.tree.leaves, (run.before[module], run.after[module])), strict=True)
        assert any(not np.array_equal(a, b) for a, b in pairs), module
    # Before: the fusion network as stage I left it, the others as they began.
    first = weights.load_weights(straight / "stages" / "fusion.safetensors").params
    assert jax.tree.all(jax.tree.map(np.array_equal, run.before["fusion"], first))
    panel = cv2.imread(str(files[0]))
    assert panel.shape[0] == 3 * (32 + panels.LINE + panels.GAP)
    rows = np.split(panel, 3)
    assert not np.array_equal(rows[1], rows[2])


@pytest.mark.slow
def test_the_signs_of_pictures_are_those_of_their_maps(straight: Path, tmp_path: Path) -> None:
    run = segments.load(straight)
    source = run.experiment.data.target
    means, _ = segments.write(run, open_source(source), tmp_path / "seen")
    agreed = []
    for i in range(source.scenes):
        pair = open_source(source)[i]
        visible, infrared = jnp.asarray(pair.visible)[None], jnp.asarray(pair.infrared)[None]
        fused = run.networks.fusion.apply(run.after["fusion"], color.luma(visible), infrared)
        a = run.networks.head.apply(run.after["head"], fused.features)
        shown = color.replace_luma(visible, fused.image)
        b = run.networks.segmenter.apply(run.after["segmenter"], shown)
        agreed.append(np.mean(jnp.argmax(a, -1) == jnp.argmax(b, -1)))
    assert means["after"]["agreement"] == pytest.approx(np.mean(agreed), abs=0.02)


def test_runs_without_two_segmentations_are_refused(tmp_path: Path, straight: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        segments.load(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    text = config.to_json(experiment(LABELS))
    (folder / "config.json").write_text(text, encoding="utf8")
    with pytest.raises(UserError, match=r"guidance 'labels': only SSVIF's consistency"):
        segments.load(folder)
    early = upto(straight, 3, tmp_path / "early")
    with pytest.raises(UserError, match="is at step 3, and stage II has not begun"):
        segments.load(early)
    end = upto(straight, 4, tmp_path / "end")
    with pytest.raises(UserError, match="is at step 4, and stage II has not begun"):
        segments.load(end)
    small = SourceConfig(kind="synthetic", scenes=1, height=32, width=48)
    with pytest.raises(UserError, match=r"16x48 pixels .*segformer_tiny needs"):
        segments.write(segments.load(straight), Low(open_source(small)), tmp_path / "out")


class Low:
    """Pairs whose headers say that they are 16 rows high."""

    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def stem(self, index: int) -> str:
        return self.pairs.stem(index)

    def size(self, index: int) -> tuple[int, int]:
        return 16, self.pairs.size(index)[1]
