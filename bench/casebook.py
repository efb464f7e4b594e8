"""`python -m bench.casebook`: how long `caseback view` makes a reader wait, and bench/results/casebook.json.

    list      2,000 invented runs, asked over loopback HTTP as the page asks: the first listing (the index is made), then
              search, filter, another order, the last page. Target: a search under 100 ms.
    prompt    every part of the prompt box on prompts it has not seen, the default model, all cores. Target: each under a
              second, for prompts of up to 16 tokens; of a grid against a second prompt the first row. The random
              twin is made once, which is measured by itself; in the second prompt the name is another, so that nearly
              all of the grid has to be computed where it stands in front.

Wall time is what a reader waits; beside it stand CPU seconds of the process, which a busy neighbour does not change.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import http.client
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `caseback view` does

from bench.clock import write  # noqa: E402

__all__ = ["measure"]

RUNS, ROUNDS, GRIDS = 2000, 15, 6
LIST_TARGET, PART_TARGET = 0.1, 1.0
METHODS = ("circuit", "lens", "relation", "patch", "heads")
QUERIES = {
    "newest": "",
    "search, one word": "words=tokyo",
    "search, two words": "words=tok+lens",
    "search, nothing found": "words=nosuchword",
    "one method": "method=circuit",
    "by task, rising": "sort=task&down=false",
    "last page": "page=40",
}
PROMPTS = (
    "The capital of {} is the city of",
    "When {} and John went to the store, John gave a drink to",
    "In {} people speak many languages, but most of all they speak",
)
NAMES = ("Japan", "France", "Kenya", "Mary", "Spain", "Peru", "Egypt", "Chile", "Anna", "Norway")


def measure(rounds: int = ROUNDS) -> None:
    """Measure both, print, and keep the result."""
    found = {
        "runs": RUNS,
        "list": _lists(rounds),
        "prompt": _prompts(rounds),
        "targets": {"list": LIST_TARGET, "part": PART_TARGET},
    }
    write("casebook", found, command="python -m bench.casebook")


def _lists(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        _invent(Path(folder), RUNS)
        with _served(Path(folder)) as ask:
            began = time.perf_counter()
            ask("/api/runs")
            found: dict[str, Any] = {"first listing, index made": _about([time.perf_counter() - began])}
            for _ in range(2):
                for query in QUERIES.values():
                    ask(f"/api/runs?{query}")
            for name, query in QUERIES.items():
                times = []
                for _ in range(rounds):
                    began = time.perf_counter()
                    ask(f"/api/runs?{query}")
                    times.append(time.perf_counter() - began)
                found[name] = _about(times)
    for name, seconds in found.items():
        print(f"  {name:26} {1000 * seconds['median_s']:7.1f} ms  (most {1000 * seconds['most_s']:.1f})", flush=True)
    return found


def _prompts(rounds: int) -> dict[str, Any]:
    from caseback.show.live import Live, look_of
    from caseback.study import Study

    live = Live(Study(tempfile.mkdtemp()))
    tokens: list[int] = []
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}

    async def read(text: str, **asked: Any) -> None:
        began = last = time.perf_counter()
        began_cpu = last_cpu = time.process_time()
        async for part in live.read(look_of({"text": text, "client": "bench", **asked})):
            now, now_cpu = time.perf_counter(), time.process_time()
            if "error" in part:
                raise RuntimeError(f"{text!r}: {part['error']}")
            name = f"{part['part']}, {asked['method']}" if part["part"] == "inputs" else part["part"]
            wall.setdefault(name, []).append(now - last)
            cpu.setdefault(name, []).append(now_cpu - last_cpu)
            last, last_cpu = now, now_cpu
            if part["part"] == "tokens":
                tokens.append(len(part["words"]))
        if asked["method"] == "occlusion" and "parts" not in asked:
            wall.setdefault("all", []).append(time.perf_counter() - began)
            cpu.setdefault("all", []).append(time.process_time() - began_cpu)

    async def grid(ask: str, name: str, other: str) -> None:
        began, began_cpu = time.perf_counter(), time.process_time()
        asked = {"other": ask.format(other), "answer": name, "foil": other, "parts": ["patch"]}
        rows = 0
        async for part in live.read(look_of({"text": ask.format(name), "client": "bench", **asked})):
            if "error" in part:
                raise RuntimeError(f"{asked}: {part['error']}")
            rows += len(part.get("rows", ()))
            if rows == 1 or part.get("left") == 0:
                name_of = "patch, first row" if rows == 1 else "patch, all"
                wall.setdefault(name_of, []).append(time.perf_counter() - began)
                cpu.setdefault(name_of, []).append(time.process_time() - began_cpu)

    for number in range(rounds + 1):
        text = PROMPTS[number % len(PROMPTS)].format(NAMES[number // len(PROMPTS) % len(NAMES)])
        asyncio.run(read(text, method="occlusion"))
        asyncio.run(read(text, method="occlusion", parts=["twin.attention", "twin.inputs", "twin.lens"]))
        for method in ("gradient", "integrated"):
            asyncio.run(read(text, method=method, parts=["inputs"]))
        if not number:  # the first loads the model
            loading, twin = wall["model"][0], wall["twin.attention"][0]
            wall.clear()
            cpu.clear()
    for number in range(min(rounds, GRIDS)):
        first = number // len(PROMPTS)
        asyncio.run(grid(PROMPTS[number % len(PROMPTS)], NAMES[first], NAMES[first + 1]))
    live.close()
    found = {
        name: {**_about(times), "cpu_s": statistics.median(cpu[name])}
        for name, times in wall.items()
        if name != "model"
    }
    for name, seconds in found.items():
        print(f"  {name:26} {1000 * seconds['median_s']:7.0f} ms  ({seconds['cpu_s']:.2f} CPU-s)", flush=True)
    return {
        "tokens": [min(tokens), max(tokens)],
        "threads": _threads(),
        "model_load_s": loading,
        "twin_made_s": twin,
        "parts": found,
    }


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _about(times: list[float]) -> dict[str, Any]:
    return {"median_s": statistics.median(times), "most_s": max(times), "rounds": len(times)}


@contextmanager
def _served(folder: Path) -> Iterator[Any]:
    """A function that asks a server of this folder over loopback."""
    import uvicorn

    from caseback.show.server import application
    from caseback.study import Study

    listening = uvicorn.Config("", port=0, log_level="critical", lifespan="off").bind_socket()
    listening.listen()
    port = listening.getsockname()[1]
    app = application(Study(folder), token="bench", port=port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    link = http.client.HTTPConnection("127.0.0.1", port)

    def ask(path: str) -> Any:
        link.request("GET", path, headers={"x-caseback-token": "bench"})
        answer = link.getresponse()
        body = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{path}: {body}")
        return body

    try:
        yield ask
    finally:
        link.close()
        server.should_exit = True
        thread.join()
        app.prompts.close()


def _invent(study: Path, n: int) -> None:
    """Finished runs as a study keeps them, of prompts and numbers out of a hat."""
    from caseback.study.files import write_json

    draw = random.Random(0)
    words = (
        "tokyo paris nairobi lima cairo oslo head layer token name city country store drink plural verb past".split()
    )
    for i in range(n):
        method, task = draw.choice(METHODS), " ".join(draw.sample(words, 3))
        moment = time.gmtime(1_790_000_000 + 600 * i)
        digest = hashlib.sha256(str(i).encode()).hexdigest()
        run = (
            study / "runs" / f"{time.strftime('%Y%m%d-%H%M%S', moment)}-{method}-{task.replace(' ', '-')}-{digest[:4]}"
        )
        (run / "arrays").mkdir(parents=True)
        (run / "lock").touch()
        params = {
            "prompt": " ".join(draw.choices(words, k=12)),
            "seed": i,
            "model": None,
            "dtype": "float32",
            "device": "cpu",
        }
        model = {"id": "SmolLM2-135M-Instruct", "revision": None, "files": {"model.safetensors": digest}}
        spec = {
            "created": time.strftime("%Y-%m-%dT%H:%M:%S.000+00:00", moment),
            "method": method,
            "task": task,
            "params": params,
        }
        spec |= {
            "passed": {},
            "seed": i,
            "model": model,
            "data": None,
            "digest": digest,
            "versions": {"caseback": "0.1.0"},
        }
        table = {"n": 40, **{name: draw.random() for name in ("accuracy", "faithfulness", "low", "high")}}
        result = {"table": table, "details": {}, "arrays": {}, "cost": {"seconds": 1.0, "peak_memory_mb": 1000.0}}
        event = {"at": spec["created"], "kind": "result", "seconds": 1.0}
        for name, content in (("spec.json", spec), ("result.json", result), ("environment.json", {})):
            write_json(run / name, content)
        (run / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m bench.casebook", description="Measure what `caseback view` makes one wait for."
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    measure(parser.parse_args().rounds)
