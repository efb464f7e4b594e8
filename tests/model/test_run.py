"""Runs: every site of every kind of family can be read and edited, positions are cut right, and nothing happens silently."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from caseback.core.errors import CasebackError, FamilyError, SiteError, SiteNotReached
from caseback.model import run as run_module
from caseback.model.edits import Add, Call, Edit, Patch, Scale, Set
from caseback.model.hooks import Hooks, refuse_compiled
from caseback.model.model import Model
from caseback.model.run import RowEdit, Start
from caseback.zoo.tiny import tiny

from .small import FAMILIES, batch_of, left_behind, model_of


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    for name in FAMILIES:
        model = model_of(name)
        assert not left_behind(model.hf), name
        assert model.hf.config._attn_implementation != "caseback"


@pytest.fixture
def llama() -> Model:
    return model_of("llama")


def close(found: Tensor, expected: Tensor, *, tolerance: float = 1e-5) -> bool:
    """Equal up to a share of the largest value."""
    assert found.shape == expected.shape
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6))


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_is_read_in_its_shape_and_reading_changes_nothing(name: str) -> None:
    model, batch = model_of(name), batch_of(model_of(name))
    sites = model.sites()
    assert {"resid_pre.0", "resid_post.1", "mlp_in.0", "resid_final", "final_norm_out"} <= {str(site) for site in sites}
    run = model.run(batch, read=sites)
    assert close(run.logits, model.logits(batch))
    rows, width = batch.ids.shape
    for site in sites:
        value = run[site]
        assert value.shape[0] == rows
        if site.name == "pattern":
            assert value.shape == (rows, model.n_heads, width, width)
            assert bool((value.triu(1) == 0).all())
        elif site.kind.heads:
            n = model.n_heads if site.kind.heads == "query" else model.n_kv_heads
            assert value.shape[:3] == (rows, width, n), str(site)
        else:
            assert value.shape[:2] == (rows, width)
            assert site.name == "mlp_hidden" or value.shape[2] == model.d_model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_read_equals_what_the_model_itself_returns(name: str) -> None:
    model = Model(tiny(name))  # of its own: transformers leaves hooks behind when it is asked for hidden states
    batch = batch_of(model)
    run = model.run(batch, read=["resid_pre.*", "resid_final", "resid_post.1"], logits="all")
    with torch.no_grad():
        own = model.hf(**model.arguments(batch), output_hidden_states=True, use_cache=False)
    real = batch.mask
    assert close(run["resid_pre.0"][real], own.hidden_states[0][real])
    assert close(run["resid_pre.1"][real], own.hidden_states[1][real])
    assert torch.equal(run["resid_final"], run["resid_post.1"])
    assert close(run.logits[real], own.logits[real])


def test_only_the_logits_asked_for_are_given(llama: Model) -> None:
    batch = batch_of(llama)
    every = llama.run(batch, logits="all").logits
    assert close(llama.run(batch).logits, every[torch.arange(batch.n), batch.last])
    assert llama.run(batch, logits=None).logits is None


def test_a_value_kept_is_not_changed_by_the_model_going_on() -> None:
    """Falcon adds in place."""
    model = model_of("falcon")
    batch = batch_of(model)
    run = model.run(batch, read=["resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.1"])
    assert close(run["resid_pre.1"] + run["attn_out.1"] + run["mlp_out.1"], run["resid_post.1"])


def test_what_was_not_read_is_named_with_what_was(llama: Model) -> None:
    run = llama.run(batch_of(llama), read=["z.0", "q.1"])
    with pytest.raises(SiteError, match="this run did not read 'z.1'; it read: z.0, q.1"):
        run["z.1"]
    with pytest.raises(SiteError, match="it read: nothing"):
        llama.run(batch_of(llama)).patch("z.1")


def test_a_family_without_a_site_says_why() -> None:
    falcon, hybrid, neox = model_of("falcon"), model_of("qwen3_5_text"), model_of("gpt_neox")
    with pytest.raises(
        FamilyError, match="falcon has no sites q, k, v, pattern: its model file has attention code of its own"
    ):
        falcon.run(batch_of(falcon), read=["pattern.0"])
    with pytest.raises(SiteError, match="site 'q.0': this model has q at layers 1"):
        hybrid.run(batch_of(hybrid), read=["q.0"])
    with pytest.raises(SiteError, match="this model has no site 'resid_mid'"):
        neox.run(batch_of(neox), read=["resid_mid.0"])


# --- positions and heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_positions_and_heads_are_cut_where_they_lie(name: str, side: str) -> None:
    model = model_of(name)
    batch = batch_of(model, side=side)
    first = batch.mask.long().argmax(dim=1)
    places = {
        "end": batch.last,
        "-1": batch.last,
        "-2": batch.last - 1,
        "0": first,
        "4": first + 4,
        "first[0]": first,
        "middle[1]": first + 2,
        "middle[-2]": first + 1,
        "rest[-1]": batch.last,
        "rest[0]": first + 3,
    }
    whole = {"resid_post.1": None, "z.0": 3, "k.1": 1, "pattern.0": 2, "mlp_out.0": None}
    wanted = [f"{site}{head}@{place}" for site, h in whole.items() for place in places for head in _heads(h)]
    spans = [f"{site}{head}@{span}" for site, h in whole.items() for span in ("first", "middle") for head in _heads(h)]
    run = model.run(batch, read=[*whole, *wanted, *spans])
    rows = torch.arange(batch.n)
    for site, h in whole.items():
        for head in _heads(h):
            value = run[site]
            by_place = value.movedim(2, 1) if site == "pattern.0" else value  # [row, place, ...]
            by_place = by_place[:, :, h] if head else by_place
            for place, where in places.items():
                assert torch.equal(run[f"{site}{head}@{place}"], by_place[rows, where]), (site, head, place)
            middle = torch.stack([by_place[rows, first + 1], by_place[rows, first + 2]], dim=1)
            assert torch.equal(_tokens_first(run, f"{site}{head}@middle"), middle)
            assert torch.equal(_tokens_first(run, f"{site}{head}@first"), by_place[rows, first][:, None])


def _heads(head: int | None) -> list[str]:
    return [""] if head is None else ["", f".{head}"]


def _tokens_first(run: run_module.Run, site: str) -> Tensor:
    """[row, token, ...]: a pattern's queries of a span come on its query axis."""
    value = run[site]
    return value.movedim(2, 1) if site.startswith("pattern.0@") else value


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        ("z.0@6", "position 6 lies outside a prompt of 6 tokens"),
        ("z.0@-7", "position -7 lies outside a prompt of 6 tokens"),
        ("z.0@IO", "the batch has no span 'IO'; it has: first, middle, rest (or use a token index, or 'end')"),
        ("z.0@rest", "span 'rest' has 3 to 5 tokens in this batch; ask for one of them, as in 'rest[-1]'"),
        ("z.0@rest[3]", "span 'rest' has only 3 tokens in row 1"),
        ("z.0@middle[-3]", "span 'middle' has only 2 tokens in row 0"),
    ],
)
def test_a_position_that_does_not_exist_is_refused(llama: Model, site: str, sentence: str) -> None:
    with pytest.raises(SiteError) as error:
        llama.run(batch_of(llama), read=[site])
    assert sentence in str(error.value)
    with pytest.raises(SiteError):
        llama.run(batch_of(llama), edit=[Scale(site, 0.0)])


