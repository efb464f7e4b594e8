"""Does the method find what is known to be there? A model written by hand, its circuit, and the page.

python examples/known_circuit.py [copying|induction|planted] [PAGE.html]
"""

from __future__ import annotations

import sys
from pathlib import Path

import caseback as cb
from caseback.zoo import ZOO


def main(name: str = "induction", page: str = "known_circuit.html") -> None:
    known = ZOO[name]()
    found = cb.circuits.discover(known.model, known.task, cb.circuits.DiscoverConfig(points=8))
    circuit = set(found.ranking.circuit(len(known.truth)).names())
    print(f"{known.description}: {len(circuit & known.truth)} of {len(known.truth)} edges found")
    for size, mine, random in zip(found.sizes, found.circuit.faithfulness(), found.random_mean().faithfulness()):
        print(f"{size:5} edges  {mine.value:5.2f}  random {random.value:5.2f}")
    Path(page).write_text(found._repr_html_(), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
