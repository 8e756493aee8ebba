"""Weights as files: ours, and the published ones, read and written.

Ours is a flat safetensors or npz file with keys like `encoder/blocks/at0/norm1/weight`. Pickles are
read by `torch.load(weights_only=True)` only: code in a file never runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxfuse import __version__, convert
from jaxfuse.config import UserError
from jaxfuse.models import MODELS
from jaxfuse.shapes import Params

FORMAT = "jaxfuse-1"
TORCH_SUFFIXES = (".pth", ".pt")
_PRETRAINED = Path(__file__).resolve().parent / "pretrained"


class WeightsError(UserError, ValueError):
    """Weights that cannot be read or written; the message names the file and the remedy."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters of a network and where they come from."""

    name: str
    """Name in `jaxfuse.models.MODELS`."""
    params: Params
    """Nested dict of float32 NumPy arrays."""
    metadata: dict[str, str]
    """What the file says of itself: experiment, step, data, ..."""


def packaged() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in _PRETRAINED.glob("*.safetensors"))


def find_packaged(name: str) -> Path:
    """The file of weights that come with the package."""
    if name in packaged():
        return _PRETRAINED / f"{name}.safetensors"
    there = f"it has {', '.join(packaged())}" if packaged() else "it comes with none"
    raise WeightsError(
        f"{name}: no such weights in the package ({there}): give a file (.safetensors, .npz, .pth) "
        "or a run folder"
    )


def find(path_or_name: str | Path) -> Path:
    """The file of a path, a run folder (its weights.safetensors) or a packaged name."""
    path = Path(path_or_name)
    if path.is_dir():
        inside = path / "weights.safetensors"
        if not inside.exists():
            raise WeightsError(
                f"{path}: holds no weights.safetensors: a run writes it with its first "
                "checkpoint; train on, or name a file"
            )
        return inside
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path}: no such file or run folder: check the path")
    return find_packaged(str(path))


def load_weights(path_or_name: str | Path) -> Weights:
    """Reads weights of any known kind; see `find` for what may be named. Parameters come back as
    float32.

    Ours as safetensors or npz; the published PyTorch layout as .pth/.pt, safetensors or npz, with
    keys `module/name` or `module.name`. Raises WeightsError for anything else, damaged files and
    wrong shapes.
    """
    path = find(path_or_name)
    with _explained(path):
        if path.suffix in TORCH_SUFFIXES:
            return _from_modules(path, _read_torch(path))
        if path.suffix == ".safetensors":
            flat, metadata = _read_safetensors(path)
        elif path.suffix == ".npz":
            flat, metadata = _read_npz(path)
        else:
            raise WeightsError(
                f"{path}: unknown kind {path.suffix!r}: use .safetensors, .npz, .pth or .pt"
            )
        if any("." in key for key in flat):
            return _from_modules(path, _modules_of(flat))
        return _from_ours(path, flat, metadata)


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
    _write_flat(path, flat, {key: str(value) for key, value in about.items()})


def export_weights(path: str | Path, weights: Weights) -> None:
    """Writes parameters in the published PyTorch layout as .pth/.pt, .safetensors or .npz, whole or
    not at all.

    The published scripts load a .pth as it is: names start with `module.` as nn.DataParallel has
    them. The other kinds have keys `module/name` with our module names.
    """
    path = Path(path)
    modules = convert.to_torch(weights.name, weights.params)
    if path.suffix in TORCH_SUFFIXES:
        torch = _torch(path)
        published = {ours: theirs for theirs, ours in convert.MODULE_NAMES.items()}
        state = {
            published.get(module, module): {
                f"module.{name}": torch.from_numpy(array.copy()) for name, array in arrays.items()
            }
            for module, arrays in modules.items()
        }
        with _replacing(path) as temporary:
            torch.save(state, temporary)
        return
    flat = {
        f"{module}/{name}": array
        for module, arrays in modules.items()
        for name, array in arrays.items()
    }
    _write_flat(path, flat, {"model": weights.name, "layout": "torch"})


