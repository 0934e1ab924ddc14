from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.config import DataConfig, MixtureEntry, SourceConfig, TokenizerConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import CorpusError, DatasetDamagedError, DatasetError, OrderError
from data_pipeline.examples import Examples, TrainingExamples, training_data
from data_pipeline.label_config import LabelsConfig
from data_pipeline.plan import DataPlan
from data_pipeline.sequences import TrainingSequences
from data_pipeline.skip_ledger import SkipLedger
from data_pipeline.trace import trace_sequences
from tests.unit.data_pipeline.labelled import KINDS, build_labelled, rated

SEQ_LEN = 24


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    return {kind: build_labelled(tmp_path_factory.mktemp(kind), labels) for kind, labels in KINDS.items()}


def plan_of(*datasets: Dataset, batch: int = 4, seq_len: int = SEQ_LEN, **options: Any) -> DataPlan:
    entries = tuple(MixtureEntry(path=str(dataset.directory)) for dataset in datasets)
    config = DataConfig(dataset=entries, seq_len=seq_len, packing="examples", **options)
    return DataPlan(datasets, config, seed=5, global_batch_size=batch)


def lines_of(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    """The lines that a split was built from, in the order of its documents."""
    lines = {f"lines.jsonl:{number}": line for number, line in enumerate(rated(), start=1)}
    stream = dataset.split(split)
    return [lines[stream.document(number).document_id] for number in range(stream.documents)]


@pytest.mark.parametrize("kind", ["class", "classes", "number"])
def test_label_of_a_document_stands_at_its_last_token(kind: str, datasets: dict[str, Dataset]) -> None:
    dataset = datasets[kind]
    names = dataset.labels.names
    examples = Examples(dataset, "train", SEQ_LEN)
    lines = lines_of(dataset, "train")
    batch = examples.read(np.arange(len(examples)))
    tokenizer = dataset.tokenizer()
    for row, line in enumerate(lines):
        ids = [tokenizer.bos_id, *tokenizer.encode(line["text"]).tolist(), tokenizer.eos_id][:SEQ_LEN]
        assert batch.tokens[row, : len(ids)].tolist() == ids
        assert not batch.tokens[row, len(ids) :].any()
        assert np.flatnonzero(batch.loss_weights[row]).tolist() == [len(ids) - 1]
        target = batch.targets[row, len(ids) - 1]
        wanted = {
            "class": lambda line=line: names.index(line["class"]),
            "number": lambda line=line: np.float32(line["score"]),
            "classes": lambda line=line: [float(name in line["classes"]) for name in names],
        }[kind]()
        assert np.array_equal(target, wanted)


def test_label_of_a_word_stands_at_its_last_token(datasets: dict[str, Dataset]) -> None:
    dataset = datasets["token_class"]
    examples = Examples(dataset, "train", 64)
    tokenizer = dataset.tokenizer()
    batch = examples.read(np.arange(len(examples)))
    for row, line in enumerate(lines_of(dataset, "train")):
        spelled = [word if place == 0 else f" {word}" for place, word in enumerate(line["words"])]
        ends = np.cumsum([len(tokenizer.encode(word)) for word in spelled])
        wanted = {
            int(end): dataset.labels.names.index(tag)
            for end, tag in zip(ends, line["tags"], strict=True)
            if tag is not None
        }
        found = np.flatnonzero(batch.loss_weights[row]).tolist()
        assert {place: int(batch.targets[row, place]) for place in found} == wanted


def test_words_beyond_the_row_do_not_count(datasets: dict[str, Dataset]) -> None:
    examples = Examples(datasets["token_class"], "train", 5)
    batch = examples.read(np.arange(len(examples)))
    assert batch.tokens.shape[1] == 5
    assert examples.lengths.max() == 5


def test_rows_are_as_long_as_the_longest_rounded_up_and_padding_has_no_weight(datasets: dict[str, Dataset]) -> None:
    examples = Examples(datasets["class"], "train", 64)
    shortest = int(np.argmin(examples.lengths))
    batch = examples.read(np.array([shortest, -1]))
    assert batch.tokens.shape == (2, -(-int(examples.lengths[shortest]) // 16) * 16)
    assert batch.loss_weights.sum(axis=1).tolist() == [1, 0]
    assert batch.sample_index.tolist() == [shortest, -1]


def test_rows_hold_the_same_in_one_length(datasets: dict[str, Dataset]) -> None:
    plan = plan_of(datasets["token_class"])
    short = TrainingExamples(plan).read([0, 1])
    whole = TrainingExamples(plan, one_length=True).read([0, 1])
    assert whole.tokens.shape == (2, SEQ_LEN)
    for name in ("tokens", "targets", "loss_weights"):
        kept, padding = np.split(getattr(whole, name), [short.tokens.shape[1]], axis=1)
        assert (kept == getattr(short, name)).all()
        assert not padding.any()


def test_balanced_classes_weigh_alike_in_the_whole_split(tmp_path: Path) -> None:
    lines = [{**line, "class": "rare" if number % 10 == 0 else "common"} for number, line in enumerate(rated())]
    dataset = build_labelled(tmp_path, KINDS["class"], lines)
    examples = TrainingExamples(plan_of(dataset, class_weights="balanced"))
    batch = examples.read(np.arange(examples.plan.rows[0]))
    stands = batch.loss_weights > 0
    by_class = [batch.loss_weights[stands & (batch.targets == number)].sum() for number in range(2)]
    assert by_class[0] == pytest.approx(by_class[1], rel=1e-5)
    assert sum(by_class) == pytest.approx(examples.plan.rows[0], rel=1e-5)


def test_classes_weigh_alike_over_all_datasets_in_whatever_order(tmp_path: Path) -> None:
    labels = replace(KINDS["class"], names=("common", "rare"))
    lines = [
        {**line, "class": "rare" if number < 2 or number > 35 else "common"} for number, line in enumerate(rated())
    ]
    first = build_labelled(tmp_path / "first", labels, lines[:36])
    given = TokenizerConfig(path=str(first.directory / "tokenizer.model"))
    other = build_labelled(tmp_path / "other", labels, lines[30:], tokenizer=given)  # mostly of the other class
    counts = [sum(dataset.labels.counts["train"][number] for dataset in (first, other)) for number in range(2)]
    for datasets in ((first, other), (other, first)):
        batch = TrainingExamples(plan_of(*datasets, class_weights="balanced")).read(np.arange(100))
        stands = batch.loss_weights > 0
        for number, count in enumerate(counts):
            weights = batch.loss_weights[stands & (batch.targets == number)]
            assert weights == pytest.approx(sum(counts) / (2 * count))


def test_numbers_cannot_be_balanced(datasets: dict[str, Dataset]) -> None:
    with pytest.raises(DatasetError, match=r"and .* is labelled with number: only one class of several"):
        TrainingExamples(plan_of(datasets["number"], class_weights="balanced"))


def test_each_document_is_trained_on_once_an_epoch(datasets: dict[str, Dataset]) -> None:
    plan = plan_of(datasets["number"])
    documents = plan.rows[0]
    indices = np.concatenate([plan.batch_indices(step, SkipLedger()) for step in range(1, documents // 4 + 2)])
    _, rows, _ = plan.order.locate(indices[:documents])
    assert sorted(rows.tolist()) == list(range(documents))
    data = training_data(plan)
    assert isinstance(data, TrainingExamples)
    batch = data.read(indices[:3])
    for place, row in enumerate(rows[:3].tolist()):
        alone = Examples(datasets["number"], "train", SEQ_LEN).read([row])
        length = int(data.lengths(indices[place : place + 1])[0])
        assert batch.tokens[place, :length].tolist() == alone.tokens[0, :length].tolist()
        assert batch.targets[place].max() == alone.targets[0].max()


def test_stream_is_cut_as_before_where_documents_are_not_asked_for(datasets: dict[str, Dataset]) -> None:
    dataset = datasets["class"]
    plan = DataPlan([dataset], DataConfig(dataset=str(dataset.directory), seq_len=8), seed=1, global_batch_size=2)
    assert isinstance(training_data(plan), TrainingSequences)
    assert "class_weights" not in plan.describe()


@pytest.mark.parametrize("steps", [0, 3, 20])
def test_ledger_of_documents_adds_up_with_what_was_cut_and_skipped(steps: int, datasets: dict[str, Dataset]) -> None:
    plan = plan_of(datasets["class"], seq_len=12)
    skips = SkipLedger().add(2, 5)
    (ledger,) = plan.ledger(steps, skips)
    examples = Examples(datasets["class"], "train", 12)
    assert ledger.problem() is None
    assert ledger.tail_tokens == int((datasets["class"].split("train").document_lengths() - examples.lengths).sum())
    position = plan.position_after(steps, skips)
    _, rows, epochs = plan.order.locate(np.arange(position))
    now = epochs == ledger.completed_epochs
    left_out = np.isin(np.arange(position), [2, 3, 4])
    assert ledger.trained_tokens == int(examples.lengths[rows[now & ~left_out]].sum())
    assert ledger.skipped_tokens == int(examples.lengths[rows[now & left_out]].sum())


def test_tokens_through_a_step_are_those_of_its_batches_in_any_order_of_asking(datasets: dict[str, Dataset]) -> None:
    plan, skips = plan_of(datasets["class"]), SkipLedger().add(3, 9)
    data = TrainingExamples(plan)
    wanted = np.cumsum([int(data.lengths(plan.batch_indices(step, skips)).sum()) for step in range(1, 31)])
    for step in (30, 4, 5, 17, 4, 30, 1):
        assert data.tokens_through(step, skips) == wanted[step - 1]
    assert data.tokens_through(0, skips) == 0


def test_trace_names_the_one_document_of_a_sequence(datasets: dict[str, Dataset]) -> None:
    plan = plan_of(datasets["class"], seq_len=6)
    for traced in trace_sequences(plan, plan.batch_indices(1, SkipLedger()).tolist()):
        (part,) = traced.parts
        assert (part.document.index, part.first_token) == (traced.row, 0)
        assert part.tokens == min(6, part.document.stop - part.document.start)


def test_datasets_of_other_labels_are_not_mixed(datasets: dict[str, Dataset], tmp_path: Path) -> None:
    lines = [{**line, "class": f"{line['class']}er"} for line in rated()]
    tokenizer = datasets["class"].directory / "tokenizer.model"
    other = build_labelled(tmp_path, KINDS["class"], lines, tokenizer=TokenizerConfig(path=str(tokenizer)))
    with pytest.raises(OrderError, match=r"one model cannot learn both. Give both builds the same `labels.names`"):
        plan_of(datasets["class"], other)


def test_dataset_without_labels_is_refused(tmp_path: Path) -> None:
    dataset = build_labelled(tmp_path, None)
    with pytest.raises(DatasetError, match=r"has no labels, and this task learns them. Build it with `labels:"):
        plan_of(dataset)


def test_shards_are_read_by_plain_arrow_with_their_labels(datasets: dict[str, Dataset]) -> None:
    for kind, dataset in datasets.items():
        (file,) = sorted((dataset.directory / "shards").glob("train-*.arrow"))
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        column = "token_labels" if kind == "token_class" else "label"
        assert table.column_names == ["tokens", "document_id", "source", column]
        assert table.num_rows == dataset.split("train").documents


def test_labels_are_part_of_what_a_dataset_is(datasets: dict[str, Dataset], tmp_path: Path) -> None:
    lines = rated()
    lines[0]["class"], lines[1]["class"] = lines[1]["class"], lines[0]["class"]
    other = build_labelled(tmp_path, KINDS["class"], lines)
    assert other.manifest.splits["train"].tokens_hash == datasets["class"].manifest.splits["train"].tokens_hash
    assert other.fingerprint != datasets["class"].fingerprint
    assert other.manifest.content_digest != datasets["class"].manifest.content_digest


def test_manifest_counts_classes_and_survives_writing(datasets: dict[str, Dataset]) -> None:
    for kind, dataset in datasets.items():
        labels = dataset.labels
        again = Dataset.open(dataset.directory)
        assert again.labels == labels
        again.verify()
        if kind == "class":
            counts = [sum(line["class"] == name for line in lines_of(dataset, "train")) for name in labels.names]
            assert labels.counts["train"] == tuple(counts)
        assert ("labels" in again.stats()) is True


def test_verifying_finds_labels_that_are_not_those_of_the_build(datasets: dict[str, Dataset], tmp_path: Path) -> None:
    dataset = build_labelled(tmp_path, KINDS["number"])
    labels = dataset.labels
    wrong = Dataset(
        dataset.directory, replace(dataset.manifest, labels=replace(labels, hashes={**labels.hashes, "train": "0"}))
    )
    with pytest.raises(DatasetDamagedError, match="the labels of the train split have the hash"):
        wrong.verify()


def test_dataset_without_labels_has_the_manifest_it_always_had(tmp_path: Path) -> None:
    dataset = build_labelled(tmp_path, None)
    document = json.loads((dataset.directory / "manifest.json").read_text())
    assert "labels" not in json.dumps(document)


@pytest.mark.parametrize(
    ("change", "labels", "message"),
    [
        ({"score": None}, KINDS["number"], r"lines.jsonl, line 5 has None under 'score'"),
        ({"class": ""}, KINDS["class"], r"lines.jsonl, line 5 has '' under 'class'"),
        ({"tags": ["X"]}, KINDS["token_class"], r"line 5 has 8 words and 1 labels: each word has one"),
        ({"words": "a text"}, KINDS["token_class"], r"line 5 has 'a text' under 'words'.*it must be a list of words"),
        ({"words": ["a", " "]}, KINDS["token_class"], "it must be a list of words, none of them empty"),
    ],
)
def test_build_names_the_line_whose_label_is_wrong(
    change: dict[str, Any], labels: LabelsConfig, message: str, tmp_path: Path
) -> None:
    lines = rated(8)
    lines[4].update(change)
    with pytest.raises(CorpusError, match=message):
        build_labelled(tmp_path, labels, lines)


def test_plain_text_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    source = SourceConfig(name="plain", path=str(tmp_path / "a.txt"))
    with pytest.raises(CorpusError, match=r"is plain text, which has no labels, and labels.field is 'class'"):
        build_labelled(tmp_path, KINDS["class"], sources=(source,))
