"""docs/speed.md and its figure, from bench/results. Nothing on that page is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.clock import ROOT, read
from bench.plot import Panel, draw

__all__ = ["make"]

PAGE = ROOT / "docs" / "speed.md"
FIGURE = ROOT / "docs" / "speed.svg"
JOBS = ("scoring", "evaluation")

HEAD = """# Speed

*Made by `make bench` (`python -m bench`) from the files in `bench/results`; not written by hand.*

**F** is a plain forward of the same batch with last-token logits. Everything compared ran by turns, in one run, on one
thread; figures are the median over rounds of the ratio within a round, with the smallest and the largest in brackets.
Times are CPU seconds of the process unless they are called wall time.
"""


def make() -> None:
    """Write the page; a benchmark that was not measured is left out and named."""
    sections = [(name, found) for name in SECTIONS if (found := read(name)) is not None]
    missing = [name for name in SECTIONS if read(name) is None]
    text = [HEAD, *(f"{SECTIONS[name](found)}\n\n{_about(found)}\n" for name, found in sections)]
    if missing:
        text.append(f"Not measured yet: {', '.join(missing)}.\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(text), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} made of {', '.join(name for name, _ in sections) or 'nothing'}")


def _about(found: Mapping[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    load = f"load average {found['load_average'][0]:.1f}"
    software = f"torch {versions['torch']}, transformers {versions['transformers']}"
    return f"*`{found['command']}`, {found['date'][:10]}; {machine['processor']}, {machine['cpus']} cores, {load}; {software}.*"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, [":--" if number == 0 else "--:" for number in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


def _scoring(found: Mapping[str, Any]) -> str:
    target, n, tokens, wall = found["targets"], found["pairs"], found["tokens"], found["all_threads"]
    rows = [
        ["scoring / (3F + the edges' own products)", _ratio(found["over_floor"]), f"≤ {target['over_floor']}"],
        ["scoring / 3F", _ratio(found["over_3F"]), "aim 1.5"],
        *([f"of it: {name}, in F", _ratio(value), ""] for name, value in found["parts_in_F"].items()),
        [
            f"scoring / 3F, wall time, {wall['threads']} threads; worth reading only on an idle machine (load {wall['load_average']:.1f})",
            _ratio(wall["wall_over_3F"]),
            "",
        ],
        ["peak memory, MB", f"{found['peak_mb']['after']:,.0f}", f"≤ {target['peak_mb']:,}"],
        ["of it before scoring (model and libraries), MB", f"{found['peak_mb']['before']:,.0f}", ""],
    ]
    return f"""## Scoring every edge

{found["model"]}, {n} IOI pairs of {tokens["real"] / n:.0f} tokens on average (batch width {tokens["width"]}): all residual edges
in nine spans and all crossing edges, {found["edges"]:,} in all; {found["times"]["scoring"]["cpu_s"] / n:.2f} CPU-s a pair.
The edges' own products are {found["edge_gflops"]:.1f} GFLOP; they are counted at {found["matmul_gflops_per_s"]:.0f} GFLOP/s, the
rate of a large square product in the same rounds.

{_table(["", "measured", "target"], rows)}"""


def _evaluation(found: Mapping[str, Any]) -> str:
    target = found["targets"]
    sizes: dict[float, dict[str, Any]] = {}
    for row in found["sizes"]:
        sizes.setdefault(row["share"], {})[row["selector"]] = (f"{row['edges']:,}", _ratio(row["in_F"]))
    rows = [[f"{share:.2%}", *one["circuit"], *one["shuffled"]] for share, one in sizes.items()]
    return f"""## Evaluating one circuit

One ablated forward of the same batch, everything outside the circuit at its reference value. Target: at most
{target["in_F"]} F up to {target["up_to_share"]:.0%} of the edges. The two recorded runs that serve all circuits of a batch cost
{_ratio(found["recording_in_2F"])} × 2F together. Live edges are those left after dead ends are pruned; the control is the same
selector on scores shuffled within edge type.

{_table(["edges taken", "live", "circuit, in F", "live", "shuffled control, in F"], rows)}"""


def _peers(found: Mapping[str, Any]) -> str:
    rows, notes = [], []
    for name, one in found["peers"].items():
        if "error" in one:
            notes.append(f"- {name} could not be measured: {one['error']}")
            continue
        seconds = one["cpu_s_a_pair"]
        for job, what in one["jobs"].items():
            faster = _ratio(one["times_faster"][job])
            rows.append(
                [f"{name}: {what}", f"{seconds[job]:.2f}", f"{seconds['caseback']:.3f}", faster, f"≥ {one['target']}"]
            )
        versions = ", ".join(f"{package} {version}" for package, version in one["versions"].items())
        apart, first = one["agreement"]["largest_difference"], one["first_call_cpu_s_a_pair"]
        cold = "; ".join(f"{name} {value:.2f}" for name, value in first.items())
        notes.append(
            f"- {name} ({versions}; `{one['worker']}`): {one['case']}. It scores {one['edge_count']:,} edges, caseback "
            f"{one['caseback_edges']:,}.\n  Summed over spans the two differ by at most {apart:.0e} of the largest score. "
            f"The first call of a process, which is not counted\n  above, took these CPU-s a pair: {cold}."
        )
    about = "\n".join(notes)
    return f"""## Beside other tools

