"""Readings of a task's pairs: which places carry the answer (patching), which parts write it (direct attribution)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_file, sha256_json
from caseback.core.stages import Checkpoint, Stages
from caseback.evidence import mean_interval
from caseback.model.dictionary import dictionary_files, read_dictionary, rotated, shuffled
from caseback.model.model import Model
from caseback.reading.dla import attribute_logits, cut_at
from caseback.reading.features import attribute_features
from caseback.reading.patching import Grid, estimate_grid, grid_agreement, patch_grid
from caseback.study.finding import Finding, Looking, LookingConfig, cell, heat, sheet
from caseback.study.spec import plain
from caseback.tasks.encode import PairBatch
from caseback.tasks.files import is_file, look_at_pairs, read_task
from caseback.tasks.task import Task

__all__ = ["DLA", "PATCH", "DlaConfig", "PatchConfig", "TaskConfig", "dla", "patch"]


@dataclass(frozen=True, kw_only=True)
class TaskConfig(LookingConfig):
    """A task that is looked at."""

    task: str
    """A library task's name, or a file of pairs."""
    n: int | None = 40
    """Pairs; None: all of a file, the library's default otherwise."""

    def look(self) -> None:
        look_at_pairs(self.task, self.n)
        super().look()

    @property
    def label(self) -> str:
        return Path(self.task).stem if is_file(self.task) else self.task

    def data(self) -> str | None:
        """SHA-256 of a file of pairs; a library's task is said by its name, n, seed and model."""
        return sha256_file(self.task) if is_file(self.task) else None

    def read(self, model: Model) -> Task:
        """The pairs; a trained model's are those it answers right, a random twin's are all."""
        task = read_task(self.task, n=self.n, seed=self.seed, model=model)
        return task if self.twin else task.check(model).task


@dataclass(frozen=True, kw_only=True)
class PatchConfig(TaskConfig):
    """One patching grid."""

    site: str = "resid_pre"
    """resid_pre, resid_mid, attn_out, mlp_out, z, q, k, v or pattern."""
    direction: str = "denoise"
    """denoise: clean values into the counterfactual run; noise: the other way."""
    source: str = "run"
    """What is put in: the other run's value, mean or zero."""


