"""A whole training run, its loop and its network; JSON in and out."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from jaxfuse.config.data import DataConfig
from jaxfuse.config.errors import ConfigError, require
from jaxfuse.config.methods import (
    METHOD_CONFIGS,
    CrossFuseConfig,
    SegmentationConfig,
    SSVIFConfig,
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network, and how it computes. None of these change what the network is."""

    name: str = "crossfuse"
    """A name in `jaxfuse.models.MODELS`."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the feature maps. Parameters, statistics, softmax and losses stay float32."""
    depthwise: Literal["auto", "shift", "lax"] = "auto"
    """Depthwise convolutions as nine shifted products, or as XLA's grouped convolution; auto picks
    by backend.
    """
    remat: Literal["auto", "none", "blocks"] = "auto"
    """blocks: recompute the inside of each block in the backward pass, which takes less memory and
    more time; auto does so on a CPU."""
    kernels: Literal["auto", "xla", "native"] = "auto"
    """CrossFuse on a processor in float32: native runs most of it in C++, compiled when first used;
    auto does so with one device, where there is a C++ compiler. Anything else goes by XLA."""
    start: str = ""
    """Weights file, run folder or name of packaged weights of the same network that training begins
    from; empty begins from random parameters."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop: batch, devices, logs, checkpoints."""

    batch_size: int = 8
    """Target pairs a step, over all devices."""
    steps_per_epoch: int = 0
    """Steps that count as one epoch; 0 counts one pass over the training patches."""
    strategy: Literal["jit", "pmap"] = "jit"
    """Which wrapper drives the devices; the numbers are the same."""
    devices: int = 0
    """How many local devices to use; 0 uses all, of all processes."""
    fsdp: int = 1
    """Devices over which parameters and optimizer state are split, each holding a part, for large
    networks; 1 keeps them whole everywhere. With jit only."""
    accumulate: int = 1
    """Split each batch in this many parts, one after the other, and average their gradients; what a
    loss sums over a whole batch (decomposition, balanced targets) it then sums over each part."""
    log_every: int = 10
    """Steps between log lines; the only moments the loop waits for the devices."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 1
    """Best checkpoints kept besides, by validation loss (training loss without a validation set).
    """
    tensorboard: bool = False
    """Also write TensorBoard event files into the run folder."""

    def __post_init__(self) -> None:
        for field in (
            "batch_size",
            "fsdp",
            "accumulate",
            "log_every",
            "checkpoint_every",
            "keep_last",
        ):
            value = getattr(self, field)
            require(value > 0, f"train.{field}", value, "use at least 1")
        for field in ("steps_per_epoch", "devices", "keep_best"):
            value = getattr(self, field)
            require(value >= 0, f"train.{field}", value, "use 0 or more")
        require(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"must divide train.batch_size ({self.batch_size})",
        )
        require(
            self.fsdp == 1 or self.strategy == "jit", "train.fsdp", self.fsdp, "use 1 with pmap"
        )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run, whole."""

    name: str = "experiment"
    seed: int = 0
    model: ModelConfig = ModelConfig()
    method: CrossFuseConfig | SSVIFConfig | SegmentationConfig = dataclasses.field(
        default_factory=CrossFuseConfig
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 to 2^63 - 1")
        self.method.check_data(self.data)


FREE_FIELDS = frozenset(
    {
        "name",
        "data.threads",
        "data.workers",
        "data.cache_mib",
        "model.remat",
        "model.kernels",
        "train.strategy",
        "train.devices",
        "train.fsdp",
        "train.log_every",
        "train.checkpoint_every",
        "train.keep_last",
        "train.keep_best",
        "train.tensorboard",
    }
)
"""Fields that may change when a run continues: they do not change what is learned."""


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain nested dicts, lists, numbers and strings, every field there."""
    # Not msgspec's: what it read from a file holds only what the file said.
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def to_json(config: Any) -> str:
    """The config as indented JSON, keys in the order of the fields."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted field name and value, in order."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _convert(tree: dict[str, Any], kind: type) -> Any:
    """`msgspec.convert`, except that the method's name says which method's config it is."""
    if kind is not Experiment:
        return msgspec.convert(tree, kind)
    kinds = typing.get_type_hints(Experiment)
    method = tree.get("method", {})
    named = method.get("name", "crossfuse") if isinstance(method, dict) else "crossfuse"
    if not isinstance(named, str) or named not in METHOD_CONFIGS:
        raise ConfigError(
            f"method.name = {named!r}: choose one of {', '.join(sorted(METHOD_CONFIGS))}"
        )
    kinds["method"] = METHOD_CONFIGS[named]
    given = {}
    for name in kinds:
        if name in tree:
            try:
                given[name] = msgspec.convert(tree[name], kinds[name])
            except msgspec.ValidationError as error:
                # The path to the field, as if the whole tree had been converted at once.
                raise msgspec.ValidationError(str(error).replace("`$", f"`$.{name}")) from None
    return Experiment(**given)


def from_dict(tree: dict[str, Any], kind: type = Experiment, source: str = "config") -> Any:
    """A config from plain dicts. Missing keys take their defaults; unknown keys are errors."""
    try:
        config = _convert(tree, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from None
    known = {name for name, _ in flatten(to_dict(config))}
    unknown = [name for name, _ in flatten(tree) if name not in known]
    if unknown:
        raise ConfigError(
            f"{source}: unknown field {unknown[0]!r}: remove it, or use the version of jaxfuse "
            "that wrote it"
        )
    return config


def load_json(path: str | Path, kind: type = Experiment) -> Any:
    """Reads a config from a JSON file. Errors name the file and the field."""
    path = Path(path)
    try:
        tree = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable JSON config ({error})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(tree).__name__}")
    return from_dict(tree, kind, str(path))


def changed_fields(old: Experiment, new: Experiment) -> list[tuple[str, Any, Any]]:
    """Fields (name, old, new) that differ and would change what a continued run learns."""
    before, after = dict(flatten(to_dict(old))), dict(flatten(to_dict(new)))
    return [
        (name, before.get(name), after.get(name))
        for name in {**before, **after}
        if name not in FREE_FIELDS and before.get(name) != after.get(name)
    ]
