"""What caseback says when a request cannot be carried out.

Every error a user can mend is a `CasebackError`, one sentence that names what was asked, what exists and the way out. The CLI prints the
sentence and exits with code 2; a traceback means a defect of ours.
"""

from __future__ import annotations

__all__ = [
    "CasebackError",
    "CircuitError",
    "EndpointError",
    "FamilyError",
    "LoadError",
    "ReadingError",
    "RelationError",
    "SchemaError",
    "SiteError",
    "SiteNotReached",
    "StudyError",
    "TaskError",
]


class CasebackError(ValueError):
    """A request that could not be honoured, in one sentence."""


class LoadError(CasebackError):
    """A model, a weight file or a download that is missing, unsafe or damaged."""


class FamilyError(CasebackError):
    """A model family without what the request needs."""


class SiteError(CasebackError):
    """A site that is misspelt or does not exist in this model."""


class SiteNotReached(SiteError):
    """A read or an edit that did not happen although the run ended."""


class TaskError(CasebackError):
    """A task, a pair or a task file that cannot be used; names the field and the row."""


class SchemaError(CasebackError):
    """A schema, or its application to a prompt, that breaks one of the validity rules."""


class EndpointError(CasebackError):
    """A language-model endpoint that did not answer as its protocol says."""


class CircuitError(CasebackError):
    """A circuit request that cannot be carried out on this graph, model or task."""


class RelationError(CasebackError):
    """A relation, a relation file or a subject that cannot be used; names the field and the sample."""


class ReadingError(CasebackError):
    """A lens, an attribution or a patching grid that cannot be made of this model, prompt or task."""


class StudyError(CasebackError):
    """A study folder or a run that cannot be read, written or resumed."""
