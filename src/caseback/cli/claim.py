"""`caseback claim`: say what a part of a model does, test it on other data, see how the claim stands."""

from __future__ import annotations

import json
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caseback.cli.heat import safe
from caseback.cli.options import Device, Dtype, Force, Json, ModelName, Out, Twin
from caseback.cli.progress import progress
from caseback.cli.say import lines, say
from caseback.core.errors import StudyError

if TYPE_CHECKING:
    from caseback.study.claims import Claim, Standing

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Claims about parts of a model: write one down, test it, see how it stands."
)

Name = Annotated[str, typer.Argument(metavar="CLAIM", help="A claim's id, the beginning of one, or 'latest'.")]
Pairs = Annotated[
    int | None, typer.Option("--n", min=2, help="Pairs, both halves together (default: 80, or all of a file).")
]


class Says(StrEnum):
    ENOUGH = "enough"
    NEEDED = "needed"
    BOTH = "both"


ROLES = {
    Says.ENOUGH: ("sufficiency",),
    Says.NEEDED: ("necessity",),
    Says.BOTH: ("sufficiency", "necessity"),
}


@app.command("new")
def new(
    component: Annotated[
        str,
        typer.Argument(
            metavar="COMPONENT",
            help="Sites joined by '+' (z.9.6@to+mlp_out.3), direction:FILE@SITE, feature:DICTIONARY:NUMBER[@SPAN], "
            "relation:RUN[:RANK]@SPAN, circuit:RUN[:EDGES], or hypothesis:FILE (docs/scrub.md).",
        ),
    ],
    description: Annotated[str, typer.Argument(metavar="DESCRIPTION", help="What it does, in words.")],
    attends: Annotated[
        str | None,
        typer.Option(metavar="FROM:TO", help="Predict: from span FROM, the heads take most from span TO."),
    ] = None,
    active: Annotated[
        str | None,
        typer.Option(metavar="SPAN", help="Predict: the direction or feature is active at the tokens of this span."),
    ] = None,
    active_on: Annotated[
        str | None,
        typer.Option(
            metavar="WORD,WORD", help="Predict: it is active at the tokens of a text that begin one of these words."
        ),
    ] = None,
    effect: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Predict the share of the answer that goes when the component is replaced by its mean (0.1:0.4).",
        ),
    ] = None,
    says: Annotated[
        Says, typer.Option(help="enough: it brings the answer back; needed: the answer is lost without it.")
    ] = Says.BOTH,
    at_least: Annotated[
        float | None,
        typer.Option(
            help="The share of the answer it must carry for the claim to hold (default: .05, of a hypothesis .5)."
        ),
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="The run it was found in.")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK|FILE", help="The task on whose discovery half it was found.")
    ] = None,
    texts: Annotated[str | None, typer.Option(metavar="FILE", help="The .txt or .jsonl texts it was found on.")] = None,
    n: Pairs = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the task's pairs.")] = 0,
    model: ModelName = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Write a claim down before it is tested, with what its tests must show. What it was found on is never tested on."""
    from caseback.show.claims import found_words
    from caseback.study import Study, plain
    from caseback.study.claims import Claim, FoundOn, found_on_run, found_on_task, found_on_texts, least, new_claim
    from caseback.tasks.files import is_file, look

    if run and task:
        raise StudyError("a claim is found in a run or on a task; give --run or --task, not both")
    study, predicted = Study(out), _range(effect)
    record = study.find(run) if run else None
    if task:
        look(task)
        n = n if n is not None or is_file(task) else 80
    with progress() as tick:
        from caseback.model.load import load

        name = model if model or record is None else record.spec.params.get("model")
        loaded = load(name, progress=tick)
        found = FoundOn()
        if record is not None:
            found = found_on_run(record, loaded)
        elif task:
            found = found_on_task(task, loaded, n=n, seed=seed)
        if texts:
            found = found_on_texts(texts, found)
        written = new_claim(
            study,
            loaded,
            Claim(
                component=component,
                description=description,
                model={},
                load=name,
                attends=_spans(attends),
                active=active,
                active_on=tuple(active_on.split(",")) if active_on is not None else (),
                effect=predicted,
                causal=ROLES[says],
                at_least=at_least if at_least is not None else least(component),
                found_on=found,
            ),
        )
    if as_json:
        typer.echo(json.dumps({"claim": written.id, **plain(written)}))
        return
    typer.echo(f"{safe(written.component)}: {safe(written.description)}")
    typer.echo(f"found {found_words(written)}; {len(written.found_on.prompts)} prompts set aside")
    typer.echo(f"claim {written.id}")


@app.command("test")
def test(
    claim: Name,
    tests: Annotated[
        list[str] | None,
        typer.Option(
            "--test",
            metavar="NAME",
            help="predict, effect, sufficiency, necessity, scrub, minimality, specificity or adversarial; may be given again "
            "(default: all that the claim and the input allow).",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK|FILE", help="Whose held-out half to test on (default: the one it was found on)."),
    ] = None,
    n: Pairs = None,
    adversarial: Annotated[
        str | None, typer.Option(metavar="TASK|FILE", help="Other input for which the description says the same.")
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="There it says the opposite.")] = False,
    texts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The .txt or .jsonl texts on which the words it is active on are looked for."
        ),
    ] = None,
    randoms: Annotated[int, typer.Option(min=1, help="Random components to compare with.")] = 60,
    model: ModelName = None,
    twin: Twin = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the pairs and of what is drawn (default: as the claim needs).")
    ] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Test a claim on prompts it was not found on, as a run."""
    from caseback.study import Study
    from caseback.study.claims import asked, read_claim

    study = Study(out)
    found = read_claim(study, claim)
    config = asked(
        study,
        found,
        tests=tests or (),
        task=task,
        n=n,
        seed=seed,
        adversarial=adversarial,
        flips=flips,
        texts=texts,
        randoms=randoms,
        dtype=dtype,
        device=device,
        twin=twin,
        **({"model": model} if model else {}),
    )
    with progress() as tick:
        passed = {"claim": found.id, "task": task, "n": n, "seed": seed, "texts": texts}
        record = study.ask("claim-test", config, passed=passed, progress=tick, force=force)
    say(record, as_json=as_json)
    if not (twin or as_json):
        typer.echo(_standing(found, out))


