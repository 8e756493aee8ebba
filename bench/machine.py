"""The machine, and what it can do at this moment: `python -m bench.machine` prints it as JSON."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = (
    *("jax", "jaxlib", "libtpu", "flax", "optax", "numpy"),
    *("opencv-python-headless", "grain", "torch"),
)
ROOT = Path(__file__).resolve().parent.parent


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load_average() -> list[float]:
    """Processes that want a core, over 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else []


def busy_share(seconds: float = 1.0) -> float | None:
    """Share of the processor's time that others take now, measured while waiting so long; None
    where /proc/stat does not tell. The load average would still count what ended a minute ago.
    """

    def times() -> list[int]:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        return [int(word) for word in first.split()[1:9]]

    try:
        before = times()
        time.sleep(seconds)
        spent = [b - a for a, b in zip(before, times(), strict=True)]
    except (OSError, ValueError):
        return None
    # user, nice, system, idle, waiting for disks, interrupts (2), stolen by other machines.
    return round(1.0 - (spent[3] + spent[4]) / max(sum(spent), 1), 3)


def hardware() -> dict[str, Any]:
    """What the machine is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def environment() -> dict[str, Any]:
    """Settings from outside that change speed."""
    names = ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    found: dict[str, Any] = {name: os.environ[name] for name in names if name in os.environ}
    return {**found, "nice": os.nice(0)} if hasattr(os, "nice") else found


def commit(folder: Path) -> str | None:
    """Short commit of a checkout, with a + where files other than results differ from it; None
    without one.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None
        changed = git("status", "--porcelain", "--", ".", ":(exclude)bench/results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str | None]:
    """Versions of what runs."""
    found: dict[str, str | None] = {"python": platform.python_version(), "commit": commit(ROOT)}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def digest(path: Path) -> str:
    """First 16 digits of a file's SHA-256: which version of the published code was measured."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def timed(run: Callable[[], object], repeat: int) -> list[float]:
    """Seconds of each of `repeat` calls after a first one that does not count."""
    run()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def numpy_matmul(size: int, repeat: int) -> float:
    """Operations a second of the best of `repeat` float32 matrix products in NumPy."""
    a, b = np.random.default_rng(0).random((2, size, size), np.float32)
    return 2.0 * size**3 / min(timed(lambda: a @ b, repeat))


def jax_matmul(size: int, repeat: int, dtype: str, precision: str | None = None) -> float:
    """The same by JAX on its first device."""
    import jax
    import jax.numpy as jnp

    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.dtype(dtype)) for i in (0, 1))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    return 2.0 * size**3 / min(timed(lambda: product(a, b).block_until_ready(), repeat))


def host_copy(size: int, repeat: int) -> float:
    """Bytes a second, read and written, of copying `size` bytes with a thread on every core."""
    threads = cores()
    source = np.ones((threads, size // threads), np.uint8)
    target = np.zeros_like(source)
    with ThreadPoolExecutor(threads) as pool:
        run = lambda: list(pool.map(np.copyto, target, source))  # noqa: E731
        return 2.0 * source.size / min(timed(run, repeat))


def device_copy(size: int, repeat: int) -> float:
    """The same on JAX's first device."""
    import jax
    import jax.numpy as jnp

    source = jnp.ones((size // 4,), jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    return 2.0 * source.size * 4 / min(timed(lambda: copy(source).block_until_ready(), repeat))


def rates(tiny: bool) -> dict[str, Any]:
    """What JAX's first device does at best, in operations and bytes a second.

    `operations_per_second` has the rate of the floor for each dtype; on a CPU, where two libraries
    multiply matrices, the better one's.
    """
    import jax

    device = jax.devices()[0]
    facts: dict[str, Any] = {"device": device.device_kind, "platform": device.platform}
    if device.platform == "cpu":
        size, repeat = (128, 2) if tiny else (2048, 9)
        detail = {
            "numpy float32": numpy_matmul(size, repeat),
            "jax float32": jax_matmul(size, repeat, "float32"),
        }
        best = {"float32": max(detail.values())}
        if tiny:
            best["bfloat16"] = detail["jax bfloat16"] = jax_matmul(size, repeat, "bfloat16")
        copied = host_copy(1 << 20 if tiny else 1 << 28, repeat)
    else:
        size, repeat = (256, 2) if tiny else (8192, 20)
        detail = {
            "jax float32": jax_matmul(size, repeat, "float32"),
            "jax float32, highest precision": jax_matmul(size, repeat, "float32", "highest"),
            "jax bfloat16": jax_matmul(size, repeat, "bfloat16"),
        }
        best = {"float32": detail["jax float32"], "bfloat16": detail["jax bfloat16"]}
        copied = device_copy(1 << 20 if tiny else 1 << 30, repeat)
    return {
        **facts,
        "matmul_size": size,
        "matmul_operations_per_second": detail,
        "operations_per_second": best,
        "copy_bytes_per_second": copied,
    }


def slug(kind: str) -> str:
    """A device's name for file names: "NVIDIA H200" gives nvidia-h200."""
    return "-".join("".join(c if c.isalnum() else " " for c in kind.lower()).split())


if __name__ == "__main__":
    print(json.dumps(rates(tiny="--tiny" in sys.argv[1:])))
