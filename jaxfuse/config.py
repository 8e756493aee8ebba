"""Everything that defines a training run: frozen dataclasses, their checks, JSON in and out.

A config holds numbers, strings and tuples only, never arrays or functions: a `Literal` name picks
from a table. It is saved beside every run and is enough, with the commit, to run it again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec


class UserError(Exception):
    """Base of every error a user can mend; its message is one line: file, value, remedy. The
    command line prints it.
    """


class ConfigError(UserError, ValueError):
    """A setting that cannot work; the message names the field, the value and the remedy."""


def _require(ok: bool, field: str, value: object, remedy: str) -> None:
    if not ok:
        raise ConfigError(f"{field} = {value!r}: {remedy}")


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


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where pairs come from."""

    kind: Literal["none", "folders", "synthetic"] = "none"
    root: str = ""
    """folders: a folder that holds ir/ and vi/ (or infrared/ and visible/)."""
    infrared: str = ""
    """folders: the infrared folder, where there is no common root."""
    visible: str = ""
    """folders: the visible folder, where there is no common root."""
    split: str = ""
    """folders: a text file with one stem a line; empty takes every pair."""
    infrared_stretch: Literal["none", "minmax", "percentile"] = "none"
    """folders: spread the infrared levels of each file, for 16-bit files that look black."""
    scenes: int = 64
    """synthetic: how many scenes."""
    height: int = 240
    """synthetic: pixels."""
    width: int = 320
    """synthetic: pixels."""
    seed: int = 0
    """synthetic: scenes are a function of (seed, index)."""
    sensor: str = "clear"
    """synthetic: a name in `jaxfuse.data.synthetic.SENSORS`."""

    def __post_init__(self) -> None:
        for field in ("root", "infrared", "visible", "split"):
            value = getattr(self, field)
            _require(
                self.kind == "folders" or not value,
                f"source.{field}",
                value,
                f"is not read while kind is {self.kind!r}: set kind to 'folders' as well",
            )
        if self.kind == "folders":
            two = bool(self.infrared) and bool(self.visible)
            _require(
                bool(self.root) != two,
                "source.root",
                self.root,
                "give either root, or both infrared and visible",
            )
        if self.kind == "synthetic":
            _require(self.scenes > 0, "source.scenes", self.scenes, "needs at least one scene")
            _require(self.height >= 32, "source.height", self.height, "needs at least 32 pixels")
            _require(self.width >= 32, "source.width", self.width, "needs at least 32 pixels")


