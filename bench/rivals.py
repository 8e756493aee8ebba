"""Published fusion networks, in PyTorch, from local checkouts: nothing of them is kept here.

`python -m bench.rivals --rivals DIR --data DATA --out OUT` fuses the validation pairs with each and
says in OUT/rivals.json which versions they are. DIR holds checkouts named as `RIVALS`; one that
lacks its weights has random ones, which do for time and not for pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from bench import machine
from bench.sides import BenchError

SETS = ("roadscene_val", "msrs_val", "tno")
"""Of ../shared/data: folder before the underscore, and the split of that name where there is one.
"""


def _as_it_is(fused: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return fused.clip(0.0, 1.0)


def _colored_and_stretched(fused: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """SeAFusion's script adds the visible image's colours, takes the picture's own darkest and
    brightest level for 0 and 255, and cuts off what follows the point; luma of that.
    """
    from jaxfuse.ops import color

    rgb = np.asarray(color.replace_luma(visible, fused[:, :, None], "clip"))
    low, high = rgb.min(), rgb.max()
    levels = np.floor(255.0 * (rgb - low) / (high - low if high > low else 1.0))
    return np.asarray(color.luma((levels / 255.0).astype(np.float32)))[:, :, 0]


FACTS = "rivals.json"
"""Beside the pictures: digests of the networks and weights that made them."""


class Rival(NamedTuple):
    """Where a checkout has what is needed."""

    network: str
    weights: str
    make: Callable[[ModuleType], Any]
    fuse: Callable[[Any, Any, Any], Any]
    """(network, visible, infrared (1, 1, h, w) in [0, 1]) -> fused (h, w), as its test script makes
    it."""
    picture: Callable[[np.ndarray, np.ndarray], np.ndarray] = _as_it_is
    """(fused (h, w), visible (h, w, 3) in [0, 1]) -> (h, w) in [0, 1]: gray of what its test script
    writes."""


RIVALS = {
    "SeAFusion": Rival(
        "FusionNet.py",
        "model/Fusion/fusionmodel_final.pth",
        lambda code: code.FusionNet(output=1),
        lambda network, visible, infrared: network(visible, infrared)[0, 0],
        _colored_and_stretched,
    ),
    "IFCNN": Rival(
        "Code/model.py",
        "Code/snapshots/IFCNN-MAX.pth",
        lambda code: code.myIFCNN(fuse_scheme=0),
        lambda network, visible, infrared: _gray_8bit(
            network(*(x.expand(-1, 3, -1, -1) for x in (visible, infrared)))[0]
        ),
    ),
    "DATFuse": Rival(
        "Networks/network.py",
        "model_10.pth",
        lambda code: code.MODEL(in_channel=2),
        lambda network, visible, infrared: _8bit(network(_stacked(infrared, visible))[0, 0]),
    ),
}


def _stacked(*images: Any) -> Any:
    import torch

    return torch.cat(images, 1)


def _8bit(image: Any) -> Any:
    """Levels of 0 to 255 by cutting off what follows the point, as two of the scripts do.

    Clamped first: DATFuse's script lets levels beyond 255 begin again at 0, which nobody means.
    """
    return (255.0 * image.clamp(0.0, 1.0)).floor() / 255.0


def _gray_8bit(rgb: Any) -> Any:
    """(3, h, w) to luma, both in 8 bits: IFCNN's script gives gray pictures so."""
    red, green, blue = _8bit(rgb)
    return (255.0 * (0.299 * red + 0.587 * green + 0.114 * blue)).round() / 255.0


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """While one of their modules is read: the few names that they take from torchvision and timm,
    which need not be installed. IFCNN's first layer begins as ResNet's, then its weights are read.
    """
    from torch import nn

    def resnet101(pretrained: bool) -> nn.Module:
        made = nn.Module()
        made.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        return made

    class DropPath(nn.Identity):
        """Drops nothing, as it does outside training."""

    layers = SimpleNamespace(
        DropPath=DropPath,
        to_2tuple=lambda x: x if isinstance(x, tuple) else (x, x),
        trunc_normal_=nn.init.trunc_normal_,
    )
    resnets = SimpleNamespace(resnet101=resnet101)
    names = {
        "torchvision": SimpleNamespace(models=resnets),
        "torchvision.models": resnets,
        "timm": SimpleNamespace(),
        "timm.models": SimpleNamespace(layers=layers),
        "timm.models.layers": layers,
    }
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def found(rivals: Path) -> list[str]:
    """The names of checkouts that are there. Raises BenchError where there are none."""
    names = [name for name, rival in RIVALS.items() if (rivals / name / rival.network).is_file()]
    if not names:
        raise BenchError(
            f"--rivals {rivals}: no checkout in it: put at least one of {', '.join(RIVALS)} there"
        )
    if importlib.util.find_spec("torch") is None:
        raise BenchError("--rivals needs torch: pip install torch")
    return names


