"""Where a run's numbers go: a JSON-lines file, TensorBoard, the terminal. Written by process 0 only."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Writer(Protocol):
    """Takes one record a log step."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`log.jsonl`: one JSON object a line, with step, stage, time and every scalar.

    On continuing from `step`, lines of later steps (lost with the killed run) are dropped first.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf8").splitlines() if _step_of(line) <= step]
            replacement = path.with_suffix(".tmp")
            replacement.write_text("".join(f"{line}\n" for line in kept), encoding="utf8")
            os.replace(replacement, path)
        self._file = path.open("a", encoding="utf8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _step_of(line: str) -> float:
    """The step of a log line; a line cut short by a kill counts as lost."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoard:
    """TensorBoard event files, through tensorboardX (no TensorFlow)."""

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError(
                'train.tensorboard = True needs tensorboardX: pip install "jaxfuse[tensorboard]", or set it to False'
            ) from error
        self._writer = SummaryWriter(str(folder))

    def write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in ("step", "time"):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class Terminal:
    """A progress bar with steps/s, time left and the losses on a terminal; plain lines elsewhere."""

    def __init__(self, total: int, start: int, stream: Any = None):
        self._stream = stream or sys.stderr
        self._total = total
        self._progress: Progress | None = None
        self._began, self._start = time.monotonic(), start
        if self._stream.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}"),
                console=Console(file=self._stream),
            )
            self._task = self._progress.add_task("compiling", total=total, completed=start, rate="", losses="")
            self._progress.start()

    def advance(self, step: int, stage: str) -> None:
        """Moves the bar without waiting for the devices."""
        if self._progress:
            self._progress.update(self._task, completed=step, description=stage)

    def write(self, record: dict[str, Any]) -> None:
        step, rate = record["step"], record.get("steps_per_second", 0.0)
        losses = f"loss {record['loss']:.4f}"
        if "validation_loss" in record:
            losses += f"  validation {record['validation_loss']:.4f}"
        if self._progress:
            self._progress.update(self._task, completed=step, rate=f"{rate:.2f} steps/s", losses=losses)
            return
        left = (self._total - step) / rate if rate else math.nan
        print(
            f"{record['stage']}  step {step}/{self._total}  {losses}  {rate:.2f} steps/s  {_duration(left)} left",
            file=self._stream,
            flush=True,
        )

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._progress:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
