"""Exports of a real run: what they hold, that nobody finds an unproven one, and what is refused before any work."""

from __future__ import annotations

import shutil
import weakref
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import export
from cluster.checkpoint import CheckpointInfo, CheckpointReader, list_checkpoints
from cluster.config import RunConfig
from cluster.errors import CheckpointDamagedError, RunRefusedError
from cluster.export import (
    PROOF_POSITIONS,
    ExportOptions,
    ProvenExport,
    bytes_to_read,
    export_checkpoint,
    proof_rows,
)
from cluster.run_directory import TOKENIZER_NAME
from data_pipeline.dataset import Dataset
from llm.errors import ExportError, ProofError
from llm.hugging_face.proof import LARGEST_DIFFERENCE
from llm.hugging_face.weights import HuggingFaceWeights

pytest.importorskip("transformers")


@pytest.fixture
def run(trained: RunConfig, tmp_path: Path) -> Path:
    """A copy of the trained run, to be damaged."""
    return shutil.copytree(Path(trained.storage) / trained.name, tmp_path / "run")


def exported(run: Path, step: int | None = None, *, out: str = "out", **options: Any) -> ProvenExport:
    infos = [info for info in list_checkpoints(run) if step in (None, info.step)]
    return export_checkpoint(infos[-1], run, run.parent / out, ExportOptions(**options))


def newest(run: Path) -> CheckpointInfo:
    return list_checkpoints(run)[-1]


def left_beside(run: Path) -> list[str]:
    """Names beside the run, hidden ones too."""
    return sorted(path.name for path in run.parent.iterdir() if path != run)


def test_export_holds_the_masters_of_its_checkpoint(run: Path) -> None:
    proven = exported(run, step=2)
    weights = HuggingFaceWeights(run.parent / "out")
    info = list_checkpoints(run)[0]
    assert (proven.step, info.step) == (2, 2)
    assert info.manifest is not None
    reader = CheckpointReader(info.directory, info.manifest)
    assert set(weights.names) == set(reader.parameter_names())
    for name in weights.names:
        assert torch.equal(weights.read(name), reader.whole(name))


def test_export_is_proven_on_text_of_the_run(run: Path, dataset: Path) -> None:
    proven = exported(run)
    assert proven.proven_on == f"16 x 32 tokens of the validation split of {dataset}"
    assert proven.proof.positions == 16 * 32
    assert 0 < proven.proof.relative_difference < LARGEST_DIFFERENCE
    assert proven.tokens_compared is not None
    assert proven.tokens_compared > proven.proof.positions


def test_export_is_a_model_of_the_length_it_was_trained_on_with_the_runs_tokenizer(run: Path) -> None:
    from transformers import AutoConfig

    exported(run)
    config = AutoConfig.from_pretrained(run.parent / "out")
    assert (config.model_type, config.max_position_embeddings) == ("llama", 32)
    assert (run.parent / "out" / "tokenizer.model").read_bytes() == (run / TOKENIZER_NAME).read_bytes()


def test_export_is_in_bf16_and_several_files_when_asked_for(run: Path) -> None:
    proven = exported(run, dtype="bfloat16", max_shard_bytes=20_000)
    assert len(proven.exported.weight_files) > 1
    files = (run.parent / "out").glob("*.safetensors")
    assert sorted(path.name for path in files) == sorted(proven.exported.weight_files)
    weights = HuggingFaceWeights(run.parent / "out")
    assert proven.exported.weight_bytes == 2 * sum(weights.read(name).numel() for name in weights.names)


def test_ids_drawn_at_random_are_compared_when_the_dataset_is_gone(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: str) -> Dataset:
        return original(tmp_path / "nowhere")

    original = Dataset.open
    monkeypatch.setattr(Dataset, "open", gone)
    proven = exported(run)
    assert proven.proven_on == "16 x 32 ids drawn at random, its text not being at hand"
    assert "no text of the run is at hand: " in caplog.text


