"""Instruction tuning by the real command on a real cluster: a worker dies, and the record is that of a run unharmed."""

from __future__ import annotations

from pathlib import Path

import pytest
from attempts import attempt_alone
from processes import finish, kill, start, training_workers, wait_until
from tiny import build_tiny_chats, tiny_run

from cluster.record.logs import deterministic_fields, read_lines

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 60


def finetune(storage: Path, chats: Path, trunk: Path) -> list[str]:
    """The command; the recipe's two workers."""
    settings = {
        "name": "tuned",
        "storage": storage,
        "data.dataset": chats,
        "data.seq_len": 32,
        "initialize_from": trunk,
        "train.max_steps": STEPS,
        "train.log_every_steps": 1,
        "checkpoint.every_steps": 10,
        "evaluation.every_steps": 20,
        "wandb.mode": "disabled",
    }
    return ["finetune", "dialogues", *(f"{key}={value}" for key, value in settings.items())]


def rows_of(storage: Path) -> list[dict[str, object]]:
    return [deterministic_fields(row) for row in read_lines(storage / "tuned" / "metrics.jsonl")]


def steps_of(storage: Path) -> int:
    return max((row["step"] for row in read_lines(storage / "tuned" / "metrics.jsonl")), default=0)


def test_record_is_equal_when_a_worker_is_killed(dataset: Path, tmp_path: Path) -> None:
    chats = build_tiny_chats(tmp_path, dataset)
    attempt_alone(tiny_run(tmp_path, dataset, name="trunk", train__max_steps=8))
    log = tmp_path / "log"
    assert finish(start(*finetune(tmp_path / "one", chats, tmp_path / "trunk"), log=log), log, 400) == 0
    process = start(*finetune(tmp_path / "two", chats, tmp_path / "trunk"), log=log)
    wait_until(lambda: steps_of(tmp_path / "two") >= 15, process, 400)
    kill(training_workers(process.pid)[-1])
    assert finish(process, log, 400) == 0
    events = [row["event"] for row in read_lines(tmp_path / "two" / "tuned" / "events.jsonl")]
    assert events.index("worker_lost") < events.index("resumed")
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")
    assert [row["step"] for row in rows_of(tmp_path / "one") if row["kind"] == "eval"] == [20, 40, 60]