The same prompts and weights, float32, one thread, by turns, each in batches of its own (circuitkit 16 pairs, as in
its own IOI task; auto-circuit all 8); CPU seconds a pair. The peers score edges with
positions summed; caseback scores every edge of nine spans and every crossing edge.

{_table(["", "theirs", "caseback", "times faster", "target"], rows)}

{about}"""


def _relations(found: Mapping[str, Any]) -> str:
    tokens, seconds, peak = found["tokens"], found["times"], found["peak_mb"]
    targets = found["targets"]
    rows = [
        ["all layers / one layer", _ratio(found["over_one_layer"]), f"≤ {targets['over_one_layer']}"],
        ["a sweep layer by layer / all layers", _ratio(found["sweep_over"]), f"≥ {targets['sweep_over']}"],
    ]
    all_s, one_s = (seconds[name]["cpu_s"] for name in ("all layers", "one layer"))
    rest = tokens["from the subject's last"]
    return f"""## A relation's Jacobians

∂z/∂s of {found["layers"]} layers from one backward, beside `torch.autograd.functional.jacobian(vectorize=True)` for layer
{found["layer"]} alone (from its block on, with the same cached prefix, without the vocabulary), {found["model"]},
{found["examples"]} example of {tokens["prompt"]} tokens, {rest} from the subject's last on: {all_s:.1f} and {one_s:.1f} CPU-s.
The sweep is that one layer's time for every layer. The two differ by at most {found["largest_difference"]:.0e} of the
largest entry; peak memory {peak["all"]["after"]:,.0f} and {peak["one"]["after"]:,.0f} MB.

{_table(["", "measured", "target"], rows)}"""


def _growth(found: Mapping[str, Any]) -> str:
    tables, times, memory = [], [], []
    for axis, rows in found["series"].items():
        fixed = ", ".join(f"{value} {name}" for name, value in found["base"].items() if name != axis)
        x = [row[axis] for row in rows]
        seconds = {job: [row[job]["cpu_s"] for row in rows] for job in JOBS}
        peaks = {job: [row[job]["peak_mb"]["after"] for row in rows] for job in JOBS}
        times.append(
            Panel(f"CPU seconds by {axis} ({fixed})", x, {**seconds, "F": [row["scoring"]["F_cpu_s"] for row in rows]})
        )
        memory.append(Panel(f"peak memory, MB, by {axis}", x, peaks))
        cells = []
        for row in rows:
            each = [
                [
                    f"{row[job]['cpu_s']:.2f}",
                    f"{row[job]['in_F']['median']:.2f}",
                    f"{row[job]['peak_mb']['after']:,.0f}",
                ]
                for job in JOBS
            ]
            cells.append(
                [row[axis], f"{row['scoring']['edges']:,}", f"{row['scoring']['F_cpu_s']:.2f}", *each[0], *each[1]]
            )
        head = [axis, "edges", "F, s", "scoring, s", "in F", "peak, MB", "evaluation, s", "in F", "peak, MB"]
        tables.append(f"With {fixed}:\n\n{_table(head, cells)}")
    FIGURE.write_text(draw([times, memory]), encoding="utf-8")
    below, share = "\n\n".join(tables), found["share_of_edges_evaluated"]
    return f"""## Growth

A Llama of SmolLM2-135M's widths with random weights, prompts of random tokens in nine spans. Scoring does every edge; the
evaluated circuit is the best-first one of {share:.0%} of the edges. Both cut a batch into parts of at most 320 tokens.

![Time and memory against tokens, pairs and layers](speed.svg)

{below}"""


def _command(found: Mapping[str, Any]) -> str:
    outcome, seconds, target = found["outcome"], found["wall_s"], found["targets"]["wall_s"]
    sizes, load = len(outcome["sizes"]), found["load_before"]
    return f"""## From start to end

`{found["measured"]}`: **{seconds:.0f} s** of wall time (target: {target} s on 2 idle cores; load average before it {load:.1f}),
{found["cpu_s"]:.0f} CPU-s, {outcome["forwards"]:,} forwards, {sizes} sizes with their controls, peak
{outcome["peak_memory_mb"]:,.0f} MB."""


def _reading(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return f"## Patching grids\n\nThe peer could not be measured: {found['error']}"
    seconds, target = found["cpu_s"], found["target"]
    rows = [
        ["every layer × position", "resid_pre", f"{seconds['grid']:.1f}", f"{seconds['caseback']:.2f}"]
        + [_ratio(found["times_faster"]), f"≥ {target}"]
    ]
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return f"""## Patching grids

Activation patching beside TransformerLens' `{found["call"]}` ({versions}; `{found["worker"]}`): {found["case"]}, the same
prompts and weights, float32, one thread, by turns; CPU seconds of a whole grid, the recorded runs included. The two grids
differ by at most {found["largest_difference"]:.0e} of the largest change.

{_table(["grid", "site", "theirs", "caseback", "times faster", "target"], rows)}"""


SECTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "scoring": _scoring,
    "evaluation": _evaluation,
    "peers": _peers,
    "reading": _reading,
    "relations": _relations,
    "growth": _growth,
    "command": _command,
}
