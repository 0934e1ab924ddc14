"""`longhaul checkpoint`: what a run has saved, whether it is whole, and how two checkpoints differ."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.commands import checkpoint_export
from launcher.commands.arguments import AsJson, CheckpointStep, Run, examples, print_json

if TYPE_CHECKING:
    from cluster.checkpoint import CheckpointInfo
    from cluster.checkpoint.comparison import Comparison

app = typer.Typer(
    help="List a run's checkpoints, verify them, look into them, compare them and export them.", no_args_is_help=True
)

_AT_STEP = re.compile(r"(.+)@(\d+)")


@app.command(
    "list",
    epilog=examples("longhaul checkpoint list runs/my-run", "longhaul checkpoint list runs/my-run --json"),
)
def list_(run: Run, as_json: AsJson = False) -> None:
    """List the checkpoints of a run with step, size, date and state; `verify` reads their contents."""
    from launcher.checkpoint_choice import checkpoints_of
    from launcher.console import results, table
    from launcher.report.units import byte_size, moment

    found = checkpoints_of(run)
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
    """Read every file of every checkpoint and compare it with its hash; exit 1 if one is damaged or out of reach."""
    from cluster.checkpoint import verify as verify_checkpoint
    from cluster.errors import CheckpointError, CheckpointUnreadableError
    from launcher.checkpoint_choice import checkpoints_of
    from launcher.report.units import plural

    usable: list[int] = []
    unreadable: list[int] = []
    found = checkpoints_of(run)
    for info in found:
        try:
            verify_checkpoint(info)
        except CheckpointUnreadableError as error:  # it says itself what to do
            unreadable.append(info.step)
            typer.echo(f"step {info.step:,}: {error}")
        except CheckpointError as error:
            typer.echo(f"step {info.step:,}: {error}")
        else:
            usable.append(info.step)
            typer.echo(f"step {info.step:,}: good ({plural(len(info.manifest.files) if info.manifest else 0, 'file')})")
    if damaged := len(found) - len(usable) - len(unreadable):
        typer.echo(_remedy(damaged, usable, unreadable))
    if damaged or unreadable:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "longhaul checkpoint inspect runs/my-run",
        "longhaul checkpoint inspect runs/my-run --step 200 --values",
        "longhaul checkpoint inspect runs/my-run --json",
    )
)
def inspect(
    run: Run,
    step: CheckpointStep = None,
    values: Annotated[
        bool, typer.Option("--values", help="Read all tensors too: smallest and largest value and norm of each.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint holds: topology, precision, data position, fingerprints, parameters, files."""
    from cluster.checkpoint.inspection import describe
    from launcher.checkpoint_choice import chosen_checkpoint
    from launcher.checkpoint_pages import file_table, group_table, headline_table, parameter_table, value_table
    from launcher.console import results

    info = chosen_checkpoint(run, step)
    facts = describe(info)
    if values:
        _add_values(info, facts)
    if as_json:
        print_json(facts)
        return
    pages = [headline_table, group_table, parameter_table, *([value_table] if values else []), file_table]
    for page in pages:
        results().print(page(facts))


