"""What the launcher takes from environment variables and the files that other programs keep beside them."""

from __future__ import annotations

import json
import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cluster.config import RunConfig
from cluster.jobs.submission import ORIGIN, PREDECESSOR, Submission
from data_pipeline.config import DataBuildConfig
from launcher.directories import is_uri
from launcher.errors import ConfigError, UsageError
from launcher.samples import is_sample

_INSIDE_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job manager for the entrypoint of a job, and only there
_WANDB_SERVER = "https://api.wandb.ai"


def ray_address(environment: Mapping[str, str] = os.environ) -> str | None:
    """Address of the Ray cluster to join; None asks for a private one on this machine."""
    return environment.get("RAY_ADDRESS") or None


def wandb_mode(
    asked: Literal["auto", "online", "offline", "disabled"], environment: Mapping[str, str] = os.environ
) -> Literal["online", "offline", "disabled"]:
    """Resolve `auto`: online where WANDB_API_KEY or the netrc file has an API key, offline elsewhere.

    Raises:
        ConfigError: `online` was asked for by name, and there is no key.
    """
    has_key = wandb_api_key(environment) is not None
    if asked == "online" and not has_key:
        raise ConfigError(
            f"wandb.mode is online, and no API key for {wandb_server(environment)} was found in WANDB_API_KEY or the "
            "netrc file. Run `wandb login`, or set wandb.mode=offline: the files can be uploaded later."
        )
    if asked == "auto":
        return "online" if has_key else "offline"
    return asked


def wandb_api_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The W&B API key of WANDB_API_KEY or of the netrc file, so that workers on other machines need none."""
    if environment.get("WANDB_API_KEY"):
        return environment["WANDB_API_KEY"]
    login = _netrc_login(environment)
    return login[2] if login else None


def wandb_server(environment: Mapping[str, str] = os.environ) -> str:
    """Address of the W&B server: WANDB_BASE_URL, or the public one."""
    return environment.get("WANDB_BASE_URL") or _WANDB_SERVER


def require_lasting_paths(config: RunConfig | DataBuildConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse relative paths inside a Ray job, whose working directory vanishes with it.

    Raises:
        ConfigError: Names the first key with a relative path.
    """
    if inside_ray_job(environment):
        require_absolute_paths(config)


def require_absolute_paths(config: RunConfig | DataBuildConfig) -> None:
    """Refuse relative paths in what a Ray job is to do.

    Raises:
        ConfigError: Names the first key with a relative path.
    """
    paths: dict[str, str | None]
    if isinstance(config, DataBuildConfig):
        paths = {"output": config.output, "tokenizer.path": config.tokenizer.path}
        paths |= {f"sources.{index}.path": source.path for index, source in enumerate(config.sources)}
    else:
        paths = {"storage": config.storage, "initialize_from": config.initialize_from}
        if isinstance(config.data.dataset, str):
            paths["data.dataset"] = config.data.dataset
        else:
            paths |= {f"data.dataset.{index}.path": entry.path for index, entry in enumerate(config.data.entries)}
    for key, path in paths.items():
        if path is not None:
            _require_absolute(key, path)


def submission(environment: Mapping[str, str] = os.environ) -> Submission | None:
    """The Ray job that this process is the driver of; None outside a job."""
    if not inside_ray_job(environment):
        return None
    metadata = json.loads(environment[_INSIDE_RAY_JOB]).get("metadata", {})
    job = metadata.get("job_submission_id")
    if job is None:
        return None
    return Submission(id=job, origin=metadata.get(ORIGIN, job), predecessor=metadata.get(PREDECESSOR))


def inside_ray_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Ray's job manager started this process."""
    return _INSIDE_RAY_JOB in environment


def jobs_address(given: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Address of the cluster that jobs are submitted to.

    Raises:
        UsageError: None was named, so that Ray would take any cluster that it finds on this machine; or it is no URL.
    """
    address = given or environment.get("RAY_API_SERVER_ADDRESS")
    if address and not re.fullmatch(r"https?://[^/?#\s]+/?", address):
        raise UsageError(
            f"'{address}' is no address of a Jobs API: that is the URL of the head's dashboard, as in http://head:8265."
        )
    if not address:
        raise UsageError(
            "no cluster was named. Give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS: the address of the "
            "head's dashboard, which `ray start --head` prints."
        )
    return address


def _require_absolute(key: str, path: str) -> None:
    if key in ("storage", "initialize_from") and is_uri(path):
        return
    if not Path(path).is_absolute() and not is_sample(path):
        raise ConfigError(
            f"{key} is '{path}', no absolute path: inside a Ray job it would lie in the job's working directory, which "
            f"is deleted with the job. Give an absolute path that every node sees: {key}=/shared/..."
        )


def _netrc_login(environment: Mapping[str, str]) -> tuple[str, str, str] | None:
    home = Path(environment["HOME"]) if environment.get("HOME") else Path.home()
    path = Path(environment.get("NETRC") or home / ".netrc")
    host = urlsplit(wandb_server(environment)).hostname or ""
    try:
        return netrc.netrc(path).hosts.get(host)
    except (OSError, netrc.NetrcParseError):
        return None
