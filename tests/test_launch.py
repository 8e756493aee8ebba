"""What lies in launch/: processes really started and killed; clusters played by stand-ins on PATH.

Nothing here imports jax in the processes it starts.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
import yaml

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
TIMEOUT = 60.0
MOST_PACKAGED = 10_000_000
"""Bytes of packaged weights together, so that installing the package stays quick."""

# What a process of a run may do: announce itself in a file, then wait, or end as it is told.
CHILD = """
import os, pathlib, signal, sys, time
here, number = pathlib.Path(sys.argv[1]), os.environ["JAX_PROCESS_ID"]
attempt = len(list(here.glob(f"{number}.*")))
(here / f"new{number}").write_text(str(os.getpid()))
(here / f"new{number}").rename(here / f"{number}.{attempt}")
count = int(os.environ["JAX_NUM_PROCESSES"])
def others():
    return all((here / f"{n}.{attempt}").exists() for n in range(count))
while not others():
    time.sleep(0.005)
"""


@pytest.fixture
def child(tmp_path: Path) -> Any:
    """Writes a process's program: what all do once all run; returns the command."""

    def write(*lines: str) -> list[str]:
        path = tmp_path / "child.py"
        path.write_text(CHILD + "\n".join(textwrap.dedent(line) for line in lines))
        return [sys.executable, "-S", str(path), str(tmp_path)]

    return write


