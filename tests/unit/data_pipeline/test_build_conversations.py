"""What a build makes of conversations: their answers in a column of their own, counted, and nothing else for text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from corpora import files_of, json_lines

from data_pipeline.build import build_dataset, build_digest
from data_pipeline.chat_template import ChatTemplate, Turn
from data_pipeline.chat_tokens import encode_conversation
from data_pipeline.config import DataBuildConfig, SourceConfig, TokenizerConfig, TokenizerTrainingConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetDamagedError, DatasetError
from data_pipeline.manifest import fingerprint_of

MakeConfig = Callable[..., DataBuildConfig]


def _turns(line: dict[str, Any]) -> list[Turn]:
    return [Turn(message["role"], message["content"].strip()) for message in line["messages"]]


def _documents(dataset: Dataset) -> dict[str, tuple[list[int], list[int]]]:
    """Tokens and mask of every document, by its name, out of plain Arrow."""
    found = {}
    for shard in dataset.manifest.shards:
        for row in pa.ipc.open_file(str(dataset.directory / shard.file)).read_all().to_pylist():
            found[row["document_id"]] = (row["tokens"], row["answer_mask"])
    return found


def test_every_conversation_is_in_the_shards_with_its_mask(chats: Dataset, dialogues: list[dict[str, Any]]) -> None:
    documents = _documents(chats)
    assert len(documents) == len(dialogues) == chats.manifest.ledger.documents_kept
    for number, line in enumerate(dialogues, start=1):
        expected = encode_conversation(chats.tokenizer(), ChatTemplate(), _turns(line))
        assert documents[f"chats.jsonl:{number}"] == (expected.tokens.tolist(), expected.answer_mask.tolist())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_stream_tells_the_answers_of_every_document_across_shards(split: str, chats: Dataset) -> None:
    stream, documents = chats.split(split), _documents(chats)
    assert split == "validation" or len(stream.shards) > 3
    expected = [documents[stream.document(index).document_id][1] for index in range(stream.documents)]
    assert stream.read_answers(0, stream.tokens).tolist() == [bit for mask in expected for bit in mask]


def test_answers_are_counted_by_split_and_shard(chats: Dataset) -> None:
    for name, record in chats.manifest.splits.items():
        answers = int(chats.split(name).read_answers(0, record.tokens).sum())
        shards = [shard.answer_tokens for shard in chats.manifest.shards if shard.split == name]
        assert record.answer_tokens == answers == sum(count or 0 for count in shards)
    assert chats.stats()["answer_tokens"] == {
        name: record.answer_tokens for name, record in chats.manifest.splits.items()
    }


def test_ledger_adds_up_in_what_turns_say(chats: Dataset, dialogues: list[dict[str, Any]]) -> None:
    said = sum(len(message["content"].encode()) for line in dialogues for message in line["messages"])
    kept = sum(len(turn.content.encode()) for line in dialogues for turn in _turns(line))
    ledger = chats.manifest.ledger
    assert (ledger.bytes_read, ledger.bytes_kept, ledger.bytes_removed_by_normalisation) == (said, kept, said - kept)
    assert set(ledger.documents_dropped) == {"empty", "too_short", "invalid_utf8", "unanswered", "empty_answer"}


def test_build_of_conversations_is_bit_identical_when_done_twice(
    make_chat_config: MakeConfig, chats: Dataset, tmp_path: Path
) -> None:
    assert build_dataset(make_chat_config(tmp_path / "again"), threads=2) == chats.manifest
    assert files_of(tmp_path / "again") == files_of(chats.directory)


def test_verify_reads_the_answers_too(chats: Dataset) -> None:
    chats.verify()
    train = dataclasses.replace(chats.manifest.splits["train"], answer_mask_hash="0")
    manifest = dataclasses.replace(chats.manifest, splits={**chats.manifest.splits, "train": train})
    with pytest.raises(DatasetDamagedError, match="the answer mask of the train split has the hash"):
        Dataset(chats.directory, manifest).verify()


def test_damage_in_the_answers_is_found_when_they_are_read(
    make_chat_config: MakeConfig, tmp_path: Path, chats: Dataset
) -> None:
    build_dataset(make_chat_config(tmp_path / "out"))
    shard = chats.manifest.shards[0]
    position = shard.segments[0].answer_mask_position
    assert position is not None
    path = tmp_path / "out" / shard.file
    content = bytearray(path.read_bytes())
    content[position + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetDamagedError, match="is damaged in block 0"):
        Dataset.open(tmp_path / "out").split("train").read_answers(0, 10)


def test_fingerprint_tells_other_answers_in_the_same_tokens(chats: Dataset) -> None:
    train = dataclasses.replace(chats.manifest.splits["train"], answer_mask_hash="0")
    splits = {**chats.manifest.splits, "train": train}
    assert fingerprint_of(chats.tokenizer_hash, splits) != chats.fingerprint
    problem = dataclasses.replace(chats.manifest, splits=splits).problem()
    assert problem == "the fingerprint is not that of its tokenizer, splits and labels"


def test_digest_tells_another_template_and_not_the_default_spelled_out(make_chat_config: MakeConfig) -> None:
    plain = build_digest(make_chat_config(Path("a")))
    assert build_digest(make_chat_config(Path("a"), chat_template=ChatTemplate())) == plain
    assert build_digest(make_chat_config(Path("a"), chat_template=ChatTemplate(user_prefix="Q:\n"))) != plain


def test_splits_keep_equal_conversations_together(tmp_path: Path, chats: Dataset) -> None:
    lines = [{"en": f"question {number % 20}", "zh": f"answer {number % 20}"} for number in range(80)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = SourceConfig(name="pairs", path=str(path), prompt_field="en", answer_field="zh")
    build_dataset(
        DataBuildConfig(
            name="pairs",
            output=str(tmp_path / "out"),
            sources=(source,),
            tokenizer=TokenizerConfig(path=str(chats.directory / "tokenizer.model")),
            validation_fraction=0.3,
        )
    )
    sides: dict[str, set[str]] = {"train": set(), "validation": set()}
    built = Dataset.open(tmp_path / "out")
    for name, side in sides.items():
        stream = built.split(name)
        for index in range(stream.documents):
            place = stream.document(index)
            side.add(built.tokenizer().decode(stream.read(place.start, place.stop)))
    assert len(sides["train"] | sides["validation"]) == 20
    assert sides["validation"]
    assert not sides["train"] & sides["validation"]


def test_text_and_conversations_are_refused_in_one_dataset(tmp_path: Path) -> None:
    sources = (
        SourceConfig(name="a", path="a", messages_field="messages"),
        SourceConfig(name="b", path="b"),
    )
    with pytest.raises(ValueError, match="the sources a hold conversations, and the others text"):
        DataBuildConfig(name="mixed", output=str(tmp_path), sources=sources)


def test_template_is_refused_when_there_is_no_conversation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chat_template is given, and no source holds conversations"):
        DataBuildConfig(
            name="text",
            output=str(tmp_path),
            sources=(SourceConfig(name="b", path="b"),),
            chat_template=ChatTemplate(),
        )


def test_answers_of_text_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="a dataset of text, in which nothing is an answer"):
        dataset.split("train").read_answers(0, 1)


def test_manifest_contradicts_itself_when_a_part_counts_no_answers(chats: Dataset) -> None:
    shards = (dataclasses.replace(chats.manifest.shards[0], answer_tokens=None), *chats.manifest.shards[1:])
    damaged = dataclasses.replace(chats.manifest, shards=shards)
    assert "answer_tokens, its shards hold" in str(damaged.problem())
    untold = dataclasses.replace(chats.manifest, chat_template=None)
    assert untold.problem() == "answers are counted in some of its parts and not in others"


def test_older_reader_is_told_the_version_of_a_dataset_of_conversations(chats: Dataset, dataset: Dataset) -> None:
    assert (chats.manifest.schema_version, dataset.manifest.schema_version) == (2, 1)


def test_dataset_of_text_is_what_it_was_before_there_were_conversations(tmp_path: Path) -> None:
    """The identity under which runs know it, and every key of its manifest, as version 0.1 wrote them."""
    texts = [f"text number {number % 40}, of some length" for number in range(120)]
    manifest = build_dataset(
        DataBuildConfig(
            name="words",
            output=str(tmp_path / "out"),
            sources=(dataclasses.replace(json_lines(tmp_path / "a.jsonl", texts), name="a"),),
            tokenizer=TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=300)),
            validation_fraction=0.3,
        )
    )
    assert manifest.fingerprint == "c45b0cc008d0f3abd3098af06a97fe42"
    assert manifest.build_digest == "07ba38e00fda7bf8b59bcc8e9698dd35"
    written = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert "chat_template" not in written
    assert set(written["splits"]["train"]) == {"documents", "tokens", "utf8_bytes", "tokens_hash"}
    assert set(written["shards"][0]["segments"][0]) == {"documents", "tokens", "offsets_position", "tokens_position"}
    assert set(written["ledger"]["documents_dropped"]) == {"empty", "too_short", "invalid_utf8"}
    shard = pa.ipc.open_file(str(tmp_path / "out" / manifest.shards[0].file))
    assert shard.schema.names == ["tokens", "document_id", "source"]
    assert written["shards"][0]["hash"] == manifest.shards[0].hash


def test_answer_mask_is_one_byte_a_token_in_the_file(chats: Dataset) -> None:
    shard = chats.manifest.shards[0]
    content = np.frombuffer((chats.directory / shard.file).read_bytes(), dtype=np.uint8)
    segment = shard.segments[0]
    assert segment.answer_mask_position is not None
    mask = content[segment.answer_mask_position :][: segment.tokens]
    assert mask.sum() == shard.answer_tokens
