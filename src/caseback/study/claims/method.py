"""The method "claim-test": a claim's tests as a run, on pairs that are not those it was found on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caseback.circuits.hypothesis import read_hypothesis
from caseback.core.errors import StudyError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_file, sha256_json
from caseback.model.model import Model
from caseback.study.claims.active import beginning
from caseback.study.claims.component import Component
from caseback.study.claims.heldout import unseen, unseen_texts
from caseback.study.claims.kinds import read_component
from caseback.study.claims.ledger import METHOD, Claim, read_claim, require_spans
from caseback.study.claims.rule import CAUSAL, TESTS, Outcome, status_of
from caseback.study.claims.work import Work
from caseback.study.finding import Finding, Looking, LookingConfig, sheet
from caseback.study.readings.of_tuned import read_texts
from caseback.study.resume import RunFolder
from caseback.study.spec import plain
from caseback.study.store import Study
from caseback.tasks.files import is_file, look

__all__ = ["CLAIM_TEST", "ClaimTestConfig", "asked", "rows_of"]


@dataclass(frozen=True, kw_only=True)
class ClaimTestConfig(LookingConfig):
    """Which claim, by which tests, on which pairs."""

    claim: str
    """Id of the claim."""
    task: str | None = None
    """A library task's name, or a file of pairs; its held-out half is used. A prediction on texts alone needs none."""
    n: int | None = 80
    """Pairs, both halves together; None: all of a file."""
    tests: tuple[str, ...] = ()
    """predict, effect, sufficiency, necessity, scrub, minimality, specificity, adversarial: those that are carried out."""
    adversarial: str | None = None
    """A task or file in which the description says the same; or the opposite, where flips is set."""
    flips: bool = False
    """The adversarial pairs say the opposite."""
    texts: str | None = None
    """A .txt file (a text a line) or a .jsonl file ("text"): where a claim of words it is active on is looked at."""
    randoms: int = 60
    """Random components that are compared with; fewer where there are fewer."""

    def __post_init__(self) -> None:
        if unknown := [test for test in self.tests if test not in TESTS]:
            raise StudyError(f"there is no test {unknown[0]!r}; there are: {', '.join(TESTS)}")
        if self.randoms < 1:
            raise StudyError(f"at least one random component is compared with, got {self.randoms}")

    @property
    def label(self) -> str:
        return self.claim

    def data(self) -> str | None:
        """SHA-256 of the files of pairs and texts; library tasks are said by the config."""
        for task in filter(None, (self.task, self.adversarial)):
            look(task)
        files = [sha256_file(task) for task in (self.task, self.adversarial) if task and is_file(task)]
        if self.texts:
            read_texts(self.texts)
            files.append(sha256_file(self.texts))
        return sha256_json(files) if files else None

    def settled(self, study: Study, model: Model, progress: Progress) -> ClaimTestConfig:
        """The config itself, when the claim can be tested so. Raises StudyError for another model than the claim's, tests
        its component does not have, and pairs it was found on."""
        claim = read_claim(study, self.claim)
        files = dict(model.source.files)
        if not self.twin and files != dict(claim.model["files"]):
            raise StudyError(f"the claim is about {claim.model['id']}, not {model.name}; name its model with --model")
        component = bound(claim, study, model, twin=self.twin)
        component.require(self.tests)
        if other := [test for test in self.tests if test in CAUSAL and test not in claim.causal]:
            raise StudyError(
                f"the claim says {' and '.join(claim.causal)} alone, so {other[0]} cannot decide it; make a claim that says so"
            )
        if self.texts and not claim.active_on:
            raise StudyError("texts are for a claim of words it is active on; make it with --active-on WORD,WORD")
        predicts = bool(claim.spans or claim.active_on)
        for test, given in (("predict", predicts), ("effect", claim.effect), ("adversarial", self.adversarial)):
            if test in self.tests and not given:
                raise StudyError(_LACKS[test])
        if "predict" in self.tests and claim.active_on:
            if not self.texts:
                raise StudyError(
                    "the claim says on which words its part is active; name held-out texts with --texts FILE"
                )
            beginning(model, unseen_texts(self.texts, claim), claim.active_on)
        if self.task is None and not (claim.active_on and set(self.tests) == {"predict"}):
            raise StudyError(_NO_PAIRS)
        for task in filter(None, (self.task, self.adversarial)):
            spans = claim.spans if "predict" in self.tests and task == self.task else ()
            require_spans(unseen(task, claim, component, model, n=self.n, seed=self.seed), component, model, spans)
        return self


