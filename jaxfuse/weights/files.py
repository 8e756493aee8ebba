"""Flat files of arrays: safetensors, npz, and PyTorch's pickles, which are read without running
what is in them.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxfuse import convert
from jaxfuse.config import UserError

TORCH_SUFFIXES = (".pth", ".pt")


class WeightsError(UserError, ValueError):
    """Weights that cannot be read or written; the message names the file and the remedy."""


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_npz(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    # np.load leaves a damaged file open that it has opened itself.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        flat = {key: file[key] for key in file.files}
    about = flat.pop("__metadata__", None)
    return flat, json.loads(str(about)) if about is not None else {}


def read_torch(path: Path) -> dict[str, dict[str, np.ndarray]]:
    torch = import_torch(path)
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


def import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f'{path}: {path.suffix} files need PyTorch: install jaxfuse with its extra "convert"'
        ) from error
    return torch


def write_flat(path: Path, flat: dict[str, np.ndarray], about: dict[str, str]) -> None:
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        with replacing(path) as temporary:
            temporary.write_bytes(save(flat, metadata=about))
    elif path.suffix == ".npz":
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, __metadata__=np.array(json.dumps(about)), **flat)
    else:
        raise WeightsError(
            f"{path}: cannot write {path.suffix!r}: use .safetensors or .npz (or .pth with "
            "--layout torch)"
        )


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` once it is complete; else it is removed."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # Some file systems report a full disk only here.
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        reason = getattr(error, "strerror", None) or first_line(error)
        raise WeightsError(
            f"{path}: cannot be written ({reason}): free some space or choose another place; what "
            "was there before is unchanged"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except convert.ConvertError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise WeightsError(
            f"{path}: damaged or not a weights file ({first_line(error)}): get it again"
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
            f"{path}: damaged or not a weights file ({first_line(error)}): get it again"
        ) from error


def first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "weights_only" in line or "allow_pickle" in line:
        # What the libraries advise here is to run the code in the file.
        return "holds something else than plain arrays, and code in a weights file is never run"
    return line
