"""Where a run's numbers go: a JSON-lines file, TensorBoard, the terminal."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxfuse.config import UserError


class LogError(UserError, OSError):
    """A log that cannot be written; the message names the file and the remedy."""


@runtime_checkable
class Writer(Protocol):
    """Takes one record a log step."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def _unwritable(path: Path, error: OSError) -> LogError:
    return LogError(
        f"{path}: cannot be written ({error.strerror or error}): free disk space, then give "
        "the same command again to continue"
    )


class JsonLines:
    """`log.jsonl`: one JSON object a line, with step, stage, time and every scalar.

    A number that is not finite is null. On continuing from `step`, lines of later steps (lost with
    the killed run) are dropped first.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        try:
            if path.exists():
                lines = path.read_text(encoding="utf8").splitlines()
                replacement = path.with_name(path.name + ".tmp")
                try:
                    replacement.write_text(
                        "".join(f"{line}\n" for line in lines if _step_of(line) <= step),
                        encoding="utf8",
                    )
                    os.replace(replacement, path)
                finally:
                    replacement.unlink(missing_ok=True)
            self._file = path.open("a", encoding="utf8")
        except OSError as error:
            raise _unwritable(path, error) from error

    def write(self, record: dict[str, Any]) -> None:
        record = {
            name: None if isinstance(x, float) and not math.isfinite(x) else x
            for name, x in record.items()
        }
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        self._file.close()


def _step_of(line: str) -> float:
    """The step of a log line; a line cut short by a kill counts as lost."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def last_record(path: Path) -> dict[str, Any]:
    """The numbers of a log's last whole line; {} where there is none."""
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except OSError:
        return {}
    whole = [line for line in lines if math.isfinite(_step_of(line))]
    return {k: x for k, x in json.loads(whole[-1]).items() if x is not None} if whole else {}


class TensorBoard:
    """TensorBoard event files, through tensorboardX (no TensorFlow).

    On continuing from `step`, TensorBoard is told to forget what came later.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter

        self.folder = folder
        try:
            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def write(self, record: dict[str, Any]) -> None:
        try:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name not in ("step", "time"):
                    self._writer.add_scalar(name, value, record["step"])
            self._writer.flush()
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def close(self) -> None:
        self._writer.close()


class Terminal:
    """On a terminal a bar with steps/s, time left and the losses; plain lines elsewhere.

    silent: says nothing, for processes beside the one that speaks.
    """

    def __init__(self, total: int, start: int, stream: Any = None, silent: bool = False):
        self._stream = io.StringIO() if silent else stream or sys.stderr
        self._silent = silent
        self._total = total
        self._progress: Progress | None = None
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
            self._task = self._progress.add_task(
                "compiling", total=total, completed=start, rate="", losses=""
            )
            self._progress.start()

    def advance(self, step: int, stage: str) -> None:
        """Moves the bar without waiting for the devices."""
        if self._progress:
            self._progress.update(self._task, completed=step, description=stage)

    def write(self, record: dict[str, Any]) -> None:
        if self._silent:
            return
        step, rate = record["step"], record["steps_per_second"]
        losses = f"loss {record['loss']:.4f}"
        if "validation_loss" in record:
            losses += f"  validation {record['validation_loss']:.4f}"
        if self._progress:
            self._progress.update(
                self._task, completed=step, rate=f"{rate:.2f} steps/s", losses=losses
            )
            return
        left = _duration((self._total - step) / rate)
        print(
            f"{record['stage']}  step {step}/{self._total}  {losses}  "
            f"{rate:.2f} steps/s  {left} left",
            file=self._stream,
            flush=True,
        )

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._silent:
            return
        if self._progress:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
