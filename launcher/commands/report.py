"""`longhaul report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import examples

COMPARISON = "comparison.html"
_OURS = "Longhaul report</title>"  # as every report begins
_BEGINNING_CHARACTERS = 20_000
_RECORDS = ("run.json", "metrics.jsonl", "events.jsonl")


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
        list[Path],
        typer.Argument(metavar="RUN", help="Directory of a run, that is storage/name; several are compared."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"HTML file to write; else RUN/report.html, or {COMPARISON} in the working directory for several.",
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run, or about several runs compared, and print its path."""
    from launcher.errors import LauncherError

    _require_runs(runs)
    output = out if out is not None else runs[0] / "report.html" if len(runs) == 1 else Path(COMPARISON)
    _require_free(output)

    from launcher.report import write_report

    try:
        typer.echo(write_report(*runs, output=output))
    except OSError as error:
        raise LauncherError(
            f"{output}: the report cannot be written: {error.strerror or error}. Name another place with --out FILE."
        ) from error


def _require_runs(runs: list[Path]) -> None:
    from launcher.errors import LauncherError, UsageError

    seen: dict[Path, Path] = {}
    for run in runs:
        if not run.exists():
            raise LauncherError(f"{run}: no such run. Name the directory of a run, that is storage/name.")
        if not _is_run(run):
            raise LauncherError(f"{run}: not the directory of a run: it has no {_RECORDS[0]}. {_suggestion(run)}")
        if run.resolve() in seen:
            first = seen[run.resolve()]
            same = "twice" if first == run else f"twice, as {first} and as {run}"
            raise UsageError(f"{run}: the run was given {same}. Name each run once.")
        seen[run.resolve()] = run


def _is_run(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _RECORDS)


def _suggestion(path: Path) -> str:
    """The run that was probably meant: around what was named, or under it."""
    around = next((parent for parent in path.absolute().parents if _is_run(parent)), None)
    if around is not None:
        return f"It belongs to the run {around}: name that."
    under = sorted(child for child in path.iterdir() if _is_run(child)) if path.is_dir() else []
    if under:
        names = ", ".join(str(child) for child in under[:5]) + (" …" if len(under) > 5 else "")
        return f"It holds runs: name one or several of {names}."
    return "Name the directory of a run, that is storage/name."


def _require_free(output: Path) -> None:
    """Refuse to write over anything but an earlier report."""
    from launcher.errors import UsageError

    if output.is_dir():
        raise UsageError(f"{output}: a directory, and --out names a file. Write --out {output / COMPARISON}.")
    if not output.exists():
        return
    with output.open(encoding="utf-8", errors="replace") as stream:
        if _OURS not in stream.read(_BEGINNING_CHARACTERS):
            raise UsageError(
                f"{output}: the file exists and is no report of ours, so it is not overwritten. "
                "Move it away, or name another file with --out FILE."
            )
