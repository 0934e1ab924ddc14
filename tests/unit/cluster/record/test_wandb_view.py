from __future__ import annotations

import math
from typing import Any

import pytest

from cluster.record.wandb_view import GrowingTable, RunView, already_there, history_row, run_config

ROW = {"kind": "train", "step": 3, "attempt": 1, "train/loss": 2.0, "train/perplexity": math.exp(2.0)}
NOT_FINITE = {"kind": "train", "step": 4, "attempt": 2, "train/loss": None, "nonfinite": ["train/loss"]}


class Run:
    """What a W&B run is told."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}

    def log(self, row: dict[str, Any]) -> None:
        self.logged.append(row)


def view_of(run: Run, *, server: tuple[int, int] = (0, 0), attempt: int | None = 2) -> tuple[RunView, list[str]]:
    alerts: list[str] = []

    def alert(title: str, text: str) -> None:
        alerts.append(f"{title}: {text}")

    return RunView(run, several_datasets=False, server=server, attempt=attempt, alert=alert), alerts


def test_history_row_has_its_own_step_axis() -> None:
    assert history_row(ROW, several_datasets=False) == {
        "train/step": 3,
        "attempt": 1,
        "train/loss": 2.0,
        "train/perplexity": math.exp(2.0),
    }


def test_history_row_has_what_experts_did_on_the_step_axis() -> None:
    fields = {"train/router_balance": 1.25, "router/largest_load": 1.5, "router/smallest_load": 0.5}
    assert history_row({**ROW, **fields}, several_datasets=True) == {
        **history_row(ROW, several_datasets=True),
        **fields,
    }


def test_history_row_shows_numbers_that_are_not_finite() -> None:
    assert math.isnan(history_row(NOT_FINITE, several_datasets=False)["train/loss"])


def test_history_row_names_the_dataset_when_there_are_several() -> None:
    row = {"kind": "eval", "step": 3, "name": "books", "eval/loss": 2.0}
    assert history_row(row, several_datasets=False) == {"train/step": 3, "eval/loss": 2.0}
    assert history_row(row, several_datasets=True) == {"train/step": 3, "eval/books/loss": 2.0}


@pytest.mark.parametrize(
    ("line", "server", "expected"),
    [
        ((1, 30), (1, 37), True),
        ((1, 37), (1, 37), False),  # an evaluation may follow the line of the same step
        ((2, 31), (1, 37), False),  # computed again after step 30
        ((1, 30), (2, 31), True),  # attempt 2 has sent it before its own
        ((1, 1), (0, 0), False),
    ],
)
def test_line_is_sent_once_when_the_server_has_some(
    line: tuple[int, int], server: tuple[int, int], expected: bool
) -> None:
    assert already_there({"attempt": line[0], "step": line[1]}, server) is expected


def test_view_logs_only_what_the_server_lacks() -> None:
    run = Run()
    view_of(run, server=(1, 4))[0].take([ROW, {**ROW, "step": 5}])
    assert [row["train/step"] for row in run.logged] == [5]


@pytest.mark.parametrize(("attempt", "expected"), [(2, 1), (3, 0), (None, 0)])
def test_alert_is_raised_when_this_attempt_has_a_loss_that_is_not_finite(attempt: int | None, expected: int) -> None:
    view, alerts = view_of(Run(), attempt=attempt)
    view.take([ROW, NOT_FINITE])
    assert alerts == ["Loss is not finite: the loss of step 4 is not a finite number"] * expected


def test_late_evaluation_is_logged_when_the_server_has_lines_of_later_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunView, "_log_tables", lambda self, at_end: None)
    run = Run()
    view, _ = view_of(run, server=(1, 8))
    late = {"kind": "eval", "name": "a", "attempt": 1, "step": 4, "eval/loss": 2.0, "eval/perplexity": math.exp(2.0)}
    view.take([{**ROW, "step": step} for step in (4, 7)] + [late, {**ROW, "step": 9}])
    assert [row["train/step"] for row in run.logged] == [4, 9]


def test_best_perplexity_stays_when_a_later_one_is_worse_or_not_finite() -> None:
    run = Run()
    view, _ = view_of(run)
    view._log_table = lambda name, table: None  # type: ignore[method-assign]
    for step, value in ((1, 9.0), (2, 7.0), (3, 8.0), (4, None)):
        row = {"kind": "eval", "step": step, "attempt": 1, "name": "books", "eval/loss": 2.0, "eval/perplexity": value}
        view.take([row])
    assert run.summary == {"best/eval/perplexity": 7.0, "best/eval/step": 2}


def test_sample_without_a_kind_is_left_out() -> None:
    run = Run()
    view_of(run)[0].take([{"step": 5, "prompt": "a", "text": "b"}])
    assert run.logged == []


def test_growing_table_costs_a_fixed_multiple_of_its_rows_when_relogged() -> None:
    table, written = GrowingTable(["step"]), 0
    for step in range(2000):
        table.add(step)
        if table.is_due(at_end=False):
            written += len(table.rows)
            table.mark_logged()
        assert len(table.rows) - table._logged <= len(table.rows) / 8
    assert written <= 9 * 2000
    assert table.is_due(at_end=True)
    table.mark_logged()
    assert not table.is_due(at_end=True)


def test_run_config_names_where_the_run_comes_from() -> None:
    facts = {
        "id": "aaaa",
        "created_unix_seconds": 1.0,
        "config": {"name": "x", "model": {"hidden_size": 8, "vocab_size": None}},
        "model": {"hidden_size": 8, "vocab_size": 100, "parameters": 1000},
        "data_plan": {"fingerprint": "plan"},
        "datasets": [
            {"name": "a", "label": "a-11", "fingerprint": "11", "tokenizer": "t"},
            {"name": "a", "label": "a-22", "fingerprint": "22", "tokenizer": "t"},
        ],
        "parent": {"run": "p", "step": 10},
        "initialized_from": {"name": "q", "step": 20},
    }
    config = run_config(facts)
    assert config["model"] == {"hidden_size": 8, "vocab_size": 100, "parameters": 1000}
    assert config["lineage"] == {
        "run": {"id": "aaaa", "created_unix_seconds": 1.0},
        "data_plan": "plan",
        "tokenizer": "t",
        "datasets": {"a-11": "11", "a-22": "22"},
        "parent": {"run": "p", "step": 10},
        "initialized_from": {"name": "q", "step": 20},
    }


def test_run_config_is_there_when_the_run_failed_before_its_first_step() -> None:
    assert run_config({"id": "aaaa"})["lineage"]["run"]["id"] == "aaaa"


def test_evaluations_of_labels_are_shown_with_the_figures_that_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[tuple[list[str], list[list[Any]]]] = []

    class Table:
        def __init__(self, columns: list[str], data: list[list[Any]]) -> None:
            tables.append((columns, data))

    monkeypatch.setattr("wandb.Table", Table)
    run = Run()
    view, _ = view_of(run)
    row = {"kind": "eval", "step": 3, "name": "reviews", "attempt": 2, "eval/loss": 0.5, "eval/f1_macro": None}
    view.take([row, {**row, "step": 6, "eval/loss": 0.25, "eval/f1_macro": 0.75}])
    view.end("finished")
    columns, data = tables[-1]
    assert columns == ["step", "name", "loss", "f1_macro", "attempt"]
    assert data == [[3, "reviews", 0.5, None, 2], [6, "reviews", 0.25, 0.75, 2]]
    assert run.summary["best/eval/loss"] == 0.25
    assert run.summary["best/eval/step"] == 6
