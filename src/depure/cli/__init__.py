"""The `depure` command."""

from depure.cli.main import main

__all__ = ["main"]
