"""What every test gets: eight fake CPU devices, strict ranks, checked shapes, shared data.

JAXFUSE_SHARED      where golden files and real pairs lie; without it ../shared of the checkout.
JAXFUSE_TEST_CACHE  folder of the compilation cache; "off" for none; default .pytest_cache/jax.
JAXFUSE_TEST_TYPES  "off" leaves annotations unchecked.
JAXFUSE_TEST_OPTIMIZED  "on" has XLA optimize as it does for users, which compiles for longer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest

REPO = Path(__file__).resolve().parent.parent
DEVICES = 8
CHECKED = ("ops", "models", "losses", "metrics", "methods", "train", "infer")
"""Rooms whose annotations state shapes of device arrays."""

# Before the first import of jax, here and in every process that a test starts.
_flags = os.environ.get("XLA_FLAGS", "")
if "--xla_force_host_platform_device_count" not in _flags:
    _count = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["XLA_FLAGS"] = f"{_flags} {_count}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling takes most of the time of these tests. The programs stay the same, slower ones.
if os.environ.get("JAXFUSE_TEST_OPTIMIZED") != "on":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

_cache = os.environ.get("JAXFUSE_TEST_CACHE", str(REPO / ".pytest_cache" / "jax"))
if _cache != "off":
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

# Processes that tests send these to inherit it where whoever started the tests ignores them, as
# nohup and the shell's & do.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        _usual = signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(_signal, _usual)

if os.environ.get("JAXFUSE_TEST_TYPES") != "off":
    jaxtyping.install_import_hook([f"jaxfuse.{room}" for room in CHECKED], "typecheck.checked")

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def cxx() -> None:
    """Skips where there is no C++ compiler for the kernels."""
    from jaxfuse import distributed

    if not distributed.cxx_compiler():
        pytest.skip("no C++ compiler is installed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help="fail if any test was skipped: for machines that have everything",
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run that must skip nothing; the summary (-ra) lists the tests and reasons."""
    if not session.config.getoption("--fail-on-skip"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line("")
        reporter.write_line(
            f"--fail-on-skip: {len(skipped)} skipped, which fails this run", red=True
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden files and real pairs; skips the test where it is absent."""
    root = Path(os.environ.get("JAXFUSE_SHARED") or REPO.parent / "shared")
    if not (root / "golden").is_dir():
        pytest.skip(
            f"no golden files in {root / 'golden'}: set JAXFUSE_SHARED to their parent folder"
        )
    return root


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """The folder of golden files, made by running published code."""
    return shared / "golden"


@pytest.fixture(scope="session")
def devices() -> list[jax.Device]:
    """The eight fake CPU devices."""
    found = jax.devices()
    if len(found) < DEVICES:
        pytest.skip(f"needs {DEVICES} devices, found {len(found)}: is XLA_FLAGS set from outside?")
    return found[:DEVICES]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations stay unchecked in this test: for what a function itself says of bad arguments."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def fresh_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python ARGUMENTS` in a new interpreter that finds this checkout, in an empty folder."""

    def run(
        *arguments: str, timeout: float = 120, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        paths = [str(REPO), os.environ.get("PYTHONPATH", "")]
        merged = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), **(env or {})}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=merged,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
