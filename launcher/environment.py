"""What the launcher takes from environment variables and the files that other programs keep beside them."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from cluster.config import RunConfig
from launcher.errors import ConfigError
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
    has_key = bool(environment.get("WANDB_API_KEY")) or _in_netrc(environment)
    if asked == "online" and not has_key:
        raise ConfigError(
            f"wandb.mode is online, and no API key for {wandb_server(environment)} was found in WANDB_API_KEY or the "
            "netrc file. Run `wandb login`, or set wandb.mode=offline: the files can be uploaded later."
        )
    if asked == "auto":
        return "online" if has_key else "offline"
    return asked


def wandb_server(environment: Mapping[str, str] = os.environ) -> str:
    """Address of the W&B server: WANDB_BASE_URL, or the public one."""
    return environment.get("WANDB_BASE_URL") or _WANDB_SERVER


def require_lasting_paths(config: RunConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse relative paths inside a Ray job, whose working directory vanishes with it.

    Raises:
        ConfigError: Names the first key with a relative path.
    """
    if _INSIDE_RAY_JOB not in environment:
        return
    paths = {"storage": config.storage}
    if isinstance(config.data.dataset, str):
        paths["data.dataset"] = config.data.dataset
    else:
        paths |= {f"data.dataset.{index}.path": entry.path for index, entry in enumerate(config.data.entries)}
    for key, path in paths.items():
        if not Path(path).expanduser().is_absolute() and not is_sample(path):
            raise ConfigError(
                f"{key} is '{path}', a relative path: inside a Ray job it would lie in the job's working "
                "directory, which is deleted with the job. Give an absolute path that every node sees: "
                f"{key}=/shared/..."
            )


def _in_netrc(environment: Mapping[str, str]) -> bool:
    home = Path(environment["HOME"]) if environment.get("HOME") else Path.home()
    path = Path(environment.get("NETRC") or home / ".netrc")
    host = urlsplit(wandb_server(environment)).hostname or ""
    try:
        return host in netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
