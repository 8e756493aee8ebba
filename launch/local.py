#!/usr/bin/env python3
"""Starts a command as N processes of one run, on this machine.

    python launch/local.py -n 2 -- jaxfuse train PRESET --run DIR

Exit status: 0 where all processes ended with 0; 75 where they were asked to stop and have saved
everything; 137 where one of them did not end and was killed; else that of the process which failed
first. Needs Python and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PEER_GONE = 70
"""A process ended because another one is gone: a consequence, never the cause."""
PREEMPTED = 75
"""Asked to stop; everything is saved."""
RESTARTABLE = {PEER_GONE, PREEMPTED} | {128 + number for number in (6, 9, 11, 15)}
"""Starting again helps after these: 6, 9, 11, 15 are SIGABRT, SIGKILL, SIGSEGV and SIGTERM."""
BAD_USAGE = 2


class CannotStartError(Exception):
    """A process could not be started; `status` is what the launcher ends with."""

    def __init__(self, program: str, error: OSError) -> None:
        if error.filename:
            self.status = BAD_USAGE
            remedy = "name a program on PATH, or a file that may be run; a script begins with #!"
        else:  # not the program's fault
            self.status = 1
            remedy = "lower -n, or raise the limits of this machine"
        super().__init__(f"{program}: cannot be started: {error.strerror}: {remedy}")


@dataclasses.dataclass
class Process:
    """One process of the run, and what is known of its end."""

    number: int
    popen: subprocess.Popen[bytes]
    status: int | None = None
    """As a shell gives it: 128 + signal where one killed it; None while it runs."""
    stopped: bool = False
    """Killed here because it did not end by itself: a consequence of the failure of another."""


@dataclasses.dataclass
class Sink:
    """Where output goes. One that fails is told of once and never ends the run."""

    name: str
    target: int
    failed: bool = False

    def write(self, data: bytes) -> None:
        try:
            write(self.target, data)
        except OSError as error:  # a full disk, a reader that is gone
            if not self.failed:
                self.failed = True
                say(f"{self.name}: {error.strerror}: the run goes on, this output is lost")


@dataclasses.dataclass
class Stream:
    """One output of one process: whole lines go on with a prefix, raw bytes into a log."""

    prefix: bytes
    sink: Sink
    log: Sink | None
    rest: bytes = b""

    def take(self, data: bytes) -> None:
        """Passes on what is complete; no data means the end, which completes the last line."""
        if self.log:
            self.log.write(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        if not data and self.rest:
            lines, self.rest = [self.rest], b""
        if lines:
            self.sink.write(b"".join(self.prefix + line + b"\n" for line in lines))


class Run:
    """The processes of one attempt: started together, watched until all have ended."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.selector = selectors.DefaultSelector()
        self.processes: list[Process] = []
        self.ended: list[Process] = []
        """In the order in which they ended."""
        self._watchdog = watchdog

    def start(
        self,
        command: Sequence[str],
        environments: Sequence[dict[str, str]],
        outputs: Sequence[Sink],
        logs: Sequence[Sink],
    ) -> None:
        """Starts one process for each environment."""
        for number, environment in enumerate(environments):
            # A session of its own: Ctrl-C reaches the processes from here only, and what a
            # process has started can be ended with it.
            try:
                popen = subprocess.Popen(
                    list(command),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    preexec_fn=self._watchdog.started,
                )
            except OSError as error:
                raise CannotStartError(command[0], error) from error
            self.processes.append(Process(number, popen))
            log = logs[number] if logs else None
            for pipe, sink in zip((popen.stdout, popen.stderr), outputs, strict=True):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
                stream = Stream(f"[{number}] ".encode(), sink, log)
                self.selector.register(pipe, selectors.EVENT_READ, stream)

    def running(self) -> list[Process]:
        return [process for process in self.processes if process.status is None]

    def signal(self, number: int) -> None:
        """To the processes themselves, not to what they started: those belong to them."""
        for process in self.running():
            # Not Popen.send_signal, which would reap one that has just ended.
            os.kill(process.popen.pid, number)

    def watch(self, signals: Signals, grace: float) -> None:
        """Passes output and signals on until all have ended.

        After a request to stop all processes, and after the first failure the others, have `grace`
        seconds to end by themselves.
        """
        self.selector.register(signals.reader, selectors.EVENT_READ, None)
        deadline: float | None = None
        while self.running():
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            self._pass_on(left)
            for number in signals.take():
                name = signal.Signals(number).name
                say(f"{name}: passed on to all processes, which have {grace:g} s to end")
                self.signal(number)
                if deadline is None:
                    deadline = time.monotonic() + grace
            failed = [process for process in self._reap() if process.status]
            if failed and self.running() and deadline is None:
                say(f"{describe(failed[0])}; the others have {grace:g} s to end by themselves")
                deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() >= deadline:
                for process in self.running():
                    say(f"process {process.number} did not end by itself: killed")
                    process.stopped = True
                self.kill()
                deadline = None
        self.selector.unregister(signals.reader)
        # Everything that could write is dead, so that the pipes end; unless somebody left the
        # session on purpose.
        last = time.monotonic() + 5.0
        while self.selector.get_map() and time.monotonic() < last:
            self._pass_on(max(last - time.monotonic(), 0.0))

    def kill(self) -> None:
        """Ends what still runs, and all that it has started."""
        for process in self.running():
            _kill_group(process.popen.pid)

    def close(self) -> None:
        self.kill()
        self._reap(wait=True)
        for process in self.processes:
            for pipe in (process.popen.stdout, process.popen.stderr):
                if pipe:
                    pipe.close()
        self.selector.close()

    def _pass_on(self, timeout: float | None) -> None:
        for key, _ in self.selector.select(timeout):
            if key.data is None:  # a signal: the caller looks
                continue
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            key.data.take(data)
            if not data:
                self.selector.unregister(key.fileobj)

    def _reap(self, wait: bool = False) -> list[Process]:
        """Those that have just ended."""
        ended = []
        for process in self.running():
            pid = process.popen.pid
            # Seen dead, but not yet reaped: its number cannot belong to anybody else, so that
            # what it left behind can be ended safely.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)):
                _kill_group(pid)
                self._watchdog.ended(pid)
                code = process.popen.wait()
                process.status = code if code >= 0 else 128 - code
                ended.append(process)
        # Seen at once: who noticed that somebody is gone was not the first.
        ended.sort(key=lambda process: process.status == PEER_GONE)
        self.ended += ended
        return ended

    def cause(self) -> Process | None:
        """Who failed first; then who only noticed it, who was killed here, who ended as asked.

        What others say after a kill is a consequence, so that the first decides what follows. But
        that everything is saved (75) is true only where nobody was killed.
        """

        def rank(process: Process) -> int:
            if process.stopped:
                return 2
            return {PEER_GONE: 1, PREEMPTED: 3}.get(process.status or 0, 0)

        return min((process for process in self.ended if process.status), key=rank, default=None)


