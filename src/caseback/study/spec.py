"""What was asked: a method, its parameters, the model's files and the data, in a form that can be hashed and carried
out again.

Two requests are the same when method, resolved parameters, model and data are; their digest is then the same, and the
study reopens the run instead of repeating it. What the user typed (`passed`) and the task's display name are kept
beside them and do not count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints, runtime_checkable

import numpy as np

from caseback.core.errors import StudyError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_json

if TYPE_CHECKING:
    from caseback.model.model import Model
    from caseback.study.resume import RunFolder
    from caseback.study.store import Study

__all__ = ["Asked", "Method", "Spec", "flat", "plain"]


@runtime_checkable
class Method(Protocol):
    """What `registry.get("method", name)` returns: a way to carry out a spec."""

    name: str
    Config: Any
    """A frozen dataclass of plain values (numbers, strings, booleans, None, tuples of them) and of such dataclasses."""

    def run(self, config: Any, run: RunFolder, progress: Progress) -> None:
        """Compute through `run.stage` and `run.fold`, end with `run.write_result`."""
        ...


@runtime_checkable
class Asked(Method, Protocol):
    """A method that makes its spec from its config by itself: what commands, sweeps and the page ask."""

    def prepare(
        self, config: Any, study: Study, *, passed: Mapping[str, Any], progress: Progress, model: Model | None = None
    ) -> tuple[Spec, dict[str, Any]]:
        """The spec of a config, and what the run is handed: the model (loaded if it is not given) and the task. A request
        that cannot be carried out is refused here, before there is a run."""
        ...


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One request."""

    method: str
    """Name the method is registered under."""
    params: Mapping[str, Any]
    """Every field of the method's Config, as resolved."""
    task: str
    """Display name of the task, or of the user's file."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Where the model came from: `id`, `revision`, `files` (name → SHA-256)."""
    data: str | None = None
    """SHA-256 of the pairs, texts or prompts the run looks at."""
    passed: Mapping[str, Any] = field(default_factory=dict)
    """Parameters as the user gave them."""

    @staticmethod
    def of(
        method: str,
        config: Any,
        *,
        task: str,
        model: Mapping[str, Any] | None = None,
        data: str | None = None,
        passed: Mapping[str, Any] | None = None,
    ) -> Spec:
        """A spec from the method's Config; `model` is `dataclasses.asdict(model.source)`."""
        return Spec(
            method=method,
            params=plain(config),
            task=task,
            model=plain(model or {}),
            data=data,
            passed=plain(passed or {}),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what makes two requests the same; a model counts by its files' hashes, or by its name where it has
        none.
        """
        model = {"files": self.model["files"]} if self.model.get("files") else self.model
        same = {"method": self.method, "params": self.params, "model": model, "data": self.data}
        return sha256_json(plain(same))

    def config(self, Config: Any) -> Any:
        """The method's Config again, the dataclasses in it included."""
        kinds = get_type_hints(Config)
        try:
            return Config(**{name: _typed(kinds.get(name), _tuples(value)) for name, value in self.params.items()})
        except TypeError as error:
            raise StudyError(
                f"the parameters of this {self.method} run do not fit this version of caseback ({error}); run it anew"
            ) from error


def plain(value: Any) -> Any:
    """As JSON has it: dataclasses and mappings → dict, sequences and arrays → list, non-finite numbers → None."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} {value!r} has no place in a record; use numbers, text, lists and mappings")


def flat(values: Any, above: str = "", *, lists: bool = False) -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}; with `lists` also {"a": [1]} → {"a.0": 1}."""
    if isinstance(values, Mapping):
        parts = values
    elif lists and isinstance(values, (list, tuple)):
        parts = dict(enumerate(values))
    else:
        return {above: values}
    found: dict[str, Any] = {}
    for name, value in parts.items():
        found |= flat(value, f"{above}.{name}" if above else str(name), lists=lists)
    return found


def _typed(kind: Any, value: Any) -> Any:
    """A mapping as the dataclass that stands in its place."""
    is_config = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    return kind(**value) if is_config and isinstance(value, Mapping) else value


def _tuples(value: Any) -> Any:
    """JSON's lists back to the tuples a frozen Config holds."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
