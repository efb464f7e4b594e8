"""One protocol for "something that answers": a script, an OpenAI-compatible endpoint, a local model.

Whoever needs a language model's opinion (a proposed schema, a judged feature) takes a `Chat` and calls `ask`; what
stands behind it is the caller's choice, and a test puts a script there. An endpoint is a stranger: its address may be
wrong, its answer late, endless, malformed or hostile. So the body read is bounded in bytes and in time, no redirect
is followed (the key would travel with it), every failure is one `EndpointError`, and nothing the server says enters a
message before control characters and the key are taken out of it.

The key comes from an environment variable named by the caller, is read when a question is asked, and is never kept,
logged or recorded.

HTTP is done by the standard library: httpx comes with some versions of huggingface_hub and not with others, and one
POST is no reason for a dependency. Invariant: `ask` returns a `Reply` with a text that is not empty, or raises.
"""

from __future__ import annotations

import email.message
import email.utils
import http.client
import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, final, runtime_checkable

from caseback.core.errors import EndpointError

if TYPE_CHECKING:
    from caseback.model.model import Model

__all__ = ["Chat", "EmptyAnswer", "Endpoint", "Local", "Message", "Reply", "Scripted", "Usage"]

BODY_LIMIT = 4 * 2**20
"""Largest answer read from an endpoint, in bytes."""

LONGEST_WAIT = 60.0
"""Longest pause between two tries that a server may ask for, in seconds; a longer one is reported, not waited for."""

RETRIED = frozenset({429, 500, 502, 503, 504, 529})


class EmptyAnswer(EndpointError):
    """An answerer that works and had nothing to say: asking again, or otherwise, may help."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens read and written; None where the answerer did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back: the text (never empty), what it cost, and whether it was cut off at `max_tokens`."""

    text: str
    usage: Usage = Usage()
    truncated: bool = False


