"""Batches: padding and company change nothing, and rows keep their spans."""

from __future__ import annotations

import pytest
import torch

from caseback.core.errors import TaskError
from caseback.model.batch import Batch

from .small import FAMILIES, batch_of, model_of


def test_padding_on_either_side() -> None:
    right, left = Batch.pad([[5, 6, 7], [8]], pad=2), Batch.pad([[5, 6, 7], [8]], pad=2, side="left")
    assert right.ids.tolist() == [[5, 6, 7], [8, 2, 2]]
    assert left.ids.tolist() == [[5, 6, 7], [2, 2, 8]]
    assert right.mask.tolist() == [[True] * 3, [True, False, False]]
    assert left.mask.tolist() == [[True] * 3, [False, False, True]]
    assert right.last.tolist() == [2, 0] and left.last.tolist() == [2, 2]
    assert right.lengths.tolist() == left.lengths.tolist() == [3, 1]
    assert right.n == 2 and dict(right.spans) == {}


def test_rows_are_cut_to_the_width_they_need_and_keep_their_spans() -> None:
    batch = batch_of(model_of("llama"), lengths=(8, 5, 6))
    some = batch[[1, 2]]
    assert some.ids.shape == (2, 6)
    assert torch.equal(some.ids, batch.ids[1:, :6]) and torch.equal(some.mask, batch.mask[1:, :6])
    assert list(some.spans) == ["first", "middle", "rest"]
    assert some.spans["rest"].tolist() == [[3, 5], [3, 6]]
    assert batch[1:2].ids.shape == (1, 5)
    assert batch[:0].ids.shape == (0, 0)


def test_moving_takes_everything_along() -> None:
    moved = batch_of(model_of("llama")).to("cpu")
    assert torch.equal(moved.ids, batch_of(model_of("llama")).ids) and list(moved.spans) == ["first", "middle", "rest"]


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_side_and_batch_composition_change_nothing(name: str) -> None:
    """Logits and streams of each row alone, padded right, padded left and in other company, within 1e-5 of their size."""
    model = model_of(name)
    lengths = (9, 4, 7)
    right = batch_of(model, lengths=lengths)
    alone = [model.run(right[[row]], read=["resid_post.1"]) for row in range(3)]
    others = [right, right[[2, 0, 1]]]
    if model.family.left_padding:
        others.append(batch_of(model, lengths=lengths, side="left"))
    for batch in others:
        run = model.run(batch, read=["resid_post.1"])
        for row in range(3):
            mine = next(
                i
                for i, single in enumerate(alone)
                if single.batch.ids[0].tolist() == batch.ids[row, batch.mask[row]].tolist()
            )
            for found, expected in (
                (run.logits[row], alone[mine].logits[0]),
                (run["resid_post.1"][row, batch.mask[row]], alone[mine]["resid_post.1"][0]),
            ):
                assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.default_model
def test_the_default_model_is_steady_reads_edits_and_encodes(default_model: object) -> None:
    """A smoke test on real weights: one prompt alone and padded, a read that equals a late start, one edit that matters."""
    from caseback.model.edits import Scale
    from caseback.model.model import Model
    from caseback.model.run import Start

    model = default_model
    assert isinstance(model, Model)
    texts = ["When Mary and John went to the store, John gave a drink to", "The capital of France is"]
    alone = model.logits(model.encode(texts[:1]))[0]
    assert model.tokenizer.decode(int(alone.argmax())) == " Mary"
    for side in ("right", "left"):
        batch = model.encode(texts, side=side)
        logits = model.logits(batch)
        assert float((logits[0] - alone).abs().max() / alone.abs().max()) < 1e-5
        assert model.tokenizer.decode(int(logits[1].argmax())) == " Paris"
    batch = model.encode(texts)
    run = model.run(batch, read=["resid_pre.20"], stop=20)
    late = model.run(batch, edit=[Scale("mlp_out.29@end", 0.0)], start=Start(20, run["resid_pre.20"])).logits
    assert torch.equal(late, model.run(batch, edit=[Scale("mlp_out.29@end", 0.0)]).logits)
    assert not torch.allclose(late[0], alone, atol=0.1)
    with pytest.raises(TaskError, match="text 1 has no tokens"):
        model.encode(["a", ""])


def test_a_model_without_a_tokenizer_says_so() -> None:
    with pytest.raises(TaskError, match="has no tokenizer, so it cannot read text; give token ids in a Batch"):
        model_of("llama").encode(["a"])
