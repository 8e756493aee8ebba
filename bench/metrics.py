"""All metrics of one convention on a 480x640 triple, beside the evaluators that defined them.

`--reference DIR` gives the published evaluator of the crossfuse convention (and, but for three
metrics, of cddfuse), `--zoo DIR` a checkout of IVIF_ZOO. They run unchanged, on arrays in memory:
reading files is measured on neither side. They need scikit-image, scikit-learn, scipy, opencv and,
for IVIF_ZOO, torch and torchvision.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, record
from bench.record import Run
from bench.sides import BenchError, Side, Work

SIZE, TINY_SIZE = (480, 640), (176, 192)
PAIRS, TINY_PAIRS = 361, 2
CONVENTIONS = "cddfuse", "crossfuse", "zoo", "vifb", "jaxfuse"
EVALUATOR = "utils/Evaluator.py"
ZOO = "Metric/Metric_torch.py"
NO_ZOO = "IVIF_ZOO was not measured: give its checkout with --zoo DIR."


def triple(size: tuple[int, int], number: int) -> list[np.ndarray]:
    """Fused (the rounded average), visible and infrared grey levels of a made-up scene, uint8."""
    from jaxfuse.data.synthetic import SyntheticPairs
    from jaxfuse.metrics import to_gray

    pair = SyntheticPairs(number + 1, *size, seed=7, sensor="clear")[number]
    levels = [np.rint(x * 255).astype(np.uint8) for x in (pair.visible, pair.infrared)]
    visible, infrared = (to_gray(x, "cddfuse").astype(np.uint8) for x in levels)
    fused = np.rint((visible.astype(np.float64) + infrared) / 2).astype(np.uint8)
    return [fused, visible, infrared]


def ours(options: dict[str, Any]) -> Work:
    """One call of `score` per triple; from uint8 in NumPy to numbers in NumPy."""
    import jax

    from bench.floor import operations
    from jaxfuse import metrics

    # Few scenes serve for many pairs: what a metric costs does not depend on them.
    made = [triple(options["size"], i) for i in range(min(options["pairs"], 4))]
    last: list[dict[str, float]] = []

    def one(number: int) -> dict[str, float]:
        images = (image[None] for image in made[number % len(made)])
        found = metrics.score(*images, convention=options["convention"])
        return {name: float(value[0]) for name, value in jax.device_get(found).items()}

    def run() -> None:
        last[:] = [one(number) for number in range(options["pairs"])]

    def finish() -> dict[str, Any]:
        images = [image[None] for image in made[0]]
        count = operations(lambda *x: metrics.score(*x, convention=options["convention"]), *images)
        pairs = options["pairs"]
        work = {"operations": pairs * count.total, "bytes": float(pairs * 3 * images[0].size)}
        return {**work, "values": last[0], "compiled": "in the first call"}

    return Work(run, finish=finish)


def _module(path: Path) -> Any:
    """A file as a module, its folder first among where its imports are looked for."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def evaluator(options: dict[str, Any]) -> Work:
    """The published evaluator, on float32 images as its own script reads them."""
    code = _module(Path(options["reference"]) / EVALUATOR).Evaluator
    fused, visible, infrared = (x.astype(np.float32) for x in triple(options["size"], 0))
    names = {**{n: n for n in ("MI", "MSE", "CC", "PSNR", "SCD", "Qabf", "SSIM")}, "VIF": "VIFF"}
    last: dict[str, float] = {}

    def run() -> None:
        last.update({name: getattr(code, name)(fused) for name in ("EN", "SD", "SF", "AG")})
        for name, function in names.items():
            last[name] = getattr(code, function)(fused, infrared, visible)

    return Work(run, finish=lambda: {"values": {k: float(v) for k, v in last.items()}})