def has_weights(rivals: Path, name: str) -> bool:
    """Whether the checkout holds the published weights."""
    path = rivals / name / RIVALS[name].weights
    return path.is_file() and path.stat().st_size > 0


def network(rivals: Path, name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(visible, infrared (h, w) float32 in [0, 1]) -> fused (h, w) float32, not clipped."""
    import torch

    rival = RIVALS[name]
    path = rivals / name / rival.network
    spec = importlib.util.spec_from_file_location(f"rival_{name}", path)
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    with _stand_ins():
        spec.loader.exec_module(code)
        made = rival.make(code)
    if has_weights(rivals, name):
        state = torch.load(rivals / name / rival.weights, map_location="cpu", weights_only=True)
        made.load_state_dict(state)
    made.eval()

    def fuse(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
        images = (torch.tensor(x)[None, None] for x in (visible, infrared))
        with torch.no_grad():
            return rival.fuse(made, *images).numpy()

    return fuse


def facts(rivals: Path) -> dict[str, Any]:
    """Which versions were measured, by digests."""
    told = {}
    for name in found(rivals):
        rival = RIVALS[name]
        told[name] = {"network": machine.digest(rivals / name / rival.network)}
        if has_weights(rivals, name):
            told[name]["weights"] = machine.digest(rivals / name / rival.weights)
    return told


def pictures(rivals: Path, data: Path, out: Path) -> None:
    """Writes OUT/SET/NAME/STEM.png for the sets in `data`, by every rival that has weights, and
    OUT/rivals.json, which versions these are.
    """
    import cv2

    from jaxfuse.data.folders import open_folders
    from jaxfuse.ops import color

    there = found(rivals)
    networks = {name: network(rivals, name) for name in there if has_weights(rivals, name)}
    if not networks:
        lacking = ", ".join(str(rivals / name / RIVALS[name].weights) for name in there)
        raise BenchError(f"--rivals {rivals}: no weights to fuse with: add {lacking}")
    for which in SETS:
        split = data / "splits" / f"{which}.txt"
        pairs = open_folders(str(data / which.split("_")[0]), split=str(split) * split.exists())
        for i in range(len(pairs)):
            pair = pairs[i]
            luma = np.asarray(color.luma(pair.visible))[:, :, 0]
            for name, fuse in networks.items():
                fused = fuse(luma, pair.infrared[:, :, 0])
                image = RIVALS[name].picture(fused, np.asarray(pair.visible))
                path = out / which / name / f"{pair.stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(path), np.rint(255.0 * image).astype(np.uint8)):
                    raise BenchError(f"{path}: cannot be written: see to space and permissions")
        print(f"{which}: {len(pairs)} pairs", file=sys.stderr)
    told = made_by(out) | {name: of for name, of in facts(rivals).items() if name in networks}
    (out / FACTS).write_text(json.dumps(told, indent=1) + "\n", encoding="utf8")


def made_by(pictures: Path) -> dict[str, Any]:
    """Network -> digests, of the pictures in a folder that `pictures` filled; {} without any."""
    path = pictures / FACTS
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else {}


def main(words: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m bench.rivals", description=__doc__)
    for name in ("rivals", "data", "out"):
        parse.add_argument(f"--{name}", type=Path, required=True)
    given = parse.parse_args(words)
    try:
        pictures(given.rivals, given.data, given.out)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
