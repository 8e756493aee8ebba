"""Weights as files: ours, and the published ones, read and written.

Ours is a flat safetensors or npz file with keys like `encoder/blocks/at0/norm1/weight`. Pickles are
read by `torch.load(weights_only=True)` only: code in a file never runs.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxfuse import __version__, convert
from jaxfuse.convert import segformer
from jaxfuse.models import MODELS, SEGMENTERS, Compute, Segmenter, create, create_segmenter
from jaxfuse.models.mit import Architecture
from jaxfuse.models.segformer import ARCHITECTURES
from jaxfuse.shapes import Params
from jaxfuse.weights import files
from jaxfuse.weights.files import WeightsError

FORMAT = "jaxfuse-1"
SUMS = "SHA256SUMS"
"""Checksums of the packaged files, as `sha256sum` writes and checks them."""
_PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters of a network and where they come from."""

    name: str
    """Name in `jaxfuse.models.MODELS` or `SEGMENTERS`; "segformer" for sizes that are neither's."""
    params: Params
    """Nested dict of float32 NumPy arrays."""
    metadata: dict[str, str]
    """What the file says of itself: experiment, step, data, ..."""


def packaged() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in _PRETRAINED.glob("*.safetensors"))


def find_packaged(name: str) -> Path:
    """The file of weights that come with the package. Raises WeightsError where it is not the one
    that the package was made with.
    """
    if name in packaged():
        path = _PRETRAINED / f"{name}.safetensors"
        _check_packaged(path)
        return path
    there = f"it has {', '.join(packaged())}" if packaged() else "it comes with none"
    raise WeightsError(
        f"{name}: no such weights in the package ({there}): give a file (.safetensors, .npz, .pth) "
        "or a run folder"
    )


@functools.lru_cache(maxsize=8)
def _digest(path: Path, written: int) -> str:
    # Whoever fuses arrays one by one looks the default weights up each time.
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_packaged(path: Path) -> None:
    """Compares a packaged file with the checksum beside it."""
    sums = path.with_name(SUMS)
    remedy = "install jaxfuse again"
    try:
        known = dict(reversed(line.split()) for line in sums.read_text("utf8").splitlines())
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{sums}: cannot be read ({error}): {remedy}") from error
    found = _digest(path, path.stat().st_mtime_ns)
    if path.name not in known:
        raise WeightsError(f"{path}: not listed in {SUMS}, so not from the package: {remedy}")
    if found != known[path.name]:
        raise WeightsError(
            f"{path}: its SHA-256 begins {found[:12]}, the package's {known[path.name][:12]}: the "
            f"file is damaged or was replaced: {remedy}"
        )


def find(path_or_name: str | Path) -> Path:
    """The file of a path, a run folder (its weights.safetensors), a folder of Hugging Face's (its
    model.safetensors) or a packaged name.
    """
    path = Path(path_or_name)
    if path.is_dir():
        for name in ("weights.safetensors", "model.safetensors"):
            if (path / name).exists():
                return path / name
        raise WeightsError(
            f"{path}: holds no weights.safetensors: a run writes it with its first checkpoint; "
            "train on, or name a file (of Hugging Face's folders, model.safetensors is read)"
        )
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such file or run folder: check the path")
    return find_packaged(str(path))