def local(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(LAUNCH / "local.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@contextlib.contextmanager
def local_running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH / "local.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(what: Any, seconds: float = TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie, dead and not yet reaped, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def pids(folder: Path, names: str = "[0-9].*") -> list[int]:
    found = [path for path in folder.iterdir() if fnmatch.fnmatch(path.name, names)]
    return [int(text) for text in (path.read_text() for path in found) if text]


def said(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("launch: ")]


# local.py: what processes get and give


def test_processes_find_each_other_in_their_environment(
    child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8")
    names = "JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID XLA_FLAGS"
    program = child(f"print(*(os.environ[name] for name in {names.split()}), sep=';')")
    result = local("-n", "3", "--devices-per-process", "2", "--", *program)
    assert result.returncode == 0, result.stderr
    lines = sorted(result.stdout.splitlines())
    address = lines[0].split(";")[0].removeprefix("[0] ")
    host, port = address.split(":")
    assert host == "127.0.0.1" and 0 < int(port) < 65536
    flags = "--a=1 --xla_force_host_platform_device_count=2"
    assert lines == [f"[{n}] {address};3;{n};{flags}" for n in range(3)]
    assert result.stderr == ""


def test_without_the_options_flags_stay_and_the_port_is_the_given(
    child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    program = child("print(os.environ['XLA_FLAGS'], os.environ['JAX_COORDINATOR_ADDRESS'])")
    result = local("-n", "1", "--port", "4321", "--", *program)
    assert result.stdout == "[0] --a=1 127.0.0.1:4321\n"


def test_output_passes_in_whole_lines_as_the_bytes_they_are(
    child: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Writes more than a pipe holds, which the end of the other process interrupts.
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    long = 300_000
    program = child(
        f"""
        out, error = sys.stdout.buffer, sys.stderr.buffer
        for _ in range(3):
            out.write(b"x" * {long} + number.encode() + b"\\n")
        out.write(b"bar 1\\rbar 2\\n\\n\\xff\\xfe\\n")
        error.write(b"no end")
        """
    )
    options = ["-n", "2", "--log-dir", str(tmp_path / "logs")]
    run = subprocess.run(
        [sys.executable, str(LAUNCH / "local.py"), *options, "--", *program],
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    lines = run.stdout.split(b"\n")
    for number in (b"0", b"1"):
        own = [line[4:] for line in lines if line.startswith(b"[" + number + b"] ")]
        assert own == [b"x" * long + number] * 3 + [b"bar 1\rbar 2", b"", b"\xff\xfe"]
        log = (tmp_path / "logs" / f"{number.decode()}.log").read_bytes()
        assert log.count(b"\n") == 6 and b"no end" in log
    assert len(lines) == 13 and lines[-1] == b""
    assert sorted(run.stderr.splitlines()) == [b"[0] no end", b"[1] no end"]


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ("0 0", 0),
        ("1 0", 1),
        ("0 2", 2),
        ("2 2", 2),
        ("75 75", 75),
        ("75 0", 75),
        ("70 1", 1),  # 70 only noticed that the other one failed
        ("75 1", 1),
        ("70 70", 70),
        ("0 9", 9),
    ],
)
def test_the_exit_status_says_how_the_run_ended(child: Any, ends: str, status: int) -> None:
    program = child(f"sys.exit({[int(end) for end in ends.split()]}[int(number)])")
    result = local("-n", "2", "--", *program)
    assert result.returncode == status, result.stderr
    if status:
        assert re.search(rf"first to fail: process [01] .*{status}", said(result)[-1])


def test_a_killed_process_is_named_and_the_others_end_by_themselves(child: Any) -> None:
    program = child(
        """
        if number == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        victim = int((here / "1.0").read_text())
        while os.path.exists(f"/proc/{victim}"):
            time.sleep(0.01)
        sys.exit(70)
        """
    )
    result = local("-n", "3", "--grace", "50", "--", *program)
    assert result.returncode == 137
    assert said(result) == [
        "launch: process 1 was killed by SIGKILL (137); the others have 50 s to end by themselves",
        "launch: first to fail: process 1 was killed by SIGKILL (137)",
    ]


def test_what_does_not_end_by_itself_is_killed_with_all_it_started(
    child: Any, tmp_path: Path
) -> None:
    program = child(
        """
        if number == "0":
            while not (here / "worker").exists() or not (here / "worker").read_text():
                time.sleep(0.01)
            sys.exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            (here / "worker").write_text(str(os.getpid()))
        time.sleep(600)
        """
    )
    began = time.monotonic()
    result = local("-n", "2", "--grace", "1", "--restarts", "5", "--", *program)
    assert time.monotonic() - began < 30
    assert result.returncode == 1
    assert said(result) == [
        "launch: process 0 ended with status 1; the others have 1 s to end by themselves",
        "launch: process 1 did not end by itself: killed",
        "launch: first to fail: process 0 ended with status 1",
    ]
    everybody = [*pids(tmp_path), *pids(tmp_path, "worker")]
    assert len(everybody) == 3
    assert not any(alive(pid) for pid in everybody)


@pytest.mark.parametrize("end", ["70", "75", "134", "137", "139", "143", "signal"])
def test_all_are_started_again_after_what_another_start_mends(child: Any, end: str) -> None:
    action = "os.kill(os.getpid(), 11)" if end == "signal" else f"sys.exit({end})"
    program = child(f"print('attempt', attempt)\nif attempt == 0 and number == '1': {action}")
    result = local("-n", "2", "--restarts", "2", "--", *program)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [
        f"[{number}] attempt {attempt}" for number in (0, 1) for attempt in (0, 1)
    ]
    assert said(result)[-1] == "launch: starting all again, 1 of 2"
    assert said(result)[-2].startswith("launch: first to fail: process 1 ")


@pytest.mark.parametrize("end", [1, 2, 3])
def test_what_another_start_does_not_mend_ends_the_run(child: Any, end: int) -> None:
    program = child(f"print('attempt', attempt)\nif number == '0': sys.exit({end})\nsys.exit(70)")
    result = local("-n", "2", "--restarts", "2", "--", *program)
    assert result.returncode == end
    assert "attempt 1" not in result.stdout


def test_restarts_are_counted(child: Any) -> None:
    result = local("-n", "2", "--restarts", "2", "--", *child("sys.exit(70)"))
    assert result.returncode == 70
    assert said(result)[-1] == "launch: not started again: --restarts 2 is used up"
    assert [line for line in said(result) if "starting" in line] == [
        "launch: starting all again, 1 of 2",
        "launch: starting all again, 2 of 2",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_stop_reaches_all_and_is_not_undone(
    child: Any, tmp_path: Path, number: signal.Signals
) -> None:
    program = child(
        """
        def stop(got, frame):
            print("saved", signal.Signals(got).name)
            sys.exit(75)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        (here / f"ready{number}").touch()
        while True:
            time.sleep(1)
        """
    )
    with local_running("-n", "2", "--restarts", "3", "--", *program) as process:
        wait_for(lambda: all((tmp_path / f"ready{n}").exists() for n in (0, 1)))
        process.send_signal(number)
        out, error = process.communicate(timeout=TIMEOUT)
    passed = "SIGINT" if number == signal.SIGINT else "SIGTERM"
    assert process.returncode == 75, error
    assert sorted(out.splitlines()) == [f"[{n}] saved {passed}" for n in (0, 1)]
    assert f"launch: {passed}: passed on to all processes" in error
    assert "starting all again" not in error


def test_who_ignores_a_request_to_stop_is_killed_and_named(child: Any, tmp_path: Path) -> None:
    program = child(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        if number == "1":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (here / f"ready{number}").touch()
        while True:
            time.sleep(1)
        """
    )
    with local_running("-n", "2", "--restarts", "3", "--grace", "1", "--", *program) as process:
        wait_for(lambda: all((tmp_path / f"ready{n}").exists() for n in (0, 1)))
        process.terminate()
        _, error = process.communicate(timeout=TIMEOUT)
    # 75 would say that everything is saved.
    assert process.returncode == 137
    assert error.splitlines() == [
        "launch: SIGTERM: passed on to all processes, which have 1 s to end",
        "launch: process 1 did not end by itself: killed",
        "launch: process 1 did not end in time, was killed and may not have saved (137)",
    ]


def test_nothing_outlives_a_killed_launcher(child: Any, tmp_path: Path) -> None:
    program = child(
        """
        if os.fork() == 0:
            (here / f"new-worker{number}").write_text(str(os.getpid()))
            (here / f"new-worker{number}").rename(here / f"worker{number}")
        time.sleep(600)
        """
    )
    with local_running("-n", "2", "--", *program) as process:
        wait_for(lambda: len(pids(tmp_path, "worker?")) == 2)
        children = [int(pid) for pid in children_of(process.pid)]
        process.kill()
        process.wait(TIMEOUT)
    started = [*pids(tmp_path), *pids(tmp_path, "worker?")]
    assert len(started) == 4
    wait_for(lambda: not any(alive(pid) for pid in started))
    # Nor does the watchdog.
    assert len(children) == 3
    wait_for(lambda: not any(alive(pid) for pid in children))


def test_the_run_goes_on_when_nobody_reads_its_output(child: Any, tmp_path: Path) -> None:
    program = child(
        """
        print("first", flush=True)
        while not (here / "closed").exists():
            time.sleep(0.01)
        for _ in range(3):
            print("lost", flush=True)
            time.sleep(0.05)
        (here / f"done{number}").touch()
        """
    )
    with local_running("-n", "2", "--", *program) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        (tmp_path / "closed").touch()
        error = process.stderr.read()
        assert process.wait(TIMEOUT) == 0, error
        process.stdout = None
    assert (tmp_path / "done0").exists() and (tmp_path / "done1").exists()
    lost = "launch: standard output: Broken pipe: the run goes on, this output is lost"
    assert error.splitlines() == [lost]


def test_the_run_goes_on_without_a_log_whose_disk_is_full(child: Any, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "0.log").symlink_to("/dev/full")
    program = child("for n in range(3): print(n, flush=True); time.sleep(0.02)")
    result = local("-n", "2", "--log-dir", str(logs), "--", *program)
    assert result.returncode == 0
    full = "No space left on device: the run goes on, this output is lost"
    assert said(result) == [f"launch: {logs / '0.log'}: {full}"]
    assert sorted(result.stdout.splitlines()) == [f"[{p}] {n}" for p in (0, 1) for n in range(3)]
    assert (logs / "1.log").read_text() == "0\n1\n2\n"


@pytest.mark.parametrize(
    ("kind", "why"), [("folder", "Is a directory"), ("nowhere", "No such file or directory")]
)
def test_a_log_that_cannot_be_opened_is_told(tmp_path: Path, kind: str, why: str) -> None:
    log = tmp_path / "1.log"
    if kind == "folder":
        log.mkdir()
    else:
        log.symlink_to(tmp_path / "no" / "1.log")
    result = local("-n", "2", "--log-dir", str(tmp_path), "--", "touch", str(tmp_path / "ran"))
    assert result.returncode == 2
    assert result.stderr == f"launch: --log-dir {log}: {why}: name a folder to write to\n"
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_no_program_is_told(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("jaxfuse train\n")
    path.chmod(0o755)
    result = local("-n", "2", "--", str(path))
    assert result.returncode == 2
    assert result.stderr.startswith(f"launch: {path}: cannot be started: Exec format error: ")
    assert "begins with #!" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("-n 2", "no command: give it after --"),
        ("-- true", "-n"),
        ("-n 0 -- true", "'0': give a whole number from 1"),
        ("-n 2 --restarts x -- true", "'x': give a whole number from 0"),
        ("-n 2 -- no-such-program", "no-such-program: cannot be started"),
        ("-n 2 --log-dir /dev/null/x -- true", "--log-dir /dev/null/x: "),
    ],
)
def test_bad_usage_is_told(arguments: str, says: str) -> None:
    result = local(*arguments.split())
    assert result.returncode == 2
    assert says in result.stderr and "Traceback" not in result.stderr


# Stand-ins for a cluster's programs

# Shell that notes its arguments in a file, ends of words and of calls by bytes of their own.
NOTE = r"""
printf '%s\037' "$@" >> {0}; printf '\036' >> {0}; calls=$(tr -cd '\036' < {0} | wc -c)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Any:
    """Puts a program of this name on PATH: it notes its arguments, then runs a piece of shell."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(name: str, then: str = "") -> Path:
        notes = tmp_path / f"{name}.calls"
        path = folder / name
        text = f"""#!/usr/bin/env bash
        {NOTE.format(shlex.quote(str(notes)))}
        """
        path.write_text(textwrap.dedent(text) + then)
        path.chmod(0o755)
        return notes

    return make


def calls(notes: Path) -> list[list[str]]:
    noted = notes.read_text().split("\x1e")[:-1] if notes.exists() else []
    return [call.split("\x1f")[:-1] for call in noted]


# slurm.sbatch


def slurm(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch"), *arguments],
        env=slurm_environment(tmp_path) | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def slurm_environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "41",
        "SLURM_NTASKS": "8",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "TMPDIR": str(tmp_path),
    }


def test_slurm_passes_the_arguments_on(tmp_path: Path, stand_in: Any) -> None:
    srun, scontrol = stand_in("srun", "echo out; echo error >&2"), stand_in("scontrol")
    result = slurm(tmp_path, "crossfuse", "--run", "/a b", "--data.target.root", "*")
    assert result.returncode == 0, result.stderr
    [call] = calls(srun)
    at = call.index("jaxfuse")
    words = ["crossfuse", "--run", "/a b", "--data.target.root", "*"]
    assert call[at:] == ["jaxfuse", "train", *words]
    assert {"--kill-on-bad-exit=0", "--wait=300"} <= set(call[:at])
    assert calls(scontrol) == []
    assert "out\n" in result.stdout and "error\n" in result.stderr
    assert not list(tmp_path.glob("tmp.*"))


@pytest.mark.parametrize(("given", "passed"), [({"SLURM_CPUS_PER_TASK": "8"}, "8"), ({}, "none")])
def test_slurm_hands_the_cores_of_a_task_on(
    tmp_path: Path, stand_in: Any, given: dict[str, str], passed: str
) -> None:
    stand_in("srun", 'echo "cores: ${SRUN_CPUS_PER_TASK:-none}"')
    result = slurm(tmp_path, "p", **given)
    assert result.stdout.splitlines()[-2:] == [f"cores: {passed}", "launch: done"]


def test_slurm_runs_an_environment_or_an_image(tmp_path: Path, stand_in: Any) -> None:
    srun = stand_in("srun")
    (tmp_path / "bin" / "jaxfuse").touch(0o755)
    assert slurm(tmp_path, "p", VENV=str(tmp_path)).returncode == 0
    assert slurm(tmp_path, "p", IMAGE="/i m.sif").returncode == 0
    first, second = calls(srun)
    assert first[-3:] == [str(tmp_path / "bin" / "jaxfuse"), "train", "p"]
    assert second[-7:] == ["apptainer", "exec", "--nv", "/i m.sif", "jaxfuse", "train", "p"]


@pytest.mark.parametrize("code", [70, 75, 134, 137, 139, 143])
def test_slurm_queues_the_job_again(tmp_path: Path, stand_in: Any, code: int) -> None:
    stand_in(
        "srun", f"echo 'srun: error: n1: task 1: Exited with exit code {code}' >&2; exit {code}"
    )
    scontrol = stand_in("scontrol")
    result = slurm(tmp_path, "p", SLURM_RESTART_COUNT="3", RESTARTS="4")
    assert result.returncode == code
    assert calls(scontrol) == [["requeue", "41"]]
    assert f"ended with {code}; queued again, 4 of 4" in result.stderr


@pytest.mark.parametrize(
    ("then", "code", "says"),
    [
        ("exit 1", 1, "another start does not mend that"),
        ("exit 2", 2, "another start does not mend that"),
        ("exit 126", 126, "another start does not mend that"),
        # The highest code of all is 70, and one process failed by itself.
        (
            "echo 'srun: error: n1: task 3: Exited with exit code 1' >&2; "
            "echo 'srun: error: n1: tasks 0-2: Exited with exit code 70' >&2; exit 70",
            1,
            "a process failed with 1 or 2",
        ),
    ],
)
def test_slurm_stops_where_another_start_does_not_mend(
    tmp_path: Path, stand_in: Any, then: str, code: int, says: str
) -> None:
    stand_in("srun", then)
    scontrol = stand_in("scontrol")
    result = slurm(tmp_path, "p")
    assert result.returncode == code
    assert says in result.stderr
    assert calls(scontrol) == []


def test_slurm_counts_restarts(tmp_path: Path, stand_in: Any) -> None:
    stand_in("srun", "exit 75")
    scontrol = stand_in("scontrol")
    result = slurm(tmp_path, "p", SLURM_RESTART_COUNT="20")
    assert result.returncode == 75
    assert "RESTARTS=20 is used up" in result.stderr
    assert calls(scontrol) == []


def test_slurm_leaves_a_job_that_was_cancelled(tmp_path: Path, stand_in: Any) -> None:
    ready = tmp_path / "ready"
    # As srun does it: a signal to the job's own script comes while its processes save.
    stand_in("srun", f"touch {ready}; while [ -e {ready} ]; do sleep 0.02; done; exit 75")
    scontrol = stand_in("scontrol")
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), "p"],
        env=slurm_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(ready.exists)
    process.terminate()
    ready.unlink()
    _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 75
    assert "Slurm ended the job" in error
    assert calls(scontrol) == []


def test_slurm_says_when_it_cannot_queue_the_job(tmp_path: Path, stand_in: Any) -> None:
    stand_in("srun", "exit 75")
    stand_in("scontrol", "exit 1")
    result = slurm(tmp_path, "p")
    assert result.returncode == 75
    assert "scontrol requeue failed; submit the job again" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        ([], {}, "no arguments"),
        (["p"], {"RESTARTS": "many"}, "RESTARTS=many"),
        (["p"], {"GRACE": "-1"}, "GRACE=-1"),
        (["p"], {"GRACE": "0"}, "GRACE=0: give at least 1"),
        (["p"], {"VENV": "/nowhere"}, "VENV=/nowhere: has no bin/jaxfuse"),
    ],
)
def test_slurm_bad_usage_is_told(
    tmp_path: Path, stand_in: Any, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    srun = stand_in("srun")
    result = slurm(tmp_path, *arguments, **environment)
    assert result.returncode == 2
    assert says in result.stderr
    assert calls(srun) == []


def test_slurm_options_are_what_the_script_relies_on() -> None:
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    # Without "B:": to the processes. Appended: the log of a job that is queued again is one.
    assert {"--signal=TERM@180", "--requeue", "--open-mode=append"} <= set(options)
    # sbatch stops reading options at the first command.
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


# tpu-vm.sh

TPU = {"NAME": "fuse", "ZONE": "z-a", "BUCKET": "runs", "POLL": "0"}
NOT_FOUND = "echo 'ERROR: (gcloud.describe) NOT_FOUND: Resource x was not found' >&2; exit 1"


def tpu(
    tmp_path: Path, *arguments: str, without: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    merged = {"PATH": path, "TMPDIR": str(tmp_path)} | TPU | environment
    merged.pop(without, None)
    return subprocess.run(
        ["bash", str(LAUNCH / "tpu-vm.sh"), *arguments],
        env=merged,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def verbs(notes: Path) -> list[str]:
    """The calls of gcloud by their last verb, looks at the state left out."""
    found = [call[3] for call in calls(notes)]
    return [verb for verb in found if verb != "describe"]


def test_tpu_dry_run_prints_every_command_and_runs_none(tmp_path: Path, stand_in: Any) -> None:
    gcloud = stand_in("gcloud", "exit 99")
    # `launch/tpu-vm.sh` prints words as bash quotes them, which shlex cannot read ($'...').
    printed = {
        action[0]: tpu(tmp_path, "--dry-run", *action, PROJECT="p 1")
        for action in (
            ["create"],
            ["install"],
            ["train", "crossfuse"],
            ["stop"],
            ["fetch", "a b"],
            ["delete"],
        )
    }
    assert calls(gcloud) == []
    assert [result.returncode for result in printed.values()] == [0] * 6
    for result in printed.values():
        lines = [line for line in result.stdout.splitlines() if line.startswith("gcloud")]
        assert lines and all("--zone z-a --project p\\ 1 " in line for line in lines)
    create = printed["create"].stdout
    assert "--node-id fuse --accelerator-type v5litepod-16" in create and "--spot" in create
    assert "git -C" in printed["install"].stdout and ".[tpu]" in printed["install"].stdout
    assert "jaxfuse train crossfuse" in printed["train"].stdout
    assert printed["fetch"].stdout.startswith("gcloud compute tpus tpu-vm scp fuse:/mnt/shared/")
    assert "--force --quiet" in printed["delete"].stdout


def test_tpu_create_waits_for_the_slice(tmp_path: Path, stand_in: Any) -> None:
    gcloud = stand_in(
        "gcloud",
        'if [ "$4" = describe ]; then [ "$calls" -lt 4 ] && echo PROVISIONING || echo ACTIVE; fi',
    )
    result = tpu(tmp_path, "create", SPOT="0")
    assert result.returncode == 0
    assert [call[3] for call in calls(gcloud)] == ["create"] + ["describe"] * 3
    assert "--spot" not in calls(gcloud)[0]
    assert result.stderr.count("fuse is PROVISIONING; waiting") == 2


def test_tpu_create_stops_where_the_slice_will_not_come(tmp_path: Path, stand_in: Any) -> None:
    stand_in("gcloud", 'if [ "$4" = describe ]; then echo FAILED; fi')
    result = tpu(tmp_path, "create")
    assert result.returncode == 1
    assert "the request for v5litepod-16 in z-a is FAILED" in result.stderr


def test_tpu_create_tells_why_the_state_cannot_be_read(tmp_path: Path, stand_in: Any) -> None:
    gcloud = stand_in(
        "gcloud", 'if [ "$4" = describe ]; then echo "ERROR: please log in" >&2; exit 1; fi'
    )
    result = tpu(tmp_path, "create")
    assert result.returncode == 1
    assert "fuse: its state cannot be read: ERROR: please log in" in result.stderr
    assert [call[3] for call in calls(gcloud)] == ["create"] + ["describe"] * 10


def test_tpu_create_stops_where_the_request_was_deleted(tmp_path: Path, stand_in: Any) -> None:
    stand_in("gcloud", f'if [ "$4" = describe ]; then {NOT_FOUND}; fi')
    result = tpu(tmp_path, "create")
    assert result.returncode == 1
    assert "the request for v5litepod-16 in z-a was deleted" in result.stderr


# Ctrl-C ends gcloud and not what runs on the hosts, which belongs to another session.
REMOTE = """
if [ "$4" = ssh ]; then
  script=${!##--command=}
  cd "$HOSTS_FOLDER" && PATH=$HOSTS_FOLDER/bin:$PATH setsid bash -c "$script" &
  wait $!
  exit
fi
[ "$4" != describe ] || echo "${STATE:-ACTIVE}"
"""


@pytest.fixture
def host(tmp_path: Path) -> Any:
    """A folder that plays the one host of a slice, with a jaxfuse that does as it is told."""
    folder = tmp_path / "host"
    for part in ("bin", "venv/bin"):
        (folder / part).mkdir(parents=True)
    for name in ("mountpoint", "mkdir", "sudo", "gcsfuse"):
        (folder / "bin" / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / "bin" / name).chmod(0o755)

    def make(then: str) -> Path:
        notes = folder / "jaxfuse.calls"
        program = folder / "venv" / "bin" / "jaxfuse"
        note = NOTE.format(shlex.quote(str(notes)))
        program.write_text(f"#!/usr/bin/env bash\n{note}\n{then}\n")
        program.chmod(0o755)
        return notes

    return make


def test_tpu_train_gives_the_arguments_to_the_hosts(
    tmp_path: Path, stand_in: Any, host: Any
) -> None:
    stand_in("gcloud", REMOTE)
    jaxfuse = host("exit 0")
    words = ["crossfuse", "--data.target.root", "/a b'c\"$HOME*"]
    result = tpu(tmp_path, "train", *words, HOSTS_FOLDER=str(tmp_path / "host"))
    assert result.returncode == 0, result.stderr
    assert calls(jaxfuse) == [["train", *words, "--run", "/mnt/shared/runs/fuse"]]
    assert re.search(r"^launch: \S+ ended with 0$", result.stdout, re.M)


@pytest.mark.parametrize("code", [70, 75, 137])
def test_tpu_train_starts_again_on_a_slice_that_is_there(
    tmp_path: Path, stand_in: Any, host: Any, code: int
) -> None:
    gcloud = stand_in("gcloud", REMOTE)
    jaxfuse = host(f'[ "$calls" -ge 3 ] || exit {code}')
    result = tpu(tmp_path, "train", "p", HOSTS_FOLDER=str(tmp_path / "host"))
    assert result.returncode == 0, result.stderr
    assert len(calls(jaxfuse)) == 3
    assert verbs(gcloud) == ["ssh"] * 3
    assert f"ended with {code}, the slice is ACTIVE; start 2 of 20" in result.stderr


def test_tpu_train_gets_a_new_slice_for_one_that_was_taken(
    tmp_path: Path, stand_in: Any, host: Any
) -> None:
    state = tmp_path / "state"
    state.write_text("ACTIVE")
    # The first training ends with the connection; then the slice goes, in two steps.
    gcloud = stand_in(
        "gcloud",
        f"""
        case $4 in
          describe) cat {state}; [ "$(cat {state})" != SUSPENDING ] || echo SUSPENDED > {state} ;;
          create) echo ACTIVE > {state} ;;
          ssh) case ${{!#}} in *'jaxfuse train'*)
            [ -e {state}.lost ] || {{ touch {state}.lost; echo SUSPENDING > {state}; exit 255; }} ;;
          esac ;;
        esac
        """,
    )
    stand_in("git")
    result = tpu(tmp_path, "train", "p")
    assert result.returncode == 0, result.stderr
    assert verbs(gcloud) == ["ssh", "delete", "create", "scp", "ssh", "ssh"]
    assert "the slice is SUSPENDED; start 1 of 20" in result.stderr


@pytest.mark.parametrize("code", [1, 2, 255])
def test_tpu_train_starts_again_where_gcloud_itself_failed(
    tmp_path: Path, stand_in: Any, code: int
) -> None:
    # 1 is what gcloud gives for a slice that was taken, too.
    error = f"echo 'ERROR: This TPU has terminal state \"PREEMPTED\"' >&2; exit {code}"
    gcloud = stand_in(
        "gcloud",
        f'if [ "$4" = ssh ]; then [ "$calls" -gt 2 ] || {{ {error}; }}; else echo ACTIVE; fi',
    )
    result = tpu(tmp_path, "train", "p")
    assert result.returncode == 0, result.stderr
    assert verbs(gcloud) == ["ssh"] * 2
    assert f"ended with {code}, the slice is ACTIVE; start 1 of 20" in result.stderr


def test_tpu_train_asks_again_for_a_slice_that_is_gone(tmp_path: Path, stand_in: Any) -> None:
    gone = tmp_path / "gone"
    gcloud = stand_in(
        "gcloud",
        f"""
        case $4 in
          describe) if [ -e {gone} ]; then {NOT_FOUND}; else echo ACTIVE; fi ;;
          create) rm {gone} ;;
          ssh) [ "$calls" -gt 2 ] || {{ touch {gone}; exit 1; }} ;;
        esac
        """,
    )
    stand_in("git")
    result = tpu(tmp_path, "train", "p")
    assert result.returncode == 0, result.stderr
    assert verbs(gcloud) == ["ssh", "create", "scp", "ssh", "ssh"]
    assert "the slice is GONE; start 1 of 20" in result.stderr


def test_tpu_train_takes_a_failed_look_for_no_answer(tmp_path: Path, stand_in: Any) -> None:
    gcloud = stand_in(
        "gcloud",
        """
        case $4 in
          describe) case $calls in 3 | 4 | 5) echo "ERROR: 503" >&2; exit 1 ;; esac; echo ACTIVE ;;
          ssh) [ "$calls" -gt 2 ] || exit 255 ;;
        esac
        """,
    )
    result = tpu(tmp_path, "train", "p")
    assert result.returncode == 0, result.stderr
    looks = ["describe"] * 4
    assert [call[3] for call in calls(gcloud)] == ["describe", "ssh", *looks, "ssh"]


def test_tpu_train_tells_why_it_cannot_look(tmp_path: Path, stand_in: Any) -> None:
    error = 'echo "ERROR: please log in" >&2; exit 1'
    gcloud = stand_in("gcloud", f'if [ "$calls" = 1 ]; then echo ACTIVE; else {error}; fi')
    result = tpu(tmp_path, "train", "p")
    assert result.returncode == 1
    assert "fuse: its state cannot be read: ERROR: please log in" in result.stderr
    assert verbs(gcloud) == ["ssh"]


def test_tpu_train_installs_again_where_a_new_slice_went_meanwhile(
    tmp_path: Path, stand_in: Any
) -> None:
    state = tmp_path / "state"
    state.write_text("ACTIVE")
    gcloud = stand_in(
        "gcloud",
        f"""
        case $4 in
          describe) cat {state} ;;
          create) echo ACTIVE > {state} ;;
          scp) [ -e {state}.scp ] || {{ touch {state}.scp; exit 1; }} ;;
          ssh) [ "$calls" -gt 2 ] || {{ echo SUSPENDED > {state}; exit 1; }} ;;
        esac
        """,
    )
    stand_in("git")
    result = tpu(tmp_path, "train", "p")
    assert result.returncode == 0, result.stderr
    assert verbs(gcloud) == ["ssh", "delete", "create", "scp", "scp", "ssh", "ssh"]
    assert "start 2 of 20" in result.stderr


def test_tpu_train_asks_for_no_slice_of_its_own(tmp_path: Path, stand_in: Any) -> None:
    gcloud = stand_in("gcloud", NOT_FOUND)
    result = tpu(tmp_path, "train", "p")
    assert result.returncode == 2
    assert "fuse: no such slice in z-a: create and install it first" in result.stderr
    assert verbs(gcloud) == []


def test_tpu_train_waits_for_a_slice_that_was_asked_for(tmp_path: Path, stand_in: Any) -> None:
    gcloud = stand_in(
        "gcloud",
        """
        if [ "$4" = describe ]; then
          if [ "$calls" -lt 4 ]; then echo PROVISIONING; else echo ACTIVE; fi
        fi
        """,
    )
    stand_in("git")
    result = tpu(tmp_path, "train", "p")
    assert result.returncode == 0, result.stderr
    assert verbs(gcloud) == ["scp", "ssh", "ssh"]


def test_tpu_train_stops_where_storage_cannot_be_mounted(
    tmp_path: Path, stand_in: Any, host: Any
) -> None:
    gcloud = stand_in("gcloud", REMOTE)
    jaxfuse = host("exit 0")
    for name in ("mountpoint", "gcsfuse"):
        (tmp_path / "host" / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
    result = tpu(tmp_path, "train", "p", HOSTS_FOLDER=str(tmp_path / "host"))
    assert result.returncode == 1
    assert verbs(gcloud) == ["ssh"] and calls(jaxfuse) == []
    assert "/mnt/shared cannot be mounted: see BUCKET and MOUNT" in result.stdout
    assert "which another start does not mend" in result.stderr


def test_tpu_train_says_that_gcsfuse_is_missing(tmp_path: Path, stand_in: Any, host: Any) -> None:
    stand_in("gcloud", REMOTE)
    host("exit 0")
    (tmp_path / "host" / "bin" / "mountpoint").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "host" / "bin" / "gcsfuse").unlink()
    result = tpu(tmp_path, "train", "p", HOSTS_FOLDER=str(tmp_path / "host"))
    assert result.returncode == 1
    assert "gcsfuse is not installed: install it on the hosts, or set MOUNT" in result.stdout


# A process that saves when it is asked to stop; it ends by itself should a test fail.
SAVES = """
trap 'sleep 0.2; touch saved; exit 75' TERM
touch ready
for _ in {1..3000}; do sleep 0.02; done
"""


@contextlib.contextmanager
def tpu_training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    folder = tmp_path / "host"
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "tpu-vm.sh"), "train", "p"],
        env={
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(tmp_path),
            "HOSTS_FOLDER": str(folder),
            **TPU,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for((folder / "ready").exists)
        yield process
    finally:
        for pid in pids(folder, "jaxfuse.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_tpu_stop_has_the_hosts_save_and_ends_train(
    tmp_path: Path, stand_in: Any, host: Any
) -> None:
    stand_in("gcloud", REMOTE)
    jaxfuse = host(SAVES)
    with tpu_training(tmp_path) as training:
        stopped = tpu(tmp_path, "stop", HOSTS_FOLDER=str(tmp_path / "host"))
        assert stopped.returncode == 0, stopped.stderr
        assert (tmp_path / "host" / "saved").exists()
        assert re.search(r"^launch: \S+: stopped$", stopped.stdout, re.M)
        _, error = training.communicate(timeout=TIMEOUT)
    # Without an end of its own it would start again after 75.
    assert training.returncode == 75
    assert "fuse: stopped; train continues" in error
    assert len(calls(jaxfuse)) == 1
    host("exit 0")
    again = tpu(tmp_path, "train", "p", HOSTS_FOLDER=str(tmp_path / "host"))
    assert again.returncode == 0, again.stderr
    assert len(calls(jaxfuse)) == 2


def test_tpu_stop_says_where_nothing_runs(tmp_path: Path, stand_in: Any, host: Any) -> None:
    stand_in("gcloud", REMOTE)
    host("exit 0")
    result = tpu(tmp_path, "stop", HOSTS_FOLDER=str(tmp_path / "host"))
    assert result.returncode == 0
    assert re.search(r"^launch: \S+: nothing runs$", result.stdout, re.M)


def test_tpu_train_has_the_hosts_save_when_it_is_interrupted(
    tmp_path: Path, stand_in: Any, host: Any
) -> None:
    gcloud = stand_in("gcloud", REMOTE)
    jaxfuse = host(SAVES)
    with tpu_training(tmp_path) as training:
        os.killpg(training.pid, signal.SIGINT)
        _, error = training.communicate(timeout=TIMEOUT)
        assert (tmp_path / "host" / "saved").exists()
    assert training.returncode == 75
    assert "asking them to save and stop" in error
    assert "fuse: stopped; train continues" in error
    assert verbs(gcloud) == ["ssh"] * 2 and len(calls(jaxfuse)) == 1


def test_tpu_train_stops_where_any_host_failed(tmp_path: Path, stand_in: Any) -> None:
    # gcloud gives the code of the first host, which only noticed that the second failed.
    ended = "echo 'launch: h0 ended with 70'; echo 'launch: h1 ended with 2'; exit 70"
    gcloud = stand_in("gcloud", f'if [ "$4" = ssh ]; then {ended}; else echo ACTIVE; fi')
    result = tpu(tmp_path, "train", "p")
    assert result.returncode == 1
    assert verbs(gcloud) == ["ssh"]
    assert "fuse: failed, which another start does not mend" in result.stderr


def test_tpu_train_counts_starts(tmp_path: Path, stand_in: Any) -> None:
    gcloud = stand_in("gcloud", 'if [ "$4" = ssh ]; then exit 75; else echo ACTIVE; fi')
    result = tpu(tmp_path, "train", "p", RESTARTS="2")
    assert result.returncode == 75
    assert verbs(gcloud) == ["ssh"] * 3
    assert "RESTARTS=2 is used up" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "without", "says"),
    [
        ("", "", "--dry-run prints the commands"),
        ("grow", "", "--dry-run prints the commands"),
        ("train", "", "--dry-run prints the commands"),
        ("create now", "", "--dry-run prints the commands"),
        ("create", "NAME", "NAME: name the slice"),
        ("create", "ZONE", "ZONE: name the zone"),
        ("install", "BUCKET", "BUCKET: name the bucket"),
    ],
)
def test_tpu_bad_usage_is_told(
    tmp_path: Path, stand_in: Any, arguments: str, without: str, says: str
) -> None:
    gcloud = stand_in("gcloud")
    result = tpu(tmp_path, *arguments.split(), without=without)
    assert result.returncode == 2
    assert says in result.stderr
    assert calls(gcloud) == []


# gke-jobset.yaml

GKE = {
    "NAME": "fuse-1",
    "IMAGE": "host/jaxfuse:1",
    "CLAIM": "shared",
    "ARGUMENTS": "crossfuse --data.target.root /shared/a --train.batch-size 64",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "HOSTS": "4",
    "CHIPS": "4",
    "RESTARTS": "7",
    "GRACE": "300",
}


def rendered(**values: str) -> dict[str, Any]:
    text = (LAUNCH / "gke-jobset.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda match: (GKE | values)[match[1]], text))


@pytest.fixture(scope="module")
def jobset() -> dict[str, Any]:
    return rendered()


@pytest.fixture(scope="module")
def schema() -> Any:
    """Raises `fastjsonschema.JsonSchemaValueException` for what is no JobSet."""
    text = (Path(__file__).parent / "golden" / "jobset.schema.json").read_text()
    return fastjsonschema.compile(json.loads(text))


def test_the_jobset_fits_its_schema(jobset: dict[str, Any], schema: Any) -> None:
    assert schema(jobset) == jobset


def test_names_of_digits_stay_strings(schema: Any) -> None:
    found = rendered(NAME="7", IMAGE="8", CLAIM="9", TOPOLOGY="10", ACCELERATOR="11")
    assert schema(found) == found
    assert found["metadata"]["name"] == "7"


def assert_refused(
    schema: Any, jobset: dict[str, Any], field: str, change: Callable[[Any, Any], None]
) -> None:
    """change: is given what holds the field, in a copy, and the field's name or place there."""
    wrong = copy.deepcopy(jobset)
    change(*at(wrong, field))
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        schema(wrong)


