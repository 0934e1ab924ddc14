from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.dataset import Dataset, length_histogram
from data_pipeline.errors import DatasetDamagedError, DatasetError
from data_pipeline.manifest import Manifest
from data_pipeline.publish import BLOCK_BYTES, seal
from data_pipeline.shards import MappedShard, ShardWriter, token_dtype


@pytest.fixture
def copy(dataset: Dataset, tmp_path: Path) -> Path:
    """A dataset that a test may damage."""
    shutil.copytree(dataset.directory, tmp_path / "copy")
    return tmp_path / "copy"


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_shards_open_in_plain_pyarrow_when_read(dataset: Dataset) -> None:
    for split in ("train", "validation"):
        stream, tokens, documents = dataset.split(split), [], 0
        for record in (shard.record for shard in stream.shards):
            table = pa.ipc.open_file(dataset.directory / record.file).read_all()
            assert table.column_names == ["tokens", "document_id", "source"]
            assert table.num_rows == record.documents
            rows = table.column("tokens").to_pylist()
            assert all(row[0] == stream.bos_id and row[-1] == dataset.manifest.eos_id for row in rows)
            tokens += [token for row in rows for token in row]
            documents += len(rows)
        assert documents == stream.documents
        assert stream.read(0, stream.tokens).tolist() == tokens
    assert sum(shard.split == "train" for shard in dataset.manifest.shards) >= 2


def test_stream_reads_the_same_when_read_in_pieces(dataset: Dataset) -> None:
    stream = dataset.split("train")
    whole = stream.read(0, stream.tokens)
    assert np.array_equal(
        np.concatenate([stream.read(s, min(s + 997, len(whole))) for s in range(0, len(whole), 997)]), whole
    )
    starts = np.arange(0, len(whole) - 50, 331)
    assert np.array_equal(stream.rows(starts, 50), np.stack([whole[start : start + 50] for start in starts]))


def test_document_starts_are_where_bos_stands_when_asked_for_a_range(dataset: Dataset) -> None:
    stream = dataset.split("train")
    begins = np.flatnonzero(stream.read(0, stream.tokens) == stream.bos_id)
    for start, stop in [(0, stream.tokens), (1000, 20_000), (int(begins[2]), int(begins[3]))]:
        expected = begins[(begins >= start) & (begins < stop)]
        assert stream.document_starts(start, stop).tolist() == expected.tolist()


def test_documents_are_found_when_asked_by_position(dataset: Dataset, novel: str) -> None:
    stream = dataset.split("train")
    for index in range(stream.documents):
        document = stream.document(index)
        assert stream.documents_at([document.start, document.stop - 1]) == [document, document]
        text = dataset.tokenizer().decode(stream.read(document.start, document.stop))
        assert text.startswith(f"Chapter {int(document.document_id.split('#')[1])}\n")
        assert (document.index, document.source) == (index, "novel")
    with pytest.raises(DatasetError, match="has documents 0 to"):
        stream.document(stream.documents)


def test_sources_are_those_of_the_documents_when_asked_for_all(dataset: Dataset) -> None:
    for name in ("train", "validation"):
        stream = dataset.split(name)
        starts = stream.document_starts(0, stream.tokens)
        assert stream.document_sources() == [place.source for place in stream.documents_at(starts)]


def test_stream_refuses_when_asked_beyond_its_end(dataset: Dataset) -> None:
    stream = dataset.split("train")
    with pytest.raises(DatasetError, match=f"Tokens 5 to {stream.tokens + 1} were asked of the train split"):
        stream.read(5, stream.tokens + 1)


