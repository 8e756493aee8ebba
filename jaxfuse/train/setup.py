"""From a config to what the loop needs: the run folder, the data, the method."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxfuse import __version__, distributed, methods, models, weights
from jaxfuse.config import (
    ConfigError,
    CrossFuseConfig,
    Experiment,
    SegmentationConfig,
    SourceConfig,
    SSVIFConfig,
    UserError,
    changed_fields,
    load_json,
    to_json,
)
from jaxfuse.data.joined import JoinedPairs
from jaxfuse.data.pairs import Pairs
from jaxfuse.data.patches import PatchIndex
from jaxfuse.data.pipeline import Pipeline, validation_batches
from jaxfuse.data.sources import open_source, require_labels, without_labels
from jaxfuse.methods import Facts, Method
from jaxfuse.methods.external import Selection, select, target_means
from jaxfuse.models import Model
from jaxfuse.shapes import Params

FORMAT = 2
"""Raised when a run folder of before can no longer be continued."""


class RunFolderError(UserError, ValueError):
    """A run folder that cannot be used; the message names it and the remedy."""


def check(experiment: Experiment, devices: int) -> None:
    """Raises ConfigError for settings that do not go together on so many devices."""
    train, external = experiment.train, experiment.data.external
    if experiment.model.name not in models.MODELS:
        raise ConfigError(
            f"model.name = {experiment.model.name!r}: choose one of "
            f"{', '.join(sorted(models.MODELS))}"
        )
    if experiment.model.start and isinstance(experiment.method, SegmentationConfig):
        raise ConfigError(
            f"model.start = {experiment.model.start!r}: method segmentation trains no fusion "
            "network: leave it empty (method.start is the segmentation network's)"
        )
    _check_segmenter(experiment)
    rows = {"train.batch_size": train.batch_size}
    if external.kept_online:
        rows |= {"data.external.pool": external.pool, "data.external.keep": external.keep}
    for field, value in rows.items():
        if value % devices:
            raise ConfigError(
                f"{field} = {value} cannot be split over {devices} devices: "
                "use a multiple" + (", or set train.devices" if jax.process_count() == 1 else "")
            )
    examples = train.batch_size + external.kept_online
    if train.strategy == "pmap":
        examples //= devices
    if examples % train.accumulate:
        raise ConfigError(
            f"train.accumulate = {train.accumulate}: must divide the {examples} examples of a step"
            f"{' on each device' if train.strategy == 'pmap' else ''}"
            f"{' (batch and external patches)' if external.kept_online else ''}"
        )
    if train.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "train.tensorboard = True: needs tensorboardX: "
            'install jaxfuse with its extra "tensorboard", or set it to False'
        )


def _check_segmenter(experiment: Experiment) -> None:
    method = experiment.method
    if isinstance(method, CrossFuseConfig):
        return
    unused = isinstance(method, SSVIFConfig) and method.guidance == "none"
    if method.segmenter not in models.SEGMENTERS:
        raise ConfigError(
            f"method.segmenter = {method.segmenter!r}: choose one of "
            f"{', '.join(sorted(models.SEGMENTERS))}"
        )
    smallest = models.create_segmenter(method.segmenter, method.classes).smallest
    if experiment.data.patch_size < smallest and not unused:
        raise ConfigError(
            f"data.patch_size = {experiment.data.patch_size}: {method.segmenter} needs {smallest} "
            "pixels along each side at least"
        )


def may_continue(folder: Path, experiment: Experiment) -> bool:
    """Whether the folder holds this run already. False: it is new, and `make_folder` comes next.

    Raises RunFolderError for a folder of another version or of something else, and for a changed
    config, naming the first field that differs.
    """
    marker = folder / "run.json"
    if not marker.exists():
        if folder.exists() and not folder.is_dir():
            raise RunFolderError(f"{folder}: is a file: name a folder")
        # A start that was killed leaves at most these.
        if folder.exists() and {p.name for p in folder.iterdir()} - {
            "config.json",
            "config.json.tmp",
            "run.json.tmp",
        }:
            raise RunFolderError(f"{folder}: not empty and not a run of jaxfuse: name another one")
        return False
    try:
        found = json.loads(marker.read_text(encoding="utf8"))
    except ValueError:
        found = None
    found = found if isinstance(found, dict) else {}
    if found.get("format") != FORMAT:
        raise RunFolderError(
            f"{folder}: written by jaxfuse {found.get('jaxfuse', 'unknown')} (run format "
            f"{found.get('format', 'unknown')}), this is {__version__} (run format {FORMAT}): "
            "continue it with that version, or name another folder"
        )
    changed = changed_fields(load_json(folder / "config.json"), experiment)
    if changed:
        name, old, new = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise RunFolderError(
            f"{folder}: this run has {name} = {old!r}, now asked for {new!r}{more}: "
            "set it back to continue, or name another folder"
        )
    return True


def make_folder(folder: Path, experiment: Experiment) -> None:
    """Makes a new run folder with its config."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"{folder}: cannot be made ({error.strerror}): see to permissions, or name another "
            "folder"
        ) from error
    write_text(folder / "config.json", to_json(experiment))
    # Written last: a folder with a marker has a config.
    marker = {"format": FORMAT, "jaxfuse": __version__}
    write_text(folder / "run.json", json.dumps(marker) + "\n")


