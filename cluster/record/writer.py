"""What rank 0 writes in the course of an attempt: metrics and samples, with W&B's mirror of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.record.logs import METRICS_NAME, SAMPLES_NAME, StepLog
from cluster.record.wandb_mirror import ATTEMPT_FAILED, Failure, Status, TrackingSettings, WandbMirror
from cluster.storage.operations import StoragePath


class RecordWriter:
    """metrics.jsonl and samples.jsonl of a run, brought back to where training continues."""

    def __init__(
        self,
        run_directory: StoragePath,
        *,
        attempt: int,
        after_step: int,
        clock: Callable[[], float],
        tracking: TrackingSettings,
        before: WandbMirror | None = None,
    ) -> None:
        """Open both logs and begin to mirror them; run.json must hold the attempt's facts already.

        Args:
            run_directory: The run.
            attempt: This attempt's number.
            after_step: Step of the checkpoint that training continues from.
            clock: Unix seconds.
            tracking: How the run appears in W&B.
            before: The mirror of the attempt before, where that was made in this process.
        """
        self._attempt = attempt
        self._mirror: WandbMirror | None = None
        self._metrics, self._samples = (
            StepLog(
                run_directory / name, attempt=attempt, after_step=after_step, clock=clock, readable=self._wake_mirror
            )
            for name in (METRICS_NAME, SAMPLES_NAME)
        )
        self._mirror = WandbMirror(tracking, run_directory, attempt=attempt, before=before)

    def write_metrics(self, kind: str, step: int, fields: dict[str, Any]) -> dict[str, Any]:
        """Append a line to metrics.jsonl; returns it as it stands there."""
        return self._metrics.write(kind, step, fields)

    def write_sample(self, step: int, *, name: str, prompt: str, text: str) -> None:
        """Append a line to samples.jsonl."""
        self._samples.write("sample", step, {"name": name, "prompt": prompt, "text": text})

    def sync(self) -> None:
        """Make all lines durable; a checkpoint is published only after its metrics and samples are.

        Raises:
            OSError: They cannot be written.
        """
        self._metrics.sync()
        self._samples.sync()

    def close(self, status: Status, error: BaseException | None = None) -> None:
        """Make all lines durable, and let the mirror show them and the error that ended the attempt.

        Raises:
            OSError: They cannot be written.
        """
        try:
            self._close_logs()
        finally:
            if self._mirror is not None:
                self._mirror.close(status, None if error is None else self._failure(error))

    def leave(self, status: Status, failure: Failure | None = None) -> WandbMirror | None:
        """Make all lines durable, and give away the mirror, which finishes by itself beside the next attempt.

        Args:
            status: How this one ended.
            failure: Raises an alert.

        Raises:
            OSError: They cannot be written.
        """
        try:
            self._close_logs()
        finally:
            if self._mirror is not None:
                self._mirror.leave(status, failure)
        return self._mirror

    def _close_logs(self) -> None:
        self._metrics.close()
        self._samples.close()

    def _wake_mirror(self) -> None:
        if self._mirror is not None:
            self._mirror.wake()

    def _failure(self, error: BaseException) -> Failure:
        said = str(error).strip() or type(error).__name__
        return Failure(title=ATTEMPT_FAILED, text=f"attempt {self._attempt} ended: {said}")
