"""Who may speak to the server, and what a browser may do with its answers.

The server listens on the loopback address, which every web page in every browser of the machine, and every user of it,
can reach as well. So a request is answered only where

    Host                is this server's own name: no other name that was made to point here (DNS rebinding)
    Origin, if sent,    is this server's own, and Sec-Fetch-Site says so too: no other page asks in the reader's name
    the token           is in a header, for everything under /api: it is known to whom the terminal told it, and no
                        other page can set a header here, because no CORS header is ever sent
    the body            is JSON and short

and every answer tells the browser to run scripts of this server alone, to fetch nothing from elsewhere, to be framed
by nobody, and not to guess at types.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MAX_BODY", "TOKEN_HEADER", "Guard", "policy"]

TOKEN_HEADER = "x-caseback-token"
MAX_BODY = 64 * 1024
"""Bytes of a request; the longest prompt is far shorter."""
SAFE = ("GET", "HEAD")


def policy(import_map_sha256: str) -> str:
    """The content security policy: scripts are files of this server; the import map, which must stand in the page, is
    named by its hash and can run nothing."""
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{import_map_sha256}'; style-src 'self'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


class Guard:
    """The gate in front of the application."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], token: str, csp: str) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.origins = frozenset(f"http://{host}" for host in hosts)
        self.token = token.encode()
        self.csp = csp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # a websocket is not spoken here

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._seal(MutableHeaders(scope=message))
            await send(message)

        refused = self._refusal(scope, Headers(scope=scope))
        body = b""
        if refused is None and scope["method"] not in SAFE:
            body, refused = await _body(receive)
        if refused is not None:
            status, why = refused
            await JSONResponse({"error": why}, status)(scope, receive, sealed)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given or scope["method"] in SAFE:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, sealed)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence for a request that is not answered."""
        if len(headers.getlist("host")) != 1 or headers["host"] not in self.hosts:
            return 421, "this server answers to its own address only; open the one the terminal printed"
        origins = headers.getlist("origin")
        if any(origin not in self.origins for origin in origins):
            return 403, "another page may not ask this server"
        changes = scope["method"] not in SAFE
        api = scope["path"].startswith("/api/")
        if (changes or api) and headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return 403, "another page may not ask this server"
        if (changes or api) and not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self.token):
            return 401, "the token is missing or of an earlier start; open the address the terminal printed"
        if changes and headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return 415, "a request is JSON"
        return None

    def _seal(self, headers: MutableHeaders) -> None:
        headers["content-security-policy"] = self.csp
        headers["x-content-type-options"] = "nosniff"
        headers["referrer-policy"] = "no-referrer"
        headers["cross-origin-opener-policy"] = "same-origin"
        headers["cross-origin-resource-policy"] = "same-origin"
        headers.setdefault("cache-control", "no-store")


async def _body(receive: Receive) -> tuple[bytes, tuple[int, str] | None]:
    """The whole body, and a refusal where it is too long or no JSON object."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"", (400, "the request broke off")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return b"", (413, f"a request holds at most {MAX_BODY // 1024} kB")
        if not message.get("more_body"):
            break
    try:
        if isinstance(json.loads(body or b"null"), dict):
            return body, None
    except (ValueError, RecursionError):
        pass
    return b"", (400, "a request is a JSON object")
