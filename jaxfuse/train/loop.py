"""The training loop, the only one: read, step, log, save, and continue where a run stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxfuse import distributed, weights
from jaxfuse.checkpoint import Checkpoints, abstract_like
from jaxfuse.config import ConfigError, Experiment, UserError, to_json
from jaxfuse.methods import Method, Stage
from jaxfuse.models import Model
from jaxfuse.train import setup, steps
from jaxfuse.train.state import TrainState, init_state
from jaxfuse.train.writers import JsonLines, TensorBoard, Terminal, Writer


class TrainingError(UserError, RuntimeError):
    """Training cannot go on; the message says where it stopped, why, and what is saved."""


class Preempted(Exception):
    """A signal asked the run to stop; everything up to now is saved."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    loss: float
    folder: Path


def run(experiment: Experiment, folder: str | Path) -> Outcome:
    """Trains `experiment` in `folder` to its end; a folder that holds the run already is continued.

    Raises Preempted after SIGTERM or SIGINT with everything saved; TrainingError where the loss is not finite;
    RunFolderError, ConfigError, DataError and CheckpointError with file, value and remedy.
    """
    folder = Path(folder)
    mesh = distributed.data_mesh(experiment.train.devices)
    _check_devices(experiment, mesh)
    if experiment.train.tensorboard:
        import tensorboardX  # noqa: F401  (fails before a run folder is made)
    continuing = setup.open_folder(folder, experiment)
    data = setup.open_data(experiment)
    model, method = setup.build(experiment, data.facts)
    if data.selection is not None:
        (folder / "selection.json").write_text(json.dumps(data.selection.summary(), indent=1), encoding="utf8")
    checkpoints = Checkpoints(folder / "checkpoints", experiment.train.keep_last, experiment.train.keep_best)
    replicated = distributed.replicated(mesh)
    init = jax.jit(lambda key: init_state(method, key), out_shardings=replicated)
    key = jax.random.key(experiment.seed)
    notes: list[str] = []
    if continuing and checkpoints.steps:
        state, info, notes = checkpoints.restore(abstract_like(jax.eval_shape(init, key), replicated))
        start = int(info["step"])
        checkpoints.forget_after(start)
        notes.append(f"continuing {folder} from step {start} of {method.steps}")
    else:
        state, start = init(key), 0
    terminal = Terminal(method.steps, start)
    for note in notes:
        terminal.say(note)
    writers: list[Writer] = [terminal, JsonLines(folder / "log.jsonl", start)]
    if experiment.train.tensorboard:
        writers.append(TensorBoard(folder / "tensorboard"))
    session = _Session(experiment, folder, mesh, model, method, data, checkpoints, terminal, writers)
    try:
        with _stop_requests() as stop:
            return session.run(state, start, stop)
    finally:
        for writer in writers:
            writer.close()
        with contextlib.suppress(Exception):  # an error of the run itself must not be hidden by this one
            checkpoints.close()


