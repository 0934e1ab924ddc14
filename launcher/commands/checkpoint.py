"""`longhaul checkpoint`: what a run has saved, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from launcher.commands.arguments import AsJson, Run, examples, print_json

if TYPE_CHECKING:
    from cluster.checkpoint import CheckpointInfo

app = typer.Typer(help="List a run's checkpoints and verify them.", no_args_is_help=True)


@app.command(
    "list",
    epilog=examples("longhaul checkpoint list runs/my-run", "longhaul checkpoint list runs/my-run --json"),
)
def list_(run: Run, as_json: AsJson = False) -> None:
    """List the checkpoints of a run with step, size, date and state; `verify` reads their contents."""
    from launcher.console import results, table
    from launcher.report.units import byte_size, moment

    found = _checkpoints(run)
    if as_json:
        print_json([_facts(info) for info in found])
        return
    rows = table("step", "size", "saved", "state")
    for info in found:
        manifest = info.manifest
        rows.add_row(
            f"{info.step:,}",
            byte_size(manifest.size_bytes if manifest else None),
            moment(manifest.created_unix_seconds if manifest else None),
            info.problem or "complete",
        )
    results().print(rows)


@app.command(epilog=examples("longhaul checkpoint verify runs/my-run"))
def verify(run: Run) -> None:
    """Read every file of every checkpoint and compare it with its hash; exit 1 if one is damaged."""
    from cluster.checkpoint import verify as verify_checkpoint
    from cluster.errors import CheckpointError

    damaged = 0
    for info in _checkpoints(run):
        try:
            verify_checkpoint(info)
        except CheckpointError as error:
            damaged += 1
            typer.echo(f"step {info.step:,}: {error}")
        else:
            files = len(info.manifest.files) if info.manifest else 0
            typer.echo(f"step {info.step:,}: good ({files} files)")
    if damaged:
        raise typer.Exit(1)


def _checkpoints(run: str) -> list[CheckpointInfo]:
    """Checkpoints of a run that exists and has some."""
    from cluster.checkpoint import list_checkpoints
    from launcher.errors import LauncherError

    directory = Path(run)
    if not directory.is_dir():
        raise LauncherError(f"{run}: no such run. Name the directory of a run, that is storage/name.")
    found = list_checkpoints(directory)
    if not found:
        raise LauncherError(f"{run}: the run has no checkpoint yet.")
    return found


def _facts(info: CheckpointInfo) -> dict[str, Any]:
    manifest = info.manifest
    return {
        "step": info.step,
        "directory": str(info.directory),
        "size_bytes": manifest.size_bytes if manifest else None,
        "created_unix_seconds": manifest.created_unix_seconds if manifest else None,
        "problem": info.problem,
    }
