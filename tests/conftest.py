"""What every test shares: no network, no hub, one default model a session, and a browser where there is one."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import pytest

# Set before anything is imported, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PIP_NO_INDEX"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("CASEBACK_WHEEL", None)
os.environ.pop("CASEBACK_STUDY", None)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NetworkForbidden(AssertionError):
    """A test tried to leave this machine."""


def _local(address: Any) -> bool:
    if not isinstance(address, tuple):  # a Unix socket
        return True
    host = address[0].decode() if isinstance(address[0], bytes) else str(address[0] or "localhost")
    return host in ("localhost", "::1", "0.0.0.0", "::") or host.startswith("127.")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets reach this machine only, and so do look-ups of names."""

    def guarded(original: Any) -> Any:
        def call(self: socket.socket, address: Any, *rest: Any) -> Any:
            if not _local(address):
                raise NetworkForbidden(f"a test tried to reach {address!r}")
            return original(self, address, *rest)

        return call

    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
        if not _local((host,)):
            raise NetworkForbidden(f"a test tried to look up {host!r}")
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture(scope="session")
def default_model() -> Any:
    """The default model, loaded once a session; set-up (`make test`) has put it into the cache."""
    import caseback

    return caseback.load()


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of an installed Chromium; without one the test is skipped, and with CI=true it fails."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        message = f"no Chromium found (looked for {', '.join(CHROMIUM)} on the PATH)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """A headless Chromium driven by Playwright, kept from looking anything up on the network."""
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += [
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",
    ]
    sandbox = hasattr(os, "geteuid") and os.geteuid() != 0  # Chromium refuses its sandbox to root
    with sync_playwright() as playwright:
        driven = playwright.chromium.launch(executable_path=chromium, args=quiet, chromium_sandbox=sandbox)
        yield driven
        driven.close()
