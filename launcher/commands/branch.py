"""`longhaul branch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.arguments import Overrides, Run, examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.branch import Branch


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(
        epilog=examples(
            "longhaul branch runs/my-run --from 8000 annealed schedule.name=wsd schedule.decay_steps=2000 "
            "train.max_steps=10000",
            "longhaul branch runs/my-run --from 8000 on-code data.dataset=datasets/code train.max_steps=9000",
            "longhaul branch runs/my-run --from 8000 gentler optimizer.learning_rate=1e-4 storage=other-runs",
        )
    )(branch)


def branch(
    run: Run,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the new run, which lies beside RUN.", show_default=False)
    ],
    step: Annotated[
        int,
        typer.Option("--from", metavar="STEP", help="Step of one of RUN's checkpoints.", show_default=False),
    ],
    overrides: Overrides = None,
) -> None:
    """Make a new run that begins with the state RUN had at a step: for annealing, another schedule or other data.

    The model, the tokenizer, the kind of optimizer and the batch sizes of the steps made stay; `pretrain` then trains
    the new run. RUN is left as it is, and may be running.
    """
    from cluster.storage.operations import storage_path
    from launcher.build_progress import ByteProgress
    from launcher.config_file import load_branch_config, resolved_yaml
    from launcher.console import messages, results
    from launcher.directories import from_root, require_run
    from launcher.environment import require_lasting_paths
    from launcher.errors import LauncherError
    from launcher.samples import resolve_samples
    from launcher.training import absolute

    require_run(run)
    parent = storage_path(from_root(run))
    if not (parent / "config.yaml").is_file():
        raise LauncherError(f"{run} has no config.yaml, which a branch takes its configuration from. Restore it.")
    config = load_branch_config(str(parent / "config.yaml"), name, overrides or ())
    require_lasting_paths(config)

    from cluster.branch import plan_branch, refuse_taken_name
    from cluster.branch_directory import create_branch
    from launcher.tasks import verb_of

    config, console = absolute(config), messages()
    refuse_taken_name(storage_path(config.storage) / config.name)
    config = resolve_samples(config, lambda message: console.print(message["text"]))
    planned = plan_branch(parent, step, config)
    with ByteProgress(console, "verifying the checkpoint") as progress:
        directory = create_branch(planned, resolved_yaml(planned.config), progress)
    for line in _account(planned):
        results().print(line)
    results().print(f"train it  longhaul {verb_of(config)} {directory / 'config.yaml'}")


def _account(branch: Branch) -> Iterator[str]:
    """What the new run is, and what its first step will be like."""
    step = branch.step
    yield f"branch    {branch.directory}, from step {step:,} of {branch.lineage['directory']}"
    for number, change in enumerate(branch.changes):
        yield f"{'' if number else 'changed':10s}{change}"
    if not branch.changes and not branch.data_changes:
        yield f"changed   nothing: it will repeat what its parent did from step {step + 1:,} on"
    if branch.data_changes:
        keys = ", ".join(change.key for change in branch.data_changes)
        yield f"data      begins at its first sequence with step {step + 1:,}, since the order changed ({keys})"
    else:
        position = branch.plan.position_after(step, branch.skips)
        yield f"data      goes on as in the parent, with sequence {position:,}"
    if branch.next_batch_loss is None:
        yield f"check     the loss of step {step + 1:,} is not known beforehand, and so not compared with the saved one"
    before, after = branch.next_rates()
    yield f"rate      of step {step + 1:,}: {after:.4g}" + (f", in the parent {before:.4g}" if after != before else "")