@runtime_checkable
class Chat(Protocol):
    """Something that answers."""

    @property
    def name(self) -> str:
        """What is recorded as the answerer: never a key."""
        ...

    def ask(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> Reply:
        """Answer; `temperature` 0 is the most likely answer, `seed` fixes the others as far as the answerer can."""
        ...


@final
@dataclass
class Scripted:
    """Answers read from a list, in order; `asked` keeps the conversations it was shown.

    >>> Scripted(["yes"]).ask([Message("user", "well?")], max_tokens=9).text
    'yes'
    """

    answers: Sequence[str]
    name: str = "script"
    asked: list[tuple[Message, ...]] = field(default_factory=list)

    def ask(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> Reply:
        if len(self.asked) >= len(self.answers):
            raise EndpointError(f"the script has {len(self.answers)} answers and was asked once more; add an answer")
        text = self.answers[len(self.asked)]
        self.asked.append(tuple(messages))
        if not text.strip():
            raise EmptyAnswer("the script's answer is empty")
        return Reply(text=text)


class _Response(NamedTuple):
    status: int
    headers: email.message.Message
    body: bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leave a redirect as the error response it is: following it would carry the prompt and the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


@final
@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Any server of the OpenAI-compatible `POST …/chat/completions`."""

    base_url: str
    """`http(s)://host[:port]`, with or without a path such as `/v1`; what is missing of `/v1/chat/completions` is added."""
    model: str
    """The model's name at that endpoint."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends no key."""
    timeout: float = 120.0
    """Seconds for one try, its body included."""
    retries: int = 3
    """Further tries after a 429 or a 5xx."""

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.base_url)
            _ = parts.port  # a port that is no number raises here
        except ValueError as error:
            raise EndpointError(f"the endpoint address {self.base_url!r} cannot be read: {error}") from None
        written = self.base_url.isascii() and self.base_url.isprintable() and " " not in self.base_url
        if parts.scheme not in ("http", "https") or not parts.hostname or not written:
            raise EndpointError(f"the endpoint address {self.base_url!r} is not of the form http(s)://host[:port][/v1]")
        if parts.username or parts.password:
            raise EndpointError(
                "the endpoint address holds a user name or password, which would be recorded; "
                "put the key into an environment variable and name that with api_key_env"
            )
        if parts.query or parts.fragment:
            raise EndpointError(
                f"the endpoint address {self.base_url!r} has a query or fragment; give the part before it"
            )
        if not (self.timeout > 0 and self.retries >= 0):
            raise EndpointError(
                f"an endpoint needs timeout > 0 and retries >= 0, not {self.timeout} and {self.retries}"
            )

    @property
    def name(self) -> str:
        return f"{self.model} at {self.base_url}"

    @property
    def url(self) -> str:
        """The address that is posted to."""
        base = self.base_url.rstrip("/")
        if base.endswith("/chat/completions"):
            return base
        return base + ("/chat/completions" if urllib.parse.urlsplit(base).path else "/v1/chat/completions")

    def ask(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": False,
        }
        if seed is not None:
            body["seed"] = seed
        key = self._key()
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "caseback",
        }
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode()
        for left in range(self.retries, -1, -1):
            response = self._post(data, headers)
            if response.status == 200:
                return _reply(self.url, response.body)
            failure = self._failure(response, key)
            if response.status not in RETRIED or not left:
                raise failure
            wait = _retry_after(response.headers.get("Retry-After"), default=2.0 ** (self.retries - left))
            if wait > LONGEST_WAIT:
                raise EndpointError(
                    f"{failure}; it asks for a pause of {wait:.0f} s, and at most {LONGEST_WAIT:.0f} s are waited: "
                    "come back later"
                )
            time.sleep(wait)
        raise AssertionError("unreachable: the last try raises or returns")

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise EndpointError(
                f"the environment variable {self.api_key_env} that should hold the endpoint's key is not set or empty"
            )
        if not (key.isascii() and key.isprintable()):
            raise EndpointError(
                f"the environment variable {self.api_key_env} holds characters that no HTTP header can carry"
            )
        return key

    def _post(self, data: bytes, headers: Mapping[str, str]) -> _Response:
        """One try, with at most BODY_LIMIT bytes of body, in at most `timeout` seconds."""
        deadline = time.monotonic() + self.timeout
        late = EndpointError(
            f"{self.url} did not answer within {self.timeout:g} s; raise the timeout or use a faster model"
        )
        host = urllib.parse.urlsplit(self.url).hostname or ""
        # a proxy from the environment cannot reach this machine's own servers
        proxies = [urllib.request.ProxyHandler({})] if host in ("localhost", "::1") or host.startswith("127.") else []
        request = urllib.request.Request(self.url, data=data, headers=dict(headers), method="POST")
        try:
            try:
                response = urllib.request.build_opener(_NoRedirect, *proxies).open(request, timeout=self.timeout)
            except urllib.error.HTTPError as error:
                response = error  # a status that is not 2xx is an answer like any other
            with response:
                chunks, size = [], 0
                while chunk := response.read1(65536):
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > BODY_LIMIT:
                        raise EndpointError(
                            f"{self.url} answered with more than {BODY_LIMIT // 2**20} MiB; that is no chat answer"
                        )
                    if time.monotonic() > deadline:
                        raise late
                if getattr(response, "length", None):  # http.client's count of bytes announced and not sent
                    raise EndpointError(f"{self.url} broke off in the middle of its answer")
                return _Response(response.status, response.headers, b"".join(chunks))
        except TimeoutError:
            raise late from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise late from None
            raise EndpointError(f"cannot reach {self.url}: {_plain(error.reason)}; is the server running?") from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise EndpointError(
                f"{self.url} did not speak HTTP to the end: {type(error).__name__} {_plain(error)}"
            ) from None

    def _failure(self, response: _Response, key: str | None) -> EndpointError:
        status = response.status
        if 300 <= status < 400:
            target = _plain(response.headers.get("Location", "nowhere"))
            return EndpointError(
                f"{self.url} redirects to {target!r}; no redirect is followed: "
                "give that address yourself if you trust it"
            )
        if status in (401, 403):
            source = (
                f"the key in {self.api_key_env}"
                if self.api_key_env
                else "a request without a key (name its environment variable with api_key_env)"
            )
            return EndpointError(f"{self.url} refused {source}: status {status}")
        said = _plain(response.body[:4096].decode("utf-8", "replace"), key)
        meaning = {404: "no such address or model", 429: "too many requests"}.get(
            status, "the server failed" if status >= 500 else "refused"
        )
        return EndpointError(f"{self.url} answered with status {status} ({meaning})" + (f": {said}" if said else ""))