def check_alike(experiment: Experiment, data: Data, total_steps: int) -> None:
    """Raises RunFolderError in every process unless all train the same thing: examples would be
    missing or come twice, and nobody would see.
    """
    config = zlib.crc32(to_json(experiment).encode())
    mine = np.array([config, data.pipeline.items_per_epoch, total_steps], np.uint32)
    everyone = distributed.of_all_processes(mine)
    for process, row in enumerate(everyone):
        if row[0] != everyone[0][0]:
            raise RunFolderError(
                f"process {process} of {len(everyone)} has another config than process 0: give all "
                "of them the same command"
            )
        if (row != everyone[0]).any():
            raise RunFolderError(
                f"process {process} of {len(everyone)} has {row[1]} patches an epoch and "
                f"{row[2]} steps, process 0 {everyone[0][1]} and {everyone[0][2]}: give all of "
                "them the same data"
            )


def check_shared(folder: Path) -> None:
    """Raises RunFolderError in every process unless all of them see the run folder."""
    seen = (folder / "run.json").exists()
    if not distributed.all_agree(seen):
        raise RunFolderError(
            f"{folder}: only some of the {jax.process_count()} processes see this run: name a "
            "folder on storage that all of them share"
        )


def keep_selection(folder: Path, selection: Selection) -> None:
    """Writes selection.json. Raises RunFolderError where the run has another one: then its images
    have changed since.
    """
    path, now = folder / "selection.json", selection.summary()
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf8"))["checksum"]
        except (OSError, ValueError, KeyError, TypeError):
            before = None  # unreadable: nothing to compare with
        if before is not None and before != now["checksum"]:
            raise RunFolderError(
                f"{path}: Top-K now gives other external patches than when this run began: "
                "images have changed. Bring them back, or train in a new folder"
            )
    write_text(path, json.dumps(now, indent=1))


def write_text(path: Path, text: str) -> None:
    """The file appears whole or not at all. Raises RunFolderError where it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunFolderError(
            f"{path}: cannot be written ({error.strerror}): free disk space or name another folder"
        ) from error


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run learns from, opened."""

    pipeline: Pipeline
    facts: Facts
    validation: list[dict[str, np.ndarray]]
    selection: Selection | None
    """What offline alignment kept, where it is used."""


def open_set(field: str, source: SourceConfig) -> Pairs:
    """Opens a set; where its folder is missing the error says which setting names it."""
    for name in ("root", "infrared", "visible", "labels"):
        place = getattr(source, name)
        if source.kind != "synthetic" and place and not Path(place).is_dir():
            without = ", or data.external.alignment to none" if field == "data.external" else ""
            raise ConfigError(
                f"{field}.{name} = {place!r}: no such folder: set {field}.{name} to a folder of "
                f"yours{without}"
            )
    return open_source(source)


def open_data(experiment: Experiment) -> Data:
    """Opens the sets, aligns offline, builds the pipeline. Raises DataError or ConfigError."""
    data, train = experiment.data, experiment.train
    classes = experiment.method.labelled_classes
    target = open_set("data.target", data.target)
    target = _with_labels("data.target", target, classes)
    learned = target
    if data.beside.kind != "none":
        beside = _with_labels("data.beside", open_set("data.beside", data.beside), classes)
        learned = JoinedPairs(target, beside)
    extra = pool = selection = means = None
    if data.external.alignment != "none":
        external = without_labels(open_set("data.external", data.external))
        if data.external.alignment == "offline":
            selection = select(target, external, data, data.external.top_k)
            extra = (selection.visible, selection.infrared)
        else:
            pool = external
            red, green, blue = target_means(target, data).tolist()
            means = (red, green, blue)
            available = len(PatchIndex(external, data.patch_size, data.stride))
            if data.external.pool > available:
                raise ConfigError(
                    f"data.external.pool = {data.external.pool}, but the external set has "
                    f"{available} patches: lower data.external.pool or data.stride, or add images"
                )
    pipeline = Pipeline(
        learned,
        config=data,
        batch_size=train.batch_size,
        seed=experiment.seed,
        extra=extra,
        pool=pool,
        pool_size=data.external.pool,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        cache_bytes=data.cache_mib << 20,
        classes=classes,
    )
    validation: list[dict[str, np.ndarray]] = []
    if data.validation.kind != "none":
        unseen = open_set("data.validation", data.validation)
        unseen = _with_labels("data.validation", unseen, classes)
        validation = validation_batches(
            unseen,
            data.patch_size,
            data.stride,
            train.batch_size,
            threads=data.threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            classes=classes,
        )
    epoch = train.steps_per_epoch or pipeline.steps_per_epoch
    facts = Facts(epoch, means, data.external.kept_online)
    return Data(pipeline, facts, validation, selection)


