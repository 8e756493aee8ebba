"""Compiles the kernels for the processor they run on, once, and keeps them in the user's cache."""

from __future__ import annotations

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
TIMEOUT_SECONDS = 300
"""Compiling takes some five seconds."""


class KernelsError(UserError, RuntimeError):
    """The kernels cannot be compiled here; the message says why, and what helps."""


def _compiler() -> str:
    try:
        found = distributed.cxx_compiler()
    except ConfigError as error:
        raise KernelsError(str(error)) from error
    if found is None:
        raise KernelsError(
            "no C++ compiler is installed: install one, such as the package g++ of Debian and "
            "Ubuntu, or name it by CXX"
        )
    return found


def library() -> Path:
    """The compiled kernels for this machine, compiled now if they were not before.

    Raises KernelsError without a compiler, where it fails, and where the cache cannot be written.
    """
    program = _compiler()
    here = Path(__file__).parent
    told = _run([program, "--version"]).stdout
    flags = (*FLAGS, TUNED)
    state = (told, flags, _processor(), jaxlib.__version__)
    texts = [(here / name).read_bytes() for name in SOURCES]
    key = hashlib.sha256(repr((state, texts)).encode()).hexdigest()[:16]
    path = distributed.cache_folder("kernels") / f"{key}.so"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as made:
            result = Path(made, "kernels.so")
            source = str(here / SOURCES[0])
            command = [program, *flags, f"-I{jax.ffi.include_dir()}", source, "-o", str(result)]
            done = _run(command)
            if done.returncode != 0 or not result.is_file():
                said = done.stderr.strip().partition("\n")[0]
                raise KernelsError(
                    f"{program} could not compile the kernels: {said}: use GCC 10 or newer, "
                    "named by CXX"
                )
            # Another process may have been as fast: both wrote the same.
            os.replace(result, path)
    except OSError as error:
        raise KernelsError(
            f"{path.parent}: {error.strerror or error}: make it writable, or set XDG_CACHE_HOME"
        ) from error
    return path


def _run(command: list[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KernelsError(
            f"{command[0]} took more than {TIMEOUT_SECONDS} s: try again on a machine that is not "
            "as busy"
        ) from error


def _processor() -> str:
    """What the processor can do: a folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
