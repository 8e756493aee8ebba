"""Configs: JSON in and out without loss, wrong ones refused by name, nothing heavy imported."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

import jaxfuse
from jaxfuse import config
from jaxfuse.config import (
    FREE_FIELDS,
    ConfigError,
    CrossFuseConfig,
    DataConfig,
    Experiment,
    ExternalConfig,
    SourceConfig,
    TrainConfig,
)


def unusual() -> Experiment:
    """A config in which many fields differ from their defaults."""
    return Experiment(
        name="night",
        seed=7,
        method=CrossFuseConfig(stage1_epochs=0.5, schedule="published", flips=True),
        data=DataConfig(
            target=SourceConfig(kind="folders", infrared="a", visible="b", split="train.txt"),
            external=ExternalConfig(
                kind="synthetic", scenes=5, sensor="clear", alignment="online", pool=12, keep=3
            ),
            patch_size=48,
        ),
        train=TrainConfig(batch_size=6, accumulate=3, strategy="pmap"),
    )


@pytest.mark.parametrize("experiment", [Experiment(), unusual()], ids=["defaults", "unusual"])
def test_json_round_trip_is_exact(experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(config.to_json(experiment), encoding="utf8")
    again = config.load_json(path)
    assert again == experiment
    assert config.to_json(again) == path.read_text(encoding="utf8")


def test_json_keys_follow_the_fields() -> None:
    tree = json.loads(config.to_json(Experiment()))
    assert list(tree) == [field.name for field in dataclasses.fields(Experiment)]
    assert list(tree["train"]) == [field.name for field in dataclasses.fields(TrainConfig)]


def test_missing_keys_take_their_defaults() -> None:
    assert config.from_dict({"seed": 3}) == Experiment(seed=3)
    assert config.from_dict({"train": {"batch_size": 2}}).train == TrainConfig(batch_size=2)


@pytest.mark.parametrize("key", ["sede", "train.batchsize", "data.target.path"])
def test_unknown_key_is_named(key: str, tmp_path: Path) -> None:
    tree = config.to_dict(Experiment())
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[last] = 1
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree), encoding="utf8")
    with pytest.raises(ConfigError, match=rf"config\.json: unknown field '{key}'"):
        config.load_json(path)


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (lambda: TrainConfig(batch_size=0), "train.batch_size", "0"),
        (lambda: Experiment(seed=2**66), "seed", str(2**66)),
        (lambda: Experiment(seed=-1), "seed", "-1"),
        (lambda: CrossFuseConfig(self_supervision=-1.0), "method.self_supervision", "-1.0"),
        (lambda: CrossFuseConfig(self_supervision=math.nan), "method.self_supervision", "nan"),
        (lambda: CrossFuseConfig(learning_rate=math.inf), "method.learning_rate", "inf"),
        (lambda: CrossFuseConfig(learning_rate_floor=9.0), "method.learning_rate_floor", "9.0"),
        (lambda: CrossFuseConfig(correlation_weight=-1.0), "method.correlation_weight", "-1.0"),
        (lambda: CrossFuseConfig(correlation_weight=math.inf), "method.correlation_weight", "inf"),
        (lambda: CrossFuseConfig(imitation=2.0), "method.imitation", "2.0"),
        (lambda: CrossFuseConfig(teacher="t", imitation=-1.0), "method.imitation", "-1.0"),
        (lambda: CrossFuseConfig(teacher="t", stage2_epochs=0), "method.teacher", "'t'"),
        (lambda: TrainConfig(devices=-1), "train.devices", "-1"),
        (lambda: TrainConfig(batch_size=8, accumulate=3), "train.accumulate", "3"),
        (lambda: CrossFuseConfig(clip_norm=-0.5), "method.clip_norm", "-0.5"),
        (lambda: ExternalConfig(pool=4, keep=5), "data.external.keep", "5"),
        (lambda: DataConfig(patch_size=8), "data.patch_size", "8"),
        (lambda: SourceConfig(kind="synthetic", scenes=0), "source.scenes", "0"),
        (lambda: Experiment(data=DataConfig(patch_size=16)), "method.crop_size", "32"),
        (lambda: ExternalConfig(top_k=0), "data.external.top_k", "0"),
        (lambda: ExternalConfig(alignment="online"), "data.external.kind", "'none'"),
    ],
)
def test_impossible_value_names_field_and_value(make, field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} = {value}: "):
        make()


def test_folders_need_one_root_or_two_folders() -> None:
    for arguments in ({}, {"infrared": "a"}, {"root": "r", "infrared": "a", "visible": "b"}):
        with pytest.raises(ConfigError, match=r"source\.root"):
            SourceConfig(kind="folders", **arguments)
    assert SourceConfig(kind="folders", root="r").root == "r"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"kind": "dataset", "name": "msrs"}, r"source\.root = '': give the folder of the set"),
        (
            {"kind": "dataset", "root": "r"},
            r"source\.name = '': name the set as `jaxfuse data list`",
        ),
        ({"kind": "records"}, r"source\.root = '': give the folder of the set"),
        ({"kind": "records", "root": "r", "name": "msrs"}, r"source\.name = 'msrs': .*'dataset'"),
        (
            {"kind": "folders", "root": "r", "label_coding": "rgb"},
            r"source\.label_coding = 'rgb': is not read while kind is 'folders': set kind to 'data",
        ),
        ({"kind": "dataset", "name": "n", "root": "r", "visible": "v"}, r"source\.visible = 'v'"),
        (
            {"kind": "synthetic", "infrared_stretch": "minmax"},
            r"source\.infrared_stretch = 'minmax'.*'folders' or 'dataset' or 'records'",
        ),
    ],
)
def test_a_set_needs_its_folder_and_fields_of_other_kinds_are_refused(
    arguments: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{complaint}"):
        SourceConfig(**arguments)


def test_a_set_and_its_records_are_sources() -> None:
    for source in (
        SourceConfig(kind="dataset", name="msrs", root="r", split="train", label_coding="rgb"),
        SourceConfig(kind="records", root="r", split="test_night", infrared_stretch="percentile"),
    ):
        data = DataConfig(target=source)
        assert config.from_dict(config.to_dict(data), DataConfig) == data


def test_wrong_type_and_wrong_choice_name_the_field() -> None:
    with pytest.raises(ConfigError, match=r"batch_size"):
        config.from_dict({"train": {"batch_size": "many"}})
    with pytest.raises(ConfigError, match=r"'published!'.*schedule"):
        config.from_dict({"method": {"schedule": "published!"}})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "not a readable JSON config"), ("[1]", "expected a JSON object, found list")],
)
def test_unreadable_file_is_named(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf8")
    with pytest.raises(ConfigError, match=rf"broken\.json: {complaint}"):
        config.load_json(path)
    with pytest.raises(ConfigError, match=r"absent\.json"):
        config.load_json(tmp_path / "absent.json")


def test_changed_fields_names_what_changed_and_ignores_free_ones() -> None:
    old = Experiment()
    new = dataclasses.replace(
        old,
        seed=1,
        name="other",
        data=dataclasses.replace(old.data, threads=9),
        train=dataclasses.replace(old.train, batch_size=4, log_every=1, strategy="pmap"),
    )
    assert config.changed_fields(old, new) == [("seed", 0, 1), ("train.batch_size", 8, 4)]
    assert config.changed_fields(old, old) == []


def test_every_free_field_exists() -> None:
    names = {name for name, _ in config.flatten(config.to_dict(Experiment()))}
    assert names >= FREE_FIELDS


@pytest.mark.parametrize("module", ["jaxfuse", "jaxfuse.config"])
def test_import_leaves_jax_alone(module: str, fresh_python) -> None:
    heavy = "{'jax', 'flax', 'optax', 'orbax', 'grain', 'torch', 'matplotlib'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    result = fresh_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_public_names_are_listed_and_found() -> None:
    assert jaxfuse.Experiment is Experiment
    assert jaxfuse.config is config
    assert {"Experiment", "fuse", "load", "models", "ops", "convert"} <= set(dir(jaxfuse))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = jaxfuse.no_such_name


def test_every_lazy_room_is_a_module(repo: Path) -> None:
    here = repo / "jaxfuse"
    for room in jaxfuse._ROOMS:
        assert (here / room / "__init__.py").exists() or (here / f"{room}.py").exists(), room
    for module in set(jaxfuse._NAMES.values()):
        path = repo.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), module


def test_a_folder_is_not_ignored_where_the_kind_does_not_read_it() -> None:
    with pytest.raises(ConfigError, match=r"source\.root = 'pairs'.*'folders'"):
        SourceConfig(kind="synthetic", root="pairs")
    with pytest.raises(ConfigError, match=r"source\.split = 'list\.txt'.*'none'"):
        SourceConfig(split="list.txt")


def test_a_run_of_another_method_is_told_by_its_fields() -> None:
    """Fields that only one of them has count as changed, in both directions."""
    ours, theirs = Experiment(), Experiment(method=config.SSVIFConfig())
    there = {name for name, _, _ in config.changed_fields(ours, theirs)}
    back = {name for name, _, _ in config.changed_fields(theirs, ours)}
    assert there == back
    assert {"method.name", "method.crop_size", "method.anchor"} <= there


def test_a_wrong_type_is_named_by_its_whole_path() -> None:
    with pytest.raises(ConfigError, match=r"\$\.data\.patch_size"):
        config.from_dict({"data": {"patch_size": "large"}})
    with pytest.raises(ConfigError, match=r"method\.name = \['a'\]: choose one of"):
        config.from_dict({"method": {"name": ["a"]}})


def test_what_a_file_leaves_out_is_written_down() -> None:
    read = config.from_dict(
        {"method": {"name": "ssvif"}, "data": {"target": {"kind": "synthetic", "scenes": 3}}}
    )
    assert config.to_dict(read).keys() == config.to_dict(Experiment()).keys()
    assert config.to_dict(read)["method"] == config.to_dict(config.SSVIFConfig())
    assert config.from_dict(config.to_dict(read)) == read


def test_counts_are_said_in_the_singular_and_the_plural() -> None:
    said = [config.counted(number, "pair") for number in (0, 1, 2)]
    assert said == ["0 pairs", "1 pair", "2 pairs"]
