"""Measured things, each alone in a process of its own, so that its peak memory is its own too.

The parent tells the processes in turn to run once. Whatever else the machine does then hits all
sides alike, and a quotient of two times means something even on a busy machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import ROOT

PAUSE = 0.2
"""Seconds between two runs: threads of the one that just ended may still spin."""


class BenchError(Exception):
    """A measurement that cannot be had; the message is one line that says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a side does, made in its own process by the function that `Side.target` names."""

    run: Callable[[], object]
    """One measured call; returns when all of its result is there."""
    warm: bool = True
    """Whether a first call, which may compile, is made before the measured ones."""
    finish: Callable[[], dict[str, Any]] = dict
    """Called once after the last run: facts to put beside the times."""
    usage: Callable[[], tuple[float, int]] | None = None
    """Processor seconds so far and peak bytes of other processes that do the work; None: this one
    does."""


@dataclasses.dataclass
class Side:
    """One of the things compared."""

    name: str
    target: str
    """module:function of a function (options) -> Work."""
    options: dict[str, Any]
    rounds: int | None = None
    """Runs at most; None takes part in every round."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Filled while measuring."""


def peak_rss() -> int:
    """Bytes of this process' largest resident set."""
    # What getrusage counts begins with what the parent held when it started this process; Linux
    # also says it for this program alone.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def worker(target: str, options: dict[str, Any]) -> None:
    """The other end: builds the work, then obeys the parent line by line."""
    # Results have a channel of their own: libraries may print.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    module, function = target.split(":")
    began = time.perf_counter()
    work: Work = getattr(importlib.import_module(module), function)(options)
    usage = work.usage or (lambda: (time.process_time(), peak_rss()))
    ready: dict[str, Any] = {"setup_seconds": time.perf_counter() - began, "start_rss": usage()[1]}
    if work.warm:
        began = time.perf_counter()
        work.run()
        ready["first_call_seconds"] = time.perf_counter() - began
    say(**ready)
    for line in sys.stdin:
        if line.strip() != "run":
            break
        began, busy = time.perf_counter(), usage()[0]
        work.run()
        seconds, busy = time.perf_counter() - began, usage()[0] - busy
        say(seconds=seconds, cpu_seconds=busy)
    # Before `finish`, which may compute what was not measured.
    peak = usage()[1]
    say(peak_rss=peak, facts=work.finish())


class _Process:
    """A running side."""

    def __init__(self, side: Side):
        self.side = side
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
        environment = {**os.environ, **side.environment, "PYTHONPATH": path}
        # With a cache, what a first call costs would depend on what ran before.
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, "-m", "bench.sides", side.target, json.dumps(side.options)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def prepare(self) -> None:
        ready = self.hear()
        self.side.report.update(
            seconds=[],
            cpu_seconds=[],
            setup_seconds=ready["setup_seconds"],
            first_call_seconds=ready.get("first_call_seconds"),
            start_rss_bytes=ready["start_rss"],
        )

    def hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            code = self.process.wait()
            why = "it was killed, perhaps for want of memory" if code < 0 else "see above"
            raise BenchError(f"{self.side.name}: its process ended with code {code}: {why}")
        return json.loads(line)

    def tell(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.hear()

    def run(self) -> None:
        time.sleep(PAUSE)
        sample = self.tell("run")
        for name in ("seconds", "cpu_seconds"):
            self.side.report[name].append(sample[name])

    def finish(self) -> None:
        last = self.tell("finish")
        self.side.report.update(peak_rss_bytes=last["peak_rss"], facts=last["facts"])
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


@contextlib.contextmanager
def _running(side: Side) -> Iterator[_Process]:
    process = _Process(side)
    try:
        process.prepare()
        yield process
    finally:
        process.end()


def turns(limits: Sequence[int | None], rounds: int) -> list[list[int]]:
    """Who runs in each round, in which order: every second round backwards, so that a drift of the
    machine's speed favours nobody."""
    order = []
    for number in range(rounds):
        playing = [i for i, limit in enumerate(limits) if limit is None or number < limit]
        order.append(playing if number % 2 == 0 else playing[::-1])
    return order


def alternate(sides: Sequence[Side], rounds: int) -> None:
    """Starts all sides, in order, and runs them in turn; fills their reports."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_running(side)) for side in sides]
        for turn in turns([side.rounds for side in sides], rounds):
            for i in turn:
                running[i].run()
        for process in running:
            process.finish()


def one_by_one(sides: Sequence[Side], rounds: int) -> list[str]:
    """Runs each side to its end before the next: for devices that two processes cannot share.

    Gives a line for each that failed, such as one that needs more memory than there is.
    """
    failed = []
    for side in sides:
        try:
            alternate([side], rounds)
        except BenchError as error:
            side.report.clear()
            failed.append(f"Not measured: {error}")
    return failed


if __name__ == "__main__":
    worker(sys.argv[1], json.loads(sys.argv[2]))
