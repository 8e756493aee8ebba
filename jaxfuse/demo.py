"""The demo: everything the package does, on generated scenes, in a few minutes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np

from jaxfuse import experiments
from jaxfuse.config import SourceConfig
from jaxfuse.data import images
from jaxfuse.data.sources import open_source
from jaxfuse.infer import predict
from jaxfuse.methods import external
from jaxfuse.report import pictures
from jaxfuse.train import loop


def run(out: str | Path, steps_per_epoch: int = 0) -> None:
    """Trains the `demo` preset in OUT/run, shows the selection and the loss, fuses unseen scenes of both sensors."""
    out = Path(out)
    began = time.monotonic()
    experiment = experiments.find("demo")
    if steps_per_epoch:
        train = dataclasses.replace(experiment.train, steps_per_epoch=steps_per_epoch)
        experiment = dataclasses.replace(experiment, train=train)

    print("1/3 Top-K alignment: which patches of the other sensor look like ours?", flush=True)
    data = experiment.data
    target, other = open_source(data.target), open_source(data.external)
    selection = external.select(target, other, data, experiment.method.top_k)
    pictures.save_selection(selection, out / "alignment.png")
    print(
        f"    {len(selection.stems)} of {selection.candidates} kept, means now {selection.error:.4f} grey levels off"
    )

    print("2/3 training: reconstruction, then fusion", flush=True)
    loop.run(experiment, out / "run")
    pictures.save_loss_curve(out / "run" / "log.jsonl", out / "loss.png")

    print("3/3 fusing scenes the training never showed", flush=True)
    fuser = predict.load(out / "run")
    rows = []
    for sensor in (data.target.sensor, data.external.sensor):
        unseen = open_source(SourceConfig(kind="synthetic", scenes=8, sensor=sensor, seed=99))
        night = next(i for i in range(len(unseen)) if unseen.stem(i).endswith("N"))
        day = next(i for i in range(len(unseen)) if unseen.stem(i).endswith("D"))
        for index in (night, day):
            pair = unseen[index]
            fused = predict.fuse(pair.visible, pair.infrared, weights=fuser)
            name = f"{pair.stem}_{sensor}"
            for kind, image in (
                ("visible", pair.visible),
                ("infrared", pair.infrared),
                ("fused", fused),
            ):
                images.write(out / "pictures" / f"{name}_{kind}.png", np.asarray(image))
            time_of_day = "night" if index == night else "day"
            rows.append(
                (f"{sensor} sensor, {time_of_day}", pair.visible, pair.infrared, np.asarray(fused))
            )
    pictures.save_comparison(rows, out / "fused.png")

    print(f"\nDone in {time.monotonic() - began:.0f} s. Look at:")
    for name, meaning in (
        ("fused.png", "visible, infrared and fused side by side"),
        ("alignment.png", "what Top-K alignment selected and did"),
        ("loss.png", "the loss of both stages"),
        ("pictures/", "each image by itself"),
        (
            "run/",
            "the run: give the same command again and it continues; weights.safetensors is the model",
        ),
    ):
        print(f"  {out / name}  {meaning}")
