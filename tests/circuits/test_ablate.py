"""Ablation against the forward written edge by edge, in every mode, and against itself computed other ways."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caseback.circuits.ablate import Ablator, Plan
from caseback.circuits.block import Block
from caseback.circuits.graph import Circuit
from caseback.circuits.parts import graph_of, layers_of
from caseback.circuits.reference import mean_reference
from caseback.circuits.score import batches
from caseback.core.errors import CircuitError, FamilyError, SiteNotReached
from caseback.model.model import Model
from caseback.tasks.encode import PairBatch
from caseback.zoo.tiny import TINY, tiny

from .plain import FAMILIES, Plain, close, model_of, pairs_of, some_circuit


def ablator(model: Model, pairs: PairBatch, **options: Any) -> Ablator:
    layers, spans = layers_of(model), tuple(pairs.clean.spans)
    if options.get("reference") == "mean":
        options["mean"] = mean_reference(model, layers, batches(pairs, 10), spans)
    return Ablator(model, layers, graph_of(model, spans), pairs, **options)


def left_behind(model: Model) -> list[str]:
    return [
        name
        for name, module in model.hf.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    ]


SHARES = (0.15, 0.5, 0.9)


# --- against the plain forward ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_any_circuit_gives_what_the_plain_forward_gives(name: str) -> None:
    """Within 2e-5 of the largest logit, for circuits of every density with nodes cut off."""
    model, pairs = model_of(name), pairs_of(name)
    ready, plain = ablator(model, pairs), Plain(model, pairs)
    for seed, share in enumerate(SHARES):
        circuit = some_circuit(ready.graph, share, seed)
        expected = plain.circuit(circuit)
        assert close(ready.logits(circuit), expected, 2e-5), share
        assert not close(expected, ready.full, 0.01)
    assert not left_behind(model)


@pytest.mark.parametrize("reference", ["zero", "mean"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "gpt_oss"])
def test_other_references_give_what_the_plain_forward_gives(name: str, reference: str) -> None:
    model, pairs = model_of(name), pairs_of(name)
    ready, plain = ablator(model, pairs, reference=reference), Plain(model, pairs, reference)
    for seed, share in enumerate((0.0, *SHARES, 1.0)):
        circuit = some_circuit(ready.graph, share, seed) if 0 < share < 1 else _ends(ready, share)
        assert close(ready.logits(circuit), plain.circuit(circuit), 2e-5), share
    deaf = without_readers(some_circuit(ready.graph, 0.7, 3), layer=0)
    assert close(ready.logits(deaf), plain.circuit(deaf), 2e-5), "heads compare the references of q, k and v"


def without_readers(circuit: Circuit, *, layer: int) -> Circuit:
    """The circuit without any edge into the readers of a layer; its crossing edges stay."""
    residual, per = circuit.residual.copy(), circuit.graph.readers_per_layer
    residual[..., layer * per : (layer + 1) * per] = False
    return Circuit(graph=circuit.graph, residual=residual, crossing=circuit.crossing)


def _ends(ready: Ablator, share: float) -> Circuit:
    return Circuit.full(ready.graph) if share else Circuit.empty(ready.graph)


@pytest.mark.parametrize("reference", ["counterfactual", "mean"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss"])
def test_peap_replaces_blocks_by_reference_pattern_times_reference_value(name: str, reference: str) -> None:
    """z = Σ_kept A v + Σ_removed A* v*, rows not renormalised; a pair of spans is kept where all three channels are."""
    model, pairs = model_of(name), pairs_of(name)
    ready = ablator(model, pairs, mixing="peap", reference=reference)
    plain = Plain(model, pairs, reference, mixing="peap")
    exact = ablator(model, pairs, reference=reference)
    for seed, share in enumerate((0.5, 0.9, 0.98)):
        circuit = some_circuit(ready.graph, share, seed)
        found = ready.logits(circuit)
        assert close(found, plain.circuit(circuit), 2e-5), share
        assert not close(found, exact.logits(circuit), 1e-3)
    for circuit, expected in ((Circuit.full(ready.graph), ready.full), (Circuit.empty(ready.graph), ready.empty())):
        assert close(ready.logits(circuit), expected, 1e-5)


def test_peap_needs_a_reference_with_patterns() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    with pytest.raises(CircuitError, match="use the counterfactual"):
        ablator(model, pairs, mixing="peap", reference="zero")


def test_an_empty_span_is_no_edge() -> None:
    """Row by row: where a span is empty, the edges from it keep nothing alive, whatever the others' lengths."""
    model, pairs = model_of("llama"), pairs_of("llama")
    spans = dict(pairs.clean.spans)
    first, second = spans["same"].clone(), spans["middle"].clone()
    first[:2, 1], second[:2, 0] = (
        0,
        0,
    )  # rows 0 and 1 (which is padded): "same" is empty, "middle" begins with the prompt
    spans |= {"same": first, "middle": second}
    clean, other = replace(pairs.clean, spans=spans), replace(pairs.counterfactual, spans=spans)
    pairs = replace(pairs, clean=clean, counterfactual=other)
    for reference in ("counterfactual", "mean", "zero"):
        for rows in ([0, 1, 2], [0]):
            some = pairs[rows]
            ready, plain = ablator(model, some, reference=reference), Plain(model, some, reference)
            graph = ready.graph
            for seed, share in enumerate(SHARES):
                circuit = some_circuit(graph, share, seed)
                assert close(ready.logits(circuit), plain.circuit(circuit), 2e-5), (reference, rows, share)
            # a head that is reached from the empty span alone gives its reference
            crossing = np.zeros(graph.crossing_shape, dtype=bool)
            crossing[..., 0] = True
            flat = np.concatenate([Circuit.full(graph).residual.ravel(), crossing.ravel()]) & graph.allowed
            circuit = Circuit.from_flat(graph, flat)
            assert close(ready.logits(circuit), plain.circuit(circuit), 2e-5), (reference, rows)


