"""The demo: everything the package does, on generated scenes, in a few minutes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from jaxfuse import experiments
from jaxfuse.config import ConfigError, SourceConfig
from jaxfuse.data import images
from jaxfuse.data.sources import open_source
from jaxfuse.infer import predict
from jaxfuse.methods import external
from jaxfuse.report import pictures
from jaxfuse.train import loop

MADE = {
    "fused.png": "visible, infrared and fused side by side",
    "alignment.png": "what Top-K alignment selected and did",
    "loss.png": "the loss of both stages",
    "pictures": "each image by itself",
    "run": "the run, with weights.safetensors; see jaxfuse train",
}
"""What the demo leaves in its folder, and what that is."""


def run(out: str | Path, steps_per_epoch: int = 0) -> None:
    """Trains the `demo` preset in OUT/run, shows the selection and the loss, fuses unseen scenes.

    steps_per_epoch: 0 takes the preset's. Raises ConfigError where OUT holds anything else.
    """
    out = Path(out)
    experiment = experiments.find("demo")
    # One device: its batch is too small to be split over many.
    train = dataclasses.replace(
        experiment.train,
        devices=1,
        steps_per_epoch=steps_per_epoch or experiment.train.steps_per_epoch,
    )
    experiment = dataclasses.replace(experiment, train=train)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file: name a folder")
    foreign = sorted({p.name for p in out.iterdir()} - MADE.keys()) if out.exists() else []
    if any(not name.startswith(".") for name in foreign):
        raise ConfigError(
            f"{out}: holds {foreign[0]}, which no demo made: name a new or empty folder"
        )
    began = time.monotonic()

    print("1/3 Top-K alignment: which patches of the other sensor look like ours?", flush=True)
    data = experiment.data
    target, other = open_source(data.target), open_source(data.external)
    selection = external.select(target, other, data, data.external.top_k)
    pictures.save_selection(selection, out / "alignment.png")
    print(
        f"    {len(selection.stems)} of {selection.candidates} kept, "
        f"means now {selection.error:.4f} grey levels off"
    )

    print("2/3 training: reconstruction, then fusion", flush=True)
    loop.run(experiment, out / "run")
    pictures.save_loss_curve(out / "run" / "log.jsonl", out / "loss.png")

    print("3/3 fusing scenes the training never showed", flush=True)
    fuser = predict.load(out / "run")
    (out / "pictures").mkdir(exist_ok=True)
    rows = []
    for sensor in (data.target.sensor, data.external.sensor):
        unseen = open_source(SourceConfig(kind="synthetic", scenes=8, sensor=sensor, seed=99))
        for time_of_day, mark in (("night", "N"), ("day", "D")):
            index = next(i for i in range(len(unseen)) if unseen.stem(i).endswith(mark))
            pair = unseen[index]
            fused = predict.fuse(pair.visible, pair.infrared, weights=fuser)
            kinds = {"visible": pair.visible, "infrared": pair.infrared, "fused": fused}
            for kind, image in kinds.items():
                images.write(out / "pictures" / f"{pair.stem}_{sensor}_{kind}.png", image)
            rows.append((f"{sensor} sensor, {time_of_day}", pair.visible, pair.infrared, fused))
    pictures.save_comparison(rows, out / "fused.png")

    print(f"\nDone in {time.monotonic() - began:.0f} s. Look at:")
    for name, meaning in MADE.items():
        print(f"  {out / name}  {meaning}")
