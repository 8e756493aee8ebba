"""The training loop, the only one: read, step, log, save, and continue where a run stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxfuse import distributed, weights
from jaxfuse.checkpoint import CheckpointError, Checkpoints, abstract_like
from jaxfuse.config import Experiment, UserError, counted, to_dict
from jaxfuse.data.pipeline import Batches
from jaxfuse.methods import RANK, Method, Stage
from jaxfuse.models import Model
from jaxfuse.train import setup, steps
from jaxfuse.train.state import TrainState, init_state
from jaxfuse.train.writers import JsonLines, TensorBoard, Terminal, Writer, last_record

STARVED = 0.2
"""Share of the time waiting for data above which a run says so."""


class TrainingError(UserError, RuntimeError):
    """Training cannot go on; the message says where it stopped, why, and what is saved."""


class Preempted(UserError):  # noqa: N818 (nothing is wrong)
    """A signal asked the run to stop; everything up to now is saved."""

    exit_code = distributed.ASKED_TO_STOP
    """What a program that ends by this returns."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    loss: float | None
    """Mean training loss since the log line before the last; None where no step was left to do."""
    folder: Path
    doubts: tuple[str, ...] = ()
    """What the last log line says against the run: with any, it has not succeeded."""
    asked_to_stop: bool = False
    """Whether a signal came during the last step: who trains several networks stops now."""


def run(experiment: Experiment, folder: str | Path) -> Outcome:
    """Trains `experiment` in `folder` to its end; a folder that holds the run is continued.

    Raises Preempted after SIGTERM or SIGINT with everything saved; TrainingError where the loss is
    not finite; RunFolderError, ConfigError, DataError and CheckpointError with file, value and
    remedy. What is wrong with the config, or shows in the names and headers of the data, is found
    before a new folder is made.
    """
    folder = Path(folder)
    config = experiment.train
    mesh = distributed.data_mesh(config.devices, config.fsdp)
    setup.check(experiment, mesh.size)
    continuing = setup.may_continue(folder, experiment)
    data = setup.open_data(experiment)
    model, method = setup.build(experiment, data.facts)
    setup.check_alike(experiment, data, method.steps)
    if distributed.is_chief():
        if not continuing:
            setup.make_folder(folder, experiment)
        if data.selection is not None:
            setup.keep_selection(folder, data.selection)
    distributed.together("the folder is made")
    setup.check_shared(folder)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_last, config.keep_best)
    writers: list[Writer] = []
    try:
        key = jax.random.key(experiment.seed)
        shapes = jax.eval_shape(lambda key: init_state(method, key), key)
        placed = distributed.by_rule(shapes, mesh)
        notes: list[str] = []
        start = 0
        if distributed.from_chief(checkpoints.steps):
            state, _, notes = checkpoints.restore(abstract_like(shapes, placed))
            start = int(state.step)
            if start < method.steps:
                notes.append(f"continuing {folder} from step {start} of {method.steps}")
        else:
            state = jax.jit(lambda key: init_state(method, key), out_shardings=placed)(key)
            if continuing:
                notes.append(f"{folder} has no checkpoint yet: starting from step 0")
        notes += setup.remarks(experiment, data)
        terminal = Terminal(method.steps, start, silent=not distributed.is_chief())
        writers.append(terminal)
        if distributed.is_chief():
            writers.append(JsonLines(folder / "log.jsonl", start))
            if config.tensorboard:
                writers.append(TensorBoard(folder / "tensorboard", start))
        for note in notes:
            terminal.say(note)
        session = _Session(
            experiment, folder, mesh, placed, model, method, data, checkpoints, terminal, writers
        )
        with _stop_requests() as stop:
            outcome = session.run(state, start, stop)
        checkpoints.close()
        return outcome
    except BaseException:
        # Closing waits for all processes: an error may be this one's alone.
        if jax.process_count() == 1:
            with contextlib.suppress(CheckpointError):
                checkpoints.close()
        raise
    finally:
        # An error of the run itself must not be hidden by one of these.
        for writer in writers:
            with contextlib.suppress(OSError):
                writer.close()