def patch(config: PatchConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """The exact grid and its first-order estimate."""
    task = config.read(model)
    pairs = task.encode(model).to(model.device)
    how: Any = {"direction": config.direction, "source": config.source}
    grids: dict[str, Grid] = {}

    def found() -> Checkpoint:
        grids["exact"] = patch_grid(model, pairs, config.site, **how, stages=stages, progress=progress)
        grids["estimate"] = estimate_grid(model, pairs, config.site, **how, progress=progress)
        exact = grids["exact"]
        agree = grid_agreement(exact, grids["estimate"])
        ends = np.array([[i.low, i.high] for i in exact.intervals()]).reshape(*exact.effect.shape, 2)
        arrays = {"effect": exact.effect, "estimate": grids["estimate"].effect, "ends": ends}
        arrays |= {"start": exact.start, "other": exact.other}
        data = {"columns": exact.columns, "layers": exact.layers, "heads": exact.heads}
        return Checkpoint(arrays, data | {"spearman": agree.spearman, "sign": agree.sign, "recall": agree.recall})

    saved = stages.stage("grid", found)
    effect, estimate, ends = (saved.arrays[name] for name in ("effect", "estimate", "ends"))
    columns, layers = saved.data["columns"], saved.data["layers"]
    if not np.isfinite(effect).any():
        raise ReadingError("the two runs of these pairs have the same metric on average, so no effect can be stated")
    rows = []
    for flat in np.argsort(-np.abs(np.nan_to_num(effect)).ravel(), kind="stable")[:12]:
        layer, head, column = (int(i) for i in np.unravel_index(flat, effect.shape))
        place = f"{config.site}.{layers[layer]}" + (f".{head}" if saved.data["heads"] else "")
        low, high = ends[layer, head, column]
        rows.append(
            [place, columns[column], [float(effect[layer, head, column]), float(low), float(high)]]
            + [float(estimate[layer, head, column])]
        )
    best = rows[0]
    verb = {"denoise": "restores", "noise": "removes"}[config.direction]
    found_at = (
        f"Of {effect.size:,} places, {best[0]} at {best[1]!r} has the largest effect: alone it {verb} {best[2][0]:.0%} of the answer "
        f"({best[2][1]:.0%} to {best[2][2]:.0%})"
    )
    if (
        config.site.startswith("resid") and len(columns) > 1
    ):  # the first layers hold the prompt itself: say where it goes
        found_at = _carried(effect[:, 0], layers, columns)
    spearman, sign = (float("nan") if saved.data[k] is None else saved.data[k] for k in ("spearman", "sign"))
    claim = f"{found_at}; the first-order estimate ranks the places with Spearman {spearman:.2f}."
    sections = [
        {
            "title": f"Effect of each place ({config.direction}, {config.site})",
            "text": "0: the run that is patched into; 1: the other run. Exact: every place patched by itself.",
            **_maps(effect, layers, columns, saved.data["heads"]),
            "table": sheet("text site, text position, percent effect, percent estimate", rows),
        },
        {
            "title": "First-order estimate",
            "text": "(source − value) · gradient: two forwards and one backward for the whole grid. Spearman with the exact "
            f"effects {spearman:.2f}, equal sign {sign:.0%}.",
            **_maps(estimate, layers, columns, saved.data["heads"]),
        },
    ]
    table = {
        "site": config.site,
        "direction": config.direction,
        "source": config.source,
        "layers": layers,
        "columns": columns,
        "effect": effect.tolist(),
        "spearman": saved.data["spearman"],
        "sign_agreement": saved.data["sign"],
        "n": pairs.n,
        "metric_start": float(saved.arrays["start"].mean()),
        "metric_other": float(saved.arrays["other"].mean()),
    }
    notes = [
        f"{pairs.n} pairs" + (" of a random twin, none dropped." if config.twin else " that the model answers right."),
        "Effects are ratios of means over pairs, with bootstrap intervals at 95 %. The table shows the largest of many "
        "places: their intervals are not corrected for that.",
        "Denoising asks whether a place is enough, noising whether it is needed; backups make them differ.",
    ]
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=pairs.n)


def _carried(effect: np.ndarray, layers: list[int], columns: list[str]) -> str:
    """The position with the largest effect, from layer to layer."""
    best = np.nan_to_num(effect).argmax(axis=1)
    starts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist()]
    ends = [*(start - 1 for start in starts[1:]), len(layers) - 1]
    parts = []
    for a, b in zip(starts, ends, strict=True):
        values = effect[a : b + 1, best[a]]
        parts.append(
            f"{columns[best[a]]!r} in layers {layers[a]} to {layers[b]} ({values.min():.0%} to {values.max():.0%})"
        )
    shown = parts if len(parts) <= 4 else [*parts[:3], "…", parts[-1]]
    return f"The largest effect lies at {', then '.join(shown)}"


def _maps(effect: np.ndarray, layers: list[int], columns: list[str], heads: int | None) -> dict[str, Any]:
    """Layer × position; for sites with heads, layer × head for every position."""
    rows = ("layer", [str(layer) for layer in layers])
    if not heads:
        return {"heat": heat(("position", columns), rows, effect[:, 0], format="percent", scale="diverging")}
    axis = ("head", [str(head) for head in range(heads)])
    maps = [
        {"name": name, **heat(axis, rows, effect[:, :, i], format="percent", scale="diverging")}
        for i, name in enumerate(columns)
    ]
    return {"heats": maps}


@dataclass(frozen=True, kw_only=True)
class DlaConfig(TaskConfig):
    """Direct logit attribution of a task."""

    neurons: int | None = None
    """A layer whose MLP is split into neurons."""
    dictionary: str | None = None
    """A dictionary whose site is split into its features: a folder or a safetensors file."""

    def data(self) -> str | None:
        """With a dictionary its files count too."""
        if self.dictionary is None:
            return super().data()
        return sha256_json([super().data(), *(sha256_file(file) for file in dictionary_files(self.dictionary))])


