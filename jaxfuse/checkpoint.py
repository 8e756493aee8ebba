"""Checkpoints of a run: training state, data position and config. The only importer of orbax.

The position in the data is the step number alone, so a checkpoint restores on any number of
devices, processes and reading workers and continues with the very next example.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from jaxfuse import distributed
from jaxfuse.config import UserError

CHECKSUM = "placed_checksum"
"""Where `info` on disk holds the state's checksum."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or read; the message names folder and remedy."""


def _merit(metrics: dict[str, float] | None) -> float:
    """Later stages beat earlier ones, then the lower loss; a loss that is not finite is worst.

    Orbax would keep NaN as the best for ever and delete the real best.
    """
    metrics = metrics or {}
    loss = metrics.get("loss", math.nan)
    return metrics.get("stage", 0.0) * 1e9 - loss if math.isfinite(loss) else -math.inf


class _Manager(ocp.CheckpointManager):
    """Orbax's, which says at once that this process could not write.

    Orbax's own background thread waits for all processes before it lets anyone know.
    """

    failure: BaseException | None = None

    def reached_preemption(self, step: int) -> bool:
        # Asked from a background thread of one process, JAX's count of steps would go back: see
        # `distributed.must_stop`. The loop saves before it stops.
        return False

    def _wait_for_checkpointers(self) -> None:
        with self._noted():
            super()._wait_for_checkpointers()

    def _finalize_checkpoint(self, step: int) -> Any:
        with self._noted():
            return super()._finalize_checkpoint(step)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.failure = error
            raise


