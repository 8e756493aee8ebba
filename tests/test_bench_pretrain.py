"""The packaged weights made again: from a folder of pairs to files with checksums."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_network
from bench import machine, pretrain
from jaxfuse import experiments, models, weights
from jaxfuse.config import Experiment


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pairs of both sets, in a folder of any name."""
    root, rng = tmp_path / "anywhere", np.random.default_rng(0)
    (root / "splits").mkdir(parents=True)
    for which in ("roadscene", "msrs"):
        for kind in ("ir", "vi"):
            (root / which / kind).mkdir(parents=True)
            for stem in "1234":
                picture = rng.integers(0, 256, (64, 80), np.uint8)
                assert cv2.imwrite(str(root / which / kind / f"{stem}.png"), picture)
        (root / "splits" / f"{which}_train.txt").write_text("1\n2\n3\n4\n", encoding="utf8")
    return root


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What this checkout's commit is said to be. Training is two steps of the tiny network."""
    said = {"commit": "1234567", "jax": "0"}
    (tmp_path / "pretrained").mkdir()
    monkeypatch.setattr(pretrain, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.setattr(machine, "versions", lambda: dict(said))
    monkeypatch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)
    found = experiments.find

    def short(name: str) -> Experiment:
        preset = found(name)
        model = dataclasses.replace(preset.model, name=tiny_network.NAME)
        method = dataclasses.replace(preset.method, stage2_epochs=2)
        external = dataclasses.replace(preset.data.external, top_k=2)
        read = dataclasses.replace(preset.data, external=external)
        train = dataclasses.replace(preset.train, steps_per_epoch=1)
        return dataclasses.replace(preset, model=model, method=method, data=read, train=train)

    monkeypatch.setattr(experiments, "find", short)
    return said


def test_weights_are_trained_put_and_summed(
    data: Path, commit: dict[str, str], tmp_path: Path
) -> None:
    asked = ["lite", "--data", str(data), "--work", str(tmp_path / "runs")]
    here = Path.cwd()
    assert pretrain.main(asked) == 0
    assert Path.cwd() == here
    path = tmp_path / "pretrained" / "tiny.safetensors"
    said = weights.load_weights(path).metadata
    assert said["experiment"] == "packaged_lite_contrast"
    assert (said["commit"], said["step"]) == ("1234567", "2")
    assert said["began_with"] == "packaged_lite of commit 1234567"
    assert '"start": "runs/packaged_lite"' in said["config"]
    assert str(tmp_path) not in said["config"] and '"root": "data/roadscene"' in said["config"]
    (line,) = (tmp_path / "pretrained" / weights.SUMS).read_text(encoding="utf8").splitlines()
    assert line == f"{weights._digest(path, 0)}  tiny.safetensors"
    # What is finished stays, and so does the commit that began it.
    commit["commit"] = "7654321"
    assert pretrain.main(asked) == 0
    assert weights.load_weights(path).metadata["commit"] == "1234567"


def test_a_second_part_is_of_the_first_that_it_began_with(
    data: Path, commit: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    asked = ["lite", "--data", str(data), "--work", str(runs)]
    commit["commit"] = "1111111"
    assert pretrain.main(asked) == 0
    first = runs / "packaged_lite.commit"
    assert first.read_text(encoding="utf8") == "1111111"
    first.write_text("7654321", encoding="utf8")
    assert pretrain.main(asked) == 0
    (path,) = (tmp_path / "pretrained").glob("*.safetensors")
    said = weights.load_weights(path).metadata
    assert (said["commit"], said["began_with"]) == ("1111111", "packaged_lite of commit 7654321")
    first.write_text("7654321+", encoding="utf8")
    assert pretrain.main(asked) == 1
    assert "packaged_lite: began with changes" in capsys.readouterr().err
    first.write_text("7654321", encoding="utf8")
    (runs / "packaged_lite" / "weights.safetensors").write_bytes(b"others")
    assert pretrain.main(asked) == 1
    assert "packaged_lite_contrast: began with other weights than now" in capsys.readouterr().err


def test_weights_of_no_commit_are_not_put(
    data: Path, commit: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit["commit"] = "1234567+"
    asked = ["lite", "--data", str(data), "--work", str(tmp_path / "runs")]
    assert pretrain.main(asked) == 1
    assert "changes that no commit holds (1234567+)" in capsys.readouterr().err
    assert not list((tmp_path / "pretrained").iterdir())


@pytest.mark.usefixtures("commit")
def test_data_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["lite", "--data", str(tmp_path / "gone"), "--work", str(tmp_path / "runs")]
    assert pretrain.main(asked) == 1
    assert "gone: has no folder splits" in capsys.readouterr().err
