"""From numbers per pair to outcomes: each test's value, what it must reach, and by how much it does.

All values are shares of something; intervals are bootstraps over pairs, Wilson's where a value is a count.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from caseback.evidence import (
    Interval,
    auroc_interval,
    difference_interval,
    mean_interval,
    proportion_interval,
    ratio_interval,
)
from caseback.study.claims.rule import Outcome

__all__ = [
    "ACTIVE",
    "KEPT",
    "WEAKER",
    "activation",
    "adversarial",
    "causal",
    "effect",
    "minimality",
    "predict",
    "scrub",
    "specificity",
]

KEPT = 0.8
"""The share of what its parts carry when nothing is exchanged that a hypothesis must keep."""
WEAKER = 0.9
"""The share of random components that a specific one is stronger than."""
ACTIVE = 0.75
"""The AUROC that an activation must reach."""


def predict(own: Bool[np.ndarray, "head example"], others: Bool[np.ndarray, "other example"], forwards: int) -> Outcome:
    """Do all heads of the component take most from the predicted span, in more prompts than not and than other heads do?"""
    hits: np.ndarray = np.asarray(own.all(axis=0))
    value = proportion_interval(int(hits.sum()), len(hits))
    beyond = difference_interval(hits.astype(float), others.mean(axis=0))
    return Outcome(
        test="predict",
        value=value,
        control=mean_interval(others.mean(axis=0)),
        over=min(_less(value, 0.5), beyond, key=lambda each: each.value),
        bar="over 50% and the control",
        forwards=forwards,
    )


def activation(
    own: Float[np.ndarray, "prompt prompt"],
    control: Float[np.ndarray, "prompt prompt"],
    said: Bool[np.ndarray, "token"],
    prompt: Int[np.ndarray, "token"],
    forwards: int,
) -> Outcome:
    """Does the activation tell the tokens it was said to be active at from the others? `own` and `control` are
    `caseback.evidence.wins`; the control is the random one that nine of ten do not exceed."""
    value = auroc_interval(own, said, prompt)
    if own.sum() in (0, said.sum() * (~said).sum()):  # all pairs out of order, or none: a bootstrap has no width
        n = len(set(prompt[said].tolist()))
        value = proportion_interval(n if own.any() else 0, n)
    beyond = auroc_interval(own - control, said, prompt)
    return Outcome(
        test="predict",
        value=value,
        control=auroc_interval(control, said, prompt),
        over=min(_less(value, ACTIVE), beyond, key=lambda each: each.value),
        bar=f"over {ACTIVE:.0%} and the control",
        forwards=forwards,
    )


def causal(
    test: str,
    own: Float[np.ndarray, "example"],
    random: Float[np.ndarray, "draw example"],
    gap: Float[np.ndarray, "example"],
    at_least: float,
    forwards: int,
) -> Outcome:
    """Sufficiency or necessity: what the component carries of the answer, beside random components of its kind."""
    mean = random.mean(axis=0)
    over = [ratio_interval(own - at_least * gap, gap), ratio_interval(own - mean, gap)]
    return Outcome(
        test=test,
        value=ratio_interval(own, gap),
        control=ratio_interval(mean, gap),
        over=min(over, key=lambda each: each.value),
        bar=f"over {at_least:.0%} and the control",
        forwards=forwards,
    )


def scrub(
    own: Float[np.ndarray, "example"],
    random: Float[np.ndarray, "draw example"],
    whole: Float[np.ndarray, "example"],
    gap: Float[np.ndarray, "example"],
    at_least: float,
    forwards: int,
) -> Outcome:
    """What is left of the answer when all is exchanged that may be: is it what the same parts carry when nothing is?"""
    mean = random.mean(axis=0)
    over = [ratio_interval(own - bar, gap) for bar in (at_least * gap, mean, KEPT * whole)]
    return Outcome(
        test="scrub",
        value=ratio_interval(own, gap),
        control=ratio_interval(mean, gap),
        over=min(over, key=lambda each: each.value),
        bar=f"over {at_least:.0%}, the control, and {KEPT:.0%} of {ratio_interval(whole, gap).value:.1%}, without exchange",
        forwards=forwards,
    )


def effect(
    own: Float[np.ndarray, "example"], gap: Float[np.ndarray, "example"], between: tuple[float, float], forwards: int
) -> Outcome:
    """Does replacing the component by its mean take away as much of the answer as was predicted?"""
    value, (low, high) = ratio_interval(own, gap), between
    inside = [min(v - low, high - v) for v in (value.value, value.low, value.high)]
    nearest = min(max((low + high) / 2, value.low), value.high)  # the value of the interval that fits best
    over = replace(value, value=inside[0], low=min(inside[1:]), high=min(nearest - low, high - nearest))
    return Outcome(test="effect", value=value, over=over, bar=f"between {low:.0%} and {high:.0%}", forwards=forwards)


def minimality(
    whole: Float[np.ndarray, "example"],
    without: Float[np.ndarray, "part example"],
    gap: Float[np.ndarray, "example"],
    at_least: float,
    forwards: int,
) -> tuple[Outcome, tuple[Interval, ...]]:
    """What is lost when each part is left out of what is put in: the outcome of the part that adds least, and all parts."""
    share = at_least / len(without)
    parts = tuple(ratio_interval(whole - part, gap) for part in without)
    least = min(range(len(parts)), key=lambda i: parts[i].value)
    over = ratio_interval(whole - without[least] - share * gap, gap)
    bar = f"over {share:.1%}"
    return Outcome(test="minimality", value=parts[least], over=over, bar=bar, forwards=forwards), parts


def specificity(
    own: Float[np.ndarray, "example"],
    random: Float[np.ndarray, "draw example"],
    gap: Float[np.ndarray, "example"],
    forwards: int,
    *,
    all_others: bool,
) -> Outcome:
    """The share of random components that are weaker, by the size of their mean effect; exact where they are all there
    are."""
    strength = np.abs(random.mean(axis=1))
    mine = own.mean() * (1.0 if gap.mean() >= 0 else -1.0)
    weaker, n = int((strength < mine).sum()), len(strength)
    value = proportion_interval(weaker, n)
    if all_others:
        value = replace(value, low=value.value, high=value.value, method="exact")
    return Outcome(
        test="specificity",
        value=value,
        over=_less(value, WEAKER),
        bar=f"over {WEAKER:.0%}",
        forwards=forwards,
    )


def adversarial(
    own: Float[np.ndarray, "example"],
    gap: Float[np.ndarray, "example"],
    at_least: float,
    forwards: int,
    *,
    flips: bool,
) -> Outcome:
    """On other input, does the component carry as much of the answer as before, or as much against it?"""
    sign = -1.0 if flips else 1.0
    return Outcome(
        test="adversarial",
        value=ratio_interval(own, gap),
        over=ratio_interval(sign * own - at_least * gap, gap),
        bar=f"under -{at_least:.0%}" if flips else f"over {at_least:.0%}",
        forwards=forwards,
    )


def _less(value: Interval, bar: float) -> Interval:
    return replace(value, value=value.value - bar, low=value.low - bar, high=value.high - bar)
