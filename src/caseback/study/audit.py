"""The audit: a model examined by every method that offers itself, at sizes that fit the time given.

A method joins by registering ("audit", name): a `Part` says which question it answers and what it would ask, in sizes
from the largest down, each with its cost in prompts (the time one short prompt takes this model on this machine, which
is measured first). Every examination is a run of its own, cited here, so a stopped audit goes on where it was, and what
it says can be opened, compared and repeated.

Time is shared by weight: an examination gets its share of what is left, and what it does not use falls to the rest. A
run the study has already costs nothing and is taken. What did not fit is listed as not tested: an audit that is silent
about something has not looked at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caseback.core import registry
from caseback.core.errors import CasebackError
from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint
from caseback.evidence import proportion_interval
from caseback.model.check import check
from caseback.model.model import Model
from caseback.study.circuit import headline
from caseback.study.files import NotWritten
from caseback.study.finding import Finding, Looking, LookingConfig, cell, sheet
from caseback.study.resume import Busy, RunFolder
from caseback.study.spec import Asked
from caseback.study.store import Record, Study
from caseback.tasks import library, read_task

__all__ = ["AUDIT", "AuditConfig", "Known", "Part", "Size", "Wish", "audit", "choose"]

ASKED = 24
"""Pairs of each task a model is asked first."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig(LookingConfig):
    """How long to look."""

    minutes: float = 10.0
    """For all examinations together, loading the model aside; the last one may run over."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 10_000:
            raise CasebackError(f"an audit takes more than 0 and at most 10,000 minutes, not {self.minutes:g}")
        if self.twin:
            raise CasebackError("an audit looks at the model itself; each of its methods has a twin of its own")

    @property
    def label(self) -> str:
        return "audit"


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the first look told."""

    config: AuditConfig
    model: Model
    accuracy: Mapping[str, float]
    """Of each task that could be asked."""

    @property
    def best(self) -> tuple[str, ...]:
        """Tasks the model answers in at least 80 %, best first; of equals the one most is known of."""
        able = [task for task, share in self.accuracy.items() if share >= 0.8]
        return tuple(sorted(able, key=lambda task: (-self.accuracy[task], task != "ioi", task)))


@dataclass(frozen=True)
class Size:
    """One way to ask."""

    prompts: float
    """What it costs, in the time of one prompt."""
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One examination."""

    question: str
    method: str
    sizes: Sequence[Size]
    """Largest first."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A method's share of an audit."""

    order: int
    """Small numbers come first."""
    weight: float
    """Of each of its examinations, in sharing the time."""
    wishes: Callable[[Known], Sequence[Wish]] = field(repr=False)
    """What to ask of this model; () where it has nothing for the method."""


def choose(sizes: Sequence[Size], *, prompt: float, left: float, share: float) -> Size | str:
    """The largest size that fits the share, else the smallest if it fits what is left at all (both in seconds); else a
    sentence."""
    fits = [size for size in sizes if size.prompts * prompt <= share]
    if fits:
        return fits[0]
    least = sizes[-1]
    if least.prompts * prompt <= left:
        return least
    return f"takes about {least.prompts * prompt:.0f} s, and {max(0.0, left):.0f} s were left"


def audit(config: AuditConfig, model: Model, run: RunFolder, progress: Progress) -> Finding:
    """Identities, tasks, then for every examination its size and its run; each a stage, so that a stopped audit goes on with
    the sizes it chose and the time that was left."""
    identities = run.stage("identities", lambda: _identities(config, model)).data
    asked = run.stage("tasks", lambda: _tasks(config, model, progress)).data
    known = Known(config=config, model=model, accuracy={row[0]: row[1][0] for row in asked["rows"] if row[1]})
    parts = sorted((registry.get("audit", name) for name in registry.names("audit")), key=lambda part: part.order)
    wishes = [(part.weight, wish) for part in parts for wish in part.wishes(known)]
    study = Study(run.study)
    left = 60 * config.minutes - identities["seconds"] - asked["seconds"]
    done: list[dict[str, Any]] = []
    for i, (weight, wish) in enumerate(wishes):
        share = left * weight / sum(weight for weight, _ in wishes[i:])

        def sized(wish: Wish = wish, left: float = left, share: float = share) -> Checkpoint:
            size = _there(study, config, model, wish, progress)
            chosen = choose(wish.sizes, prompt=asked["prompt"], left=left, share=share) if size is None else size
            why = chosen if isinstance(chosen, str) else ""
            return Checkpoint(data={"place": None if why else list(wish.sizes).index(chosen), "why": why})  # type: ignore[arg-type]

        size = run.stage(f"size-{i}", sized).data

        def examined(wish: Wish = wish, size: Mapping[str, Any] = size) -> Checkpoint:
            return Checkpoint(data=_examined(study, config, model, wish, size, progress))

        done.append(dict(run.stage(f"study-{i}", examined).data))
        left -= done[-1]["seconds"]
        progress("examinations", i + 1, len(wishes))
    return _finding(model, identities["rows"], asked["rows"], done)


def _identities(config: AuditConfig, model: Model) -> Checkpoint:
    begin = time.perf_counter()
    report = check(model, seed=config.seed)
    rows = [
        ["-" if one.skipped else "ok" if one.passed else "FAIL", one.name, one.error, one.skipped or one.equation]
        for one in report.identities
    ]
    return Checkpoint(data={"rows": rows, "seconds": time.perf_counter() - begin})


