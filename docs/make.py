"""`python docs/make.py`: what the documents say of the program is written from the program itself.

    python docs/make.py                 docs/cli.md, and every block between `<!-- made: NAME -->` and `<!-- end -->`
    python docs/make.py --run RUN       also what comes from a run (its id or folder, or "latest"): of `caseback circuit`
                                        docs/ioi.json and docs/images/page.png (needs Chromium), of `caseback
                                        experiment NAME` docs/NAME.json

tests/docs compares the files with what this would write, so they cannot fall behind.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "caseback"
DOCS = ROOT / "docs"
PICTURE = DOCS / "images" / "page.png"
IOI = DOCS / "ioi.json"
INDUCED = DOCS / "schemas.jsonl"
BAR = "\\|"
ROOMS = {
    "core": "what every room shares: errors, progress, stages, the registry, provenance, the cache",
    "evidence": "intervals, splits, rank statistics, areas: arithmetic on NumPy arrays, no method in it",
    "model": "the machine: all that knows transformers",
    "tasks": "the question: pairs of prompts with named spans, schemas, metrics, files",
    "zoo": "models with known answers, and a tiny random model of every family",
    "circuits": "graph, scores, selection, ablation, evaluation",
    "relations": "linear relation decoding: the data, the operators, how they are judged and used",
    "reading": "lenses, attribution, patching grids, heads, weights",
    "study": "the record: specs, runs that can be resumed, the index",
    "show": "the page: payload, HTML report, static/views/<kind>.js",
    "cli": "one file a command group",
}
"""Room → what it is, from the top of the house down; a room imports only rooms above it (tests/test_project.py)."""


def pages() -> list[Path]:
    """Every page that may hold made blocks."""
    return [ROOT / "README.md", *sorted(path for path in DOCS.glob("*.md") if path.name not in ("cli.md", "speed.md"))]


def filled(text: str) -> str:
    """A page with its made blocks written anew; raises KeyError for a block nobody makes."""

    def fill(found: re.Match[str]) -> str:
        return f"<!-- made: {found['name']} -->\n{BLOCKS[found['name']]()}\n<!-- end -->"

    return re.sub(r"<!-- made: (?P<name>[a-z-]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


# --- the command line ----------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[list[str], Any]]:
    """(words, click command) of every command that does something, groups left out."""
    import typer

    from caseback.cli.app import COMMANDS, app

    top: Any = typer.main.get_command(app)
    for name in COMMANDS:
        found = top.get_command(None, name)
        inner = getattr(found, "commands", None)
        if inner is None:
            yield [name], found
        else:
            for each, command in inner.items():
                yield [name, each], command


def help_of(words: list[str], command: Any) -> str:
    """The command's own help, as it stands on a terminal 100 columns wide."""
    made = command.context_class(command, info_name=" ".join(["caseback", *words]), terminal_width=100)
    made.max_content_width = 100
    lines = command.get_help(made).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


def cli() -> str:
    """docs/cli.md."""
    parts = [
        "# Commands",
        "Made by `python docs/make.py` from the commands themselves. Results go to stdout, everything else to stderr. "
        "Exit codes: 0 done; 1 the answer is no (a check that failed); 2 the request could not be carried out, said in "
        "one sentence; 130 stopped with Ctrl-C. `TASK|FILE` is a task's name or a file of pairs "
        "([add-a-task.md](add-a-task.md)); `MODEL` is a hub repository, a folder or a `.gguf` file "
        "([models.md](models.md)).",
    ]
    for words, command in commands():
        parts += [f"## caseback {' '.join(words)}", f"```text\n{help_of(words, command)}\n```"]
    return "\n\n".join(parts) + "\n"


def command_table() -> str:
    rows = []
    for words, command in commands():
        first = (command.help or "").strip().partition("\n\n")[0]
        rows.append((f"`caseback {' '.join(words)}`", " ".join(first.split())))
    return table(("command", "what it does"), rows)


# --- the source ----------------------------------------------------------------------------------------------------


def first_sentence(path: Path) -> str:
    """The head of a module's docstring, without the name of a command in front."""
    said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    sentence = " ".join(said.partition("\n\n")[0].split())
    return sentence.removesuffix(":").rstrip(".")


