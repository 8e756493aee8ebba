"""Weights as files: ours, and the published ones, read and written. Pickles only through
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
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
        raise WeightsError(f"{path}: no such file or run folder")
    if str(path) in packaged():
        return _PRETRAINED / f"{path}.safetensors"
    raise WeightsError(
        f"no weights named {str(path)!r}: "
        f"{'the package has ' + ', '.join(packaged()) if packaged() else 'none are packaged'}; "
        "or give a file (.safetensors, .npz, .pth) or a run folder"
    )


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
        if metadata.get("format") == FORMAT:
            return _from_ours(path, flat, metadata)
        return _from_modules(path, _modules_of(flat))


def save_weights(
    path: str | Path,
    name: str,
    params: Params,
    metadata: Mapping[str, str] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes parameters in our layout as .safetensors or .npz, whole or not at all.

    dtype float16 halves the file and rounds every parameter to 11 bits. Raises WeightsError where
    it cannot be written.
    """
    # safetensors writes the memory as it lies: a transposed view would come out wrong.
    flat = {key: np.ascontiguousarray(np.asarray(value), dtype) for key, value in _flatten(params)}
    about = {"format": FORMAT, "model": name, "jaxfuse": __version__, **(metadata or {})}
    _write_flat(Path(path), flat, about)


def export_weights(path: str | Path, weights: Weights) -> None:
    """Writes parameters in the published PyTorch layout as .pth/.pt, .safetensors or .npz, whole or
    not at all.
    """
    path = Path(path)
    modules = convert.to_torch(weights.name, weights.params)
    if path.suffix in TORCH_SUFFIXES:
        torch = _torch(path)
        published = {ours: theirs for theirs, ours in convert.MODULE_NAMES.items()}
        state = {
            published.get(module, module): {
                name: torch.from_numpy(array.copy()) for name, array in arrays.items()
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
    source: str | Path, target: str | Path, layout: Literal["jaxfuse", "torch"] = "jaxfuse"
) -> str:
    """Reads any known weights and writes them in one layout; tells what was done in one line."""
    weights = load_weights(source)
    target = Path(target)
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


def _from_ours(path: Path, flat: dict[str, np.ndarray], metadata: dict[str, str]) -> Weights:
    import jax

    from jaxfuse.models import create

    name = metadata.get("model", "")
    if name not in MODELS:
        raise WeightsError(
            f"{path}: holds a model {name!r} that this version does not have: "
            f"{', '.join(sorted(MODELS))}"
        )
    expected = dict(_flatten(jax.eval_shape(create(name).init, jax.random.key(0))))
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
        node[leaf] = np.ascontiguousarray(flat[key], np.float32)
    about = {k: v for k, v in metadata.items() if k not in ("format", "model")}
    return Weights(name, params, about)


def _from_modules(path: Path, modules: dict[str, dict[str, np.ndarray]]) -> Weights:
    found = set(convert.normalise_names(modules))
    for name in convert.TABLES:
        if found & {entry.module for entry in convert.entries(name)}:
            return Weights(name, convert.from_torch(name, modules), {"source": path.name})
    raise WeightsError(
        f"{path}: no known network in it (top-level keys: "
        f"{', '.join(sorted(found)[:5]) or 'none'}): "
        f"expected {', '.join(convert.MODULE_NAMES)}"
    )


def _modules_of(flat: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    modules: dict[str, dict[str, np.ndarray]] = {}
    for key, value in flat.items():
        key = key.removeprefix("state/")
        module, _, name = key.partition("/") if "/" in key else key.partition(".")
        modules.setdefault(module, {})[name] = value
    return modules


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with np.load(path, allow_pickle=False) as file:
        flat = {key: file[key] for key in file.files}
    about = flat.pop("__metadata__", None)
    return flat, json.loads(str(about)) if about is not None else {}


def _read_torch(path: Path) -> dict[str, dict[str, np.ndarray]]:
    torch = _torch(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, dict) for value in state.values()):
        raise WeightsError(
            f"{path}: expected a dict of state dicts with keys {', '.join(convert.MODULE_NAMES)}"
        )
    return {
        module: {name: tensor.to(torch.float32).numpy() for name, tensor in arrays.items()}
        for module, arrays in state.items()
    }


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f'{path}: {path.suffix} files need PyTorch: pip install "jaxfuse[convert]"'
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
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WeightsError(
            f"{path}: cannot be written ({reason}): free disk space or choose another folder"
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