JOB = "spec.replicatedJobs.0.template.spec"
POD = f"{JOB}.template.spec"
CONTAINER = f"{POD}.containers.0"


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("spec.network.enableDNSHostnames", "enableDnsHostnames"),
        ("spec.network.publishNotReadyAddresses", "publishNotReadyAddress"),
        ("spec.failurePolicy.rules.0.onJobFailureMessagePatterns", "onJobFailureMessages"),
        (f"{JOB}.podFailurePolicy.rules.0.onExitCodes", "onExitCode"),
        (f"{POD}.shareProcessNamespace", "shareProcessNamespaces"),
        (f"{POD}.terminationGracePeriodSeconds", "terminationGraceSeconds"),
        (f"{POD}.securityContext.fsGroupChangePolicy", "fsGroupChangepolicy"),
        (f"{CONTAINER}.volumeMounts.0.mountPath", "path"),
        (f"{POD}.volumes.0.persistentVolumeClaim.claimName", "name"),
    ],
)
def test_the_schema_refuses_a_misspelt_field(
    jobset: dict[str, Any], schema: Any, field: str, other: str
) -> None:
    def misspell(parent: Any, name: Any) -> None:
        parent[other] = parent.pop(name)

    assert_refused(schema, jobset, field, misspell)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("apiVersion", "jobset.x-k8s.io/v1alpha1"),
        ("metadata.name", "Fuse_1"),
        ("metadata.name", 7),
        ("spec.failurePolicy.maxRestarts", "7"),
        ("spec.failurePolicy.rules.0.action", "RestartJobset"),
        ("spec.network.enableDNSHostnames", "true"),
        (f"{JOB}.completions", "4"),
        (f"{JOB}.backoffLimit", -1),
        (f"{JOB}.completionMode", "indexed"),
        (f"{JOB}.podFailurePolicy.rules.0.onExitCodes.values.0", "1"),
        (f"{JOB}.podFailurePolicy.rules.2.onPodConditions.0.status", True),
        (f"{POD}.restartPolicy", "Always"),
        (f"{POD}.terminationGracePeriodSeconds", "300"),
        (f"{POD}.securityContext.runAsUser", "jaxfuse"),
        (f"{CONTAINER}.env.1.value", 7),
        (f"{CONTAINER}.ports.0.containerPort", "8471"),
        (f"{CONTAINER}.resources.limits.google~com/tpu", "four"),
    ],
)
def test_the_schema_refuses_a_wrong_value(
    jobset: dict[str, Any], schema: Any, field: str, value: Any
) -> None:
    def change(parent: Any, name: Any) -> None:
        assert parent[name] != value
        parent[name] = value

    assert_refused(schema, jobset, field, change)


