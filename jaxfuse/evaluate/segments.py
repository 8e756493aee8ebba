"""What an SSVIF run's two segmentations see, and what stage II did to the fused image.

A: the light head on fused features. B: the segmentation network on the fused image. arXiv
2509.22450.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfuse import distributed, weights
from jaxfuse.checkpoint import Checkpoints, abstract_like
from jaxfuse.config import Experiment, SSVIFConfig, UserError, load_json
from jaxfuse.data import images
from jaxfuse.data.builders.classes import ClassList, plain_list
from jaxfuse.data.pairs import Pairs
from jaxfuse.evaluate import panels
from jaxfuse.evaluate.results import make_folder
from jaxfuse.losses import consistency
from jaxfuse.methods import Facts, Method, ssvif
from jaxfuse.models import resize_logits
from jaxfuse.ops import color
from jaxfuse.shapes import Gray, Params, Rgb
from jaxfuse.train import setup
from jaxfuse.train.state import TrainState, init_state

FORMAT = 1
SIGNS = ("classes_in_use", "confidence", "agreement")
Progress = Callable[[int, int, str], None]


class SegmentsError(UserError, ValueError):
    """A run without two segmentations to look at; the message names it and the remedy."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The networks of a run, at the beginning and at the end of stage II."""

    experiment: Experiment
    networks: ssvif.Networks
    before: Params
    """Fusion network as stage I left it; head and segmentation network as they began."""
    after: Params
    """As the newest checkpoint has them."""
    step: int
    """Of that checkpoint."""


