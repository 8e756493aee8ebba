"""What lies in launch/: processes really started and killed.

Nothing here imports jax in the processes it starts.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
TIMEOUT = 60.0

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


def test_output_passes_in_whole_lines_as_the_bytes_they_are(child: Any, tmp_path: Path) -> None:
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


def test_nothing_outlives_a_killed_launcher(child: Any, tmp_path: Path) -> None:
    program = child("(here / f'ready{number}').touch()", "time.sleep(600)")
    with local_running("-n", "2", "--", *program) as process:
        wait_for(lambda: all((tmp_path / f"ready{n}").exists() for n in (0, 1)))
        process.kill()
        process.wait(TIMEOUT)
    started = pids(tmp_path)
    assert len(started) == 2
    wait_for(lambda: not any(alive(pid) for pid in started))


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
