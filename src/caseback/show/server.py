"""`caseback view`: the casebook as one local web application.

    /  /run/ID  /compare  /claims  /claims/ID  /prompt  /new
                                            one shell; its script draws the page its address names
    any other address                       the shell as well, with 404: it says that there is no such page
    /static/...                             the modules and style sheets, read once, served by name
    /api/...                                JSON, server-sent events for what goes on, NDJSON for the prompt

The shell holds no text but its own: what comes from runs, models and prompts travels as JSON and becomes text nodes.
`show.guard` decides what is answered at all. Files and models are read in threads, so that a slow disk or a
computation never keeps the other pages waiting.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import json
import secrets
import signal
import socket
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import fields
from functools import cache
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from caseback.core.errors import CasebackError, StudyError
from caseback.model.load import load
from caseback.model.model import Model
from caseback.show import casebook, claims
from caseback.show.follow import Events, Watch
from caseback.show.forms import forms
from caseback.show.guard import Guard, policy
from caseback.show.jobs import Jobs
from caseback.show.live import Live, known_models, look_of
from caseback.show.stop import stop
from caseback.study import Study

__all__ = ["DEFAULT_PORT", "Application", "application", "serve"]

DEFAULT_PORT = 8765
PAUSE = 0.5
"""Seconds between two looks at what goes on."""
STREAMS = 32
"""Pages that may follow at once."""

_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>caseback</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/page.css">
<link rel="stylesheet" href="/static/app/app.css">
<script type="importmap">{imports}</script>
<script type="module" src="/static/app/start.js"></script>
</head>
<body>
<main id="view"><p class="unscripted">This page is drawn by a script, and here no script ran.</p></main>
</body>
</html>
"""

_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}

Load = Callable[[str | None], Model]
Answer = Callable[[Request], Awaitable[Response]]


@cache
def _static() -> dict[str, bytes]:
    """Path under /static/ → content, of every module and style sheet; nothing else can be asked for."""
    root = resources.files("caseback.show") / "static"
    found = {}
    for folder in ("", "views/", "app/"):
        for file in (root / folder if folder else root).iterdir():
            if file.name.endswith(tuple(_TYPES)):
                found[f"{folder}{file.name}"] = file.read_bytes()
    return found


@cache
def _shell() -> tuple[str, str]:
    """The page, and the SHA-256 of its import map."""
    modules = {
        f"caseback/{name.removesuffix('.js')}": f"/static/{name}" for name in sorted(_static()) if name[-3:] == ".js"
    }
    imports = json.dumps({"imports": modules})
    return _SHELL.format(imports=imports), base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()


