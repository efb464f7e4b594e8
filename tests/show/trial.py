"""The toy method as one that can be asked for by its config, and some runs of it."""

from __future__ import annotations

from typing import Any

from caseback.core import registry
from caseback.study import Spec

from ..study import toy


class Trial(toy.Toy):
    name = "trial"

    def prepare(
        self, config: Any, study: Any, *, passed: Any, progress: Any, model: Any = None
    ) -> tuple[Spec, dict[str, Any]]:
        return spec(config=config), {}


METHOD = Trial()
registry.register("method", "trial", f"{__name__}:METHOD")


def spec(task: str = "The Task!", *, config: Any = None, **params: Any) -> Spec:
    model = {"id": "org/toy", "revision": None, "files": {"model.safetensors": "00"}}
    return Spec.of("trial", config or toy.Config(**params), task=task, model=model, data="d0", passed={"steps": "four"})
