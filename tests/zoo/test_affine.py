"""The affine zoo model: its map is what brute force finds, whatever the subject and whatever stands before."""

from __future__ import annotations

import pytest
import torch

from caseback.core.errors import RelationError
from caseback.model.edits import Add
from caseback.zoo.affine import affine


@pytest.mark.parametrize("rank", [1, 5, 16, 24])
def test_it_has_the_map_it_says(rank: int) -> None:
    """z = W s + b for states far from any subject's, too."""
    zoo = affine(rank=rank)
    assert torch.linalg.matrix_rank(zoo.W, rtol=1e-4) == rank
    batch = zoo.model.encode([f"subject7 is object7 {zoo.template.format('subject3')}"])
    at = int(batch.last[0]) - 1
    for layer in (0, 1):
        for step in (0.0, 1.0, 5.0):
            moved = step * torch.randn(64, generator=torch.Generator().manual_seed(1))
            site = f"resid_pre.{layer}@{at}"
            run = zoo.model.run(batch, read=[site, "resid_final@end"], edit=[Add(site, moved)])
            torch.testing.assert_close(run["resid_final@end"][0], zoo.W @ run[site][0] + zoo.b, atol=1e-4, rtol=1e-4)


def test_it_knows_every_pair_and_each_word_is_one_token() -> None:
    zoo = affine(n=12, seed=3)
    assert len(zoo.pairs) == 12 and len({other for _, other in zoo.pairs}) == 12
    batch = zoo.model.encode([zoo.template.format(subject) for subject, _ in zoo.pairs])
    assert batch.ids.shape == (12, 5)
    said = zoo.model.logits(batch).argmax(dim=-1)
    assert [zoo.model.tokenizer.decode([int(token)]) for token in said] == [other for _, other in zoo.pairs]


def test_the_seed_alone_decides() -> None:
    state = torch.get_rng_state()
    one, same, other = affine(), affine(), affine(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.W, same.W) and not torch.equal(one.W, other.W)


@pytest.mark.parametrize(("rank", "n"), [(0, 40), (25, 40), (16, 1)])
def test_what_does_not_fit(rank: int, n: int) -> None:
    with pytest.raises(RelationError, match=f"rank 1 to 24 and there are at least 2 subjects, not {rank} and {n}"):
        affine(rank=rank, n=n)