def load_weights(path_or_name: str | Path, classes: int | None = None) -> Weights:
    """Reads weights of any known kind; see `find` for what may be named. Parameters come back as
    float32.

    Ours as safetensors or npz; the published PyTorch layout as .pth/.pt, safetensors or npz, with
    keys `module/name` or `module.name`; Hugging Face's SegFormer as safetensors or npz. Raises
    WeightsError for anything else, damaged files and wrong shapes.
    classes: what a segmentation network must have. A published encoder alone gets a fresh head of
    so many (of key 0, said in the metadata), and is an error without.
    """
    path = find(path_or_name)
    with files.explained(path):
        if path.suffix in files.TORCH_SUFFIXES:
            return _from_modules(path, files.read_torch(path))
        if path.suffix == ".safetensors":
            flat, metadata = files.read_safetensors(path)
        elif path.suffix == ".npz":
            flat, metadata = files.read_npz(path)
        else:
            raise WeightsError(
                f"{path}: unknown kind {path.suffix!r}: use .safetensors, .npz, .pth or .pt"
            )
        if segformer.recognised(flat):
            return _from_huggingface(path, flat, metadata, classes)
        if any("." in key for key in flat):
            return _from_modules(path, _modules_of(flat))
        return _from_ours(path, flat, metadata, classes)


def load_segmenter(
    path_or_name: str | Path, classes: int | None = None, compute_dtype: str = "float32"
) -> tuple[Segmenter, Params]:
    """A segmentation network with its weights; `classes` as for `load_weights`."""
    path = find(path_or_name)
    read = load_weights(path, classes)
    if read.name in MODELS:
        raise WeightsError(
            f"{path}: holds {read.name}, a fusion network: give weights of a segmentation network"
        )
    found = read.params["head"]["classifier"]["bias"].size
    if read.name in SEGMENTERS:
        return create_segmenter(read.name, found, compute_dtype), read.params
    sizes = _sizes(read.name, dict(_flatten(read.params)), read.metadata)
    return segformer.segmenter(sizes, found, Compute(compute_dtype)), read.params