def _tasks(config: AuditConfig, model: Model, progress: Progress) -> Checkpoint:
    """Accuracy on every task, and the seconds a prompt takes."""
    rows: list[list[Any]] = []
    seconds = prompts = 0.0
    began = time.perf_counter()
    for i, name in enumerate(library.names()):
        progress("tasks", i, len(library.names()))
        try:
            found = read_task(name, n=ASKED, seed=config.seed, model=model)
            begin = time.perf_counter()
            answered = found.check(model)
            seconds, prompts = seconds + time.perf_counter() - begin, prompts + 2 * found.n
        except CasebackError as error:
            rows.append([name, None, str(error)])
            continue
        told = proportion_interval(round(answered.accuracy * answered.fit), answered.fit)
        rows.append([name, cell(told), f"{answered.fit} pairs"])
    if not prompts:
        raise CasebackError(f"none of the tasks can be asked of {model.name}: {rows[0][2]}")
    return Checkpoint(data={"rows": rows, "prompt": seconds / prompts, "seconds": time.perf_counter() - began})


def _config(config: AuditConfig, wish: Wish, size: Size) -> Any:
    common = {name: getattr(config, name) for name in ("model", "seed", "dtype", "device")}
    return registry.get("method", wish.method).Config(**common, **size.settings)


def _there(study: Study, config: AuditConfig, model: Model, wish: Wish, progress: Progress) -> Size | None:
    """The largest size of which the study has a finished run already."""
    method: Asked = registry.get("method", wish.method)
    for size in wish.sizes:
        try:
            spec, _ = method.prepare(_config(config, wish, size), study, passed={}, progress=progress, model=model)
        except CasebackError:
            return None  # said when it is carried out
        if study.finished(spec):
            return size
    return None


def _examined(
    study: Study, config: AuditConfig, model: Model, wish: Wish, size: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """What came of one examination: its run and claim, or why there is none."""
    told = {"question": wish.question, "method": wish.method, "run": None, "claim": "", "why": "", "seconds": 0.0}
    if size["place"] is None:
        return told | {"why": size["why"]}
    begin = time.perf_counter()
    try:
        record = study.ask(
            wish.method, _config(config, wish, wish.sizes[size["place"]]), model=model, progress=progress
        )
        told |= {"run": record.id, "claim": _claim(record)}
    except (Busy, NotWritten):  # says nothing of the model: the audit stops, and goes on when it is resumed
        raise
    except CasebackError as error:
        told["why"] = str(error)
    return told | {"seconds": time.perf_counter() - begin}


def _claim(record: Record) -> str:
    """The run's finding in a sentence."""
    if record.spec.method == "circuit":
        return headline(record.table, record.details)
    return str(record.stage("view").data["claim"])


def _finding(
    model: Model, identities: Sequence[Any], tasks: Sequence[Any], done: Sequence[Mapping[str, Any]]
) -> Finding:
    failed = [row[1] for row in identities if row[0] == "FAIL"]
    found, missing = ([one for one in done if bool(one["run"]) is told] for told in (True, False))
    held = "its accounting identities hold" if not failed else f"its identities {', '.join(failed)} FAIL"
    able = [row[0] for row in tasks if row[1] and row[1][1] > 0.5]
    answers = (
        f"it answers {', '.join(able)} better than by guessing"
        if able
        else "it answers no task better than by guessing"
    )
    claim = (
        f"{model.name}: {held}; {answers}. {len(found)} of {len(done)} examinations were carried out; "
        f"{len(missing)} were not, and of what they ask nothing is known."
    )
    sections: list[dict[str, Any]] = [
        {
            "title": "Found",
            "text": "One run each: its page has the controls and the intervals.",
            "table": sheet(
                "text question, text found, number seconds, text run",
                [[one["question"], one["claim"], one["seconds"], one["run"]] for one in found],
            ),
        },
        {
            "title": "Not tested",
            "text": "More minutes, or another model, for these.",
            "table": sheet("text question, text why", [[one["question"], one["why"]] for one in missing]),
        },
        {
            "title": "Tasks",
            "text": f"Share of {ASKED} pairs of each whose answer is likelier than its foil, with Wilson's interval; guessing is 50 %.",
            "table": sheet("text task, percent right, text asked", tasks),
        },
        {
            "title": "Identities",
            "text": "Equations that hold when caseback reads this model rightly; the error is relative.",
            "detail": True,
            "table": sheet(
                "text held, text identity, text error, text equation",
                [
                    [held, name, "–" if error is None else f"{error:.1e}", what]
                    for held, name, error, what in identities
                ],
            ),
        },
    ]
    table = {
        "identities": {name: held for held, name, *_ in identities},
        "tasks": {name: right for name, right, _ in tasks},
        "found": [dict(one) for one in found],
        "not_tested": [{"question": one["question"], "why": one["why"]} for one in missing],
    }
    notes = [
        "Sizes were chosen to fit the time, so intervals are wider than those of a study by itself.",
        "An audit finds what its methods can find: that nothing was found is not that there is nothing.",
    ]
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=len(done))


AUDIT = Looking("audit", AuditConfig, "Audit", audit)
