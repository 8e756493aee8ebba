"""The published PyTorch code, read from a local checkout: nothing of it is kept here.

Its scripts start training or want a GPU when they are imported, so of `top_k_alignment.py` only the
function definitions are run, and the training step is stated anew in `bench.step`.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench import machine
from bench.sides import BenchError

NETWORK = "network.py"
ALIGNMENT = "top_k_alignment.py"


def check(reference: Path) -> None:
    """Raises BenchError unless the folder is a checkout that can be measured here."""
    for name in (NETWORK, ALIGNMENT):
        if not (reference / name).is_file():
            raise BenchError(
                f"--reference {reference}: no {name} in it: give a checkout of the published "
                "CrossFuse code"
            )
    for package in ("torch", "einops", "scipy", "cv2"):
        if importlib.util.find_spec(package) is None:
            raise BenchError(f"--reference needs {package}: pip install {package}")


def facts(reference: Path | None) -> dict[str, Any] | None:
    """Which version was measured."""
    if reference is None:
        return None
    return {
        "commit": machine.commit(reference),
        **{name: machine.digest(reference / name) for name in (NETWORK, ALIGNMENT)},
    }


def network(reference: str) -> ModuleType:
    """Its module of network classes."""
    spec = importlib.util.spec_from_file_location("published_network", Path(reference) / NETWORK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def modules(reference: str, seed: int, weights: str) -> dict[str, Any]:
    """Its four modules with random weights, which are also saved, as npz, to `weights`."""
    import torch

    torch.manual_seed(seed)
    code = network(reference)
    made = {
        "encoder": code.Restormer_Encoder(),
        "decoder": code.Restormer_Decoder(),
        "base_fuse": code.LongScaleFeatureExtraction(dim=64, num_heads=8),
        "detail_fuse": code.ShortScaleFeatureExtraction(num_layers=1),
    }
    arrays = {
        f"{module}/{name}": array.detach().numpy()
        for module, part in made.items()
        for name, array in part.state_dict().items()
    }
    np.savez(weights, **arrays)
    return made


def load_weights(path: str) -> dict[str, dict[str, np.ndarray]]:
    """The weights that `modules` saved: {module: {name: array}}."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            module, name = key.split("/", 1)
            found.setdefault(module, {})[name] = arrays[key]
    return found


def functions(path: Path) -> dict[str, Any]:
    """The functions a script defines, without running the script itself."""
    tree = ast.parse(path.read_text(encoding="utf8"), filename=str(path))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    import cv2
    from scipy.optimize import minimize

    names: dict[str, Any] = {"os": os, "cv2": cv2, "np": np, "re": re, "minimize": minimize}
    exec(compile(tree, str(path), "exec"), names)
    return names
