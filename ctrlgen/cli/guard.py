"""What the demo's server refuses before Gradio sees it: foreign hosts, uploads, large requests."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

LARGEST_REQUEST = 200_000  # bytes
EVERYWHERE = ("0.0.0.0", "::")


class Guard:
    """An ASGI middleware. The page has no file field, so nobody needs to upload; and a page elsewhere whose name was
    made to mean this machine (DNS rebinding) sends its own name as the host.
    """

    def __init__(self, app: App, host: str):
        self.app, self.host = app, host

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
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST_REQUEST:
            return 413, f"a request has at most {LARGEST_REQUEST} bytes"
        return None

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
