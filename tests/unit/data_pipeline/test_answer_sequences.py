"""Sequences of which only answers count: against a slow twin, document by document."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.build import build_dataset
from data_pipeline.chat_template import ChatTemplate
from data_pipeline.config import DataBuildConfig, DataConfig, MixtureEntry, TokenizerConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import OrderError
from data_pipeline.plan import DataPlan, shared_chat_template
from data_pipeline.sequences import Batch, TrainingSequences, ValidationSequences
from data_pipeline.stream import TokenStream

SEQ_LENS = [1, 2, 37, 128, 1000]


def plan_of(*datasets: Dataset, seq_len: int = 37, document_mask: bool = True, answers_only: bool = True) -> DataPlan:
    entries = tuple(MixtureEntry(path=str(number)) for number in range(len(datasets)))
    config = DataConfig(dataset=entries, seq_len=seq_len, document_mask=document_mask)
    return DataPlan(datasets, config, seed=3, global_batch_size=4, answers_only=answers_only)


def slow_weights(stream: TokenStream, start: int, length: int) -> list[float]:
    """Of the targets behind the positions [start, start + length): 1 where an answer of the same document goes on."""
    weights = []
    for position in range(start, start + length):
        if position + 1 >= stream.tokens:
            weights.append(0.0)
            continue
        here, there = stream.documents_at([position, position + 1])
        answer = int(stream.read_answers(position + 1, position + 2)[0])
        weights.append(float(answer and here.start == there.start))
    return weights


@pytest.mark.parametrize("document_mask", [True, False])
@pytest.mark.parametrize("seq_len", SEQ_LENS)
def test_training_weights_are_those_of_the_slow_twin(seq_len: int, document_mask: bool, chats: Dataset) -> None:
    plan = plan_of(chats, seq_len=seq_len, document_mask=document_mask)
    indices = np.random.default_rng(1).integers(0, 10**6, 3)
    _, row, _ = plan.order.locate(indices)
    batch = TrainingSequences(plan).read(indices)
    expected = [slow_weights(chats.split("train"), int(number) * seq_len, seq_len) for number in row]
    assert batch.loss_weights.dtype == np.float32
    assert batch.loss_weights.tolist() == expected


@given(st.integers(1, 300), st.lists(st.integers(-1, 5000), min_size=1, max_size=6), st.booleans())
def test_all_but_the_weights_is_as_without_a_mask(chats: Dataset, seq_len: int, rows: list[int], mask: bool) -> None:
    masked = TrainingSequences(plan_of(chats, seq_len=seq_len, document_mask=mask)).read(rows)
    whole = TrainingSequences(plan_of(chats, seq_len=seq_len, document_mask=mask, answers_only=False)).read(rows)
    for name in ("tokens", "targets", "document_ids", "sample_index"):
        assert np.array_equal(getattr(masked, name), getattr(whole, name))
    assert (masked.loss_weights <= whole.loss_weights).all()


@pytest.mark.parametrize("seq_len", SEQ_LENS)
def test_every_answer_token_of_the_validation_split_is_scored_once(seq_len: int, chats: Dataset) -> None:
    stream = chats.split("validation")
    sequences = ValidationSequences(chats, seq_len, True, answers_only=True)
    batch = sequences.read(np.arange(len(sequences)))
    real = np.arange(batch.targets.size) < stream.tokens - 1
    scored = batch.loss_weights.ravel()[real]
    assert scored.tolist() == stream.read_answers(1, stream.tokens).tolist()
    assert not batch.loss_weights.ravel()[~real].any()
    assert batch.loss_weights.sum() == chats.manifest.splits["validation"].answer_tokens


def test_row_without_any_answer_carries_no_weight(chats: Dataset) -> None:
    sequences = TrainingSequences(plan_of(chats, seq_len=4))
    batch = sequences.read(np.arange(200))
    weights = batch.loss_weights.sum(axis=1)
    assert (weights == 0).any()
    assert (weights > 0).any()


def test_padding_carries_no_weight(chats: Dataset) -> None:
    batch = TrainingSequences(plan_of(chats, seq_len=16)).read([-1, 3])
    padding = Batch.padding(1, 16)
    assert np.array_equal(batch[:1].loss_weights, padding.loss_weights)


def test_plan_of_all_tokens_keeps_its_description(chats: Dataset, dataset: Dataset) -> None:
    for each in (chats, dataset):
        assert "answers_only" not in plan_of(each, answers_only=False).describe()


def test_plan_of_answers_is_another(chats: Dataset) -> None:
    answers, whole = plan_of(chats), plan_of(chats, answers_only=False)
    assert answers.describe() == {**whole.describe(), "answers_only": True}
    assert answers.fingerprint != whole.fingerprint


def test_answers_are_refused_of_text(dataset: Dataset) -> None:
    with pytest.raises(OrderError) as caught:
        plan_of(dataset)
    assert str(caught.value) == (
        f"task is instruction, and {dataset.directory} holds text, in which nothing is an answer to learn. Build a "
        "dataset of conversations (messages_field, or prompt_field and answer_field, of its sources), or set task: "
        "pretrain, which learns every token."
    )


@pytest.fixture(scope="module")
def otherwise(
    make_chat_config: Callable[..., DataBuildConfig], chats: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Dataset:
    """The same conversations in another template."""
    output = tmp_path_factory.mktemp("otherwise")
    tokenizer = TokenizerConfig(path=str(chats.directory / "tokenizer.model"))
    build_dataset(make_chat_config(output, chat_template=ChatTemplate(user_prefix="Q:\n"), tokenizer=tokenizer))
    return Dataset.open(output)


def test_two_templates_are_refused_in_one_run(chats: Dataset, otherwise: Dataset) -> None:
    with pytest.raises(OrderError, match=r"were built with different chat templates: .* The model would not know"):
        plan_of(chats, otherwise)
    assert shared_chat_template([chats, otherwise]) is None
    assert shared_chat_template([chats]) == ChatTemplate()
