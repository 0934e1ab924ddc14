"""`longhaul quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import examples


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(epilog=examples("longhaul quickstart", "longhaul quickstart --out first-model"))(quickstart)


def quickstart(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory that takes the dataset, the run and the report.")
    ] = Path("longhaul-quickstart"),
) -> None:
    """Train a small model on Jane Austen with two workers, in minutes, and show what it has learned.

    The same command again continues where it was stopped.
    """
    from launcher.console import is_interactive, messages, results
    from launcher.errors import InterruptError, UsageError
    from launcher.progress import TrainingProgress
    from launcher.quickstart import run_quickstart, summary

    if ":/" in str(out):
        raise UsageError(f"--out {out}: the quickstart's dataset needs a directory. Name one of this machine.")
    console = messages()
    try:
        with TrainingProgress(console, interactive=is_interactive(console)) as progress:
            result = run_quickstart(out, progress)
    except KeyboardInterrupt as error:
        raise InterruptError(
            "stopped. The same command continues from the last checkpoint, or begins anew where none was saved yet."
        ) from error
    if result is None:
        raise InterruptError("stopped, with a checkpoint. The same command continues from there.")
    results().print(summary(result, program=ctx.find_root().info_name or "longhaul"))
