"""Weights & Biases as a view of the run's record: fed by a thread, never able to stop or slow the training."""

from __future__ import annotations

import logging
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.errors import TrackingError

logger = logging.getLogger(__name__)

STEP_AXIS = "train/step"
_UNLOGGED = ("kind", "step", "name", "nonfinite")

Mode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """How a run appears in W&B. The id is the run's for ever, so that all attempts are one curve."""

    mode: Mode
    project: str
    run_id: str
    name: str
    entity: str | None = None
    group: str | None = None


def check_reachable(base_url: str, timeout_seconds: float = 10.0) -> None:
    """Prove that the server answers, before anything is started.

    Raises:
        TrackingError: It does not.
    """
    try:
        urllib.request.urlopen(base_url, timeout=timeout_seconds).close()
    except urllib.error.HTTPError:
        return  # any answer is an answer
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"wandb.mode is online, and {base_url} cannot be reached: {error}. Mend the connection, or set "
            "wandb.mode=offline: the run's directory then holds files that `wandb sync` uploads later."
        ) from error


def history_row(row: Mapping[str, Any], *, several_datasets: bool) -> dict[str, Any]:
    """A metrics line as W&B history: own step axis, no `step=` (W&B drops steps that go back)."""
    fields = {key: value for key, value in row.items() if key not in _UNLOGGED and value is not None}
    for key in row.get("nonfinite", ()):
        fields[key] = float("nan")
    if row["kind"] == "eval" and several_datasets:
        fields = {key.replace("eval/", f"eval/{row['name']}/"): value for key, value in fields.items()}
    return {STEP_AXIS: row["step"], **fields}


class WandbMirror:
    """Feeds one W&B run from a thread.

    Offline, every start first logs the whole record again, so that the newest offline directory is complete by itself;
    online, it logs what the server lacks.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        directory: Path,
        *,
        config: Mapping[str, Any],
        record: Sequence[Mapping[str, Any]],
        several_datasets: bool,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._config = config
        self._record = record
        self._several = several_datasets
        self._rows: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        if settings.mode != "disabled":
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()

    def put(self, row: Mapping[str, Any]) -> None:
        """Hand over a metrics line; returns at once."""
        if self._thread is not None:
            self._rows.put(row)

    def close(self, timeout_seconds: float = 60.0) -> None:
        """Let the queue drain and finish the run, for as long as the time allows."""
        if self._thread is not None:
            self._rows.put(None)
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                logger.warning(
                    "W&B did not finish within %.0f s; its files are in %s", timeout_seconds, self._directory
                )

    def _work(self) -> None:
        try:
            run = self._start()
            server_step = run.summary.get(STEP_AXIS, 0) if self._settings.mode == "online" else 0
            for row in self._record:
                if row["step"] > server_step:
                    run.log(history_row(row, several_datasets=self._several))
            while (item := self._rows.get()) is not None:
                run.log(history_row(item, several_datasets=self._several))
            run.finish()
        except Exception:  # tracking must never stop a training: the record has every line
            logger.exception("W&B tracking ended; metrics.jsonl goes on and is the record")

    def _start(self) -> Any:
        import wandb

        self._directory.mkdir(parents=True, exist_ok=True)
        settings = self._settings
        arguments: dict[str, Any] = {
            "project": settings.project,
            "entity": settings.entity,
            "group": settings.group,
            "name": settings.name,
            "id": settings.run_id,
            "resume": "allow",
            "dir": str(self._directory.parent),
            "config": dict(self._config),
            "settings": wandb.Settings(
                console="off",
                silent=True,
                init_timeout=30,
                finish_timeout=60,
                x_transaction_log_flush_interval=1,
            ),
        }
        try:
            run = wandb.init(mode=settings.mode, **arguments)
        except wandb.errors.Error as error:
            if settings.mode == "offline":
                raise
            logger.warning("W&B cannot be reached (%s): this attempt is tracked offline in %s", error, self._directory)
            run = wandb.init(mode="offline", **arguments)
        run.define_metric(STEP_AXIS)
        run.define_metric("*", step_metric=STEP_AXIS)
        return run
