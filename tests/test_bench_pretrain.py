"""The packaged weights made again: from a folder of pairs to files with checksums."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_network
from bench import machine, pretrain
from jaxfuse import experiments, models, weights
from jaxfuse.config import Experiment


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of both sets, in a folder of any name."""
    root, rng = tmp_path_factory.mktemp("anywhere"), np.random.default_rng(0)
    (root / "splits").mkdir(parents=True)
    for which in ("roadscene", "msrs"):
        for kind in ("ir", "vi"):
            (root / which / kind).mkdir(parents=True)
            for stem in "1234":
                picture = rng.integers(0, 256, (64, 80), np.uint8)
                assert cv2.imwrite(str(root / which / kind / f"{stem}.png"), picture)
        (root / "splits" / f"{which}_train.txt").write_text("1\n2\n3\n4\n", encoding="utf8")
    return root


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    """Commits are 1234567. Training is two steps of the tiny network."""
    found = experiments.find

    def short(name: str) -> Experiment:
        preset = found(name)
        model = dataclasses.replace(preset.model, name=tiny_network.NAME)
        method = dataclasses.replace(preset.method, stage2_epochs=2)
        external = dataclasses.replace(preset.data.external, top_k=2)
        read = dataclasses.replace(preset.data, external=external)
        train = dataclasses.replace(preset.train, steps_per_epoch=1)
        return dataclasses.replace(preset, model=model, method=method, data=read, train=train)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "versions", lambda: {"commit": "1234567", "jax": "0"})
        patch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)
        patch.setattr(experiments, "find", short)
        yield


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of both parts of lite and with the package's folder, pretrained."""
    place, here = tmp_path_factory.mktemp("place"), Path.cwd()
    (place / "pretrained").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "PRETRAINED", place / "pretrained")
        assert again(place, data) == 0
    assert Path.cwd() == here
    return place


@pytest.fixture
def copied(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, of this test's own, with nothing in the package."""
    place = tmp_path / "copied"
    shutil.copytree(trained, place)
    for path in (place / "pretrained").iterdir():
        path.unlink()
    monkeypatch.setattr(pretrain, "PRETRAINED", place / "pretrained")
    return place


def again(place: Path, data: Path) -> int:
    return pretrain.main(["lite", "--data", str(data), "--work", str(place / "runs")])


def test_weights_are_trained_put_and_summed(trained: Path) -> None:
    path = trained / "pretrained" / "tiny.safetensors"
    said = weights.load_weights(path).metadata
    assert said["experiment"] == "packaged_lite_contrast"
    assert (said["commit"], said["step"]) == ("1234567", "2")
    assert said["began_with"] == "packaged_lite of commit 1234567"
    assert '"start": "runs/packaged_lite"' in said["config"]
    assert str(trained) not in said["config"] and '"root": "data/roadscene"' in said["config"]
    (line,) = (trained / "pretrained" / weights.SUMS).read_text(encoding="utf8").splitlines()
    assert line == f"{weights._digest(path, 0)}  tiny.safetensors"


def test_what_is_finished_stays_and_so_do_the_commits_that_began_it(
    copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "runs" / "packaged_lite.commit").write_text("7654321", encoding="utf8")
    monkeypatch.setattr(machine, "versions", lambda: {"commit": "2222222", "jax": "0"})
    assert again(copied, data) == 0
    said = weights.load_weights(copied / "pretrained" / "tiny.safetensors").metadata
    assert (said["commit"], said["began_with"]) == ("1234567", "packaged_lite of commit 7654321")


@pytest.mark.parametrize("part", ["packaged_lite", "packaged_lite_contrast"])
def test_weights_of_no_commit_are_not_put(
    copied: Path, data: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "runs" / f"{part}.commit").write_text("7654321+", encoding="utf8")
    assert again(copied, data) == 1
    said = f"{part}: began with changes that no commit holds (7654321+)"
    assert said in capsys.readouterr().err
    assert not list((copied / "pretrained").iterdir())


def test_a_second_part_stays_with_the_first_that_it_began_with(
    copied: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "runs" / "packaged_lite" / "weights.safetensors").write_bytes(b"others")
    assert again(copied, data) == 1
    assert "packaged_lite_contrast: began with other weights than now" in capsys.readouterr().err
    assert not list((copied / "pretrained").iterdir())


def test_data_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(tmp_path, tmp_path / "gone") == 1
    assert "gone: has no folder splits" in capsys.readouterr().err
