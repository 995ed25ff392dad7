"""What went wrong, in one line that a user can act on. The command line turns these into exit codes."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MOST_SAID = 400  # characters of what users wrote and why it is refused


class CtrlgenError(Exception):
    """Something outside ctrlgen failed: a file, a model, the data. Exit code 1."""


class UsageError(CtrlgenError):
    """What the user wrote cannot be understood or obeyed. Exit code 2."""


@contextmanager
def briefly() -> Iterator[None]:
    """What is refused in here is said in one line that is not too long, whatever of the user's own words it quotes."""
    try:
        yield
    except UsageError as error:
        message = " ".join(str(error).splitlines())
        if len(message) > MOST_SAID:
            message = f"{message[: MOST_SAID // 2]} … {message[-MOST_SAID // 2 :]}"
        raise UsageError(message) from None


def first_line(error: BaseException) -> str:
    """What an error of another library says, without what follows; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def did_you_mean(word: str, known: Iterable[str], count: int = 1, near: float = 0.6) -> str:
    """` Did you mean X?` for the nearest known words, or nothing when none is near. `near`: 1 is the word itself."""
    by_folded = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(word.casefold(), by_folded, n=count, cutoff=near)
    if not found:
        return ""
    return f" Did you mean {' or '.join(by_folded[name] for name in found)}?"


def listed(names: Iterable[str], most: int = 12) -> str:
    """`a, b, c` for an error, cut short where there are many or long ones."""
    names = list(names)
    shown = ", ".join(name if len(name) <= 40 else f"{name[:39]}…" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def shown(text: str, most: int = 120) -> str:
    """What a user wrote, as an error quotes it: cut short where it is long."""
    return repr(text if len(text) <= most else f"{text[:most]}…").encode(errors="backslashreplace").decode()


def is_unicode(text: str) -> bool:
    """Whether this is text: half a surrogate pair, as bytes that are no UTF-8 become, is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
