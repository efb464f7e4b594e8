"""A real HTTP server on loopback that answers chats as a test tells it to: well, badly, late, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from caseback.model.chat import Endpoint

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        server.seen.append((self.path, dict(self.headers), json.loads(body)))
        behaviours: list[Behaviour] = server.behaviours
        (behaviours.pop(0) if len(behaviours) > 1 else behaviours[0])(self)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def says(document: Any, status: int = 200, **headers: str) -> Behaviour:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return lambda handler: handler.answer(status, body, **headers)


def good(text: Any = "fine", **more: Any) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        **more,
    }


class Stage:
    """A server with a play list of behaviours; the last one repeats."""

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.seen = []  # type: ignore[attr-defined]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def seen(self) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
        return self.server.seen  # type: ignore[attr-defined]

    def endpoint(self, *behaviours: Behaviour, **options: Any) -> Endpoint:
        self.server.behaviours = list(behaviours)  # type: ignore[attr-defined]
        return Endpoint(base_url=self.url, model="m", **{"timeout": 5.0, "retries": 0, **options})

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
