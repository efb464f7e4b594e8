"""The question: pairs of prompts with named spans, the metrics they are judged by, and a library of them."""

from caseback.tasks.aligner import Aligner, Laid, lay_on, learn
from caseback.tasks.check import check
from caseback.tasks.encode import LanguageModel, PairBatch, encode
from caseback.tasks.files import read_task, write_task
from caseback.tasks.induce import InduceConfig, induce
from caseback.tasks.library import agreement, capitals, gender_bias, get, greater_than, ioi, ioi_baba, names
from caseback.tasks.metrics import kl, logit_diff, metric_of, prob_diff, right, top1, top1_agree
from caseback.tasks.pair import Pair
from caseback.tasks.propose import Proposal, ProposeConfig, propose
from caseback.tasks.schema import BOS, Schema, Span, apply_pieces, problems, token_ranges
from caseback.tasks.task import Check, Task

__all__ = [
    "BOS",
    "Aligner",
    "Check",
    "InduceConfig",
    "Laid",
    "LanguageModel",
    "Pair",
    "PairBatch",
    "Proposal",
    "ProposeConfig",
    "Schema",
    "Span",
    "Task",
    "agreement",
    "apply_pieces",
    "capitals",
    "check",
    "encode",
    "gender_bias",
    "get",
    "greater_than",
    "induce",
    "ioi",
    "ioi_baba",
    "kl",
    "lay_on",
    "learn",
    "logit_diff",
    "metric_of",
    "names",
    "prob_diff",
    "problems",
    "propose",
    "read_task",
    "right",
    "token_ranges",
    "top1",
    "top1_agree",
    "write_task",
]
