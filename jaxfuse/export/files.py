"""Writing exported networks: built, run and compared, and only then put under their name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from jaxfuse import __version__
from jaxfuse.config import counted
from jaxfuse.data.pairs import Pairs
from jaxfuse.export import graph, stablehlo
from jaxfuse.export.program import (
    DEFAULT_OPSET,
    DEFAULT_PLATFORMS,
    ExportError,
    Run,
    Settings,
)
from jaxfuse.infer.folders import check_place
from jaxfuse.infer.predict import Fuser, fuse, load
from jaxfuse.ops import color
from jaxfuse.weights import files as weight_files

LIMITS = {".stablehlo": 1e-5, ".onnx": 1e-4}
"""Largest difference that passes, by suffix, on a scale of [0, 1]."""
BFLOAT16_LIMIT = 0.02
"""Of arithmetic with 8 bits, whose order differs between programs."""
MADE_UP = ((1, 1, 1), (2, 9, 14))
"""(batch, height, width) of pairs of random levels, where these may be any."""
MADE_UP_NAME = "made up"

_CALLS = {
    ".stablehlo": "jax.export.deserialize(bytearray(open(FILE, 'rb').read())).call(visible, "
    "infrared) -> fused",
    ".onnx": "onnxruntime.InferenceSession(FILE).run(['fused'], {'visible': visible, 'infrared': "
    "infrared}) -> [fused]",
}

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class Compared:
    """One comparison of the file with the network it was made from."""

    name: str
    """A pair's stem, or "made up"."""
    shape: tuple[int, int, int]
    """Batch, height, width."""
    difference: float
    """Largest, of levels in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class Written:
    """An exported network."""

    path: Path
    model: str
    megabytes: float
    settings: Settings
    limit: float
    """What the comparisons had to stay within."""
    compared: tuple[Compared, ...]
    unchecked: str = ""
    """Why there was no comparison."""

    def lines(self) -> list[str]:
        """What was done, in words."""
        onnx = self.path.suffix == ".onnx"
        where = (
            f"opset {self.settings.opset}" if onnx else f"for {', '.join(self.settings.platforms)}"
        )
        lines = [
            f"{self.path}: {self.model}, {self.megabytes:.1f} MB, {self.settings.dtype}, {where}, "
            f"{self.settings.sizes()}"
        ]
        if self.unchecked:
            return [*lines, f"not compared: {self.unchecked}"]
        worst = max(self.compared, key=lambda one: one.difference)
        real = sum(one.name != MADE_UP_NAME for one in self.compared)
        return [
            *lines,
            f"run in {'onnxruntime' if onnx else 'JAX'} on "
            f"{counted(len(self.compared), 'pair')}, {real} of them real; largest "
            f"difference {worst.difference:.1e} ({worst.name}, "
            f"{worst.shape[1]} x {worst.shape[2]}), {self.limit:g} is allowed",
        ]


def write(
    weights: str | Path,
    path: str | Path,
    settings: Settings | None = None,
    *,
    check: bool = True,
    pairs: Pairs | None = None,
    most: int = 0,
    overwrite: bool = False,
    progress: Progress = lambda done, total, name: None,
) -> Written:
    """Writes a fusion network with its weights as FILE.stablehlo or FILE.onnx, whole or not at all.

    The file takes `visible` luma and `infrared`, float32 (batch, height, width, 1) in [0, 1], and
    gives `fused` of the same shape. Beside FILE.stablehlo lies FILE.stablehlo.json, which says what
    it is; an ONNX graph says so in its metadata.
    weights: what `jaxfuse.load` takes. check: run what was built on pairs of random levels, and on
    `pairs` (at most so many, evenly chosen; 0 takes all that fit), and compare with `jaxfuse.fuse`.
    Raises ExportError where it differs by more than `LIMITS`, and for what cannot be exported so;
    WeightsError for the weights; FileError for a place that cannot be written to.
    """
    path, settings = Path(path), settings or Settings()
    kind = path.suffix
    beside = path.with_name(f"{path.name}.json")
    _check_target(path, beside, settings, overwrite)
    (graph if kind == ".onnx" else stablehlo).require()
    fuser = load(weights, settings.dtype)
    about = _about(fuser, Path(weights).name, kind, settings)
    if kind == ".onnx":
        data = graph.build(fuser, settings, about)
    else:
        data = stablehlo.build(fuser, settings)
    limit = LIMITS[kind] if settings.dtype == "float32" else BFLOAT16_LIMIT
    compared: list[Compared] = []
    unchecked = "" if check else "not asked for"
    if check:
        run = graph.runner(data) if kind == ".onnx" else stablehlo.runner(data)
        if run is None:
            here = jax.default_backend()
            unchecked = f"made for {', '.join(settings.platforms)}, and this machine has {here}"
        else:
            chosen, done = _chosen(path, settings, pairs, most), 0
            for one in _compare(path, run, fuser, limit, _inputs(settings, pairs, chosen)):
                compared.append(one)
                if one.name != MADE_UP_NAME:
                    done += 1
                    progress(done, len(chosen), one.name)
    with weight_files.replacing(path) as temporary:
        temporary.write_bytes(data)
    if kind == ".stablehlo":
        weight_files.write_text(beside, json.dumps(about, indent=1) + "\n")
    return Written(path, fuser.name, len(data) / 1e6, settings, limit, tuple(compared), unchecked)


def _check_target(path: Path, beside: Path, settings: Settings, overwrite: bool) -> None:
    """Raises ExportError or FileError for what would fail after the work, or have no effect."""
    kind = path.suffix
    if kind not in LIMITS:
        raise ExportError(f"{path}: unknown kind {kind!r}: name it .stablehlo or .onnx")
    if kind == ".onnx" and settings.dtype != "float32":
        raise ExportError(
            f"{path}: onnxruntime has no convolution in {settings.dtype}: use float32, or write "
            ".stablehlo"
        )
    if kind == ".onnx" and settings.platforms != DEFAULT_PLATFORMS:
        raise ExportError(
            f"{path}: platforms = {', '.join(settings.platforms)!r} is for .stablehlo: leave it "
            "out, an ONNX runtime chooses where it runs"
        )
    if kind == ".stablehlo" and settings.opset != DEFAULT_OPSET:
        raise ExportError(
            f"{path}: opset = {settings.opset} is for .onnx: leave it out, or write .onnx"
        )
    for file in (path, beside) if kind == ".stablehlo" else (path,):
        if file.is_dir():
            raise ExportError(f"{file}: is a folder: name another file")
        if file.exists() and not overwrite:
            raise ExportError(f"{file}: exists already: add --overwrite, or name another file")
    check_place(path)


def _about(fuser: Fuser, weights: str, kind: str, settings: Settings) -> dict[str, str]:
    sides = [
        str(size or name)
        for size, name in zip(settings.fixed, ("batch", "height", "width"), strict=True)
    ]
    about = {
        "jaxfuse": __version__,
        "jax": jax.__version__,
        "model": fuser.name,
        "weights": weights,
        "dtype": settings.dtype,
        "inputs": f"visible, infrared: float32 ({', '.join(sides)}, 1) in [0, 1]; visible is the "
        "luma 0.299 R + 0.587 G + 0.114 B",
        "output": "fused: float32 of the same shape, luma in [0, 1]",
        "call": _CALLS[kind],
    }
    if kind == ".stablehlo":
        about["platforms"] = ", ".join(settings.platforms)
    return {**{f"weights.{key}": value for key, value in fuser.metadata.items()}, **about}


def _chosen(path: Path, settings: Settings, pairs: Pairs | None, most: int) -> list[int]:
    """Which of the pairs to compare on."""
    if pairs is None:
        return []
    batch = settings.batch or 1
    fitting = [i for i in range(len(pairs)) if settings.takes((batch, *pairs.size(i)))]
    if not fitting:
        raise ExportError(
            f"{path}: {counted(len(pairs), 'pair')} to compare on, none fits ({settings.sizes()}): "
            "give other pairs, or leave the sizes open"
        )
    count = len(fitting)
    return [fitting[i * count // most] for i in range(most)] if 0 < most < count else fitting


def _inputs(
    settings: Settings, pairs: Pairs | None, chosen: list[int]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Names and (batch, height, width, 1) images to compare on."""
    random = np.random.default_rng(0)
    shapes = [
        tuple(want or have for want, have in zip(settings.fixed, shape, strict=True))
        for shape in MADE_UP
    ]
    for shape in dict.fromkeys(shapes):
        visible, infrared = random.random((2, *shape, 1), dtype=np.float32)
        yield MADE_UP_NAME, visible, infrared
    for i in chosen:
        pair = pairs[i]
        luma, batch = np.asarray(color.luma(pair.visible)), settings.batch or 1
        yield pair.stem, np.stack([luma] * batch), np.stack([pair.infrared] * batch)


def _compare(
    path: Path,
    run: Run,
    fuser: Fuser,
    limit: float,
    inputs: Iterator[tuple[str, np.ndarray, np.ndarray]],
) -> Iterator[Compared]:
    for name, visible, infrared in inputs:
        expected = np.stack(
            [fuse(v, i, fuser)[:, :, None] for v, i in zip(visible, infrared, strict=True)]
        )
        found = run(visible, infrared)
        shape = visible.shape[:3]
        if found.shape != expected.shape:
            raise ExportError(
                f"{path}: gives {found.shape} for images of {visible.shape}: not written; this is "
                f"a fault in the export of {fuser.name}"
            )
        difference = float(np.abs(found - expected).max())
        if not difference <= limit:  # NaN
            raise ExportError(
                f"{path}: differs from {fuser.name} by {difference:.1e} on {name} ({shape[1]} x "
                f"{shape[2]}), {limit:g} is allowed: not written; try the versions of packages "
                "that constraints.txt names"
            )
        yield Compared(name, shape, difference)