def test_a_mean_over_no_token_is_refused() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    spans = dict(pairs.clean.spans)
    spans["same"], spans["middle"] = spans["same"] * 0, spans["middle"].clone()
    spans["middle"][:, 0] = 0
    empty = replace(pairs, clean=replace(pairs.clean, spans=spans))
    mean = mean_reference(model, layers_of(model), [empty], tuple(spans))
    with pytest.raises(CircuitError, match="the mean reference has no token in span 'same'"):
        Ablator(model, layers_of(model), graph_of(model, tuple(spans)), pairs, reference="mean", mean=mean)
    Ablator(model, layers_of(model), graph_of(model, tuple(spans)), empty, reference="mean", mean=mean)


# --- the ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_empty_circuit_is_the_counterfactual_run_and_the_full_one_the_clean_run(name: str) -> None:
    """Also when nothing is passed over: with one harmless edge of the last block the other way round."""
    model, pairs = model_of(name), pairs_of(name)
    ready = ablator(model, pairs)
    graph = ready.graph
    clean, other = model.logits(pairs.clean), model.logits(pairs.counterfactual)
    assert close(ready.full, clean, 1e-5) and close(ready.empty(), other, 1e-5)
    assert close(ready.logits(Circuit.full(graph)), clean, 1e-5)
    assert close(ready.logits(Circuit.empty(graph)), other, 1e-5)
    same = Circuit.of(graph, [f"embed->{reader}@same" for reader in ("m0", "a1.h1<q>", "a1.h0<v>", "m1")])
    assert close(ready.logits(Circuit.full(graph) - same), clean, 1e-5)
    assert close(ready.logits(same), other, 1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2", "gemma2"])
def test_a_node_without_an_incoming_edge_gives_its_reference(name: str) -> None:
    """All edges into a node off: a head's z at a span, a query, an MLP's output is that of the counterfactual run."""
    model, pairs = model_of(name), pairs_of(name)
    ready = ablator(model, pairs)
    graph, full = ready.graph, Circuit.full(ready.graph)
    other = model.run(pairs.counterfactual, read=["z.1", "mlp_out.1", "pattern.1"])
    inside = torch.zeros(pairs.clean.ids.shape, dtype=torch.bool)
    for row, (start, end) in enumerate(pairs.clean.spans["middle"].tolist()):
        inside[row, start:end] = True
    crossing = np.zeros(graph.crossing_shape, dtype=bool)
    crossing[:, 1, 2, 1] = True
    residual = np.zeros(graph.residual_shape, dtype=bool)
    cut_head = full - Circuit.from_flat(graph, np.concatenate([residual.ravel(), crossing.ravel()]) & graph.allowed)
    residual[1, :, graph.reader(1, "mlp")] = True
    cut_mlp = full - Circuit.from_flat(
        graph, np.concatenate([residual.ravel(), np.zeros(crossing.size, dtype=bool)]) & graph.allowed
    )
    seen: dict[str, Tensor] = {}
    o_proj, write = model.o_proj(1), layers_of(model)[1].writers[1]
    assert o_proj is not None
    # behind the overrides: hooks put on during the run come after them
    install = Block.install

    def watching(self: Any, hooks: Any) -> None:
        install(self, hooks)
        if self.layer == 1:
            hooks.into(o_proj, lambda value: seen.setdefault("z", value.clone()))
            hooks.out_of(write, lambda value: seen.setdefault("mlp", value.clone()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "install", watching)
        ready.logits(cut_head)
        z = seen.pop("z").unflatten(-1, (model.n_heads, -1))
        assert close(z[:, :, 2][inside], other["z.1"][:, :, 2][inside], 1e-5)
        assert not close(z[:, :, 1][inside], other["z.1"][:, :, 1][inside], 1e-2)
        seen.clear()
        ready.logits(cut_mlp)
        assert close(seen["mlp"][inside] * model.write_scale, other["mlp_out.1"][inside], 1e-5)
        assert not close(seen["mlp"][~inside & pairs.clean.mask], other["mlp_out.1"][~inside & pairs.clean.mask], 1e-2)


# --- shortcuts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_adding_what_is_kept_equals_taking_away_what_is_removed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """in(v) = reference stream + Σ kept Δ = current stream − Σ removed Δ, whichever is used at a reader."""
    model, pairs = model_of(name), pairs_of(name)
    ready = ablator(model, pairs)
    circuit = some_circuit(ready.graph, 0.6, 5)
    usual, own = ready.logits(circuit), Plan.of

    for always in (True, False):

        def forced(circuit: Circuit, like: Tensor, always: bool = always) -> Any:
            plan, allowed = own(circuit, like), circuit.graph.residual_allowed
            kept, removed = torch.tensor(circuit.residual), torch.tensor(allowed & ~circuit.residual)
            weights = (-removed.to(like) if always else kept.to(like)).transpose(1, 2)
            return replace(plan, from_stream=np.full_like(plan.from_stream, always), weights=weights)

        monkeypatch.setattr(Plan, "of", staticmethod(forced))
        assert close(ready.logits(circuit), usual, 2e-5), always


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss", "gpt_neox"])
def test_the_mlp_on_the_tokens_it_is_needed_at_equals_the_mlp_on_all(name: str) -> None:
    model, pairs = model_of(name), pairs_of(name)
    ready = ablator(model, pairs)
    circuit = some_circuit(ready.graph, 0.4, 1)
    residual = circuit.residual.copy()
    residual[1, :, ready.graph.reader(0, "mlp")] = False  # not needed at the middle
    circuit = Circuit(graph=ready.graph, residual=residual, crossing=circuit.crossing)
    tokens: list[int] = []
    mlp = layers_of(model)[0].mlp
    handle = mlp.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[-2]))
    try:
        found = ready.logits(circuit)
    finally:
        handle.remove()
    assert close(found, Plain(model, pairs).circuit(circuit), 2e-5)
    assert tokens == [] or min(tokens) <= int(pairs.clean.mask.sum())


