"""postmortem.md of runs that ended in all sorts of ways, over a real dataset with hostile text."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from cluster.checkpoint import Manifest, list_checkpoints, reject
from cluster.checkpoint.manifest import MANIFEST_NAME
from cluster.config import RunConfig, TrainConfig
from cluster.faults.failure import FailureKind, WorkerFailure
from cluster.record.post_mortem import write_post_mortem
from cluster.run_directory import config_as_dict
from data_pipeline.build import build_dataset
from data_pipeline.config import (
    CleaningConfig,
    DataBuildConfig,
    DataConfig,
    SourceConfig,
    TokenizerConfig,
    TokenizerTrainingConfig,
)
from data_pipeline.dataset import Dataset
from data_pipeline.plan import DataPlan

T0 = 1_790_000_000.0
HOSTILE = "```\n| </td><script>alert(1)</script> | [x](http://evil.example) # She `said` so twice before tea.\n"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    for number in range(6):
        (directory / f"{number}.txt").write_text(f"{number} {HOSTILE}" * 8)
    build_dataset(
        DataBuildConfig(
            name="hostile | data",
            output=str(directory / "built"),
            sources=(SourceConfig(name="texts", path=str(directory / "*.txt")),),
            tokenizer=TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=320)),
            cleaning=CleaningConfig(min_characters=1),
            validation_fraction=0.0,
        )
    )
    return directory / "built"


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "my storage" / "novel"
    config = RunConfig(
        name="novel",
        storage=str(directory.parent),
        data=DataConfig(dataset=str(dataset), seq_len=64),
        train=TrainConfig(global_batch_size=4, micro_batch_size=2),
    )
    plan = DataPlan([Dataset.open(dataset)], config.data, seed=config.seed, global_batch_size=4)
    directory.mkdir(parents=True)
    facts = {"task": "pretrain", "attempt": 2, "created_unix_seconds": T0, "config": config_as_dict(config)}
    (directory / "run.json").write_text(json.dumps({**facts, "data_plan": {"fingerprint": plan.fingerprint}}))
    (directory / "config.yaml").write_text("name: novel\n")
    _write(
        directory / "metrics.jsonl",
        [
            {"kind": "train", "step": step, "time_unix_seconds": T0 + step, "attempt": 1, "time/training_seconds": 0.9}
            for step in range(1, 57)
        ],
    )
    saves = [_event("checkpoint_saved", step + 0.5, attempt=1, step=step) for step in (10, 20, 30, 40, 50)]
    lost = _event("worker_lost", 56.5, causes={"1": "ValueError: | `x`"})
    _write(directory / "events.jsonl", [_event("started", 0.5, attempt=1), *saves, lost, _event("failed", 58)])
    for step in (40, 50):
        checkpoint = directory / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        manifest = Manifest(
            step=step,
            attempt=1,
            created_unix_seconds=T0 + step,
            next_batch_loss=None,
            run={},
            state_names=(),
            pieces={},
            files=(),
        )
        (checkpoint / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return directory


def _event(name: str, at: float, **details: Any) -> dict[str, Any]:
    return {"event": name, "time_unix_seconds": T0 + at, **details}


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _failure(rank: int = 1, after: float = 0.0, kind: FailureKind = "error", **changes: Any) -> WorkerFailure:
    failure = WorkerFailure(
        rank=rank,
        node="10.0.0.7",
        pid=4242 + rank,
        kind=kind,
        step=57,
        error=f"ValueError: bad token at rank {rank}",
        traceback="Traceback (most recent call last):\n  File x\nValueError: bad token",
        time_unix_seconds=T0 + 57 + after,
        sequences=(224, 225),
    )
    return dataclasses.replace(failure, **changes)


def _page(run: Path, *failures: WorkerFailure, status: Any = "failed", reason: str | None = "too many errors") -> str:
    return write_post_mortem(run, status=status, reason=reason, failures=failures).read_text()


def _part(page: str, title: str) -> str:
    return page.split(f"## {title}\n\n")[1].split("\n\n## ")[0]


def test_page_begins_with_the_outcome(run: Path) -> None:
    assert _page(run, _failure()).split("\n\n")[:3] == [
        "# Post-mortem of `novel`: failed",
        "The run failed at 2026-09-21 14:14:18 UTC, in attempt `2`. The last logged step is 56.",
        "Reason: `too many errors`",
    ]


def test_page_tells_the_first_failure_in_full_and_the_others_in_a_line_each(run: Path) -> None:
    gone = _failure(0, 1.5, "lost_worker", traceback="", error="")
    page = _page(run, gone, _failure())
    first = _part(page, "First failure")
    for fact in ("| rank | 1 |", "| node | `10.0.0.7` |", "| process | 4243 |", "| kind | error |", "| step | 57 |"):
        assert fact in first
    assert "| error | `ValueError: bad token at rank 1` |" in first
    assert "```\nTraceback (most recent call last):\n  File x\nValueError: bad token\n```" in first
    assert _part(page, "Other ranks") == "* rank 0 on `10.0.0.7`, 1.5 s later, lost worker: said nothing"


def test_page_names_the_documents_of_the_batch_with_their_first_words(run: Path, dataset: Path) -> None:
    rows = _part(_page(run, _failure()), "Documents of its batch").splitlines()[2:]
    assert len(rows) >= 2
    ids = {place.document_id for place in map(Dataset.open(dataset).split("train").document, range(6))}
    for row in rows:
        cells = [cell.strip() for cell in row.replace("\\|", "").strip("|").split(" | ")]
        assert len(cells) == 7
        assert cells[0] in ("224", "225")
        assert cells[2].strip("`") in ids
        assert cells[3] == "`texts`"


def test_page_stays_a_page_when_text_is_hostile(run: Path) -> None:
    hostile = _failure(error=HOSTILE * 50, traceback=HOSTILE * 50, node=HOSTILE)
    (run / "events.jsonl").write_text(json.dumps(_event(HOSTILE, 1, reason=HOSTILE, attempt=HOSTILE, step=HOSTILE)))
    page = _page(run, hostile, dataclasses.replace(hostile, rank=2), reason=HOSTILE)
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    inner = [token for parent in tokens for token in (parent, *(parent.children or ()))]
    assert not {token.type for token in inner} & {"html_block", "html_inline", "link_open", "image"}
    assert [token.content for place, token in enumerate(tokens) if tokens[place - 1].type == "heading_open"] == [
        "Post-mortem of `novel`: failed",
        *("First failure", "Other ranks", "Documents of its batch", "What was saved", "Time", "What to do next"),
    ]
    assert sum(token.type == "td_open" for token in tokens) == 7 * 2 + 7 * _documents(page)
    said = [token.content for token in inner if token.type == "code_inline"]
    assert any(text.startswith("``` | </td><script>alert(1)</script> | [x](http://evil") for text in said)


def _documents(page: str) -> int:
    return len([line for line in _part(page, "Documents of its batch").splitlines() if line.startswith("| 2")])


@pytest.mark.parametrize("change", ["gone", "other", "unknown"])
def test_page_says_so_when_the_documents_cannot_be_told(run: Path, change: str) -> None:
    facts = json.loads((run / "run.json").read_text())
    if change == "gone":
        facts["config"]["data"]["dataset"] = "/nowhere/austen"
    elif change == "other":
        facts["data_plan"]["fingerprint"] = "0123"
    else:
        del facts["config"]
    (run / "run.json").write_text(json.dumps(facts))
    told = _part(_page(run, _failure()), "Documents of its batch")
    words = {"gone": "/nowhere/austen", "other": "was trained on 0123", "unknown": "run.json does not say"}
    assert told.startswith("This could not be told: `")
    assert words[change] in told


def test_page_says_what_was_saved_and_what_is_to_be_made_again(run: Path) -> None:
    reject(list_checkpoints(run)[-1], "another loss", kind="loss")
    assert _part(_page(run, _failure()), "What was saved") == (
        "The newest checkpoint is of step 40; 16 steps after it are to be made again. There are those of step 40. "
        "Rejected, with the reason in their REJECTED.json: step 50."
    )
    shutil.rmtree(run / "checkpoints")
    assert _part(_page(run, _failure()), "What was saved") == "No checkpoint: the run begins anew."


def test_torn_checkpoint_is_no_usable_one(run: Path) -> None:
    (run / "checkpoints" / "step-00000050" / MANIFEST_NAME).write_text('{"step": 50, "att')
    told = _part(_page(run, _failure()), "What was saved")
    assert told.startswith("The newest checkpoint is of step 40; 16 steps after it are to be made again.")
    assert " That of step 50 cannot be used: `" in told


def test_page_tells_how_to_branch_without_the_sequences_of_an_error(run: Path) -> None:
    told = _part(_page(run, _failure(sequences=(230, 224, 225))), "What to do next")
    branch = f"longhaul branch '{run}' --from 50 novel-without 'healing.skip_sequences=[[224,226],[230,231]]'"
    assert f"```\n{branch}\n```" in told


def test_no_branch_is_advised_where_there_is_nothing_to_branch_from(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert "longhaul branch" not in _page(run, _failure())


def test_page_divides_the_time(run: Path) -> None:
    assert _part(_page(run), "Time").startswith("goodput 76.9 % of 0:00:58 (training 76.9 %, ")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("out_of_memory", "train.micro_batch_size"),
        ("hang", "faults.hang_timeout_seconds"),
        ("lost_node", "system log"),
        ("lost_worker", "dmesg"),
        ("preemption", "resources.workers"),
        ("error", "healing.skip_sequences"),
    ],
)
def test_page_advises_by_the_kind_of_failure_and_gives_the_command(run: Path, kind: FailureKind, words: str) -> None:
    told = _part(_page(run, _failure(kind=kind)), "What to do next")
    assert words in told
    assert told.endswith(f"```\nlonghaul pretrain '{run / 'config.yaml'}'\n```")


def test_page_of_a_finished_run_asks_for_nothing(run: Path) -> None:
    page = _page(run, status="finished", reason=None)
    assert page.startswith("# Post-mortem of `novel`: finished\n\nThe run finished at ")
    assert "What to do next" not in page
    assert "First failure" not in page


def test_page_lists_the_events_of_the_last_hour_with_routine_ones_in_one_row(run: Path) -> None:
    lines = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(json.dumps(_event("resumed", -9000)) + "\n" + lines)
    rows = _part(_page(run), "Events of the last hour").splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == [
        "`started`",
        "`checkpoint_saved` × 5, the last",
        "`worker_lost`",
        "`failed`",
    ]
    assert rows[1].split(" | ")[2] == "`10 to 50`"
    assert "causes 1: ValueError: \\| `x`" in rows[2]


def test_page_leaves_the_seconds_of_an_end_to_the_division_of_time(run: Path) -> None:
    with (run / "events.jsonl").open("a") as events:
        ended = _event("stopped", 60, step=57, reason="asked", **{"time/checkpoint_seconds": 1.5})
        events.write(json.dumps(ended) + "\n")
    page = _page(run, status="stopped", reason=None)
    assert _part(page, "Events of the last hour").splitlines()[-1].split(" | ")[-1] == "`reason asked` |"
    assert "checkpoints 2.5 %" in _part(page, "Time")


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "events.jsonl", "config.yaml"])
@pytest.mark.parametrize(
    "content", [None, b"", b"[1]\n", b'"x"\n', b"{}\n", b"\xff{\n", b'{"step": "x", "event": 1}\n']
)
def test_page_is_written_when_the_record_is_damaged(run: Path, name: str, content: bytes | None) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    page = _page(run, _failure())
    assert "## First failure" in page
    assert "## What was saved" in page


def test_nothing_is_raised_when_the_page_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = tmp_path / "gone"
    with caplog.at_level(logging.WARNING):
        assert write_post_mortem(gone, status="failed", reason=None, failures=[]) == gone / "postmortem.md"
    assert "postmortem.md could not be written" in caplog.text


def test_post_mortem_needs_neither_torch_nor_ray() -> None:
    code = "import sys, cluster.record.post_mortem; print([name for name in ('torch', 'ray') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
