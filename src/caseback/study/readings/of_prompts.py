"""Readings of one prompt: what every layer would say (lens), what a relation's operator reads everywhere (attribute
lens)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from caseback.core.errors import ReadingError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_file, sha256_json
from caseback.core.stages import Checkpoint, Stages
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.reading.lens import logit_lens
from caseback.reading.tuned import load_tuned, tuned_lens
from caseback.relations.attribute import attribute_lens
from caseback.relations.library import resolve
from caseback.relations.prompt import first_token
from caseback.study.finding import Finding, Looking, LookingConfig, heat, sheet
from caseback.study.judged import UsesConfig, judged
from caseback.study.resume import RunFolder
from caseback.tasks.schema import encodable

__all__ = [
    "ATTRIBUTE",
    "LENS",
    "AttributeConfig",
    "LensConfig",
    "PromptConfig",
    "attribute",
    "lens",
    "numbered",
    "texts",
]

LENSES = ("resid_post", "resid_pre", "resid_mid", "attn_out", "mlp_out")
LONGEST = 400
"""Tokens of a prompt at most: a page shows every one."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig(LookingConfig):
    """A prompt that is looked at."""

    prompt: str

    def look(self) -> None:
        if not self.prompt:
            raise ReadingError("the prompt is empty; give some text")
        super().look()

    @property
    def label(self) -> str:
        short = " ".join(self.prompt.split())
        return short if len(short) <= 40 else short[:39] + "…"

    def encode(self, model: Model) -> tuple[Batch, list[str]]:
        """The prompt as a batch of one row, and its tokens as text. Raises ReadingError for one that is too long or
        holds what is no character."""
        if not encodable(self.prompt):
            raise ReadingError("the prompt holds bytes that are no UTF-8; give it as text")
        batch = model.encode([self.prompt])
        if batch.ids.shape[1] > LONGEST:
            raise ReadingError(
                f"the prompt has {batch.ids.shape[1]} tokens; a page shows at most {LONGEST}: shorten it"
            )
        return batch, texts(model, batch.ids[0].tolist())


def texts(model: Model, ids: list[int]) -> list[str]:
    """Tokens as text, a space shown as ·."""
    return [model.tokenizer.decode([i]).replace(" ", "·") for i in ids]


def numbered(tokens: list[str]) -> list[str]:
    return [f"{i} {token}" for i, token in enumerate(tokens)]


# --- lens -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LensConfig(PromptConfig):
    """A lens on a prompt."""

    site: str = "resid_post"
    """resid_post, resid_pre, resid_mid, attn_out or mlp_out."""
    answers: tuple[str, ...] = ()
    """Words whose first tokens are followed, as they stand after a space."""
    tuned: str | None = None
    """The file of a tuned lens; None: the logit lens."""

    def data(self) -> str | None:
        """SHA-256 of the translators."""
        return sha256_file(self.tuned) if self.tuned else None


def lens(config: LensConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """What every layer says at every token."""
    batch, words = config.encode(model)
    if config.site not in LENSES:
        raise ReadingError(f"a lens reads the stream, not {config.site!r}; it reads: {', '.join(LENSES)}")
    answers = [first_token(model, word.strip()) for word in config.answers]
    if config.tuned is not None and config.site != "resid_post":
        raise ReadingError("a tuned lens reads resid_post, what its translators were trained on")

    def looked() -> Checkpoint:
        if config.tuned is not None:
            found = tuned_lens(model, batch, load_tuned(config.tuned, model), answers=answers)
        else:
            sites = ("resid_pre.0", config.site) if config.site == "resid_post" else (config.site,)
            found = logit_lens(model, batch, sites=sites, answers=answers, progress=progress)
        arrays = {name: getattr(found, name)[:, 0].cpu().numpy() for name in ("top_ids", "top_probs", "entropy", "kl")}
        arrays |= {name: getattr(found, name)[:, 0].cpu().numpy() for name in ("answer_probs", "answer_ranks")}
        return Checkpoint(arrays, {"sites": found.sites})

    saved = stages.stage("lens", looked)
    a, sites = saved.arrays, saved.data["sites"]
    tops = [texts(model, row.tolist()) for row in a["top_ids"][:, :, 0]]
    rows = ("site", list(reversed(sites)))
    after = int(len(sites) > 1 and sites[0] == "resid_pre.0")  # at the embedding KL is so large that it hides the rest
    behind = ("site", list(reversed(sites[after:])))
    columns = ("token", numbered(words))
    said, final = texts(model, a["top_ids"][:, -1, 0].tolist()), int(a["top_ids"][-1, -1, 0])
    same = a["top_ids"][:, -1, 0] == final
    first = len(same) - int(np.argmin(same[::-1])) if not same.all() else 0
    claim = (
        f"After {words[-1]!r} {sites[-1]} reads {said[-1]!r} ({a['top_probs'][-1, -1, 0]:.0%}); the lens says so from "
        f"{sites[first] if first < len(sites) else sites[-1]} on."
    )
    sections: list[dict[str, Any]] = [
        {
            "title": "What each layer says next",
            "text": "The likeliest next token of every site at every token; the colour is its probability.",
            "heat": heat(columns, rows, a["top_probs"][::-1, :, 0], format="percent", texts=tops[::-1]),
        },
        {
            "title": "How far from the output",
            "text": "KL(output ‖ lens) in nats at every token; 0 where the lens says what the model says. The table is of the "
            "last token.",
            "detail": True,
            "heat": heat(columns, behind, a["kl"][after:][::-1], format="number"),
            "table": sheet(
                "text site, text says, percent probability, number entropy (nats), number KL to the output (nats)",
                [
                    [site, said[i], float(a["top_probs"][i, -1, 0]), float(a["entropy"][i, -1]), float(a["kl"][i, -1])]
                    for i, site in enumerate(sites)
                ],
            ),
        },
        {
            "title": "How sure",
            "text": f"Entropy in nats; ln of the vocabulary is {np.log(model.d_vocab):.1f}.",
            "detail": True,
            "heat": heat(columns, rows, a["entropy"][::-1], format="number"),
        },
    ]
    for i, word in enumerate(config.answers):
        ranks = [[str(int(r)) for r in row] for row in a["answer_ranks"][::-1, :, i]]
        sections.append(
            {
                "title": f"Rank of {texts(model, [answers[i]])[0]!r}",
                "text": f"The first token of {word!r}: colour its probability, text its rank (0: nothing is likelier).",
                "heat": heat(columns, rows, a["answer_probs"][::-1, :, i], format="percent", texts=ranks),
            }
        )
    notes = ["The lens reads a site by the model's own final norm and unembedding: what it shows need not be used so."]
    if config.tuned:
        notes = ["Translators were trained to predict the model's output; what they read need not be used so."]
    table: dict[str, Any] = {
        "prompt": config.prompt,
        "sites": sites,
        "tokens": words,
        "top": tops,
        "top_probability": a["top_probs"][:, :, 0].tolist(),
        "entropy": a["entropy"].tolist(),
        "kl": a["kl"].tolist(),
        "answers": list(config.answers),
        "answer_probability": a["answer_probs"].tolist(),
        "answer_rank": a["answer_ranks"].tolist(),
    }
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=1)


