"""Bad input through the command line: a message that says what, where and the remedy, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import start
from tiny import build_tiny_dataset
from typer.testing import CliRunner, Result

from launcher.cli import app

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs a verb in this process."""
    runner = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "400"})
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, *parts: str, code: int = 1) -> None:
    """One message, holding all parts, and the exit code."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    message = " ".join(result.stderr.split())
    for part in parts:
        assert part in message, message


def write_build_config(directory: Path, text: bytes | None, *, vocab_size: int = 400) -> Path:
    """A data config beside its corpus."""
    corpus = directory / "corpus.txt"
    if text is not None:
        corpus.write_bytes(text)
    config = directory / "data.yaml"
    config.write_text(
        f"name: corpus\noutput: {directory / 'dataset'}\n"
        f"sources: [{{name: corpus, path: {corpus}}}]\n"
        f"tokenizer: {{train: {{vocab_size: {vocab_size}}}}}\n"
    )
    return config


def nothing_built(directory: Path) -> None:
    assert not (directory / "dataset" / "manifest.json").exists()
    assert not list(directory.glob("dataset/.building-*"))


def nothing_begun(storage: Path) -> None:
    assert not (storage / "smoke").exists()


def test_unknown_key_is_refused_with_a_suggestion(run: Run) -> None:
    refused(run("pretrain", "smoke", "optimizer.learning_rat=1"), "did you mean 'optimizer.learning_rate'?", code=2)


def test_wrong_type_is_refused(run: Run) -> None:
    refused(run("pretrain", "smoke", "train.max_steps=many"), "train.max_steps", "many", code=2)


def test_heads_that_do_not_divide_the_width_are_refused(run: Run) -> None:
    result = run("pretrain", "smoke", "model.num_attention_heads=7")
    refused(result, "num_attention_heads 7 does not divide hidden_size 64", code=2)


def test_world_larger_than_the_batch_is_refused(run: Run) -> None:
    result = run("pretrain", "smoke", "resources.workers=9")
    refused(result, "resources.workers is 9 and train.global_batch_size 8", "Lower the workers", code=2)


def test_missing_corpus_is_refused(run: Run, tmp_path: Path) -> None:
    refused(run("data", "build", write_build_config(tmp_path, None)), "corpus.txt")
    nothing_built(tmp_path)


def test_empty_corpus_is_refused(run: Run, tmp_path: Path) -> None:
    refused(run("data", "build", write_build_config(tmp_path, b"  \n")), "corpus")
    nothing_built(tmp_path)


def test_invalid_utf8_is_refused_with_its_place(run: Run, tmp_path: Path) -> None:
    refused(run("data", "build", write_build_config(tmp_path, b"good \xff bad " * 50)), "corpus.txt", "UTF-8", "5")
    nothing_built(tmp_path)


def test_vocabulary_larger_than_the_corpus_allows_is_refused(run: Run, tmp_path: Path) -> None:
    config = write_build_config(tmp_path, b"a few words, and a few words more. " * 20, vocab_size=8000)
    refused(run("data", "build", config), "8000")
    nothing_built(tmp_path)


def test_missing_dataset_is_refused(run: Run, tmp_path: Path) -> None:
    result = run("pretrain", "smoke", f"storage={tmp_path}", f"data.dataset={tmp_path / 'nowhere'}")
    refused(result, f"data.dataset is '{tmp_path / 'nowhere'}', which is no dataset", "data.dataset=PATH")
    nothing_begun(tmp_path)


def test_sequence_longer_than_the_dataset_is_refused(run: Run, dataset: Path, tmp_path: Path) -> None:
    result = run("pretrain", "smoke", f"storage={tmp_path}", f"data.dataset={dataset}", "data.seq_len=9999999")
    refused(result, "data.seq_len is 9999999", "The largest possible seq_len is")
    nothing_begun(tmp_path)


def test_vocabulary_smaller_than_the_tokenizer_is_refused(run: Run, dataset: Path, tmp_path: Path) -> None:
    result = run("pretrain", "smoke", f"storage={tmp_path}", f"data.dataset={dataset}", "model.vocab_size=300")
    refused(result, "model.vocab_size is 300", "has 400 pieces")
    nothing_begun(tmp_path)


def test_datasets_of_different_tokenizers_are_refused(run: Run, dataset: Path, tmp_path: Path) -> None:
    other = build_tiny_dataset(tmp_path, vocab_size=420)
    mixture = json.dumps([{"path": str(dataset)}, {"path": str(other)}])
    result = run("pretrain", "smoke", f"storage={tmp_path / 'runs'}", f"data.dataset={mixture}")
    refused(result, "different tokenizers", str(other))
    nothing_begun(tmp_path / "runs")


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_shard_is_refused(damage: str, run: Run, dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    shard = next((copy / "shards").glob("train-*.arrow"))
    data = bytearray(shard.read_bytes())
    if damage == "truncated":
        data = data[:-1000]
    else:
        data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    refused(run("data", "verify", copy), shard.name)


def test_storage_that_cannot_be_written_is_refused(run: Run, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("pretrain", "smoke", f"storage={tmp_path / 'file' / 'runs'}", f"data.dataset={dataset}")
    refused(result, "storage", "cannot be written", "set `storage` to another one")


def test_run_that_does_not_exist_is_refused(run: Run, tmp_path: Path) -> None:
    refused(run("evaluate", tmp_path / "nowhere"), "neither a run nor a checkpoint")


@pytest.mark.ray
def test_more_workers_than_the_cluster_has_are_refused(dataset: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(
        "pretrain",
        "smoke",
        f"storage={tmp_path}",
        f"data.dataset={dataset}",
        "resources.workers=8",
        "resources.cpus_per_worker=500",
        log=log,
    )
    assert process.wait(120) == 1
    message = " ".join(log.read_text().split())
    assert "asks for 8 workers with 500 CPU cores and 0 GPUs each, and the cluster has room for 0" in message


@pytest.mark.ray
@pytest.mark.slow
def test_shard_damaged_under_a_run_stops_it_once_and_says_which(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    shard = next((copy / "shards").glob("train-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    log = tmp_path / "log"
    process = start("pretrain", "smoke", f"storage={tmp_path}", f"data.dataset={copy}", "wandb.mode=disabled", log=log)
    assert process.wait(200) == 1
    text = " ".join(log.read_text().split())
    assert shard.name in text
    assert "Traceback" not in text
    events = [json.loads(line)["event"] for line in (tmp_path / "smoke" / "events.jsonl").read_text().splitlines()]
    assert events[-1] == "failed"
    assert "worker_lost" not in events  # a retry would meet the same byte
