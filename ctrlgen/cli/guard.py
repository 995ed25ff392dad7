"""What the demo's server refuses, so that one visitor cannot keep others waiting or reach what is not his.

Before Gradio sees it: foreign hosts, uploads, large requests, floods. Afterwards: a visitor's second text at a time.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from threading import Condition
from typing import Any

from ctrlgen.errors import UsageError

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

LARGEST_REQUEST = 200_000  # bytes
MOST_POSTS, WITHIN = 30, 10.0  # of one address, seconds
MOST_ADDRESSES = 10_000  # remembered
AHEAD = 0.3  # seconds that one visitor may have had more than another without waiting
LONGEST_WAIT = 2.0  # seconds before each step
EVERYWHERE = ("0.0.0.0", "::")


class Visitors:
    """One text at a time for each visitor, by address; who has had more of the machine lets others go first."""

    def __init__(self) -> None:
        self.had: dict[str, float] = {}  # seconds, of those whose texts are being written
        self.changed = Condition()

    @contextmanager
    def turn(self, visitor: str) -> Iterator[Callable[[], None]]:
        """Yields what the work calls at every step, which waits there for others.

        Raises UsageError where this visitor's last text is still being written.
        """
        with self.changed:
            if visitor in self.had:
                raise UsageError("one request at a time: wait until the last one is answered, or stop it")
            self.had[visitor] = 0.0
        since = time.monotonic()

        def step() -> None:
            nonlocal since
            with self.changed:
                if visitor in self.had:
                    self.had[visitor] += time.monotonic() - since
                    self.changed.notify_all()
                    self.changed.wait_for(lambda: self.may_go_on(visitor), LONGEST_WAIT)
                since = time.monotonic()

        try:
            yield step
        finally:
            with self.changed:
                del self.had[visitor]
                self.changed.notify_all()

    def may_go_on(self, visitor: str) -> bool:
        return self.had.get(visitor, 0.0) <= min(self.had.values(), default=0.0) + AHEAD


class Guard:
    """An ASGI middleware. The page has no file field, so nobody needs to upload; and a page elsewhere whose name was
    made to mean this machine (DNS rebinding) sends its own name as the host.
    """

    def __init__(self, app: App, host: str):
        self.app, self.host = app, host
        self.posts: dict[str, deque[float]] = {}  # when the last ones came, by address

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        refused = self.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refused is None:
            await self.app(scope, receive, send)
            return
        status, reason = refused
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": reason.encode()})

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the reason, or None for what may pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self.is_own(headers.get(b"host", "")):
            return 421, "this server does not answer to that name"
        if "upload" in scope["path"].rsplit("/", 1)[-1]:
            return 404, "there is nothing to upload to"
        if b"transfer-encoding" in headers:
            return 411, "a request says beforehand how many bytes it has"
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST_REQUEST:
            return 413, f"a request has at most {LARGEST_REQUEST} bytes"
        if scope.get("method") == "POST" and self.is_flood((scope.get("client") or ("", 0))[0]):
            return 429, f"more than {MOST_POSTS} requests within {WITHIN:g} seconds"
        return None

    def is_flood(self, address: str) -> bool:
        """Whether an address sends more than it may; what is refused counts as well."""
        now = time.monotonic()
        if address not in self.posts and len(self.posts) >= MOST_ADDRESSES:
            self.posts = {of: times for of, times in self.posts.items() if now - times[-1] < WITHIN}
        times = self.posts.setdefault(address, deque(maxlen=MOST_POSTS + 1))
        times.append(now)
        return len(times) > MOST_POSTS and now - times[0] < WITHIN

    def is_own(self, host: str) -> bool:
        """Whether a request's host is this machine: an address, or a name that cannot be given by others."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").lower()
        if name in ("localhost", self.host.lower()):
            return True
        if self.host not in EVERYWHERE:
            return name in ("127.0.0.1", "::1") and self.host in ("127.0.0.1", "::1", "localhost")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in (socket.gethostname().lower(), socket.getfqdn().lower())
        return True
