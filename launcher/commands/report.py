"""`longhaul report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.arguments import examples

if TYPE_CHECKING:
    from cluster.storage.operations import StoragePath

COMPARISON = "comparison.html"
_OURS = "Longhaul report</title>"  # as every report begins
_BEGINNING_BYTES = 20_000
_IDENTITY = "run.json"
_LOGS = ("metrics.jsonl", "events.jsonl")


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(
        epilog=examples(
            "longhaul report runs/my-run",
            "longhaul report runs/my-run runs/other-run",
            "longhaul report runs/a runs/b runs/c --out reports/learning-rates.html",
        )
    )(report)


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Directory or URI of a run, that is storage/name; several are compared."),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help=f"HTML file to write; else RUN/report.html, or {COMPARISON} in the working directory for several.",
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run, or about several runs compared, and print its path."""
    from cluster.storage.operations import storage_path
    from launcher.errors import LauncherError

    directories = [storage_path(run) for run in runs]
    _require_runs(directories)
    beside = directories[0] / "report.html" if len(runs) == 1 else Path(COMPARISON)
    output = storage_path(out) if out is not None else beside
    _require_free(output)

    from launcher.report import write_report

    try:
        typer.echo(write_report(*directories, output=output))
    except OSError as error:
        raise LauncherError(
            f"{output}: the report cannot be written: {error.strerror or error}. Name another place with --out FILE."
        ) from error


def _require_runs(runs: Sequence[StoragePath]) -> None:
    from launcher.errors import LauncherError, UsageError

    seen: dict[StoragePath, StoragePath] = {}
    for run in runs:
        if not run.exists():
            raise LauncherError(f"{run}: no such run. Name the directory of a run, that is storage/name.")
        if not _is_run(run):
            raise LauncherError(f"{run}: not the directory of a run: it has no {_IDENTITY}. {_suggestion(run)}")
        place = run.resolve() if isinstance(run, Path) else run
        if place in seen:
            first = seen[place]
            same = "twice" if first == run else f"twice, as {first} and as {run}"
            raise UsageError(f"{run}: the run was given {same}. Name each run once.")
        seen[place] = run


def _is_run(directory: StoragePath) -> bool:
    from cluster.record.logs import has_log

    return (directory / _IDENTITY).is_file() or any(has_log(directory / name) for name in _LOGS)


def _suggestion(path: StoragePath) -> str:
    """The run that was probably meant: around what was named, or under it."""
    from cluster.storage.operations import list_names

    around = next((parent for parent in _parents(path) if _is_run(parent)), None)
    if around is not None:
        return f"It belongs to the run {around}: name that."
    under = [path / name for name in list_names(path) if _is_run(path / name)] if path.is_dir() else []
    if under:
        names = ", ".join(str(child) for child in under[:5]) + (" …" if len(under) > 5 else "")
        return f"It holds runs: name one or several of {names}."
    return "Name the directory of a run, that is storage/name."


def _parents(path: StoragePath) -> Sequence[StoragePath]:
    if isinstance(path, Path):
        return path.absolute().parents
    found = [path.parent]
    while found[-1].parent != found[-1]:
        found.append(found[-1].parent)
    return found


def _require_free(output: StoragePath) -> None:
    """Refuse to write over anything but an earlier report."""
    from launcher.errors import UsageError

    if output.is_dir():
        raise UsageError(f"{output}: a directory, and --out names a file. Write --out {output / COMPARISON}.")
    if not output.exists():
        return
    beginning = output.read_bytes()[:_BEGINNING_BYTES].decode("utf-8", errors="replace")
    if _OURS not in beginning:
        raise UsageError(
            f"{output}: the file exists and is no report of ours, so it is not overwritten. "
            "Move it away, or name another file with --out FILE."
        )