@app.command(
    epilog=examples(
        "longhaul checkpoint diff runs/my-run@100 runs/my-run@200",
        "longhaul checkpoint diff runs/one runs/other --json",
    )
)
def diff(
    first: Annotated[
        str, typer.Argument(metavar="RUN[@STEP]", help="A run, at a step or its newest.", show_default=False)
    ],
    second: Annotated[
        str, typer.Argument(metavar="RUN[@STEP]", help="The one to compare it with.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints: configuration, data plan, layout and every tensor; exit 0 if equal, 1 if not.

    The names of the runs, their storage and the time of saving do not count.
    """
    from launcher.checkpoint_choice import chosen_checkpoint
    from launcher.checkpoint_pages import difference_table, fact_table
    from launcher.console import results

    chosen = [chosen_checkpoint(*_run_and_step(reference)) for reference in (first, second)]
    comparison = _compare(chosen[0], chosen[1])
    if as_json:
        print_json(_comparison_facts(chosen, comparison))
    else:
        out = results()
        for label, info in zip(("first ", "second"), chosen, strict=True):
            out.print(f"{label}  {info.directory}")
        if comparison.facts or comparison.scalars:
            out.print(fact_table(comparison))
        for line in comparison.structure:
            out.print(line)
        out.print(difference_table(comparison))
        out.print("equal" if comparison.equal else "different")
    if not comparison.equal:
        raise typer.Exit(1)


checkpoint_export.register(app)


def _run_and_step(reference: str) -> tuple[str, int | None]:
    match = _AT_STEP.fullmatch(reference)
    return (match[1], int(match[2])) if match else (reference, None)


def _add_values(info: CheckpointInfo, facts: dict[str, Any]) -> None:
    """Put the figures of every tensor beside its parameter, from files that are verified first."""
    from cluster.checkpoint import CheckpointReader
    from cluster.checkpoint import verify as verify_checkpoint
    from cluster.checkpoint.inspection import tensor_bytes, value_figures
    from launcher.build_progress import ByteProgress
    from launcher.console import messages

    assert info.manifest is not None
    done, total = 0, info.manifest.size_bytes + tensor_bytes(info.manifest)

    with ByteProgress(messages(), "reading") as progress:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        verify_checkpoint(info, progress=lambda record: advance(record.size_bytes))
        reader = CheckpointReader(info.directory, info.manifest)
        for item in facts["parameters"]:
            item["values"] = {
                state: value_figures(reader, info.manifest, item["name"], state, advance) for state in item["states"]
            }


def _compare(first: CheckpointInfo, second: CheckpointInfo) -> Comparison:
    """Compare two checkpoints; of their files, those that are read are verified first."""
    from cluster.checkpoint import verify as verify_checkpoint
    from cluster.checkpoint.comparison import bytes_to_compare, compare, files_to_read
    from cluster.errors import CheckpointError
    from launcher.build_progress import ByteProgress
    from launcher.console import messages

    for info in (first, second):
        if info.manifest is None:
            raise CheckpointError(info.problem or f"checkpoint {info.directory} has no manifest.")
    assert first.manifest is not None
    assert second.manifest is not None
    files = files_to_read(first.manifest, second.manifest)
    done = 0
    total = sum(file.size_bytes for side in files for file in side) + bytes_to_compare(first.manifest, second.manifest)

    with ByteProgress(messages(), "comparing") as progress:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        for info, wanted in zip((first, second), files, strict=True):
            verify_checkpoint(info, wanted, lambda record: advance(record.size_bytes))
        return compare(first, second, advance)


def _comparison_facts(chosen: list[CheckpointInfo], comparison: Comparison) -> dict[str, Any]:
    from dataclasses import asdict
    from math import isfinite

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not isfinite(value) else value

    return {
        "first": str(chosen[0].directory),
        "second": str(chosen[1].directory),
        "equal": comparison.equal,
        "facts": [asdict(change) for change in comparison.facts],
        "structure": list(comparison.structure),
        "scalars": [asdict(change) for change in comparison.scalars],
        "tensors": [{key: finite(value) for key, value in asdict(item).items()} for item in comparison.tensors],
        "compared": dict(comparison.compared),
    }


def _remedy(damaged: int, usable: list[int], unreadable: list[int]) -> str:
    """What follows from checkpoints that are damaged or rejected, and what a person can do about it."""
    from launcher.report.units import plural

    count = f"{plural(damaged, 'checkpoint')} cannot be used"
    them, one = ("it", "it") if damaged == 1 else ("them", "one")
    copy = "from a copy and remove its REJECTED.json, if it has one"
    if unreadable and unreadable[-1] > max(usable, default=-1):  # training waits for that one
        return f"{count}. To have {one} back, restore its files {copy}."
    if usable:
        passes = f"Training passes over {them}, to step {usable[-1]:,}."
        return f"{count}. {passes} To have {one} back, restore its files {copy}."
    return (
        f"{count}, and none is left. Restore the files of one {copy}, or begin anew: give the "
        "command that trained it with --fresh."
    )


def _facts(info: CheckpointInfo) -> dict[str, Any]:
    manifest = info.manifest
    return {
        "step": info.step,
        "directory": str(info.directory),
        "size_bytes": manifest.size_bytes if manifest else None,
        "created_unix_seconds": manifest.created_unix_seconds if manifest else None,
        "problem": info.problem,
    }