def test_an_edit_touches_its_head_and_position_alone(llama: Model) -> None:
    batch = batch_of(llama)
    plain = llama.run(batch, read=["z.0", "pattern.0", "k.0"])
    rows = torch.arange(batch.n)
    cases: list[tuple[str, str, Tensor]] = []
    for site in ("z.0", "pattern.0", "k.0"):
        by_head = plain[site].clone()
        (by_head[:, 1] if site == "pattern.0" else by_head[:, :, 1]).mul_(3)
        cases.append((site, f"{site}.1", by_head))
        at_end = plain[site].clone()
        if site == "pattern.0":
            at_end[rows, :, batch.last] *= 3
        else:
            at_end[rows, batch.last] *= 3
        cases.append((site, f"{site}@end", at_end))
        both = plain[site].clone()
        for row in range(batch.n):
            place = slice(1, 3)
            (both[row, 1, place] if site == "pattern.0" else both[row, place, 1]).mul_(3)
        cases.append((site, f"{site}.1@middle", both))
    for whole, part, expected in cases:
        found = llama.run(batch, read=[whole], edit=[Scale(part, 3.0)])
        assert close(found[whole], expected, tolerance=1e-6), part
    thrice = llama.run(batch, read=["pattern.0"], edit=[Scale("pattern.0@middle", 3.0)])["pattern.0"]
    assert torch.equal(thrice[:, :, 1:3], plain["pattern.0"][:, :, 1:3] * 3)
    assert torch.equal(thrice[:, :, 3:], plain["pattern.0"][:, :, 3:])