def dla(config: DlaConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """The logit difference, split over embedding, heads and MLPs."""
    task = config.read(model)
    pairs = task.encode(model).to(model.device)
    of_features = None if config.dictionary is None else _features(config, model, pairs, stages)

    def found() -> Checkpoint:
        split = attribute_logits(model, pairs, neurons=config.neurons, progress=progress)
        arrays = {"terms": split.terms, "heads": split.heads, "mlps": split.mlps, "total": split.total}
        if split.neurons is not None:
            arrays["neurons"] = split.neurons
        if split.sources is not None:
            arrays["sources"] = split.sources.mean(axis=-1)
        ends = split.intervals()
        arrays["ends"] = np.array([[i.low, i.high] for i in ends.values()])
        data = {"names": split.names, "error": split.error, "columns": split.columns, "softcap": split.softcap}
        return Checkpoint(arrays, data)

    saved = stages.stage("terms", found)
    terms, ends, names = saved.arrays["terms"].mean(axis=-1), saved.arrays["ends"], saved.data["names"]
    total = float(saved.arrays["total"].mean())
    order = np.argsort(-np.abs(terms), kind="stable")[:15]
    rows = [
        [
            names[i],
            [float(terms[i]), float(ends[i, 0]), float(ends[i, 1])],
            float(terms[i]) / total if abs(total) > 1e-3 else None,
        ]
        for i in order
    ]
    heads_mean, mlps_mean = saved.arrays["heads"].mean(axis=-1), saved.arrays["mlps"].mean(axis=-1)
    layers = ("layer", [str(layer) for layer in range(len(heads_mean))])
    both = np.concatenate([heads_mean, mlps_mean[:, None]], axis=1)
    labels = [*(str(h) for h in range(heads_mean.shape[1])), "MLP"]
    sections: list[dict[str, Any]] = [
        {
            "title": "What writes the answer",
            "text": "Logits each part adds to the answer over the foil, directly, at the last token; the final norm's scale is "
            "held at its value.",
            "heat": heat(("head", labels), layers, both, format="signed", scale="diverging"),
            "table": sheet("text part, signed logits, percent of the metric", rows),
        }
    ]
    if "sources" in saved.arrays:
        sources = saved.arrays["sources"]
        strongest = np.argsort(-np.abs(heads_mean).ravel(), kind="stable")[:12]
        n_heads = heads_mean.shape[1]
        picked = [sources[int(i) // n_heads, int(i) % n_heads] for i in strongest]
        named = [f"a{int(i) // n_heads}.h{int(i) % n_heads}" for i in strongest]
        sections.append(
            {
                "title": "Where the strongest heads take it from",
                "text": "Each head's term, split over the positions its values come from.",
                "heat": heat(
                    ("position", saved.data["columns"]), ("head", named), picked, format="signed", scale="diverging"
                ),
            }
        )
    if "neurons" in saved.arrays:
        neurons = saved.arrays["neurons"].mean(axis=-1)
        best = np.argsort(-np.abs(neurons), kind="stable")[:20]
        sections.append(
            {
                "title": f"Neurons of layer {config.neurons}",
                "text": "The largest terms of that layer's MLP.",
                "table": sheet("text neuron, signed logits", [[str(int(i)), float(neurons[i])] for i in best]),
            }
        )
    claim = (
        f"{rows[0][0]} has the largest term in size, {rows[0][1][0]:+.2f} of {total:.2f} logits ({rows[0][1][1]:+.2f} to "
        f"{rows[0][1][2]:+.2f}); all terms sum to the metric within {saved.data['error']:.0e}."
    )
    notes = [
        f"{pairs.n} pairs" + (" of a random twin, none dropped." if config.twin else " that the model answers right."),
        "Direct effects only: what a part does through later parts is not in its term.",
    ]
    if saved.data["softcap"]:
        notes.append("The logits are those before the soft cap.")
    table = {"n": pairs.n, "total": total, "error": saved.data["error"]}
    table |= {"terms": dict(zip(names, terms.tolist(), strict=True))}
    if of_features is not None:
        claim, sections = of_features.claim, [*map(dict, of_features.sections), *sections]
        table, notes = {**table, **of_features.table}, [*notes, *of_features.notes]
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=pairs.n)


def _features(config: DlaConfig, model: Model, pairs: PairBatch, stages: Stages) -> Finding:
    """The site of a dictionary, split over its features, with two dictionaries beside it that mean nothing."""
    assert config.dictionary is not None
    own = read_dictionary(config.dictionary)

    def found() -> Checkpoint:
        cut = cut_at(model, pairs, own.site)
        split = attribute_features(cut, own)
        turned, mixed = (attribute_features(cut, control(own, seed=config.seed)) for control in (rotated, shuffled))
        shown = {"other features": split.rest, "decoder's bias": split.bias, "error": split.error}
        shown |= {own.site: split.whole, "everything else": split.outside, "the metric": cut.total}
        judged = [
            [name, cell(one.explained()), one.fvu, one.l0, float(np.abs(one.terms).mean(axis=1).max(initial=0.0))]
            for name, one in (("the dictionary", split), ("turned", turned), ("shuffled", mixed))
        ]
        data = {
            "features": split.features.tolist(),
            "terms": [cell(interval) for interval in split.intervals()] if len(split.features) else [],
            "sizes": np.abs(split.terms).mean(axis=1).tolist(),
            "active": split.active.tolist(),
            "sums": {name: cell(mean_interval(values)) for name, values in shown.items()},
            "judged": judged,
            "concentration": split.concentration,
        }
        return Checkpoint(data=plain(data))

    saved = stages.stage("features", found).data
    sums, judged, site = saved["sums"], saved["judged"], own.site
    columns = (map(str, saved["features"]), saved["sizes"], saved["terms"], saved["active"])
    rows = [list(row) for row in zip(*columns, strict=True)]
    of_kept = [["features shown", sum(term[0] for term in saved["terms"])]]
    controls = "; ".join(f"{name} {_share(row[0])}" for name, *row in judged[1:])
    largest = f"Feature {rows[0][0]} of {site} has the largest term in size, {rows[0][1]:.2f} a pair" if rows else ""
    claim = (
        f"{largest or f'No feature of {site} is active'}; all of {site} has {sums[site][0]:+.2f} of "
        f"{sums['the metric'][0]:.2f} logits, and the dictionary accounts for {_share(judged[0][1])} of that in size "
        f"(as a control, {controls})."
    )
    sections: list[dict[str, Any]] = [
        {
            "title": f"Features of {site}",
            "text": f"Logits each feature adds to the answer over the foil, directly, at the last token; the largest of "
            f"{own.n_features:,} by mean size, the sign left out: a feature may add in one pair and take in another. "
            "Active: the share of pairs.",
            "table": sheet("text feature, number size, signed logits, percent active", rows),
        },
        {
            "title": "What they add up to",
            "text": f"Features, bias and error sum to {site}'s own term, and with everything else to the metric, exactly, as they "
            "would for any dictionary.",
            "table": sheet("text part, signed logits", of_kept + [[name, values] for name, values in sums.items()]),
        },
        {
            "title": "The dictionary beside two that mean nothing",
            "text": "Accounted for: 1 − |error's term| / |the site's term|, in sums over pairs. Unexplained: the share of the "
            "variance of the site's value at the last token; prompts that end alike vary little there, which makes it large. Active: "
            "features a pair. Largest: a feature's mean size, in logits. Turned: all directions by one random rotation. "
            "Shuffled: each feature switched on by another's encoder.",
            "table": sheet(
                "text dictionary, percent accounted for, percent unexplained, number active, number largest",
                judged,
            ),
        },
    ]
    notes = [f"The dictionary has {own.n_features:,} features of {site}" + (f" of {own.model}." if own.model else ".")]
    table = {
        "site": site,
        "n_features": own.n_features,
        "features": dict(zip(map(str, saved["features"]), (term[0] for term in saved["terms"]), strict=True)),
        "sums": {name: values[0] for name, values in sums.items()},
        "concentration": saved["concentration"],
        "accounted_for": {name: row[0][0] for name, *row in judged},
        "variance_unexplained": {name: row[1] for name, *row in judged},
        "active_features": {name: row[2] for name, *row in judged},
    }
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=pairs.n)


def _share(found: list[float | None] | float | None) -> str:
    value = found[0] if isinstance(found, list) else found
    return "an unknown share" if value is None else f"{value:.0%}"


PATCH = Looking("patch", PatchConfig, "Patching grid", patch)
DLA = Looking("dla", DlaConfig, "Direct logit attribution", dla)