def test_blocks_that_the_circuit_does_not_touch_are_not_run() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    ready = ablator(model, pairs)
    graph = ready.graph
    ran: list[int] = []
    handles = [
        model.o_proj(layer).register_forward_pre_hook(lambda m, a, layer=layer: ran.append(layer))  # type: ignore[union-attr,misc]
        for layer in (0, 1)
    ]
    try:
        ready.logits(Circuit.of(graph, ["embed->logits@end"]))
        assert ran == [], "no head is in the circuit"
        ready.logits(Circuit.full(graph) - Circuit.of(graph, ["m1->logits@end"]))
        assert ran == [], "every block is as in the clean run"
        ready.logits(Circuit.full(graph) - Circuit.of(graph, ["m0->m1@end"]))
        assert ran == [1], "the first block is as in the clean run"
    finally:
        for handle in handles:
            handle.remove()


def test_the_runs_of_a_batch_are_shared_by_its_circuits() -> None:
    model, pairs = model_of("gpt2"), pairs_of("gpt2")
    before = model.cost.forwards
    ready = ablator(model, pairs)
    assert model.cost.forwards - before == 2 * pairs.n
    for seed in range(3):
        ready.logits(some_circuit(ready.graph, 0.5, seed))
    assert model.cost.forwards - before == 5 * pairs.n


@pytest.mark.parametrize("name", ["llama", "olmo2"])
def test_circuits_do_not_leak_into_one_another(name: str) -> None:
    """The buffer of differences is shared: any order of circuits gives each the same."""
    model, pairs = model_of(name), pairs_of(name)
    ready = ablator(model, pairs)
    circuits = [some_circuit(ready.graph, share, seed) for seed, share in enumerate((0.9, 0.05, 0.5, 0.02, 0.97))]
    circuits.append(without_readers(some_circuit(ready.graph, 0.7, 7), layer=0))
    alone = [ablator(model, pairs).logits(circuit) for circuit in circuits]
    for i in (0, 1, 2, 3, 4, 1, 3, 5, 0, 5):
        assert torch.equal(ready.logits(circuits[i]), alone[i]), i
    assert close(alone[5], Plain(model, pairs).circuit(circuits[5]), 2e-5)