def rooms() -> str:
    lines = []
    for room, about in ROOMS.items():
        lines.append(f"\n**{room}/** {about}\n")
        for path in sorted((SOURCE / room).rglob("*.py")):
            if path.name != "__init__.py":
                lines.append(f"- `{path.relative_to(SOURCE / room)}` {first_sentence(path)}")
    return "\n".join(lines).strip()


def fields_of(target: str) -> str:
    """The table of a config's fields: name, default, and the text under it in the source."""
    module, name = target.split(":")
    config = getattr(importlib.import_module(module), name)
    [tree] = ast.parse(inspect.getsource(config)).body
    assert isinstance(tree, ast.ClassDef)
    said = {}
    for node, after in zip(tree.body, [*tree.body[1:], None]):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            said[node.target.id] = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                said[node.target.id] = " ".join(str(after.value.value).split())
    rows = []
    for field in dataclasses.fields(config):
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        rows.append((f"`{field.name}`", default, said[field.name]))
    return table(("field", "default", "meaning"), rows)


def sites() -> str:
    from caseback.model.sites import NAMES

    rows = [
        (f"`{name}{'.*' if kind.layered else ''}`", kind.shape, kind.about, f"`{kind.lens}`" if kind.lens else "")
        for name, kind in NAMES.items()
    ]
    return table(("site", "shape", "what it is", "in TransformerLens"), rows)


def families() -> str:
    from caseback.model.families import FAMILIES

    def named(rows: list[Any]) -> str:
        return ", ".join(f"`{row.name}`" for row in sorted(rows, key=lambda row: row.name))

    whole = [row for row in FAMILIES.values() if row.circuits]
    reasons: dict[str, list[Any]] = {}
    for _, row in sorted(FAMILIES.items()):  # the tests take rows out and put them back
        if not row.circuits:
            reasons.setdefault(row.why_not, []).append(row)
    lines = [f"{len(FAMILIES)} families have a row. With circuits ({len(whole)}): {named(whole)}.", ""]
    lines += ["Without circuits:", ""]
    lines += [f"- {named(rows)}: {reason}." for reason, rows in reasons.items()]
    return "\n".join(lines)


def task_table() -> str:
    from caseback.tasks import library

    rows = []
    for name in library.names():
        task = library.get(name, n=1)
        pair = task.pairs[0]
        example = f"{pair.clean} → {pair.answers[0].strip()}" + (" …" if len(pair.answers) > 1 else "")
        spans = " · ".join(task.schema.spans) if task.schema else ""
        rows.append((f"`{name}`", task.description, example, spans))
    return table(("task", "asks", "example", "spans"), rows)


def induced() -> str:
    """The table of `python -m bench.schemas --json`, kept in docs/schemas.jsonl."""
    if not INDUCED.exists():
        return (
            "Not measured here yet: `python -m bench.schemas --json > docs/schemas.jsonl`, then `python docs/make.py`."
        )
    rows = []
    for line in INDUCED.read_text("utf-8").splitlines():
        found = json.loads(line)
        figures = [f"{found[name]:.2f}" for name in ("single", "equal", "shuffled", "hand")]
        mine = f"{found['induced']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
        rows.append((found["task"], found["held_out"], str(found["n"]), mine, *figures))
    heads = ("task", "held out", "prompts", "F1, induced (95%)", "single", "equal", "shuffled", "from hand")
    return f"{table(heads, rows)}\n\nMade by `python -m bench.schemas --json > docs/schemas.jsonl`."


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', BAR) for cell in line)} |" for line in lines)


# --- a run ---------------------------------------------------------------------------------------------------------


def ioi() -> str:
    """The table and the facts of the run kept in docs/ioi.json."""
    if not IOI.exists():
        return "Not measured here yet: `caseback circuit ioi`, then `python docs/make.py --run latest`."
    run = json.loads(IOI.read_text("utf-8"))
    columns = ("sizes", "faithfulness", "low", "high", "random", "agnostic")
    rows = [
        (f"{size:,}", f"{value:z.3f}", f"{low:z.3f} to {high:z.3f}", f"{random:z.3f}", f"{agnostic:z.3f}")
        for size, value, low, high, random, agnostic in zip(*(run[name] for name in columns))
    ]
    facts = (
        f"{run['n']} pairs, accuracy {run['accuracy']:.1%}; chosen: {run['chosen']['edges']:,} edges. "
        f"CPR {run['cpr']:.3f}, CMD {run['cmd']:.3f} (linear axis); "
        f"{run['forwards']:,} forwards. Scores against exact patching of {run['validation']['n']} edges: Pearson "
        f"{run['validation']['pearson']:.2f}, Spearman {run['validation']['spearman']:.2f}, equal sign "
        f"{run['validation']['sign_agreement']:.0%}. {made_by(run)}"
    )
    heads = ("edges", "faithfulness", "95% interval", "random", "position-agnostic")
    return f"{table(heads, rows)}\n\n{facts}"


