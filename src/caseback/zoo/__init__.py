"""Models with known answers: hand-made ones whose circuit is known edge by edge, and tiny random ones of every family (`tiny`)."""

from __future__ import annotations

from collections.abc import Callable

from caseback.zoo.copy_circuit import copying
from caseback.zoo.handmade import ZooModel
from caseback.zoo.induction_pair import induction
from caseback.zoo.planted_edges import planted

__all__ = ["ZOO", "ZooModel", "copying", "induction", "planted"]

ZOO: dict[str, Callable[..., ZooModel]] = {"copying": copying, "induction": induction, "planted": planted}
"""Name → maker of every model with a known circuit; takes `n` pairs and `seed`."""