def load(folder: str | Path) -> Run:
    """Raises SegmentsError for a run of another method or one that has not begun stage II,
    CheckpointError where no checkpoint can be read.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise SegmentsError(f"{folder}: no run folder: name one that `jaxfuse train` made")
    experiment = load_json(folder / "config.json")
    config = experiment.method
    if not isinstance(config, SSVIFConfig) or config.guidance != "consistency":
        kind = getattr(config, "guidance", "none")
        raise SegmentsError(
            f"{folder}: method.name = {config.name!r}, guidance {kind!r}: only SSVIF's consistency "
            "has two segmentations: name a run of it"
        )
    train = experiment.train
    # How long an epoch is shapes nothing; that the data are still there is not needed.
    model, method = setup.build(experiment, Facts(train.steps_per_epoch or 1))
    state, stage = _newest(folder, method)
    step, networks = int(state.step), ssvif.make_networks(config, model)
    if stage != method.stages[-1].name or config.stage2_epochs == 0:
        raise SegmentsError(
            f"{folder}: is at step {step}, and stage II has not begun: train on until it has"
        )
    first = folder / "stages" / f"{method.stages[0].name}.safetensors"
    begun = init_state(method, jax.random.key(experiment.seed)).params
    if config.stage1_epochs > 0:
        begun = {**begun, "fusion": weights.load_weights(first).params}
    return Run(experiment, networks, begun, state.params, step)


def _newest(folder: Path, method: Method) -> tuple[TrainState, str]:
    """The newest state, and the stage it was saved in."""
    shapes = jax.eval_shape(lambda key: init_state(method, key), jax.random.key(0))
    one = distributed.replicated(distributed.data_mesh(1))
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        state, info, _ = checkpoints.restore(abstract_like(shapes, one))
    finally:
        checkpoints.close()
    return state, str(info["stage"])


def _program(run: Run) -> Callable[[Params, Gray, Gray, Rgb], tuple[jax.Array, ...]]:
    """(parameters, luma, infrared, colours) -> (fused picture, classes of A, of B, signs)."""

    @jax.jit
    def program(params: Params, luma: Gray, infrared: Gray, colors: Rgb) -> tuple[jax.Array, ...]:
        fused = run.networks.fusion.apply(params["fusion"], luma, infrared)
        shown = ssvif.color_image(fused.image, colors)
        size = luma.shape[1:3]
        a = run.networks.head.apply(params["head"], fused.features)
        b = run.networks.segmenter.apply(params["segmenter"], shown)
        seen = consistency.signs(a, b)
        maps = [jnp.argmax(resize_logits(x, *size), axis=-1)[0].astype(jnp.uint8) for x in (a, b)]
        return shown[0], *maps, jnp.stack([seen[name] for name in SIGNS])

    return program


def write(
    run: Run,
    pairs: Pairs,
    out: str | Path,
    progress: Progress | None = None,
    chosen: Sequence[int] | None = None,
) -> tuple[dict[str, dict[str, float]], list[Path]]:
    """OUT/STEM.png of each pair: the fused picture, A and B, before stage II and after it; and the
    signs of each image and their means in OUT/segments.json. chosen: numbers of the pairs (all).

    Returns the means of the signs before and after ("classes_in_use", "confidence", "agreement";
    each image by itself), and the pictures. Images go through the networks whole.
    """
    out = Path(out)
    program = _program(run)
    chosen = range(len(pairs)) if chosen is None else chosen
    smallest = run.networks.segmenter.smallest
    small = [i for i in chosen if min(pairs.size(i)) < smallest]
    if small:
        height, width = pairs.size(small[0])
        raise SegmentsError(
            f"{pairs.stem(small[0])}: {height}x{width} pixels (height x width): "
            f"{run.networks.segmenter.name} needs {smallest} along each side: leave it out by a "
            "split"
        )
    make_folder(out)
    count = run.networks.segmenter.classes
    classes = plain_list("pseudo-classes", [str(i) for i in range(count)])
    found: dict[str, list[np.ndarray]] = {"before": [], "after": []}
    written = []
    for done, i in enumerate(chosen, start=1):
        sources = _read(pairs, i)
        seen = {}
        for when, params in (("before", run.before), ("after", run.after)):
            *shown, signs = jax.device_get(program(params, *sources))
            seen[when] = shown
            found[when].append(signs)
        path = out / f"{pairs.stem(i)}.png"
        picture = _panel(sources, seen, classes)
        images.write(path, picture.astype(np.float32) / np.float32(255))
        written.append(path)
        if progress:
            progress(done, len(chosen), pairs.stem(i))
    means = {
        when: dict(zip(SIGNS, np.mean(rows, axis=0).tolist(), strict=True))
        for when, rows in found.items()
    }
    tree = {
        "format": FORMAT,
        "experiment": run.experiment.name,
        "step": run.step,
        "means": means,
        "images": {
            pairs.stem(i): {
                when: dict(zip(SIGNS, map(float, rows[k]), strict=True))
                for when, rows in found.items()
            }
            for k, i in enumerate(chosen)
        },
    }
    images.write_bytes(out / "segments.json", (json.dumps(tree, indent=1) + "\n").encode())
    return means, written


def _read(pairs: Pairs, i: int) -> tuple[Any, Any, Any]:
    pair = pairs[i]
    visible = jnp.asarray(pair.visible)[None]
    return color.luma(visible), jnp.asarray(pair.infrared)[None], visible


def _panel(sources: tuple[Any, ...], seen: dict[str, list[Any]], classes: ClassList) -> np.ndarray:
    """Sources on top; then a line for before and one for after stage II: picture, A, B."""

    def levels(image: Any) -> np.ndarray:
        return np.rint(255 * np.asarray(image)).astype(np.uint8)

    _, infrared, visible = sources
    tops = [
        ("visible", levels(visible[0])),
        ("infrared", levels(np.repeat(infrared[0], 3, axis=-1))),
    ]
    blank = np.full_like(tops[0][1], 255)
    wide = max(min(panels.WIDEST, blank.shape[1]), 8 * len("before stage II: from features (A)"))
    lines = [panels.line([*tops, ("", blank)], wide)]
    for when, (fused, a, b) in seen.items():
        lines.append(
            panels.line(
                [
                    (f"{when} stage II: fused", levels(fused)),
                    (f"{when} stage II: from features (A)", panels.colours(a, classes)),
                    (f"{when} stage II: from the image (B)", panels.colours(b, classes)),
                ],
                wide,
            )
        )
    return np.concatenate(lines)
