"""What the uses of a judged operator share: one relation, its operator at a layer in the middle of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from caseback.core.errors import RelationError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_json
from caseback.evidence import Interval
from caseback.model.model import Model
from caseback.relations import library
from caseback.relations.cross import Operator
from caseback.study.judged import Judged, UsesConfig, judged, refuse_twin
from caseback.study.resume import RunFolder

__all__ = ["UseConfig", "flat", "operator_of", "tuples"]


@dataclass(frozen=True, kw_only=True)
class UseConfig(UsesConfig):
    """One relation's operator, at one layer."""

    relation: str
    """A library relation's name, or a file."""
    layer: int | None = None
    """Of the operator; None: one between a third and two thirds of the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_twin(self)

    @property
    def label(self) -> str:
        return library.resolve(self.relation).name

    @property
    def relations_used(self) -> tuple[str, ...]:
        return (self.relation,)

    def data(self) -> str:
        """SHA-256 of the relation."""
        return sha256_json(asdict(library.resolve(self.relation)))

    def check(self, model: Model) -> None:
        if self.layer is not None and not 0 <= self.layer < model.n_layers:
            raise RelationError(f"there is no layer {self.layer}; {model.name} has 0 to {model.n_layers - 1}")


def operator_of(
    config: UseConfig, run: RunFolder, model: Model, progress: Progress
) -> tuple[Judged, Operator, list[str]]:
    """The judged relation, its operator at the config's layer, and what is to be said of both."""
    (source,) = judged(config, run, model, progress)
    layer = source.middle if config.layer is None else config.layer
    best = int(source.chosen["layer"])
    by_layer = source.arrays["by_layer"].max(axis=1)
    if config.layer is not None or layer == best:
        said = f"The operator is of layer {layer}, " + ("as asked." if config.layer is not None else "the judged one.")
    else:
        said = (
            f"The operator is of layer {layer}, the most faithful between a third and two thirds of the model "
            f"({by_layer[layer]:.0%}); the relation was judged best at layer {best} "
            f"({by_layer[best]:.0%})."
        )
    notes = [
        f"The relation was judged in the run {source.run}. {said}",
        "Layer, β and the rank of edits were chosen with the samples that are tested here, by how well the relation's own "
        "answer is read and written, not by what is measured here; they flatter all of it a little.",
    ]
    return source, source.at(layer, model, run, progress), notes


def flat(name: str, found: Mapping[str, Interval]) -> dict[str, Any]:
    """Intervals as numbers of a table."""
    return {name: {key: one.value for key, one in found.items()}} | {
        f"{name}_{end}": {key: getattr(one, end) for key, one in found.items()} for end in ("low", "high")
    }


def tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's data with the tuples that JSON keeps as lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
