"""The machine: all that knows transformers."""

from caseback.model.batch import Batch
from caseback.model.edits import Ablate, Add, Call, Edit, Patch, Project, Scale, Set
from caseback.model.model import Cost, Model, Source
from caseback.model.run import Run, Start
from caseback.model.sites import Site

__all__ = ["Ablate", "Add", "Batch", "Call", "Cost", "Edit", "Model", "Patch", "Project", "Run", "Scale", "Set", "Site", "Source", "Start"]