def convert_file(
    source: str | Path,
    target: str | Path,
    layout: Literal["jaxfuse", "torch"] = "jaxfuse",
    overwrite: bool = False,
) -> str:
    """Reads any known weights and writes them in one layout; tells what was done in one line.

    Raises WeightsError for a target that exists, unless `overwrite`.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise WeightsError(f"{target}: exists already: add --overwrite, or name another file")
    weights = load_weights(source)
    if target.suffix in TORCH_SUFFIXES and layout != "torch":
        raise WeightsError(
            f"{target}: .pth is the published layout's kind: add --layout torch, or write "
            ".safetensors"
        )
    if layout == "torch":
        export_weights(target, weights)
    else:
        save_weights(target, weights.name, weights.params, weights.metadata)
    count = sum(value.size for _, value in _flatten(weights.params))
    return f"{target}: {weights.name}, {count:,} parameters, {layout} layout"


def _flatten(tree: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _expected(name: str) -> dict[str, Any]:
    """What our layout holds for a model: arrays without values, by key."""
    import jax

    from jaxfuse.models import create

    return dict(_flatten(jax.eval_shape(create(name).init, jax.random.key(0))))


def _from_ours(path: Path, flat: dict[str, np.ndarray], metadata: dict[str, str]) -> Weights:
    written_as = metadata.get("format", FORMAT)
    if written_as != FORMAT:
        raise WeightsError(
            f"{path}: has format {written_as!r}, this version reads {FORMAT!r}: update jaxfuse, or "
            "convert the file with the version that wrote it"
        )
    # Files that other tools have rewritten may have lost what we said of them.
    name = metadata.get("model") or max(MODELS, key=lambda n: len(_expected(n).keys() & flat))
    if name not in MODELS:
        raise WeightsError(
            f"{path}: holds a model {name!r} that this version does not have: "
            f"{', '.join(sorted(MODELS))}"
        )
    expected = _expected(name)
    for what, keys in (
        ("lacks", expected.keys() - flat.keys()),
        ("has unknown", flat.keys() - expected.keys()),
    ):
        if keys:
            raise WeightsError(
                f"{path}: {what} array {min(keys)!r} ({len(keys)} in all): not weights of {name}"
            )
    params: Params = {}
    for key, like in expected.items():
        if flat[key].shape != like.shape:
            raise WeightsError(
                f"{path}: {key} has shape {flat[key].shape}, {name} needs {like.shape}"
            )
        *parents, leaf = key.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _as_float32(path, key, flat[key])
    about = {k: v for k, v in metadata.items() if k not in ("format", "model")}
    return Weights(name, params, about)


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


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    # np.load leaves a damaged file open that it has opened itself.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        flat = {key: file[key] for key in file.files}
    about = flat.pop("__metadata__", None)
    return flat, json.loads(str(about)) if about is not None else {}


def _read_torch(path: Path) -> dict[str, dict[str, np.ndarray]]:
    torch = _torch(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    # Checkpoints also hold numbers such as the epoch: only dicts of arrays are modules.
    modules = {
        module: {name: tensor.detach() for name, tensor in arrays.items()}
        for module, arrays in (state.items() if isinstance(state, Mapping) else ())
        if isinstance(arrays, Mapping)
        and arrays
        and all(isinstance(tensor, torch.Tensor) for tensor in arrays.values())
    }
    if not modules:
        raise WeightsError(
            f"{path}: expected a dict of state dicts with keys {', '.join(convert.MODULE_NAMES)}"
        )
    return {
        str(module): {
            name: (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
            for name, tensor in arrays.items()
        }
        for module, arrays in modules.items()
    }


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f'{path}: {path.suffix} files need PyTorch: install jaxfuse with its extra "convert"'
        ) from error
    return torch


def _write_flat(path: Path, flat: dict[str, np.ndarray], about: dict[str, str]) -> None:
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        with _replacing(path) as temporary:
            temporary.write_bytes(save(flat, metadata=about))
    elif path.suffix == ".npz":
        with _replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, __metadata__=np.array(json.dumps(about)), **flat)
    else:
        raise WeightsError(
            f"{path}: cannot write {path.suffix!r}: use .safetensors or .npz (or .pth with "
            "--layout torch)"
        )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` once it is complete; else it is removed."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # Some file systems report a full disk only here.
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise WeightsError(
            f"{path}: cannot be written ({reason}): free some space or choose another place; what "
            "was there before is unchanged"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except convert.ConvertError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise WeightsError(
            f"{path}: damaged or not a weights file ({_first_line(error)}): get it again"
        ) from error
    except Exception as error:
        # safetensors and the unpickler raise types of their own.
        if type(error).__module__.split(".")[0] not in (
            "safetensors_rust",
            "safetensors",
            "pickle",
            "_pickle",
            "torch",
        ):
            raise
        raise WeightsError(
            f"{path}: damaged or not a weights file ({_first_line(error)}): get it again"
        ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "weights_only" in line or "allow_pickle" in line:
        # What the libraries advise here is to run the code in the file.
        return "holds something else than plain arrays, and code in a weights file is never run"
    return line
