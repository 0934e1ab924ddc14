"""`longhaul jobs`: what runs on a cluster, and how to watch and stop it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.commands.arguments import Address, AsJson, examples, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.jobs.api import Jobs
    from cluster.jobs.job import Job

_POLL_SECONDS = 1.0
_UNFOLDED = 1000
"""Characters that a line may have where no terminal limits it: a program finds each job in one line."""

app = typer.Typer(help="List, watch and stop the jobs of a Ray cluster.", no_args_is_help=True)

JobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Submission id, or the name of a run: its job at work, else the newest that had the run.",
        show_default=False,
    ),
]


@app.command(
    "list", epilog=examples("longhaul jobs list --address http://head:8265", "longhaul jobs list --all --json")
)
def list_(
    address: Address = None,
    everything: Annotated[bool, typer.Option("--all", help="Also jobs that run something else.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs of a cluster that run Longhaul, whoever submitted them and how, the newest last."""
    from launcher.console import results

    found = [job for job in _jobs(address).all() if everything or job.verb or "launcher" in job.entrypoint]
    if as_json:
        print_json([_facts(job) for job in found])
        return
    out = results()
    if not out.file.isatty():
        out.width = _UNFOLDED
    out.print(_listing(found) if found else "no jobs")


@app.command(epilog=examples("longhaul jobs status my-run", "longhaul jobs status longhaul-my-run-1a2b3c --json"))
def status(job: JobName, address: Address = None, as_json: AsJson = False) -> None:
    """Say how a job stands; the exit code is 0 while it is well, and that of the job once it has ended."""
    from launcher.console import messages, results
    from launcher.report.units import moment

    jobs = _jobs(address)
    found = jobs.get(job, messages().print)
    if as_json:
        print_json(_facts(found))
    else:
        out = results()
        out.print(f"job      {found.id}")
        out.print(f"state    {_state(found)}")
        out.print(f"command  {found.entrypoint}")
        out.print(f"begun    {moment(found.start_unix_seconds)}, lasted {_lasted(found)}")
        if found.continues:
            out.print(f"after    {found.continues}, whose driver died")
        if found.reason:
            out.print(f"reason   {found.reason}")
        if found.driver_was_killed:
            if found.last_line:
                out.print(f"printed  {found.last_line}")
            following = jobs.next_of_chain(found)
            out.print(f"then     {f'{following.id} took its place' if following else 'no job took its place so far'}")
    raise typer.Exit(found.result if found.ended else 0)


@app.command(epilog=examples("longhaul jobs logs my-run", "longhaul jobs logs my-run --follow"))
def logs(
    job: JobName,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the job has ended, and exit with its code.")
    ] = False,
) -> None:
    """Show what a job has printed."""
    from launcher.commands.submit import follow as follow_job
    from launcher.console import messages

    jobs = _jobs(address)
    if follow:
        raise typer.Exit(follow_job(jobs, job))
    typer.echo(jobs.logs(jobs.get(job, messages().print)), nl=False)


@app.command(epilog=examples("longhaul jobs stop my-run", "longhaul jobs stop longhaul-my-run-1a2b3c --no-wait"))
def stop(
    job: JobName,
    address: Address = None,
    wait: Annotated[bool, typer.Option(help="Wait until the job has saved its state and ended.")] = True,
) -> None:
    """Stop a job for good: a training saves a checkpoint first, and nobody submits it again."""
    from launcher.console import is_interactive, messages

    jobs = _jobs(address)
    console = messages()
    found = jobs.newest_of_chain(jobs.get(job, console.print))
    if found.ended and not found.driver_was_killed:
        typer.echo(f"job {found.id} had ended before: {_state(found)}")
        return
    text = f"job {found.id} saves its state and stops"
    if is_interactive(console):
        with console.status(text):
            found = _stop(jobs, found, wait=wait)
    else:
        console.print(text)
        found = _stop(jobs, found, wait=wait)
    typer.echo(f"job {found.id}: {_state(found) if found.ended else 'told to stop'}")
    if found.driver_was_killed:
        raise typer.Exit(1)


def _listing(found: list[Job]) -> Table:
    """The jobs as a table in which only names and ids are folded, where the terminal is too narrow for them."""
    from launcher.console import table

    rows = table("job", "run", "state", "begun (UTC)", "lasted")
    for column in rows.columns[2:]:
        column.no_wrap = True
    for job in found:
        rows.add_row(job.id, job.run or "", _short_state(job), _begun(job), _lasted(job))
    return rows


def _stop(jobs: Jobs, job: Job, *, wait: bool) -> Job:
    """Stop the newest of a job's chain, also when its driver dies in this moment and a guardian replaces it."""
    while True:
        if not job.ended:
            told = jobs.stop(job)
            if told and not wait:
                return job
            job = _wait_for_end(jobs, job) if told else jobs.get(job.id)
        if job.ended:
            successor = jobs.successor(job) if job.driver_was_killed else None
            if successor is None:
                return job
            job = successor
        time.sleep(_POLL_SECONDS)


def _wait_for_end(jobs: Jobs, job: Job) -> Job:
    while not job.ended:
        time.sleep(_POLL_SECONDS)
        job = jobs.get(job.id)
    return job


def _jobs(address: str | None) -> Jobs:
    from cluster.jobs.api import Jobs
    from launcher.environment import jobs_address

    return Jobs(jobs_address(address))


def _state(job: Job) -> str:
    words = job.status.lower()
    return f"{words} (exit code {job.exit_code})" if job.status == "FAILED" and job.exit_code is not None else words


def _short_state(job: Job) -> str:
    """The state in a table: an exit code in brackets."""
    words = job.status.lower()
    return f"{words} ({job.exit_code})" if job.status == "FAILED" and job.exit_code is not None else words


def _begun(job: Job) -> str:
    """When, without the year, to the minute: a table has no room for more."""
    from launcher.report.units import MISSING, moment

    return moment(job.start_unix_seconds)[5:16] if job.start_unix_seconds else MISSING


def _lasted(job: Job) -> str:
    from launcher.report.units import duration

    if job.start_unix_seconds is None:
        return duration(None)
    return duration((job.end_unix_seconds or time.time()) - job.start_unix_seconds)


def _facts(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "run": job.run,
        "verb": job.verb,
        "directory": job.directory,
        "status": job.status,
        "exit_code": job.exit_code,
        "entrypoint": job.entrypoint,
        "start_unix_seconds": job.start_unix_seconds,
        "end_unix_seconds": job.end_unix_seconds,
        "continues": job.continues,
    }
