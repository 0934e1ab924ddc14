"""Jobs as a cluster tells of them, without a cluster."""

from __future__ import annotations

from cluster.jobs.job import Job, run_metadata

OUTPUT = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n"
"""How Ray begins the message of a job that failed, before the end of its output."""
BEGUN = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC


def job(
    identity: str = "j",
    status: str = "RUNNING",
    exit_code: int | None = None,
    *,
    message: str = "",
    directory: str | None = "/shared/long",
    **metadata: str,
) -> Job:
    """A job that trains the run in a directory; without one nobody said what it does, unless `metadata` tells."""
    return Job(
        id=identity,
        status=status,
        entrypoint="python -m launcher pretrain long.yaml",
        message=message,
        exit_code=exit_code,
        start_unix_seconds=BEGUN,
        end_unix_seconds=BEGUN + 754,
        metadata={**(run_metadata(directory) if directory else {}), **metadata},
    )
