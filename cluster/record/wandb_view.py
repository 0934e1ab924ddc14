"""How a run's record looks in W&B: configuration and lineage, history rows, tables, summary."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

STEP_AXIS = "train/step"
EVALUATIONS_TABLE = "evaluations"
SAMPLES_TABLE = "samples"
EVENTS_TABLE = "events"
LOSS_NOT_FINITE = "Loss is not finite"

_UNLOGGED = ("kind", "step", "name", "nonfinite")
_RELOGGED_PER_NEW_ROW = 8
_SAMPLE_COLUMNS = ("step", "name", "prompt", "text", "attempt")
_EVENT_COLUMNS = ("step", "event", "attempt", "time_unix_seconds", "details")

Alert = Callable[[str, str], None]
"""alert(title, text)"""


def run_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """W&B's config out of run.json: the whole configuration, the model as resolved, and what the run comes from."""
    config = dict(facts.get("config", {}))
    config["model"] = {**config.get("model", {}), **facts.get("model", {})}
    for key in ("layout", "environment"):
        if key in facts:
            config[key] = facts[key]
    datasets = facts.get("datasets", [])
    config["lineage"] = {
        "run": {key: facts.get(key) for key in ("id", "created_unix_seconds")},
        "data_plan": facts.get("data_plan", {}).get("fingerprint"),
        "tokenizer": datasets[0]["tokenizer"] if datasets else None,  # all datasets of a run share it
        "datasets": {dataset.get("label", dataset["name"]): dataset["fingerprint"] for dataset in datasets},
    }
    for key in ("parent", "initialized_from"):
        if key in facts:
            config["lineage"][key] = facts[key]
    return config


def history_row(row: Mapping[str, Any], *, several_datasets: bool) -> dict[str, Any]:
    """A line of metrics.jsonl or samples.jsonl as W&B history: own step axis, as W&B drops steps that go back."""
    if row.get("kind") == "sample":
        return {
            STEP_AXIS: row["step"],
            "attempt": row["attempt"],
            "sample/prompt": row["prompt"],
            "sample/text": row["text"],
        }
    fields = {key: value for key, value in row.items() if key not in _UNLOGGED and value is not None}
    for key in row.get("nonfinite", ()):
        fields[key] = math.nan
    if row["kind"] == "eval" and several_datasets:
        fields = {key.replace("eval/", f"eval/{row['name']}/"): value for key, value in fields.items()}
    return {STEP_AXIS: row["step"], **fields}


def already_there(row: Mapping[str, Any], server: tuple[int, int]) -> bool:
    """Whether the server has a line, its newest being of (attempt, step): an attempt first sends what it continues."""
    return (row["attempt"], row["step"]) < server


class GrowingTable:
    """Rows of a table that W&B can only take whole.

    It is logged again once an eighth was added, so that n rows cost at most 9 n in all and the table is never far
    behind; what is missing is logged at the end.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.rows: list[tuple[Any, ...]] = []
        self._logged = 0

    def add(self, *row: Any) -> None:
        """Append a row, one value for each column."""
        self.rows.append(row)

    def is_due(self, *, at_end: bool) -> bool:
        """Whether to log it now; at the end, whatever is new."""
        new = len(self.rows) - self._logged
        return new > 0 and (at_end or new * _RELOGGED_PER_NEW_ROW >= self._logged)

    def mark_logged(self) -> None:
        """All rows of now are in W&B."""
        self._logged = len(self.rows)


class RunView:
    """Shows lines of the record in one W&B run."""

    def __init__(
        self,
        run: Any,
        *,
        several_datasets: bool,
        server: tuple[int, int],
        attempt: int | None,
        alert: Alert,
    ) -> None:
        """Begin with an empty record.

        Args:
            run: The W&B run.
            several_datasets: Whether evaluations are named by their dataset.
            server: (attempt, step) of the newest line that the server has; (0, 0) where it has none.
            attempt: The attempt whose mishaps are worth an alert; None for none.
            alert: Raises an alert.
        """
        self._run = run
        self._several = several_datasets
        self._server = server
        self._attempt = attempt
        self._alert = alert
        self._newest = (0, 0)
        """(attempt, step) of the newest line of metrics.jsonl so far."""
        self._best: dict[str, float] = {}
        self._evaluations: GrowingTable | None = None
        """Begun with the first evaluation, whose figures are its columns."""
        self._figures: tuple[str, ...] = ()
        self._samples = GrowingTable(_SAMPLE_COLUMNS)

    def take(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show further lines of metrics.jsonl and samples.jsonl."""
        for row in rows:
            if "kind" not in row:
                continue  # a sample that was put there after the training
            late = row["kind"] == "eval" and (row["attempt"], row["step"]) < self._newest
            if row["kind"] != "sample":
                self._newest = max(self._newest, (row["attempt"], row["step"]))
            if late or not already_there(row, self._server):  # the server's newest line says nothing of late ones
                self._run.log(history_row(row, several_datasets=self._several))
            if row["kind"] == "eval":
                self._take_evaluation(row)
            elif row["kind"] == "sample":
                self._samples.add(*(row[column] for column in _SAMPLE_COLUMNS))
            elif "train/loss" in row.get("nonfinite", ()) and row["attempt"] == self._attempt:
                self._alert(LOSS_NOT_FINITE, f"the loss of step {row['step']} is not a finite number")
        self._log_tables(at_end=False)

    def show_events(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Show events.jsonl, whole."""
        table = GrowingTable(_EVENT_COLUMNS)
        for row in events:
            details = {key: value for key, value in row.items() if key not in _EVENT_COLUMNS}
            known = (row.get(column) for column in _EVENT_COLUMNS[:-1])
            table.add(*known, json.dumps(details, ensure_ascii=False))
        if table.rows:
            self._log_table(EVENTS_TABLE, table)

    def end(self, status: str) -> None:
        """Log what is outstanding, and how the attempt ended."""
        self._log_tables(at_end=True)
        self._run.summary["status"] = status

    def _take_evaluation(self, row: Mapping[str, Any]) -> None:
        if self._evaluations is None:
            self._figures = tuple(key for key in row if key.startswith("eval/"))
            names = (key.removeprefix("eval/") for key in self._figures)
            self._evaluations = GrowingTable(("step", "name", *names, "attempt"))
        figures = (row.get(key) for key in self._figures)
        self._evaluations.add(row["step"], row["name"], *figures, row["attempt"])
        judged = "perplexity" if "eval/perplexity" in row else "loss"
        value = row[f"eval/{judged}"]
        if value is not None and value < self._best.get(row["name"], math.inf):
            self._best[row["name"]] = value
            place = f"best/eval/{row['name']}" if self._several else "best/eval"
            self._run.summary.update({f"{place}/{judged}": value, f"{place}/step": row["step"]})

    def _log_tables(self, *, at_end: bool) -> None:
        for name, table in ((EVALUATIONS_TABLE, self._evaluations), (SAMPLES_TABLE, self._samples)):
            if table is not None and table.is_due(at_end=at_end):
                self._log_table(name, table)

    def _log_table(self, name: str, table: GrowingTable) -> None:
        import wandb

        rows = [list(row) for row in table.rows]
        self._run.log({name: wandb.Table(columns=list(table.columns), data=rows)})
        table.mark_logged()
