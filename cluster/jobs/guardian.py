"""The guardian of a job: a small detached actor that submits the job again when its driver dies.

It lives in the cluster, so that nobody's terminal is needed. A job that finished, was stopped, or ended with an error
of its own is left alone: only a driver that was killed (out of memory, a lost node, SIGKILL) is replaced, and only as
long as the run gets on: three deaths in a row without a new checkpoint end it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.jobs.submission import ORIGIN, PREDECESSOR, chain, driver_was_killed
from cluster.run_directory import PUBLISHED_STEP, RUN_NAME
from cluster.storage.operations import storage_path

logger = logging.getLogger(__name__)

NAMESPACE = "longhaul"
_POLL_SECONDS = 1.0
_PAUSE_SECONDS = 2.0
_BARREN_DEATHS = 3
_NAME = "guardian-of-"
_LISTED = 1000
"""So many guardians are asked for, of a cluster's whole life."""


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What a guardian looks after."""

    origin: str
    """First submission id of the chain."""
    run_directory: str
    """Where its progress is seen."""
    dashboard_url: str
    """Where the cluster's Jobs API answers."""


class JobsApi(Protocol):
    """The part of Ray's `JobSubmissionClient` that a guardian uses."""

    def list_jobs(self) -> list[Any]:
        """Details of all jobs."""

    def submit_job(self, **arguments: Any) -> str:
        """Submit; returns the submission id."""


@dataclass
class DeathTally:
    """What a guardian remembers of the deaths so far."""

    progress: int | None = None
    barren_deaths: int = 0
    """In a row, without a new checkpoint."""
    counted: str | None = None
    """The submission whose death was counted last: the Jobs API may fail before it is submitted again."""


def watch(api: JobsApi, charge: Charge, tally: DeathTally, *, sleep: Callable[[float], None] = time.sleep) -> str:
    """Look after a chain until it ends.

    Args:
        api: The Jobs API.
        charge: The chain.
        tally: Kept by the caller, so that an interruption of the API changes no count.
        sleep: Waits so many seconds.

    Returns:
        Why there is nothing to look after any more.
    """
    while True:
        members = chain(api.list_jobs(), charge.origin)
        if not members:
            return f"job {charge.origin} was deleted"
        newest = members[-1]
        if not newest.status.is_terminal():
            sleep(_POLL_SECONDS)
            continue
        if not driver_was_killed(newest.status.value, newest.driver_exit_code):
            return f"job {newest.submission_id} ended: {newest.status.value}"
        if newest.submission_id != tally.counted:
            now = progress(charge)
            tally.barren_deaths = 0 if now != tally.progress else tally.barren_deaths + 1
            tally.progress, tally.counted = now, newest.submission_id
        if tally.barren_deaths == _BARREN_DEATHS:
            deaths = tally.barren_deaths
            return f"job {newest.submission_id}: its driver died {deaths} times in a row without a new checkpoint"
        sleep(_PAUSE_SECONDS)
        _submit_again(api, newest, charge.origin)


def progress(charge: Charge) -> int | None:
    """Step of the run's last published checkpoint; None where there is none yet."""
    try:
        facts = json.loads((storage_path(charge.run_directory) / RUN_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    step = facts.get(PUBLISHED_STEP)
    return step if isinstance(step, int) else None


def _submit_again(api: JobsApi, details: Any, origin: str) -> None:
    numbers = [job.submission_id.removeprefix(f"{origin}-again-") for job in api.list_jobs() if job.submission_id]
    number = max((int(text) for text in numbers if text.isdigit()), default=0) + 1
    metadata = {key: value for key, value in (details.metadata or {}).items() if not key.startswith("job_")}
    api.submit_job(
        entrypoint=details.entrypoint,
        submission_id=f"{origin}-again-{number}",
        runtime_env=details.runtime_env or {},
        metadata={**metadata, ORIGIN: origin, PREDECESSOR: details.submission_id},
    )


class Guardian:
    """The actor. It looks up the chain when it starts, so that Ray may restart it anywhere."""

    def __init__(self, charge: Charge) -> None:
        import threading

        self._charge = charge
        threading.Thread(target=self._work, name="guardian", daemon=True).start()

    def __repr__(self) -> str:
        """The run's directory: Ray lists it with the actor, so that the Jobs API's users learn whose job this is."""
        return self._charge.run_directory

    def ready(self) -> bool:
        """Answers once the actor is there."""
        return True

    def _work(self) -> None:
        import ray
        from ray.job_submission import JobSubmissionClient

        os.environ["RAY_API_SERVER_ADDRESS"] = self._charge.dashboard_url  # what else the environment names would win
        tally = DeathTally(progress=progress(self._charge))
        while True:
            try:
                logger.info("%s", watch(JobSubmissionClient(self._charge.dashboard_url), self._charge, tally))
            except Exception as error:  # noqa: BLE001 - a Jobs API that does not answer now is asked again
                logger.warning("the Jobs API does not answer: %s", error)
                time.sleep(_PAUSE_SECONDS)
                continue
            ray.kill(ray.get_actor(actor_name(self._charge.origin), namespace=NAMESPACE), no_restart=True)
            os._exit(0)


def actor_name(origin: str) -> str:
    """Name of a chain's guardian."""
    return f"{_NAME}{origin}"


def watched_directories(dashboard_url: str) -> dict[str, str]:
    """Directories of the runs that have or had a guardian, by the first submission of their chain.

    Args:
        dashboard_url: Where the cluster's API answers.
    """
    from ray.util.state import list_actors

    actors = list_actors(
        address=dashboard_url,
        filters=[("class_name", "=", Guardian.__name__)],
        limit=_LISTED,
        detail=True,
        raise_on_missing_output=False,
    )
    return {
        actor.name.removeprefix(_NAME): actor.repr_name
        for actor in actors
        if (actor.name or "").startswith(_NAME) and actor.repr_name
    }


def start_guardian(charge: Charge) -> None:
    """Start the guardian of a chain beside its driver, unless it is there already; it outlives the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {
        "name": actor_name(charge.origin),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "scheduling_strategy": beside,
    }
    actor = ray.remote(Guardian).options(**options).remote(charge)
    ray.get(actor.ready.remote())
