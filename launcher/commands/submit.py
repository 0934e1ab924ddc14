"""`longhaul submit`: the same verbs as jobs of a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.arguments import Address, Config, Overrides, examples, program

if TYPE_CHECKING:
    from cluster.jobs.api import Jobs

app = typer.Typer(help="Run a verb as a job of a Ray cluster, and follow it.", no_args_is_help=True)

Detach = Annotated[bool, typer.Option("--detach", help="Return once the job is submitted; do not follow its output.")]
StopGrace = Annotated[
    int,
    typer.Option(
        "--stop-grace",
        metavar="SECONDS",
        min=3,
        max=86_400,
        help="Seconds that a stopped job has to save its state before it is killed.",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew; what is there is moved aside or replaced.")]


@app.command(
    epilog=examples(
        "longhaul submit pretrain llama-1b storage=/shared/runs data.dataset=/shared/corpus --address http://head:8265",
        "longhaul submit pretrain my-run.yaml resources.workers=16 --detach",
    )
)
def pretrain(
    ctx: typer.Context,
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    detach: Detach = False,
    fresh: Fresh = False,
    stop_grace: StopGrace = 300,
) -> None:
    """Train a model as a job: continues by itself after any loss, until it is finished or stopped.

    Paths must be absolute, and the same for every node. Ctrl-C ends the following, not the job.

    The exit code is that of the training: 130 where it was stopped, 75 where another command writes the run.
    """
    _submit_training("pretrain", ctx, config, overrides, address, detach, fresh, stop_grace)


@app.command(
    epilog=examples(
        "longhaul submit finetune my-chat.yaml storage=/shared/runs data.dataset=/shared/chats "
        "initialize_from=/shared/runs/trunk --address http://head:8265",
        "longhaul submit finetune sentiment.yaml --detach",
    )
)
def finetune(
    ctx: typer.Context,
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    detach: Detach = False,
    fresh: Fresh = False,
    stop_grace: StopGrace = 300,
) -> None:
    """Teach a model to answer or to label as a job, as `finetune` does; all else is as with `submit pretrain`."""
    _submit_training("finetune", ctx, config, overrides, address, detach, fresh, stop_grace)


@app.command(
    epilog=examples(
        "longhaul submit data my-data.yaml output=/shared/datasets/mine --address http://head:8265",
        "longhaul submit data my-data.yaml --detach",
    )
)
def data(
    ctx: typer.Context,
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    detach: Detach = False,
    fresh: Fresh = False,
    stop_grace: StopGrace = 30,
) -> None:
    """Build a dataset as a job, as `data build` does; corpora, tokenizer and output by absolute paths.

    Ctrl-C ends the following, not the job. A build that was stopped goes on with the same command.
    """
    from cluster.jobs.submission import RUN, VERB
    from launcher.config_file import load_build_config, resolved_yaml
    from launcher.environment import require_absolute_paths

    build_config = load_build_config(config, overrides or ())
    require_absolute_paths(build_config)
    metadata = {RUN: build_config.name, VERB: "data build"}
    _submit(ctx, metadata, resolved_yaml(build_config), address, detach, fresh, stop_grace)


def _submit_training(
    verb: str,
    ctx: typer.Context,
    config: str,
    overrides: list[str] | None,
    address: str | None,
    detach: bool,
    fresh: bool,
    stop_grace: int,
) -> None:
    from cluster.jobs.job import run_metadata
    from cluster.storage.check import reachable_or_unknown
    from cluster.storage.operations import storage_path
    from launcher.config_file import load_run_config, resolved_yaml
    from launcher.console import messages
    from launcher.environment import require_absolute_paths
    from launcher.tasks import require_task_of

    run_config = load_run_config(config, overrides or (), fresh=fresh)
    require_task_of(verb, run_config)
    require_absolute_paths(run_config)
    unknown = reachable_or_unknown(run_config.storage)
    if unknown is not None:
        messages().print(f"not known from here, and left to the job to find out: {unknown}")
    metadata = run_metadata(str(storage_path(run_config.storage) / run_config.name), verb)
    _submit(ctx, metadata, resolved_yaml(run_config), address, detach, fresh, stop_grace)


def _submit(
    ctx: typer.Context,
    metadata: dict[str, str],
    config_yaml: str,
    address: str | None,
    detach: bool,
    fresh: bool,
    stop_grace: int,
) -> None:
    import re
    import secrets
    import tempfile
    from pathlib import Path

    from cluster.jobs.api import Jobs
    from cluster.jobs.submission import DIRECTORY, RUN, VERB
    from launcher.console import messages
    from launcher.environment import jobs_address
    from launcher.job_package import CONFIG_NAME, stage
    from launcher.report.units import byte_size, plural

    say = messages().print
    jobs = Jobs(jobs_address(address))
    if DIRECTORY in metadata:
        jobs.require_free(metadata[DIRECTORY])
    with tempfile.TemporaryDirectory(prefix="longhaul-job-") as directory:
        package = stage(Path(directory), config_yaml)
        largest, size = package.files[0]
        say(
            f"working directory: {plural(len(package.files), 'file')}, {byte_size(package.size_bytes)}, "
            f"{byte_size(package.zipped_bytes)} zipped; the largest is {largest} ({byte_size(size)})"
        )
        job = jobs.submit(
            f"exec python -m launcher {metadata[VERB]} ./{CONFIG_NAME}{' --fresh' if fresh else ''}",
            submission_id=f"longhaul-{re.sub(r'[^A-Za-z0-9._-]+', '-', metadata[RUN])}-{secrets.token_hex(3)}",
            working_directory=directory,
            metadata=metadata,
            stop_grace_seconds=stop_grace,
        )
    say(f"submitted as job {job}")
    if detach:
        verb = f"{program(ctx)} jobs"
        say(f"follow it with:  {verb} logs {job} --follow\nstop it with:    {verb} stop {job}")
        typer.echo(job)
        return
    raise typer.Exit(follow(jobs, job))


def follow(jobs: Jobs, reference: str) -> int:
    """Show a job's output until it has ended; Ctrl-C and a closed terminal leave it alone.

    Returns:
        The job's exit code.
    """
    from launcher.console import messages
    from launcher.errors import InterruptError

    say = messages().print
    job = jobs.get(reference, say)
    try:
        end = jobs.follow(job, lambda text: typer.echo(text, nl=False), say)
    except KeyboardInterrupt as error:
        raise InterruptError(
            f"not following any more; the job goes on. `longhaul jobs logs {job.id} --follow` shows it again, "
            f"`longhaul jobs stop {job.id}` stops it."
        ) from error
    if end.status == "STOPPED":
        say(f"job {end.id} was stopped")
    elif end.status == "FAILED":
        say(f"job {end.id} failed" + (f" with exit code {end.exit_code}" if end.exit_code else f": {end.message}"))
    else:
        say(f"job {end.id} finished")
    return end.result