# --- attribute lens ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AttributeConfig(PromptConfig, UsesConfig):
    """A relation's operator on a prompt."""

    relation: str
    """A library relation's name, or a file."""
    objects: tuple[str, ...] = ()
    """Objects whose first tokens are followed."""

    @property
    def relations_used(self) -> tuple[str, ...]:
        return (self.relation,)

    def check(self, model: Model) -> None:
        self.encode(model)

    def encode(self, model: Model) -> tuple[Batch, list[str]]:
        """As every prompt; also raises RelationError for an object that has no token."""
        for word in self.objects:
            first_token(model, word)
        return super().encode(model)

    def data(self) -> str:
        """SHA-256 of the relation."""
        return sha256_json(asdict(resolve(self.relation)))


def attribute(config: AttributeConfig, model: Model, run: RunFolder, progress: Progress) -> Finding:
    """What the operator of a relation says in every state of the prompt."""
    batch, words = config.encode(model)
    (source,) = judged(config, run, model, progress)
    layer, beta = int(source.chosen["layer"]), float(source.chosen["beta"])

    def looked() -> Checkpoint:
        operator = source.operator(model)
        found = attribute_lens(
            model, operator.W, operator.b, batch, beta=beta, objects=config.objects or None, progress=progress
        )
        names = ("top_ids", "top_probs", "object_probs", "object_ranks")
        return Checkpoint({name: getattr(found, name)[:, 0].cpu().numpy() for name in names}, {"layers": found.layers})

    saved = run.stage("lens", looked)
    a, layers = saved.arrays, saved.data["layers"]
    tops = [texts(model, row.tolist()) for row in a["top_ids"][:, :, 0]]
    rows, columns = ("layer", [str(layer) for layer in reversed(layers)]), ("token", numbered(words))
    own = layers.index(layer)
    probs = a["top_probs"][own, :, 0]
    best = int(probs[1:].argmax()) + 1 if len(probs) > 1 else 0
    claim = (
        f"The operator of {resolve(config.relation).name!r}, read at its own layer {layer}, is "
        f"surest (the first token aside) at {words[best]!r}, where it says {tops[own][best]!r} ({probs[best]:.0%})."
    )
    sections: list[dict[str, Any]] = [
        {
            "title": f"What {resolve(config.relation).name!r} reads",
            "text": f"The likeliest token of β W s + b for the state s entering every block at every token; W is of layer "
            f"{layer}, β is {beta:g}.",
            "heat": heat(columns, rows, a["top_probs"][::-1, :, 0], format="percent", texts=tops[::-1]),
            "table": sheet(
                "text token, text says, percent probability, text then",
                [
                    [word, tops[own][i], float(probs[i]), " ".join(texts(model, a["top_ids"][own, i, 1:].tolist()))]
                    for i, word in enumerate(words)
                ],
            ),
        }
    ]
    for i, word in enumerate(config.objects):
        ranks = [[str(int(r)) for r in row] for row in a["object_ranks"][::-1, :, i]]
        sections.append(
            {
                "title": f"Rank of {word!r}",
                "text": "Colour: probability of its first token; text: rank (0: nothing is likelier).",
                "heat": heat(columns, rows, a["object_probs"][::-1, :, i], format="percent", texts=ranks),
            }
        )
    table = {
        "prompt": config.prompt,
        "relation": resolve(config.relation).name,
        "layer": layer,
        "beta": beta,
        "layers": layers,
        "tokens": words,
        "top": tops,
        "top_probability": a["top_probs"][:, :, 0].tolist(),
        "objects": list(config.objects),
        "object_rank": a["object_ranks"].tolist(),
    }
    notes = [
        f"The operator is that of the run {source.run}.",
        "The operator was estimated at a subject's last token; what it says of other tokens may be its bias: compare tokens "
        "that have nothing to do with the relation.",
    ]
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=1)


LENS = Looking("lens", LensConfig, "Lens", lens)
ATTRIBUTE = Looking("attribute", AttributeConfig, "Attribute lens", attribute)