MEANING = {
    "predict": "Predict: of heads, the share of prompts in which they all take most from where it was said; control: the mean of the "
    "model's other heads. Of a direction or feature, the AUROC of its activation, by which tokens of those it was said to be active "
    "at are told from the others; control: that of the random one that nine of ten do not exceed.",
    "effect": "Effect: share of the answer that goes when its mean over the counterfactual prompts is put in its place.",
    "sufficiency": "Sufficiency: share of the answer that its clean values bring back in the counterfactual run; control: the mean of "
    "random components of its kind.",
    "necessity": "Necessity: share of the answer that goes when its counterfactual values are put into the clean run; control: the "
    "mean of random components of its kind.",
    "scrub": "Scrub: share of the answer that is left when all is exchanged that the hypothesis lets be exchanged, another prompt's "
    "output being 0 %; control: the mean of the same structure in other places. It must keep 80 % of what the same parts carry when "
    "nothing is exchanged.",
    "minimality": "Minimality: what is lost of sufficiency (of a hypothesis, of what scrubbing leaves) without the part that adds least.",
    "specificity": "Specificity: share of random components of its kind that are weaker.",
    "adversarial": "Adversarial: share of the answer it carries on the other input.",
}
_LACKS = {
    "predict": "the claim predicts no attention and no activation; make it with --attends FROM:TO (heads), or with --active SPAN or "
    "--active-on WORD,WORD (a direction or feature) to test that",
    "effect": "the claim predicts no effect; make it with --effect LOW:HIGH to test that",
    "adversarial": "an adversarial test needs other input; name it with --adversarial TASK",
}
_NO_PAIRS = "nothing says which pairs to test this claim on; name them with --task"


def asked(
    study: Study,
    claim: Claim,
    *,
    tests: Sequence[str] = (),
    task: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    adversarial: str | None = None,
    texts: str | None = None,
    **other: Any,
) -> ClaimTestConfig:
    """The config of a claim's test with what was not said filled in: all tests the claim has predictions and input for, on
    the held-out half of the task it was found on; where a run has seen both halves, on that of the next seed's pairs.

    Raises StudyError where nothing says which pairs to test on.
    """
    found = claim.found_on
    none = task is None and found.task is None
    if none and not (texts and claim.active_on and set(tests) <= {"predict"}):
        raise StudyError(_NO_PAIRS)
    if task is None and found.half == "all" and is_file(str(found.task)):
        raise StudyError(f"{found.run} has looked at all pairs of {found.task}; name others with --task")
    same = task is None and found.half == "discovery"
    n = n if n is not None else found.n if same else None
    name = task or found.task
    scrubbed = claim.component.startswith("hypothesis:")
    nodes = read_hypothesis(claim.component.removeprefix("hypothesis:")).nodes if scrubbed else ()
    several = len(nodes) > 1 if scrubbed else "+" in claim.component and ":" not in claim.component
    if n is None and not same and not (name and is_file(name)):
        n = 400 if scrubbed else 80  # many, so that others agree with a prompt
    seed = seed if seed is not None else found.seed + (task is None and found.half == "all")
    if not tests:
        predicts = claim.spans or (claim.active_on and texts)
        possible = {"predict": predicts, "effect": claim.effect, "adversarial": adversarial}
        tests = [test for test in TESTS if possible.get(test, True)]
        left_out = {*(set(CAUSAL) - set(claim.causal)), *(() if several else ("minimality",))}
        tests = ["predict"] if none else [test for test in tests if test not in left_out]
    return ClaimTestConfig(
        claim=claim.id,
        task=name,
        n=n,
        seed=seed,
        tests=tuple(test for test in TESTS if test in tests) if set(tests) <= set(TESTS) else tuple(tests),
        adversarial=adversarial,
        texts=texts,
        **{"model": claim.load, **other},
    )


def bound(claim: Claim, study: Study, model: Model, *, twin: bool = False) -> Component:
    """The claim's component in a model. Raises StudyError where its file is another now."""
    for kind, what in (("circuit:", "a circuit"), ("relation:", "a relation's operator")):
        if twin and claim.component.startswith(kind):
            raise StudyError(f"{what} belongs to the model it was found in, so it has no place in a random twin")
    component = read_component(claim.component, study, model)
    if component.sha256 != claim.vector:
        raise StudyError(f"what {claim.component} is made of has changed since the claim was made; put its file back")
    return component


