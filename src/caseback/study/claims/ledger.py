"""Claims as files beside the runs that test them.

    <study>/claims/<id>.json    component, description, predictions, and the prompts it was found on; written once

A claim says before it is tested what its tests must show, so it is never changed: another wording is another claim. Its
tests are runs of the method "claim-test" that name its id; its status is read off them (`caseback.study.claims.rule`).
The id ends in a hash of the content, so a test belongs to these words and no others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from caseback.circuits.graph import Circuit
from caseback.circuits.hypothesis import Hypothesis
from caseback.core.errors import StudyError
from caseback.core.provenance import sha256_file, sha256_json
from caseback.model.model import Model
from caseback.study.circuit import CircuitConfig, data_hash
from caseback.study.claims.component import Component, where
from caseback.study.claims.kinds import read_component
from caseback.study.claims.rule import CAUSAL, Status, status_of, verdict_of
from caseback.study.files import Newer, NotRead, cannot_write, lost, read_json, write_json
from caseback.study.judged import prompts_of
from caseback.study.readings.of_tuned import read_texts
from caseback.study.relation import RelationConfig
from caseback.study.spec import plain
from caseback.study.store import Record, Study
from caseback.tasks.files import is_file, read_task
from caseback.tasks.task import Task

__all__ = [
    "Claim",
    "FoundOn",
    "Standing",
    "claim_ids",
    "claims",
    "damaged",
    "found_on_run",
    "found_on_task",
    "least",
    "found_on_texts",
    "new_claim",
    "prompt_hash",
    "read_claim",
    "standing",
    "standings",
]

METHOD = "claim-test"
SCRUB = "scrub"
BOTH = tuple(test for test in CAUSAL if test != SCRUB)


@dataclass(frozen=True, kw_only=True)
class FoundOn:
    """What a claim was found on; with all fields empty it was thought up without data."""

    run: str | None = None
    task: str | None = None
    """A library task's name, or a file of pairs."""
    n: int | None = None
    seed: int = 0
    half: str = ""
    """discovery: that half of the task's pairs; all: both."""
    texts: str | None = None
    """A file of texts."""
    prompts: tuple[str, ...] = field(default=(), repr=False)
    """`prompt_hash` of every prompt, clean and counterfactual, and of every text."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A component, what is said of it, and what its tests must show."""

    component: str
    description: str
    """In words."""
    model: Mapping[str, Any]
    """id, revision and files (name → SHA-256) of the model it is about."""
    load: str | None = None
    """The model as given to `load`; None is the default model."""
    attends: tuple[str, str] | None = None
    """Predicted: from the first span, the heads take most from the second."""
    active: str | None = None
    """Predicted: the direction or feature is active at the tokens of this span."""
    active_on: tuple[str, ...] = ()
    """Predicted: it is active at the tokens of a text that begin one of these words."""
    effect: tuple[float, float] | None = None
    """Predicted: between which shares of the answer goes when the component is replaced by its mean."""
    causal: tuple[str, ...] = BOTH
    """Claimed: sufficiency (the component is enough to bring the answer back), necessity (the answer is lost without it), or
    both. A part with a backup is enough without being needed. Of a hypothesis: scrub."""
    at_least: float = 0.05
    """The share of the answer the component must carry, in (0, 1]; in a minimality test, its parts together."""
    vector: str | None = None
    """SHA-256 of what a direction, a feature or a relation's operator is made of."""
    found_on: FoundOn = field(default_factory=FoundOn)
    created: str = ""
    """UTC, ISO 8601; not part of the id."""

    def __post_init__(self) -> None:
        if not self.description.strip():
            raise StudyError("a claim needs a description in words: what the component does")
        if not self.causal or not set(self.causal) <= set(CAUSAL):
            raise StudyError(
                f"a claim is of {' or '.join(BOTH)}, or of both; got {', '.join(self.causal) or 'neither'}"
            )
        if not 0 < self.at_least <= 1:
            raise StudyError(f"the share a component must carry lies in (0, 1], got {self.at_least}")
        if self.active is not None and self.active_on:
            raise StudyError("a claim says that its part is active in a span, or on words; not both")
        if not all(word.strip() == word != "" for word in self.active_on):
            raise StudyError(f"the words it is active on are written word,word; got {','.join(self.active_on)!r}")
        if self.effect is not None and not self.effect[0] < self.effect[1]:
            raise StudyError(
                f"a predicted effect lies between a lower and a higher share, got {self.effect[0]} to {self.effect[1]}"
            )

    @property
    def spans(self) -> tuple[str, ...]:
        """Spans it predicts something of."""
        return (*(self.attends or ()), *((self.active,) if self.active else ()))

    @property
    def id(self) -> str:
        """Beginning of component and description, and a hash of all but the date; what was not always asked counts where it
        is said, so that older claims keep their ids."""
        body = {name: value for name, value in asdict(self).items() if name != "created"}
        for part, later in ((body, ("active", "active_on")), (body["found_on"], ("texts",))):
            for name in later:
                if not part[name]:
                    del part[name]
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.component} {self.description}".lower()).strip("-")
        return f"{words[:40].strip('-')}-{sha256_json(plain(body))[:8]}"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A claim with its tests and what follows from them."""

    claim: Claim
    status: Status
    tests: tuple[Mapping[str, Any], ...]
    """Rows of the tests' runs, oldest first: test, value, low, high, control, bar, over, verdict, pairs, split, forwards, run."""


