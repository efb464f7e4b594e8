"""The rule by which tests decide a claim. Nobody sets a status by hand.

A test measures a value and says what it must reach: a threshold the claim named beforehand, and, where there is one, what
a control scores on the same examples. Of the two the harder one counts. `over` is the value less that bar, with its
interval; its verdict is

    supports     the whole interval lies above 0
    refutes      the whole interval lies below 0
    undecided    0 lies within

and the claim's status, over all its tests,

    hypothesis     no test has been run
    refuted        some test refutes
    supported      none refutes, sufficiency, necessity or scrub supports, and specificity supports
    inconclusive   anything else

A test once run counts for ever: running one again on other pairs can only add evidence. A claim that just reaches its bar
is refuted by chance in about 1 test of 40 (one end of a 95 % interval).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from caseback.evidence import Interval

__all__ = ["CAUSAL", "RULE", "TESTS", "Outcome", "Status", "Verdict", "status_of", "verdict_of"]

Verdict = Literal["supports", "refutes", "undecided"]
Status = Literal["hypothesis", "supported", "refuted", "inconclusive"]

TESTS = ("predict", "effect", "sufficiency", "necessity", "scrub", "minimality", "specificity", "adversarial")
"""In the order they are run and shown."""
CAUSAL = ("sufficiency", "necessity", "scrub")
"""One of which must support a claim: the first two of what is put from run to run, the last of a hypothesis."""
RULE: dict[Status, str] = {
    "refuted": "if any test refutes it (its margin's whole interval lies below 0)",
    "supported": "if none does, sufficiency, necessity or scrub supports it and specificity supports it (whole interval above 0)",
    "inconclusive": "otherwise",
    "hypothesis": "before any test",
}
"""What `status_of` does, in words."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one test found."""

    test: str
    value: Interval
    over: Interval
    """Value less what it must reach."""
    bar: str
    """What it must reach, in words."""
    control: Interval | None = None
    """What the control scores on the same examples; None where the test has a threshold alone."""
    forwards: int = 0
    """Prompts run for it, the control's among them."""

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.over.low, self.over.high)


def verdict_of(low: float, high: float) -> Verdict:
    """Of the interval of a value less what it must reach."""
    return "supports" if low > 0 else "refutes" if high < 0 else "undecided"


def status_of(verdicts: Iterable[tuple[str, str]]) -> Status:
    """From (test, verdict) of every test that was run.

    >>> status_of([("necessity", "supports"), ("specificity", "supports")])
    'supported'
    """
    found = list(verdicts)
    if not found:
        return "hypothesis"
    if any(verdict == "refutes" for _, verdict in found):
        return "refuted"
    supporting = {test for test, verdict in found if verdict == "supports"}
    return "supported" if supporting & set(CAUSAL) and "specificity" in supporting else "inconclusive"
