"""Several processes as one run: joining, agreeing on things, noticing who is gone, leaving.

All of it is JAX's own (`jax.distributed`): nothing here talks to another process by other means.
See docs/adr/0009.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxfuse.config import ConfigError, UserError

PEER_GONE = 70
"""Exit code of a process that stopped because another one is gone: start all of them again."""
ASKED_TO_STOP = 75
"""Exit code of a run that was asked to stop and has saved everything: start it again."""
HEARTBEAT_SECONDS = 20
"""After so long without a sign of life a process counts as gone (JAXFUSE_HEARTBEAT_SECONDS)."""
JOIN_SECONDS = 300
"""How long a process waits for the others to start (JAXFUSE_JOIN_SECONDS)."""
PARTING_SECONDS = 60
"""How long a process that is done waits for the others to be done."""
FAILING_SECONDS = 5
"""How long a process that fails waits to hear whether all fail alike."""


class ProcessError(UserError, RuntimeError):
    """The processes of a run cannot find each other; the message says who waited for whom."""


def _seconds(name: str, usual: int) -> int:
    given = os.environ.get(name, "")
    if given and not (given.isdecimal() and int(given) > 0):
        raise ConfigError(f"{name} = {given!r}: use whole seconds, 1 or more")
    return int(given or usual)


def _given_place(coordinator: str, processes: int | None, process: int | None) -> dict[str, Any]:
    """Address, number of processes and own number where arguments or the environment say them; else
    {}. An argument comes before its variable.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    for name, argument in zip(names, (coordinator or None, processes, process), strict=True):
        if argument is not None:
            given[name] = str(argument)
    if given == {"JAX_NUM_PROCESSES": "1"}:
        return {"num_processes": 1}
    if "JAX_NUM_PROCESSES" not in given and "JAX_PROCESS_ID" not in given:
        return {}
    missing = [name for name in names if name not in given]
    if missing:
        raise ConfigError(
            f"{', '.join(given)} set, but not {', '.join(missing)}: set all three, or none for one "
            "process or a cluster that JAX knows"
        )
    for name in names[1:]:
        if not given[name].isdecimal():
            raise ConfigError(f"{name} = {given[name]!r}: use a whole number")
    count, mine = int(given[names[1]]), int(given[names[2]])
    if not mine < count:
        raise ConfigError(f"JAX_PROCESS_ID = {mine}: must lie in 0..{count - 1}")
    if not given[names[0]].rpartition(":")[2].isdecimal():
        raise ConfigError(f"JAX_COORDINATOR_ADDRESS = {given[names[0]]!r}: use host:port")
    return {"coordinator_address": given[names[0]], "num_processes": count, "process_id": mine}