def least(component: str) -> float:
    """The share of the answer a component must carry where a claim does not say: one part of many a twentieth, a hypothesis
    about all that matters half."""
    return 0.5 if component.startswith("hypothesis:") else 0.05


def prompt_hash(text: str) -> str:
    """16 hexadecimal digits of a prompt's SHA-256."""
    return sha256(text.encode()).hexdigest()[:16]


def hashes(task: Task) -> tuple[str, ...]:
    """Of all prompts of a task, each once."""
    return tuple(sorted({prompt_hash(text) for pair in task.pairs for text in (pair.clean, pair.counterfactual)}))


def found_on_task(task: str, model: Model, *, n: int | None = None, seed: int = 0) -> FoundOn:
    """The discovery half of a task; its held-out half is left for the tests."""
    read = read_task(task, n=n, seed=seed, model=model)
    return FoundOn(task=task, n=n, seed=seed, half="discovery", prompts=hashes(read.discovery))


def found_on_texts(file: str, also: FoundOn) -> FoundOn:
    """The texts of a file, beside what else a claim was found on."""
    seen = {prompt_hash(text) for text in read_texts(file)}
    return replace(also, texts=file, prompts=tuple(sorted({*also.prompts, *seen})))


def found_on_run(record: Record, model: Model) -> FoundOn:
    """All prompts a run looked at. Raises StudyError where they cannot be told, or are others now."""
    asked = record.spec.params
    if record.spec.method == "relation":
        seen = {prompt_hash(text) for text in prompts_of(record.spec.config(RelationConfig), model)}
        return FoundOn(run=record.id, prompts=tuple(sorted(seen)))
    if asked.get("task"):
        task, n, seed = str(asked["task"]), asked.get("n"), int(asked.get("seed") or 0)
        circuit = record.spec.method == "circuit"  # whose pairs may have been given other spans
        read = (
            record.spec.config(CircuitConfig).read_task(model)
            if circuit
            else read_task(task, n=n, seed=seed, model=model)
        )
        given = [data_hash(read)] + ([sha256_file(task)] if is_file(task) else [])
        if (
            record.spec.data is not None
            and record.spec.method in ("circuit", "patch", "dla")
            and record.spec.data not in given
        ):
            raise StudyError(
                f"run {record.id} looked at other pairs than {task!r} gives now; restore the file, or name --task"
            )
        return FoundOn(run=record.id, task=task, n=n, seed=seed, half="all", prompts=hashes(read))
    if asked.get("prompt"):
        return FoundOn(run=record.id, prompts=(prompt_hash(str(asked["prompt"])),))
    if record.spec.method in ("heads", "weights"):  # random tokens, or no text at all
        return FoundOn(run=record.id)
    raise StudyError(
        f"run {record.id} ({record.spec.method}) does not say which pairs it looked at; name them with --task"
    )


def new_claim(study: Study, model: Model, claim: Claim) -> Claim:
    """Write a claim down, its component spelled out; the same claim again is the one that is there.

    Raises StudyError or SiteError where the component does not exist or a predicted span is not among the task's.
    """
    component = read_component(claim.component, study, model)
    claim = replace(claim, component=component.text, model=plain(asdict(model.source)), vector=component.sha256)
    if component.kind == "hypothesis":
        if claim.causal not in (BOTH, (SCRUB,)):
            raise StudyError("what a hypothesis says is scrubbed all at once; leave out whether it is enough or needed")
        claim = replace(claim, causal=(SCRUB,))
    component.require(tuple(test for test in claim.causal if test == SCRUB))
    component.require_prediction(attends=claim.attends is not None, active=bool(claim.active or claim.active_on))
    if claim.effect:
        component.require(("effect",))
    if component.run is not None:  # found on what its run looked at, whatever else the claim was found on
        run = found_on_run(study.find(component.run), model)
        found = claim.found_on if claim.found_on.prompts else run
        prompts = tuple(sorted({*found.prompts, *run.prompts}))
        half = "all" if component.kind == "circuit" else found.half
        claim = replace(claim, found_on=replace(found, half=half, prompts=prompts))
    if claim.found_on.task and component.kind != "circuit":
        task = read_task(claim.found_on.task, n=claim.found_on.n, seed=claim.found_on.seed, model=model)
        require_spans(task, component, model, claim.spans)
    path = study.path / "claims" / f"{claim.id}.json"
    if path.exists():
        return read_claim(study, claim.id)
    claim = replace(claim, created=datetime.now(UTC).isoformat(timespec="seconds"))
    study.make()
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    write_json(path, asdict(claim))
    return claim


