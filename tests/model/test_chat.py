"""The protocol against a real HTTP server on loopback that answers well, badly, late, endlessly, or not at all."""

from __future__ import annotations

import email.utils
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from caseback.core.errors import EndpointError
from caseback.model import chat
from caseback.model.chat import Endpoint, Local, Message, Scripted, Usage

from .stage import Handler, Stage, good, says

KEY = "sk-very-secret-42"
HELLO = [Message("system", "be brief"), Message("user", "well?")]


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.stop()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr(chat.time, "sleep", slept.append)
    return slept


def test_an_endpoint_is_asked_and_answers(stage: Stage) -> None:
    endpoint = stage.endpoint(says(good("fine", usage={"prompt_tokens": 7, "completion_tokens": 1})))
    reply = endpoint.ask(HELLO, max_tokens=11, temperature=0.5, seed=3)
    assert reply.text == "fine"
    assert reply.usage == Usage(prompt_tokens=7, completion_tokens=1)
    assert not reply.truncated
    path, headers, body = stage.seen[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "well?"}],
        "max_tokens": 11,
        "temperature": 0.5,
        "seed": 3,
        "stream": False,
    }


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/api/v4", "/api/v4/chat/completions"),
        ("/x/chat/completions", "/x/chat/completions"),
    ],
)
def test_the_address_may_be_short_or_whole(base: str, path: str) -> None:
    assert Endpoint(base_url="http://host:1" + base, model="m").url == "http://host:1" + path


@pytest.mark.parametrize(
    "base",
    [
        "host:80",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://u:p@host",
        "http://host/v1?key=1",
        "http://a b",
        "http://hé",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_at_once(base: str) -> None:
    with pytest.raises(EndpointError):
        Endpoint(base_url=base, model="m")


def test_the_key_comes_from_the_environment_and_is_kept_nowhere(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = stage.endpoint(
        says(good()),
        says({"error": f"bad request with {KEY}\x1b[31m"}, 400),
        says({"error": KEY}, 401),
        api_key_env="CASEBACK_TEST_KEY",
    )
    monkeypatch.delenv("CASEBACK_TEST_KEY", raising=False)
    with pytest.raises(EndpointError, match="CASEBACK_TEST_KEY .*not set"):
        endpoint.ask(HELLO, max_tokens=1)
    monkeypatch.setenv("CASEBACK_TEST_KEY", KEY)
    endpoint.ask(HELLO, max_tokens=1)
    assert stage.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    with pytest.raises(EndpointError, match=r"400.*\[key\]") as echoed:
        endpoint.ask(HELLO, max_tokens=1)
    with pytest.raises(EndpointError, match="refused the key in CASEBACK_TEST_KEY") as refused:
        endpoint.ask(HELLO, max_tokens=1)
    for text in (repr(endpoint), endpoint.name, str(echoed.value), str(refused.value)):
        assert KEY not in text
        assert "\x1b" not in text
    monkeypatch.setenv("CASEBACK_TEST_KEY", "two\nlines")
    with pytest.raises(EndpointError, match="characters that no HTTP header"):
        endpoint.ask(HELLO, max_tokens=1)


def test_without_a_key_a_401_says_what_to_do(stage: Stage) -> None:
    with pytest.raises(EndpointError, match="without a key .*api_key_env"):
        stage.endpoint(says({}, 401)).ask(HELLO, max_tokens=1)


def test_a_busy_server_is_asked_again_after_the_pause_it_wants(stage: Stage, naps: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    endpoint = stage.endpoint(
        says({}, 429, Retry_After="7"), says({}, 429, Retry_After=date), says({}, 503), says(good()), retries=3
    )
    assert endpoint.ask(HELLO, max_tokens=1).text == "fine"
    assert naps[0] == 7
    assert 25 < naps[1] <= 31
    assert naps[2] == 4
    assert len(stage.seen) == 4


@pytest.mark.parametrize("senseless", ["soon", "nan", "-3"])
def test_a_senseless_pause_does_not_hang(stage: Stage, naps: list[float], senseless: str) -> None:
    stage.endpoint(says({}, 429, Retry_After=senseless), says(good()), retries=1).ask(HELLO, max_tokens=1)
    assert 0 <= naps[0] <= 1


@pytest.mark.parametrize("long", ["86400", "inf", "1e400"])
def test_a_pause_too_long_is_reported_instead_of_waited_for(stage: Stage, naps: list[float], long: str) -> None:
    with pytest.raises(EndpointError, match="asks for a pause"):
        stage.endpoint(says({}, 429, Retry_After=long), retries=5).ask(HELLO, max_tokens=1)
    assert not naps
    assert len(stage.seen) == 1


def test_retries_are_bounded(stage: Stage, naps: list[float]) -> None:
    with pytest.raises(EndpointError, match="status 500 .the server failed.: .*boom"):
        stage.endpoint(says({"error": "boom"}, 500), retries=2).ask(HELLO, max_tokens=1)
    assert len(stage.seen) == 3
    assert naps == [1, 2]


def test_a_wrong_request_is_not_repeated(stage: Stage, naps: list[float]) -> None:
    with pytest.raises(EndpointError, match="404 .no such address or model.: model m is unknown"):
        stage.endpoint(says(b"model m\nis unknown", 404), retries=5).ask(HELLO, max_tokens=1)
    assert len(stage.seen) == 1
    assert not naps


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EndpointError, match="cannot reach .*is the server running"):
        Endpoint(base_url=f"http://127.0.0.1:{port}", model="m").ask(HELLO, max_tokens=1)


def test_a_server_that_says_nothing_times_out(stage: Stage) -> None:
    done = threading.Event()
    try:
        with pytest.raises(EndpointError, match="did not answer within 0.2 s"):
            stage.endpoint(lambda handler: done.wait(10) and None, timeout=0.2).ask(HELLO, max_tokens=1)
    finally:
        done.set()


def test_a_server_that_drips_times_out_too(stage: Stage) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    before = time.monotonic()
    with pytest.raises(EndpointError, match="did not answer within"):
        stage.endpoint(drip, timeout=0.3).ask(HELLO, max_tokens=1)
    assert time.monotonic() - before < 3


def test_an_endless_answer_is_not_read(stage: Stage) -> None:
    def flood(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            pass

    with pytest.raises(EndpointError, match="more than 4 MiB"):
        stage.endpoint(flood).ask(HELLO, max_tokens=1)


def test_a_broken_connection_is_one_sentence(stage: Stage) -> None:
    def half(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')

    with pytest.raises(EndpointError, match="broke off"):
        stage.endpoint(half).ask(HELLO, max_tokens=1)
    with pytest.raises(EndpointError, match="did not speak HTTP"):
        stage.endpoint(lambda handler: handler.wfile.write(b"no protocol at all\r\n\r\n") and None).ask(
            HELLO, max_tokens=1
        )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(stage: Stage, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEBACK_TEST_KEY", KEY)
    other = Stage()
    try:
        other.endpoint(says(good("from elsewhere")))
        endpoint = stage.endpoint(
            says({}, status, Location=other.url + "/v1/chat/completions"), api_key_env="CASEBACK_TEST_KEY"
        )
        with pytest.raises(EndpointError, match="redirects to .*no redirect is followed"):
            endpoint.ask(HELLO, max_tokens=1)
        assert not other.seen
    finally:
        other.stop()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"<html>\x1b[2Jhello</html>", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "without choices"),
        ("text", "without choices"),
        (7, "without choices"),
        ({}, "without choices"),
        ({"choices": []}, "without choices"),
        ({"choices": {}}, "without choices"),
        ({"choices": [None]}, "without choices"),
        ({"choices": [{}]}, "empty message"),
        ({"choices": [{"message": []}]}, "empty message"),
        (good(None), "empty message"),
        (good(" \n"), "empty message"),
        (good(["x"]), "content of type list"),
        (good(3), "content of type int"),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}, "cut off at max_tokens"),
    ],
)
def test_malformed_answers_are_one_sentence(stage: Stage, answer: Any, sentence: str) -> None:
    with pytest.raises(EndpointError, match=sentence) as error:
        stage.endpoint(says(answer)).ask(HELLO, max_tokens=1)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "usage", [None, [], {"prompt_tokens": "many"}, {"prompt_tokens": -1, "completion_tokens": True}]
)
def test_a_usage_that_makes_no_sense_is_unknown(stage: Stage, usage: Any) -> None:
    assert stage.endpoint(says(good(usage=usage))).ask(HELLO, max_tokens=1).usage == Usage()