# --- editing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_can_be_edited_and_the_edit_is_what_is_read(name: str) -> None:
    """The same value put back changes nothing (two ways); turned around it changes the logits, and is what a read sees."""
    model, batch = model_of(name), batch_of(model_of(name))
    plain = model.run(batch, read=model.sites())
    for site in model.sites():
        for same in (Scale(site, 1.0), Patch(site, plain[site])):
            assert close(model.run(batch, edit=[same]).logits, plain.logits), str(site)
        turned = model.run(batch, read=[site], edit=[Call(site, lambda value: value.flip(-1))])
        assert close(turned[site], plain[site].flip(-1)), str(site)
        assert not close(turned.logits, plain.logits, tolerance=1e-3), str(site)


FOLLOWS = [
    (("resid_pre.1",), "resid_post.1"),
    (("resid_post.0",), "resid_pre.1"),
    (("resid_mid.0",), "resid_post.0"),
    (("attn_in.1",), "q.1"),
    (("attn_in.1",), "v.1"),
    (("q.1", "k.1", "v.1"), "z.1"),
    (("pattern.1", "v.1"), "z.1"),
    (("z.1",), "attn_out.1"),
    (("attn_in.0",), "attn_out.0"),
    (("mlp_in.1",), "mlp_out.1"),
    (("mlp_hidden.1",), "mlp_out.1"),
    (("resid_pre.0", "attn_out.*", "mlp_out.*"), "resid_final"),
    (("resid_final",), "final_norm_out"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_put_in_reaches_what_comes_after(name: str) -> None:
    """Patched from another run, a place makes what is computed from it alone that run's too."""
    model, batch = model_of(name), batch_of(model_of(name))
    other_batch = replace(batch_of(model, seed=1), mask=batch.mask)
    other, plain = (model.run(b, read=model.sites()) for b in (other_batch, batch))
    tried = 0
    for sources, target in FOLLOWS:
        try:
            sites = [site for source in sources for site in model.sites(source)]
            model.sites(target)
        except CasebackError:
            continue  # this family has no such site
        if target == "z.1" and not model.family.plain_heads:
            continue
        if target == "attn_out.0" and model.site_layers["z"] != (0, 1):
            continue
        run = model.run(batch, read=[target], edit=[other.patch(site) for site in sites])
        assert close(run[target], other[target], tolerance=2e-5), (sources, target)
        assert not close(plain[target], other[target], tolerance=1e-2)
        tried += 1
    assert tried >= 6
    assert close(model.run(batch, edit=[other.patch("final_norm_out")]).logits, other.logits)


def test_edits_at_one_site_are_made_in_the_order_given(llama: Model) -> None:
    batch = batch_of(llama)
    plain = llama.run(batch, read=["z.1"])["z.1"]
    one: list[Edit] = [Scale("z.1", 2.0), Add("z.1", 1.0)]
    assert torch.equal(llama.run(batch, read=["z.1"], edit=one)["z.1"], plain * 2 + 1)
    assert torch.equal(llama.run(batch, read=["z.1"], edit=one[::-1])["z.1"], (plain + 1) * 2)
    mixed = [Scale("z.1", 2.0), Set("z.1.0", 5.0), Scale("z.1.0@end", 3.0)]
    found = llama.run(batch, read=["z.1.0", "z.1.0@end", "z.1.3@end"], edit=mixed)
    assert bool((found["z.1.0@end"] == 15).all())
    assert bool((found["z.1.0"] == 5).sum() == found["z.1.0"].numel() - batch.n * llama.d_head)
    assert torch.equal(found["z.1.3@end"], plain[torch.arange(batch.n), batch.last, 3] * 2)


def test_an_edit_with_a_pattern_is_made_at_every_place_it_selects(llama: Model) -> None:
    batch = batch_of(llama)
    found = llama.run(batch, read=["z.*"], edit=[Scale("z.*.1", 0.0)])
    for layer in (0, 1):
        assert not found[f"z.{layer}"][:, :, 1].any()
        assert bool(found[f"z.{layer}"][:, :, 2].any())


def test_an_edit_of_some_rows_leaves_the_others(llama: Model) -> None:
    batch = batch_of(llama)
    edited = llama.run(batch, edit=[RowEdit(Scale("mlp_out.0@-2", 0.0), slice(1, 2))]).logits
    every = llama.run(batch, edit=[Scale("mlp_out.0@-2", 0.0)]).logits
    plain = llama.logits(batch)
    assert close(edited[1], every[1]) and not close(edited[1], plain[1], tolerance=1e-3)
    assert close(edited[[0, 2]], plain[[0, 2]])


def test_what_an_edit_finds_wrong_ends_the_run_and_leaves_nothing_behind(llama: Model) -> None:
    batch, before = batch_of(llama), llama.logits(batch_of(llama))
    other = llama.run(batch_of(llama, lengths=(8, 8)), read=["z.0"])
    with pytest.raises(
        SiteError, match=r"a patch at 'z.0' has shape \(2, 8, 4, 16\) where the site has \(3, 8, 4, 16\)"
    ):
        llama.run(batch, edit=[other.patch("z.0")])

    def broken(value: Tensor) -> Tensor:
        raise KeyboardInterrupt

    for site in ("resid_pre.0", "q.1", "pattern.0", "z.1", "resid_mid.0", "final_norm_out"):
        with pytest.raises(KeyboardInterrupt):
            llama.run(batch, read=["pattern.*", "resid_post.*"], edit=[Call(site, broken)], start=None)
        assert not left_behind(llama.hf)
        assert llama.hf.config._attn_implementation == "sdpa"
    with pytest.raises(KeyboardInterrupt):
        start = Start(1, llama.run(batch, read=["resid_pre.1"])["resid_pre.1"])
        llama.run(batch, edit=[Call("z.1", broken)], start=start)
    assert not left_behind(llama.hf)
    assert torch.equal(llama.logits(batch), before)


# --- nothing silent --------------------------------------------------------------------------------------------------


def test_a_read_or_edit_that_did_not_happen_raises(llama: Model) -> None:
    batch = batch_of(llama)
    with pytest.raises(SiteNotReached, match="without reaching z.1; the run stopped before block 1; reached: z.0"):
        llama.run(batch, read=["z.*"], stop=1)
    with pytest.raises(SiteNotReached, match="without reaching mlp_out.1; the run stopped before block 1"):
        llama.run(batch, edit=[Scale("mlp_out.1", 0.0)], stop=1)
    start = Start(1, llama.run(batch, read=["resid_pre.1"], stop=1)["resid_pre.1"])
    with pytest.raises(
        SiteNotReached, match="without reaching resid_post.0; the run started at block 1; reached: nothing"
    ):
        llama.run(batch, read=["resid_post.0"], start=start)
    with pytest.raises(SiteNotReached, match="without reaching q.0"):
        llama.run(batch, read=["q.0", "q.1"], start=start)


def test_a_row_that_names_a_module_nobody_calls_is_caught() -> None:
    hf = tiny("llama")
    model = Model(hf)
    hf.model.layers[0].unused = torch.nn.Identity()
    model.family = replace(model.family, down_proj="unused")
    model.__dict__.pop("site_layers", None)
    with pytest.raises(SiteNotReached, match="without reaching mlp_hidden.0"):
        model.run(batch_of(model), read=["mlp_hidden.0"])


def test_an_unembedding_that_is_not_called_is_caught_as_the_logits_would_be_of_another_token() -> None:
    hf = tiny("llama")
    model = Model(hf)
    hf.unused = torch.nn.Identity()
    model.family = replace(model.family, unembed="unused")
    with pytest.raises(SiteNotReached, match="unembedding"):
        model.logits(batch_of(model))


def test_an_edit_that_fires_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = tiny("llama")
    model = Model(hf)
    mlp = hf.model.layers[0].mlp
    own = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: own(x) + mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * 0))
    with pytest.raises(SiteNotReached, match="the edits at mlp_hidden.0 fired 2 times where 1 were planned"):
        model.run(batch_of(model), edit=[Scale("mlp_hidden.0", 1.0)])


