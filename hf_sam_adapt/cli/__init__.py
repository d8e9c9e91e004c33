"""The command `hf-sam-adapt`: a module for each sub-command, imported when it is called."""

from .commands import main


__all__ = ["main"]
