"""`longhaul checkpoint`: what a run has saved, and whether it is whole."""

from __future__ import annotations

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
    from launcher.report.units import plural

    usable, found = [], _checkpoints(run)
    for info in found:
        try:
            verify_checkpoint(info)
        except CheckpointError as error:
            typer.echo(f"step {info.step:,}: {error}")
        else:
            usable.append(info.step)
            typer.echo(f"step {info.step:,}: good ({plural(len(info.manifest.files) if info.manifest else 0, 'file')})")
    if len(usable) < len(found):
        typer.echo(_remedy(len(found) - len(usable), usable))
        raise typer.Exit(1)


def _remedy(unusable: int, usable: list[int]) -> str:
    """What follows from checkpoints that cannot be used, and what a person can do about it."""
    from launcher.report.units import plural

    count = f"{plural(unusable, 'checkpoint')} cannot be used"
    them, one = ("it", "it") if unusable == 1 else ("them", "one")
    copy = "from a copy and remove its REJECTED.json, if it has one"
    if usable:
        passes = f"Training passes over {them}, to step {usable[-1]:,}."
        return f"{count}. {passes} To have {one} back, restore its files {copy}."
    return (
        f"{count}, and none is left. Restore the files of one {copy}, or begin anew with "
        "`longhaul pretrain CONFIG --fresh`."
    )


def _checkpoints(run: str) -> list[CheckpointInfo]:
    """Checkpoints of a run that exists and has some."""
    from cluster.checkpoint import list_checkpoints
    from launcher.directories import require_run
    from launcher.errors import LauncherError

    found = list_checkpoints(require_run(run))
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
