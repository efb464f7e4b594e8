"""The method "claim-test": a claim's tests as a run, on pairs that are not those it was found on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caseback.core.errors import StudyError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_file, sha256_json
from caseback.core.stages import Checkpoint
from caseback.model.model import Model
from caseback.study.claims import judge
from caseback.study.claims.component import Component, Drawn, read_component
from caseback.study.claims.ledger import METHOD, Claim, hashes, read_claim, require_spans
from caseback.study.claims.patched import Way, both_runs, looks, patched
from caseback.study.claims.rule import CAUSAL, TESTS, Outcome, status_of
from caseback.study.finding import Finding, Looking, LookingConfig, cell, sheet
from caseback.study.resume import RunFolder
from caseback.study.spec import plain
from caseback.study.store import Study
from caseback.tasks.encode import PairBatch
from caseback.tasks.files import is_file, look, read_task
from caseback.tasks.task import Task

__all__ = ["CLAIM_TEST", "ClaimTestConfig", "asked", "rows_of"]

WAYS: dict[str, Way] = {"sufficiency": "denoise", "necessity": "noise"}
DRAWS = 20
"""Random components patched between two saves."""


@dataclass(frozen=True, kw_only=True)
class ClaimTestConfig(LookingConfig):
    """Which claim, by which tests, on which pairs."""

    claim: str
    """Id of the claim."""
    task: str
    """A library task's name, or a file of pairs; its held-out half is used."""
    n: int | None = 80
    """Pairs, both halves together; None: all of a file."""
    tests: tuple[str, ...] = ()
    """Among `rule.TESTS`."""
    adversarial: str | None = None
    """A task or file in which the description says the same, or with `flips` the opposite."""
    flips: bool = False
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
        """SHA-256 of the files of pairs; library tasks are said by the config."""
        for task in filter(None, (self.task, self.adversarial)):
            look(task)
        files = [sha256_file(task) for task in (self.task, self.adversarial) if task and is_file(task)]
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
        for test, given in (("predict", claim.attends), ("effect", claim.effect), ("adversarial", self.adversarial)):
            if test in self.tests and not given:
                raise StudyError(_LACKS[test])
        for task in filter(None, (self.task, self.adversarial)):
            spans = claim.attends if "predict" in self.tests and task == self.task else None
            require_spans(_unseen(task, claim, self, model), component, model, spans or ())
        return self


MEANING = {
    "predict": "Predict: share of prompts in which all its heads take most from where it was said; control: the mean of the model's "
    "other heads.",
    "effect": "Effect: share of the answer that goes when its mean over the counterfactual prompts is put in its place.",
    "sufficiency": "Sufficiency: share of the answer that its clean values bring back in the counterfactual run; control: the mean of "
    "random components of its kind.",
    "necessity": "Necessity: share of the answer that goes when its counterfactual values are put into the clean run; control: the "
    "mean of random components of its kind.",
    "minimality": "Minimality: sufficiency that is lost without the part that adds least.",
    "specificity": "Specificity: share of random components of its kind that are weaker.",
    "adversarial": "Adversarial: share of the answer it carries on the other input.",
}
_LACKS = {
    "predict": "the claim predicts no attention; make it with --attends FROM:TO to test that",
    "effect": "the claim predicts no effect; make it with --effect LOW:HIGH to test that",
    "adversarial": "an adversarial test needs other input; name it with --adversarial TASK",
}


