"""The payload of a circuit run: the one serialisation that the report, the notebook and the server show.

A payload is plain JSON: objects, lists, strings, finite numbers, null. What is not a finite number (nan, infinities) is
null. Large parts are columns (one list a field), so 20,000 edges take half a megabyte and any tool can read them.
`show.circuit.circuit_payload` builds one; `validate` checks one, built or read back. Invariant: what `validate` accepts,
every view can draw.

The schema, version 1 ("?": may be null or left out)
-----------------------------------------------------
kind, version   "circuit", 1
title           str
model           {id, revision?, n_layers, n_heads, n_kv_heads, parallel: bool}; n_kv_heads counts the graph's key/value
                readers a layer, so it is n_heads when the graph was scored ungrouped
task            {name, description, metric, spans: [str] in order, n: pairs of both splits together, held_out?: pairs
                the curve was measured on, accuracy?: 0..1, dropped: {reason: count}}
prompts         at most 5 of {tokens: [str], spans: [[name, start, end], …] token ranges in schema order,
                counterfactual: [str], answers: [str], foils: [str], metric?: of the model on the clean prompt}
edges           columns {channel, source, target, score, rank}, sorted by rank, at most 20,000 rows
                channel  index into CHANNELS: 0 the whole input of an MLP or of the logits; 1, 2, 3 a head's query, a
                         KV head's key or value input (residual edges: both ends in one span); 4, 5, 6 the crossing
                         edges Q, K, V
                source, target  nodes. A span has P = L(H+K+1)+2 of them: the embedding; then for each layer its H
                         heads, its K KV heads and its MLP; then the logits. node = P * span + place. A crossing edge
                         of head h from span s to span t joins h's KV head at s to h at t (Q: the query at t, looking
                         at the key at s)
                score    positive supports the answer
                rank     1, 2, 3 …: when the edge enters the nested circuits; a circuit of n edges is those of rank <= n
graph           {edges: of the whole graph, abs_score?: sum of |score| over them}
left_out        {edges: of the graph, not in this file, abs_score_share?: their part of that sum}
curve?          columns, a row for each measured size, sizes rising, all on the held-out split:
                edges, faithfulness, low, high                  (M(C) - M(none)) / (M(full) - M(none)), its interval
                random?, random_low?, random_high?              the same selector on shuffled scores
                agnostic?, agnostic_low?, agnostic_high?        the circuit that ignores positions, of equal size
                sizes? asked for; token_edges? mean over examples; ratio? M(C)/M(full); agreement? share of prompts with
                the full model's answer; kl? nats. Beside the columns: level?, of all intervals (default .95)
areas           [{name, cpr_linear?, cpr_log?, cmd_linear?, cmd_log?}], a row for the circuit and for each control
minimality?     {edges: of the circuit, rows: [{channel, source, target, loss?, low?, high?}]}: the faithfulness lost
                when this edge leaves the circuit
completeness?   columns {edges, faithfulness, low?, high?}: what is left without the circuit of that size
table           rows {channel, source, target, score?, exact?, low?, high?}: top edges, with exact patching in the
                metric's units
validation?     {pearson?, spearman?, sign_agreement?, n, sample?: [[score, exact], …]}
settings, environment, cost     objects, shown as they are; cost knows forwards, backwards, seconds, peak_memory_mb
notes           [str]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from caseback.core.errors import CasebackError

__all__ = ["CHANNELS", "MAX_EDGES", "MAX_PROMPTS", "validate"]

CHANNELS = ("in", "q", "k", "v", "cross q", "cross k", "cross v")
"""What an edge's `channel` means."""
MAX_EDGES = 20_000
MAX_PROMPTS = 5

_ENDS = ("channel", "source", "target")
_CURVE = ("edges", "faithfulness", "low", "high")
_CURVE_OPTIONAL = (
    *("random", "random_low", "random_high", "agnostic", "agnostic_low", "agnostic_high"),
    *("sizes", "token_edges", "ratio", "agreement", "kl"),
)


def validate(payload: Mapping[str, Any]) -> None:
    """Raise CasebackError, naming the field and the row, unless `payload` follows the schema."""
    if payload.get("kind") != "circuit" or payload.get("version") != 1:
        found = f"kind {payload.get('kind')!r}, version {payload.get('version')!r}"
        raise CasebackError(f"this is no payload of kind 'circuit', version 1, but of {found}")
    objects = dict.fromkeys(("model", "task", "edges", "graph", "left_out", "settings", "environment", "cost"), dict)
    lists = dict.fromkeys(("prompts", "areas", "table", "notes"), list)
    _need(payload, "payload", title=str, **objects, **lists)
    _need(payload["model"], "model", id=str, n_layers=int, n_heads=int, n_kv_heads=int, parallel=bool)
    _need(payload["task"], "task", name=str, description=str, metric=str, spans=list, n=int, dropped=dict)
    _need(payload["graph"], "graph", edges=int)
    _need(payload["left_out"], "left_out", edges=int)
    _check_model(payload["model"], payload["task"]["spans"])
    _check_edges(payload)
    _check_curve(payload)
    _check_prompts(payload["prompts"])


def _check_model(model: Mapping[str, Any], spans: Sequence[str]) -> None:
    layers, heads, kv_heads = model["n_layers"], model["n_heads"], model["n_kv_heads"]
    if min(layers, heads, kv_heads) < 1 or heads % kv_heads:
        raise CasebackError(f"model: {layers} layers of {heads} heads on {kv_heads} KV heads cannot be")
    if not spans:
        raise CasebackError("task.spans is empty; a circuit has at least one span")


