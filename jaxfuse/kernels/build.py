"""Compiles the kernels for the processor they run on, once, and keeps them in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

from jaxfuse import distributed
from jaxfuse.config import ConfigError, UserError

SOURCES = ("kernels.cc", "backward.h", "coupling.h", "local.h", "products.h", "lanes.h")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
TUNED = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
COMPILE_SECONDS = 300.0
"""Compiling takes some five seconds."""
VERSION_SECONDS = 20.0


class KernelsError(UserError, RuntimeError):
    """The kernels cannot be compiled here; the message says why, and what helps."""


def library() -> Path:
    """The compiled kernels for this machine, compiled now if they were not before.

    Raises KernelsError without a compiler, where it fails, and where the cache cannot be used.
    """
    here, flags = Path(__file__).parent, (*FLAGS, TUNED)
    texts = [(here / name).read_bytes() for name in SOURCES]
    made_of = _digest(texts, flags, _processor(), jaxlib.__version__)
    folder = distributed.cache_folder("kernels")
    try:
        compiler = distributed.cxx_compiler()
        if not compiler:
            # What a compiler that has gone since left is as good.
            for path in sorted(folder.glob(f"{made_of}-*.so")):
                return path
            raise KernelsError(
                "no C++ compiler is installed: install one, such as the package g++ of Debian and "
                "Ubuntu, or name it by CXX"
            )
        told = _run([*compiler, "--version"], VERSION_SECONDS).stdout
        path = folder / f"{made_of}-{_digest(compiler[1:], told)}.so"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _compile([*compiler, *flags], here / SOURCES[0], path)
    except ConfigError as error:
        raise KernelsError(str(error)) from error
    except OSError as error:
        raise KernelsError(
            f"{error.filename or folder}: {error.strerror or error}: {folder} must be writable, or "
            "set XDG_CACHE_HOME"
        ) from error
    return path


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def _compile(command: list[str], source: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        result = Path(folder, "kernels.so")
        command = [*command, f"-I{jax.ffi.include_dir()}", str(source), "-o", str(result)]
        done = _run(command, COMPILE_SECONDS)
        if done.returncode != 0 or not result.is_file():
            lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
            said = next((line for line in lines if "error" in line), lines[0])
            raise KernelsError(
                f"{command[0]} could not compile the kernels: {said}: use GCC 10 or Clang 14 or "
                "newer, named by CXX"
            )
        # Whole on the disk before it has a name: to load a part ends the process.
        with result.open("rb+") as file:
            os.fsync(file.fileno())
        # Where another process or thread was as fast, what it has loaded stays in place.
        with contextlib.suppress(FileExistsError):
            os.link(result, path)


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise KernelsError(
            f"{command[0]} took more than {seconds:.0f} s: try again when the machine is not as "
            "busy, or name another compiler by CXX"
        ) from error


def _processor() -> str:
    """What the processor can do: a folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