def start(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes of the run, where there are any. Call it before JAX is used.

    coordinator: host:port of process 0. processes: how many there are. process: which one this is.
    Where they are not given, JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it;
    without these JAX finds the others itself in SLURM, Open MPI, Kubernetes, GKE and Cloud TPU;
    without any of these this is the only one. From then on a thread watches the others: see
    `PEER_GONE`. Raises ConfigError for settings that cannot be and ProcessError where the others
    cannot be found.
    """
    if jax.distributed.is_initialized():
        _Watch.begin()
        return
    place = _given_place(coordinator, processes, process)
    heartbeat = _seconds("JAXFUSE_HEARTBEAT_SECONDS", HEARTBEAT_SECONDS)
    patience = _seconds("JAXFUSE_JOIN_SECONDS", JOIN_SECONDS)
    if place.get("num_processes") == 1 or (not place and os.environ.get("SLURM_NTASKS") == "1"):
        return
    where = place.get("coordinator_address", "the cluster's coordinator")
    remedy = (
        "start all of them, with the same address and number, see to the network, or wait longer "
        f"with JAXFUSE_JOIN_SECONDS ({patience})"
    )
    text = f"{where}: could not join the other processes within {patience} s: {remedy}"
    # JAX itself aborts, with a stack trace, when its time is up.
    limit = threading.Timer(patience, _end, (PEER_GONE, text))
    limit.daemon = True
    limit.start()
    try:
        with warnings.catch_warnings():
            # In a pod of Kubernetes that is no indexed job JAX asks for a package nobody needs.
            warnings.simplefilter("ignore")
            jax.distributed.initialize(
                **place,
                heartbeat_timeout_seconds=heartbeat,
                initialization_timeout=patience + 30,
                shutdown_timeout_seconds=2 * heartbeat,
            )
    except ValueError as error:
        if place:
            raise
        _require_one_process(error)  # no cluster that JAX knows
        return
    except RuntimeError as error:
        if not place and "before any JAX" in str(error):
            _require_one_process(error)  # a program that trains besides other things
            return
        raise ProcessError(
            f"{where}: could not join the other processes ({_first_line(error)}): {remedy}"
        ) from error
    finally:
        limit.cancel()
    if jax.process_count() > 1:
        if threading.current_thread() is threading.main_thread():
            _stop_by_interrupt()
        _Watch.begin()


SEVERAL = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables by which launchers say how many processes they have started."""


def _require_one_process(error: Exception) -> None:
    """Raises ConfigError where a launcher speaks of several processes that JAX could not join: they
    would all train alone, in one folder.
    """
    if os.environ.get("KUBERNETES_SERVICE_HOST") and os.environ.get("JOB_COMPLETION_INDEX"):
        raise ConfigError(
            "JOB_COMPLETION_INDEX is set: a pod of an indexed Kubernetes job, whose others JAX "
            "finds by the package kubernetes: pip install kubernetes; or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each, or "
            "JAX_NUM_PROCESSES=1 for one alone"
        ) from error
    for name in SEVERAL:
        count = os.environ.get(name, "")
        if count.isdecimal() and int(count) > 1:
            raise ConfigError(
                f"{name} = {count}: several processes, but JAX cannot join them "
                f"({_first_line(error)}): set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
                "JAX_PROCESS_ID for each"
            ) from error


def _stop_by_interrupt() -> None:
    """Ctrl-C asks for what SIGTERM does: JAX hears that, and all processes stop together. A second
    one interrupts at once.
    """
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, ask)


def is_chief() -> bool:
    """Whether this process logs and writes files: number 0."""
    return jax.process_index() == 0