def at(tree: Any, path: str) -> tuple[Any, Any]:
    """What holds the field of this path, and its key there; a tilde stands for a dot in a key."""
    *parents, last = path.split(".")
    for part in parents:
        tree = tree[int(part) if isinstance(tree, list) else part]
    return tree, int(last) if isinstance(tree, list) else last.replace("~", ".")


def test_every_placeholder_of_the_jobset_is_documented() -> None:
    text = (LAUNCH / "gke-jobset.yaml").read_text()
    placeholders = set(re.findall(r"\$\{(\w+)\}", text))
    assert placeholders == set(GKE)
    section = (LAUNCH / "README.md").read_text().split("\n## GKE\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == placeholders
    command = section.split("```")[1]
    [filled] = re.findall(r"envsubst '([^']*)'", command)
    assert {name.lstrip("$") for name in filled.split()} == placeholders
    assert set(re.findall(r"\$\{(\w+):\?\}", command)) == placeholders
    assert set(re.findall(r"\b([A-Z]+)=", command)) - {"EXTRAS"} == placeholders


def test_the_jobset_is_one_job_with_a_pod_for_each_host(jobset: dict[str, Any]) -> None:
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "fuse-1"
    [replicated] = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    job = replicated["template"]["spec"]
    # Indexed: TPU hosts get their numbers by it. No retries of single pods.
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 300
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    [container] = pod["containers"]
    assert container["image"] == "host/jaxfuse:1"
    chips = {"google.com/tpu": 4}
    assert container["resources"] == {"requests": chips, "limits": chips}
    assert {port["containerPort"] for port in container["ports"]} == {8471, 8482}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts["shared"] == "/shared"
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}
    image_user = re.search(r"^USER (\d+)$", (LAUNCH / "Dockerfile").read_text(), re.M)
    assert image_user and pod["securityContext"]["runAsUser"] == int(image_user[1])


