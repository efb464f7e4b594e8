"""A tuned lens as a run: texts, translators of every layer, and what they are worth on texts that trained nothing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from caseback.core.errors import ReadingError, StudyError
from caseback.core.progress import Progress
from caseback.core.provenance import sha256_file
from caseback.core.stages import Stages
from caseback.evidence import Interval, mean_intervals
from caseback.model.batch import Batch
from caseback.model.model import Model
from caseback.reading.samples import sample_texts
from caseback.reading.tuned import TunedConfig, pack, train_tuned
from caseback.study.finding import Finding, Looking, LookingConfig, cell, line, sheet
from caseback.study.store import Study
from caseback.tasks.schema import encodable

__all__ = ["TUNE", "TuneConfig", "find_translators", "read_texts", "tune"]

STAGE = "translators"
"""The stage of a run that `caseback.reading.tuned.load_tuned` reads as a file."""
FEW = 20
"""Fewer judging texts than this make a bootstrap's intervals too narrow (`caseback.evidence.intervals`)."""
SAMPLES = 384
"""Texts a model writes where none are given."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig(LookingConfig):
    """On what a tuned lens is trained, and how."""

    texts: str | None = None
    """A .txt file (a text per line that is not empty) or a .jsonl file ("text"); None: the model writes them."""
    n: int | None = None
    """Texts at most; None: all of a file, 384 of the model's own."""
    length: int = 64
    """Tokens of a text; the rest of a longer one is left out."""
    tuned: TunedConfig = field(default_factory=TunedConfig)
    """How it is trained; the seed is that of the run."""

    def __post_init__(self) -> None:
        if self.length < 2 or (self.n is not None and self.n < 3):
            raise ReadingError(
                "a tuned lens takes at least 3 texts (one to learn, one to choose, one to judge) of at least 2 tokens; got "
                f"{self.n if self.n is not None else 'all'} of {self.length}"
            )
        object.__setattr__(self, "tuned", replace(self.tuned, seed=self.seed))

    @property
    def label(self) -> str:
        return Path(self.texts).name if self.texts else "its own texts"

    def data(self) -> str | None:
        """SHA-256 of the file of texts."""
        return sha256_file(self.texts) if self.texts else None


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """Texts of a file: .txt, one a line, empty lines aside; .jsonl, an object with "text" a line.

    Raises ReadingError for a file of another kind or a line that is no text, OSError for a missing one.
    """
    kind, name = Path(path).suffix.lower(), os.fspath(path)
    if kind not in (".txt", ".jsonl"):
        raise ReadingError(f"texts come from a .txt file (one a line) or a .jsonl file with 'text'; {name} is neither")
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ReadingError(f"{name} is no UTF-8 text ({error.reason} at byte {error.start})") from error
    texts = []
    for number, row in enumerate(lines, start=1):
        if not row.strip():
            continue
        text: Any = row.strip()
        if kind == ".jsonl":
            try:
                text = json.loads(row)["text"]
            except (ValueError, RecursionError, KeyError, TypeError, IndexError) as error:
                raise ReadingError(f"line {number} of {name} is no JSON object with 'text'") from error
            if not isinstance(text, str) or not text.strip() or not encodable(text):
                raise ReadingError(f"'text' in line {number} of {name} is not a text with words in it")
        texts.append(text)
    if not texts:
        raise ReadingError(f"{name} holds no texts; give one a line")
    return texts


def find_translators(text: str | os.PathLike[str], study: Study) -> Path:
    """The file of translators behind a file's name, or behind the id or the folder of a tune-lens run.

    Raises ReadingError for a run without translators and for a name that is neither, FileNotFoundError for a missing file.
    """
    path = Path(text)
    if path.is_file():
        return path
    try:
        record = study.find(os.fspath(path.resolve()) if path.is_dir() else os.fspath(text))
    except StudyError as error:
        if path.is_dir() or (path.suffix and not path.exists()):
            raise FileNotFoundError(2, "there is no such file", os.fspath(text)) from error
        raise ReadingError(f"{os.fspath(text)!r} is neither a file of translators nor a run: {error}") from error
    found = record.path.resolve() / "arrays" / f"{STAGE}.safetensors"
    if record.spec.method != "tune-lens" or not found.exists():
        raise ReadingError(
            f"run {record.id} has no translators; give a finished run of `caseback tune-lens`, or a file of its --save"
        )
    return found


def _texts(config: TuneConfig, model: Model, stages: Stages) -> Batch:
    if config.texts is None:
        return sample_texts(model, n=config.n or SAMPLES, length=config.length, seed=config.seed, stages=stages)
    whole = model.encode(read_texts(config.texts)[: config.n])
    return Batch(whole.ids[:, : config.length], whole.mask[:, : config.length])


