"""Training that begins from weights: `model.start`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

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
from jaxfuse.train import setup

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
    with pytest.raises(weights.WeightsError, match=r"nowhere\.npz: no such file"):
        begun(METHODS["ssvif"], str(tmp_path / "nowhere.npz"))


def test_a_method_without_a_fusion_network_refuses_it() -> None:
    experiment = Experiment(model=ModelConfig(start="lite"), method=SegmentationConfig())
    with pytest.raises(ConfigError, match=r"model\.start = 'lite'.*method\.start"):
        setup.check(experiment, 1)
    setup.check(dataclasses.replace(experiment, model=ModelConfig()), 1)