def _check_edges(payload: Mapping[str, Any]) -> None:
    """Every edge joins two nodes that exist and that its channel can join."""
    model, n_spans, edges = payload["model"], len(payload["task"]["spans"]), payload["edges"]
    _columns(edges, "edges", (*_ENDS, "score", "rank"))
    if len(edges["score"]) > MAX_EDGES:
        raise CasebackError(f"edges has {len(edges['score']):,} rows; a report carries at most {MAX_EDGES:,}")
    ranks = edges["rank"]
    if any(not isinstance(rank, int) for rank in ranks) or any(b < a for a, b in pairwise([1, *ranks])):
        raise CasebackError("edges.rank must be whole numbers from 1 on, sorted; an edge of no circuit is not carried")
    if any(score is None for score in edges["score"]):
        raise CasebackError(f"edges.score, row {edges['score'].index(None)}: not a finite number")
    _check_ends(edges, "edges", model, n_spans)
    rows_of = {"table": payload["table"]}
    if payload.get("minimality") is not None:
        _need(payload["minimality"], "minimality", edges=int, rows=list)
        rows_of["minimality.rows"] = payload["minimality"]["rows"]
    for where, rows in rows_of.items():
        for i, row in enumerate(rows):
            _need(row, f"{where}[{i}]", **dict.fromkeys(_ENDS, int))
        _check_ends({name: [row[name] for row in rows] for name in _ENDS}, where, model, n_spans)


def _check_ends(edges: Mapping[str, Sequence[int]], where: str, model: Mapping[str, Any], n_spans: int) -> None:
    try:
        channel, source, target = (np.asarray(edges[name] or [], dtype=np.int64) for name in _ENDS)
    except (TypeError, ValueError, OverflowError) as error:
        raise CasebackError(f"{where}: channel, source and target must be whole numbers ({error})") from None
    heads, kv_heads = model["n_heads"], model["n_kv_heads"]
    per_layer = heads + kv_heads + 1
    per_span = model["n_layers"] * per_layer + 2
    embed, head, kv_head, mlp, logits = range(5)

    def part(node: np.ndarray) -> np.ndarray:
        place = node % per_span
        inner = np.searchsorted([heads, heads + kv_heads], (place - 1) % per_layer, side="right") + head
        return np.where(place == 0, embed, np.where(place == per_span - 1, logits, inner))

    s_part, t_part = part(source), part(target)
    s_span, t_span = source // per_span, target // per_span
    reader = np.choose(np.clip(channel, 0, 6), [mlp, head, kv_head, kv_head, head, head, head])
    residual_fits = (s_span == t_span) & np.isin(s_part, (embed, head, mlp))
    crossing_fits = (s_span <= t_span) & (s_part == kv_head)
    fits = (channel >= 0) & (channel < len(CHANNELS)) & np.where(channel < 4, residual_fits, crossing_fits)
    fits &= (t_part == reader) | ((channel == 0) & (t_part == logits))
    fits &= (source >= 0) & (target >= 0) & (s_span < n_spans) & (t_span < n_spans)
    if not fits.all():
        i = int(np.argmin(fits))
        raise CasebackError(
            f"{where}, row {i}: no edge of channel {channel[i]} joins node {source[i]} to node {target[i]} in "
            f"{model['n_layers']} layers of {heads} heads on {kv_heads} KV heads and {n_spans} spans"
        )


def _check_curve(payload: Mapping[str, Any]) -> None:
    curve, completeness = payload.get("curve"), payload.get("completeness")
    if curve is not None:
        _columns(curve, "curve", (*_CURVE, *(name for name in _CURVE_OPTIONAL if curve.get(name) is not None)))
        sizes = curve["edges"]
        if any(not isinstance(size, int) for size in sizes) or any(b <= a for a, b in pairwise([0, *sizes])):
            raise CasebackError(f"curve.edges must be whole numbers rising from 1 on; got {sizes}")
    if completeness is not None:
        _columns(completeness, "completeness", ("edges", "faithfulness"))


def _check_prompts(prompts: Sequence[Mapping[str, Any]]) -> None:
    if len(prompts) > MAX_PROMPTS:
        raise CasebackError(f"prompts has {len(prompts)} entries; a report carries at most {MAX_PROMPTS}")
    for i, prompt in enumerate(prompts):
        _need(
            prompt,
            f"prompts[{i}]",
            **dict.fromkeys(("tokens", "spans", "counterfactual", "answers", "foils"), list),
        )
        end, n = 0, len(prompt["tokens"])
        for name, start, stop in prompt["spans"]:
            if not end <= start <= stop <= n:
                raise CasebackError(
                    f"prompts[{i}].spans: {name!r} is tokens {start} to {stop}; spans follow one another within {n}"
                )
            end = stop


def _need(record: Any, where: str, **types: type) -> None:
    for name, kind in types.items():
        value = record.get(name) if isinstance(record, Mapping) else None
        if not isinstance(value, kind):
            found = "it is missing" if value is None else f"got {value!r:.60}"
            raise CasebackError(f"{where}.{name} must be of type {kind.__name__}; {found}")


def _columns(record: Mapping[str, Any], where: str, names: Sequence[str]) -> None:
    _need(record, where, **dict.fromkeys(names, list))
    lengths = {name: len(record[name]) for name in names}
    if len(set(lengths.values())) > 1:
        raise CasebackError(f"the columns of {where} must have one length; got {lengths}")
