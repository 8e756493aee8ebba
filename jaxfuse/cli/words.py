"""Reading the command line and answering on it."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Sequence
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


def usage(text: str, asked: bool) -> int:
    """Prints how to use something: to stdout where it was asked for, else as a complaint."""
    print(text, file=sys.stdout if asked else sys.stderr)
    return DONE if asked else BAD_USAGE