class _App:
    """The answers. `closing` is set when the server ends, so that streams end with it."""

    def __init__(self, study: Study, load: Load) -> None:
        self.study = study
        self.prompts = Live(study, load)
        self.jobs = Jobs(study)
        self.closing = asyncio.Event()
        self.streams = 0

    def routes(self) -> list[Route]:
        api: dict[str, Answer] = {
            "/api/runs": self.runs,
            "/api/runs/{run}": self.run,
            "/api/runs/{run}/payload": self.payload,
            "/api/runs/{run}/table": self.table,
            "/api/runs/{run}/events": self.events,
            "/api/compare": self.compare,
            "/api/claims": self.claims,
            "/api/claims/{claim}": self.claim,
            "/api/live": self.live,
            "/api/models": self.models,
            "/api/methods": self.methods,
            "/api/jobs": self.list_jobs,
        }
        changes: dict[str, Answer] = {
            "/api/prompt": self.prompt,
            "/api/jobs": self.start,
            "/api/jobs/{job}/cancel": self.cancel,
            "/api/runs/{run}/resume": self.resume,
            "/api/runs/{run}/stop": self.stop,
        }
        pages = ("/", "/run/{run}", "/compare", "/claims", "/claims/{claim}", "/prompt", "/new")
        return [
            *(Route(path, self.page, methods=["GET"]) for path in pages),
            Route("/static/{name:path}", self.static, methods=["GET"]),
            *(Route(path, answer, methods=["GET"]) for path, answer in api.items()),
            *(Route(path, answer, methods=["POST"]) for path, answer in changes.items()),
        ]

    async def page(self, request: Request) -> Response:
        return HTMLResponse(_shell()[0])

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        content = _static().get(name)
        if content is None:
            raise HTTPException(404, "there is no such file")
        kind = _TYPES["." + name.rpartition(".")[2]]
        return Response(content, headers={"content-type": kind, "cache-control": "no-cache"})

    async def runs(self, request: Request) -> Response:
        return await _json(casebook.list_runs, self.study, _asked(request))

    async def run(self, request: Request) -> Response:
        return await _json(casebook.run_of, self.study, request.path_params["run"])

    async def payload(self, request: Request) -> Response:
        return await _json(casebook.payload_of, self.study, request.path_params["run"])

    async def compare(self, request: Request) -> Response:
        a, b = (request.query_params.get(side, "") for side in "ab")
        if not (a and b) or len(request.query_params) > 2:
            raise StudyError("two runs are compared; give their ids as a and b: /api/compare?a=RUN&b=RUN")
        return await _json(casebook.compared, self.study, a, b)

    async def claims(self, request: Request) -> Response:
        _only(request.query_params, (), "the list of claims is told whole; it is not asked for")
        return await _json(claims.list_claims, self.study)

    async def claim(self, request: Request) -> Response:
        return await _json(claims.claim_of, self.study, request.path_params["claim"])

    async def table(self, request: Request) -> Response:
        name = request.query_params.get("name", "")
        text = await run_in_threadpool(casebook.csv_of, self.study, request.path_params["run"], name)
        return Response(text.encode("utf-8", "replace"), headers={"content-type": "text/csv; charset=utf-8"})

    async def models(self, request: Request) -> Response:
        return await _json(known_models, self.study)

    async def methods(self, request: Request) -> Response:
        return await _json(forms, self.study)

    async def list_jobs(self, request: Request) -> Response:
        return await _json(self.jobs.all)

    async def start(self, request: Request) -> Response:
        body = await request.json()
        _only(
            body,
            ("method", "params", "force"),
            "a study is begun with a method, its params and, to do it again, force, not",
        )
        method, params, force = body.get("method"), body.get("params", {}), body.get("force", False)
        if not (isinstance(method, str) and isinstance(params, dict) and isinstance(force, bool)):
            raise StudyError("a study is begun with a method, its params and, to do it again, force")
        return await _json(lambda: self.jobs.start(method, params, force=force))

    async def cancel(self, request: Request) -> Response:
        _only(await request.json(), (), "a job is stopped without")
        return await _json(self.jobs.cancel, request.path_params["job"])

    async def resume(self, request: Request) -> Response:
        _only(await request.json(), (), "a run is gone on with as it was asked, without")
        return await _json(self.jobs.resume, request.path_params["run"])

    async def stop(self, request: Request) -> Response:
        _only(await request.json(), (), "a run is stopped without")
        return await _json(lambda: {"process": stop(casebook.find(self.study, request.path_params["run"]))})

    async def prompt(self, request: Request) -> Response:
        look = look_of(await request.json())

        async def lines() -> AsyncIterator[str]:
            async for part in self.prompts.read(look):
                yield json.dumps(part) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def live(self, request: Request) -> Response:
        watch = Watch(self.study)

        async def told() -> AsyncIterator[tuple[str, Any]]:
            last = None
            while True:
                seen = await run_in_threadpool(lambda: watch.look() | {"jobs": self.jobs.all()})
                if seen != last:
                    yield "study", seen
                last = seen
                yield "", None

        return self.stream(told())

    async def events(self, request: Request) -> Response:
        record = await run_in_threadpool(casebook.find, self.study, request.path_params["run"])
        following = Events(record.path)

        async def told() -> AsyncIterator[tuple[str, Any]]:
            more = True
            while more:
                events, more = await run_in_threadpool(following.more)
                if events:
                    yield "events", events
                yield "", None
            yield "end", {"status": await run_in_threadpool(lambda: casebook.find(self.study, record.id).status)}

        return self.stream(told())

    def stream(self, told: AsyncIterator[tuple[str, Any]]) -> Response:
        """Server-sent events; an event without a name is a pause."""
        if self.streams >= STREAMS:
            raise HTTPException(503, f"{STREAMS} pages follow already; close one")

        async def lines() -> AsyncIterator[str]:
            self.streams += 1
            try:
                quiet = 0.0
                async for name, data in told:
                    if self.closing.is_set():
                        return
                    if name:
                        quiet = 0.0
                        yield f"event: {name}\ndata: {json.dumps(data)}\n\n"
                        continue
                    quiet += PAUSE
                    if quiet > 15:  # a reader that has gone shows only when it is written to
                        quiet = 0.0
                        yield ": still here\n\n"
                    await self.pause()
            finally:
                self.streams -= 1

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def pause(self) -> None:
        """A moment, or until the server ends."""
        try:
            await asyncio.wait_for(self.closing.wait(), PAUSE)
        except TimeoutError:
            return


