"""Kill -9 for every method of the registry, go on by the door of `caseback resume`, compare with a run left alone.

    every.py FOLDER [--kills N] [METHOD ...]

prints one line of JSON: kills a method, and what differed. The request of each method is a small one on a model with a
known answer, saved to a folder, so that a resumed run loads it as any. torch is imported once; every attempt is a forked
child, killed at a system call that matters (`crash.killed_at`) or by the clock, anywhere in its computing. Attempts go
on, each with a kill of its own, and a last one is left alone. Equal are: the runs there are, every array bit by bit,
the data beside them, tables and details; only times, and the times in runs' ids, are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.models.llama.modeling_llama  # noqa: F401 - imported once, not in every child
from crash import in_child, killed_at

from caseback.core import registry
from caseback.core.errors import CasebackError
from caseback.model.load import load
from caseback.relations.relation import write_relation
from caseback.study import Record, Study, audit
from caseback.study.asked import config_of
from caseback.study.claims import Claim, found_on_task, new_claim
from caseback.tasks import write_task
from caseback.zoo import copying

sys.path.insert(0, str(Path(__file__).parents[1] / "relations"))
from facts import facts, relation

JUDGE = {"pairs": 6}
FACT = {"model": "facts", "judge": JUDGE}
COPY = {"model": "copying"}
TASK = {**COPY, "task": "t.jsonl"}
SMALL = {"points": 3, "draws": 1, "patched": 3, "patch_pairs": 2, "control_pairs": 2, "minimal": 3}
REQUESTS: dict[str, dict[str, Any]] = {
    "attention": {**COPY, "prompt": "PROMPT"},
    "attribute": {**FACT, "prompt": "the friend of subject3 is", "relation": "first.json"},
    "attribute-input": {**COPY, "prompt": "PROMPT", "steps": 4},
    "audit": {**COPY},
    "circuit": {**TASK, "discover": SMALL},
    "claim-test": {**TASK, "n": None, "claim": "CLAIM", "tests": ["sufficiency", "specificity"]},
    "concepts": {**FACT, "relation": "first.json", "pairs": 4},
    "cross": {**FACT, "relations": ["first.json", "second.json"]},
    "distract": {**FACT, "relation": "first.json"},
    "dla": {**TASK, "n": None},
    "heads": {**COPY, "sequences": 2, "length": 6},
    "isolate": {**FACT, "relation": "first.json", "siblings": ["second.json"], "pairs": 4},
    "lens": {**COPY, "prompt": "PROMPT"},
    "patch": {**TASK, "n": None},
    "patching": {**TASK, "top": 30, "random": 30, "pairs": 2},
    "paths": {**TASK, "n": None, "sender": "z.1.2"},
    "positions": {**TASK},
    "relation": {**FACT, "relation": "first.json", "splits": 2},
    "schemas": {**TASK, "points": 3},
    "scrub": {**TASK, "n": None, "hypothesis": "h.json", "draws": 1, "others": 1},
    "tune-lens": {**COPY, "texts": "texts.txt", "tuned": {"steps": 20, "tokens": 32}},
    "weights": {**COPY},
}
"""A small request of every method; a method without one is named by `main`."""


def prepare(root: Path) -> dict[str, dict[str, Any]]:
    """Models, tasks, relations and a study with what requests cite, in `root`, which becomes the working folder."""
    os.chdir(root)
    zoo = copying(n=16)
    for name, model in (("copying", zoo.model), ("facts", facts())):
        model.hf.save_pretrained(name)
        model.tokenizer.save_pretrained(name)
    write_task(zoo.task, "t.jsonl")
    texts = [pair.clean for pair in zoo.task.pairs]
    Path("texts.txt").write_text("\n".join(texts))
    said = {"output": ["mover"], "nodes": {"mover": {"sites": ["z.1.2@end"], "agree": ["name"]}}}
    Path("h.json").write_text(json.dumps({"about": "the head moves the name", **said}))
    for second in (False, True):
        made = relation(second)
        write_relation(made, f"{made.name}.json")
    study, model = Study("cited"), load("copying")
    study.make()
    said = Claim(
        component="z.1.2@end", description="moves the name", model={}, found_on=found_on_task("t.jsonl", model)
    )
    claim = new_claim(study, model, said)
    audit.library.names = lambda: ("copying",)  # type: ignore[attr-defined]
    audit.read_task = lambda *_, **__: zoo.task  # type: ignore[attr-defined]
    for name in registry.names("audit"):
        del registry._OFFERS["audit", name]
    registry.register("audit", "lens", f"{__name__}:PART")
    TEXTS.append(texts[0])
    put = {"PROMPT": texts[0], "CLAIM": claim.id}
    return {
        m: {k: put.get(v, v) if isinstance(v, str) else v for k, v in asked.items()} for m, asked in REQUESTS.items()
    }


TEXTS: list[str] = []
PART = audit.Part(
    order=1,
    weight=1.0,
    wishes=lambda known: [
        audit.Wish(question="how", method="lens", sizes=[audit.Size(1.0, {"prompt": TEXTS[0]})]),
        audit.Wish(question="which", method="heads", sizes=[audit.Size(1.0, {"sequences": 2, "length": 6})]),
    ],
)


def attempt(folder: Path, method: str, settings: Mapping[str, Any]) -> None:
    """Go on with what is unfinished as `caseback resume` does, then ask, which reopens what is finished."""
    study = Study(folder)
    for run in study.ids():
        if study.find(run).status != "finished":
            study.resume(run)
    study.ask(method, config_of(method, settings), passed=settings)


# --- what is compared ------------------------------------------------------------------------------------------------

_ID = re.compile(r"\d{8}-\d{6}-([a-z0-9-]+)-[0-9a-f]{4}")


def timeless(value: Any) -> Any:
    """Without what no two runs share: the times in ids, and what things took."""
    if isinstance(value, str):
        return _ID.sub(r"\1", value)
    if isinstance(value, Mapping):
        gone = ("seconds", "cost", "created", "sha256", "digest", "prompt_seconds")
        found = {k: timeless(v) for k, v in value.items() if k not in gone}
        columns = found.get("columns")
        if isinstance(columns, list) and {"kind": "number", "name": "seconds"} in columns:
            at = columns.index({"kind": "number", "name": "seconds"})
            found["rows"] = [row[:at] + row[at + 1 :] for row in found["rows"]]
        return found
    return [timeless(item) for item in value] if isinstance(value, list | tuple) else value


def held(record: Record) -> dict[str, Any]:
    """All a finished run holds; a file that has no business there is in it by its name."""
    files = {str(p.relative_to(record.path)) for p in record.path.rglob("*")}
    found: dict[str, Any] = {"files": sorted(files), "damage": record.damage(), "status": record.status}
    found["table"] = json.dumps(timeless({k: v for k, v in record.table.items() if k != "peak_memory_mb"}))
    found["details"] = json.dumps(timeless(record.details))
    found["spec"] = json.dumps(timeless(record.spec.params))
    for name, saved in record.saved().items():
        data = timeless(saved.state.data)
        if record.spec.method == "audit" and name == "tasks":
            del data["prompt"]  # seconds
        found[name] = json.dumps(data)
        for key, array in saved.state.arrays.items():
            found[f"{name}/{key}"] = (array.dtype.str, array.shape, array.tobytes())
    return found


def contents(folder: Path) -> dict[str, Any]:
    study = Study(folder)
    strays = sorted(p.name for p in (folder / "runs").iterdir() if p.name.startswith("."))
    runs = [study.find(run) for run in study.ids()]
    found = {f"{record.spec.method} {timeless(record.id)}": held(record) for record in runs}
    return {"runs": len(runs), "strays": strays, **found}


def difference(got: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    found = []
    for key in sorted(got.keys() | expected.keys()):
        mine, its = got.get(key), expected.get(key)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            found += [f"{key}: {each}" for each in difference(mine, its)]
        elif mine != its:
            found.append(f"{key} (got {str(mine)[:120]}, expected {str(its)[:120]})")
    return found


# --- killing ---------------------------------------------------------------------------------------------------------


def tried(method: str, settings: Mapping[str, Any], kills: int, seed: int) -> tuple[dict[str, int], list[str]]:
    """(kills, differences) of one method."""
    whole = Path(f"{method}-whole")
    shutil.copytree("cited", whole)
    counted = Path(f"{method}.calls")
    begin = time.monotonic()

    def count() -> None:
        calls = [0]
        with killed_at(whole, None, calls):
            attempt(whole, method, settings)
        counted.write_text(str(calls[0]))

    in_child(count)
    took, calls = time.monotonic() - begin, int(counted.read_text())
    expected = contents(whole)
    chance, done = random.Random(f"{method} {seed}"), {"calls": 0, "clock": 0}
    found: list[str] = []
    folder = Path(f"{method}-killed")

    def work(point: int | None = None) -> None:
        with killed_at(folder, point, [0]):
            attempt(folder, method, settings)

    def check() -> None:
        found.extend(f"{method}: {each}" for each in difference(contents(folder), expected))
        shutil.rmtree(folder)

    for how in done:
        for _ in range(3 * kills):  # an attempt that goes on after a kill may end before the next one
            if done[how] == kills:
                break
            if not folder.exists():
                shutil.copytree("cited", folder)
            if how == "calls":
                point = chance.randint(1, calls)
                ended = in_child(lambda point=point: work(point))
            else:
                ended = in_child(work, after=chance.uniform(0.0, 0.9 * took))
            done[how] += not ended
            if ended:
                check()
        if folder.exists():
            in_child(work)
            check()
    shutil.rmtree(whole)
    return done, found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--kills", type=int, default=1, help="of each kind, a method")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)  # a child inherits no threads
    transformers.utils.logging.disable_progress_bar()
    names = [name for name in registry.names("method") if name != "toy"]  # which crash.py kills at every point
    if missing := sorted(set(names) - REQUESTS.keys()):
        raise SystemExit(f"no small request for {', '.join(missing)}: add one to REQUESTS in {Path(__file__).name}")
    for name in names:
        registry.get("method", name)
    requests = prepare(given.folder.resolve())
    kills, found = {}, []
    for name in given.methods or names:
        begin = time.monotonic()
        try:
            kills[name], differs = tried(name, requests[name], given.kills, given.seed)
        except (CasebackError, SystemExit) as error:
            kills[name], differs = {}, [f"{name}: {error}"]
        found += differs
        print(name, kills[name], f"{time.monotonic() - begin:.1f} s", differs[:3], file=sys.stderr, flush=True)
    print(json.dumps({"kills": kills, "different": found}))


if __name__ == "__main__":
    main()