def save_weights(
    path: str | Path,
    name: str,
    params: Params,
    metadata: Mapping[str, str] | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> None:
    """Writes parameters in our layout as .safetensors or .npz, whole or not at all.

    dtype float16 and bfloat16 halve the file and round every parameter to 11 or 8 bits. Raises
    WeightsError where a parameter is not finite or the disk refuses.
    """
    path = Path(path)
    if dtype == "bfloat16" and path.suffix == ".npz":
        raise WeightsError(f"{path}: .npz has no bfloat16: use .safetensors, or float16")
    # safetensors writes the memory as it lies: a transposed view would come out wrong.
    flat = {key: np.ascontiguousarray(np.asarray(value), dtype) for key, value in _flatten(params)}
    for key, value in flat.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise WeightsError(f"{path}: {key} is not finite in {dtype}: nothing was written")
    about = {"jaxfuse": __version__, **(metadata or {}), "format": FORMAT, "model": name}
    files.write_flat(path, flat, {key: str(value) for key, value in about.items()})


def export_weights(path: str | Path, weights: Weights) -> None:
    """Writes parameters in the published PyTorch layout as .pth/.pt, .safetensors or .npz, whole or
    not at all.

    The published scripts load a .pth as it is: names start with `module.` as nn.DataParallel has
    them. The other kinds have keys `module/name` with our module names. Segmentation networks get
    Hugging Face's names; the file also holds the text of a config.json, which is put beside a
    model.safetensors where there is none.
    """
    path = Path(path)
    if weights.name not in MODELS:
        if path.suffix in files.TORCH_SUFFIXES:
            raise WeightsError(
                f"{path}: {weights.name} is exchanged as .safetensors or .npz: name such a file"
            )
        about = {"format": "pt", "model": weights.name, "config": _config_text(weights)}
        files.write_flat(path, segformer.to_huggingface(weights.params), about)
        beside = path.with_name("config.json")
        if path.name == "model.safetensors" and not beside.exists():
            files.write_text(beside, about["config"])
        return
    modules = convert.to_torch(weights.name, weights.params)
    if path.suffix in files.TORCH_SUFFIXES:
        torch = files.import_torch(path)
        published = {ours: theirs for theirs, ours in convert.MODULE_NAMES.items()}
        state = {
            published.get(module, module): {
                f"module.{name}": torch.from_numpy(array.copy()) for name, array in arrays.items()
            }
            for module, arrays in modules.items()
        }
        with files.replacing(path) as temporary:
            torch.save(state, temporary)
        return
    flat = {
        f"{module}/{name}": array
        for module, arrays in modules.items()
        for name, array in arrays.items()
    }
    files.write_flat(path, flat, {"model": weights.name, "layout": "torch"})


def convert_file(
    source: str | Path,
    target: str | Path,
    layout: Literal["jaxfuse", "torch"] = "jaxfuse",
    overwrite: bool = False,
    classes: int | None = None,
) -> str:
    """Reads any known weights and writes them in one layout; tells what was done in one line.

    `classes` as for `load_weights`. Raises WeightsError for a target that exists, unless
    `overwrite`.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise WeightsError(f"{target}: exists already: add --overwrite, or name another file")
    weights = load_weights(source, classes)
    if target.suffix in files.TORCH_SUFFIXES and layout != "torch":
        raise WeightsError(
            f"{target}: .pth is the published layout's kind: add --layout torch, or write "
            ".safetensors"
        )
    if layout == "torch":
        export_weights(target, weights)
    else:
        save_weights(target, weights.name, weights.params, weights.metadata)
    count = sum(value.size for _, value in _flatten(weights.params))
    head = ", a fresh head" if weights.metadata.get("head") == "fresh" else ""
    return f"{target}: {weights.name}, {count:,} parameters{head}, {layout} layout"


def _config_text(weights: Weights) -> str:
    sizes = _sizes(weights.name, dict(_flatten(weights.params)), weights.metadata)
    classes = weights.params["head"]["classifier"]["bias"].size
    return json.dumps(segformer.huggingface_config(sizes, classes))


def _flatten(tree: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _nested(flat: Mapping[str, np.ndarray]) -> Params:
    params: Params = {}
    for key, value in flat.items():
        *parents, leaf = key.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return params


def _expected(name: str, classes: int = 0) -> dict[str, Any]:
    """What our layout holds for a network of either table: arrays without values, by key."""
    import jax

    init = create(name).init if name in MODELS else create_segmenter(name, classes).init
    return dict(_flatten(jax.eval_shape(init, jax.random.key(0))))


def _from_ours(
    path: Path, flat: dict[str, np.ndarray], metadata: dict[str, str], classes: int | None
) -> Weights:
    written_as = metadata.get("format", FORMAT)
    if written_as != FORMAT:
        raise WeightsError(
            f"{path}: has format {written_as!r}, this version reads {FORMAT!r}: update jaxfuse, or "
            "convert the file with the version that wrote it"
        )
    # Files that other tools have rewritten may have lost what we said of them.
    segments = "head/classifier/bias" in flat
    name = metadata.get("model") or (
        segformer.name_of(_sizes("", flat, metadata))
        if segments
        else max(MODELS, key=lambda n: len(_expected(n).keys() & flat))
    )
    if name in MODELS:
        expected = _expected(name)
    elif name in SEGMENTERS or name == segformer.NAME:
        found = flat["head/classifier/bias"].size if segments else classes or 2
        _check_classes(path, found, classes)
        if name in SEGMENTERS:
            expected = _expected(name, found)
        else:
            expected = dict(_flatten(segformer.abstract(_sizes(name, flat, metadata), found)))
    else:
        raise WeightsError(
            f"{path}: holds a model {name!r} that this version does not have: "
            f"{', '.join(sorted([*MODELS, *SEGMENTERS]))}"
        )
    for what, keys in (
        ("lacks", expected.keys() - flat.keys()),
        ("has unknown", flat.keys() - expected.keys()),
    ):
        if keys:
            raise WeightsError(
                f"{path}: {what} array {min(keys)!r} ({len(keys)} in all): not weights of {name}"
            )
    for key, like in expected.items():
        if flat[key].shape != like.shape:
            raise WeightsError(
                f"{path}: {key} has shape {flat[key].shape}, {name} needs {like.shape}"
            )
    params = _nested({key: _as_float32(path, key, flat[key]) for key in expected})
    about = {k: v for k, v in metadata.items() if k not in ("format", "model")}
    return Weights(name, params, about)


def _sizes(name: str, flat: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Architecture:
    """The sizes of a segmentation network: published ones, or those of its arrays."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    config = json.loads(metadata["config"]) if "config" in metadata else None
    return segformer.architecture(segformer.to_huggingface(_nested(flat)), config)


def _check_classes(path: Path, found: int, classes: int | None) -> None:
    if classes not in (None, found):
        raise WeightsError(
            f"{path}: has {found} classes, {classes} are asked for: ask for {found}, or take "
            "weights that were trained on the same class list"
        )


def _from_huggingface(
    path: Path, flat: dict[str, np.ndarray], metadata: dict[str, str], classes: int | None
) -> Weights:
    import jax

    config = _huggingface_config(path, metadata)
    named = {
        name: _as_float32(path, name, array)
        for name, array in segformer.normalise_names(flat).items()
    }
    sizes, params = segformer.from_huggingface(named, config)
    name, about = segformer.name_of(sizes), {"source": path.name}
    if "head" in params:
        classes_found = params["head"]["classifier"]["bias"].size
        _check_classes(path, classes_found, classes)
    elif classes is None:
        raise WeightsError(
            f"{path}: holds the encoder of {name} and no segmentation head: say how many classes a "
            "fresh one is to have (--classes N), and train it"
        )
    else:
        fresh = segformer.segmenter(sizes, classes, Compute()).init(jax.random.key(0))
        params["head"] = jax.tree.map(np.asarray, fresh["head"])
        about["head"] = "fresh"
    if name == segformer.NAME:
        found = params["head"]["classifier"]["bias"].size
        about["config"] = json.dumps(segformer.huggingface_config(sizes, found))
    return Weights(name, params, about)


def _huggingface_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The config.json beside a file, else what the file says itself, else None."""
    beside = path.with_name("config.json")
    text = beside.read_text(encoding="utf8") if beside.exists() else metadata.get("config")
    if text is None:
        return None
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise WeightsError(f"{beside}: is not JSON ({error}): get it again") from error
    # A training run's folder has a config.json of another kind.
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in (None, "segformer"):
        raise WeightsError(
            f"{beside}: describes a model of type {kind!r}, the arrays beside it are a SegFormer: "
            "get both from the same place"
        )
    return config if kind else None


def _as_float32(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    # bfloat16 is a type of its own to NumPy, kind "V".
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise WeightsError(f"{path}: {key} holds {array.dtype}: weights are floating point")
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise WeightsError(
            f"{path}: {key} holds NaN or infinite numbers: take weights of an earlier step"
        )
    return array


def _from_modules(path: Path, modules: dict[str, dict[str, np.ndarray]]) -> Weights:
    modules = convert.normalise_names(modules)
    modules = {
        module: {
            name: _as_float32(path, f"{module}/{name}", array) for name, array in arrays.items()
        }
        for module, arrays in modules.items()
    }
    for name in convert.TABLES:
        if modules.keys() & {entry.module for entry in convert.entries(name)}:
            return Weights(name, convert.from_torch(name, modules), {"source": path.name})
    there = ", ".join(sorted(modules)[:5]) or "none"
    raise WeightsError(
        f"{path}: no known network in it (top-level keys: {there}): expected "
        f"{', '.join(convert.MODULE_NAMES)}"
    )


def _modules_of(flat: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """`module/name` or `module.name` -> {module: {name: array}}; only `state/` if there is that."""
    state = {k.removeprefix("state/"): v for k, v in flat.items() if k.startswith("state/")}
    modules: dict[str, dict[str, np.ndarray]] = {}
    for key, value in (state or flat).items():
        module, _, name = key.partition("/") if "/" in key else key.partition(".")
        modules.setdefault(module, {})[name] = value
    return modules