class Signals:
    """Signals that ask to stop, noticed by `select` together with the ends of processes."""

    def __init__(self) -> None:
        self.requested = False
        self._pending: list[int] = []
        self.reader, self._writer = socket.socketpair()
        for end in (self.reader, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
                signal.signal(number, self._note)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # only to wake up

    def _note(self, number: int, frame: object) -> None:
        self.requested = True
        # A terminal that closes asks for the same as SIGTERM.
        self._pending.append(signal.SIGTERM if number == signal.SIGHUP else number)

    def take(self) -> list[int]:
        """Those since the last call."""
        with contextlib.suppress(BlockingIOError):
            while self.reader.recv(4096):
                pass
        taken, self._pending = self._pending, []
        return taken


def write(target: int, data: bytes) -> None:
    """Writes all of the data.

    With PYTHONUNBUFFERED, sys.stdout writes a part when a signal comes in between, and the end of a
    process is one.
    """
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:  # somebody made the terminal so
            select.select([], [target], [])


def say(line: str) -> None:
    """A line of the launcher itself, whole, between those of the processes."""
    with contextlib.suppress(OSError):  # nobody is left to tell
        write(2, f"launch: {line}\n".encode())


def describe(process: Process) -> str:
    """Which process ended how."""
    status = process.status or 0
    if process.stopped:
        end = f"did not end in time, was killed and may not have saved ({status})"
    elif status == PREEMPTED:
        end = "was asked to stop and has saved (75)"
    elif status == PEER_GONE:
        end = "ended because another process is gone (70)"
    elif status > 128:
        try:
            end = f"was killed by {signal.Signals(status - 128).name} ({status})"
        except ValueError:
            end = f"ended with status {status}"
    else:
        end = f"ended with status {status}"
    return f"process {process.number} {end}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all dead; so says macOS
        os.killpg(pid, signal.SIGKILL)


class Watchdog:
    """A process that kills what still runs, with all it started, should the launcher be killed.

    A launcher that is killed with SIGKILL can pass nothing on, and its processes would go on
    holding devices and the run folder. SIGKILL and not SIGTERM: nobody is left who could end a
    process that does not listen.
    """

    PROGRAM = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""

    def __init__(self) -> None:
        # The launcher alone holds the writing end, so that its death ends the pipe. It keeps the
        # reading end too: without a reader a write would kill the writer.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._popen = subprocess.Popen(
            [sys.executable, "-S", "-c", self.PROGRAM],
            stdin=self._reader,
            # Whoever reads the launcher's output shall see its end.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def started(self) -> None:
        """Says that this process leads a group of a run; called in it, before its program."""
        self._say(f"+{os.getpid()}\n")

    def ended(self, pid: int) -> None:
        """Says that nobody of this group lives; called before its number can be another's."""
        self._say(f"-{pid}\n")

    def _say(self, message: str) -> None:
        with contextlib.suppress(BlockingIOError):  # full: somebody has killed the watchdog
            os.write(self._writer, message.encode())

    def close(self) -> None:
        self._popen.kill()
        self._popen.wait()
        os.close(self._reader)
        os.close(self._writer)


def free_port() -> int:
    """A port of this machine that nobody listens on; it is free until somebody else takes it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environments(count: int, port: int, devices: int) -> Iterator[dict[str, str]]:
    """What each process finds in its environment."""
    for number in range(count):
        environment = {
            **os.environ,
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
        # Else Python keeps lines back, for its output is no terminal here.
        environment.setdefault("PYTHONUNBUFFERED", "1")
        if devices:
            flag = "--xla_force_host_platform_device_count"
            others = re.sub(rf"{flag}=\S*", "", os.environ.get("XLA_FLAGS", ""))
            environment["XLA_FLAGS"] = " ".join([*others.split(), f"{flag}={devices}"])
        yield environment


def whole(least: int) -> Callable[[str], int]:
    """Parses a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from {least}")
        return int(text)

    return parse


def arguments(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options and the command; bad usage ends the program with 2."""
    parser = argparse.ArgumentParser(
        prog="local.py",
        usage="local.py -n N [options] -- COMMAND ...",
        description="Start COMMAND as N processes of one run, on this machine.",
    )
    parser.add_argument("-n", type=whole(1), required=True, metavar="N", help="processes")
    parser.add_argument(
        "--restarts", type=whole(0), default=0, metavar="N", help="start all again at most N times"
    )
    parser.add_argument(
        "--port", type=whole(0), default=0, help="of the coordinator; 0 takes a free one"
    )
    parser.add_argument(
        "--devices-per-process", type=whole(1), default=0, metavar="K", help="pretended CPU devices"
    )
    parser.add_argument(
        "--grace",
        type=whole(0),
        default=60,
        metavar="SECONDS",
        help="to end after a request to stop, or after another has failed; 60",
    )
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="also DIR/0.log, DIR/1.log ...")
    at = list(given).index("--") if "--" in given else len(given)
    options, command = parser.parse_args(given[:at]), list(given[at + 1 :])
    if not command:
        parser.error("no command: give it after --, as in -n 2 -- jaxfuse train PRESET")
    return options, command


def open_logs(folder: Path, count: int) -> Iterator[Sink]:
    """A log for each process, continued where it exists. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number}.log"
        yield Sink(str(path), os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666))


