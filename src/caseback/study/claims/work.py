"""One run's measurements of a claim, each a saved stage made when a test first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from caseback.circuits.hypothesis import PROMPT, Hypothesis
from caseback.circuits.scrub import scrub
from caseback.core.errors import StudyError
from caseback.core.progress import Progress
from caseback.core.stages import Checkpoint
from caseback.evidence import wins
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.study.claims import judge
from caseback.study.claims.active import TEXTS, activity, beginning, in_span
from caseback.study.claims.component import Component, Target
from caseback.study.claims.drawn import Drawn, draw
from caseback.study.claims.heldout import unseen, unseen_texts
from caseback.study.claims.ledger import Claim
from caseback.study.claims.parts import Feature
from caseback.study.claims.patched import EXCHANGES, ROWS, Way, both_runs, looks, patched
from caseback.study.claims.rule import CAUSAL, Outcome
from caseback.study.finding import cell, sheet
from caseback.study.resume import RunFolder
from caseback.tasks.encode import PairBatch

if TYPE_CHECKING:
    from caseback.study.claims.method import ClaimTestConfig

__all__ = ["Work"]

WAYS: dict[str, Way] = {"sufficiency": "denoise", "necessity": "noise", "scrub": "scrub"}
MOST_ALONE = 0.5
"""Share of draws without another prompt above which a hypothesis is not tested."""
DRAWS = 20
"""Random components patched between two saves."""


class Work:
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

    @property
    def split(self) -> str:
        """Which pairs are tested on."""
        return f"held-out half of {self.config.task}, seed {self.config.seed}"

    def took(self, test: str, n: int) -> dict[str, Any]:
        """How many pairs a test of n examples was carried out on, and which."""
        if test == "adversarial":
            return {"pairs": n, "split": f"held-out half of {self.config.adversarial}, seed {self.config.seed}"}
        if test == "predict" and self.claim.active_on:
            return {"pairs": 0, "split": f"the first {len(self._texts)} texts of {self.config.texts}"}
        return {"pairs": self.pairs.n, "split": self.split}

    @cached_property
    def pairs(self) -> PairBatch:
        assert self.config.task is not None
        return self._pairs(self.config.task)

    @cached_property
    def _texts(self) -> list[str]:
        assert self.config.texts is not None
        return unseen_texts(self.config.texts, self.claim)[:TEXTS]

    def _pairs(self, name: str) -> PairBatch:
        task = unseen(name, self.claim, self.component, self.model, n=self.config.n, seed=self.config.seed)
        kept = task if self.config.twin else task.check(self.model, progress=self.progress).task
        return kept.encode(self.model).to(self.model.device)

    def test(self, name: str) -> tuple[Outcome, dict[str, Any] | None]:
        """One test's outcome, and what more a reader may want to see of it."""
        if name == "predict":
            return self._looks() if self.claim.attends else self._fires()
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
            moved = _moved(name, values, clean, other)
            spent = cost + more + drawn // len(self.claim.causal)
            if name == "scrub":
                whole = self._stage("pairs", lambda: self._both(self.pairs))[0]["whole"] - other
                return judge.scrub(moved, random[name], whole, gap, self.claim.at_least, spent), self._exchanged()
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
        """The metric of the run that is explained, and of the one with nothing of it, per pair."""
        arrays, cost = self._stage(name, lambda: self._both(pairs))
        if isinstance(hypothesis := self.component.target, Hypothesis):
            _require_exchanged(hypothesis, arrays["alone"].tolist(), pairs.n)
        return arrays["both"][0], arrays["both"][1], cost

    def _both(self, pairs: PairBatch) -> dict[str, np.ndarray]:
        if isinstance(hypothesis := self.component.target, Hypothesis):
            found, whole = scrub(self.model, pairs, [hypothesis, hypothesis.agreeing((PROMPT,))], draws=EXCHANGES)
            alone = np.array([found.alone[name] for name in hypothesis.nodes])
            return {"both": np.stack([found.model[0], found.random[0]]), "alone": alone, "whole": whole.metric}
        return {"both": both_runs(self.model, pairs)}

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
            moved.append(_moved(test, values, clean, other))
            cost += more
        return np.mean(moved, axis=0), clean - other, cost

    @cached_property
    def _drawn(self) -> Drawn:
        return draw(self.component, self.model, self.config.randoms, self._batches(), seed=self.config.seed)

    def _batches(self) -> Iterator[Batch]:
        """The prompts of both runs of the pairs."""
        for chunk in self.pairs.chunk(ROWS):
            yield from (chunk.clean, chunk.counterfactual)

    def _random(self, clean: np.ndarray, other: np.ndarray) -> tuple[dict[str, np.ndarray], bool, int]:
        """What each random component moves, [draw, example] by what is claimed."""
        before = self.model.cost.forwards
        drawn = self._drawn
        drawing = self.model.cost.forwards - before
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
        moved = {test: _moved(test, saved.arrays[test], clean, other) for test in self.claim.causal}
        return moved, drawn.all, int(saved.data["forwards"]) + drawing

    def _exchanged(self) -> dict[str, Any]:
        """How often nothing was exchanged."""
        assert isinstance(hypothesis := self.component.target, Hypothesis)
        arrays, _ = self._stage("pairs", lambda: self._both(self.pairs))
        rows = [
            [name, *node.words, alone]
            for (name, node), alone in zip(hypothesis.nodes.items(), arrays["alone"].tolist(), strict=True)
        ]
        return {
            "title": "What was exchanged",
            "text": "No other agreed: the share of draws for which nothing was exchanged, since no other prompt agreed.",
            "table": sheet("text node, text sites, text depends on, text reads, percent no other agreed", rows),
        }

    def _minimality(self, other: np.ndarray, gap: np.ndarray, cost: int) -> tuple[Outcome, dict[str, Any]]:
        way: Way = "scrub" if isinstance(self.component.target, Hypothesis) else "denoise"
        whole, more = self._own(self.pairs, way, way)
        without = [self.component.without(i) for i in range(len(self.component.parts))]
        found, spent = self._stage("parts", lambda: {"values": patched(self.model, self.pairs, without, way)})
        outcome, parts = judge.minimality(whole, found["values"], gap, self.claim.at_least, cost + more + spent)
        rows = [[name, cell(part)] for name, part in zip(self.component.parts, parts, strict=True)]
        section = {
            "title": "Part by part",
            "text": "What is lost of what the component carries when one part is left out.",
            "table": sheet("text part, percent lost without it", rows),
        }
        return outcome, section

    def _looks(self) -> tuple[Outcome, dict[str, Any]]:
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

    def _fires(self) -> tuple[Outcome, dict[str, Any]]:
        """A direction or feature as a classifier of the tokens it was said to be active at."""
        assert isinstance(self.component.target, tuple)
        (place,) = self.component.target
        assert place.part is not None
        if self.claim.active_on:
            prompts = beginning(self.model, self._texts, self.claim.active_on)
        else:
            assert self.claim.active is not None
            prompts = in_span([chunk.clean for chunk in self.pairs.chunk(ROWS)], self.claim.active)
        anywhere = replace(self.component, target=(replace(place, site=replace(place.site, position=None)),))

        def measured() -> dict[str, np.ndarray]:
            batches = [each.batch for each in prompts]
            drawn = draw(anywhere, self.model, self.config.randoms, batches, seed=self.config.seed)
            parts = [place.part, *(target[0].part for target in drawn.targets if isinstance(target, tuple))]
            found = activity(self.model, prompts, place.site, [part for part in parts if part is not None])
            own, *others = (wins(scores, found.said, found.prompt) for scores in found.scores)
            n = found.prompt.max() + 1
            every = np.outer(*(np.bincount(found.prompt[side], minlength=n) for side in (found.said, ~found.said)))
            if self.component.kind == "direction":  # a random one has no sign of its own: the one that does better
                others = [max(won, every - won, key=np.sum) for won in others]
            areas = np.array([won.sum() for won in others]) / every.sum()
            return {
                "own": own,
                "control": others[int(np.argsort(areas)[round(judge.WEAKER * (len(others) - 1))])],
                "areas": areas,
                "scores": found.scores[0],
                **{name: getattr(found, name) for name in ("said", "prompt", "ids")},
            }

        arrays, cost = self._stage("activity", measured)
        said, scores = arrays["said"].astype(bool), arrays["scores"]
        outcome = judge.activation(arrays["own"], arrays["control"], said, arrays["prompt"], cost)
        top = np.argsort(-scores, kind="stable")[:10]
        better = int((arrays["areas"] >= outcome.value.value).sum())
        section = {
            "title": "Where it is most active",
            "text": f"{int(said.sum())} of {len(said)} tokens were named. {better} of {len(arrays['areas'])} random ones tell them "
            f"apart as well. The tokens with the highest activation of all {outcome.value.n} prompts:",
            "table": sheet(
                "text token, number activation, text named",
                [
                    [self.model.tokenizer.decode([int(arrays["ids"][i])]), float(scores[i]), "yes" if said[i] else "no"]
                    for i in top
                ],
            ),
        }
        return outcome, section

    def _strongest(self, shares: np.ndarray, own: float) -> dict[str, Any]:
        drawn = self._drawn
        order = np.argsort(-np.abs(shares), kind="stable")[:5]
        rows = [[self.component.text, float(own)]]
        rows += [[_named(drawn.targets[i], int(i)), float(shares[i])] for i in order]
        return {
            "title": f"The strongest of {len(shares)} random components",
            "text": f"{' and '.join(self.claim.causal).capitalize()}{', their mean,' if len(self.claim.causal) > 1 else ''} in "
            "shares of the answer; the claim's component first."
            + (" These are all others of its kind." if drawn.all and self.component.kind != "feature" else "")
            + (f" They are {_OTHERS[drawn.all]}." if self.component.kind == "feature" else ""),
            "table": sheet("text component, percent strength", rows),
        }


def _require_exchanged(hypothesis: Hypothesis, alone: Sequence[float], n: int) -> None:
    """Raise StudyError where in most draws nothing was exchanged, for then nothing is tested."""
    for (name, node), share in zip(hypothesis.nodes.items(), alone, strict=True):
        if share > MOST_ALONE:
            raise StudyError(
                f"for {share:.0%} of the draws no other of the {n} prompts agrees with node {name!r} on {', '.join(node.agree)}, "
                "so nothing would be tested; take more pairs (--n), or a feature that more prompts share"
            )


def _moved(test: str, values: np.ndarray, clean: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What a patch moves by what is claimed."""
    return clean - values if test == "necessity" else values - other


_OTHERS = {
    True: "all other features of the dictionary that are active at the same tokens of these pairs",
    False: "drawn from the other features of the dictionary that are active at the same tokens of these pairs",
}


def _named(target: Target, i: int) -> str:
    if isinstance(target, Hypothesis):
        return "+".join(map(str, target.sites))
    if isinstance(target, tuple) and all(place.part is None for place in target):
        return "+".join(str(place.site) for place in target)
    if isinstance(target, tuple) and isinstance(part := target[0].part, Feature):
        return f"feature {part.number}"
    return f"random {i + 1}"
