"""What a claim may be tested on: pairs and texts that it was not found on."""

from __future__ import annotations

import re

from caseback.core.errors import StudyError
from caseback.model.model import Model
from caseback.study.claims.component import Component
from caseback.study.claims.ledger import Claim, hashes, prompt_hash
from caseback.study.readings.of_tuned import read_texts
from caseback.tasks.files import read_task
from caseback.tasks.task import Task

__all__ = ["unseen", "unseen_texts"]


def unseen_texts(file: str, claim: Claim) -> list[str]:
    """The texts of a file, none of which the claim was found on."""
    texts = read_texts(file)
    if seen := {prompt_hash(text) for text in texts} & set(claim.found_on.prompts):
        raise StudyError(
            f"{len(seen)} texts of {file} are among those the claim was found on, and a claim is not tested on what it was found "
            "on; name others with --texts"
        )
    return texts


def unseen(name: str, claim: Claim, component: Component, model: Model, *, n: int | None, seed: int) -> Task:
    """The held-out half of a task, none of whose prompts the claim was found on; pairs that name a subject that a relation's
    operator was estimated on are left out."""
    task = read_task(name, n=n, seed=seed, model=model).held_out
    if seen := set(hashes(task)) & set(claim.found_on.prompts):
        raise StudyError(
            f"{len(seen)} prompts of {name!r} (held-out half, seed {seed}) are among those the claim was found on, and a "
            "claim is not tested on what it was found on; take others with --seed or --task"
        )
    if not component.subjects:
        return task
    named = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, component.subjects))})(?!\w)")
    kept = [i for i, pair in enumerate(task.pairs) if not named.search(f"{pair.clean}\n{pair.counterfactual}")]
    if not kept:
        raise StudyError(
            f"every held-out pair of {name!r} names a subject the operator was estimated on; take more pairs with --n, or others"
        )
    return task[kept]