def zoo(options: dict[str, Any]) -> Work:
    """The functions of IVIF_ZOO on one triple, with the types its own script hands them."""
    import torch

    # A torchvision built for CUDA does not import beside a torch without it unless its operators
    # are declared; the evaluator calls none of them.
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            declared.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    code = _module(Path(options["zoo"]) / ZOO)
    images = triple(options["size"], 0)
    f, vi, ir = (torch.tensor(x).float() for x in images)
    f_int, vi_int, ir_int = (x.astype(np.int32) for x in images)
    f_float, vi_float, ir_float = (x.astype(np.float32) for x in images)
    last: dict[str, float] = {}

    def run() -> None:
        found: dict[str, Any] = {}
        for name in ("CE", "QNCIE", "TE", "Qy", "Qcb"):
            found[name] = getattr(code, f"{name}_function")(ir, vi, f)
        for name in ("EN", "EI", "SF", "SD", "AG"):
            found[name] = getattr(code, f"{name}_function")(f)
        for name in ("PSNR", "MSE", "VIF", "CC", "SCD", "Nabf"):
            found[name] = getattr(code, f"{name}_function")(ir, vi, f)
        for name in ("MI", "NMI"):
            found[name] = getattr(code, f"{name}_function")(ir_int, vi_int, f_int)
        for name in ("Qabf", "SSIM", "MS_SSIM"):
            found[name] = getattr(code, f"{name}_function")(ir_float, vi_float, f_float)
        last.update({name: float(value) for name, value in found.items()})

    return Work(run, finish=lambda: {"values": last})


def _require(path: Path, packages: tuple[str, ...], option: str) -> None:
    if not path.is_file():
        raise BenchError(f"{option}: no {path.name} in {path.parent}: give a checkout that has it")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise BenchError(f"metrics: {option} needs {', '.join(missing)}: install them with pip")


def _differences(mine: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    return {
        name: abs(mine[name] - value) / abs(value) if value else abs(mine[name])
        for name, value in theirs.items()
    }


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    size, pairs = (TINY_SIZE, TINY_PAIRS) if run.tiny else (SIZE, PAIRS)
    options = {"size": size, "pairs": 1}
    sides = [
        Side(name, "bench.metrics:ours", {**options, "convention": name}) for name in CONVENTIONS
    ]
    published: dict[str, tuple[str, ...]] = {}
    if run.reference:
        _require(run.reference / EVALUATOR, ("skimage", "sklearn", "scipy", "cv2"), "--reference")
        extra = {**options, "reference": str(run.reference)}
        sides.append(Side("published crossfuse", "bench.metrics:evaluator", extra, rounds=3))
        # Twelve metrics, nine of them and the cost of all twelve are those of cddfuse.
        published["published crossfuse"] = ("crossfuse", "cddfuse")
    if run.zoo:
        _require(run.zoo / ZOO, ("torch", "torchvision", "scipy", "sklearn"), "--zoo")
        sides.append(
            Side("published zoo", "bench.metrics:zoo", {**options, "zoo": str(run.zoo)}, 2)
        )
        published["published zoo"] = ("zoo",)
    many = [f"{pairs} pairs, {name}" for name in ("cddfuse", "zoo", "jaxfuse")]
    sides += [
        Side(label, "bench.metrics:ours", {**options, "pairs": pairs, "convention": name}, rounds=1)
        for label, name in zip(many, ("cddfuse", "zoo", "jaxfuse"), strict=True)
    ]
    what = f"all metrics of a convention on one {size[0]}x{size[1]} triple"
    settings = {"size": size, "pairs": pairs, "dtype": "float32"}
    result = record.measure(run, "metrics", what, sides, run.rounds(9), settings, rates)
    final = not run.tiny
    for theirs, names in published.items():
        for name in names:
            entry = record.compare(result, theirs, name)
            goal = f"{theirs}: times as long as {name}"
            measured = entry["time"]["median"]
            result["goals"].append(record.goal(goal, 20.0, measured, at_least=True, final=final))
        values = (result["sides"][side]["facts"]["values"] for side in (names[0], theirs))
        for metric, difference in _differences(*values).items():
            result["agreement"][f"{theirs}, {metric}: relative difference"] = difference
    for label in many:
        side = result["sides"][label]
        result["goals"] += [
            record.goal(f"seconds, {label}", 300.0, side["median_seconds"], final=final),
            record.goal(f"bytes at most, {label}", 2e9, side["peak_rss_bytes"], final=final),
        ]
    result["notes"] += [] if run.reference else [record.NO_REFERENCE]
    result["notes"] += [] if run.zoo else [NO_ZOO]
    result["notes"].append(
        "The published evaluators compute in float32 as published; their SSIM, MS_SSIM and CE on "
        "grey levels lose up to a hundredth by it."
    )
    if run.reference or run.zoo:
        result["reference"] = {
            **({EVALUATOR: machine.digest(run.reference / EVALUATOR)} if run.reference else {}),
            **({ZOO: machine.digest(run.zoo / ZOO)} if run.zoo else {}),
        }
    return [result]