@dataclasses.dataclass
class _Session:
    experiment: Experiment
    folder: Path
    mesh: Mesh
    model: Model
    method: Method
    data: setup.Data
    checkpoints: Checkpoints
    terminal: Terminal
    writers: list[Writer]

    def run(self, state: TrainState, step: int, stop: threading.Event) -> Outcome:
        config, method = self.experiment.train, self.method
        if step >= method.steps:
            self.terminal.say(f"{self.folder}: already complete ({method.steps} steps)")
            return Outcome(step, float("nan"), self.folder)
        batches = self.data.pipeline.batches(step)
        stage: Stage | None = None
        pending: list[dict[str, Any]] = []
        record: dict[str, Any] = {}
        since = time.monotonic()
        try:
            while step < method.steps:
                if stage is not method.stage_at(step):
                    stage = method.stage_at(step)
                    take = self._step(stage)
                batch = next(batches)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, metrics = take(state, batch)
                step += 1
                pending.append({name: value for name, value in metrics.items() if value.ndim == 0})
                self.terminal.advance(step, stage.name)
                saving = step % config.checkpoint_every == 0 or step in (stage.stop, method.steps) or stop.is_set()
                if saving or step % config.log_every == 0:
                    record = self._summary(state, step, stage, pending, since)
                    if saving:
                        record |= self._validate(state, stage)
                        self._save(state, step, stage, record)
                    for writer in self.writers:
                        writer.write(record)
                    pending, since = [], time.monotonic()
                if stop.is_set() and step < method.steps:
                    self.checkpoints.wait()
                    raise Preempted(f"{self.folder}: stopped on request, step {step} of {method.steps} is saved")
        finally:
            batches.close()
        self.checkpoints.wait()
        return Outcome(step, record.get("loss", float("nan")), self.folder)

    def _step(self, stage: Stage) -> steps.Step:
        accumulate = self.experiment.train.accumulate
        if self.experiment.train.strategy == "pmap":
            return steps.make_pmap_step(stage, self.mesh, accumulate)
        compiled = steps.make_jit_step(stage, self.mesh, accumulate)
        return lambda state, batch: compiled(state, distributed.to_devices(batch, self.mesh))

    def _summary(
        self, state: TrainState, step: int, stage: Stage, pending: list[dict[str, Any]], since: float
    ) -> dict[str, Any]:
        """Means of the steps since the last log line; the one place where the host waits for the devices."""
        values, bad_step = jax.device_get((pending, state.bad_step))
        if int(bad_step) >= 0:
            self._stop_at(int(bad_step))
        means = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
        rate = len(values) / max(time.monotonic() - since, 1e-9)
        return {"step": step, "stage": stage.name, "time": time.time(), "steps_per_second": rate, **means}

    def _stop_at(self, bad_step: int) -> None:
        saved = self.checkpoints.steps
        pipeline = self.data.pipeline
        examples = pipeline.describe(bad_step, pool=self.experiment.method.alignment == "online")
        raise TrainingError(
            f"step {bad_step}: the loss or its gradient is not finite. Batch indices "
            f"{[int(i) for i in pipeline.indices(bad_step)]}: {'; '.join(examples)}. "
            f"The last good checkpoint is {f'step {saved[-1]} in {self.checkpoints.folder}' if saved else 'none yet'}: "
            "look at these images, or lower method.learning_rate, and train again"
        )

    def _validate(self, state: TrainState, stage: Stage) -> dict[str, float]:
        if not self.data.validation:
            return {}
        evaluate = steps.make_validation(stage, self.mesh)
        losses = [evaluate(state, distributed.to_devices(batch, self.mesh)) for batch in self.data.validation]
        return {"validation_loss": float(np.mean(jax.device_get(losses)))}

    def _save(self, state: TrainState, step: int, stage: Stage, record: dict[str, Any]) -> None:
        info = {"step": step, "stage": stage.name, "config": json.loads(to_json(self.experiment))}
        merit = record.get("validation_loss", record["loss"])
        self.checkpoints.save(
            step, state, info, {"loss": float(merit), "stage": float(self.method.stages.index(stage))}
        )
        if jax.process_index() == 0:
            metadata = {
                "experiment": self.experiment.name,
                "step": str(step),
                "stage": stage.name,
                "config": json.dumps(info["config"]),
            }
            params = jax.device_get(self.method.deploy(state.params))
            weights.save_weights(self.folder / "weights.safetensors", self.model.name, params, metadata)


def _check_devices(experiment: Experiment, mesh: Mesh) -> None:
    fields = {"train.batch_size": experiment.train.batch_size}
    if experiment.method.alignment == "online":
        fields |= {"method.pool": experiment.method.pool, "method.keep": experiment.method.keep}
    for field, value in fields.items():
        if value % mesh.size:
            raise ConfigError(
                f"{field} = {value} cannot be split over {mesh.size} devices: use a multiple, or set train.devices"
            )


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that the loop can end a step and save; a second SIGINT interrupts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: Any) -> None:
        if event.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
