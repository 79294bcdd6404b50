"""Entry point: the command group, threads, and one-sentence errors."""

from __future__ import annotations

import io
import os
import sys
import traceback

import click

from depure import __version__
from depure.cli.values import Count, told


class _Group(click.Group):
    """Imports a command's module only when it is asked for, so that `--help` is quick."""

    commands_in = {  # noqa: RUF012
        "demo": "depure.cli.demo",
        "evaluate": "depure.cli.evaluate",
        "analyse": "depure.cli.analyse",
        "verify-gradient": "depure.cli.verify",
        "purify": "depure.cli.purify",
        "report": "depure.cli.report",
        "train": "depure.cli.train",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order a newcomer needs them."""
        return list(self.commands_in)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None if there is no such command."""
        from importlib import import_module

        module = self.commands_in.get(cmd_name)
        return import_module(module).command if module else None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=Count(1, 4 * (os.cpu_count() or 1)),
    help="CPU threads. One is fastest for small networks and on shared machines.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(threads: int, debug: bool) -> None:
    """Diffusion-based adversarial purification: defend, attack honestly, report.

    \b
    Start here:   depure demo
    Then:         depure evaluate --help
    """
    import torch

    torch.set_num_threads(threads)
    if debug:
        os.environ["DEPURE_DEBUG"] = "1"


def main() -> None:
    """Run the command line; errors become one sentence and exit status 1 (2 for wrong usage)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        status = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nStopped. What is finished is kept: the same command continues.", err=True)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("DEPURE_DEBUG"):
            traceback.print_exc()
        click.echo(f"Error: {_sentence(error)}", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if type(error).__name__ == "OutOfMemoryError":
        return "out of memory: set --memory-limit to what there is, or lower --chunk"
    if isinstance(error, OSError):
        return told(error)
    if text == "embedded null byte":  # Python's word, for any file
        return "a path holds a null byte, which no file's name can: leave it out"
    if isinstance(error, ValueError | ImportError):
        return text
    return f"{type(error).__name__}: {text} (run `depure --debug ...` for the traceback)"
