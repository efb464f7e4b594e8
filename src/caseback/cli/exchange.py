"""`caseback exchange`: circuits in the JSON that EAP-IG and MIB read and write, positions in a field of their own.

`write` takes the circuit of a recorded run at any size. `read` says what a file holds and, given a task, measures it: the
circuit alone, everything outside it ablated, on the held-out pairs the model answers right, beside random circuits of
the same size. A file without positions says where no edge is, so its circuit is measured with each edge in at all
positions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from caseback.cli.options import Json
from caseback.cli.progress import progress
from caseback.core.errors import CircuitError, StudyError

if TYPE_CHECKING:
    from caseback.circuits.exchange import Exchanged
    from caseback.circuits.graph import Circuit, Scores
    from caseback.model.model import Model
    from caseback.study import Record
    from caseback.tasks import Task

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Circuits in the JSON of EAP-IG and MIB: write one, read and measure one.")


SHOWN = 10
"""Strongest edges printed."""
DRAWS = 3
"""Shuffles of the scores behind the random control."""


@app.command("write")
def write(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A circuit run: its id, the beginning of one, its folder, or 'latest'.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="The file to write.")],
    edges: Annotated[
        int | None, typer.Option(min=1, help="At most so many edges (default: the size the run's page opens with).")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option("--study", metavar="DIR", help="The study folder (default: CASEBACK_STUDY, else ./casebook)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the circuit of a run, with every edge's score."""
    from caseback.circuits import exchange
    from caseback.study import Study
    from caseback.study.circuit import circuit_of

    if not out.parent.is_dir() or out.is_dir():
        what = f"{out} is a folder" if out.is_dir() else f"there is no folder {out.parent} to write {out.name} into"
        raise CircuitError(f"{what}; give the name of a file in a folder that exists")
    record = Study(study).find(run)
    kept = circuit_of(record, edges)
    limit, circuit, scores = kept.limit, kept.circuit, kept.scores
    with progress() as tick:
        width = _width(record, scores, tick)
    try:
        exchange.write(out, circuit, scores, d_model=width)
    except OSError as error:  # of the temporary file beside it, of which nobody has heard
        raise OSError(error.errno, error.strerror, str(out)) from error
    if as_json:
        found = {"run": record.id, "file": str(out), "edges": circuit.n_edges, "asked": limit}
        typer.echo(json.dumps({**found, "graph_edges": scores.graph.n_edges, "spans": list(scores.graph.spans)}))
        return
    less = f" (the largest circuit of at most {limit:,})" if circuit.n_edges < limit else ""
    typer.echo(f"{out}: {circuit.n_edges:,} of {scores.graph.n_edges:,} edges{less}, in {scores.graph.n_spans} spans")


def _width(record: Record, scores: Scores, tick: Any) -> int:
    """The width of the residual stream, which the format asks for and a run does not keep: of the run's model."""
    from caseback.circuits.parts import graph_of
    from caseback.study.circuit import CircuitConfig

    model = record.spec.config(CircuitConfig).load_model(tick)
    if graph_of(model, scores.graph.spans, grouped=scores.graph.grouped) != scores.graph:
        raise StudyError(f"{model.name} has another shape now than when run {record.id} was made; restore its files")
    return int(model.d_model)


