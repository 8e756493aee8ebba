"""How long it takes until something happens: Python alone, `import jaxfuse`, `jaxfuse --help`, and
one picture fused by the command line, its programs compiled before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, record
from bench.record import Run
from bench.sides import Side, Work

IMPORT, HELP = 0.1, 0.4
"""Seconds to reach; of the first, those of Python alone are taken off."""


LAUNCHER = """
import os, sys
null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
away = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
for line in sys.stdin:
    child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[null, away])
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    print(code, used.ru_utime + used.ru_stime, used.ru_maxrss, flush=True)
"""
"""Runs its arguments once for every line it gets, and says exit code, processor seconds and peak.

The peak of a process begins with what the one that started it held, so a small one starts them.
"""


def process(options: dict[str, Any]) -> Work:
    """A Python process, to its end; processor seconds and memory are its own."""
    path = os.pathsep.join(p for p in (str(machine.ROOT), os.environ.get("PYTHONPATH", "")) if p)
    environment = {**os.environ, "PYTHONPATH": path}
    words = list(options["words"])
    if options["fuses"]:
        import cv2

        folder = tempfile.TemporaryDirectory()
        pictures = np.random.default_rng(0).integers(0, 256, (2, 480, 640), np.uint8)
        for name, picture in zip(("ir", "vi"), pictures, strict=True):
            path = str(Path(folder.name) / f"{name}.png")
            cv2.imwrite(path, picture)
            words += [f"--{name}", path]
        words += ["--out", str(Path(folder.name) / "out.png"), "--overwrite"]
        environment["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder.name) / "compiled")
        keep.append(folder)

    launcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LAUNCHER, sys.executable, *words],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    busy, peak = 0.0, 0

    def run() -> None:
        nonlocal busy, peak
        assert launcher.stdin is not None and launcher.stdout is not None
        launcher.stdin.write("run\n")
        launcher.stdin.flush()
        code, seconds, largest = launcher.stdout.readline().split()
        if int(code):
            raise subprocess.CalledProcessError(int(code), words)
        busy += float(seconds)
        peak = max(peak, int(largest) * (1 if sys.platform == "darwin" else 1024))

    def finish() -> dict[str, Any]:
        launcher.communicate()
        return {}

    return Work(run, finish=finish, usage=lambda: (busy, peak))


keep: list[Any] = []
"""Folders that go with the process."""


def measure(run: Run, rates: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    def side(name: str, *words: str, fuses: bool = False) -> Side:
        return Side(name, "bench.start:process", {"words": words, "fuses": fuses})

    sides = [
        side("python", "-c", "pass"),
        side("import", "-c", "import jaxfuse"),
        side("help", "-m", "jaxfuse", "--help"),
        side("fuse", "-m", "jaxfuse", "fuse", fuses=True),
    ]
    result = record.measure(run, "start", "seconds to start", sides, run.rounds(10), {}, rates)
    seconds = {name: side["median_seconds"] for name, side in result["sides"].items()}
    final = not run.tiny
    result["goals"] = [
        record.goal(
            "import, seconds beyond Python's",
            IMPORT,
            seconds["import"] - seconds["python"],
            final=final,
        ),
        record.goal("--help, seconds", HELP, seconds["help"], final=final),
    ]
    return [result]
