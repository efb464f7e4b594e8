"""What a judged operator is good for, as runs: concept vectors, distraction tests, isolation.

Each takes the operator at a layer in the middle of the model unless another is named (`caseback.study.judged`): one of the
embedding reads nothing but embeddings, and an edit there is an edit of the word.
"""

from __future__ import annotations

from caseback.study.uses.of_concepts import CONCEPTS, ConceptsConfig
from caseback.study.uses.of_distraction import DISTRACT, DistractConfig
from caseback.study.uses.of_isolation import ISOLATE, IsolateConfig

__all__ = ["CONCEPTS", "DISTRACT", "ISOLATE", "ConceptsConfig", "DistractConfig", "IsolateConfig"]
