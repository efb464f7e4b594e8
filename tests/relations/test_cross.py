"""Cross-evaluation and isolation, where it is known what an operator and an edit hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from caseback.core.errors import RelationError
from caseback.model.model import Model
from caseback.relations.cross import Operator, cross_evaluate, isolate, siblings
from caseback.relations.observe import Observed, observe

from .facts import FIRST, SECOND, N, answer, facts, operator, relation, samples
from .small import SAMPLES, TEMPLATE, model_of


def observed(model: Model) -> dict[str, Observed]:
    return {"first": observe(model, samples(), FIRST), "second": observe(model, samples(True), SECOND)}


def operators(model: Model) -> dict[str, Operator]:
    made = {name: operator(model, second=name == "second") for name in ("first", "second")}
    return {name: Operator(W=W, b=b, beta=1.0, layer=0) for name, (W, b) in made.items()}


def test_each_operator_answers_its_own_question_only() -> None:
    model = facts()
    found = cross_evaluate(model, operators(model), observed(model))
    assert found.operators == found.subjects == ("first", "second") and found.n.tolist() == [N, N]
    assert found.right.tolist() == [[1, 0], [0, 1]]
    assert found.own.tolist() == [[1, 1], [1, 1]]  # every answer is of the operator's own kind
    assert found.asked.tolist() == [[1, 0], [0, 1]]
    np.testing.assert_allclose(found.majority, [6 / 24, 8 / 24])
    assert (found.twin <= 0.6).all() and (found.bias <= found.majority).all()
    cell = found.interval("first", "first")
    assert cell.value == 1 and cell.n == N and 0.8 < cell.low < 1
    with pytest.raises(RelationError, match="no relation 'third' in this matrix; there are: first, second"):
        found.interval("first", "third")


def test_an_operator_without_its_own_subjects_and_one_with_the_other_kind_of_answer() -> None:
    model = facts()
    _, b = operator(model, second=True)
    W, _ = operator(model, both=True)
    given = {"all": Operator(W=W, b=b, beta=1.0, layer=1)}
    found = cross_evaluate(model, given, observed(model))
    assert found.right.tolist() == [[0, 1]]  # its b asks the second question, whoever is asked about
    assert found.asked.tolist() == [[0, 1]] and np.isnan(found.own).all()
    with pytest.raises(RelationError, match="'own' is not known of 'all'"):
        found.interval("all", "first", "own")


def test_nothing_to_evaluate_is_said() -> None:
    model = facts()
    with pytest.raises(RelationError, match="at least one operator"):
        cross_evaluate(model, {}, observed(model))
    untrained = model_of("llama")
    seen = observe(untrained, SAMPLES, TEMPLATE)
    seen = dataclasses.replace(seen, known=np.zeros(len(seen), dtype=bool))
    d = untrained.d_model
    with pytest.raises(RelationError, match="knows no subject of 'w'"):
        cross_evaluate(untrained, {"w": Operator(W=torch.eye(d), b=torch.zeros(d), beta=1.0, layer=0)}, {"w": seen})
    with pytest.raises(RelationError, match="streams of width 48"):
        cross_evaluate(untrained, operators(model), {"w": observe(untrained, SAMPLES, TEMPLATE)})


def test_an_edit_of_one_part_leaves_the_other_alone_and_an_edit_of_all_does_not() -> None:
    model = facts()
    seen = observed(model)
    others = {"second": seen["second"]}
    W, _ = operator(model)
    found = isolate(model, W, 8, 0, seen["first"], others, pairs=12)
    assert len(found.subjects) == 12 and found.siblings == ("second",)
    assert found.rate().value == found.rate("swap").value == 1 and found.rate("random").value < 0.6
    assert found.isolated().value == found.isolated("second", successful=True).value == 1
    assert found.isolated("second", "swap").value == 0
    number = {f"subject{i}": i for i in range(N)}
    differ = [answer(number[i]) != answer(number[j]) for i, j in zip(found.subjects, found.targets, strict=True)]
    assert found.telling[0].tolist() == differ and 0 < sum(differ) < 12
    everything, _ = operator(model, both=True)
    whole = isolate(model, everything, 16, 0, seen["first"], others, pairs=12)
    assert whole.subjects == found.subjects and whole.rate().value == 1 and whole.isolated().value == 0
    # no head reads the subject any more: nothing succeeds, and all is left alone
    late = isolate(model, W, 8, 2, seen["first"], others, pairs=12)
    assert late.rate().value == 0 and late.isolated().value == late.isolated(edit="swap").value == 1
    with pytest.raises(RelationError, match="where the edit succeeds"):
        late.isolated(successful=True)
    with pytest.raises(RelationError, match="no edit 'none'; there are: lre, swap, random"):
        late.rate("none")


def test_siblings_that_share_no_subject_are_refused() -> None:
    model = facts()
    seen = observed(model)
    W, _ = operator(model)
    mine, other = seen["first"][range(8)], seen["second"][range(12, 20)]
    with pytest.raises(RelationError, match="siblings share subjects"):
        isolate(model, W, 8, 0, mine, {"second": other})
    with pytest.raises(RelationError, match="ranks lie between 1 and 64, got 0"):
        isolate(model, W, 0, 0, mine, seen)


def test_siblings_are_of_the_same_subjects() -> None:
    first, second = relation(), relation(True)
    elsewhere = dataclasses.replace(
        second, name="else", properties=dataclasses.replace(second.properties, domain_name="town")
    )
    few = dataclasses.replace(second, name="few", samples=second.samples[:4])
    assert siblings(first, [first, second, elsewhere, few]) == (second,)
    assert siblings(first, [few], least=4) == (few,)