def test_a_cut_answer_says_so(stage: Stage) -> None:
    cut = good("half an ans")
    cut["choices"][0]["finish_reason"] = "length"
    assert stage.endpoint(says(cut)).ask(HELLO, max_tokens=1).truncated


def test_bounds_of_an_endpoint_are_checked() -> None:
    with pytest.raises(EndpointError, match="timeout > 0"):
        Endpoint(base_url="http://h", model="m", timeout=0.0)


def test_a_script_answers_in_order_and_ends() -> None:
    script = Scripted(["one", " "])
    assert script.ask(HELLO, max_tokens=1).text == "one"
    assert script.asked == [tuple(HELLO)]
    with pytest.raises(EndpointError, match="empty"):
        script.ask(HELLO, max_tokens=1)
    with pytest.raises(EndpointError, match="2 answers"):
        script.ask(HELLO, max_tokens=1)


# --- a local model ---------------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def small() -> Any:
    from caseback.model.model import Model
    from caseback.zoo.handmade import word_tokenizer
    from caseback.zoo.tiny import tiny

    hf = tiny("llama")
    words = ["[pad]", "system", "user", "be", "brief", "well?", *(f"w{i}" for i in range(hf.config.vocab_size - 6))]
    tokenizer = word_tokenizer(words)
    tokenizer.chat_template = TEMPLATE
    return Model(hf, tokenizer)


def test_a_local_model_answers_through_its_chat_template(small: Any) -> None:
    reply = Local(small).ask(HELLO, max_tokens=4)
    assert reply.usage == Usage(prompt_tokens=5, completion_tokens=4)
    assert reply.truncated
    assert len(reply.text.split()) == 4
    assert reply == Local(small).ask(HELLO, max_tokens=4)
    assert Local(small).name.endswith("(local)")


def test_a_seed_fixes_what_is_sampled_and_nothing_else(small: Any) -> None:
    import torch

    before = torch.random.get_rng_state()
    said = [Local(small).ask(HELLO, max_tokens=8, temperature=2.0, seed=seed).text for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_local_model_that_cannot_answer_says_why(small: Any) -> None:
    from caseback.model.model import Model

    room = small.hf.config.max_position_embeddings
    with pytest.raises(EndpointError, match=f"exceed the {room} positions"):
        Local(small).ask(HELLO, max_tokens=room)
    with pytest.raises(EndpointError, match="no chat template"):
        Local(Model(small.hf, None)).ask(HELLO, max_tokens=4)


@pytest.mark.default_model
def test_the_default_model_answers(default_model: Any) -> None:
    reply = Local(default_model).ask([Message("user", "What is the capital of France? One word.")], max_tokens=12)
    assert "Paris" in reply.text