def main(given: Sequence[str]) -> int:
    """Starts all, as often as it helps and is allowed; returns the exit status."""
    options, command = arguments(given)
    watchdog = Watchdog()
    try:
        logs = list(open_logs(options.log_dir, options.n)) if options.log_dir else []
    except OSError as error:
        say(f"--log-dir {error.filename}: {error.strerror}: name a folder to write to")
        return BAD_USAGE
    else:
        return attempts(options, command, logs, watchdog)
    finally:
        watchdog.close()


def attempts(
    options: argparse.Namespace, command: Sequence[str], logs: Sequence[Sink], watchdog: Watchdog
) -> int:
    """One run after the other until one ends for good; returns the exit status."""
    signals = Signals()
    outputs = [Sink("standard output", 1), Sink("standard error", 2)]
    restarts = 0
    while True:
        port = options.port or free_port()
        each = list(environments(options.n, port, options.devices_per_process))
        run = Run(watchdog)
        try:
            run.start(command, each, outputs, logs)
            run.watch(signals, options.grace)
        except CannotStartError as error:
            say(str(error))
            return error.status
        finally:
            run.close()
        cause = run.cause()
        if cause is None:
            return 0
        status = cause.status or 0
        say(describe(cause) if cause.stopped else f"first to fail: {describe(cause)}")
        if status not in RESTARTABLE or signals.requested:
            return status
        if restarts == options.restarts:
            if restarts:
                say(f"not started again: --restarts {restarts} is used up")
            return status
        restarts += 1
        say(f"starting all again, {restarts} of {options.restarts}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