@dataclasses.dataclass
class _Session:
    experiment: Experiment
    folder: Path
    mesh: Mesh
    placed: TrainState
    """The sharding of each array of the state."""
    model: Model
    method: Method
    data: setup.Data
    checkpoints: Checkpoints
    terminal: Terminal
    writers: list[Writer]

    def run(self, state: TrainState, step: int, stop: threading.Event) -> Outcome:
        config, method = self.experiment.train, self.method
        doubts: tuple[str, ...]
        if step >= method.steps:
            self.terminal.say(f"{self.folder}: already complete ({counted(method.steps, 'step')})")
            doubts = tuple(method.doubts(last_record(self.folder / "log.jsonl")))
            return Outcome(step, None, self.folder, doubts)
        batches = self.data.pipeline.batches(step)
        # XLA's CPU devices of several processes lock up with two steps under way (JAX 0.10.2).
        one_by_one = (
            jax.process_count() > 1
            and self.mesh.devices.flat[0].platform == "cpu"
            and len(self.mesh.local_devices) > 1
        )
        hunger = _Hunger()
        stage: Stage | None = None
        pending: list[dict[str, Any]] = []
        record: dict[str, Any] = {}
        doubts, said_at = (), 0
        since = time.monotonic()
        try:
            while step < method.steps:
                if stage is not method.stage_at(step):
                    stage = method.stage_at(step)
                    take = self._step(stage)
                batch = next(batches)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, metrics = take(state, batch)
                if one_by_one:
                    jax.block_until_ready(metrics)
                step += 1
                pending.append({name: x for name, x in metrics.items() if x.ndim == 0})
                self.terminal.advance(step, stage.name)
                asked = stop.is_set() or distributed.must_stop(step)
                stopping = asked and step < method.steps
                saving = stopping or step % config.checkpoint_every == 0 or step == stage.stop
                if saving or step % config.log_every == 0:
                    self.checkpoints.check()
                    record = self._summary(state, step, stage, pending, since)
                    record |= self._pace(batches, record["steps_per_second"])
                    if hunger.is_news(record):
                        self.terminal.say(self._remedy_of_hunger(step, record))
                    if saving and not stopping:  # who asked to stop may not wait for long
                        record |= self._validate(state, stage)
                    before, doubts = doubts, tuple(method.doubts(record))
                    if doubts and not before:
                        self.terminal.say(f"step {step}: {'; '.join(doubts)}")
                    if before and not doubts:
                        self.terminal.say(f"step {step}: what was said of step {said_at} is over")
                    said_at = said_at if before else step
                    # Logged first: a checkpoint on disk then means that the log reaches it.
                    for writer in self.writers:
                        writer.write(record)
                    if saving:
                        self._save(state, step, stage, record)
                    pending, since = [], time.monotonic()
                if stopping:
                    self.checkpoints.wait()
                    raise Preempted(
                        f"{self.folder}: stopped on request, step {step} of {method.steps} is "
                        "saved: give the same command again to continue"
                    )
        finally:
            batches.close()
        self.checkpoints.wait()
        return Outcome(step, record["loss"], self.folder, doubts, stop.is_set())

    def _step(self, stage: Stage) -> steps.Step:
        accumulate = self.experiment.train.accumulate
        if self.experiment.train.strategy == "pmap":
            return steps.make_pmap_step(stage, self.mesh, accumulate)
        compiled = steps.make_jit_step(stage, self.mesh, accumulate, self.placed)
        return lambda state, batch: compiled(state, distributed.to_devices(batch, self.mesh))

    def _summary(
        self,
        state: TrainState,
        step: int,
        stage: Stage,
        pending: list[dict[str, Any]],
        since: float,
    ) -> dict[str, Any]:
        """Means of the steps since the last log line.

        The one place where the host waits for the devices.
        """
        values, bad_step = jax.device_get((pending, state.bad_step))
        if int(bad_step) >= 0:
            self._stop_at(int(bad_step))
        means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
        rate = len(values) / max(time.monotonic() - since, 1e-9)
        return {
            "step": step,
            "stage": stage.name,
            "time": time.time(),
            "steps_per_second": rate,
            **means,
        }

    def _pace(self, batches: Batches, steps_per_second: float) -> dict[str, float]:
        """How fast reading is beside the steps: of the process that reads slowest, which all wait
        for.
        """
        rates, waited = distributed.of_all_processes(np.array(batches.pace(), np.float32)).T
        rows = self.experiment.train.batch_size
        return {
            "examples_per_second": rows * steps_per_second,
            "loader_examples_per_second": rows * float(rates.min()),
            "data_share": min(float(waited.max()) * steps_per_second, 1.0),
        }

    def _remedy_of_hunger(self, step: int, record: dict[str, Any]) -> str:
        files = self.experiment.data.target.kind not in ("synthetic", "records")
        shards = ", or prepare the set as shards (jaxfuse data prepare)" if files else ""
        return (
            f"step {step}: {record['data_share']:.0%} of the time goes by waiting for data: "
            f"reading gives about {record['loader_examples_per_second']:.0f} examples a second. "
            f"Raise data.threads or data.cache_mib{shards}"
        )

    def _stop_at(self, bad_step: int) -> None:
        with contextlib.suppress(CheckpointError):  # this error is the one to hear of
            self.checkpoints.wait()
        saved = self.checkpoints.steps
        pipeline = self.data.pipeline
        online = self.experiment.data.external.kept_online > 0
        last = f"step {saved[-1]} in {self.checkpoints.folder}" if saved else "none yet"
        raise TrainingError(
            f"{self.folder}: step {bad_step}: the loss or its gradient is not finite. Batch "
            f"indices {pipeline.indices(bad_step).tolist()}: "
            f"{'; '.join(pipeline.describe(bad_step, pool=online))}. "
            f"Last good checkpoint: {last}. Look at these images, or lower the learning rate in a "
            "new run"
        )

    def _validate(self, state: TrainState, stage: Stage) -> dict[str, float]:
        """The mean loss of the validation batches, weighted by how many patches each adds."""
        batches = self.data.validation
        if not batches:
            return {}
        evaluate = steps.make_validation(stage, self.mesh)
        losses = [evaluate(state, distributed.to_devices(batch, self.mesh)) for batch in batches]
        mine = np.array([batch["weight"].sum() for batch in batches], np.float32)
        patches = distributed.sum_over_processes(mine)
        mean = np.average(np.array(jax.device_get(losses), np.float64), weights=patches)
        return {"validation_loss": float(mean)}

    def _save(self, state: TrainState, step: int, stage: Stage, record: dict[str, Any]) -> None:
        info = {"step": step, "stage": stage.name, "config": to_dict(self.experiment)}
        # One loss ranks all: a checkpoint without the validation the others have is never best.
        training = RANK if RANK in record else "loss"
        merit = "validation_loss" if self.data.validation else training
        ranks = {
            "loss": record.get(merit, float("nan")),
            "stage": float(self.method.stages.index(stage)),
        }
        # Weights first: a run whose last checkpoint is on disk has its final weights.
        params = distributed.whole_on_host(self.method.deploy(state.params), self.mesh)
        if distributed.is_chief():
            metadata = {
                "experiment": self.experiment.name,
                "step": str(step),
                "stage": stage.name,
                "config": json.dumps(info["config"]),
            }
            name = self.method.network or self.model.name
            weights.save_weights(self.folder / "weights.safetensors", name, params, metadata)
            if step == stage.stop:
                kept = self.folder / "stages" / f"{stage.name}.safetensors"
                weights.save_weights(kept, name, params, metadata)
            rank = (ranks["stage"], -ranks["loss"])
            best = self.folder / "best.safetensors"
            if not math.isnan(ranks["loss"]) and rank >= _rank_of(best):
                said = {"rank_stage": repr(rank[0]), "rank_loss": repr(-rank[1])}
                weights.save_weights(best, name, params, {**metadata, **said})
        self.checkpoints.save(step, state, info, ranks)