def test_the_jobset_starts_again_what_another_start_mends(jobset: dict[str, Any]) -> None:
    """Plays Kubernetes: a pod's exit code to the Job's message to the JobSet's action."""
    policy = jobset["spec"]["failurePolicy"]
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    names = [rule["name"] for rule in policy["rules"]]
    assert len(set(names)) == len(names)
    assert policy["maxRestarts"] == 7

    def action(code: int, disrupted: bool = False) -> str:
        reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
            codes = rule.get("onExitCodes")
            if codes:
                assert codes["containerName"] == container["name"] and codes["operator"] == "In"
                fits = code in codes["values"]
                says = f"Container train for pod a/b failed with exit code {code} matching"
            else:
                [condition] = rule["onPodConditions"]
                assert condition == {"type": "DisruptionTarget", "status": "True"}
                fits, says = disrupted, "Pod a/b has condition DisruptionTarget matching"
            if fits:
                reason = "PodFailurePolicy"
                message = f"{says} {rule['action']} rule at index {index}"
                break
        for rule in policy["rules"]:
            reasons = rule.get("onJobFailureReasons") or [reason]
            patterns = rule.get("onJobFailureMessagePatterns") or [""]
            if reason in reasons and any(re.search(pattern, message) for pattern in patterns):
                return rule["action"]
        return "RestartJobSet"

    assert {code: action(code) for code in (1, 2)} == dict.fromkeys((1, 2), "FailJobSet")
    assert action(75) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action(137, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    for code in (70, 134, 137, 139, 143):
        assert action(code) == "RestartJobSet"


def test_the_pod_runs_train_with_its_words(
    jobset: dict[str, Any], tmp_path: Path, stand_in: Any
) -> None:
    jaxfuse = stand_in("jaxfuse")
    [replicated] = jobset["spec"]["replicatedJobs"]
    [container] = replicated["template"]["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(container["command"] + container["args"], env=environment, check=True)
    [call] = calls(jaxfuse)
    assert call == ["train", *GKE["ARGUMENTS"].split(), "--run", "/shared/runs/fuse-1"]


# Dockerfile


def instructions() -> list[tuple[str, str]]:
    text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def copied() -> list[str]:
    return [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    found = instructions()
    bases = [rest.split()[0] for word, rest in found if word == "FROM"]
    assert bases == ["python:${PYTHON_VERSION}-slim"] * 2
    assert ("ARG", "PYTHON_VERSION=3.12") in found and ("ARG", 'EXTRAS=""') in found
    last = len(found) - 1 - [word for word, _ in reversed(found)].index("FROM")
    final = dict(found[last:])
    assert final["USER"].isdecimal() and int(final["USER"]) > 0
    assert final["ENTRYPOINT"] == '["jaxfuse"]'
    [install] = [rest for word, rest in found if "pip install" in rest]
    assert "-c constraints.txt" in install


def test_the_image_gets_what_the_package_is_built_of_and_no_more(
    repo: Path, tmp_path: Path
) -> None:
    ignored = (repo / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())
    skip = shutil.ignore_patterns("__pycache__")
    for name in copied():
        if (repo / name).is_dir():
            shutil.copytree(repo / name, tmp_path / name, ignore=skip)
        else:
            shutil.copy(repo / name, tmp_path / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=tmp_path,
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    [wheel] = (tmp_path / "dist").glob("jaxfuse-*.whl")
    check_packaged_weights(wheel)


def check_packaged_weights(wheel: Path) -> None:
    """A wheel holds the weights, whole, with their checksums, and they are small."""
    with zipfile.ZipFile(wheel) as archive:
        folder = "jaxfuse/pretrained/"
        sums = archive.read(f"{folder}SHA256SUMS").decode("ascii")
        names = [name for name in archive.namelist() if name.startswith(folder)]
        found = {
            Path(name).name: archive.read(name) for name in names if name.endswith(".safetensors")
        }
    stated = {name: digest for digest, name in (line.split() for line in sums.splitlines())}
    assert stated == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
    assert {"lite.safetensors", "crossfuse.safetensors"} <= found.keys()
    assert sum(len(data) for data in found.values()) < MOST_PACKAGED


# All of it


def tool(name: str) -> str:
    """A linter of the extra `dev`, beside this Python or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"no {name}: it comes with the extra dev where there is a wheel of it")
    return found


def lint(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return run.stdout + run.stderr if run.returncode else ""


@pytest.mark.parametrize("script", ["launch/slurm.sbatch", "launch/tpu-vm.sh"])
def test_shell_scripts_pass_shellcheck(repo: Path, script: str) -> None:
    assert lint("bash", "-n", str(repo / script)) == ""
    assert lint(tool("shellcheck"), "--severity=style", str(repo / script)) == ""


def test_the_dockerfile_passes_hadolint() -> None:
    assert lint(tool("hadolint"), str(LAUNCH / "Dockerfile")) == ""


def test_every_file_is_in_the_readme_and_within_the_columns() -> None:
    readme = (LAUNCH / "README.md").read_text()
    files = {path.name for path in LAUNCH.iterdir() if path.is_file()} - {"README.md"}
    assert files == {"local.py", "slurm.sbatch", "gke-jobset.yaml", "tpu-vm.sh", "Dockerfile"}
    for name in files:
        assert f"`{name}`" in readme
        lines = (LAUNCH / name).read_text().splitlines()
        assert [line for line in lines if len(line) > 100] == []
    for name in ("local.py", "tpu-vm.sh"):
        assert os.access(LAUNCH / name, os.X_OK)


def test_variables_of_the_scripts_are_in_the_readme() -> None:
    readme = (LAUNCH / "README.md").read_text()
    section = readme.split("\n## Slurm\n")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `([A-Z]+)` \|", section, re.M))
    header = (LAUNCH / "slurm.sbatch").read_text().split("#SBATCH")[0]
    assert documented == set(re.findall(r"^#   ([A-Z]+)  ", header, re.M))
    script = (LAUNCH / "tpu-vm.sh").read_text()
    head, body = script.split("set -euo pipefail", 1)
    listed = set(re.findall(r"^#   ([A-Z]+)  ", head, re.M))
    assert listed == set(re.findall(r"\$\{([A-Z]+):-", body))
