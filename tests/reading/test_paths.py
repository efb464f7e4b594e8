"""Path patching: by hand, by single edges of the circuit, and where it must be nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from caseback.circuits.check import random_pairs
from caseback.circuits.evaluate import measure
from caseback.circuits.graph import Circuit
from caseback.circuits.parts import graph_of
from caseback.core.errors import FamilyError, ReadingError, SiteError
from caseback.model.edits import Call
from caseback.model.model import Model
from caseback.reading.paths import path_patch
from caseback.tasks.encode import PairBatch
from caseback.tasks.metrics import logit_diff
from caseback.zoo.tiny import tiny


@cache
def model_of(name: str) -> Model:
    return Model(tiny(name))


@cache
def pairs_of(name: str) -> PairBatch:
    return random_pairs(model_of(name))


@torch.no_grad()
def by_hand(name: str, head: int, channel: str, receiver: int) -> np.ndarray:
    """Sender (0, head) → receiver (1, receiver), from the weights: the receiver's projection of a stream that has the
    counterfactual's share of the sender, everything else the clean run's."""
    model, pairs = model_of(name), pairs_of(name)
    clean, other = (model.run(b, read=["z.0", "resid_pre.1"]) for b in (pairs.clean, pairs.counterfactual))
    o_proj = model.o_proj(0)
    alone = torch.zeros_like(clean["z.0"])
    alone[:, :, head] = other["z.0"][:, :, head] - clean["z.0"][:, :, head]
    moved = o_proj(alone.flatten(2)) - o_proj(torch.zeros_like(alone).flatten(2))
    moved = moved * model.write_scale
    stream = clean["resid_pre.1"] + moved
    # what the block's own attention makes of that stream
    there = model.run(pairs.clean, read=[f"{channel}.1"], edit=[Call("resid_pre.1", lambda value: stream)])
    given = there[f"{channel}.1"][:, :, receiver]

    def put(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[:, :, receiver] = given
        return value

    logits = model.run(pairs.clean, edit=[Call(f"{channel}.1", put)]).logits
    return logit_diff(logits, pairs).numpy()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "granite", "phi3"])
def test_a_path_is_the_one_by_hand(name: str) -> None:
    model, pairs = model_of(name), pairs_of(name)
    found = path_patch(model, pairs, "z.0.1", rows=5)
    assert found.sender == "z.0.1" and found.grids["q"].layers == (1,)
    for channel, grid in found.grids.items():
        assert grid.heads == (model.n_heads if channel == "q" else model.n_kv_heads)
        for receiver in range(grid.heads):
            want = by_hand(name, 1, channel, receiver)
            np.testing.assert_allclose(grid.metric[0, receiver, 0], want, atol=3e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_path_is_its_edges_taken_together(name: str) -> None:
    """Noising along a path = the full circuit without the path's edges at every span."""
    model, pairs = model_of(name), pairs_of(name)
    graph = graph_of(model, tuple(pairs.clean.spans))
    found = path_patch(model, pairs, "z.0.2")
    readers = [("q", 3), ("k", 0), ("v", graph.n_kv_heads - 1), ("logits", 0)]
    circuits = []
    for channel, head in readers:
        residual = Circuit.full(graph).residual.copy()
        reader = graph.logits if channel == "logits" else graph.reader(1, channel, head)
        residual[:, graph.writer(0, 2), reader] = False
        circuits.append(Circuit(graph=graph, residual=residual, crossing=Circuit.full(graph).crossing))
    measured = measure(model, pairs, circuits)
    np.testing.assert_allclose(found.start, measured.full, atol=1e-5)
    for (channel, head), metric in zip(readers, measured.metric, strict=True):
        mine = found.logits if channel == "logits" else found.grids[channel].metric[0, head, 0]
        np.testing.assert_allclose(mine, metric, atol=5e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_the_last_layer_goes_to_the_logits_alone(name: str) -> None:
    """Without anything after it but its own block's MLP, the path through the MLP too is the whole effect."""
    model, pairs = model_of(name), pairs_of(name)
    found = path_patch(model, pairs, "z.1.0", through_mlps=True)
    other = model.run(pairs.counterfactual, read=["z.1.0"])["z.1.0"]
    logits = model.run(pairs.clean, edit=[Call("z.1.0", lambda value: other)]).logits
    np.testing.assert_allclose(found.logits, logit_diff(logits, pairs), atol=1e-5)
    assert found.grids["q"].metric.shape == (0, model.n_heads, 1, 3)
    parallel = path_patch(model, pairs, "z.1.0").logits
    assert np.allclose(parallel, found.logits, atol=1e-5) == (name == "gpt_neox")  # its MLP does not read its attention


def test_an_mlp_as_sender_and_the_other_direction() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    found = path_patch(model, pairs, "mlp_out.0", channels=["v"], direction="denoise", columns="spans")
    assert found.grids["v"].metric.shape == (1, 2, 3, 3)
    np.testing.assert_allclose(found.start, logit_diff(model.logits(pairs.counterfactual), pairs), atol=1e-5)
    np.testing.assert_allclose(found.other, logit_diff(model.logits(pairs.clean), pairs), atol=1e-5)
    np.testing.assert_allclose(found.grids["v"].change[0, :, 0, :].shape, (2, 3))


def test_nothing_to_send_changes_nothing() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    same = replace(pairs, counterfactual=pairs.clean)
    found = path_patch(model, same, "z.0.0")
    for grid in found.grids.values():
        np.testing.assert_allclose(grid.change, 0, atol=1e-5)
    np.testing.assert_allclose(found.logits, found.start, atol=1e-5)
    first = path_patch(model, pairs, "z.0.0", span="same")  # equal in both prompts, and nothing before it differs
    np.testing.assert_allclose(first.grids["k"].change, 0, atol=1e-5)


def test_spans_of_the_sender_to_the_logits_add_up_at_the_end() -> None:
    """Only what is written at the last token reaches the logits without a head between."""
    model, pairs = model_of("llama"), pairs_of("llama")
    end, whole = (path_patch(model, pairs, "z.0.3", span=span) for span in ("end", None))
    np.testing.assert_allclose(end.logits, whole.logits, atol=1e-5)
    assert end.direct().value == pytest.approx(
        (end.logits - end.start).mean() / (end.other - end.start).mean(), rel=1e-6
    )


def test_refusals() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    for sender in ("z.0", "resid_pre.0", "z.*.1", "z.0.1@end"):
        with pytest.raises(ReadingError, match="is no sender of a path"):
            path_patch(model, pairs, sender)
    with pytest.raises(SiteError, match="4 heads, 0 to 3"):
        path_patch(model, pairs, "z.0.9")
    with pytest.raises(ReadingError, match="by q, k or v, not by 'nothing'"):
        path_patch(model, pairs, "z.0.1", channels=[])
    with pytest.raises(ReadingError, match="no span 'subject'; they have: same, middle, end"):
        path_patch(model, pairs, "z.0.1", span="subject")
    with pytest.raises(FamilyError, match="bloom has no sites q"):
        path_patch(model_of("bloom"), pairs_of("bloom"), "z.0.1")