@app.command("read")
def read(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A circuit file of EAP-IG, MIB or caseback.")],
    model: Annotated[
        str | None, typer.Option(help="With --task: the model (default: the bundled SmolLM2-135M).")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK|FILE", help="Measure the circuit on this task's held-out pairs.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=4, help="Pairs, both splits together (default: 100, or all of a file).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the task's generator and the random control.")] = 0,
    as_json: Json = False,
) -> None:
    """Say what a circuit file holds; with --task also how much of the answer the circuit keeps."""
    if task is None and (model is not None or n is not None):
        raise typer.BadParameter("--model and --n are for measuring: say on which --task")
    if not file.is_file():
        raise CircuitError(f"there is no file {file}; give the JSON of EAP-IG, MIB or `caseback exchange write`")
    from caseback.circuits import exchange
    from caseback.model.load import load
    from caseback.tasks.files import is_file, read_task

    held = exchange.read(file)
    found = {"file": str(file), **_described(held)}
    if task is not None:
        number = 100 if n is None and not is_file(task) else n
        with progress() as tick:
            loaded = load(model, progress=tick)
            asked = read_task(task, n=number, seed=seed, model=loaded)
            found |= _measured(held, loaded, asked, seed, tick)
    if as_json:
        from caseback.study import plain

        typer.echo(json.dumps(plain(found)))
    else:
        _say(found)


def _described(held: Exchanged) -> dict[str, Any]:
    """What a file holds, its strongest edges first."""
    import numpy as np

    circuit, scores = held.circuit, held.scores
    graph, worth = circuit.graph, np.abs(scores.flat[circuit.edges])
    strongest = circuit.edges[np.argsort(-worth, kind="stable")[:SHOWN]]
    return {
        "positions": held.positions,
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "n_kv_heads": graph.n_groups,
        "spans": list(graph.spans),
        "edges": circuit.n_edges,
        "graph_edges": graph.n_edges,
        "strongest": [{"edge": graph.name(edge), "score": float(scores.flat[edge])} for edge in strongest],
        "notes": list(held.notes),
    }


def _measured(held: Exchanged, model: Model, task: Task, seed: int, tick: Any) -> dict[str, Any]:
    """Faithfulness of the circuit and of random ones of its size, on held-out pairs that are answered right."""
    from caseback.circuits.evaluate import measure
    from caseback.circuits.exchange import group
    from caseback.circuits.parts import Layout, graph_of, require
    from caseback.circuits.score import span_names
    from caseback.evidence import faithfulness_intervals
    from caseback.tasks.respan import respan

    require(model)
    if not held.circuit.graph.grouped:
        held = group(held, model.n_kv_heads)
    circuit, graph = held.circuit, held.circuit.graph
    if graph_of(model, graph.spans) != graph:
        raise CircuitError(
            f"the file holds a circuit of {graph.n_layers} layers of {graph.n_heads} heads on {graph.n_kv_heads} KV "
            f"heads; {model.name} has {model.n_layers} of {model.n_heads} on {model.n_kv_heads}: give its own --model"
        )
    check = task.check(model, progress=tick)
    kept = respan(check.task, "none", model) if graph.n_spans == 1 else check.task
    pairs = kept.held_out.encode(model)
    if span_names(pairs) != graph.spans:
        raise CircuitError(
            f"the file's circuit has the spans {', '.join(graph.spans)}, the task {', '.join(span_names(pairs))}: "
            "give the task it was found on, or lay its schema with `caseback schema apply`"
        )
    lengths = Layout.of(pairs.clean, graph.spans).lengths.double().numpy()
    random = _random(held, lengths, seed) if held.scores.flat.any() else []
    found = measure(model, pairs, [circuit, *random], progress=tick)
    mine = found.rows([0]).faithfulness()[0]
    table: dict[str, Any] = {
        "model": model.name,
        "task": task.name,
        "n": task.n,
        "accuracy": check.accuracy,
        "held_out": pairs.n,
        "faithfulness": mine.value,
        "low": mine.low,
        "high": mine.high,
        "ratio": float(found.ratio[0]),
        "agreement": float(found.agreement[0].mean()),
        "kl": float(found.kl[0].mean()),
        "random": None,
        "notes": list(held.notes),
    }
    if random:
        mean = found.metric[1:].mean(axis=0, keepdims=True)
        table["random"] = faithfulness_intervals(mean, found.full, found.empty)[0].value
    return table


def _random(held: Exchanged, lengths: Any, seed: int) -> list[Circuit]:
    """The file's scores shuffled within edge type, and as many token-level edges taken best first."""
    from caseback.circuits.select import best_first, largest, shuffled

    limit = held.circuit.size(lengths)
    crossing: Literal["scored", "free"] = "scored" if held.positions else "free"
    rankings = (best_first(shuffled(held.scores, seed + draw), crossing=crossing) for draw in range(DRAWS))
    return [largest(ranking, lambda circuit: circuit.size(lengths), limit) for ranking in rankings]


def _say(found: dict[str, Any]) -> None:
    spans = found["spans"]
    where = f"in {len(spans)} spans ({', '.join(spans)})" if found["positions"] else "without positions"
    typer.echo(_plain(f"{found['file']}: {found['edges']:,} of {found['graph_edges']:,} edges, {where}"))
    typer.echo(f"{found['n_layers']} layers of {found['n_heads']} heads on {found['n_kv_heads']} key/value heads")
    for note in found["notes"]:
        typer.echo(f"note: {_plain(note)}")
    for row in found["strongest"]:
        typer.echo(f"  {row['score']:+.4f}  {_plain(row['edge'])}")
    if "faithfulness" not in found:
        return
    random = "not known, the file has no scores" if found["random"] is None else f"{found['random']:.3f}"
    typer.echo(
        f"{found['task']} on {found['model']}: faithfulness {found['faithfulness']:.3f} "
        f"[{found['low']:.3f}, {found['high']:.3f}] on {found['held_out']} held-out pairs; random of equal size {random}; "
        f"same answer {found['agreement']:.1%}, KL {found['kl']:.3f} nats"
    )


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
