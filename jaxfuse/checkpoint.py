"""Checkpoints of a run: training state, data position and config. The only importer of orbax.

The position in the data is the step number alone, so a checkpoint restores on any number of devices, processes and
reading workers and continues with the very next example.
"""

from __future__ import annotations

import contextlib
import logging
import math
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from jaxfuse.config import UserError


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or read; the message names the folder and the remedy."""


def _merit(metrics: dict[str, float]) -> float:
    """Later stages beat earlier ones, then the lower loss; a loss that is not finite is worst.

    Orbax would keep NaN as the best for ever and delete the real best.
    """
    loss = metrics.get("loss", math.nan)
    return metrics.get("stage", 0.0) * 1e9 - loss if math.isfinite(loss) else -math.inf


class Checkpoints:
    """The checkpoints in one folder: written in the background, newest and best kept."""

    def __init__(self, folder: str | Path, keep_last: int = 2, keep_best: int = 1):
        self.folder = Path(folder).absolute()
        logging.getLogger("absl").setLevel(logging.ERROR)
        # Newest and best are kept by separate rules: with one count a worsening run loses its newest checkpoint.
        rules = [keep.LatestN(keep_last)]
        if keep_best:
            rules.append(keep.BestN(get_metric_fn=_merit, n=keep_best))
        with self._explained("open"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=keep.AnyPreservationPolicy(rules),
                    best_fn=_merit,
                    best_mode="max",
                    cleanup_tmp_directories=True,
                ),
            )

    @contextlib.contextmanager
    def _explained(self, doing: str):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"{self.folder}: cannot {doing} a checkpoint ({first}). Checkpoints saved before are intact: "
                "free disk space or permissions, then give the same command again to continue"
            ) from error

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, info: dict[str, Any], metrics: dict[str, float]) -> None:
        """Starts writing `state` and `info` (plain JSON) in the background; the buffers may be donated at once."""
        with self._explained("save"):
            self._manager.check_for_errors()
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info)),
                metrics=metrics,
            )

    def wait(self) -> None:
        """Waits until everything is on disk; raises CheckpointError if it could not be written."""
        with self._explained("save"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any], list[str]]:
        """(state, info, complaints) of the newest readable checkpoint.

        abstract: ShapeDtypeStructs with shardings. Complaints name newer checkpoints that could not be read.
        """
        complaints: list[str] = []
        for step in reversed(self.steps):
            try:
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), info=ocp.args.JsonRestore()),
                )
                return found["state"], found["info"], complaints
            except Exception as error:  # what a damaged file raises depends on where the damage is
                first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                complaints.append(f"{self.folder / str(step)}: unreadable ({first})")
        raise CheckpointError(
            f"{self.folder}: no readable checkpoint. " + "; ".join(complaints or ["the folder is empty"])
        )

    def forget_after(self, step: int) -> None:
        """Deletes checkpoints newer than `step`, which could not be read."""
        for newer in [s for s in self.steps if s > step]:
            self._manager.delete(newer)

    def close(self) -> None:
        """Waits for pending writes and lets go of the folder."""
        with self._explained("save"):
            self._manager.close()


def abstract_like(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Shapes and types of `tree` (arrays or ShapeDtypeStructs) with one sharding, as `restore` wants them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
