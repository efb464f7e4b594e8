"""From a relation run to its payload, and its page: an explorer of one operator.

What is drawn is what the run kept: the scores with their intervals, the operator at every layer, its singular values, and
every sample with what the model and the operator say. Runs made before something was kept are drawn without it.

The schema, version 1 ("?": may be null or left out)
-----------------------------------------------------
kind, version   "relation", 1
title, claim, model, task, settings, environment, cost, notes      as of an experiment (`show.experiments`)
operator        {layer, beta, cut: the smallest rank that loses nothing, rank: of W in full, n_layers, edit_layer?,
                edit_rank?, sketch_error?, folds: [{layer, beta, edit_layer?, rank?}]: the choices made on each half}
counts          {asked, known, counted: samples behind the shares, splits}
scores          [{name, label, of: "operator", "control", "edit" or "edit control", value, low, high}], of all splits
chance?         share of right guesses where answers are whole objects
                what follows is of the first split
layers          [{name, look, x, y, low?, high?}]: lines over layers; the first is the operator at each layer's best β, with
                Wilson's interval
grid?           {betas: [number], values: a row of shares for each layer}
spectrum        {values: singular values as shares of the largest, ranks, faithful: the share left when W is cut to a rank}
samples         columns, a row for each sample that counts:
                subject, object, model, operator    texts: what is asked about, the object in the data, both answers
                hit                                  whether the two answers are one
                held                                 {name of a score: [true, false or null]}: held out; null where not edited
                at_layer?                            for each sample, whether the operator hits at each layer's best β
                tops?                                {model, operator}: for each sample its likeliest tokens [[text, p], …]
sections        as of an experiment: the edits by layer and by rank
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caseback.core.errors import CasebackError
from caseback.evidence import proportion_interval
from caseback.relations.judge import JudgeConfig, Split
from caseback.show import experiments
from caseback.show.report import page
from caseback.study.finding import line
from caseback.study.relation import NAMES, RelationConfig, edit_sections, intervals, splits_of
from caseback.study.spec import plain
from caseback.study.store import Record

__all__ = ["drawn", "report", "validate"]

LINES = {"identity": "second", "translation": "third", "ridge": "control", "bias": "random"}
"""Controls that have a value at every layer, and how their lines look."""


def drawn(record: Record) -> dict[str, Any]:
    """The payload of a recorded run; that of an experiment where the samples are not kept."""
    told = experiments.drawn(record)
    if not (record.path / "arrays" / "split-0.safetensors").exists():
        return told
    splits, how = splits_of(record), record.spec.config(RelationConfig).judged
    split = splits[0]
    made = {
        **told,
        "kind": "relation",
        "version": 1,
        "operator": _operator(split),
        "counts": {
            "asked": int(record.table["n_asked"]),
            "known": int(record.table["n_known"]),
            "counted": int(record.table["n_test"]),
            "splits": len(splits),
        },
        "scores": _scores(splits, how),
        "chance": split.chance,
        "layers": _layers(split),
        "grid": _grid(split),
        "spectrum": _spectrum(split),
        "samples": _samples(split, how),
        "sections": [] if split.chosen["edit_layer"] is None else edit_sections(split),
    }
    payload: dict[str, Any] = plain(made)
    return payload


def report(record: Record) -> str:
    """The page of a recorded run."""
    return page(drawn(record))


def _operator(split: Split) -> dict[str, Any]:
    names = {"layer": "layer", "beta": "beta", "cut": "cut", "edit_layer": "edit_layer", "rank": "edit_rank"}
    chosen = {shown: split.chosen[name] for name, shown in names.items()}
    return {
        **chosen,
        "rank": len(split.arrays["singular"]),
        "n_layers": len(split.arrays["by_layer"]),
        "sketch_error": split.chosen.get("sketch_error"),
        "folds": [dict(fold) for fold in split.folds],
    }


def _scores(splits: Sequence[Split], how: JudgeConfig) -> list[dict[str, Any]]:
    faithful, edits = intervals(splits, how)
    found = []
    for name, interval in (*faithful.items(), *edits.items()):
        of = "operator" if name in ("strict", "prefix") else "edit" if name == "causal" else "control"
        of = "edit control" if name.startswith("causal_") else of
        ends = {"value": interval.value, "low": interval.low, "high": interval.high}
        found.append({"name": name, "label": NAMES[name].removeprefix("edit: "), "of": of, **ends})
    return found


def _layers(split: Split) -> list[dict[str, Any]]:
    share, n = split.arrays["by_layer"].max(axis=1), len(split.sample)
    x = np.arange(len(share))
    sure = [proportion_interval(round(float(value) * n), n) for value in share]
    ends = {"low": [each.low for each in sure], "high": [each.high for each in sure]}
    controls = [line(name, look, x, split.arrays[f"control_{name}"]) for name, look in LINES.items()]
    return [{**line("operator", "own", x, share), **ends}, *controls]


def _grid(split: Split) -> dict[str, Any] | None:
    if "betas" not in split.arrays:
        return None
    return {"betas": split.arrays["betas"].tolist(), "values": split.arrays["by_layer"].tolist()}


def _spectrum(split: Split) -> dict[str, Any]:
    singular = split.arrays["singular"].astype(float)
    return {
        "values": [float(f"{value:.4g}") for value in singular / singular[0]],
        "ranks": split.arrays["cut_ranks"].tolist(),
        "faithful": split.arrays["cut"].tolist(),
    }


def _samples(split: Split, how: JudgeConfig) -> dict[str, Any]:
    subjects, objects, model, operator = ([str(row[i]) for row in split.said] for i in range(4))
    held = {}
    for name in NAMES:
        if name in split.arrays and (name in how.controls or name in ("strict", "prefix") or name.startswith("causal")):
            values = split.arrays[name].astype(float).tolist()
            held[name] = [None if math.isnan(value) else bool(value) for value in values]
    at_layer = split.arrays.get("at_layer")
    return {
        "subject": subjects,
        "object": objects,
        "model": model,
        "operator": operator,
        "hit": [mine == its for mine, its in zip(model, operator, strict=True)],
        "held": held,
        "at_layer": None if at_layer is None else at_layer.T.astype(bool).tolist(),
        "tops": dict(split.tops) or None,
    }


def validate(payload: Mapping[str, Any]) -> None:
    """Raise CasebackError, naming the field, unless `payload` follows the schema."""
    _require(payload.get("kind") == "relation" and payload.get("version") == 1, "kind", "is 'relation', version 1")
    experiments.validate({**payload, "kind": "experiment"})
    for name in ("operator", "counts", "spectrum", "samples"):
        _require(isinstance(payload.get(name), Mapping), name, "is an object")
    for name in ("layer", "beta", "cut", "rank", "n_layers"):
        _require(_number(payload["operator"].get(name)), f"operator.{name}", "is a number")
    for i, score in enumerate(payload["scores"]):
        named = isinstance(score.get("label"), str) and isinstance(score.get("name"), str)
        _require(named and _number(score.get("value")), f"scores[{i}]", "has a name, a label and a value")
    curves = {"layers": payload["layers"]}
    spectrum = payload["spectrum"]
    n = list(range(1, len(spectrum["values"]) + 1))
    curves["spectrum.values"] = [{"name": "W", "look": "own", "x": n, "y": spectrum["values"]}]
    curves["spectrum.ranks"] = [{"name": "cut", "look": "own", "x": spectrum["ranks"], "y": spectrum["faithful"]}]
    axis = {"axis": "linear", "x": "", "y": ""}
    sections = [{"title": name, "text": "", "curve": {**axis, "series": series}} for name, series in curves.items()]
    experiments.validate({**payload, "kind": "experiment", "sections": sections})
    if (grid := payload.get("grid")) is not None:
        rows = [len(row) == len(grid["betas"]) and all(map(_number, row)) for row in grid["values"]]
        _require(bool(rows) and all(rows), "grid.values", "has a row for each layer, a share for each β")
    _check_samples(payload["samples"])


def _check_samples(samples: Mapping[str, Any]) -> None:
    columns = {name: samples.get(name) for name in ("subject", "object", "model", "operator", "hit")}
    columns |= {f"held.{name}": column for name, column in samples["held"].items()}
    if samples.get("at_layer") is not None:
        columns["at_layer"] = samples["at_layer"]
    for name, column in (samples.get("tops") or {}).items():
        columns[f"tops.{name}"] = column
        pairs = all(isinstance(text, str) and _number(p) for row in column or () for text, p in row)
        _require(pairs, f"samples.tops.{name}", "holds texts with probabilities")
    n = len(samples.get("subject") or ())
    for name, column in columns.items():
        _require(isinstance(column, list) and len(column) == n, f"samples.{name}", f"has a row for each of {n} samples")
    for name in ("subject", "object", "model", "operator"):
        _require(all(isinstance(text, str) for text in samples[name]), f"samples.{name}", "holds texts")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise CasebackError(f"this is no payload of a relation: {where} {what} in one that is")
