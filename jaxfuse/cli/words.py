"""Reading the command line and answering on it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tyro

from jaxfuse.config import ConfigError, UserError

DONE, FAILED, BAD_USAGE = 0, 1, 2
"""Exit codes; 75 is that of a run which was asked to stop and has saved everything."""


def take(option: str, arguments: Sequence[str], what: str = "a folder") -> tuple[str, list[str]]:
    """The value of `option VALUE` or `option=VALUE`, "" where absent, and the other arguments.

    what: what the option names, for the complaint where there is no value.
    """
    value, rest = "", list(arguments)
    for at, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name == option:
            if not equals:
                value = rest.pop(at + 1) if at + 1 < len(rest) else ""
            if not value:
                raise ConfigError(f"{option}: name {what}")
            del rest[at]
            return value, rest
    return "", rest


def gather(options: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The arguments with each option's values together: `--x a --x b` becomes `--x a b`.

    A parser that takes several values after one option would keep the last `--x` only.
    """
    values: dict[str, list[str]] = {}
    rest: list[str] = []
    taking = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in options:
            taking = name
            values.setdefault(name, []).extend([value] if equals else [])
        elif taking and not argument.startswith("--"):
            values[taking].append(argument)
        else:
            taking = ""
            rest.append(argument)
    for name, found in values.items():
        rest += [name, *found]
    return rest


def parse(kind: Any, arguments: Sequence[str], name: str, **more: Any) -> Any:
    """tyro's reading of the arguments; what a config itself finds wrong is raised as it is."""
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            return tyro.cli(kind, args=list(arguments), prog=f"jaxfuse {name}", **more)
    except SystemExit as stopped:
        error: BaseException | None = stopped
        while error is not None:
            error = error.__context__
            if isinstance(error, UserError):
                raise error from None
        sys.stderr.write(words.getvalue())
        raise


def progress(doing: str) -> Callable[[int, int, str], None]:
    """(done, total, name) -> a counter on a terminal, a plain line now and then elsewhere."""
    terminal = sys.stderr.isatty()
    last = [0.0]

    def report(done: int, total: int, name: str) -> None:
        if total < 2:
            return
        if terminal:
            end = "\n" if done == total else ""
            print(f"\r{doing} {done}/{total} {name[:40]:40}", end=end, file=sys.stderr, flush=True)
        elif done == total or time.monotonic() - last[0] > 10.0:
            last[0] = time.monotonic()
            print(f"{doing} {done}/{total} {name}", file=sys.stderr)

    return report


@contextlib.contextmanager
def frame_counter(doing: str) -> Iterator[Callable[[int, int], None]]:
    """(done, total, 0 where unknown) -> frames and frames a second: a counter on a terminal, a
    plain line now and then elsewhere.
    """
    terminal = sys.stderr.isatty()
    pause = 0.2 if terminal else 10.0
    began = last = time.monotonic()
    first = shown = 0

    def report(done: int, total: int) -> None:
        nonlocal began, last, first, shown
        now = time.monotonic()
        if not first:
            # Compiling is not counted.
            began, first = now, done
        if now - last < pause and done != total:
            return
        last, shown = now, done
        of = f"/{total}" if total else ""
        rate = f"{(done - first) / (now - began):.1f} frames a second" if now > began else ""
        line = f"{doing} {done}{of} {rate}"
        print(
            f"\r{line:60}" if terminal else line.rstrip(),
            end="" if terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    try:
        yield report
    finally:
        if terminal and shown:
            print(file=sys.stderr)


@contextlib.contextmanager
def if_slow(said: str, seconds: float = 5.0) -> Iterator[Callable[[], None]]:
    """Prints `said` once where the block takes longer than that; what it gives, called, calls that
    off.
    """
    timer = threading.Timer(seconds, print, (said,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()


@contextlib.contextmanager
def stop_requests(said: str) -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets, with `said` printed. A second one ends the program."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: Any) -> None:
        event.set()
        signal.signal(number, signal.SIG_DFL)
        # Not print: the signal may have come in the middle of one.
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"\n{said}\n".encode())

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def usage(text: str, asked: bool) -> int:
    """Prints how to use something: to stdout where it was asked for, else as a complaint."""
    print(text, file=sys.stdout if asked else sys.stderr)
    return DONE if asked else BAD_USAGE
