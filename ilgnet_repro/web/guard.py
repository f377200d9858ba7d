"""What every request passes first: host, origin, token, size and queue; and the headers of every answer."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import excerpt
from ..files import json_text

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY = 64 << 20  # bytes of a request
ACTIVE = 8  # requests with a body that are read or computed at the same time
WAITING = 256  # requests that wait for them; their bodies stay with their senders
SILENCE = 30.0  # seconds without a byte of a body
_API = "/api/"
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
_LOCAL_NAMES = ("localhost", "localhost.")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""Sent with every answer."""
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The Content-Security-Policy of answers that state none of their own."""


class RequestError(Exception):
    """A request that is refused while its body is read."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Refusal:
    """The status and the one line of a refused request."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Guard:
    """Wraps an ASGI application.

    With ``only_local`` the Host must name this machine, so that no other site's name can be pointed here (DNS
    rebinding).  With a ``token`` everything but the paths of ``public`` needs it as a bearer.  What computes or reads
    images must be asked for by the page itself, or by no browser.  Bodies have at most ``most_body`` bytes; of the requests
    that may have one, and of those for ``queued`` paths, `ACTIVE` are answered at a time and `WAITING` wait.
    """

    app: App
    token: str = ""
    only_local: bool = True
    public: frozenset[str] = frozenset()
    queued: frozenset[str] = frozenset()
    most_body: int = MOST_BODY
    active: int = ACTIVE
    waiting: int = WAITING
    _slots: asyncio.Semaphore = field(init=False, repr=False)
    _queued: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.active)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = with_headers(message.get("headers", ()))
            await send(message)

        refusal = self.refusal(scope)
        if refusal is None and (scope["method"] == "POST" or scope["path"] in self.queued):
            if self._queued >= self.waiting:
                refusal = Refusal(
                    503, f"busy: {self.waiting} requests wait already; try again", (("retry-after", "1"),)
                )
            else:
                self._queued += 1
                try:
                    await self._slots.acquire()
                finally:
                    self._queued -= 1
                try:
                    await self.app(scope, self._limited(receive), answer)
                finally:
                    self._slots.release()
                return
        if refusal is None:
            await self.app(scope, receive, answer)
            return
        body = json_text({"error": refusal.text}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), *refusal.headers]
        await answer(
            {
                "type": "http.response.start",
                "status": refusal.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers],
            }
        )
        await answer({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return why a request is refused by its path and headers, or None."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return Refusal(400, "the request needs one valid Host header")
        if self.only_local and not is_local(host_name(hosts[0])):
            shown = excerpt(host_name(hosts[0]))
            return Refusal(
                421,
                f"{shown} is not this machine's loopback name; open the page as http://localhost or 127.0.0.1",
            )
        is_api = scope["path"].startswith(_API)
        if (is_api or scope["method"] not in ("GET", "HEAD")) and _is_foreign(headers, hosts[0]):
            return Refusal(403, "the request comes from another site's page; use this server's own")
        if self.token and scope["path"] not in self.public and not self._has_token(headers):
            return Refusal(
                401, "give the token that the server printed, as the header Authorization: Bearer TOKEN",
                (("www-authenticate", "Bearer"),),
            )  # fmt: skip
        lengths = headers.get("content-length", ["0"])
        if any(
            length.isascii() and length.isdigit() and int(length[:20]) > self.most_body for length in lengths
        ):
            return Refusal(413, self._too_large, (("connection", "close"),))
        return None

    @property
    def _too_large(self) -> str:
        return f"a request has at most {self.most_body:,} bytes; send fewer or smaller images"

    def _has_token(self, headers: dict[str, list[str]]) -> bool:
        given = headers.get("authorization", [])
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        is_equal = hmac.compare_digest(token.strip().encode(), self.token.encode())
        return is_equal and scheme.lower() == "bearer"

    def _limited(self, receive: Receive) -> Receive:
        """Receive a body of at most ``most_body`` bytes whose sender does not stop."""
        read, is_whole = 0, False

        async def limited() -> Message:
            nonlocal read, is_whole
            if is_whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), SILENCE)
            except TimeoutError:
                raise RequestError(408, f"no byte of the request came in {SILENCE:.0f} seconds") from None
            read += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if read > self.most_body:
                raise RequestError(413, self._too_large)
            return message

        return limited


def with_headers(headers: Any) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer with those of every answer, and a policy where it has none."""
    given = {name.lower() for name, _ in headers}
    added = {**HEADERS, "content-security-policy": POLICY}
    return [
        *headers,
        *((name.encode(), value.encode()) for name, value in added.items() if name.encode() not in given),
    ]


def _is_foreign(headers: dict[str, list[str]], host: str) -> bool:
    """Whether a browser says that a page of another site makes the request."""
    same = (f"http://{host}".lower(), f"https://{host}".lower())
    if any(origin.lower() not in same for origin in headers.get("origin", [])):
        return True
    return any(site not in ("same-origin", "none") for site in headers.get("sec-fetch-site", []))


def host_name(host: str) -> str:
    """Return the name of a Host header, without its port, in lower case."""
    return (host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]).lower()


def is_local(name: str) -> bool:
    """Whether a host name or address is that of the loopback interface."""
    if name in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
