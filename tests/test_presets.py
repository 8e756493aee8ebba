"""Presets: what each of them is, to the last number, and that its steps can be built.

tests/golden/presets/NAME.json is the whole text of each preset, so that a hyper-parameter that
changes shows in review. After a change that is meant: `python tests/test_presets.py`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import tiny_network
from jaxfuse import config, experiments, methods, models
from jaxfuse.config import Experiment
from jaxfuse.train import abstract, setup, steps

REPO = Path(__file__).resolve().parent.parent
GOLDEN = REPO / "tests" / "golden" / "presets"
NAMES = sorted(path.stem for path in (REPO / "configs").glob("[!_]*.py"))
TERMS = {"crossfuse": "decomposition", "ssvif": "ssim", "segmentation": "accuracy"}
"""A metric of every stage of a method."""
REQUIRED = {"crossfuse", "crossfuse_online", "crossfuse_small", "demo", "ssvif", "ssvif_small"}


def test_the_presets_are_found_by_name_in_a_checkout() -> None:
    found = experiments.preset_files()
    assert list(found) == NAMES
    assert set(NAMES) >= REQUIRED
    assert all(path == REPO / "configs" / f"{name}.py" for name, path in found.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_its_golden_text_says(name: str) -> None:
    experiment = experiments.find(name)
    assert experiment.name == name
    assert config.to_json(experiment) == (GOLDEN / f"{name}.json").read_text(encoding="utf8")
    assert config.load_json(GOLDEN / f"{name}.json") == experiment


def test_no_golden_text_is_left_over() -> None:
    assert sorted(path.name for path in GOLDEN.iterdir()) == [f"{name}.json" for name in NAMES]


def test_every_preset_says_what_it_is_in_a_line() -> None:
    lines = experiments.describe_presets()
    assert list(lines) == NAMES
    assert all(20 < len(line) <= 100 and not line.startswith(" ") for line in lines.values())
    assert len(set(lines.values())) == len(lines)


def test_crossfuse_has_the_published_numbers() -> None:
    """IEEE T-CSVT 2025, sec. IV-A, and the published code."""
    experiment = experiments.find("crossfuse")
    method, data = experiment.method, experiment.data
    assert (method.stage1_epochs, method.stage2_epochs) == (40, 120)
    assert (method.learning_rate, method.halve_every_epochs, method.clip_norm) == (1e-4, 20, 0.01)
    assert (data.external.alignment, method.self_supervision) == ("offline", 0.1)
    assert (data.patch_size, data.stride, experiment.train.batch_size) == (64, 200, 8)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_can_take_a_step_of_each_stage(name: str) -> None:
    """Traced with its own sizes and the tiny network; nothing is compiled or computed."""
    experiment = experiments.find(name)
    setup.check(experiment, 1)
    assert experiment.model.name in models.MODELS
    model = tiny_network.create(models.Compute())
    built = methods.build(experiment.method, model, abstract.facts(experiment))
    assert built.steps > 0
    batch, state = abstract.batch(experiment), abstract.state(built)
    for stage in built.stages:
        new, metrics = jax.eval_shape(
            lambda state, batch, stage=stage: steps.update(state, batch, stage=stage), state, batch
        )
        assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
        assert {"loss", "grad_norm", TERMS[experiment.method.name]} <= metrics.keys()
        assert all(x.dtype == jnp.float32 for n, x in metrics.items() if n != "external/selected")


def test_an_installed_wheel_has_its_own_presets_only(tmp_path: Path, fresh_python) -> None:
    """Beside an installed package lie other projects' files, such as a `configs` of theirs."""
    package = tmp_path / "site" / "jaxfuse"
    shutil.copytree(REPO / "jaxfuse", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        REPO / "configs", package / "presets", ignore=shutil.ignore_patterns("__pycache__")
    )
    (package.parent / "configs").mkdir()
    (package.parent / "configs" / "theirs.py").write_text("raise SystemExit", encoding="utf8")
    assert list(experiments.preset_files(package)) == NAMES
    code = (
        "from jaxfuse import experiments as e; print(e.__file__, *e.preset_files(), e.find('demo'))"
    )
    result = fresh_python("-c", code, env={"PYTHONPATH": str(package.parent)})
    assert result.returncode == 0, result.stderr
    file, *rest = result.stdout.split(maxsplit=len(NAMES) + 1)
    assert file == str(package / "experiments.py")
    assert rest[: len(NAMES)] == NAMES
    assert rest[len(NAMES)].strip() == repr(experiments.find("demo"))


def test_a_name_that_is_no_preset_lists_them(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError) as caught:
        experiments.find("crossfuse2")
    assert all(name in str(caught.value) for name in NAMES)
    (tmp_path / "jaxfuse").mkdir()
    assert experiments.preset_files(tmp_path / "jaxfuse") == {}


def update() -> None:
    """Writes every preset's golden text and removes those that are left over."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for path in GOLDEN.iterdir():
        path.unlink()
    for name in NAMES:
        experiment: Experiment = experiments.find(name)
        (GOLDEN / f"{name}.json").write_text(config.to_json(experiment), encoding="utf8")


if __name__ == "__main__":
    update()
