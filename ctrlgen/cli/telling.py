"""What commands say on standard error beside errors: the library's log, one line a record."""

from __future__ import annotations

import logging
import sys
from logging.handlers import MemoryHandler

MOST_HELD = 1000  # records


class StandardError(logging.Handler):
    """Prints records without level or time. Standard error is looked up anew for each."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"ctrlgen: {record.getMessage()}", file=sys.stderr)


# Plain information waits for the work to begin, so that a command that is refused says one line: why.
held = MemoryHandler(MOST_HELD, flushLevel=logging.WARNING, target=StandardError(), flushOnClose=False)


def start_log() -> None:
    log = logging.getLogger("ctrlgen")
    log.setLevel(logging.INFO)
    held.buffer.clear()
    if held not in log.handlers:
        log.addHandler(held)


def tell_log() -> None:
    """Print what the log holds: the work has begun."""
    held.flush()
