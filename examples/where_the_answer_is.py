"""Where in the stream is the answer? Patch one token of one layer at a time from another prompt.

Darker = more of the difference between the two names is gone.

python examples/where_the_answer_is.py [EVERY]      every EVERY-th layer (default 5)
"""

from __future__ import annotations

import sys

import caseback as cb

CLEAN = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Anne and Paul went to the store, Luke gave a drink to"
SHADES = " ░▒▓█"


def main(every: str = "5") -> None:
    model = cb.load()
    clean, other = model.encode([CLEAN]), model.encode([OTHER])
    mary, john = (model.tokens(name)[0] for name in (" Mary", " John"))
    layers = range(0, model.n_layers, int(every))
    sites = [[f"resid_post.{layer}@{place}" for place in range(clean.ids.shape[1])] for layer in layers]
    source = model.run(other, read=[site for row in sites for site in row])

    logits = model.sweep(clean, [[], *([source.patch(site)] for row in sites for site in row)])
    gaps = (logits[:, 0, mary] - logits[:, 0, john]).tolist()
    whole, patched = gaps[0], iter(gaps[1:])
    words = [model.tokenizer.decode([token]).strip() for token in clean.ids[0].tolist()]
    for layer, row in zip(layers, sites):
        lost = [min(max(1 - next(patched) / whole, 0), 1) for _ in row]
        print(f"{layer:5}  " + " ".join(SHADES[round(4 * x)] * len(word) for x, word in zip(lost, words)))
    print("       " + " ".join(words))


if __name__ == "__main__":
    main(*sys.argv[1:])