def test_rows_are_few_when_sequences_are_long(trained: RunConfig, dataset: Path) -> None:
    tokenizer = Dataset.open(dataset).tokenizer()
    rows = proof_rows({"dataset": str(dataset), "seq_len": 4 * PROOF_POSITIONS}, tokenizer)
    assert rows.tokens.shape == (1, PROOF_POSITIONS)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("prove_export", "other logits from {out} than"),
        ("prove_tokenizer", "other ids from {out} than"),
    ],
)
def test_nothing_is_left_and_the_message_says_which_when_a_proof_fails(
    broken: str, problem: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []

    def refuse(directory: Path, *arguments: Any) -> Any:
        found.append((directory / "config.json").exists())
        raise ProofError(problem.format(out=directory))

    monkeypatch.setattr(export, broken, refuse)
    with pytest.raises(ProofError) as caught:
        exported(run)
    out = run.parent / "out"
    assert str(caught.value) == f"the export is not proven, and nothing of it was kept: {problem.format(out=out)}"
    assert found == [True]
    assert left_beside(run) == []


def test_export_is_refused_when_it_holds_other_numbers_than_the_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof reads the checkpoint again: what went wrong in writing is found."""
    whole, reads = CheckpointReader.whole, dict[str, int]()

    def other(reader: CheckpointReader, name: str) -> torch.Tensor:
        reads[name] = reads.get(name, 0) + 1
        value = whole(reader, name)
        return value * 1.5 if name == "model.norm.weight" and reads[name] == 1 else value

    monkeypatch.setattr(CheckpointReader, "whole", other)
    with pytest.raises(ProofError, match="nothing of it was kept: transformers computes other logits from"):
        exported(run)
    assert left_beside(run) == []


def test_a_damaged_checkpoint_is_not_exported(run: Path) -> None:
    manifest = newest(run).manifest
    assert manifest is not None
    path = newest(run).directory / manifest.files[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointDamagedError, match="was altered"):
        exported(run)
    assert left_beside(run) == []


def test_a_run_with_another_tokenizer_than_it_was_trained_with_is_refused(run: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString((run / TOKENIZER_NAME).read_bytes())
    proto.pieces[-1].piece, proto.pieces[-2].piece = proto.pieces[-2].piece, proto.pieces[-1].piece
    (run / TOKENIZER_NAME).write_bytes(proto.SerializeToString())
    with pytest.raises(RunRefusedError, match="and the checkpoint was trained with a tokenizer of hash"):
        exported(run)


@pytest.mark.parametrize(
    ("version", "told"), [(None, "that is not installed here"), ("4.57.1", "is of version 4.57.1 here")]
)
def test_nothing_is_begun_without_transformers(
    version: str | None, told: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(export.metadata, "version", installed)
    monkeypatch.setattr(export, "read_tokenizer", None)  # whatever is begun calls it first
    with pytest.raises(ExportError, match=rf"{told}\. Install it: pip install 'longhaul\[export\]'"):
        exported(run)


def test_an_existing_directory_is_refused_before_a_tensor_is_read(run: Path) -> None:
    (run.parent / "out").mkdir()
    with pytest.raises(ExportError, match="exists already"):
        exported(run, step=4)
    assert list((run.parent / "out").iterdir()) == []


def test_no_tokenizer_is_written_when_it_is_left_out(run: Path) -> None:
    proven = exported(run, with_tokenizer=False)
    assert proven.tokens_compared is None
    assert not list((run.parent / "out").glob("tokenizer*"))


def test_two_parameters_are_held_at_most_while_files_are_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is being written, and the one that is being read."""
    whole, held, most = CheckpointReader.whole, list[weakref.ref[torch.Tensor]](), 0

    def watched(reader: CheckpointReader, name: str) -> torch.Tensor:
        nonlocal most
        value = whole(reader, name)
        held.append(weakref.ref(value))
        most = max(most, sum(each() is not None for each in held))
        return value

    monkeypatch.setattr(CheckpointReader, "whole", watched)
    monkeypatch.setattr(export, "prove_export", lambda *_: None)
    exported(run)
    assert len(held) > 10
    assert most <= 2


def test_progress_adds_up_to_what_was_announced(run: Path) -> None:
    counts: list[int] = []
    export_checkpoint(newest(run), run, run.parent / "out", ExportOptions(), advance=counts.append)
    assert sum(counts) == bytes_to_read(newest(run))
