"""A payload as one HTML file that needs nothing else: no server, no network, no build.

The page is a shell with three parts: the style, the payload as JSON, and the views' ES modules. Modules import one
another by bare names ("caseback/dom"), which an import map resolves to `data:` URLs, because relative imports fail from
`file://` and from a notebook's `srcdoc`.

Whatever comes from a model, a prompt or a task is hostile. It reaches the page only as JSON with `<`, `>`, `&` and the
line separators escaped, and the views show it only as text nodes. A content security policy closes what is left:
nothing is fetched, only scripts with the file's nonce run (imports inherit it), and the DOM's string-to-code sinks are
off. The nonce is a hash of all that the file holds, so equal payloads give equal files and no text inside a payload can
name it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from caseback.core import registry
from caseback.study import Record, files

__all__ = ["fragment", "of_record", "page", "write"]

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}

_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'nonce-{nonce}';
 style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; form-action 'none';
 require-trusted-types-for 'script'; trusted-types 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="caseback">
<title>{title}</title>
<link rel="icon" href="data:,">
<style nonce="{nonce}">
{style}</style>
<script type="importmap" nonce="{nonce}">{imports}</script>
</head>
<body>
<main id="view"><p class="unscripted">This page is drawn by a script inside it, and here no script ran.
Open the file itself in a browser; all its numbers are also in the JSON at its end.</p></main>
<script type="application/json" id="payload">{payload}</script>
<script type="module" nonce="{nonce}">
import {{ view }} from "caseback/views/{kind}";
view(document.getElementById("view"), JSON.parse(document.getElementById("payload").textContent));
</script>
</body>
</html>
"""

_FRAME = (
    "<iframe title='{title}' sandbox='allow-scripts' "
    "style='width:100%;height:min(900px,90vh);border:1px solid #8884;border-radius:6px' srcdoc='{page}'></iframe>"
)


def write(payload: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page of a payload to `path`, whole or not at all; its folder must exist."""
    path = Path(path)
    files.write(path, page(payload).encode())
    return path


def page(payload: Mapping[str, Any]) -> str:
    """The self-contained HTML page of a payload. Raises CasebackError when the payload does not follow its schema."""
    registry.get("payload", str(payload.get("kind")))(payload)
    data = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)
    data = data.encode("utf-8", "backslashreplace").decode()  # a lone surrogate becomes its JSON escape
    imports, style = _static()
    return _SHELL.format(
        nonce=hashlib.sha256(f"{imports}{style}{data}".encode()).hexdigest()[:32],
        title=escape(_visible(payload["title"])),
        style=style,
        imports=imports,
        payload=data,
        kind=payload["kind"],
    )


def fragment(payload: Mapping[str, Any]) -> str:
    """The page as an `iframe` for a notebook's `_repr_html_`: its style and scripts reach nothing outside it."""
    return _framed(page(payload), payload["title"])


def of_record(record: Record) -> str:
    """A finished run's page, framed for a notebook."""
    return _framed(str(registry.get("report", record.spec.method)(record)), record.id)


def _framed(html: str, title: str) -> str:
    # Quoted by single quotes, because JSON is full of double ones.
    source = html.replace("&", "&amp;").replace("'", "&#39;")
    return _FRAME.format(title=escape(_visible(title)), page=source)


@cache
def _static() -> tuple[str, str]:
    """The import map of all modules under static/, and the style sheet."""
    root = resources.files("caseback.show") / "static"
    modules = {}
    for folder, prefix in ((root, "caseback/"), (root / "views", "caseback/views/")):
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.name.endswith(".js"):
                code = base64.b64encode(file.read_bytes()).decode()
                modules[prefix + file.name.removesuffix(".js")] = f"data:text/javascript;base64,{code}"
    return json.dumps({"imports": modules}), (root / "page.css").read_text(encoding="utf-8")


def _visible(text: str) -> str:
    """Text without control and direction characters: a title is shown by the browser's own chrome."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