def test_a_compiled_model_is_refused() -> None:
    hf = tiny("llama")
    sentence = "this model was compiled with torch.compile, and hooks added afterwards never fire"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own
        compiled = torch.compile(hf)
    with pytest.raises(FamilyError, match=sentence):
        refuse_compiled(compiled)
    model = Model(hf)
    hf.model.layers[1].compile()
    with pytest.raises(FamilyError, match=sentence):
        model.logits(batch_of(model))
    with pytest.raises(FamilyError, match=sentence):
        Model(hf)


def test_a_second_stand_in_for_a_module_is_refused(llama: Model) -> None:
    block = llama.blocks[0]
    with Hooks() as hooks:
        hooks.instead_of(block, lambda *args, **kwargs: args[0])
        with Hooks() as more, pytest.raises(FamilyError, match="LlamaDecoderLayer already has a replaced forward"):
            more.instead_of(block, lambda *args, **kwargs: args[0])
        assert "forward" in vars(block)
    assert "forward" not in vars(block)


def test_the_implementation_of_attention_is_switched_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny("llama"))
    switched: list[str] = []
    own = model.hf.set_attn_implementation
    monkeypatch.setattr(model.hf, "set_attn_implementation", lambda name: (switched.append(name), own(name))[1])
    model.run(batch_of(model), read=["resid_pre.*", "z.*", "mlp_hidden.*", "attn_out.1"])
    assert switched == []
    model.run(batch_of(model), read=["pattern.1"])
    assert switched == ["caseback", "sdpa"]