def asked(
    study: Study,
    claim: Claim,
    *,
    tests: Sequence[str] = (),
    task: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    adversarial: str | None = None,
    **other: Any,
) -> ClaimTestConfig:
    """The config of a claim's test with what was not said filled in: all tests the claim has predictions and input for, on
    the held-out half of the task it was found on; where a run has seen both halves, on that of the next seed's pairs.

    Raises StudyError where nothing says which pairs to test on.
    """
    found = claim.found_on
    if task is None and found.task is None:
        raise StudyError("nothing says which pairs to test this claim on; name them with --task")
    if task is None and found.half == "all" and is_file(str(found.task)):
        raise StudyError(f"{found.run} has looked at all pairs of {found.task}; name others with --task")
    same = task is None and found.half == "discovery"
    n = n if n is not None else found.n if same else None
    name = task or str(found.task)
    n = 80 if n is None and not same and not is_file(name) else n
    seed = seed if seed is not None else found.seed + (task is None and found.half == "all")
    if not tests:
        possible = {"predict": claim.attends, "effect": claim.effect, "adversarial": adversarial}
        tests = [test for test in TESTS if possible.get(test, True)]
        left_out = {*(set(CAUSAL) - set(claim.causal)), *(() if "+" in claim.component else ("minimality",))}
        tests = [test for test in tests if test not in left_out]
    return ClaimTestConfig(
        claim=claim.id,
        task=name,
        n=n,
        seed=seed,
        tests=tuple(test for test in TESTS if test in tests) if set(tests) <= set(TESTS) else tuple(tests),
        adversarial=adversarial,
        **{"model": claim.load, **other},
    )


def bound(claim: Claim, study: Study, model: Model, *, twin: bool = False) -> Component:
    """The claim's component in a model. Raises StudyError where its file is another now."""
    if twin and claim.component.startswith("circuit:"):
        raise StudyError("a circuit belongs to the model it was found in, so it has no place in a random twin")
    component = read_component(claim.component, study, model)
    if component.sha256 != claim.vector:
        raise StudyError(f"the file of {claim.component} is another than when the claim was made; put it back")
    return component


def _unseen(name: str, claim: Claim, config: ClaimTestConfig, model: Model) -> Task:
    """The held-out half of a task, none of whose prompts the claim was found on."""
    task = read_task(name, n=config.n, seed=config.seed, model=model).held_out
    if seen := set(hashes(task)) & set(claim.found_on.prompts):
        raise StudyError(
            f"{len(seen)} prompts of {name!r} (held-out half, seed {config.seed}) are among those the claim was found on, and a "
            "claim is not tested on what it was found on; take others with --seed or --task"
        )
    return task


def test(config: ClaimTestConfig, model: Model, run: RunFolder, progress: Progress) -> Finding:
    """Carry out the tests."""
    study = Study(run.study)
    claim = read_claim(study, config.claim)
    component = bound(claim, study, model, twin=config.twin)
    work = _Work(config, claim, component, model, run, progress)
    outcomes, sections = [], []
    for name in config.tests:
        outcome, section = work.test(name)
        outcomes.append(outcome)
        sections += [section] if section else []
    verdicts = [(each.test, each.verdict) for each in outcomes]
    split = f"held-out half of {config.task}, seed {config.seed}"
    rows = rows_of(outcomes)
    for row in rows:
        other = row["test"] == "adversarial"
        row["pairs"] = row["n"] if other else work.pairs.n
        row["split"] = f"held-out half of {config.adversarial}, seed {config.seed}" if other else split
    found = claim.found_on
    seen = {
        "": "The claim was not found on data.",
        "discovery": f"It was found on the discovery half of {found.task}, seed {found.seed}.",
        "all": f"It was found in the run {found.run}.",
    }.get(found.half if found.task else "", "")
    notes = [
        f"Pairs: {split}, {work.pairs.n} that the model answers right"
        + (" or not (a random twin's are all kept)." if config.twin else "."),
        seen + " None of its prompts is among those tested.",
        "A test supports the claim when the whole interval of its margin (value less what it must reach) lies above 0, and "
        "refutes it when it lies below. The claim's status counts all its runs: `caseback claim show`.",
        "Random components are drawn once; the intervals say how sure the means over pairs are, not the draw.",
    ]
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
        "n": work.pairs.n,
    }
    return Finding(
        claim=_sentence(claim, component, outcomes),
        table=table,
        sections=[head, *sections],
        notes=notes,
        measured=work.pairs.n,
    )


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


