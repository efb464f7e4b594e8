"""The whole study of one task's circuit: score → select → choose → evaluate → validate, with every control beside it.

Edges are scored and circuits selected on the discovery pairs, and every number that is reported comes from the held-out
pairs. Beside the circuit of each size stand, at the same number of live token-level edges, the same selector on
shuffled scores and the same selector on scores summed over positions. One size, the smallest that reaches `target`
faithfulness on discovery pairs, is looked at more closely: does removing an edge hurt (minimality), does the rest of
the model still do the task (completeness)?

Cost in forwards: 3 a discovery pair for the scores; 2 + the circuits for a held-out pair, each circuit at most about
one and a half forwards up to 5 % of the edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from caseback.circuits.ablate import Mixing, require_patterns
from caseback.circuits.evaluate import Measured, curve_sizes, measure
from caseback.circuits.graph import Circuit, Scores
from caseback.circuits.parts import graph_of, layers_of, require
from caseback.circuits.patching import Patched, patch_edges, sample_edges
from caseback.circuits.reference import Mean, Reference, mean_reference
from caseback.circuits.score import ScoreConfig, batches, by_length, score, span_names
from caseback.circuits.select import Merge, Ranking, Sign, best_first, largest, prune, shuffled, top_n
from caseback.core import registry
from caseback.core.errors import CircuitError
from caseback.core.progress import Progress, silent
from caseback.core.stages import Checkpoint, InMemory, Stages
from caseback.evidence import Agreement, Interval, cmd, cpr, faithfulness, faithfulness_difference_intervals
from caseback.model.model import Model
from caseback.model.run import counting
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import metric_of
from caseback.tasks.task import Task

__all__ = ["About", "DiscoverConfig", "Discovery", "discover"]


@dataclass(frozen=True, kw_only=True)
class DiscoverConfig:
    """How a circuit is looked for and judged."""

    reference: Reference = "counterfactual"
    """What a removed edge carries: the counterfactual prompt's value, its mean over the discovery pairs' counterfactual
    prompts, or zero."""
    mixing: Mixing = "exact"
    """Inside heads: "exact" is what the scores mean, "peap" the published code's unnormalised block replacement."""
    steps: int = 1
    """Gradient points: 1 is EAP, more is EAP-IG (inputs)."""
    selection: Literal["best-first", "top-n"] = "best-first"
    """Grow the circuit from the logits, best edge first; or take the best edges wherever they lie."""
    merge: Merge = "separate"
    """Take q, k, v apart ("separate") or together ("qkv", as PEAP)."""
    sign: Sign = "absolute"
    """What is best: "absolute" the largest |score|, "positive" the largest score, "negative" the smallest."""
    points: int = 12
    """Sizes on the curve, the whole graph included."""
    draws: int = 3
    """Shuffles of the scores behind the random control."""
    target: float = 0.8
    """Faithfulness (on discovery pairs) that names the chosen size."""
    patched: int = 20
    """Top edges that are patched exactly, and as many random ones."""
    patch_pairs: int = 8
    """Held-out pairs used for exact patching and for minimality."""
    control_pairs: int = 16
    """Held-out pairs every draw of the random control is measured on, and completeness; discovery pairs the chosen size is picked on."""
    minimal: int = 20
    """Edges of the chosen circuit whose removal is tried: the best half and a random half."""
    tokens: int = 320
    """Tokens processed at a time."""
    seed: int = 0
    """Of shuffles and samples; the bootstrap's is fixed."""

    def __post_init__(self) -> None:
        for name in ("steps", "draws", "patched", "patch_pairs", "control_pairs", "minimal", "tokens"):
            if getattr(self, name) < 1:
                raise CircuitError(f"{name} is a whole number of at least 1, not {getattr(self, name)}")
        if self.points < 2:
            raise CircuitError(f"a curve has at least 2 points, not {self.points}")
        if not 0 < self.target <= 1:
            raise CircuitError(f"the target faithfulness lies in (0, 1], not {self.target}")
        require_patterns(self.mixing, self.reference)


