"""The command line, `convnext-backbone COMMAND`."""

from .main import main

__all__ = ["main"]
