"""Ways for one of two processes to end; started by tests/test_processes.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jax

from jaxfuse import cli, distributed
from jaxfuse.train.loop import Preempted

LATE = 7.0
"""Seconds; longer than processes that fail wait for each other."""


def end(how: str) -> int:
    with distributed.joined():
        distributed.together("begin")
        mine = jax.process_index()
        if how == "late":
            time.sleep(LATE * mine)
            raise Preempted("runs/a: stopped on request")
        if how == "interrupted" and mine == 1:
            raise KeyboardInterrupt
        if how == "unwritable" and mine == 0:
            Path("/proc/nothing").mkdir()
        distributed.together("nobody comes")
    return 0


if __name__ == "__main__":
    cli.COMMANDS["end"] = lambda words: end(words[0])
    sys.exit(cli.main(["end", sys.argv[1]]))