def test(config: ClaimTestConfig, model: Model, run: RunFolder, progress: Progress) -> Finding:
    """Carry out the tests."""
    study = Study(run.study)
    claim = read_claim(study, config.claim)
    component = bound(claim, study, model, twin=config.twin)
    work = Work(config, claim, component, model, run, progress)
    outcomes, sections = [], []
    for name in config.tests:
        outcome, section = work.test(name)
        outcomes.append(outcome)
        sections += [section] if section else []
    verdicts = [(each.test, each.verdict) for each in outcomes]
    rows = rows_of(outcomes)
    for row in rows:
        row |= work.took(str(row["test"]), int(row["n"]))
    n = max((row["pairs"] for row in rows if row["test"] != "adversarial"), default=0)
    found = claim.found_on
    where = [f"in the run {found.run}"] if found.run else []
    where += [f"on the discovery half of {found.task}, seed {found.seed}"] if found.half == "discovery" else []
    where += [f"on the texts of {found.texts}"] if found.texts else []
    seen = f"The claim was found {' and '.join(where)}." if where else "The claim was not found on data."
    notes = [
        *dict.fromkeys(f"{row['test'].capitalize()}: {row['split']}." for row in rows if row["split"] != work.split),
        *([f"Pairs: {work.split}, {n} {_KEPT[config.twin]}."] if n else []),
        f"{seen} Nothing of it is among what is tested on.",
        "A test supports the claim when the whole interval of its margin (value less what it must reach) lies above 0, and "
        "refutes it when it lies below. The claim's status counts all its runs: `caseback claim show`.",
        "Random components are drawn once; the intervals say how sure the means over pairs are, not the draw.",
    ]
    if component.subjects:
        notes.append(
            f"Pairs that name a subject the operator was estimated on ({', '.join(component.subjects)}) are left out."
        )
    head = {
        "title": f"{component.text}: {claim.description}",
        "text": " ".join(MEANING[name] for name in config.tests),
        "table": _sheet(rows),
    }
    table = {
        "claim": claim.id,
        "component": component.text,
        "description": claim.description,
        "tests": rows,
        "status_by_these": status_of(verdicts),
        "n": n,
    }
    return Finding(
        claim=_sentence(claim, component, outcomes),
        table=table,
        sections=[head, *sections],
        notes=notes,
        measured=n or max(int(row["n"]) for row in rows),
    )


_KEPT = {
    False: "that the model answers right",
    True: "that the model answers right or not (a random twin's are all kept)",
}


def rows_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Outcomes as a record holds them; an end the data do not bound is None."""
    found = []
    for each in outcomes:
        row: dict[str, Any] = {"test": each.test}
        for name, interval in (("value", each.value), ("control", each.control), ("over", each.over)):
            ends = (interval.value, interval.low, interval.high) if interval else (None, None, None)
            keys = ("value", "low", "high") if name == "value" else (name, f"{name}_low", f"{name}_high")
            row |= dict(zip(keys, ends, strict=True))
        found.append(
            plain(row | {"bar": each.bar, "verdict": each.verdict, "forwards": each.forwards, "n": each.value.n})
        )
    return found


def _sheet(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    shown = []
    for row in rows:
        control = [row["control"], row["control_low"], row["control_high"]] if row["control"] is not None else None
        over = [row["over"], row["over_low"], row["over_high"]]
        shown.append([row["test"], [row["value"], row["low"], row["high"]], control, row["bar"], over, row["verdict"]])
    columns = "text test, percent value, percent control, text must reach, percent margin, text verdict"
    return sheet(columns, shown)


def _sentence(claim: Claim, component: Component, outcomes: Sequence[Outcome]) -> str:
    by = {
        verdict: [each.test for each in outcomes if each.verdict == verdict]
        for verdict in ("supports", "refutes", "undecided")
    }
    parts = [
        f"{', '.join(tests)} {verb}" for tests, verb in zip(by.values(), ("for it", "against it", "undecided")) if tests
    ]
    status = status_of([(each.test, each.verdict) for each in outcomes])
    said = f"\N{LEFT DOUBLE QUOTATION MARK}{claim.description}\N{RIGHT DOUBLE QUOTATION MARK}"
    return f"{component.text}, {said}: {'; '.join(parts)}. By these tests alone: {status}."


CLAIM_TEST = Looking(METHOD, ClaimTestConfig, "Tests of a claim", test)