class Checkpoints:
    """The checkpoints in one folder: written in the background, newest and best kept."""

    def __init__(self, folder: str | Path, keep_last: int = 2, keep_best: int = 1):
        self.folder = Path(folder).absolute()
        # Orbax logs pages about errors that it raises as well.
        _hush()
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        # Newest and best are kept by separate rules: with one count a worsening run loses its
        # newest checkpoint.
        rules: list[Any] = [keep.LatestN(keep_last)]
        if keep_best:
            rules.append(
                keep.BestN(
                    get_metric_fn=_merit, n=keep_best, keep_checkpoints_without_metrics=False
                )
            )
        with self._explained("open"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._complaints = _drop_damaged_metrics(self.folder) if distributed.is_chief() else []
        distributed.together("checkpoints are opened")
        with self._explained("open"):
            self._manager = _Manager(
                self.folder,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "info": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=keep.AnyPreservationPolicy(rules),
                    best_fn=_merit,
                    best_mode="max",
                    cleanup_tmp_directories=True,
                ),
            )

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.folder}: cannot {doing} a checkpoint ({_first_line(error)}). Checkpoints "
                "saved before are intact: see to disk space and permissions, then give the same "
                "command again to continue"
            ) from error

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending; one that is still being written counts."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, info: dict[str, Any], metrics: dict[str, float]) -> None:
        """Starts writing `state` and `info` (plain JSON) in the background.

        The state's buffers may be donated at once. metrics: "loss" and "stage" say which is best.
        """
        self.wait()
        # Outside of what is explained: where another process dies, its end is the error.
        info = {**info, CHECKSUM: checksum(state)}
        with self._explained("save"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info)
                ),
                metrics=metrics,
            )

    def check(self) -> None:
        """Raises CheckpointError if the last save has failed. Does not wait for a running one."""
        if self._manager.failure or not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until everything is on disk; raises CheckpointError if it could not be written."""
        with self._explained("save"):
            while self._manager.is_saving_in_progress():
                if self._manager.failure:
                    raise self._manager.failure
                time.sleep(0.002)
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, abstract: Any) -> tuple[Any, dict[str, Any], list[str]]:
        """(state, info, complaints) of the newest readable checkpoint.

        abstract: ShapeDtypeStructs with shardings. Complaints name newer checkpoints that could not
        be read, which are moved aside, since a later save of their steps would be refused. Where
        none can be read all stay, and CheckpointError is raised.
        """
        complaints = list(self._complaints)
        unreadable: dict[int, str] = {}
        for step in distributed.from_chief(self.steps[::-1]):
            state, info, why = self._read(step, abstract)
            if state is None:
                unreadable[step] = f"{self.folder / str(step)}: unreadable ({why})"
                continue
            if unreadable:
                aside = self._put_aside(list(unreadable))
                complaints += [f"{text}: moved to {aside}" for text in unreadable.values()]
            return state, info, complaints
        complaints += unreadable.values()
        raise CheckpointError(
            f"{self.folder}: no readable checkpoint: {'; '.join(complaints) or 'there is none'}. "
            "Use the version of the code that wrote them, or delete this folder to start over"
        )

    def _put_aside(self, steps: list[int]) -> Path:
        """Moves checkpoints out of the folder; returns where they are. They may be whole: storage
        that fails for a while looks the same.
        """
        place = self.folder.with_name("unreadable_checkpoints")
        with self._explained("move"):
            if distributed.is_chief():
                place.mkdir(exist_ok=True)
                for step in steps:
                    aside = place / str(step)
                    if aside.exists():
                        shutil.rmtree(aside)
                    (self.folder / str(step)).rename(aside)
        distributed.together("checkpoints are moved")
        self._manager.reload()
        return place

    def _read(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any], str]:
        """(state, info, ""), or (None, {}, why) in every process where one of them cannot read it.

        Processes agree before each thing that they do together, or they would wait for each other.
        """
        found: list[Any] = []

        def fits() -> None:
            saved = self._manager.item_metadata(step)["state"]
            difference = _difference(saved, abstract)
            if difference:
                raise CheckpointError(f"another state than this run's: {difference}")

        def restored() -> None:
            found.extend(self._restored(step, abstract))
            # Damage to Orbax's own notes can turn keys into plain numbers, or numbers into others.
            types = jax.tree.map(lambda x, like: x.dtype == like.dtype, found[0], abstract)
            if not all(jax.tree.leaves(types)):
                raise CheckpointError("its arrays are of other types than were saved")

        for attempt in (fits, restored):
            why = ""
            try:
                attempt()
            except Exception as error:  # what a damaged file raises depends on where it is damaged
                why = _first_line(error)
            if not distributed.all_agree(not why):
                return None, {}, why or "another process could not read it"
        state, info = found
        if CHECKSUM in info and info[CHECKSUM] != checksum(state):
            return None, {}, "its numbers are not those that were saved"
        return state, info, ""

    def _restored(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        # Not by the manager, which ends with a collective that a process that fails never reaches.
        folder = self._manager.directory / str(step)
        state = ocp.StandardCheckpointHandler().restore(
            folder / "state", args=ocp.args.StandardRestore(abstract)
        )
        return state, ocp.JsonCheckpointHandler().restore(folder / "info")

    def close(self) -> None:
        """Waits for pending writes and lets go of the folder."""
        with self._explained("save"):
            self._manager.close()


def _hush() -> None:
    """Leaves out the pages that Python prints, some of them later, about what a failed read or save
    drops.

    They are of Orbax's coroutines, and of futures that find their event loop closed.
    """
    closed = "Event loop is closed"

    def report_what_is_not_orbax(found: Any) -> None:
        code = getattr(found.object, "cr_code", None)
        orbax = code is not None and "orbax" in code.co_filename
        if not orbax and str(found.exc_value) != closed:
            before(found)

    def print_what_is_not_orbax(kind: Any, error: BaseException, trace: Any) -> None:
        if kind is not RuntimeError or str(error) != closed:
            printed(kind, error, trace)

    before, printed = sys.unraisablehook, sys.excepthook
    if getattr(before, "__name__", "") != report_what_is_not_orbax.__name__:
        sys.unraisablehook = report_what_is_not_orbax
        sys.excepthook = print_what_is_not_orbax


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__


def _drop_damaged_metrics(folder: Path) -> list[str]:
    """Removes metrics that are no JSON, for which Orbax refuses the whole folder; says which.

    Metrics only rank checkpoints. A file that is empty after a power failure is the usual damage.
    """
    complaints = []
    for path in sorted(folder.glob("*/metrics/metrics")):
        try:
            json.loads(path.read_text(encoding="utf8"))
        except ValueError:
            path.unlink()
            complaints.append(f"{path}: unreadable, so this checkpoint no longer counts as best")
    return complaints


def _key_data(leaf: Any) -> Any:
    """Keys of random numbers as the plain arrays that are saved; other arrays as they are."""
    return (
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
    )


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}


def checksum(tree: Any) -> int:
    """CRC-32 of a sum over each array, with its name: Orbax notices damage to some bytes only.

    Equal however arrays lie on devices and processes; every process calls it.
    """
    named = {name: _key_data(leaf) for name, leaf in _named(tree).items()}
    sums = distributed.sum_over_processes(
        np.array([_placed_sum(leaf) for leaf in named.values()], np.uint32)
    )
    return zlib.crc32(" ".join(named).encode() + sums.astype("<u4").tobytes())


def _placed_sum(leaf: Any) -> np.uint32:
    """Sum, modulo 2^32, of numbers each mixed of an element's bits and its place in the array; over
    the parts of the array that are this process' to count.
    """
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
        parts = [(leaf, (slice(None),) * leaf.ndim)] if distributed.is_chief() else []
    else:
        parts = [(np.asarray(s.data), s.index) for s in leaf.addressable_shards if not s.replica_id]
    total = np.zeros((), np.uint32)
    for part, index in parts:
        places = np.zeros(part.shape, np.uint32)
        stride = 1
        for axis in reversed(range(part.ndim)):
            first = index[axis].start or 0
            along = (np.arange(first, first + part.shape[axis], dtype=np.uint64) * stride) % 2**32
            shape = [-1 if each == axis else 1 for each in range(part.ndim)]
            places += along.astype(np.uint32).reshape(shape)
            stride *= leaf.shape[axis]
        bits = np.ascontiguousarray(part).view(f"u{part.itemsize}").astype(np.uint32)
        mixed = (bits ^ (places * np.uint32(0x9E3779B9))) * np.uint32(0x85EBCA6B)
        mixed ^= mixed >> np.uint32(15)
        total += mixed.sum(dtype=np.uint32)
    return np.uint32(total)


def _difference(saved: Any, abstract: Any) -> str:
    """The first array that differs in presence, shape or type. Orbax's own error misleads."""
    found = _named(saved)
    wanted = _named(jax.eval_shape(lambda tree: jax.tree.map(_key_data, tree), abstract))
    for name in sorted(found.keys() | wanted.keys()):
        pair = [
            f"{x.dtype}{list(x.shape)}" if x is not None else "absent"
            for x in (found.get(name), wanted.get(name))
        ]
        if pair[0] != pair[1]:
            return f"{name} is {pair[0]}, expected {pair[1]}"
    return ""


def abstract_like(tree: Any, sharding: Any) -> Any:
    """Shapes and types of `tree` (arrays or ShapeDtypeStructs) with one sharding, or one for each
    array, for `restore`.
    """
    if isinstance(sharding, jax.sharding.Sharding):
        one = sharding
        sharding = jax.tree.map(lambda x: one, tree)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, sharding
    )
