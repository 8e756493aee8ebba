"""What a run loses when something dies: `python -m bench.faults`. Real processes over loopback.

Each row breaks one thing in a run of several processes and gives the same command again; what runs
then is what the next row breaks. All of it is compared with a run that nothing happened to: the log
of every step, row by row, and the last parameters.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import load_file

from bench import machine, record
from jaxfuse import experiments
from jaxfuse.config import ExternalConfig, SourceConfig, to_json
from jaxfuse.config.experiment import Experiment

FORMAT = 1
HEARTBEAT = 6
"""Seconds; the default is longer."""
JOIN = 40
"""Seconds for the others to start; the default is longer."""
PATIENCE = 300
"""Seconds that anything may take."""
RESTART = 30
"""Seconds in which a run should be back at its first step where its programs are compiled."""
STEPS = 160
ROOM = 40
"""Steps that a fault may take; a run with fewer left comes to its end, and another one begins."""
EVERY = 6
"""Steps between checkpoints."""
BEYOND = 3
"""Steps after a checkpoint at which most faults come."""
UNPRIVILEGED = """
import ctypes, os, sys
if sys.platform == "linux":
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a command for whom modes of files hold, though it be root."""
ENDS = {-signal.SIGABRT, 70}
"""How a process may end whose peer is gone: 70, or by JAX where the peer was its coordinator."""


def experiment() -> Experiment:
    """A small run: `STEPS` steps that are logged one by one."""
    preset = experiments.find("ssvif_small")
    target = dataclasses.replace(preset.data.target, scenes=16, height=64, width=64)
    return dataclasses.replace(
        preset,
        name="faults",
        method=dataclasses.replace(
            preset.method, guidance="none", stage1_epochs=STEPS / 10, stage2_epochs=0
        ),
        data=dataclasses.replace(preset.data, target=target, patch_size=32, stride=32, threads=1),
        train=dataclasses.replace(
            preset.train, batch_size=4, steps_per_epoch=10, log_every=1, checkpoint_every=EVERY
        ),
    )


def _keep(said: IO[str], lines: list[str]) -> None:
    """Reads what a process prints, to its end."""
    with said:
        lines.extend(said)


class Run:
    """Processes of one run."""

    def __init__(
        self,
        folder: Path,
        count: int = 2,
        devices: int = 1,
        what: Experiment | None = None,
        cache: Path | None = None,
        heartbeat: int = HEARTBEAT,
    ):
        """what: `experiment()` unless given. cache: folder for compiled programs, if not the usual
        one. heartbeat: seconds of silence after which a process is gone.
        """
        config = folder.with_suffix(".json")
        config.write_text(to_json(what or experiment()), encoding="utf8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder, self.since = folder, time.monotonic()
        self.outputs: list[list[str]] = [[] for _ in range(count)]
        self.processes, self.readers = [], []
        for i, output in enumerate(self.outputs):
            given = {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "JAXFUSE_HEARTBEAT_SECONDS": str(heartbeat),
                "JAXFUSE_JOIN_SECONDS": str(JOIN),
                "PYTHONPATH": os.pathsep.join(
                    p for p in (str(machine.ROOT), os.environ.get("PYTHONPATH", "")) if p
                ),
            }
            if cache:
                given["JAX_COMPILATION_CACHE_DIR"] = str(cache)
            if count > 1:
                given |= {
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(i),
                }
            command = [sys.executable, "-c", UNPRIVILEGED, sys.executable, "-m", "jaxfuse"]
            command += ["train", str(config), "--run", str(folder)]
            # Not into files, which a process with a full disk could not write either.
            process = subprocess.Popen(
                command,
                env={**os.environ, **given},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            assert process.stdout is not None
            reader = threading.Thread(target=_keep, args=(process.stdout, output), daemon=True)
            reader.start()
            self.processes.append(process)
            self.readers.append(reader)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process, reader in zip(self.processes, self.readers, strict=True):
            process.kill()
            process.wait()
            reader.join(PATIENCE)

    def said(self) -> str:
        """What all have printed."""
        return "\n".join("".join(output) for output in self.outputs)

    def until(self, ready: Callable[[], bool]) -> None:
        """Waits; raises where a process ends before, or it takes too long."""
        end = time.monotonic() + PATIENCE
        while not ready():
            if any(process.poll() is not None for process in self.processes):
                raise RuntimeError(f"{self.folder.name}: ended too early:\n{self.said()}")
            if time.monotonic() > end:
                raise TimeoutError(f"{self.folder.name}: waited {PATIENCE} s:\n{self.said()}")
            time.sleep(0.002)

    def until_step(self, step: int) -> None:
        """Waits until the log has a step."""
        self.until(lambda: last_step(self.folder) >= step)

    def until_checkpoint(self, beyond: int) -> int:
        """Waits until the log is so many steps beyond the next checkpoint; returns its step."""
        step = (last_step(self.folder) // EVERY + 1) * EVERY
        self.until_step(step + beyond)
        return step

    def kill(self, which: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to one process."""
        self.processes[which].send_signal(number)

    def codes(self) -> list[int]:
        """Waits for all to end; returns how."""
        end = time.monotonic() + PATIENCE
        codes = [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]
        for reader in self.readers:
            reader.join(PATIENCE)
        return codes