def _plain(text: object, key: str | None = None) -> str:
    """A stranger's text made fit for one line of a terminal: printable, short, without the key."""
    words = str(text)
    if key:
        words = words.replace(key, "[key]")
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return words if len(words) <= 200 else words[:200] + "…"


def _retry_after(value: str | None, *, default: float) -> float:
    """Seconds to wait by a Retry-After header: seconds or an HTTP date; `default` when absent or senseless."""
    if value is None:
        return default
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return default
    return default if math.isnan(seconds) else max(0.0, seconds)


def _reply(url: str, answer: bytes) -> Reply:
    """The answer's text and usage, read strictly."""
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        raise EndpointError(
            f"{url} answered something that is not JSON: {_plain(answer[:4096].decode('utf-8', 'replace'))!r}"
        ) from None
    choices = document.get("choices") if isinstance(document, dict) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        raise EndpointError(f"{url} answered JSON without choices: {_plain(json.dumps(document)[:4096])}")
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, dict) else None
    truncated = choices[0].get("finish_reason") == "length"
    if text is not None and not isinstance(text, str):
        raise EndpointError(f"{url} answered with a message content of type {type(text).__name__} where a text belongs")
    if not text or not text.strip():
        why = "; it was cut off at max_tokens before any text came: allow more" if truncated else ""
        raise EmptyAnswer(f"{url} answered with an empty message{why}")
    usage = document.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Reply(
        text=text,
        usage=Usage(
            prompt_tokens=_count(counts.get("prompt_tokens")), completion_tokens=_count(counts.get("completion_tokens"))
        ),
        truncated=truncated,
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


@final
@dataclass(frozen=True)
class Local:
    """A local caseback model that answers through its own chat template."""

    model: Model

    @property
    def name(self) -> str:
        return f"{self.model.name} (local)"

    def ask(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> Reply:
        import torch  # the endpoint and the script work without it

        tokenizer, hf = self.model.tokenizer, self.model.hf
        if tokenizer is None or not tokenizer.chat_template:
            raise EndpointError(
                f"{self.model.name} has no chat template, so it cannot answer; "
                "use an instruction-tuned model or an endpoint"
            )
        turns = [{"role": m.role, "content": m.content} for m in messages]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(hf.device)
        n = int(inputs["input_ids"].shape[1])
        room = getattr(hf.config, "max_position_embeddings", None)
        if room is not None and n + max_tokens > room:
            raise EndpointError(
                f"{n} prompt tokens and {max_tokens} for the answer exceed the {room} positions of "
                f"{self.model.name}; ask less"
            )
        how: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature > 0
            else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        )
        devices = [hf.device] if hf.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            if seed is not None:
                torch.manual_seed(seed)
            out = hf.generate(
                **inputs,
                max_new_tokens=max_tokens,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
                **how,
            )
        new = out[0, n:]
        text = tokenizer.decode(new, skip_special_tokens=True)
        if not text.strip():
            raise EmptyAnswer(f"{self.model.name} answered with an empty message")
        return Reply(
            text=text, usage=Usage(prompt_tokens=n, completion_tokens=len(new)), truncated=len(new) >= max_tokens
        )