# --- a part of the model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_stopping_early_and_starting_late_give_what_the_whole_run_gives(name: str) -> None:
    model, batch = model_of(name), batch_of(model_of(name))
    whole = model.run(batch, read=["resid_pre.*", "resid_post.*", "mlp_out.*", "resid_final"])
    early = model.run(batch, read=["resid_pre.*", "mlp_out.0"], stop=1)
    assert early.logits is None
    assert torch.equal(early["resid_pre.1"], whole["resid_pre.1"])
    assert torch.equal(early["mlp_out.0"], whole["mlp_out.0"])
    assert torch.equal(model.run(batch, read=["resid_final"], stop=2)["resid_final"], whole["resid_final"])
    late = model.run(batch, read=["resid_post.1", "mlp_out.1"], start=Start(1, whole["resid_pre.1"]))
    assert torch.equal(late["resid_post.1"], whole["resid_post.1"])
    assert torch.equal(late["mlp_out.1"], whole["mlp_out.1"])
    assert torch.equal(late.logits, whole.logits)
    assert torch.equal(model.run(batch, start=Start(0, whole["resid_pre.0"])).logits, whole.logits)
    between = model.run(batch, read=["resid_post.0"], start=Start(0, whole["resid_pre.0"]), stop=1)
    assert torch.equal(between["resid_post.0"], whole["resid_post.0"])


def test_a_late_start_takes_the_stream_it_is_given(llama: Model) -> None:
    batch = batch_of(llama)
    other = llama.run(batch_of(llama, seed=1), read=["resid_pre.1"])
    found = llama.run(batch, start=Start(1, other["resid_pre.1"])).logits
    assert close(found, llama.run(batch, edit=[other.patch("resid_pre.1")]).logits)


def test_a_block_that_does_not_exist_and_a_stream_that_does_not_fit_are_refused(llama: Model) -> None:
    batch = batch_of(llama)
    stream = llama.run(batch, read=["resid_pre.1"])["resid_pre.1"]
    with pytest.raises(SiteError, match="cannot start at block 2: the model has blocks 0 to 1"):
        llama.run(batch, start=Start(2, stream))
    for stop in (-1, 3):
        with pytest.raises(SiteError, match=f"cannot stop before block {stop}: the model has blocks 0 to 1"):
            llama.run(batch, read=["resid_pre.0"], stop=stop)
    with pytest.raises(SiteError, match=r"of shape \(1, 8, 48\) where the batch needs \(3, 8, 48\)"):
        llama.run(batch, start=Start(1, stream[:1]))
    assert not left_behind(llama.hf)


def test_cost_counts_sequences() -> None:
    model = model_of("gpt2")
    with run_module.counting(model) as spent:
        model.logits(batch_of(model))
        model.run(batch_of(model), read=["resid_pre.1"], stop=1)
        model.grad(batch_of(model), lambda logits: logits[:, 0], at=["z.0"])
    assert (spent.forwards, spent.backwards) == (9, 3)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_two_threads_do_not_mix_their_runs() -> None:
    """On one model and on two: each thread gets what it gets alone."""
    models = [model_of("llama"), model_of("llama"), model_of("gemma2")]
    batches = [batch_of(model, seed=seed) for seed, model in enumerate(models)]
    sites = ["q.*", "pattern.*", "z.*", "resid_post.*"]
    edits = [Scale("pattern.0.1", 0.3), Scale("mlp_out.1", 0.0), Scale("k.1", 0.5)]
    alone = [m.run(b, read=sites, edit=[e]) for m, b, e in zip(models, batches, edits, strict=True)]
    starts = [m.run(b, read=["resid_pre.1"]) for m, b in zip(models, batches, strict=True)]
    wrong: list[str] = []
    barrier = threading.Barrier(len(models))

    def work(i: int) -> None:
        barrier.wait()
        for _ in range(8):
            found = models[i].run(batches[i], read=sites, edit=[edits[i]])
            plain = models[i].logits(batches[i])
            late = models[i].run(batches[i], start=Start(1, starts[i]["resid_pre.1"])).logits
            if not torch.equal(found.logits, alone[i].logits) or not torch.equal(late, plain):
                wrong.append(f"logits of thread {i}")
            wrong.extend(
                f"{site} of thread {i}" for site in found.values if not torch.equal(found[site], alone[i][site])
            )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