def together(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(mine: bool) -> bool:
    """Whether it is true in every process."""
    if jax.process_count() == 1:
        return mine
    return bool(np.all(multihost_utils.process_allgather(np.array(mine))))


def of_all_processes(mine: np.ndarray) -> np.ndarray:
    """The arrays of all processes, of equal shape and numbers of at most 32 bits, stacked."""
    if jax.process_count() == 1:
        return mine[None]
    return np.asarray(multihost_utils.process_allgather(mine))


def sum_over_processes(mine: np.ndarray) -> np.ndarray:
    """Element by element; unsigned numbers wrap around."""
    return np.sum(of_all_processes(mine), axis=0, dtype=mine.dtype)


def from_chief(numbers: list[int]) -> list[int]:
    """Process 0's list of non-negative numbers, in every process."""
    if jax.process_count() == 1:
        return numbers
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    row = np.resize(np.array(numbers or [0], np.int32), count)
    return [int(x) for x in multihost_utils.broadcast_one_to_all(row)]


def must_stop(step: int) -> bool:
    """Whether a signal came to any process and all have agreed to stop after this very step.

    For runs of several processes; every process asks after every step.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def _client() -> Any:
    # JAX gives no public name to the client that knows who lives.
    from jax._src import distributed

    return distributed.global_state.client


class _Watch(threading.Thread):
    """Ends this process when another one is gone, saying which: its step would wait for ever."""

    ending = threading.Event()
    begun = False

    def __init__(self) -> None:
        super().__init__(name="jaxfuse-watch", daemon=True)

    @classmethod
    def begin(cls) -> None:
        """Starts the one watch of this process, where there are others to watch."""
        if jax.process_count() > 1 and not cls.begun:
            cls.begun = True
            cls().start()

    def run(self) -> None:
        everyone = range(jax.process_count())
        while not self.ending.wait(1.0):
            try:
                # Returns when all that live have asked, or have been silent for the heartbeat time.
                alive = _client().get_live_nodes(list(everyone))
            except Exception:  # the coordinator does not answer; JAX itself may abort first
                if not self.ending.wait(0.2):
                    self._end_without([0], len(everyone))
                return
            gone = sorted(set(everyone) - set(alive))
            if gone and not self.ending.is_set():
                self._end_without(gone, len(everyone))

    @staticmethod
    def _end_without(gone: list[int], count: int) -> None:
        _end(
            PEER_GONE,
            f"process {', '.join(map(str, gone))} of {count} is gone: process "
            f"{jax.process_index()} stops too. Start all again: the run continues from its last "
            "checkpoint",
        )


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        # One write, so that lines of processes that share a terminal stay whole.
        os.write(sys.stderr.fileno(), f"jaxfuse: {text}\n".encode())


def _end(code: int, text: str) -> None:
    """Ends the process now: leaving in order would wait for processes that are gone."""
    _say(text)
    os._exit(code)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _part(how: str, seconds: int) -> bool:
    """Whether all processes get here within so many seconds, all for the same reason; then they
    leave in order.
    """
    try:
        _client().wait_at_barrier(f"jaxfuse parting: {how}", seconds * 1000)
    except Exception:  # too late, or somebody is gone
        return False
    _Watch.ending.set()
    with contextlib.suppress(RuntimeError):  # who is killed now has nothing left to lose
        jax.distributed.shutdown()
    return True


def leave() -> None:
    """Leaves the other processes in order: all of them call it when they are done."""
    if jax.process_count() > 1:
        _part("done", PARTING_SECONDS)


def _wait_for_the_watch() -> None:
    """An error may come of another process' end, which is known a little later: then the watch ends
    this one.
    """
    _Watch.ending.wait(_seconds("JAXFUSE_HEARTBEAT_SECONDS", HEARTBEAT_SECONDS) + 5)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes, and leaves with them.

    With one process it does nothing. With several, an error that all meet (a wrong setting, a
    request to stop) is raised in process 0 and ends the others with its exit code; an error of one
    process alone is printed with its number and ends it, whereupon the others end with
    `PEER_GONE`. An error that may come of another process' end waits for that to be known. A second
    Ctrl-C ends this process at once.
    """
    start()
    if jax.process_count() == 1:
        yield
        return
    mine, count = jax.process_index(), jax.process_count()
    try:
        yield
    except UserError as error:
        code = getattr(error, "exit_code", 2 if isinstance(error, ConfigError) else 1)
        # All have agreed to stop, and end what they have under way, each in its own time.
        asked = code == ASKED_TO_STOP
        same = "asked to stop" if asked else hashlib.sha256(f"{code} {error}".encode()).hexdigest()
        if not _part(same, PARTING_SECONDS if asked else FAILING_SECONDS):
            _say(f"process {mine} of {count}: {error}")
            if error.__cause__ is not None and not isinstance(error.__cause__, OSError):
                _wait_for_the_watch()
            os._exit(code)
        if mine:
            raise SystemExit(code) from error
        raise
    except KeyboardInterrupt:
        _end(1, f"process {mine} of {count}: interrupted")
    except OSError as error:  # of this process' own files
        name = f"{error.filename}: " if error.filename else ""
        _end(1, f"process {mine} of {count}: {name}{error.strerror or error}")
    except BaseException as error:
        # Collectives fail at once where a peer dies; the watch knows who a little later.
        told = f"{type(error).__name__}: {_first_line(error)}"
        _say(f"process {mine} of {count}: {told}: is another process gone?")
        said = traceback.format_exc()
        _wait_for_the_watch()
        _end(1, f"process {mine} of {count}: none is gone:\n{said}")
    if not _part("done", PARTING_SECONDS):
        _end(PEER_GONE, f"process {mine} of {count}: done, but not all others are")
