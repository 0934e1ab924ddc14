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
from pathlib import Path
from typing import Any, Protocol

from cluster.run_directory import PUBLISHED_STEP, RUN_NAME
from cluster.submission import ORIGIN, PREDECESSOR, chain, driver_was_killed

logger = logging.getLogger(__name__)

NAMESPACE = "longhaul"
_POLL_SECONDS = 1.0
_PAUSE_SECONDS = 2.0
_BARREN_DEATHS = 3


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

    def get_job_info(self, job_id: str) -> Any:
        """Details of a submission."""

    def list_jobs(self) -> list[Any]:
        """Details of all jobs."""

    def submit_job(self, **arguments: Any) -> str:
        """Submit; returns the submission id."""


def watch(api: JobsApi, charge: Charge, *, sleep: Callable[[float], None] = time.sleep) -> str:
    """Look after a chain until it ends.

    Args:
        api: The Jobs API.
        charge: The chain.
        sleep: Waits so many seconds.

    Returns:
        Why there is nothing to look after any more.
    """
    current = chain(api.list_jobs(), charge.origin)[-1].submission_id
    barren_deaths, last_progress = 0, progress(charge)
    while True:
        details = api.get_job_info(current)
        if not details.status.is_terminal():
            sleep(_POLL_SECONDS)
            continue
        if not driver_was_killed(details.status.value, details.driver_exit_code):
            return f"job {current} ended: {details.status.value}"
        now = progress(charge)
        barren_deaths = 1 if now != last_progress else barren_deaths + 1
        last_progress = now
        if barren_deaths > _BARREN_DEATHS:
            return f"job {current}: its driver died {barren_deaths} times in a row without a new checkpoint"
        sleep(_PAUSE_SECONDS)
        newest = chain(api.list_jobs(), charge.origin)[-1].submission_id
        current = newest if newest != current else _submit_again(api, details, charge.origin)


def progress(charge: Charge) -> int | None:
    """Step of the run's last published checkpoint; None where there is none yet."""
    try:
        facts = json.loads((Path(charge.run_directory) / RUN_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    step = facts.get(PUBLISHED_STEP)
    return step if isinstance(step, int) else None


def _submit_again(api: JobsApi, details: Any, origin: str) -> str:
    number = len(chain(api.list_jobs(), origin))
    metadata = {key: value for key, value in (details.metadata or {}).items() if not key.startswith("job_")}
    return api.submit_job(
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

    def ready(self) -> bool:
        """Answers once the actor is there."""
        return True

    def _work(self) -> None:
        import ray
        from ray.job_submission import JobSubmissionClient

        os.environ["RAY_API_SERVER_ADDRESS"] = self._charge.dashboard_url  # what else the environment names would win
        while True:
            try:
                logger.info("%s", watch(JobSubmissionClient(self._charge.dashboard_url), self._charge))
            except Exception as error:  # noqa: BLE001 - a Jobs API that does not answer now is asked again
                logger.warning("the Jobs API does not answer: %s", error)
                time.sleep(_PAUSE_SECONDS)
                continue
            ray.kill(ray.get_actor(actor_name(self._charge.origin), namespace=NAMESPACE), no_restart=True)
            os._exit(0)


def actor_name(origin: str) -> str:
    """Name of a chain's guardian."""
    return f"guardian-of-{origin}"


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