def _lines(folder: Path) -> list[str]:
    """The whole lines of the log."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [line for line in lines if line.endswith("\n")]


def last_step(folder: Path) -> int:
    """The last whole line of the log."""
    lines = _lines(folder)
    return int(json.loads(lines[-1])["step"]) if lines else 0


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of each whole line of the log."""
    return [(line["step"], line["loss"]) for line in map(json.loads, _lines(folder))]


@dataclasses.dataclass(frozen=True)
class Row:
    """What happened."""

    folder: Path
    codes: tuple[int, ...]
    """Exit statuses after the fault."""
    seconds_to_end: float
    """From the fault to the end of the last process."""
    at_step: int
    """The last step in the log then."""
    said: str
    """All that was printed until then."""
    seconds_to_continue: float
    """From giving the command again to the first new step in the log."""
    said_again: str


Fault = Callable[[Run], None]


class Chain:
    """One run of two processes that one thing after the other happens to: what continues after one
    fault is what the next one breaks.
    """

    def __init__(self, work: Path):
        self._work, self._number = work, 0
        self._run: Run | None = None
        self.ended: list[Path] = []
        """Folders of the runs that have come to their end."""

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        self._part()

    @property
    def folder(self) -> Path:
        """Of the run that faults come to."""
        return self._work / f"broken_{self._number}"

    def _part(self) -> None:
        if self._run is not None:
            self._run.__exit__()
            self._run = None

    def _start(self) -> Run:
        self._part()
        self._run = Run(self.folder)
        return self._run

    def _alive(self) -> Run:
        """The run, which trains or starts, with room for a fault."""
        if last_step(self.folder) > STEPS - ROOM:
            self.end()
        return self._run or self._start()

    def abandon(self) -> None:
        """What comes next happens to a new run: this one has failed."""
        self._part()
        self._number += 1

    def end(self) -> None:
        """Lets the run come to its end; what comes next happens to a new one."""
        run = self._run or self._start()
        if any(run.codes()):
            raise RuntimeError(f"{self.folder.name}: {run.said()}")
        self.ended.append(self.folder)
        self.abandon()

    def broken(self, fault: Fault, between: Callable[[Path], None] | None = None) -> Row:
        """The run with a fault, continued until its log is longer than it was. between: what
        happens to the folder before the same command is given again.
        """
        run, folder = self._alive(), self.folder
        fault(run)
        since = time.monotonic()
        codes = tuple(run.codes())
        seconds, said = time.monotonic() - since, run.said()
        at_step = last_step(folder)
        if between:
            between(folder)
        before = (folder / "log.jsonl").stat()
        again = self._start()
        # The log is cut to the last checkpoint first, then grows.
        again.until(lambda: (folder / "log.jsonl").stat().st_ino != before.st_ino)
        kept = last_step(folder)
        again.until_step(kept + 1)
        started = time.monotonic() - again.since
        again.until_step(at_step + 1)
        return Row(folder, codes, seconds, at_step, said, started, again.said())

    def many_kills(self, kills: int, seed: int = 0) -> list[int]:
        """Kills one of two processes or both, drawn at random, at a random step or before the
        first, so many times. Returns the steps at which it was killed.
        """
        draw = random.Random(seed)
        at = []
        for _ in range(kills):
            run, begun, done = self._alive(), time.monotonic(), last_step(self.folder)
            # Anywhere between the start and the next checkpoints; at times before the first step.
            ahead = draw.choice([0, 1, 2, 3, EVERY // 2, EVERY + 2])
            end = math.inf if ahead else begun + draw.uniform(0.0, 10.0)
            target = done + (ahead or 2 * EVERY)

            def due(end: float = end, target: int = target) -> bool:
                return time.monotonic() > end or last_step(self.folder) >= target

            run.until(due)
            for which in draw.choice([(0,), (1,), (0, 1), (0, 1)]):
                run.kill(which)
            at.append(last_step(self.folder))
            codes = run.codes()
            if 0 in codes:
                raise RuntimeError(f"a process ended well beside a killed one: {codes}")
            self._start()
        return at


def _terminate(which: int) -> Fault:
    def fault(run: Run) -> None:
        run.until_checkpoint(BEYOND)
        run.kill(which, signal.SIGTERM)

    return fault


def _kill(which: int) -> Fault:
    def fault(run: Run) -> None:
        run.until_checkpoint(BEYOND)
        run.kill(which)

    return fault


def _kill_in_save(run: Run) -> None:
    checkpoints, whole = run.folder / "checkpoints", run.until_checkpoint(EVERY - 1)
    written = f"{whole + EVERY}.*tmp*"
    run.until(lambda: (checkpoints / str(whole)).is_dir() and any(checkpoints.glob(written)))
    for process in range(len(run.processes)):
        run.kill(process)


def _full(run: Run) -> None:
    run.until_checkpoint(BEYOND)
    # As a full disk does, a limit lets files be made and nothing be written to them.
    resource.prlimit(run.processes[0].pid, resource.RLIMIT_FSIZE, (1024, 1024))


def _full_for_checkpoints(which: int) -> Fault:
    def fault(run: Run) -> None:
        run.until_checkpoint(BEYOND)
        # The log and the weights (0.55 MB) still fit; arrays of a checkpoint lie in one larger
        # file, also the half that each process writes.
        resource.prlimit(run.processes[which].pid, resource.RLIMIT_FSIZE, (600_000, 600_000))

    return fault


def _folders(run: Path) -> list[Path]:
    return [run, *(path for path in run.rglob("*") if path.is_dir())]


def _read_only(run: Run) -> None:
    checkpoints, whole = run.folder / "checkpoints", run.until_checkpoint(BEYOND)
    run.until(lambda: (checkpoints / str(whole)).is_dir() and not any(checkpoints.glob("*tmp*")))
    for path in _folders(run.folder):
        # An old checkpoint may just be removed.
        with contextlib.suppress(FileNotFoundError):
            path.chmod(0o555)


def _writable(folder: Path) -> None:
    for path in _folders(folder):
        path.chmod(0o755)


def _truncate(folder: Path) -> None:
    newest = max((folder / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    for path in newest.rglob("*"):
        if path.is_file() and path.stat().st_size > 64:
            os.truncate(path, path.stat().st_size // 2)


FAULTS: dict[str, tuple[str, Fault, Callable[[Path], None] | None]] = {
    "term_1": ("SIGTERM to process 1 of 2", _terminate(1), None),
    "term_0": ("SIGTERM to process 0 of 2", _terminate(0), None),
    "kill_1": ("SIGKILL of process 1 of 2", _kill(1), None),
    "kill_0": ("SIGKILL of process 0 of 2, the coordinator", _kill(0), None),
    "kill_in_save": ("SIGKILL of both while a checkpoint is written", _kill_in_save, None),
    "truncated": (
        "SIGTERM, then every file of the newest checkpoint cut",
        _terminate(1),
        _truncate,
    ),
    "full_disk": ("disk full at process 0", _full, None),
    "full_in_save_0": ("disk full for process 0's checkpoint", _full_for_checkpoints(0), None),
    "read_only": ("run folder made read-only", _read_only, _writable),
    "full_in_save_1": ("disk full for process 1's checkpoint", _full_for_checkpoints(1), None),
}
"""name -> what it is, the fault, what happens to the folder afterwards."""


def undisturbed(folder: Path) -> float:
    """Trains without a fault; returns the seconds to the first step."""
    with Run(folder, heartbeat=PATIENCE) as run:
        run.until_step(1)
        started = time.monotonic() - run.since
        if any(run.codes()):
            raise RuntimeError(run.said())
        return started


def same_so_far(a: Path, b: Path) -> bool:
    """Whether the log of a run under way is the beginning of that of another, to the last bit."""
    ours = losses(a)
    return bool(ours) and ours == losses(b)[: len(ours)]


def same(a: Path, b: Path) -> bool:
    """Whether two runs have equal logs and equal last parameters, to the last bit."""
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (a, b))
    equal = all(np.array_equal(ours[name], theirs[name]) for name in ours)
    return ours.keys() == theirs.keys() and equal and losses(a) == losses(b)


def restarts(work: Path) -> dict[str, float]:
    """Seconds from the command to the first step in the log of the preset crossfuse on generated
    scenes, in one process: with nothing compiled, and continued after that.
    """
    preset = experiments.find("crossfuse")
    scenes = SourceConfig(kind="synthetic", scenes=16)
    what = dataclasses.replace(
        preset,
        name="restart",
        data=dataclasses.replace(preset.data, target=scenes, external=ExternalConfig()),
        train=dataclasses.replace(preset.train, log_every=1, checkpoint_every=1),
    )
    seconds = []
    for _ in range(2):
        done = last_step(work / "restart")
        with Run(work / "restart", count=1, what=what, cache=work / "compiled") as run:
            run.until_step(done + 1)
            seconds.append(round(time.monotonic() - run.since, 2))
            run.kill(0, signal.SIGTERM)
            if run.codes() != [75]:
                raise RuntimeError(run.said())
    return {"nothing_compiled": seconds[0], "continued": seconds[1]}


def measure(work: Path, kills: int) -> dict[str, Any]:
    """All rows."""
    versions, busy = machine.versions(), machine.busy_share()
    again = restarts(work)
    first = undisturbed(work / "straight")
    rows = {}
    with Chain(work) as chain:
        for name, (what, fault, between) in FAULTS.items():
            print(what, file=sys.stderr, flush=True)
            row = chain.broken(fault, between)
            rows[name] = {
                "what": what,
                "at_step": row.at_step,
                "exit_codes": list(row.codes),
                "seconds_to_end": round(row.seconds_to_end, 2),
                "seconds_to_continue": round(row.seconds_to_continue, 2),
                "same_end": same_so_far(row.folder, work / "straight"),
            }
        print(f"{kills} kills", file=sys.stderr, flush=True)
        at = chain.many_kills(kills)
        chain.end()
        same_end = all(same(folder, work / "straight") for folder in chain.ended)
    for row in rows.values():
        row["same_end"] &= same_end
    return {
        "format": FORMAT,
        "machine": {**machine.hardware(), "busy_before": busy},
        "versions": versions,
        "command": "python -m bench.faults",
        "heartbeat_seconds": HEARTBEAT,
        "steps": STEPS,
        "steps_between_checkpoints": EVERY,
        "seconds_to_first_step": round(first, 2),
        "restarts_of_crossfuse": again,
        "goals": [
            record.goal(
                "restart to the first step of crossfuse, compiled before, seconds",
                RESTART,
                again["continued"],
            )
        ],
        "rows": rows,
        "kills": {"at_steps": at, "same_end": same_end},
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The table for the guide, and what it is of."""
    cores = result["machine"]["cores"]
    told = (
        f"Two processes over loopback, on one machine with {cores} cores, in a run of "
        f"{result['steps']} steps with a checkpoint every {result['steps_between_checkpoints']}, "
        f"heartbeat {result['heartbeat_seconds']} s; the first start takes "
        f"{result['seconds_to_first_step']:.1f} s to its first step."
    )
    again = result["restarts_of_crossfuse"]
    head = ["what", "exit codes", "until all had ended", "until the next new step", "lost"]
    table = [told, ""]
    table += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in result["rows"].values():
        cells = [
            f"{row['what']}, after step {row['at_step']}",
            ", ".join(map(str, row["exit_codes"])),
            f"{row['seconds_to_end']:.1f} s",
            f"{row['seconds_to_continue']:.1f} s",
            "nothing" if row["same_end"] else "SOMETHING",
        ]
        table.append("| " + " | ".join(cells) + " |")
    kills = result["kills"]
    cells = [f"{len(kills['at_steps'])} kills in a row, of one process, the other or both"]
    cells += ["", "", "", "nothing" if kills["same_end"] else "SOMETHING"]
    table.append("| " + " | ".join(cells) + " |")
    told = (
        f"The preset crossfuse, in one process on the same machine: {again['continued']:.1f} s "
        "from the command to the next new step of a run that is continued; "
        f"{again['nothing_compiled']:.1f} s where its programs must be compiled first."
    )
    return [*table, "", told]


def main(words: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parse.add_argument("--kills", type=int, default=20)
    default = machine.ROOT / "bench" / "results" / "processes"
    parse.add_argument("--out", type=Path, default=default)
    given = parse.parse_args(words)
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    print(f"{work}: kept where something fails", file=sys.stderr)
    result = measure(work, given.kills)
    shutil.rmtree(work)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "faults.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    print("\n".join(lines(result)))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