def require_spans(task: Task, component: Component, model: Model, names: Sequence[str] = ()) -> None:
    """Raise SiteError or StudyError where a task's pairs lack a span the component, or a prediction (`names`), is about."""
    batch = task[:1].encode(model).clean
    for site in component.sites:
        where(site, batch)
    if isinstance(component.target, Hypothesis):
        component.target.require_features(batch.spans)
    if missing := [name for name in names if name not in batch.spans]:
        raise StudyError(f"the task has no span {missing[0]!r}; it has: {', '.join(batch.spans) or 'none'}")
    if isinstance(component.target, Circuit) and tuple(batch.spans) != component.target.graph.spans:
        raise StudyError(
            f"the circuit has the spans {', '.join(component.target.graph.spans)}, the task {task.name!r} "
            f"{', '.join(batch.spans) or 'none'}; test it on pairs with the circuit's"
        )


def claim_ids(study: Study) -> tuple[str, ...]:
    """The ids of all claims, in the order of the alphabet."""
    try:
        found = os.listdir(study.path / "claims")
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise StudyError(f"{study.path / 'claims'} cannot be read ({error.strerror})") from error
    return tuple(sorted(name[:-5] for name in found if name.endswith(".json") and not name.startswith(".")))


def read_claim(study: Study, name: str) -> Claim:
    """The claim with this id, an unambiguous beginning of one, or "latest"."""
    ids = claim_ids(study)
    if not ids:
        raise StudyError(f"there are no claims in {study.path}; `caseback claim new` makes one")
    if name == "latest":
        if found := claims(study):
            return found[-1]
        name = ids[0]  # which says what is wrong with it
    fitting = [name] if name in ids else [each for each in ids if each.startswith(name)]
    if len(fitting) != 1:
        what = f"is the beginning of {len(fitting)} claims" if fitting else f"is no claim in {study.path}"
        raise StudyError(f"{name!r} {what}; there are: {', '.join((fitting or list(ids))[:8])}")
    return _read(study.path / "claims" / f"{fitting[0]}.json")


def claims(study: Study) -> tuple[Claim, ...]:
    """All claims that can be read, oldest first; `damaged` tells the others."""
    found, _ = _read_all(study)
    return tuple(sorted(found, key=lambda claim: (claim.created, claim.id)))


def damaged(study: Study) -> dict[str, str]:
    """Id → what is wrong, of the claims that cannot be read."""
    return _read_all(study)[1]


def _read_all(study: Study) -> tuple[list[Claim], dict[str, str]]:
    found, wrong = [], {}
    for name in claim_ids(study):
        try:
            found.append(_read(study.path / "claims" / f"{name}.json"))
        except StudyError as error:
            wrong[name] = str(error)
    return found, wrong


_TUPLES = ("attends", "effect", "causal", "active_on")


def _read(path: Path) -> Claim:
    try:
        return _parsed(path)
    except (Newer, NotRead):
        raise
    except StudyError as error:
        raise lost(error) from error


def _parsed(path: Path) -> Claim:
    body = read_json(path)
    try:
        found = body["found_on"]
        claim = Claim(
            **{key: value for key, value in body.items() if key not in ("found_on", *_TUPLES)},
            attends=tuple(body["attends"]) if body["attends"] else None,
            effect=tuple(body["effect"]) if body["effect"] else None,
            causal=tuple(body["causal"]),
            active_on=tuple(body.get("active_on", ())),
            found_on=FoundOn(**{**found, "prompts": tuple(found["prompts"])}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # ValueError: what a claim refuses
        raise StudyError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if claim.id != path.stem:
        raise StudyError(f"{path} is not the claim its name says; put the file back as it was, or remove it")
    return claim


def standing(study: Study, claim: Claim) -> Standing:
    """A claim's tests, found by its id among the study's finished runs (those of a random twin, which test the method, left
    out), and its status."""
    (found,) = standings(study, [claim])
    return found


def standings(study: Study, found: Sequence[Claim]) -> tuple[Standing, ...]:
    """How several claims stand; every run is read once."""
    tests = _tests(study)
    return tuple(_standing(claim, tests.get(claim.id, [])) for claim in found)


def _standing(claim: Claim, rows: Sequence[Mapping[str, Any]]) -> Standing:
    verdicts = [(str(row["test"]), verdict_of(_end(row["over_low"], -1), _end(row["over_high"], 1))) for row in rows]
    return Standing(claim=claim, status=status_of(verdicts), tests=tuple(rows))


def _tests(study: Study) -> dict[str, list[Mapping[str, Any]]]:
    """A claim's id → the rows of the runs that count for it."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for id in study.ids():
        if f"-{METHOD}-" not in id:
            continue
        try:
            record = Record.open(study.path / "runs" / id)
            if record.spec.method != METHOD or record.spec.params.get("twin") or record.status != "finished":
                continue
            found = [{**row, "run": id} for row in record.result["table"]["tests"]]
            rows.setdefault(str(record.spec.params.get("claim")), []).extend(found)
        except StudyError:
            continue  # a damaged run says nothing; `caseback runs` shows it
    return rows


def _end(value: float | None, side: int) -> float:
    """An end of an interval as a record has it: None where the data do not bound it."""
    return side * float("inf") if value is None else float(value)