class _Work:
    """One run's measurements, each a saved stage made when a test first asks for it."""

    def __init__(
        self,
        config: ClaimTestConfig,
        claim: Claim,
        component: Component,
        model: Model,
        run: RunFolder,
        progress: Progress,
    ):
        self.config, self.claim, self.component, self.model = config, claim, component, model
        self.run, self.progress = run, progress
        self.pairs = self._pairs(config.task)

    def _pairs(self, name: str) -> PairBatch:
        task = _unseen(name, self.claim, self.config, self.model)
        kept = task if self.config.twin else task.check(self.model, progress=self.progress).task
        return kept.encode(self.model).to(self.model.device)

    def test(self, name: str) -> tuple[Outcome, dict[str, Any] | None]:
        """One test's outcome, and what more a reader may want to see of it."""
        if name == "predict":
            return self._predict()
        if name == "adversarial":
            assert self.config.adversarial is not None
            own, gap, cost = self._strength(self._pairs(self.config.adversarial), "adversarial")
            return judge.adversarial(own, gap, self.claim.at_least, cost, flips=self.config.flips), None
        clean, other, cost = self._ends(self.pairs, "pairs")
        gap = clean - other
        if name == "effect":
            values, more = self._own(self.pairs, "mean", "effect")
            assert self.claim.effect is not None
            return judge.effect(clean - values, gap, self.claim.effect, cost + more), None
        if name == "minimality":
            return self._minimality(other, gap, cost)
        random, all_others, drawn = self._random(clean, other)
        if name in CAUSAL:
            values, more = self._own(self.pairs, WAYS[name], WAYS[name])
            moved = values - other if name == "sufficiency" else clean - values
            spent = cost + more + drawn // len(self.claim.causal)
            return judge.causal(name, moved, random[name], gap, self.claim.at_least, spent), None
        own, _, more = self._strength(self.pairs, "")
        both = np.mean(list(random.values()), axis=0)
        outcome = judge.specificity(own, both, gap, more + drawn, all_others=all_others)
        return outcome, self._strongest(both.mean(axis=1) / gap.mean(), own.mean() / gap.mean())

    # --- what is measured -------------------------------------------------------------------------------------------------

    def _stage(self, name: str, compute: Callable[[], dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], int]:
        """A stage's arrays and the prompts it ran."""

        def counted() -> Checkpoint:
            before = self.model.cost.forwards
            arrays = compute()
            return Checkpoint(arrays, {"forwards": self.model.cost.forwards - before})

        saved = self.run.stage(name, counted)
        return dict(saved.arrays), int(saved.data["forwards"])

    def _ends(self, pairs: PairBatch, name: str) -> tuple[np.ndarray, np.ndarray, int]:
        arrays, cost = self._stage(name, lambda: {"both": both_runs(self.model, pairs)})
        return arrays["both"][0], arrays["both"][1], cost

    def _own(self, pairs: PairBatch, way: Way, name: str) -> tuple[np.ndarray, int]:
        target = [self.component.target]
        arrays, cost = self._stage(name, lambda: {"values": patched(self.model, pairs, target, way)[0]})
        return arrays["values"], cost

    def _strength(self, pairs: PairBatch, name: str) -> tuple[np.ndarray, np.ndarray, int]:
        """What the component moves per pair, by what is claimed (the mean, of both); the gap; the cost."""
        prefix = f"{name}-" if name else ""
        clean, other, cost = self._ends(pairs, f"{prefix}pairs")
        moved = []
        for test in self.claim.causal:
            values, more = self._own(pairs, WAYS[test], f"{prefix}{WAYS[test]}")
            moved.append(values - other if test == "sufficiency" else clean - values)
            cost += more
        return np.mean(moved, axis=0), clean - other, cost

    def _drawn(self) -> Drawn:
        return self.component.random(self.model, self.config.randoms, seed=self.config.seed)

    def _random(self, clean: np.ndarray, other: np.ndarray) -> tuple[dict[str, np.ndarray], bool, int]:
        """What each random component moves, [draw, example] by what is claimed."""
        drawn = self._drawn()
        steps = -(-len(drawn.targets) // DRAWS)

        def step(state: Checkpoint | None, i: int) -> Checkpoint:
            before = self.model.cost.forwards
            some = drawn.targets[i * DRAWS : (i + 1) * DRAWS]
            arrays = {test: patched(self.model, self.pairs, some, WAYS[test]) for test in self.claim.causal}
            if state:
                arrays = {test: np.concatenate([state.arrays[test], new]) for test, new in arrays.items()}
            spent = self.model.cost.forwards - before + (int(state.data["forwards"]) if state else 0)
            return Checkpoint(arrays, {"forwards": spent})

        saved = self.run.fold("random", steps, step)
        moved = {
            test: saved.arrays[test] - other if test == "sufficiency" else clean - saved.arrays[test]
            for test in self.claim.causal
        }
        return moved, drawn.all, int(saved.data["forwards"])

    def _minimality(self, other: np.ndarray, gap: np.ndarray, cost: int) -> tuple[Outcome, dict[str, Any]]:
        whole, more = self._own(self.pairs, "denoise", "denoise")
        without = [self.component.without(i) for i in range(len(self.component.sites))]
        found, spent = self._stage("parts", lambda: {"values": patched(self.model, self.pairs, without, "denoise")})
        outcome, parts = judge.minimality(whole, found["values"], gap, self.claim.at_least, cost + more + spent)
        rows = [[str(site), cell(part)] for site, part in zip(self.component.sites, parts, strict=True)]
        section = {
            "title": "Part by part",
            "text": "What is lost of the component's sufficiency when one part is left out.",
            "table": sheet("text part, percent lost without it", rows),
        }
        return outcome, section

    def _predict(self) -> tuple[Outcome, dict[str, Any]]:
        assert self.claim.attends is not None
        source, target = self.claim.attends

        def looked() -> dict[str, np.ndarray]:
            found = looks(self.model, self.pairs, source, target)
            return {"most": found.most, "layers": np.array(found.layers), "taken": np.array(found.taken)}

        arrays, cost = self._stage("looks", looked)
        most, layers = arrays["most"], arrays["layers"].tolist()
        heads = {(layers.index(site.layer), int(site.head or 0)) for site in self.component.sites}
        mine = np.zeros(most.shape[:2], dtype=bool)
        for place in heads:
            mine[place] = True
        share = most.mean(axis=-1)
        order = np.argsort(-share, axis=None, kind="stable")[:5]
        best = [divmod(int(i), share.shape[1]) for i in order]
        shown = [*sorted(heads), *(place for place in best if place not in heads)]
        how = "By attention."
        if bool(arrays["taken"]):
            how = "What is taken: attention times the length of what the head would write from that token."
        section = {
            "title": f"Heads that take most from {target!r} at {source!r}",
            "text": f"{how} Share of prompts; the component's own heads first, then those with the largest share.",
            "table": sheet(
                "text head, percent share of prompts", [[f"z.{layers[l]}.{h}", float(share[l, h])] for l, h in shown]
            ),
        }
        return judge.predict(most[mine], most[~mine], cost), section

    def _strongest(self, shares: np.ndarray, own: float) -> dict[str, Any]:
        drawn = self._drawn()
        order = np.argsort(-np.abs(shares), kind="stable")[:5]
        rows = [[self.component.text, float(own)]]
        rows += [[_named(drawn.targets[i], int(i)), float(shares[i])] for i in order]
        return {
            "title": f"The strongest of {len(shares)} random components",
            "text": f"{' and '.join(self.claim.causal).capitalize()}{', their mean,' if len(self.claim.causal) > 1 else ''} in "
            "shares of the answer; the claim's component first."
            + (" These are all others of its kind." if drawn.all else ""),
            "table": sheet("text component, percent strength", rows),
        }


def _named(target: Any, i: int) -> str:
    if isinstance(target, tuple) and all(place.direction is None for place in target):
        return "+".join(str(place.site) for place in target)
    return f"random {i + 1}"


CLAIM_TEST = Looking(METHOD, ClaimTestConfig, "Tests of a claim", test)
