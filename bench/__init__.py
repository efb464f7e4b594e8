"""How fast caseback is, measured beside what it has to beat.

A time says little on a machine that others use too, so nothing here reports one alone. The unit is F, a plain forward
of the same batch with last-token logits; peers score the same prompts. What is compared runs by turns in one run, on
one thread, in CPU seconds of the process; a figure is the median over rounds of the ratio *within* a round, with the
smallest and the largest beside it. Nothing is asserted: `python -m bench` measures, writes `bench/results/*.json` and
makes `docs/speed.md` from them.
"""
