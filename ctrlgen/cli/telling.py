"""What commands say on standard error beside errors: the library's log, and how far they are."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from threading import Event, Thread

MOST_HELD = 1000  # records
LONG = 60.0  # seconds; what takes longer is told beforehand
SETTLED = 5.0  # seconds after which what is done says what is left
EVERY = 30.0  # seconds between two lines of a command that works without a terminal


class StandardError(logging.Handler):
    """Prints records without level or time. Standard error is looked up anew for each."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"ctrlgen: {record.getMessage()}", file=sys.stderr)


class Held(MemoryHandler):
    """Plain information waits for the work to begin, so that a command that is refused says one line: why."""

    def close(self) -> None:
        """It stays open: the demo's server, which sets up a log of its own, closes all handlers that there are."""


held = Held(MOST_HELD, flushLevel=logging.WARNING, target=StandardError())


def start_log() -> None:
    log = logging.getLogger("ctrlgen")
    log.setLevel(logging.INFO)
    held.buffer.clear()
    if held not in log.handlers:
        log.addHandler(held)


def tell_log() -> None:
    """Print what the log holds: the work has begun."""
    held.flush()


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Without a terminal, a line every half minute of how far the work is. Yields what takes the newest such line."""
    latest, over, started = [what], Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(EVERY):
            print(f"ctrlgen: after {duration(time.monotonic() - started)}: {latest[0]}", file=sys.stderr, flush=True)

    def newest(line: str) -> None:
        latest[0] = line

    if sys.stderr is None or sys.stderr.isatty():
        yield newest
        return
    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield newest
    finally:
        over.set()
        thread.join()


class Forecast:
    """What the rest of a job will take on this machine, said once where it is long."""

    def __init__(self, what: str):
        self.what, self.started, self.said = what, time.monotonic(), False

    def left(self, share: float) -> str:
        """`, 12 min left` where a share of the job is done; nothing while that says little."""
        elapsed = time.monotonic() - self.started
        if share <= 0 or elapsed < SETTLED:
            return ""
        seconds = elapsed * (1 - share) / share
        if not self.said and seconds >= LONG:
            print(f"ctrlgen: {self.what} takes about {duration(seconds)} more here", file=sys.stderr, flush=True)
        self.said = True
        return f", {duration(seconds)} left"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 5 min`"""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
