"""Which pairs a run learns from, and how examples are cut from them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxfuse.config.errors import require

_FIELDS_OF_KINDS: dict[str, tuple[str, ...]] = {
    "name": ("dataset",),
    "root": ("folders", "dataset", "records"),
    "infrared": ("folders",),
    "visible": ("folders",),
    "labels": ("folders",),
    "split": ("folders", "dataset", "records"),
    "infrared_stretch": ("folders", "dataset", "records"),
    "label_coding": ("dataset",),
}
"""Which kinds of source read a field; given to another kind it would be without effect."""


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where pairs come from."""

    kind: Literal["none", "folders", "dataset", "records", "synthetic"] = "none"
    """folders: two folders of files. dataset: the download of a public set. records: what `jaxfuse
    data prepare` wrote. synthetic: scenes made up.
    """
    name: str = ""
    """dataset: a name that `jaxfuse data list` shows."""
    root: str = ""
    """folders: a folder that holds ir/ and vi/ (or infrared/ and visible/). dataset: where the
    download was unpacked. records: where it was prepared.
    """
    infrared: str = ""
    """folders: the infrared folder, where there is no common root."""
    visible: str = ""
    """folders: the visible folder, where there is no common root."""
    labels: str = ""
    """folders: the folder of label maps, where it is not ROOT/labels."""
    split: str = ""
    """folders: a text file with one stem a line; empty takes every pair. dataset, records: the name
    of a split, such as train or test_night.
    """
    infrared_stretch: Literal["none", "minmax", "percentile"] = "none"
    """folders, dataset, records: spread the infrared levels of each file, for 16-bit files that
    look black.
    """
    label_coding: Literal["index", "rgb"] = "index"
    """dataset: what label files hold, class indices or the colours of the set's palette."""
    scenes: int = 64
    """synthetic: how many scenes."""
    height: int = 240
    """synthetic: pixels."""
    width: int = 320
    """synthetic: pixels."""
    seed: int = 0
    """synthetic: scenes are a function of (seed, index)."""
    sensor: str = "clear"
    """synthetic: a name in `jaxfuse.data.synthetic.SENSORS`, or "varied": a new one for each
    scene."""

    def __post_init__(self) -> None:
        for field, kinds in _FIELDS_OF_KINDS.items():
            value = getattr(self, field)
            named = " or ".join(map(repr, kinds))
            require(
                self.kind in kinds or value == type(self).__dataclass_fields__[field].default,
                f"source.{field}",
                value,
                f"is not read while kind is {self.kind!r}: set kind to {named} as well",
            )
        if self.kind in ("dataset", "records"):
            require(bool(self.root), "source.root", self.root, "give the folder of the set")
        if self.kind == "dataset":
            require(
                bool(self.name),
                "source.name",
                self.name,
                "name the set as `jaxfuse data list` does, such as 'msrs'",
            )
        if self.kind == "folders":
            two = bool(self.infrared) and bool(self.visible)
            require(
                bool(self.root) != two,
                "source.root",
                self.root,
                "give either root, or both infrared and visible",
            )
        if self.kind == "synthetic":
            require(self.scenes > 0, "source.scenes", self.scenes, "needs at least one scene")
            require(self.height >= 32, "source.height", self.height, "needs at least 32 pixels")
            require(self.width >= 32, "source.width", self.width, "needs at least 32 pixels")


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
        require(
            self.alignment == "none" or self.kind != "none",
            "data.external.kind",
            self.kind,
            f"data.external.alignment = {self.alignment!r} needs an external set",
        )
        require(self.top_k > 0, "data.external.top_k", self.top_k, "keep at least one patch")
        require(
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
    beside: SourceConfig = SourceConfig()
    """Pairs of other sensors or other light that are trained on as they are, like the target's;
    alignment goes by the target alone."""
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
        require(
            self.target.kind != "none",
            "data.target.kind",
            self.target.kind,
            "training needs a target set",
        )
        require(self.patch_size >= 16, "data.patch_size", self.patch_size, "use at least 16")
        require(self.stride > 0, "data.stride", self.stride, "use a positive number of pixels")
        require(self.threads > 0, "data.threads", self.threads, "use at least 1")
        require(self.workers >= 0, "data.workers", self.workers, "use 0 or more")
        require(self.cache_mib >= 0, "data.cache_mib", self.cache_mib, "use 0 or more")
