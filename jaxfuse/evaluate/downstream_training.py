"""One segmentation network for each row and seed: trained by the loop, judged on whole pictures."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfuse import weights
from jaxfuse.config import DataConfig, Experiment, SegmentationConfig, SourceConfig, TrainConfig
from jaxfuse.data import images
from jaxfuse.evaluate.downstream_plan import EPOCHS, Plan
from jaxfuse.evaluate.downstream_set import Part
from jaxfuse.evaluate.plan import PlanError
from jaxfuse.evaluate.results import make_folder
from jaxfuse.metrics.semantic import confusion
from jaxfuse.models import SEGMENTERS, Segmenter, resize_logits
from jaxfuse.shapes import Image, Params
from jaxfuse.train import loop, setup

CHECKPOINT_EVERY = 200
FORMAT = "1"
"""Of kept confusions; raised when what is counted changes."""


def experiment_of(plan: Plan, source: SourceConfig, classes: int, seed: int) -> Experiment:
    """The training of one row and seed. Its first parameters and the order of its patches are
    functions of the seed, whatever the pictures.
    """
    return Experiment(
        name="downstream",
        seed=seed,
        method=SegmentationConfig(
            segmenter=plan.segmenter,
            classes=classes,
            start=plan.start,
            epochs=1.0 if plan.steps else plan.epochs or EPOCHS,
            learning_rate=plan.learning_rate,
        ),
        data=DataConfig(target=source, patch_size=plan.patch_size, stride=plan.patch_size),
        train=TrainConfig(
            batch_size=plan.batch_size,
            steps_per_epoch=plan.steps,
            devices=plan.devices,
            checkpoint_every=CHECKPOINT_EVERY,
            keep_last=1,
            keep_best=0,
        ),
    )


def digest_of(files: Iterable[Path], *more: str) -> str:
    """sha256 of what the files hold, in order."""
    found = hashlib.sha256("\n".join(more).encode("utf8"))
    for path in files:
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def learn(experiment: Experiment, folder: Path, steps: int, digest: str, overwrite: bool) -> Path:
    """Trains in `folder` unless it is done there already; returns the weights file.

    digest: of the pictures and labels. overwrite: a run with other settings or of other pictures
    gives way; without, it is an error. What interrupts training leaves by `loop.run`'s errors.
    """
    mark = folder.with_name(f"{folder.name}.sha256")
    try:
        there = setup.may_continue(folder, experiment)
        if there and (not mark.exists() or mark.read_text(encoding="utf8").strip() != digest):
            raise PlanError(
                f"{folder}: this network learned from other pictures than there are now: name "
                "another --out, or add --overwrite to train it again"
            )
    except (PlanError, setup.RunFolderError):
        if not overwrite or not (folder / "run.json").exists():
            raise
        shutil.rmtree(folder)
        there = False
    done = folder / "weights.safetensors"
    if there and done.exists() and weights.load_weights(done).metadata.get("step") == str(steps):
        return done
    make_folder(folder.parent)
    images.write_bytes(mark, f"{digest}\n".encode())
    if loop.run(experiment, folder).asked_to_stop:
        raise loop.Preempted(
            f"{folder.parent}: stopped on request, this training is done: give the same command "
            "again to continue"
        )
    return done


class Seen(NamedTuple):
    """What one network saw in the test pictures of one row."""

    counts: np.ndarray
    """Confusion of each image, int64 (images, classes, classes)."""
    maps: dict[int, np.ndarray]
    """Predicted classes uint8 (h, w) of the images asked for."""


class Judge:
    """Segments whole test pictures and counts; what was counted before is read again."""

    def __init__(self, test: Part, classes: int, kept: Path, shown: Sequence[int]) -> None:
        self.test, self.classes, self.kept, self.shown = test, classes, kept, tuple(shown)
        self._programs: dict[str, Callable[[Params, Image], jax.Array]] = {}

    def __call__(
        self,
        network: Path,
        pictures: Sequence[Path],
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Seen:
        """network: its weights. pictures: one for each pair of the test part, in order."""
        labels = self.test.files("labels")
        name = digest_of((network, *pictures, *labels), FORMAT, repr(self.shown))[:32]
        path = self.kept / f"{name}.npz"
        if path.exists():
            with np.load(path) as found:
                maps = {i: found[f"map{i}"] for i in self.shown}
                return Seen(found["counts"], maps)
        segmenter, params = weights.load_segmenter(network, self.classes)
        program = self._program(segmenter)
        params = jax.tree.map(jnp.asarray, params)
        counts = np.zeros((len(self.test), self.classes, self.classes), np.int64)
        maps: dict[int, np.ndarray] = {}
        # By size, since what is compiled serves one.
        order = sorted(range(len(self.test)), key=lambda i: (self.test.sizes[i], i))
        for done, i in enumerate(order, start=1):
            image = images.read_visible(pictures[i])
            found = np.asarray(program(params, image[None]))[0].astype(np.uint8)
            counts[i] = confusion(
                found.astype(np.int32), images.read_labels(labels[i]), self.classes
            )
            if i in self.shown:
                maps[i] = found
            if progress:
                progress(done, len(order), self.test.stems[i])
        stored = io.BytesIO()
        np.savez_compressed(stored, counts=counts, **{f"map{i}": x for i, x in maps.items()})
        make_folder(self.kept)
        images.write_bytes(path, stored.getvalue())
        return Seen(counts, maps)

    def _program(self, segmenter: Segmenter) -> Callable[[Params, Image], jax.Array]:
        """The arg max of logits at the picture's size; networks of one name share it."""
        if segmenter.name not in SEGMENTERS:
            return jax.jit(_classes_of(segmenter))
        if segmenter.name not in self._programs:
            self._programs[segmenter.name] = jax.jit(_classes_of(segmenter))
        return self._programs[segmenter.name]


def _classes_of(segmenter: Segmenter) -> Callable[[Params, Image], jax.Array]:
    def classes(params: Params, image: Image) -> jax.Array:
        logits = resize_logits(segmenter.apply(params, image), *image.shape[1:3])
        return jnp.argmax(logits, axis=-1)

    return classes
