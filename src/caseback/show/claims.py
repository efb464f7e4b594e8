"""What the pages are told about claims, as plain data: the ledger, one claim, and the payload of its static page.

Nothing is kept here. A claim is a file that never changes and its tests are runs, so what is told is read from both every
time it is asked for, and says what `caseback claim show` says.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from caseback.core.errors import StudyError
from caseback.study import Record, Study, plain
from caseback.study.claims import CAUSAL, RULE, Claim, Standing, claim_ids, claims, read_claim, standing, standings
from caseback.study.claims.ledger import METHOD
from caseback.study.claims.method import MEANING
from caseback.study.finding import sheet

__all__ = ["NoSuchClaim", "claim_of", "found_words", "list_claims", "payload", "said_by_claims"]


class NoSuchClaim(StudyError):
    """A claim that is not in the study."""


def list_claims(study: Study) -> dict[str, Any]:
    """Every claim, newest first; one whose file is damaged says so in its `note`."""
    found, damaged = [], []
    for name in claim_ids(study):
        try:
            found.append(read_claim(study, name))
        except StudyError as error:
            damaged.append({"id": name, "status": "damaged", "note": str(error)})
    found.sort(key=lambda claim: (claim.created, claim.id), reverse=True)
    return {"study": str(study.path), "claims": [*map(_row, standings(study, found)), *damaged]}


def said_by_claims(study: Study, names: Iterable[str] | None = None) -> dict[str, str]:
    """Of these claims, or of all the newest first, the component and what is said of it; of those that can be read."""
    found: list[Claim] = []
    if names is None:
        found += reversed(claims(study))
    for name in set(names or ()) & set(claim_ids(study)):
        with suppress(StudyError):
            found.append(read_claim(study, name))
    return {claim.id: f"{claim.component}: {claim.description}" for claim in found}


def _row(found: Standing) -> dict[str, Any]:
    claim = found.claim
    return {
        "id": claim.id,
        "status": found.status,
        "component": claim.component,
        "description": claim.description,
        "model": claim.model["id"],
        "created": claim.created,
        "tests": len(found.tests),
        "runs": len({row["run"] for row in found.tests}),
        "note": "",
    }


def claim_of(study: Study, name: str) -> dict[str, Any]:
    """All that is known of the claim of this very id. Raises NoSuchClaim where there is none, StudyError where its file is
    damaged."""
    if name not in claim_ids(study):
        raise NoSuchClaim(f"there is no claim {name!r} in {study.path}")
    found = standing(study, read_claim(study, name))
    claim = found.claim
    told = {
        **_row(found),
        "because": _because(found),
        "rule": list(RULE.items()),
        "revision": claim.model.get("revision"),
        "found": found_words(claim),
        "found_in": claim.found_on.run,
        "prompts": len(claim.found_on.prompts),
        "predictions": [{"text": text, "tests": tests} for text, tests in _predictions(claim)],
        "meanings": MEANING,
        "tests": found.tests,
        "runs": _runs(study, found),
        "uncounted": _uncounted(study, found),
        "code": _code(study, claim),
    }
    plainly: dict[str, Any] = plain(told)
    return plainly


def _because(found: Standing) -> str:
    """Which tests the rule came to its status by."""
    by = {
        verdict: [row["test"] for row in found.tests if row["verdict"] == verdict]
        for verdict in ("supports", "refutes")
    }
    supporting = _joined(by["supports"])
    if found.status == "hypothesis":
        return "No test of it is finished."
    if found.status == "refuted":
        return f"Refuted by {_joined(by['refutes'])}" + (f", though supported by {supporting}." if supporting else ".")
    if found.status == "supported":
        return f"Supported by {supporting}; refuted by none."
    missing = [] if set(CAUSAL) & set(by["supports"]) else [_joined(found.claim.causal, "or")]
    missing += [] if "specificity" in by["supports"] else ["specificity"]
    return f"No test refutes it; support by {_joined(missing)} is missing."


def _joined(words: Any, last: str = "and") -> str:
    """Each once: "a, b and c"."""
    *some, end = [*dict.fromkeys(words)] or [""]
    return f"{', '.join(some)} {last} {end}" if some else str(end)


def _predictions(claim: Claim) -> list[tuple[str, tuple[str, ...]]]:
    """What a claim said before it was tested, each with the tests that decide it."""
    found = [(f"it carries at least {claim.at_least:.0%} of the answer ({' and '.join(claim.causal)})", claim.causal)]
    if claim.attends:
        found.append((f"from {claim.attends[0]!r} it takes most from {claim.attends[1]!r}", ("predict",)))
    if claim.active:
        found.append((f"it is active at the tokens of {claim.active!r}", ("predict",)))
    if claim.active_on:
        words = " or ".join(map(repr, claim.active_on))
        found.append((f"it is active at the tokens that begin {words}", ("predict",)))
    if claim.effect:
        found.append((f"its mean in its place takes {claim.effect[0]:.0%} to {claim.effect[1]:.0%}", ("effect",)))
    return found


def _runs(study: Study, found: Standing) -> list[dict[str, Any]]:
    """The runs that count, oldest first, each with what it was tested on and what that took."""
    told = []
    for run in dict.fromkeys(str(row["run"]) for row in found.tests):
        record = study.find(run)
        mine = [row for row in found.tests if row["run"] == run]
        first = mine[0]  # an adversarial test has other pairs, and comes last
        told.append(
            {
                "id": run,
                "created": record.created,
                "seconds": record.cost.seconds,
                "split": first["split"],
                "pairs": first["pairs"],
                "forwards": sum(row["forwards"] for row in mine),
            }
        )
    return told


def _uncounted(study: Study, found: Standing) -> list[dict[str, Any]]:
    """Runs that test the claim and do not count: computed now, broken off, or of the random twin."""
    counted = {row["run"] for row in found.tests}
    told = []
    for row in study.runs():
        if row.method != METHOD or row.task != found.claim.id or row.id in counted:
            continue
        twin = bool(Record.open(study.path / "runs" / row.id).spec.params.get("twin"))
        told.append({"id": row.id, "status": row.status, "created": row.created, "twin": twin})
    return told


def _code(study: Study, claim: Claim) -> dict[str, str]:
    """How to reopen a claim, and to test it: in Python, and in a shell."""
    place = str(study.path.resolve())
    return {
        "python": "from caseback.study import Study\nfrom caseback.study.claims import read_claim, standing\n\n"
        f"study = Study({place!r})\nfound = standing(study, read_claim(study, {claim.id!r}))\n"
        "found.status          # by the rule\nfound.tests           # a row for each test\n"
        "found.claim           # what was written down\n",
        "shell": "".join(
            f"caseback claim {verb} {shlex.quote(claim.id)} --study {shlex.quote(place)}\n" for verb in ("show", "test")
        ),
    }


def found_words(claim: Claim) -> str:
    """What a claim was found on, in words that follow "found"."""
    found = claim.found_on
    if found.run:
        return f"in run {found.run}" + (f" and on the texts of {found.texts}" if found.texts else "")
    places = [f"on the discovery half of {found.task}, seed {found.seed}"] if found.task else []
    places += [f"on the texts of {found.texts}"] if found.texts else []
    return " and ".join(places) or "without data"


def payload(found: Standing) -> dict[str, Any]:
    """The payload of a claim's static page (`caseback.show.experiments`)."""
    claim = found.claim
    runs = {run: number for number, run in enumerate(dict.fromkeys(str(row["run"]) for row in found.tests), start=1)}
    rows, took = [], []
    for row in found.tests:
        control = [row["control"], row["control_low"], row["control_high"]] if row["control"] is not None else None
        over = [row["over"], row["over_low"], row["over_high"]]
        value = [row["value"], row["low"], row["high"]]
        rows.append([row["test"], value, control, row["bar"], over, row["verdict"], runs[row["run"]]])
    for run, number in runs.items():
        mine = [row for row in found.tests if row["run"] == run]
        data = "; ".join(dict.fromkeys(row["split"] for row in mine))
        took.append([number, run, data, mine[0]["pairs"], sum(row["forwards"] for row in mine)])
    columns = "text test, percent value, percent control, text must reach, percent margin, text verdict, count run"
    said = f"\N{LEFT DOUBLE QUOTATION MARK}{claim.description}\N{RIGHT DOUBLE QUOTATION MARK}"
    notes = [
        f"Found {found_words(claim)}; none of its {len(claim.found_on.prompts)} prompts is tested on.",
        f"Predicted: {'; '.join(text for text, _ in _predictions(claim))}.",
        f"Rule: {'; '.join(f'{status} {when}' for status, when in RULE.items())}.",
    ]
    return {
        "kind": "experiment",
        "version": 1,
        "title": f"Claim: {claim.component}",
        "claim": f"{found.status.upper()}. {claim.component}: {said}",
        "model": {"id": claim.model["id"], "revision": claim.model.get("revision")},
        "task": {
            "name": claim.found_on.task or "",
            "description": "",
            "metric": "",
            "measured": max((row["pairs"] for row in found.tests), default=0),
        },
        "sections": [
            {
                "title": "Tests",
                "text": "A value must reach the bar, on prompts the claim was not found on; the margin says by how much it does.",
                "table": sheet(columns, rows),
            },
            {
                "title": "Runs",
                "text": "Where the tests were run. What two tests of a run share is counted for both.",
                "table": sheet("count number, text run, text data, count pairs, count prompts run", took),
            },
        ],
        "settings": {"claim": claim.id, "created": claim.created, "model_files": dict(claim.model["files"])},
        "notes": notes,
    }