async def _json(function: Callable[..., Any], *arguments: Any) -> Response:
    """What a function of plain data says, computed in a thread."""

    def made() -> bytes:
        return json.dumps(function(*arguments), ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()

    return Response(await run_in_threadpool(made), media_type="application/json")


def _only(given: Iterable[str], known: Collection[str], sentence: str) -> None:
    """StudyError for a name that is not known; the name ends the sentence."""
    if unknown := sorted(set(given) - set(known)):
        raise StudyError(f"{sentence} {unknown[0]!r:.80}")


def _asked(request: Request) -> casebook.Asked:
    """The query of a list; StudyError for what it does not know."""
    given = dict(request.query_params)
    known = {field.name: type(field.default) for field in fields(casebook.Asked)}
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in known:
            raise StudyError(f"a list of runs is not asked for {name!r}; it is for {', '.join(known)}")
        if known[name] is int:
            if not (text.isascii() and text.isdigit() and len(text) < 7):
                raise StudyError(f"{name} is a whole number from 1 on, not {text!r:.80}")
            values[name] = int(text)
        else:
            if known[name] is bool and text not in ("true", "false"):
                raise StudyError(f"{name} is true or false, not {text!r:.80}")
            values[name] = text == "true" if known[name] is bool else text
    return casebook.Asked(**values)


async def _refused(request: Request, error: Exception) -> Response:
    """A request that cannot be carried out, in one sentence."""
    if isinstance(error, HTTPException):
        if error.status_code == 404 and not request.url.path.startswith(("/api/", "/static/")):
            return HTMLResponse(_shell()[0], 404)
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse(
        {"error": str(error)}, 404 if isinstance(error, casebook.NoSuchRun | claims.NoSuchClaim) else 400
    )


async def _defect(request: Request, error: Exception) -> Response:
    """An error of ours, or of the disk."""
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)


def application(study: Study, *, token: str, port: int, load: Load = load) -> Application:
    """The ASGI application for one study; answers to 127.0.0.1 and localhost on that port, with that token. `load` gives
    the prompt box its models."""
    app = _App(study, load)
    inner = Starlette(
        routes=app.routes(),
        exception_handlers={HTTPException: _refused, CasebackError: _refused, OSError: _defect, Exception: _defect},
    )
    hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
    return Application(Guard(inner, hosts=hosts, token=token, csp=policy(_shell()[1])), app)


class Application:
    """The gate with everything behind it, so that an answer to a defect of ours is sealed as well."""

    def __init__(self, gate: Guard, app: _App) -> None:
        self._gate = gate
        self.prompts, self.jobs, self.closing = app.prompts, app.jobs, app.closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gate(scope, receive, send)

    def close(self) -> int:
        """Drop what the prompt box still computes; how many studies begun from the page go on by themselves."""
        self.closing.set()
        self.prompts.close()
        return self.jobs.close()


class _Server(uvicorn.Server):
    """Tells the application when it ends, and the caller when it answers."""

    ready: Callable[[], None]
    closing: asyncio.Event

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self.closing.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self.ready()


def serve(study: Study, *, port: int | None = None, browser: bool = True, say: Callable[[str], None] = print) -> int:
    """Serve a study on the loopback address until Ctrl-C; `say` is told the address to open. Returns how many studies
    begun from the page go on by themselves.

    Without a port the usual one is taken, or any free one where that is in use. Raises StudyError for a port in use.
    """
    listening = _listen(port)
    number = listening.getsockname()[1]
    token = secrets.token_urlsafe(24)
    address = f"http://127.0.0.1:{number}/#token={token}"
    app = application(study, token=token, port=number)
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=2
    )
    server = _Server(config)
    server.closing = app.closing

    def ready() -> None:
        say(address)
        if browser:
            asyncio.get_running_loop().run_in_executor(None, webbrowser.open, address)

    server.ready = ready
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell began us in the background
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn passes on the signal it ended by
        pass
    finally:
        listening.close()
    return app.close()


def _listen(port: int | None) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", DEFAULT_PORT if port is None else port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        if error.errno != errno.EADDRINUSE:
            raise StudyError(
                f"port {port} of this machine cannot be used ({error.strerror}); choose another"
            ) from error
        if port is None:
            return _listen(0)
        raise StudyError(f"port {port} is in use; choose another with --port, or 0 for any that is free") from error
    return listening