@dataclass(frozen=True, kw_only=True)
class About:
    """What was asked, of which model, and how well it answers."""

    model: str
    revision: str | None
    files: Mapping[str, str]
    """File → SHA-256 of what was loaded."""
    task: str
    description: str
    metric: str
    n: int
    """Pairs asked for, both splits together."""
    kept: int
    """Pairs answered right, which the study is made on."""
    accuracy: float
    dropped: Mapping[str, int]
    """Reason → pairs left out."""
    prompts: Sequence[Mapping[str, Any]] = ()
    """A few held-out prompts: tokens, spans as [name, start, end], counterfactual, answers, foils, metric."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Discovery:
    """A circuit at every size, with what supports it. Shows itself as a page in a notebook."""

    about: About
    config: DiscoverConfig
    scores: Scores
    ranking: Ranking
    sizes: tuple[int, ...]
    """Edges of each circuit, dead ends pruned; rising."""
    token_edges: tuple[float, ...]
    """Live token-level edges, mean over discovery prompts."""
    random_token_edges: tuple[float, ...]
    """The same of every draw of every size; never more than the circuit's, and less where the next edge brings many."""
    agnostic_token_edges: tuple[float, ...]
    circuit: Measured
    """[size, held-out pair]"""
    random: Measured
    """[size × draw, pair], draws of a size together, on `control_pairs` held-out pairs."""
    agnostic: Measured
    complement: Measured
    """What is left without the circuit of each size, on `control_pairs` held-out pairs."""
    chosen: int
    """Index of the chosen size."""
    minimality: tuple[np.ndarray, Measured]
    """Edges of the chosen circuit, and [circuit, then without each] on `patch_pairs` pairs."""
    patched: Patched
    forwards: int
    """Sequences run forward, in all stages."""

    def _repr_html_(self) -> str:
        return str(registry.get("view", "circuit")(self))

    @property
    def n_held_out(self) -> int:
        return len(self.circuit.full)

    def random_mean(self) -> Measured:
        """The mean over draws, example by example."""
        draws = self.config.draws

        def mean(values: np.ndarray) -> np.ndarray:
            return values.reshape(len(self.sizes), draws, -1).mean(axis=1)

        found = self.random
        return Measured(
            metric=mean(found.metric),
            agreement=mean(found.agreement),
            kl=mean(found.kl),
            full=found.full,
            empty=found.empty,
        )

    def shares(self) -> np.ndarray:
        """Sizes as fractions of all live edges: the axis of CPR and CMD."""
        return np.asarray(self.sizes) / self.sizes[-1]

    def areas(self) -> dict[str, dict[str, float]]:
        """CPR and CMD on both axes, of the circuit and of the controls."""
        rows = {}
        for name, found in (("circuit", self.circuit), ("random", self.random_mean()), ("agnostic", self.agnostic)):
            curve = faithfulness(found.metric, found.full, found.empty)
            rows[name] = {
                f"{area.__name__}_{axis}": area(self.shares(), curve, axis=axis).value
                for area in (cpr, cmd)
                for axis in ("linear", "log")
            }
        return rows

    def losses(self) -> tuple[Interval, ...]:
        """Minimality: faithfulness lost by each tried edge's removal, with its interval over pairs."""
        _, found = self.minimality
        whole = np.repeat(found.metric[:1], len(found.metric) - 1, axis=0)
        return faithfulness_difference_intervals(whole, found.metric[1:], found.full, found.empty)

    def agreement(self) -> Agreement:
        """Of scores with exact patching, over the top and the random edges."""
        return self.patched.agreement()

    def table(self) -> dict[str, Any]:
        """The curve as parallel lists; faithfulness is baseline-corrected, intervals are over held-out pairs."""
        mine = self.circuit.faithfulness()
        areas = self.areas()["circuit"]
        return {
            "sizes": list(self.sizes),
            "faithfulness": [f.value for f in mine],
            "low": [f.low for f in mine],
            "high": [f.high for f in mine],
            "random": [f.value for f in self.random_mean().faithfulness()],
            "agnostic": [f.value for f in self.agnostic.faithfulness()],
            "cpr": areas["cpr_linear"],
            "cmd": areas["cmd_linear"],
            "forwards": self.forwards,
        }


