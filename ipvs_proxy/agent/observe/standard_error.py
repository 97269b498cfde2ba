"""A standard error that never blocks: what is written waits in memory for a thread that hands it on.

A log collector that is stuck leaves a full pipe, and every write to it waits for ever then. Here only the thread waits.
What does not fit in memory is dropped, whole lines at a time, and counted; ``resumed`` is told how many those were as
soon as somebody reads again. The descriptor itself is left as it is: ``O_NONBLOCK`` would hold for every process that
shares it.

It stands in the place of ``sys.stderr``, so that it serves whatever writes there: the log, warnings, tracebacks.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

#: Bytes that wait at most: some thousands of lines.
CAPACITY: Final = 1024 * 1024
#: Bytes handed on in one system call, unless a line is longer: a pipe takes that many without another writer's between.
ATOMIC: Final = select.PIPE_BUF
#: Seconds that the end of the process waits for what has not been handed on.
PATIENCE: Final = 0.3


class StandardError(io.TextIOBase):
    """A text stream over a descriptor; any thread may write to it, and none ever waits.

    Args:
        descriptor: where the text goes.
        resumed: told by the thread how many lines were dropped, once some could be handed on again.

    """

    def __init__(self, descriptor: int, resumed: Callable[[int], None]) -> None:
        super().__init__()
        #: How many lines have been dropped so far.
        self.dropped = 0
        self._descriptor = descriptor
        self._resumed = resumed
        self._told = 0
        self._line = ""
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding; what it cannot say is escaped."""
        return "utf-8"

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return true."""
        return True

    def write(self, text: str) -> int:
        """Take text over; whole lines are handed on."""
        with self._changed:
            *lines, self._line = (self._line + text).split("\n")
            if len(self._line) > CAPACITY:
                lines.append(self._line)
                self._line = ""
            for line in lines:
                self._add(f"{line}\n".encode(errors="backslashreplace"))
            if lines:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._hand_on_for_ever, name="stderr", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        return len(text)

    def drain(self, seconds: float = PATIENCE) -> None:
        """Wait until all is handed on, ``seconds`` at most."""
        if self._line:
            self.write("\n")
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _add(self, line: bytes) -> None:
        if self._size + len(line) > CAPACITY:
            self.dropped += 1
            return
        self._waiting.append(line)
        self._size += len(line)

    def _hand_on_for_ever(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                self._busy = True
                batch = self._take()
            if not self._hand_on(batch):
                self.dropped += batch.count(b"\n")
            elif self._told < self.dropped:
                dropped, self._told = self.dropped - self._told, self.dropped
                self._resumed(dropped)

    def _take(self) -> bytes:
        batch = self._waiting.popleft()
        while self._waiting and len(batch) + len(self._waiting[0]) <= ATOMIC:
            batch += self._waiting.popleft()
        self._size -= len(batch)
        return batch

    def _hand_on(self, batch: bytes) -> bool:
        """Write all of it, however long that takes; return whether there is somebody to write to."""
        while batch:
            try:
                batch = batch[os.write(self._descriptor, batch) :]
            except BlockingIOError:  # another process has set O_NONBLOCK
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True


def dropped_lines() -> int:
    """Return how many lines of this process's standard error have been dropped so far."""
    return sys.stderr.dropped if isinstance(sys.stderr, StandardError) else 0


def install(resumed: Callable[[int], None]) -> StandardError | None:
    """Put one in the place of ``sys.stderr``; return it, or ``None`` if that is no descriptor, or one already."""
    before = sys.stderr
    try:
        descriptor = before.fileno()
    except (AttributeError, OSError, ValueError):  # none, or closed, or in memory
        return None
    if isinstance(before, StandardError):
        return None
    before.flush()
    sys.stderr = installed = StandardError(descriptor, resumed)
    # A traceback that ends the process has been written by then.
    atexit.register(installed.drain)
    return installed
