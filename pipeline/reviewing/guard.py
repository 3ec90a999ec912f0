"""Who may ask the review server at all. It listens on loopback, where any web page that the reviewer opens can send requests too.

- The address holds a random token, which only the reviewer's own page knows: a foreign page can neither read crops nor send answers.
- The Host header must be loopback: a foreign name that resolves to 127.0.0.1 (DNS rebinding) is refused.
- What changes something must come from this origin, as JSON, with a header that no form can send, and be small.
- Every answer forbids being framed, sniffed, kept in a cache, or embedded elsewhere.
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 64 * 1024
"""Of the body of a request."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": "frame-ancestors 'none'",
}


class Guard:
    """An ASGI application that lets through to `app` what may pass, with the token taken off the path."""

    def __init__(self, app: App, *, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        body = await _body(receive)  # of who is refused, too: with a body unread the connection is reset, at times before the answer is
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        if body is None:
            await _refuse(send, 413, f"A request has at most {MOST_BYTES} bytes.")
            return
        path = "/" + scope["path"].split("/", 2)[2]
        inner = dict(scope) | {"path": path, "raw_path": path.encode(), "root_path": ""}
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(given, {"type": "http.disconnect"})

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *((name.encode(), value.encode()) for name, value in _HEADERS.items())]
            await send(message)

        await self._app(inner, replay, dressed)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if host not in self._hosts:
            return 421, "This server answers on loopback only."
        if scope["path"] == "/favicon.ico":
            return 204, ""  # browsers ask for it by themselves
        parts = scope["path"].split("/", 2)
        if len(parts) < 3 or not secrets.compare_digest(parts[1].encode(), self._token.encode()):
            return 403, "Open the address that `purify review` printed: it holds a token, new with every start."
        if scope["method"] in ("GET", "HEAD"):
            return None
        if scope["method"] != "POST":
            return 405, "Only GET and POST."
        if headers.get("origin") != f"http://{host}" or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return 403, "Answers come from the review page itself."
        if headers.get("content-type", "").split(";")[0].strip() != "application/json" or headers.get("x-purify") != "review":
            return 403, "Answers are JSON, with the header X-Purify."
        return None


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None when it is too long."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


async def _refuse(send: Send, status: int, message: str) -> None:
    headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain; charset=utf-8"), *headers]})
    await send({"type": "http.response.body", "body": message.encode()})