def _with_labels(field: str, pairs: Pairs, classes: int) -> Pairs:
    """The pairs with labels of so many classes, or without labels where there are to be none.

    Raises where the set has other classes or lacks label maps.
    """
    if not classes:
        return without_labels(pairs)
    require_labels(field, pairs)
    known = getattr(pairs, "classes", None)
    if known is not None and len(known) != classes:
        raise ConfigError(
            f"method.classes = {classes}, but the labels of {field} have {len(known)} classes "
            f"({', '.join(known.names)}): set method.classes to {len(known)}"
        )
    return pairs


def remarks(experiment: Experiment, data: Data) -> list[str]:
    """What whoever trains should read: settings without effect, a gamma that does not exist."""
    external, found = experiment.data.external, []
    if external.kind != "none" and external.alignment == "none":
        found.append("data.external is not used: data.external.alignment is 'none'")
    method = experiment.method
    started = isinstance(method, SSVIFConfig) and method.segmenter_weights
    if started and method.guidance == "consistency" and method.anchor != "pretrained":
        found.append(
            "method.segmenter_weights: the segmentation network begins with them; they are no "
            f"teacher, for method.anchor is {method.anchor!r}, not 'pretrained'"
        )
    if data.selection is not None:
        kept = data.selection
        gamma = ", ".join(f"{g:.2f}" for g in kept.gamma)
        found.append(
            f"{len(kept.stems)} of {kept.candidates} external patches join the target's, gamma "
            f"{gamma}; an epoch is {data.pipeline.items_per_epoch} patches in all"
        )
        found += kept.doubts()
    return found


def build(experiment: Experiment, facts: Facts, read_start: bool = True) -> tuple[Model, Method]:
    """The network and the way to train it. Raises WeightsError for a start that does not fit.

    read_start: read the weights that the config names to start from; without, shapes are right and
    values not. A teacher's file is read all the same: only it says which network that is.
    """
    config = experiment.model
    model = models.create(
        config.name, config.compute_dtype, config.depthwise, config.remat, config.kernels
    )
    if config.start and read_start:
        begun = _fusion_start(experiment)
        model = dataclasses.replace(model, init=lambda key: jax.tree.map(jnp.asarray, begun))
    start = _start(experiment) if read_start else None
    teacher = _teacher(experiment)
    return model, methods.build(experiment.method, model, facts, start, teacher)


def _fusion_start(experiment: Experiment) -> Params:
    """The parameters that the config names for the fusion network to start from."""
    config = experiment.model
    try:
        read = weights.load_weights(config.start)
    except weights.WeightsError as error:
        raise weights.WeightsError(
            f"{error} (named by model.start: train what makes it first, or set model.start)"
        ) from error
    if read.name != config.name:
        raise weights.WeightsError(
            f"{weights.find(config.start)}: holds {read.name}, but model.name = {config.name!r}: "
            "give weights of that network as model.start, or set model.name"
        )
    return read.params


def _teacher(experiment: Experiment) -> tuple[Model, Params] | None:
    """The fusion network that the config names as a teacher, with its parameters."""
    method = experiment.method
    if not isinstance(method, CrossFuseConfig) or not method.teacher:
        return None
    read = weights.load_weights(method.teacher)
    if read.name not in models.MODELS:
        raise weights.WeightsError(
            f"{weights.find(method.teacher)}: holds {read.name}, a segmentation network, but "
            "method.teacher must fuse: give weights of a fusion network"
        )
    how = experiment.model
    return models.create(read.name, depthwise=how.depthwise, kernels=how.kernels), read.params


def _start(experiment: Experiment) -> Params | None:
    """The parameters that the config names for the segmentation network to start from."""
    method = experiment.method
    if isinstance(method, CrossFuseConfig):
        return None
    start = method.start if isinstance(method, SegmentationConfig) else method.segmenter_weights
    if not start:
        return None
    read = weights.load_weights(start, method.classes)
    if read.name != method.segmenter:
        raise weights.WeightsError(
            f"{weights.find(start)}: holds {read.name}, but method.segmenter = "
            f"{method.segmenter!r}: give weights of that network, or set method.segmenter"
        )
    if read.metadata.get("head") == "fresh" and getattr(method, "anchor", "") == "pretrained":
        raise weights.WeightsError(
            f"{weights.find(start)}: holds an encoder without a segmentation head: a teacher must "
            "have learned; train it first (method.name segmentation), or set method.anchor to "
            "balanced"
        )
    return read.params