def test_verify_passes_and_reports_when_all_is_good(dataset: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    dataset.verify(lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == sum(shard.size_bytes for shard in dataset.manifest.shards)


def test_reading_names_the_block_when_a_byte_is_flipped(copy: Path) -> None:
    record = Manifest.load(copy).shards[0]
    _flip(copy / record.file, record.segments[0].tokens_position + 10)
    opened = Dataset.open(copy)
    for read in (
        lambda: opened.split("train").read(0, 10),
        lambda: opened.split("train").rows(np.array([0]), 10),
        opened.verify,
    ):
        with pytest.raises(DatasetDamagedError, match=r"train-00000\.arrow is damaged in block 0 \(bytes 0 to \d+\)"):
            read()


def test_reading_verifies_only_touched_blocks_when_a_shard_is_large(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s.arrow", token_dtype(1000))
    tokens = np.arange(3 * BLOCK_BYTES // 2, dtype=np.uint16)
    writer.add(tokens, "id", "source", 0)
    record = writer.finish("s.arrow", "train")
    _flip(tmp_path / "s.arrow", 2 * BLOCK_BYTES + 5)
    shard = MappedShard(tmp_path, record)
    shard.verify(0, 2 * BLOCK_BYTES)
    assert shard.verified.tolist()[:3] == [True, True, False]
    position = record.segments[0].tokens_position
    assert np.array_equal(shard.values(position, 1000, np.dtype(np.uint16)), tokens[:1000])
    with pytest.raises(DatasetDamagedError, match=f"block 2 \\(bytes {2 * BLOCK_BYTES} to"):
        shard.verify(2 * BLOCK_BYTES - 1, 2 * BLOCK_BYTES + 1)


def test_opening_says_so_when_a_shard_is_cut_off(copy: Path) -> None:
    path = copy / Manifest.load(copy).shards[-1].file
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetDamagedError, match=f"has {size - 1} bytes where the manifest says {size}"):
        Dataset.open(copy)
    path.unlink()
    with pytest.raises(DatasetDamagedError, match="is missing"):
        Dataset.open(copy)


def test_opening_says_so_when_there_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no manifest\.json: it is something else, or its build did not finish"):
        Dataset.open(tmp_path)
    with pytest.raises(DatasetError, match="the directory does not exist"):
        Dataset.open(tmp_path / "nowhere")


def test_opening_says_so_when_the_manifest_was_edited(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"name": "novel"', '"name": "novels"', 1))
    with pytest.raises(DatasetDamagedError, match="does not match its own checksum"):
        Dataset.open(copy)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update(schema_version=99), DatasetError, "has schema_version 99; this program reads 1"),
        (lambda m: m.pop("vocab_size"), DatasetDamagedError, "lacks or misspells a field"),
        (lambda m: m.update(extra=1), DatasetDamagedError, "lacks or misspells a field"),
        (lambda m: m.update(vocab_size="512"), DatasetDamagedError, "lacks or misspells a field"),
        (
            lambda m: m["ledger"].update(bytes_kept=1),
            DatasetDamagedError,
            "ledger of build: .* bytes read, but",
        ),
        (lambda m: m["splits"]["train"].update(tokens=1), DatasetDamagedError, "train states 1 tokens"),
        (lambda m: m.update(tokenizer_hash="0"), DatasetDamagedError, "the fingerprint is not that of"),
    ],
)
def test_manifest_is_refused_when_resealed_with(
    change: Callable[[dict[str, object]], object], error: type[Exception], message: str, dataset: Dataset
) -> None:
    document = json.loads((dataset.directory / "manifest.json").read_bytes())
    del document["checksum"]
    change(document)
    with pytest.raises(error, match=message):
        Manifest.from_bytes(seal(document), "manifest.json")


def test_manifest_round_trips_when_written(dataset: Dataset) -> None:
    assert Manifest.from_bytes(dataset.manifest.to_bytes(), "m") == dataset.manifest


def test_tokenizer_is_refused_when_it_is_another(copy: Path) -> None:
    _flip(copy / "tokenizer.model", 100)
    with pytest.raises(
        DatasetDamagedError, match=r"tokenizer\.model is not the tokenizer that the dataset was built with"
    ):
        Dataset.open(copy).verify()


def test_stats_add_up_when_asked(dataset: Dataset) -> None:
    stats = dataset.stats()
    assert sum(entry["documents"] for entry in stats["document_length_histogram"]) == sum(stats["documents"].values())
    assert stats["tokens_by_source"]["novel"] == stats["tokens"]
    assert 1 < stats["bytes_per_token"] < 6
    json.dumps(stats, allow_nan=False)


def test_length_histogram_doubles_its_bins_when_lengths_spread() -> None:
    assert length_histogram(np.array([2, 3, 4, 15])) == [
        {"from_tokens": 2, "to_tokens": 4, "documents": 2},
        {"from_tokens": 4, "to_tokens": 8, "documents": 1},
        {"from_tokens": 8, "to_tokens": 16, "documents": 1},
    ]


@pytest.mark.parametrize(("vocab_size", "name"), [(2, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_token_type_is_the_smallest_when_the_vocabulary_is(vocab_size: int, name: str) -> None:
    assert token_dtype(vocab_size).name == name
