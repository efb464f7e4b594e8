"""`python -m bench [NAME ...]`: measure, write bench/results/NAME.json, make docs/speed.md."""

from __future__ import annotations

import argparse
import importlib
import os

NAMES = {
    "scoring": "scoring all edges against 3 forwards and the products' own flops; peak memory",
    "evaluation": "one circuit evaluation against a forward",
    "growth": "time and memory against tokens, pairs and layers",
    "peers": "scoring beside circuitkit and auto-circuit, each in an environment made under build/peers",
    "reading": "a patching grid beside TransformerLens' own, in the environment of auto-circuit",
    "relations": "Jacobians of all layers against one layer by torch.autograd.functional.jacobian; peak memory",
    "sketch": "operators along 64 to 256 directions against exact ones: time, what they miss, faithfulness",
    "whole": "objects of several tokens: ways to read them, faithfulness; no time",
    "command": "`caseback circuit ioi --n 100` from start to end",
    "page": "only make docs/speed.md from the results there are",
}


def main() -> None:
    listing = "\n".join(f"  {name:11} {what}" for name, what in NAMES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Measure speed and memory.\n\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", default=["all"], metavar="NAME", help="what to measure (default: all)")
    parser.add_argument("--rounds", type=int, help="how often everything is measured by turns")
    chosen = parser.parse_args()
    names = [name for name in NAMES if name != "page"] if chosen.names == ["all"] else chosen.names
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: all, {', '.join(NAMES)}")
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in every process started from here
    for name in names:
        if name != "page":
            print(f"— {name}: {NAMES[name]}", flush=True)
            measure = importlib.import_module(f"bench.{name}").measure
            measure(**({} if chosen.rounds is None else {"rounds": chosen.rounds}))
    importlib.import_module("bench.page").make()


if __name__ == "__main__":
    main()