def experiment(method: str) -> str:
    """The claim and the first table of the run kept in docs/METHOD.json."""
    path = DOCS / f"{method}.json"
    if not path.exists():
        return f"Not measured here yet: `caseback experiment {method} ioi`, then `python docs/make.py --run latest`."
    from caseback.cli.say import cell as shown  # as the command prints them

    run = json.loads(path.read_text("utf-8"))
    columns = tuple(column["name"] for column in run["section"]["columns"])
    kinds = [column["kind"] for column in run["section"]["columns"]]
    rows = [tuple(shown(cell, kind) for cell, kind in zip(row, kinds)) for row in run["section"]["rows"]]
    return f"{run['claim']}\n\n{table(columns, rows)}\n\n{made_by(run)}"


def made_by(run: dict[str, Any]) -> str:
    names = ("caseback", "torch", "transformers")
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in names)
    return f"*`{run['command']}` on {run['model']}; {versions}.*"


def keep(name: str) -> None:
    """Keep what the documents show of a run: its figures as JSON, and of a circuit study a picture of the page."""
    from caseback.study import Study

    record = Study().find(name)
    spec = record.spec
    words = ["caseback", *(["experiment"] if spec.method != "circuit" else []), spec.method, spec.task]
    for key, value in spec.passed.items():
        if value not in (None, 0) and key != "task":
            words += [f"--{key}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    kept = {"command": " ".join(words), "versions": dict(record.versions), "model": record.table["model"]}
    if spec.method == "circuit":
        kept |= {key: value for key, value in record.table.items() if key not in ("run", "seconds", "peak_memory_mb")}
        kept |= {key: record.details[key] for key in ("chosen", "validation")}
        assert record.report is not None, f"run {record.id} has no page: caseback report {record.id}"
        picture(record.report)
    else:
        view = record.stage("view").data
        kept |= {"claim": view["claim"], "section": view["sections"][0]["table"]}
    path = IOI if spec.method == "circuit" else DOCS / f"{spec.method}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


def picture(page: Path) -> None:
    """A screenshot of the top of a report."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    PICTURE.parent.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        sandbox = hasattr(os, "geteuid") and os.geteuid() != 0  # Chromium refuses its sandbox to root
        browser = playwright.chromium.launch(executable_path=chromium, chromium_sandbox=sandbox)
        view = browser.new_page(viewport={"width": 1280, "height": 1040}, color_scheme="light", reduced_motion="reduce")
        view.goto(page.resolve().as_uri())
        view.wait_for_selector("#size")
        view.wait_for_timeout(500)
        view.screenshot(path=PICTURE)
        browser.close()


BLOCKS: dict[str, Callable[[], str]] = {
    "commands": command_table,
    "rooms": rooms,
    "sites": sites,
    "families": families,
    "tasks": task_table,
    "ioi": ioi,
    "induced": induced,
    "positions": lambda: experiment("positions"),
    "patching": lambda: experiment("patching"),
    "schemas": lambda: experiment("schemas"),
    "discover-config": lambda: fields_of("caseback.circuits.discover:DiscoverConfig"),
    "score-config": lambda: fields_of("caseback.circuits.score:ScoreConfig"),
    "induce-config": lambda: fields_of("caseback.tasks.induce:InduceConfig"),
    "propose-config": lambda: fields_of("caseback.tasks.propose:ProposeConfig"),
    "family-fields": lambda: fields_of("caseback.model.families:Family"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what the documents say of the program from the program.")
    parser.add_argument("--run", help="also keep the table and the picture of this run")
    asked = parser.parse_args()
    if asked.run:
        keep(asked.run)
    (DOCS / "cli.md").write_text(cli(), "utf-8")
    for page in pages():
        page.write_text(filled(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
