"""`longhaul pretrain`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from launcher.commands.arguments import Config, FreshRun, Overrides, examples

if TYPE_CHECKING:
    from cluster.resume import Change
    from cluster.storage.operations import StoragePath


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(
        epilog=examples(
            "longhaul pretrain smoke",
            "longhaul pretrain my-run.yaml train.max_steps=2000 resources.workers=4",
            "longhaul pretrain my-run.yaml --fresh",
        )
    )(pretrain)


def pretrain(
    config: Config,
    overrides: Overrides = None,
    fresh: FreshRun = False,
) -> None:
    """Train a model from random weights or those of `initialize_from`, going on where the run has a checkpoint.

    Where RAY_ADDRESS is set the workers run on that Ray cluster, otherwise on a private one of this machine.
    The exit code is 75 where another command writes the run.
    """
    train_and_tell("pretrain", config, overrides, fresh=fresh)


def train_and_tell(verb: str, config: str, overrides: list[str] | None, *, fresh: bool) -> None:
    """Do what a verb of training does: train a run of the task that it is for, and say how it ended.

    Args:
        verb: `pretrain` or `finetune`.
        config: As on the command line, as is all else.
        overrides: Settings that replace the file's.
        fresh: Begin at step 0.
    """
    from launcher.config_file import load_run_config
    from launcher.console import is_interactive, messages, results
    from launcher.dataset_pages import token_account
    from launcher.errors import InterruptError
    from launcher.progress import TrainingProgress
    from launcher.progress_lines import validation_line
    from launcher.tasks import require_task_of
    from launcher.training import train

    run_config = load_run_config(config, overrides or (), fresh=fresh)
    require_task_of(verb, run_config)
    console = messages()
    try:
        with TrainingProgress(console, interactive=is_interactive(console)) as progress:
            result = train(run_config, fresh=fresh, listener=progress)
    except KeyboardInterrupt as error:
        raise InterruptError(
            "stopped. The same command continues the run from its last checkpoint, or begins anew where there is none."
        ) from error
    out = results()
    if not result.trained_now:
        out.print(f"the run had finished before, at step {result.step:,}; --fresh sets it aside and begins anew")
    if result.not_applied:
        out.print(_in_vain(result.not_applied))
    of = " of answers" if run_config.answers_only else ""
    for name, found in result.validation.items():
        out.print(validation_line(name, found, of))
    for entry in result.ledger:
        out.print(token_account(entry))
    out.print(_goodput(result.run_directory))
    out.print(f"run     {result.run_directory}")
    if result.report is not None:
        out.print(f"report  {result.report}")
    if result.status == "stopped":
        raise InterruptError(f"stopped after step {result.step:,}. The same command continues the run from there.")


def _in_vain(not_applied: Sequence[Change]) -> str:
    """What was asked of a run that had finished, and the ways to have it."""
    asked = ", ".join(
        f"{change.key}={json.dumps(change.after)} ({json.dumps(change.before)} in the run)" for change in not_applied
    )
    return (
        f"not applied, since no step is left to make: {asked}. To train with it give the run another name (name=NAME) "
        "or pass --fresh; `branch RUN --from STEP NAME` begins with the state of an earlier step."
    )


def _goodput(run_directory: StoragePath) -> str:
    """What the run's time was spent on; a record that cannot be read spoils no training that ended well."""
    from cluster.errors import StorageError
    from cluster.record.goodput import goodput_line, read_goodput

    try:
        return goodput_line(read_goodput(run_directory))
    except (OSError, StorageError) as error:
        return f"goodput n/a: {error}"