@dataclass
class _Counted:
    """Stages that also count what they cost, so that a resumed run reports the cost of all its sessions."""

    model: Model
    stages: Stages
    forwards: int = 0

    def fold(self, name: str, steps: int, step: Callable[[Checkpoint | None, int], Checkpoint]) -> Checkpoint:
        def counted(state: Checkpoint | None, i: int) -> Checkpoint:
            with counting(self.model) as spent:
                found = step(state, i)
            before = int(state.data["forwards"]) if state else 0
            return Checkpoint(found.arrays, {**found.data, "forwards": before + spent.forwards})

        done = self.stages.fold(name, steps, counted)
        self.forwards += int(done.data["forwards"])
        return done


def discover(
    model: Model,
    task: Task,
    config: DiscoverConfig | None = None,
    *,
    stages: Stages | None = None,
    progress: Progress = silent,
) -> Discovery:
    """Check the task on the model, find the circuit on its discovery pairs and judge it on its held-out pairs.

    Raises TaskError where no pair is answered right, FamilyError where circuits are not exact on the model's family,
    CircuitError where a split is left empty.
    """
    config = config or DiscoverConfig()
    require(model)
    run = _Counted(model, stages or InMemory(progress))

    def checked(state: Checkpoint | None, i: int) -> Checkpoint:
        found = task.check(model, progress=lambda stage, done, total: progress("check pairs", done, total))
        keep = {pair.clean + "\0" + pair.counterfactual for pair in found.task.pairs}
        rows = [row for row, pair in enumerate(task.pairs) if pair.clean + "\0" + pair.counterfactual in keep]
        held = [row for row in rows if task.pairs[row].split == "held_out"]
        arrays = {"rows": np.array(rows), "held_out": np.array(held, dtype=int), "accuracy": np.array(found.accuracy)}
        return Checkpoint(arrays, {"dropped": dict(found.dropped)})

    check = run.fold("check", 1, checked)
    kept = task[check.arrays["rows"].tolist()]
    sides = {pair.split for pair in kept.pairs}
    if len(sides) < 2:
        raise CircuitError(
            f"of {task.n} pairs {kept.n} are answered right, and they leave one split empty; ask for more pairs (--n)"
        )
    held_out = kept.held_out
    with counting(model) as spent:
        prompts = _shown(model, held_out[:3])
    run.forwards += spent.forwards
    about = About(
        model=model.name,
        revision=model.source.revision,
        files=dict(model.source.files),
        task=task.name,
        description=task.description,
        metric=task.metric,
        n=task.n,
        kept=kept.n,
        accuracy=float(check.arrays["accuracy"]),
        dropped=check.data["dropped"],
        prompts=prompts,
    )
    return _discover(model, kept.discovery.encode(model), held_out.encode(model), about, config, run, progress)


def _shown(model: Model, task: Task) -> list[dict[str, Any]]:
    """Some pairs as a page shows them."""
    pairs = task.encode(model)
    values = metric_of(task.metric)(model.logits(pairs.clean), pairs).tolist()
    rows = []
    for i, pair in enumerate(task.pairs):
        length = int(pairs.clean.lengths[i])
        tokens, other = (
            [model.tokenizer.decode([token]) for token in side.ids[i, :length].tolist()]
            for side in (pairs.clean, pairs.counterfactual)
        )
        spans = [[name, *ranges[i].tolist()] for name, ranges in pairs.clean.spans.items()]
        rows.append(
            {
                "tokens": tokens,
                "spans": spans,
                "counterfactual": other,
                "answers": list(pair.answers),
                "foils": list(pair.foils),
                "metric": values[i],
            }
        )
    return rows


