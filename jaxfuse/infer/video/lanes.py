"""A bounded queue between two threads, either end of which can end the other."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

_PATIENCE = 0.1
"""Seconds between looks at whether the other end is still there."""


class Halted(Exception):  # noqa: N818 - it is no error
    """The thread that takes from a lane takes no more."""


class Lane:
    """At most `length` items wait; who puts one more waits too."""

    def __init__(self, length: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(length)
        self._halted = threading.Event()

    def put(self, item: Any) -> None:
        """Raises Halted once `halt` was called at the other end."""
        self._put((item, None))

    def _put(self, item: tuple[Any, BaseException | None]) -> None:
        while not self._halted.is_set():
            try:
                return self._queue.put(item, timeout=_PATIENCE)
            except queue.Full:
                continue
        raise Halted

    def halt(self) -> None:
        """Ends whoever puts: nothing is taken any more."""
        self._halted.set()

    def feed(self, items: Iterator[Any]) -> None:
        """Puts all items, then the end. An error of theirs ends the lane: `__iter__` raises it
        after the items before it.
        """
        ended = None
        try:
            for item in items:
                self.put(item)
        except BaseException as error:
            ended = error
        with contextlib.suppress(Halted):
            self.end(ended)

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes: `__iter__` ends, or raises the error, after the items before."""
        self._put((_END, error))

    def __iter__(self) -> Iterator[Any]:
        while True:
            item, error = self._queue.get()
            if item is not _END:
                yield item
                continue
            if error is not None:
                raise error
            return


_END = object()


class Worker:
    """A thread whose error is kept for whoever started it."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._work = work
        # A second Ctrl-C ends the program without waiting for it.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        """Waits for its end."""
        self._thread.join()