def tune(config: TuneConfig, model: Model, stages: Stages, progress: Progress) -> Finding:
    """Train, choose and judge on three parts of the texts."""
    batch = _texts(config, model, stages)
    lens = train_tuned(model, batch, config=config.tuned, stages=stages, progress=progress)
    stages.stage(STAGE, lambda: pack(lens))
    judged, sites = lens.judged, lens.sites
    before, after, plain, mixed = (
        mean_intervals(kl) for kl in (judged.before, judged.after, judged.shuffled_before, judged.shuffled_after)
    )
    [prior], [mixed_prior] = (mean_intervals(kl[None]) for kl in (judged.constant, judged.shuffled_constant))
    gain, over = judged.gain(), judged.over_constant()
    n = judged.constant.shape[0]
    better = [site for site, g, o in zip(sites, gain, over) if g.low > 0 and o.low > 0]
    others = [site for site in sites if site not in better]
    claim = (
        f"On {n} texts that trained nothing, the tuned lens is {np.mean([x.value for x in after]):.2f} nats from the output "
        f"on average over {len(sites)} layers, the logit lens {np.mean([x.value for x in before]):.2f}, a constant prediction "
        f"{prior.value:.2f}; it is nearer than both, intervals clear of 0, at "
        + (f"all {len(sites)}." if not others else f"{len(better)} of {len(sites)} (not at {', '.join(others)}).")
    )
    level = [prior] * len(sites), [mixed_prior] * len(sites)
    own = {
        "curve": _curve(
            [("tuned lens", "own", after), ("logit lens", "second", before), ("constant", "control", level[0])]
        )
    }
    other = {
        "curve": _curve(
            [("tuned lens", "own", mixed), ("logit lens", "second", plain), ("constant", "control", level[1])]
        )
    }
    rows = [
        [
            site,
            cell(before[s]),
            cell(after[s]),
            cell(gain[s]),
            cell(over[s]),
            cell(plain[s]),
            cell(mixed[s]),
            lens.kept[s],
        ]
        for s, site in enumerate(sites)
    ]
    sections: list[dict[str, Any]] = [
        {
            "title": "How far from the output",
            "text": "KL(output ‖ lens) in nats at each layer (0: the embedding); the constant is the mean prediction over the "
            "training tokens, which sees nothing.",
            **own,
            "table": sheet(
                "text site, number logit lens, number tuned lens, signed gain over logit lens, signed gain over constant, "
                "number logit lens shuffled, number tuned lens shuffled, text chosen",
                rows,
            ),
        },
        {
            "title": "What training bought",
            "text": "KL of the logit lens, and of the constant, less that of the tuned lens, in nats; below 0 it is worse.",
            "curve": _curve([("over the constant", "own", over), ("over the logit lens", "second", gain)]),
        },
        {
            "title": "The same texts, shuffled",
            "text": "Their tokens in random order, the first in its place: how far the lenses are from what the model then "
            "says. What is gained here owes nothing to what the texts say.",
            **other,
        },
    ]
    table: dict[str, Any] = {
        "sites": list(sites),
        "texts": batch.n,
        "judged": n,
        "better_sites": len(better),
        "logit_lens": [x.value for x in before],
        "tuned_lens": [x.value for x in after],
        "constant": prior.value,
        "gain": [cell(x) for x in gain],
        "over_constant": [cell(x) for x in over],
        "logit_lens_shuffled": [x.value for x in plain],
        "tuned_lens_shuffled": [x.value for x in mixed],
        "constant_shuffled": mixed_prior.value,
        "chosen": list(lens.kept),
        "mean_logit_lens": float(judged.before.mean()),
        "mean_tuned_lens": float(judged.after.mean()),
    }
    where = "were written by the model itself at temperature 1: what holds of them need not hold of people's texts"
    notes = [
        f"{batch.n} texts of at most {config.length} tokens "
        + (f"{where}." if config.texts is None else f"from {config.label}."),
        f"Intervals are over the {n} texts that judge; others trained, and others chose what was kept of each layer: the logit "
        "lens, a constant, a regression of the last layer on it (with its ridge), or what was trained from that.",
        "A translator may say what the layer holds and the model never uses: that is for a patch to decide.",
    ]
    if n < FEW:
        notes.append(f"{n} texts are few to judge on: intervals over them are too narrow. Give more texts.")
    return Finding(claim=claim, table=table, sections=sections, notes=notes, measured=n)


def _curve(lines: list[tuple[str, str, Any]]) -> dict[str, Any]:
    series = []
    for name, look, found in lines:
        one = line(name, look, range(len(found)), [x.value for x in found])
        one |= {"low": [_finite(x, x.low) for x in found], "high": [_finite(x, x.high) for x in found]}
        series.append(one)
    return {"x": "layer", "y": "nats", "axis": "linear", "format": "number", "series": series}


def _finite(found: Interval, end: float) -> float | None:
    return float(end) if np.isfinite(end) else None


TUNE = Looking("tune-lens", TuneConfig, "Tuned lens", tune)
