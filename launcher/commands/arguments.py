"""Arguments and options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Config = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="Path of a YAML file, or the name of a shipped recipe.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that replace the file's, as in train.max_steps=100 or sources.0.path=book.txt.",
        show_default=False,
    ),
]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="Directory of a built dataset.", show_default=False)]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Directory or URI of a run, that is storage/name.", show_default=False)
]
RunOrCheckpoint = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT",
        help="Directory or URI of a run, whose newest good checkpoint is taken, or of one checkpoint.",
        show_default=False,
    ),
]
CheckpointStep = Annotated[
    int | None,
    typer.Option("--step", metavar="N", help="Step of the checkpoint; else the newest.", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard, as in http://head:8265; RAY_API_SERVER_ADDRESS where it is not given.",
        show_default=False,
    ),
]
FreshRun = Annotated[
    bool, typer.Option("--fresh", help="Begin at step 0; what the run directory holds is moved aside.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def examples(*commands: str) -> str:
    """Block of examples for the end of a help page."""
    lines = "\n".join(f"  [bold]{command.replace('[', chr(92) + '[')}[/bold]" for command in commands)
    return f"Examples:\n\n{lines}"


def program(ctx: typer.Context) -> str:
    """How this person has called the command line, for advice that can be typed as it stands."""
    return ctx.find_root().info_name or "longhaul"


def print_json(value: Any) -> None:
    """Print a result for programs to read."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