def test_a_block_passed_over_between_others_writes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four layers, the second deaf: later readers keep edges from its writers, whose places in the buffer hold the last
    circuit's differences."""
    monkeypatch.setitem(TINY, "llama:deep", TINY["llama"] | {"num_hidden_layers": 4})
    model, pairs = Model(tiny("llama:deep")), pairs_of("llama")
    ready, plain = ablator(model, pairs), Plain(model, pairs)
    deaf = without_readers(some_circuit(ready.graph, 0.7, 0), layer=1)
    for circuit in (some_circuit(ready.graph, 0.9, 1), deaf, some_circuit(ready.graph, 0.3, 2)):
        assert close(ready.logits(circuit), plain.circuit(circuit), 2e-5)


# --- what must not go unseen -----------------------------------------------------------------------------------------


def _fresh(name: str) -> tuple[Model, PairBatch, Ablator]:
    model, pairs = Model(tiny(name)), pairs_of(name)
    return model, pairs, ablator(model, pairs)


def test_an_override_that_does_not_fire_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that its block no longer calls: the norm after attention, the MLP, a projection."""
    for name, path in (("gemma2", "post_attention_layernorm"), ("llama", "mlp"), ("llama", "self_attn.k_proj")):
        model, _, ready = _fresh(name)
        circuit = some_circuit(ready.graph, 0.5, 0)
        ready.logits(circuit)
        parent, _, child = path.rpartition(".")
        holder = model.blocks[1].get_submodule(parent)
        monkeypatch.setitem(holder._modules, child, _Around(holder.get_submodule(child)))
        with pytest.raises(SiteNotReached, match="planned overrides fired in the ablated forward|ran its MLP before"):
            ready.logits(circuit)
        assert not left_behind(model)


class _Around(nn.Module):
    """Computes what a module computes without calling it: `forward` of the class, hooks unseen."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self._inner = (inner,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self._inner[0]).forward(self._inner[0], *args, **kwargs)


def test_a_row_with_the_wrong_modules_does_not_pass_for_a_circuit() -> None:
    """`writes` and `mlp` of a family row decide what is overridden; modules nobody calls are found out."""
    model, pairs, _ = _fresh("llama")
    model.blocks[1].spare = nn.Identity()
    model.blocks[0].spare = nn.Identity()
    model.family = replace(model.family, writes=("self_attn", "spare"))
    with pytest.raises(SiteNotReached, match="without reaching mlp_out.0"):
        ablator(model, pairs)
    model, pairs, _ = _fresh("llama")
    model.family = replace(model.family, mlp_norm="self_attn")
    with pytest.raises(FamilyError, match="self_attn is not an RMS or layer norm of block 0"):
        ablator(model, pairs)


def test_a_failure_inside_leaves_no_hook_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llama", "olmo2", "gemma2"):
        model, _, ready = _fresh(name)

        def broken(*args: Any, **kwargs: Any) -> Any:
            raise KeyboardInterrupt

        for method in ("_attend", "_attended", "_mlp_written"):
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Block, method, broken)
                ready.logits(some_circuit(ready.graph, 0.5, 0))
            assert not left_behind(model)
            assert model.hf.config._attn_implementation != "caseback"


def test_what_cannot_be_ablated_is_refused_in_a_sentence() -> None:
    model, pairs = model_of("llama"), pairs_of("llama")
    ready = ablator(model, pairs)
    with pytest.raises(CircuitError, match="the circuit's graph has spans all, the batch's same, middle, end"):
        ready.logits(Circuit.full(ready.graph.with_spans()))
    ungrouped = graph_of(model, tuple(pairs.clean.spans), grouped=False)
    with pytest.raises(CircuitError, match="score with grouped=True to evaluate"):
        Ablator(model, layers_of(model), ungrouped, pairs)
    with pytest.raises(CircuitError, match="the batch has no span 'x'; it has: same, middle, end"):
        Ablator(model, layers_of(model), graph_of(model, ("x", "end")), pairs)
    with pytest.raises(CircuitError, match=r"token 2 of pair 0 lies in 0 spans; spans must cover every token once"):
        Ablator(model, layers_of(model), graph_of(model, ("same", "end")), pairs)
    with pytest.raises(CircuitError, match="the mean reference needs the pairs to average over"):
        Ablator(model, layers_of(model), ready.graph, pairs, reference="mean")
    with pytest.raises(FamilyError, match="falcon has no circuits: its model file has attention code of its own"):
        graph_of(Model(tiny("falcon")), ("all",))


def test_two_threads_ablate_one_model_without_mixing() -> None:
    model, pairs = model_of("llama"), [pairs_of("llama"), pairs_of("llama", 1)]
    ready = [ablator(model, one) for one in pairs]
    circuits = [some_circuit(ready[0].graph, share, 2) for share in (0.3, 0.8)]
    alone = [one.logits(circuit) for one, circuit in zip(ready, circuits, strict=True)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(6):
            if not torch.equal(ready[i].logits(circuits[i]), alone[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not left_behind(model)
