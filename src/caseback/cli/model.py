"""`caseback model`: whether a model's sites are what they are called, which ones it has, and what each family supports."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caseback.cli.options import Json
from caseback.core.errors import FamilyError

if TYPE_CHECKING:
    from caseback.model.check import Report
    from caseback.model.families import Family
    from caseback.model.model import Model

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Models: sites, families, and the identities that must hold.")

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A hub repository, a folder, a .gguf file, or the name of a family for a tiny random model of it; "
        "without it the default model.",
    ),
]
Option = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The same, as other commands take it.")]


@app.command("check")
def check_model(name: Name = None, option: Option = None, as_json: Json = False) -> None:
    """Try the accounting identities: equations that hold exactly when the family's row fits the model."""
    from caseback.model.check import check

    report = check(_model(_one(name, option)))
    if as_json:
        _print_json(_report(report))
    else:
        rows = [
            (
                "-" if identity.skipped else "ok" if identity.passed else "FAIL",
                identity.name,
                "" if identity.error is None else _cell(identity.error),
                identity.equation + (f" (not tried: {identity.skipped})" if identity.skipped else ""),
            )
            for identity in report.identities
        ]
        typer.echo(f"{report.model}, family {report.family.name}{' (guessed)' if report.family.guessed else ''}\n")
        typer.echo(_table(("", "identity", "error", "equation"), rows))
    if report.failed:
        names = ", ".join(identity.name for identity in report.failed)
        raise FamilyError(
            f"{len(report.failed)} of {len(report.identities)} identities fail on {report.model}: {names}"
        )


@app.command("tree")
def tree(name: Name = None, option: Option = None, as_json: Json = False) -> None:
    """Print the model's sites: their names, layers, heads and shapes."""
    model = _model(_one(name, option))
    rows = _sites(model)
    if as_json:
        sizes = {key: getattr(model, key) for key in ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_vocab")}
        _print_json({"model": model.name, "family": model.family.name} | sizes | {"sites": rows})
        return
    typer.echo(f"{model!r}\n")
    cells = [
        (
            row["site"],
            _ranges(row["layers"]),
            str(row["heads"] or ""),
            " ".join(axis if size is None else f"{axis}={size}" for axis, size in row["axes"].items()),
            row["transformer_lens"],
            row["about"],
        )
        for row in rows
    ]
    typer.echo(_table(("site", "layers", "heads", "shape", "in TransformerLens", "what it is"), cells))
    if model.family.why_not:
        typer.echo(f"\nNot here: {model.family.why_not}.")


@app.command("families")
def families(
    as_json: Json = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Try the identities on a tiny random model of each; add the largest error."),
    ] = False,
) -> None:
    """List the model families, what each supports, and why not."""
    from caseback.model.families import FAMILIES

    rows = [_family(row) for _, row in sorted(FAMILIES.items())]
    if measure:
        from transformers import logging

        logging.set_verbosity_error()  # it has opinions about models of two layers
        for row in rows:
            row |= _measured(row["family"])
    if as_json:
        _print_json({"families": rows})
    else:
        columns = (
            "family",
            "attention sites",
            "head gradients",
            "circuits",
            *(["error"] if measure else []),
            "why not",
        )
        keys = ("family", "attention_sites", "head_gradients", "circuits", *(["error"] if measure else []), "why_not")
        typer.echo(_table(columns, [[_cell(row[key]) for key in keys] for row in rows]))
        typer.echo(
            f"\n{len(rows)} families. Every one has residual sites, writers, z where a layer attends, and gradients there."
        )
        typer.echo(
            "Attention sites: q, k, v, pattern. Another family's row is guessed, and used if the identities hold."
        )
    if failed := [row["family"] for row in rows if row.get("failed")]:
        raise FamilyError(f"identities fail on {', '.join(failed)}: see 'caseback model check {failed[0]}'")


def _one(name: str | None, option: str | None) -> str | None:
    """The model asked for, whichever way."""
    if name is not None and option is not None:
        raise typer.BadParameter(f"two models are asked for, {name} and --model {option}; leave one out")
    return option if name is None else name


def _model(name: str | None) -> Model:
    """A model by name; a family's name means a tiny random model of it, unless something on disk is called so."""
    from caseback.model.load import load
    from caseback.model.model import Model, Source
    from caseback.zoo.tiny import TINY, tiny

    if name in TINY and not Path(name).exists():
        return Model(tiny(name), source=Source(id=f"a tiny random {name}"))
    return load(name)


def _report(report: Report) -> dict[str, Any]:
    identities = [
        asdict(i) | {"error": i.error if i.error is not None and math.isfinite(i.error) else None, "passed": i.passed}
        for i in report.identities
    ]
    return {
        "model": report.model,
        "family": report.family.name,
        "guessed": report.family.guessed,
        "passed": report.passed,
        "identities": identities,
    }


def _family(row: Family) -> dict[str, Any]:
    return {
        "family": row.name,
        "attention_sites": row.attention == "registered",
        "head_gradients": row.attention == "registered" and row.gradients,
        "circuits": row.circuits,
        "why_not": row.why_not,
    }


def _measured(name: str) -> dict[str, Any]:
    from caseback.model.check import check

    report = check(_model(name))
    errors = [identity.error for identity in report.identities if identity.error is not None]
    return {"error": max(errors), "failed": [identity.name for identity in report.failed]}


def _sites(model: Model) -> list[dict[str, Any]]:
    """One row for all layers where a site has the same shape; the axes' sizes are those of a run."""
    import torch

    from caseback.model.batch import Batch
    from caseback.model.sites import NAMES

    ids = torch.zeros((1, 3), dtype=torch.long, device=model.device)
    sites = model.sites()
    run = model.run(Batch(ids, torch.ones_like(ids, dtype=torch.bool)), read=sites)
    layers: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for site in sites:
        layers.setdefault((site.name, tuple(run[site].shape)), []).extend([] if site.layer is None else [site.layer])
    order = list(NAMES)
    rows = []
    for (name, shape), found in sorted(layers.items(), key=lambda item: (order.index(item[0][0]), item[1])):
        kind = NAMES[name]
        open_axes = ("batch", "pos", "query", "key")
        rows.append(
            {
                "site": f"{name}.*" if kind.layered else name,
                "layers": found,
                "heads": model.heads[kind.heads] if kind.heads else None,
                "axes": {a: None if a in open_axes else n for a, n in zip(kind.shape.split(), shape, strict=True)},
                "transformer_lens": kind.lens.replace("{l}", "*"),
                "about": kind.about,
            }
        )
    return rows


def _ranges(numbers: Sequence[int]) -> str:
    """0,1,2,5 → "0-2,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.0e}" if isinstance(value, float) and value else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [columns, *rows]
    )


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=1))