class _Hunger:
    """Whether a run waits for data, told once. The first line after a start says nothing about it:
    threads start, XLA compiles.
    """

    def __init__(self) -> None:
        self._lines, self._hungry, self._told = 0, 0, False

    def is_news(self, record: dict[str, Any]) -> bool:
        """Whether this line of the log shows it and none has before: a single one counts where
        reading can indeed not give much more, else it takes two in a row.
        """
        self._lines += 1
        waits = self._lines > 1 and record["data_share"] > STARVED
        self._hungry = self._hungry + 1 if waits else 0
        enough = record["loader_examples_per_second"] > 2.0 * record["examples_per_second"]
        news = waits and not self._told and (not enough or self._hungry > 1)
        self._told = self._told or news
        return news


def _rank_of(path: Path) -> tuple[float, float]:
    """(stage, -loss) of a run's best weights so far; below everything where there are none."""
    try:
        said = weights.load_weights(path).metadata
        return float(said["rank_stage"]), -float(said["rank_loss"])
    except (weights.WeightsError, KeyError, ValueError):
        return (-math.inf, -math.inf)


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that the loop can end a step and save.

    A second SIGINT interrupts at once.
    """
    event = threading.Event()
    # With several processes JAX hears the signal and all agree on a step: `distributed.must_stop`.
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield event
        return

    def request(number: int, frame: Any) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()
        if number == signal.SIGINT:
            # Not print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError, ValueError):
                os.write(
                    sys.stderr.fileno(),
                    b"\nsaving after this step; Ctrl-C again stops at once and loses it\n",
                )

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
