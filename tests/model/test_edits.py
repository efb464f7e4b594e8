"""Edits as data: what each one makes of a value, and one sentence for what does not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from caseback.core.errors import SiteError
from caseback.model.edits import Ablate, Add, Call, Edit, Patch, Project, Scale, Set

SITE = "z.1.2@end"


@pytest.fixture
def value() -> Tensor:
    return torch.randn((3, 4), generator=torch.Generator().manual_seed(0))


def test_known_answers(value: Tensor) -> None:
    row = torch.arange(4.0)
    other = torch.randn((5, 4), generator=torch.Generator().manual_seed(1))
    expected: list[tuple[Edit, Tensor]] = [
        (Set(SITE, 2.0), torch.full((3, 4), 2.0)),
        (Set(SITE, row), row.expand(3, 4)),
        (Add(SITE, row.to(torch.int64)), value + row),
        (Scale(SITE, -0.5), value * -0.5),
        (Patch(SITE, other[:3]), other[:3]),
        (Ablate(SITE, "zero"), torch.zeros(3, 4)),
        (Ablate(SITE, "mean", other), other.mean(dim=0).expand(3, 4)),
        (Ablate(SITE, "counterfactual", other[:3]), other[:3]),
        (Call(SITE, torch.relu), value.clamp(min=0)),
    ]
    before = value.clone()
    for edit, answer in expected:
        torch.testing.assert_close(edit.new(value), answer)
    assert torch.equal(value, before), "an edit changed the value it was shown"


def test_a_value_comes_in_the_dtype_of_the_site(value: Tensor) -> None:
    half = value.to(torch.bfloat16)
    for edit in (Set(SITE, 1.5), Add(SITE, torch.ones(4)), Patch(SITE, value), Ablate(SITE, "mean", value)):
        assert edit.new(half).dtype == torch.bfloat16
    projected = Project(SITE, torch.eye(4)[:1]).new(half)
    assert projected.dtype == torch.bfloat16
    assert not projected[:, 0].any() and torch.equal(projected[:, 1:], half[:, 1:])


@pytest.mark.parametrize(
    "directions",
    [
        [[2.0, 0, 0, 0], [1.0, 1, 0, 0]],
        [[2.0, 0, 0, 0], [1.0, 1, 0, 0], [3.0, -1, 0, 0]],  # dependent: still the same plane
        [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 1, 0, 0], [0, 2, 0, 0], [1, 2, 0, 0]],  # more than dimensions
    ],
)
def test_a_projection_removes_what_the_directions_span_and_nothing_else(
    value: Tensor, directions: list[list[float]]
) -> None:
    plane = torch.tensor([1.0, 1, 0, 0])
    spanned = torch.tensor(directions)
    torch.testing.assert_close(Project(SITE, spanned).new(value), value * (1 - plane))
    torch.testing.assert_close(Project(SITE, spanned, keep=True).new(value), value * plane)


def test_a_projection_onto_no_direction_is_nothing(value: Tensor) -> None:
    for directions in (torch.zeros(2, 4), torch.zeros(0, 4)):
        assert torch.equal(Project(SITE, directions).new(value), value)


def test_edits_are_frozen_data() -> None:
    edit = Scale(SITE, 2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.factor = 3.0  # type: ignore[misc]
    assert repr(edit) == "Scale(site='z.1.2@end', factor=2.0)"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (Set(SITE, torch.ones(5)), "gives a value of shape (5,) where the site has (3, 4)"),
        (Add(SITE, torch.ones(2, 3, 4)), "gives a value of shape (2, 3, 4) where the site has (3, 4)"),
        (Patch(SITE, torch.ones(2, 4)), "has shape (2, 4) where the site has (3, 4): the two runs differ in rows"),
        (Patch(SITE, torch.ones(4)), "has shape (4,) where the site has (3, 4)"),
        (Ablate(SITE, "mean"), "by 'mean' needs `reference`"),
        (Ablate(SITE, "counterfactual"), "by 'counterfactual' needs `reference`"),
        (Project(SITE, torch.ones(1, 3)), "directions of 3 dimensions where the site has 4"),
        (Call(SITE, lambda value: value[:1]), "returned (1, 4) where a tensor of shape (3, 4) was expected"),
        (Call(SITE, lambda value: None), "returned NoneType where a tensor"),  # type: ignore[arg-type,return-value]
    ],
)
def test_what_does_not_fit_is_named_with_its_site(value: Tensor, edit: Edit, sentence: str) -> None:
    with pytest.raises(SiteError) as error:
        edit.new(value)
    assert sentence in str(error.value)
    assert SITE in str(error.value)


def test_an_ablation_by_what_does_not_exist_is_refused_at_once() -> None:
    edit = object.__new__(Ablate)  # the type checks of the test run would object first
    object.__setattr__(edit, "site", SITE)
    object.__setattr__(edit, "how", "median")
    with pytest.raises(SiteError, match="cannot be ablated by 'median'; there are: zero, mean, counterfactual"):
        edit.__post_init__()