@dataclasses.dataclass(frozen=True)
class ExternalConfig(SourceConfig):
    """Another sensor's pairs, and how Top-K alignment takes patches from them."""

    alignment: Literal["none", "offline", "online"] = "none"
    """The external view: once over the whole external set, or each step from a fresh pool."""
    top_k: int = 800
    """offline: patches kept from the external set."""
    pool: int = 64
    """online: external patches each step chooses from, over all devices."""
    keep: int = 4
    """online: patches kept of the pool and added to the batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.alignment == "none" or self.kind != "none",
            "data.external.kind",
            self.kind,
            f"data.external.alignment = {self.alignment!r} needs an external set",
        )
        _require(self.top_k > 0, "data.external.top_k", self.top_k, "keep at least one patch")
        _require(
            0 < self.keep <= self.pool,
            "data.external.keep",
            self.keep,
            f"K must lie in 1..data.external.pool ({self.pool})",
        )

    @property
    def kept_online(self) -> int:
        """External patches that join each step's batch, over all devices."""
        return self.keep if self.alignment == "online" else 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The sets a run learns from, and how examples are cut from them."""

    target: SourceConfig = SourceConfig(kind="synthetic")
    """The sensor to train for."""
    external: ExternalConfig = ExternalConfig()
    """Another sensor, from which Top-K alignment takes patches."""
    validation: SourceConfig = SourceConfig()
    """Pairs of the target sensor that are never trained on."""
    patch_size: int = 64
    """Side of a training patch, pixels."""
    stride: int = 200
    """Distance of patches on the grid, pixels; also sets how many patches an image gives per epoch.
    """
    crops: Literal["grid", "random"] = "random"
    """grid: the published fixed patches. random: as many per image, anywhere, new ones each epoch.
    """
    threads: int = 4
    """Reading threads. Changes speed only."""
    workers: int = 0
    """Reading processes; 0 reads in threads of this process. Changes speed only."""
    cache_mib: int = 1024
    """Memory for decoded images, MiB. Changes speed only."""

    def __post_init__(self) -> None:
        _require(
            self.target.kind != "none",
            "data.target.kind",
            self.target.kind,
            "training needs a target set",
        )
        _require(self.patch_size >= 16, "data.patch_size", self.patch_size, "use at least 16")
        _require(self.stride > 0, "data.stride", self.stride, "use a positive number of pixels")
        _require(self.threads > 0, "data.threads", self.threads, "use at least 1")
        _require(self.workers >= 0, "data.workers", self.workers, "use 0 or more")
        _require(self.cache_mib >= 0, "data.cache_mib", self.cache_mib, "use 0 or more")


@dataclasses.dataclass(frozen=True)
class CrossFuseConfig:
    """CrossFuse (IEEE T-CSVT 2025, arXiv 2502.14493); the defaults are the published constants."""

    name: Literal["crossfuse"] = "crossfuse"
    stage1_epochs: float = 40.0
    """Reconstruction of each modality by itself."""
    stage2_epochs: float = 120.0
    """Fusion."""
    learning_rate: float = 1e-4
    halve_every_epochs: float = 20.0
    learning_rate_floor: float = 1e-6
    clip_norm: float = 0.01
    """Largest gradient norm of each module."""
    schedule: Literal["ours", "published"] = "ours"
    """Weight of the self-supervision over stage II: falling to 0, or falling and rising again as
    published.
    """
    self_supervision: float = 0.1
    """theta at the start of stage II. 0 switches the internal view off."""
    crop_size: int = 32
    """Side of the weak crop, pixels."""
    flips: bool = False
    """Mirror each pair left-right and up-down at random, both images alike."""

    def __post_init__(self) -> None:
        _require(
            self.stage1_epochs >= 0, "method.stage1_epochs", self.stage1_epochs, "use 0 or more"
        )
        _require(
            self.stage2_epochs >= 0, "method.stage2_epochs", self.stage2_epochs, "use 0 or more"
        )
        _require(
            self.stage1_epochs + self.stage2_epochs > 0,
            "method.stage2_epochs",
            self.stage2_epochs,
            "nothing to train",
        )
        _require(
            0 < self.learning_rate < math.inf,
            "method.learning_rate",
            self.learning_rate,
            "use a positive number",
        )
        _require(
            0 <= self.learning_rate_floor <= self.learning_rate,
            "method.learning_rate_floor",
            self.learning_rate_floor,
            f"must lie in 0..method.learning_rate ({self.learning_rate})",
        )
        _require(
            0 <= self.self_supervision < math.inf,
            "method.self_supervision",
            self.self_supervision,
            "use 0 (off) or a positive number",
        )
        _require(
            self.halve_every_epochs > 0,
            "method.halve_every_epochs",
            self.halve_every_epochs,
            "must be positive",
        )
        _require(self.clip_norm > 0, "method.clip_norm", self.clip_norm, "use a positive number")
        _require(
            self.crop_size >= 12,
            "method.crop_size",
            self.crop_size,
            "the blur's border needs at least 12",
        )

    def check_data(self, data: DataConfig) -> None:
        """Raises ConfigError where this method cannot learn from such data."""
        _require(
            self.crop_size <= data.patch_size,
            "method.crop_size",
            self.crop_size,
            f"must not exceed data.patch_size ({data.patch_size})",
        )


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
    """How many local devices to use; 0 uses all."""
    accumulate: int = 1
    """Split each batch in this many parts, one after the other, and average their gradients."""
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
        for field in ("batch_size", "accumulate", "log_every", "checkpoint_every", "keep_last"):
            value = getattr(self, field)
            _require(value > 0, f"train.{field}", value, "use at least 1")
        for field in ("steps_per_epoch", "devices", "keep_best"):
            value = getattr(self, field)
            _require(value >= 0, f"train.{field}", value, "use 0 or more")
        _require(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"must divide train.batch_size ({self.batch_size})",
        )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run, whole."""

    name: str = "experiment"
    seed: int = 0
    model: ModelConfig = ModelConfig()
    method: CrossFuseConfig = CrossFuseConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 to 2^63 - 1")
        self.method.check_data(self.data)


FREE_FIELDS = frozenset(
    {
        "name",
        "data.threads",
        "data.workers",
        "data.cache_mib",
        "model.remat",
        "train.strategy",
        "train.devices",
        "train.log_every",
        "train.checkpoint_every",
        "train.keep_last",
        "train.keep_best",
        "train.tensorboard",
    }
)
"""Fields that may change when a run continues: they do not change what is learned."""


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain nested dicts, lists, numbers and strings."""
    return msgspec.to_builtins(config)


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


def from_dict(tree: dict[str, Any], kind: type = Experiment, source: str = "config") -> Any:
    """A config from plain dicts. Missing keys take their defaults; unknown keys are errors."""
    try:
        config = msgspec.convert(tree, kind)
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
        (name, before[name], after[name])
        for name in before
        if name not in FREE_FIELDS and before[name] != after[name]
    ]
