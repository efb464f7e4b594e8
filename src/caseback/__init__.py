"""caseback: a workbench for looking into language models."""

__version__ = "0.1.0"
