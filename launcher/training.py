"""One training as every verb starts it: paths made absolute, samples built, workers run, report written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cluster.config import RunConfig
from cluster.storage.operations import StoragePath, storage_path
from launcher.config_file import resolved_yaml
from launcher.directories import from_root
from launcher.environment import (
    ray_address,
    require_lasting_paths,
    submission,
    wandb_api_key,
    wandb_mode,
    wandb_server,
)
from launcher.errors import ConfigError
from launcher.samples import is_sample, resolve_datasets, resolve_samples

if TYPE_CHECKING:
    from cluster.resume import Change
    from data_pipeline.plan import TrainingLedger

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training leaves."""

    run_directory: StoragePath
    """Directory with metrics, events, checkpoints and report."""
    step: int
    """Last step that was trained."""
    status: str
    """`finished` or `stopped`."""
    trained_now: bool
    """False when the run was finished before the command."""
    not_applied: tuple[Change, ...]
    """Where it was: what the command asks for otherwise than the run was made."""
    validation: dict[str, dict[str, float | None]]
    """Figures of the last evaluation of each dataset: loss, and perplexity or those of the task."""
    ledger: tuple[TrainingLedger, ...]
    """Tokens of each dataset, accounted for."""
    report: StoragePath | None
    """The HTML page about the run; None where it could not be written."""


def train(config: RunConfig, *, fresh: bool, listener: Callable[[dict[str, Any]], None]) -> TrainingResult:
    """Run a training to its end, or continue it, and write its report.

    Args:
        config: The run.
        fresh: Begin at step 0; what the run directory holds is moved aside.
        listener: Receives progress messages in this thread (see `launcher.progress`).
    """
    require_lasting_paths(config)
    config = absolute(config)
    _require_beginning(config, fresh=fresh)
    config = resolve_samples(config, listener)

    from cluster.driver import Launch, run_training

    launch = Launch(
        resolved_yaml=resolved_yaml(config),
        wandb_mode=wandb_mode(config.wandb.mode),
        fresh=fresh,
        wandb_server=wandb_server(),
        wandb_api_key=wandb_api_key(),
        ray_address=ray_address(),
        job=submission(),
    )
    try:
        outcome = run_training(config, launch, listener)
    except Exception:
        _write_report(storage_path(config.storage) / config.name)
        raise
    return TrainingResult(
        run_directory=outcome.run_directory,
        step=outcome.step,
        status=outcome.status,
        trained_now=outcome.trained_now,
        not_applied=outcome.not_applied,
        validation=outcome.validation,
        ledger=outcome.ledger,
        report=_write_report(outcome.run_directory),
    )


def _require_beginning(config: RunConfig, *, fresh: bool) -> None:
    """Refuse data that begins in the middle of a run, where a run begins.

    Raises:
        ConfigError: Only a branch, which has its parent's state, goes on with such data.
    """
    from cluster.run_directory import RunDirectory

    before, directory = config.data.begins_after_step, storage_path(config.storage) / config.name
    if before and (fresh or not RunDirectory(directory).exists()):
        raise ConfigError(
            f"data.begins_after_step is {before}: the steps up to there were made by the run that {config.name} "
            f"branched from, and {'with --fresh' if fresh else f'in {directory}'} nobody has made them. "
            "Make the branch anew with `longhaul branch`, or set data.begins_after_step=0 to train from step 1."
        )


def _write_report(run_directory: StoragePath) -> StoragePath | None:
    """Write the report where there is something to show; it is a view, so that failing at it fails nothing else."""
    from cluster.record.logs import EVENTS_NAME, has_log
    from launcher.report import write_report

    try:
        begun = has_log(run_directory / EVENTS_NAME)
    except OSError:  # of a store that does not answer, which ended the run too and was told
        return None
    try:
        return write_report(run_directory) if begun else None
    except Exception as error:  # noqa: BLE001 - whatever it is, the run and its own error come first
        logger.warning("the report of %s could not be written: %s", run_directory, error)
        return None


def absolute(config: RunConfig) -> RunConfig:
    """The same run with all its paths named from the root: workers have directories of their own."""

    def dataset_from_root(path: str) -> str:
        return path if is_sample(path) else from_root(path)

    begin = config.initialize_from
    config = replace(
        config,
        storage=from_root(config.storage),
        initialize_from=from_root(begin) if begin is not None else None,
    )
    return resolve_datasets(config, dataset_from_root)
