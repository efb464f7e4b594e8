"""What the validator accepts can be drawn; what it refuses it names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from caseback.core.errors import CasebackError
from caseback.show.payload import MAX_EDGES, validate

from .synthetic import payload

GOOD = payload(300)


def edges(name: str, value: Any, row: int = 0) -> Callable[[dict[str, Any]], None]:
    def change(made: dict[str, Any]) -> None:
        made["edges"][name][row] = value

    return change


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(made: dict[str, Any]) -> None:
        for name in path[:-1]:
            made = made[name]
        made[path[-1]] = value

    return change


def test_a_built_payload_is_valid() -> None:
    validate(GOOD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("kind", value="relation"), "kind 'relation', version 1"),
        (put("version", value=2), "version 2"),
        (put("title", value=None), r"payload\.title must be of type str; it is missing"),
        (put("model", value=[]), r"payload\.model must be of type dict; got \[\]"),
        (put("model", "n_heads", value=4), "4 heads on 3 KV heads"),
        (put("task", "spans", value=[]), "task.spans is empty"),
        (put("edges", "rank", value=[1]), "columns of edges must have one length.*'rank': 1"),
        (put("edges", "rank", value=[0] * 300), "edges.rank must be whole numbers from 1"),
        (edges("rank", 9), "sorted"),
        (edges("score", None, 7), r"edges\.score, row 7"),
        (edges("channel", 9), "edges, row 0: no edge of channel 9"),
        (edges("channel", 6), "edges, row 0: no edge of channel 6"),
        (edges("source", -1), "joins node -1"),
        (edges("target", 10**9), "to node 1000000000"),
        (edges("target", "x"), "must be whole numbers"),
        (put("table", value=[{"channel": 0, "source": 0}]), r"table\[0\]\.target must be of type int"),
        (put("table", value=[{"channel": 0, "source": 1, "target": 0}]), "table, row 0"),
        (put("curve", "edges", value=[1] * 12), "curve.edges must be whole numbers rising"),
        (put("curve", "low", value=[0.0]), "columns of curve must have one length"),
        (put("curve", "random", value=3), r"curve\.random must be of type list"),
        (put("completeness", "edges", value=None), r"completeness\.edges"),
        (put("prompts", value=[GOOD["prompts"][0]] * 6), "prompts has 6 entries; a report carries at most 5"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[dict[str, Any]], None], message: str) -> None:
    made = copy.deepcopy(GOOD)
    change(made)
    with pytest.raises(CasebackError, match=message):
        validate(made)


def test_spans_of_a_prompt_follow_one_another_inside_it() -> None:
    made = copy.deepcopy(GOOD)
    made["prompts"][1]["spans"][3] = ["and", 3, 99]
    with pytest.raises(CasebackError, match=r"prompts\[1\]\.spans: 'and' is tokens 3 to 99; .* within 15"):
        validate(made)


def test_a_span_may_be_empty() -> None:
    made = copy.deepcopy(GOOD)
    made["prompts"][0]["spans"][3] = ["and", 3, 3]
    validate(made)


def test_more_than_twenty_thousand_edges_are_refused() -> None:
    made = copy.deepcopy(GOOD)
    made["edges"] = {name: column[:1] * (MAX_EDGES + 1) for name, column in made["edges"].items()}
    with pytest.raises(CasebackError, match=r"20,001 rows; a report carries at most 20,000"):
        validate(made)
