"""Training with weights that are there before: `model.start`, and `method.teacher`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import tiny_network
from jaxfuse import models, weights
from jaxfuse.config import (
    ConfigError,
    CrossFuseConfig,
    Experiment,
    ModelConfig,
    SegmentationConfig,
    SSVIFConfig,
)
from jaxfuse.methods import Facts
from jaxfuse.train import loop, setup
from run_folders import arrays, assert_equal_runs, records, upto

METHODS = {
    "crossfuse": CrossFuseConfig(stage1_epochs=0),
    "ssvif": SSVIFConfig(),
}


def begun(method: CrossFuseConfig | SSVIFConfig, start: str) -> dict:
    experiment = Experiment(model=ModelConfig(name="lite", start=start), method=method)
    _, built = setup.build(experiment, Facts(1))
    return jax.device_get(built.deploy(built.init(jax.random.key(5))))


@pytest.mark.parametrize("name", METHODS)
def test_the_fusion_network_begins_with_the_weights(name: str) -> None:
    packaged = weights.load_weights("lite").params
    jax.tree.map(np.testing.assert_array_equal, begun(METHODS[name], "lite"), packaged)
    fresh = begun(METHODS[name], "")
    differ = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), fresh, packaged))
    assert sum(differ) > len(differ) / 2


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    params = models.create("crossfuse").init(jax.random.key(0))
    weights.save_weights(path, "crossfuse", params)
    with pytest.raises(weights.WeightsError, match=r"other\.safetensors: holds crossfuse.*'lite'"):
        begun(METHODS["ssvif"], str(path))
    with pytest.raises(weights.WeightsError, match=r"nowhere\.npz: no such .*model\.start: train"):
        begun(METHODS["ssvif"], str(tmp_path / "nowhere.npz"))


def test_a_method_without_a_fusion_network_refuses_it() -> None:
    experiment = Experiment(model=ModelConfig(start="lite"), method=SegmentationConfig())
    with pytest.raises(ConfigError, match=r"model\.start = 'lite'.*method\.start"):
        setup.check(experiment, 1)
    setup.check(dataclasses.replace(experiment, model=ModelConfig()), 1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, tiny_network.NAME, tiny_network.create)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_run_imitates_a_teacher_named_in_its_config(tmp_path: Path) -> None:
    """From the config to the log, stopped in stage II and continued."""
    taught = tiny_network.experiment(method__teacher="lite", train__keep_last=100)
    loop.run(taught, tmp_path / "straight")
    assert {
        record["stage"]: "imitation" in record for record in records(tmp_path / "straight")
    } == {"reconstruction": False, "fusion": True}
    teacher = weights.load_weights("lite").params["encoder"]
    kept = arrays(upto(tmp_path / "straight", 9, tmp_path / "stopped"))
    name = next(n for n in kept if n.startswith(".memory['teacher']['encoder']"))
    leaf = teacher
    for key in name.split("'")[5::2]:
        leaf = leaf[key]
    np.testing.assert_array_equal(kept[name], leaf)
    loop.run(taught, tmp_path / "stopped")
    assert_equal_runs(tmp_path / "stopped", tmp_path / "straight")


def test_a_teacher_must_be_there_and_fuse(tmp_path: Path) -> None:
    path = tmp_path / "segments.safetensors"
    segmenter = models.create_segmenter("segformer_tiny", 4)
    weights.save_weights(path, segmenter.name, segmenter.init(jax.random.key(0)))
    for teacher, told in (
        (str(path), r"segments\.safetensors: holds segformer_tiny.*must fuse"),
        (str(tmp_path / "gone.npz"), r"gone\.npz: no such file"),
    ):
        method = CrossFuseConfig(stage1_epochs=0, teacher=teacher)
        experiment = Experiment(model=ModelConfig(name="lite"), method=method)
        with pytest.raises(weights.WeightsError, match=told):
            setup.build(experiment, Facts(1))
