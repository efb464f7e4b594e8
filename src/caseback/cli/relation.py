"""`caseback relation`: linear relation decoding, as runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from caseback.cli import relation_uses
from caseback.cli.options import Device, Dtype, Force, Json, ModelName, Out, Seed, Twin
from caseback.cli.progress import progress
from caseback.cli.say import say
from caseback.core.errors import RelationError

if TYPE_CHECKING:
    from caseback.study import Record
    from caseback.study.relation import Means

__all__ = ["app"]


class _NameOrCommand(TyperGroup):
    """A first word that is no command is a relation to judge; one that is called like a command is named by its file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["judge", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_NameOrCommand,
    no_args_is_help=True,
    help="Relations as linear maps: `caseback relation NAME|FILE`, `caseback relation list`.",
)
for use in (relation_uses.cross, relation_uses.concepts, relation_uses.distract, relation_uses.isolate):
    app.command()(use)


@app.command("list")
def list_relations(
    known: Annotated[
        bool, typer.Option("--known", help="Also ask the model how many samples it knows (a minute).")
    ] = False,
    model: ModelName = None,
    as_json: Json = False,
) -> None:
    """The relations that come with caseback: how many samples, where they are from, how many the model knows."""
    from caseback.relations import library

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "category": library.get(name).category,
            "samples": len(library.get(name).samples),
            "source": library.source(name),
        }
        for name in library.names()
    ]
    if known or model is not None:
        from caseback.model.load import load
        from caseback.relations.judge import n_known

        with progress() as tick:
            loaded = load(model, progress=tick)
            for i, row in enumerate(rows):
                row["known"], row["asked"] = n_known(loaded, library.get(row["name"]))
                tick("relations", i + 1, len(rows))
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        knows = f"  knows {row['known']:>3} of {row['asked']:>3}" if "known" in row else ""
        typer.echo(f"{row['name']:{width}}  {row['category']:11}  {row['samples']:>3} samples{knows}  {row['source']}")


@app.command("judge")
def judge(
    relation: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="A relation (`caseback relation list`) or a file.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="All relations of a category: factual, commonsense, linguistic or bias.")
    ] = None,
    model: ModelName = None,
    train: Annotated[int, typer.Option(min=2, help="Training samples, which are also the few-shot examples.")] = 5,
    zero_shot: Annotated[bool, typer.Option("--zero-shot", help="Ask without examples.")] = False,
    template: Annotated[int, typer.Option(min=0, help="Which of the relation's templates.")] = 0,
    layers: Annotated[str, typer.Option(help="Layers that are edited: even or all (all are decoded).")] = "even",
    pairs: Annotated[int, typer.Option(min=2, help="Known samples at most that are edited.")] = 24,
    splits: Annotated[int, typer.Option(min=1, help="Draws of training samples.")] = 1,
    objects: Annotated[
        str, typer.Option(help="What an answer is: first (its first token) or whole (one of the relation's objects).")
    ] = "first",
    sketch: Annotated[
        int | None,
        typer.Option(metavar="K", help="Estimate the map along K directions only, for wide models (default: exactly)."),
    ] = None,
    twin: Twin = False,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Estimate a relation's linear map, and judge it: faithfulness and causality, held out, beside their controls."""
    from caseback.relations import library

    if (relation is None) == (category is None):
        raise RelationError("give one relation, or --category with a category's name")
    if relation is not None:
        library.resolve(relation)  # before torch is imported
    from caseback.relations.judge import JudgeConfig
    from caseback.study import Study, plain
    from caseback.study.relation import RelationConfig, means

    if category is not None:
        categories = sorted({library.get(name).category for name in library.names()})
        if category not in categories:
            raise RelationError(f"there is no category {category!r}; there are: {', '.join(categories)}")
    names = [relation] if relation is not None else [n for n in library.names() if library.get(n).category == category]
    how = JudgeConfig(
        train=train,
        zero_shot=zero_shot,
        template=template,
        layers=layers,
        pairs=pairs,
        objects=objects,
        sketch=sketch,
    )
    records: list[Record] = []
    left_out: dict[str, str] = {}
    loaded = None
    with progress() as tick:
        for name in names:
            config = RelationConfig(
                relation=name, model=model, seed=seed, dtype=dtype, device=device, twin=twin, splits=splits, judge=how
            )
            loaded = loaded or config.load_model(tick)
            passed = {"relation": name}
            try:
                records.append(
                    Study(out).ask("relation", config, passed=passed, progress=tick, force=force, model=loaded)
                )
            except RelationError as error:
                if relation is not None:
                    raise
                left_out[name] = str(error)
    if not records:
        raise RelationError(
            f"no relation of the category {category!r} could be judged: {next(iter(left_out.values()))}"
        )
    if relation is not None:
        say(records[0], as_json=as_json)
        return
    tables, found = [record.table for record in records], means(records)
    if as_json:
        each = {key: [one.value, one.low, one.high] for key, one in found.intervals.items()}
        told = {"relations": tables, "left_out": left_out, "means": each, "intervals_over": found.over}
        typer.echo(json.dumps(plain(told)))  # an interval of one relation has no ends
    else:
        _category(tables, found, left_out)


def _category(tables: list[dict[str, Any]], found: Means, left_out: dict[str, str]) -> None:
    """A line a relation, and the category's means."""
    width = max(len(table["relation"]) for table in tables)
    typer.echo(f"{'relation':{width}}  known  layer     β  strict      95 %      prefix  best control        causality")
    for table in tables:
        controls = {k: v for k, v in table["controls"].items() if not k.startswith("causal")}
        best = max(controls, key=lambda name: controls[name])
        edited = "–" if table["causality"] is None else f"{table['causality']:.0%}"
        typer.echo(
            f"{table['relation']:{width}}  {table['n_known']:>5}  {table['layer']:>5}  {table['beta']:>4g}  "
            f"{table['faithful_strict']:>5.0%}  [{table['low']:>4.0%}, {table['high']:>4.0%}]  {table['faithful_prefix']:>5.0%}  "
            f"{controls[best]:>4.0%} {best:13}  {edited:>5}"
        )
    typer.echo("")
    for key, interval in found.intervals.items():
        typer.echo(f"{key}: {interval}, mean over {interval.n} relations; 95 % over {found.over}")
    for name, why in left_out.items():
        typer.echo(f"left out: {name} ({why})")
