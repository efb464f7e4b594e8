"""Claims: decompose, describe, validate, as a ledger.

    claim = new_claim(study, model, Claim(component="z.23.0@to", description="...", model={}, found_on=found_on_task("ioi", model)))
    spec, have = CLAIM_TEST.prepare(asked(study, claim), study, passed={}, progress=silent, model=model)
    study.run(spec, have=have)
    standing(study, claim).status

A claim is written down before it is tested, with what its tests must show; tests are runs; the status follows from them by the
rule in `rule`.
"""

from __future__ import annotations

from caseback.study.claims.component import Component
from caseback.study.claims.kinds import read_component
from caseback.study.claims.ledger import (
    Claim,
    FoundOn,
    Standing,
    claim_ids,
    claims,
    damaged,
    found_on_run,
    found_on_task,
    found_on_texts,
    least,
    new_claim,
    read_claim,
    standing,
    standings,
)
from caseback.study.claims.method import CLAIM_TEST, ClaimTestConfig, asked
from caseback.study.claims.rule import CAUSAL, RULE, TESTS, Outcome, Status, Verdict, status_of, verdict_of

__all__ = [
    "CAUSAL",
    "CLAIM_TEST",
    "RULE",
    "TESTS",
    "Claim",
    "ClaimTestConfig",
    "Component",
    "FoundOn",
    "Outcome",
    "Standing",
    "Status",
    "Verdict",
    "asked",
    "claim_ids",
    "claims",
    "damaged",
    "found_on_run",
    "found_on_task",
    "found_on_texts",
    "least",
    "new_claim",
    "read_claim",
    "read_component",
    "standing",
    "standings",
    "status_of",
    "verdict_of",
]