def _discover(
    model: Model,
    discovery: PairBatch,
    held_out: PairBatch,
    about: About,
    config: DiscoverConfig,
    run: _Counted,
    progress: Progress,
) -> Discovery:
    """The study itself, on encoded pairs."""
    layers, spans = layers_of(model), span_names(discovery)
    with counting(model) as spent:
        mean = (
            mean_reference(model, layers, batches(discovery, config.tokens), spans)
            if config.reference == "mean"
            else None
        )
    run.forwards += spent.forwards  # taken again by a resumed run: it is needed there and too large to keep
    how: dict[str, Any] = {"reference": config.reference, "mean": mean, "tokens": config.tokens}

    scores = _scored(model, discovery, config, mean, run)
    ranking = (best_first if config.selection == "best-first" else top_n)(scores, merge=config.merge, sign=config.sign)
    circuits = _rising([ranking.circuit(n) for n in curve_sizes(ranking.n, config.points)])
    random, agnostic = _controls(scores, ranking, circuits, config)

    def several(name: str, pairs: PairBatch, chosen: Sequence[Circuit]) -> Measured:
        pairs, place = by_length(pairs)
        chunks = list(batches(pairs, config.tokens))

        def step(state: Checkpoint | None, i: int) -> Checkpoint:
            done = sum(chunk.n for chunk in chunks[:i]) * len(chosen)
            watch: Progress = lambda stage, n, total: progress(f"{name} circuits", done + n, pairs.n * len(chosen))  # noqa: E731
            found = measure(model, chunks[i], chosen, mixing=config.mixing, progress=watch, **how)
            return Checkpoint((Measured.joined([Measured(**state.arrays), found]) if state else found).to_arrays())

        arrays = run.fold(name, len(chunks), step).arrays
        return Measured(**{field: array[..., place] for field, array in arrays.items()})

    some = discovery[: config.control_pairs]
    reached = faithfulness(*_ends(several("choose", some, circuits))) >= config.target
    reached[-1] = True  # the whole graph is the model itself, whatever round-off says
    chosen = int(np.argmax(reached))
    both = several("evaluate", held_out, [*circuits, *agnostic])
    shuffles = several("random", held_out[: config.control_pairs], random)
    without_it = several("completeness", held_out[: config.control_pairs], [c.complement for c in circuits])
    few = held_out[: config.patch_pairs]
    tried = _tried(scores, circuits[chosen], config)
    without = [circuits[chosen] - Circuit.of(scores.graph, np.array([edge])) for edge in tried]
    minimality = several("minimality", few, [circuits[chosen], *without])
    top = min(config.patched, scores.graph.n_edges // 2)
    edges = sample_edges(scores, top=top, random=top, seed=config.seed)

    def patch(state: Checkpoint | None, i: int) -> Checkpoint:
        found = patch_edges(
            model, few, scores, edges, progress=lambda stage, n, total: progress("patch edges", n, total), **how
        )
        return Checkpoint({"exact": found.exact})

    exact = run.fold("patch", 1, patch).arrays["exact"]
    return Discovery(
        about=about,
        config=config,
        scores=scores,
        ranking=ranking,
        sizes=tuple(circuit.n_edges for circuit in circuits),
        token_edges=_sizes(circuits, scores),
        random_token_edges=_sizes(random, scores),
        agnostic_token_edges=_sizes(agnostic, scores),
        circuit=both.rows(slice(len(circuits))),
        random=shuffles,
        agnostic=both.rows(slice(len(circuits), None)),
        complement=without_it,
        chosen=chosen,
        minimality=(tried, minimality),
        patched=Patched(edges=edges, score=scores.flat[edges].astype(float), exact=exact, n_top=top),
        forwards=run.forwards,
    )


def _sizes(circuits: Sequence[Circuit], scores: Scores) -> tuple[float, ...]:
    weights = scores.graph.weights(scores.lengths)
    return tuple(float(weights[circuit.flat].sum()) for circuit in circuits)


def _rising(circuits: Sequence[Circuit]) -> list[Circuit]:
    """Those with more edges than the one before; the first few edges taken may all hang in the air."""
    kept: list[Circuit] = []
    for circuit in circuits:
        if circuit.n_edges > (kept[-1].n_edges if kept else 0):
            kept.append(circuit)
    if not kept:
        raise CircuitError(
            "no edge leads from the embedding to the logits: all scores may be zero (is the counterfactual any "
            "different?)"
        )
    return kept


def _ends(found: Measured) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.metric, found.full, found.empty


def _scored(model: Model, pairs: PairBatch, config: DiscoverConfig, mean: Mean | None, run: _Counted) -> Scores:
    """Scores, summed chunk by chunk so that a killed run loses at most one."""
    how = ScoreConfig(reference=config.reference, steps=config.steps, tokens=config.tokens)
    pairs, place = by_length(pairs)
    chunks = list(batches(pairs, config.tokens))
    graph = graph_of(model, span_names(pairs))

    def step(state: Checkpoint | None, i: int) -> Checkpoint:
        found = score(model, chunks[i], how, mean=mean)
        sums = {name: getattr(found, name).astype(np.float64) * chunks[i].n for name in ("residual", "crossing")}
        if state is None:
            return Checkpoint({**sums, "lengths": found.lengths})
        return Checkpoint(
            {
                **{name: state.arrays[name] + sums[name] for name in sums},
                "lengths": np.concatenate([state.arrays["lengths"], found.lengths]),
            }
        )

    arrays = run.fold("score", len(chunks), step).arrays
    method = {"name": "EAP" if config.steps == 1 else "EAP-IG (inputs)", "metric": pairs.metric, **asdict(how)}
    return Scores(
        graph=graph,
        residual=(arrays["residual"] / pairs.n).astype(np.float32),
        crossing=(arrays["crossing"] / pairs.n).astype(np.float32),
        lengths=arrays["lengths"][place],
        method=method,
    )


def _controls(
    scores: Scores, ranking: Ranking, circuits: Sequence[Circuit], config: DiscoverConfig
) -> tuple[list[Circuit], list[Circuit]]:
    """Random and position-agnostic circuits, each the largest with no more live token-level edges than the circuit."""
    graph, weights = scores.graph, scores.graph.weights(scores.lengths)

    def size(circuit: Circuit) -> float:
        return float(weights[circuit.flat].sum())

    def placed(circuit: Circuit) -> Circuit:
        """A circuit without positions at every position, its dead ends pruned."""
        return prune(circuit.expand(graph))

    limits = [size(circuit) for circuit in circuits]
    select = best_first if config.selection == "best-first" else top_n
    rankings = [
        select(shuffled(scores, config.seed + draw), merge=config.merge, sign=config.sign)
        for draw in range(config.draws)
    ]
    random = [largest(ranking, size, limit) for limit in limits for ranking in rankings]
    flat = best_first(scores.collapse(), merge=config.merge, sign=config.sign, crossing="free")
    agnostic = [placed(largest(flat, lambda circuit: size(placed(circuit)), limit)) for limit in limits]
    return random, agnostic


def _tried(scores: Scores, circuit: Circuit, config: DiscoverConfig) -> np.ndarray:
    """Edges of a circuit whose removal is tried: the best half by |score|, and others at random."""
    edges = circuit.edges[np.argsort(-np.abs(scores.flat[circuit.edges]), kind="stable")]
    best, rest = edges[: (config.minimal + 1) // 2], edges[(config.minimal + 1) // 2 :]
    drawn = np.random.default_rng(config.seed).permutation(len(rest))[: config.minimal // 2]
    return np.concatenate([best, rest[np.sort(drawn)]])
