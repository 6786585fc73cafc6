"""The command ``srlib``, and the notebooks in order."""

from srlib.cli.commands import main

__all__ = ["main"]
