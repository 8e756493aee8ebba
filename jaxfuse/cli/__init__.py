"""The command line: one function per job, each parses, calls and prints. Only jobs import JAX."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence

from jaxfuse import __version__
from jaxfuse.cli import deploying, judging, pictures, planning, sets, training
from jaxfuse.cli.words import BAD_USAGE, DONE, FAILED, usage
from jaxfuse.config import ConfigError, UserError

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": training.train,
    "fuse": pictures.fuse,
    "evaluate": judging.evaluate,
    "report": judging.report,
    "segments": judging.segments,
    "align": training.align,
    "plan": planning.plan,
    "data": sets.data,
    "convert": pictures.convert,
    "export": deploying.export,
    "demo": training.demo,
}


def _help() -> str:
    lines = ["usage: jaxfuse COMMAND ...", "", "Infrared-visible image fusion in JAX.", ""]
    lines += [f"  {name:10}{(job.__doc__ or '').splitlines()[0]}" for name, job in COMMANDS.items()]
    lines += ["", "`jaxfuse COMMAND --help` says more. `jaxfuse --version` prints the version."]
    return "\n".join(lines)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        return usage(_help(), asked=bool(arguments))
    if arguments[0] == "--version":
        return usage(__version__, asked=True)
    if arguments[0] not in COMMANDS:
        raise ConfigError(f"no command {arguments[0]!r}: choose one of {', '.join(COMMANDS)}")
    for word in arguments:
        # As a path it would quietly be a new folder `gs:` here.
        if found := re.search(r"^(?:--[^=]*=)?([a-z0-9]+://.*)", word):
            raise ConfigError(
                f"{found[1]}: an address, but jaxfuse reads and writes paths: mount it as a file "
                "system (a bucket by gcsfuse, say) and give its path"
            )
    return COMMANDS[arguments[0]](arguments[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 done, 1 failed, 2 bad usage, 75 preempted and safely saved."""
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except SystemExit as stopped:  # tyro, after printing help or what is wrong with an option
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            return stopped.code if isinstance(stopped.code, int) else DONE
    except BrokenPipeError:
        pass
    except ConfigError as error:
        return _complain(str(error), BAD_USAGE)
    except UserError as error:
        return _complain(str(error), getattr(error, "exit_code", FAILED))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _complain(f"{name}{error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", FAILED)
    # Whoever read our output has left, as `| head` does: nothing to complain of, now or at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def _complain(text: str, code: int) -> int:
    print(f"jaxfuse: {text}", file=sys.stderr)
    return code