@app.command("list")
def list_claims(out: Out = None, as_json: Json = False) -> None:
    """All claims of a study, with their status."""
    from caseback.study import Study
    from caseback.study.claims import claims, damaged, standings

    study = Study(out)
    found, wrong = standings(study, claims(study)), damaged(study)
    if as_json:
        notes = [{"claim": id, "status": "damaged", "note": why} for id, why in wrong.items()]
        typer.echo(json.dumps([*(_json(each) for each in found), *notes]))
        return
    if not found and not wrong:
        typer.echo(f"no claims in {study.path}; `caseback claim new` makes one")
        return
    for each in found:
        runs = {row["run"] for row in each.tests}
        said = f"{safe(each.claim.component)}: {safe(each.claim.description)}"
        typer.echo(f"{each.status:12}  {said}")
        typer.echo(f"{'':12}  {each.claim.id}, {_count(each.tests, 'test')} in {_count(runs, 'run')}")
    for why in wrong.values():
        typer.echo(f"{'damaged':12}  {safe(why)}")


@app.command("show")
def show(claim: Name, out: Out = None, as_json: Json = False) -> None:
    """How a claim stands: status, rule, every test that was run; and a page of it."""
    from caseback.show.claims import payload
    from caseback.study import Study
    from caseback.study.claims import read_claim, standing

    study = Study(out)
    found = standing(study, read_claim(study, claim))
    page = _page(study.path, found)
    if as_json:
        typer.echo(json.dumps({**_json(found), "page": str(page)}))
        return
    view = payload(found)
    typer.echo(f"{safe(view['claim'])}\n")
    if found.tests:
        for line in lines(view["sections"][0]["table"]):
            typer.echo(line)
        typer.echo("")
    for number, run, data, pairs, forwards in view["sections"][1]["table"]["rows"]:
        typer.echo(f"run {number:.0f}: {safe(run)}")
        typer.echo(f"       {safe(data)}; {f'{pairs} pairs; ' if pairs else ''}{forwards:,} prompts run")
    for note in view["notes"]:
        typer.echo(safe(note))
    typer.echo(f"page {page.resolve()}")


def _count(things: Collection[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _spans(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    source, colon, target = text.partition(":")
    if not (source and colon and target):
        raise StudyError(f"--attends is {text!r}; write two spans as FROM:TO")
    return source, target


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise StudyError(f"--effect is {text!r}; write two shares as LOW:HIGH, such as 0.1:0.4") from None
    return low, high


def _standing(claim: Claim, out: Path | None) -> str:
    from caseback.study import Study
    from caseback.study.claims import standing

    found = standing(Study(out), claim)
    return f"claim {claim.id}: {found.status} after {_count(found.tests, 'test')}"


def _json(found: Standing) -> dict[str, Any]:
    from caseback.study import plain

    return {"claim": found.claim.id, "status": found.status, **plain(found.claim), "tests": plain(found.tests)}


def _page(folder: Path, found: Standing) -> Path:
    from caseback.show.claims import payload
    from caseback.show.report import page
    from caseback.study.files import write

    path = folder / "claims" / f"{found.claim.id}.html"
    write(path, page({**payload(found), "environment": {}, "cost": {}}).encode(errors="replace"))
    return path
