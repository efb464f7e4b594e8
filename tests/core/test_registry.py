"""The registry: offers are found by name and imported when used; a broken plugin is a warning."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from caseback.core import registry
from caseback.core.errors import CasebackError


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Offers made by a test, and plugins it pretends are installed, end with it."""
    monkeypatch.setattr(registry, "_OFFERS", dict(registry._OFFERS))
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


class Entry:
    """An entry point of a package that is not installed."""

    def __init__(self, name: str, offer: Callable[[Callable[[str, str, str], None]], None]):
        self.name, self.offer = name, offer

    def load(self) -> Any:
        return self.offer


def installed(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    def entry_points(*, group: str) -> tuple[Entry, ...]:
        assert group == "caseback"
        return entries

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def test_an_offer_is_imported_only_when_it_is_used() -> None:
    registry.register("toy", "missing", "no.such.module:thing")
    registry.register("toy", "path", "os.path:join")
    assert registry.names("toy") == ("missing", "path")
    import os.path

    assert registry.get("toy", "path") is os.path.join
    with pytest.raises(ModuleNotFoundError):
        registry.get("toy", "missing")


def test_every_offer_of_our_own_exists() -> None:
    for kind, name in tuple(registry._OFFERS):
        assert registry.get(kind, name) is not None, (kind, name)


def test_a_name_that_does_not_exist_is_answered_with_those_that_do() -> None:
    registry.register("toy", "b", "os:getcwd")
    registry.register("toy", "a", "os:getcwd")
    with pytest.raises(CasebackError, match="there is no toy 'c'; there are: a, b"):
        registry.get("toy", "c")
    with pytest.raises(CasebackError, match="there is no nonsense 'c'; there are: none"):
        registry.get("nonsense", "c")


def test_a_target_without_an_attribute_is_refused() -> None:
    with pytest.raises(CasebackError, match="'os.getcwd' is not of the form 'module:attribute'"):
        registry.register("toy", "a", "os.getcwd")


def test_a_plugin_offers_through_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Entry("friend", lambda register: register("toy", "theirs", "os:getcwd")))
    import os

    assert registry.names("toy") == ("theirs",)
    assert registry.get("toy", "theirs") is os.getcwd


def test_a_broken_plugin_is_a_warning_and_the_others_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(register: Callable[[str, str, str], None]) -> None:
        raise RuntimeError("its own dependency is missing")

    good = Entry("good", lambda register: register("toy", "theirs", "os:getcwd"))
    installed(monkeypatch, Entry("broken", broken), good)
    with pytest.warns(UserWarning, match="plugin 'broken' was left out: its own dependency is missing"):
        assert registry.names("toy") == ("theirs",)
