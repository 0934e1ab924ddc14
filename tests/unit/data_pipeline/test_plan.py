from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.build import build_dataset
from data_pipeline.config import (
    DataBuildConfig,
    DataConfig,
    MixtureEntry,
    StageConfig,
    TokenizerConfig,
    TokenizerTrainingConfig,
)
from data_pipeline.dataset import Dataset
from data_pipeline.errors import OrderError
from data_pipeline.plan import DataPlan
from data_pipeline.skip_ledger import SkipLedger

MakeConfig = Callable[..., DataBuildConfig]


@pytest.fixture(scope="session")
def second(make_config: MakeConfig, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of other documents' sides with the same tokenizer."""
    output = tmp_path_factory.mktemp("second")
    tokenizer = TokenizerConfig(path=str(dataset.directory / "tokenizer.model"))
    build_dataset(make_config(output, tokenizer=tokenizer, validation_fraction=0.6))
    return Dataset.open(output)


WARMUP = (BatchSizeStage(until_step=2, global_batch_size=1), BatchSizeStage(until_step=5, global_batch_size=3))


def _plan(
    *datasets: Dataset,
    batch: int = 4,
    warmup: tuple[BatchSizeStage, ...] = (),
    seed: int = 1,
    epochs: tuple[int | None, ...] = (),
    **options: object,
) -> DataPlan:
    limits = epochs or (None,) * len(datasets)
    entries = tuple(
        MixtureEntry(path=str(item.directory), weight=1.0 + number, max_epochs=limit)
        for number, (item, limit) in enumerate(zip(datasets, limits, strict=True))
    )
    config = DataConfig(dataset=entries, **{"seq_len": 128, **options})  # type: ignore[arg-type]
    return DataPlan(datasets, config, seed=seed, global_batch_size=batch, batch_size_warmup=warmup)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(4, 40) | st.integers(1, 3),
    warmed=st.booleans(),
    step=st.integers(0, 60),
    skips=st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 90)), max_size=6),
    capped=st.booleans(),
    seq_len=st.sampled_from([64, 100, 1000]),
)
def test_training_ledger_counts_what_was_trained_when_followed_step_by_step(
    dataset: Dataset,
    second: Dataset,
    batch: int,
    warmed: bool,
    step: int,
    skips: list[tuple[int, int]],
    capped: bool,
    seq_len: int,
) -> None:
    warmup = WARMUP if warmed and batch > 3 else ()
    plan = _plan(dataset, second, batch=batch, warmup=warmup, seq_len=seq_len, epochs=(1 if capped else None, None))
    ledger = SkipLedger()
    for start, length in skips:
        ledger = ledger.add(start, start + length)
    position = plan.position_after(step, ledger)
    walked = np.arange(position)
    source, _, epoch = plan.order.locate(walked)
    trained = np.isin(walked, np.concatenate([plan.batch_indices(s, ledger) for s in range(1, step + 1)] or [[]]))
    for number, entry in enumerate(plan.ledger(step, ledger)):
        assert entry.problem() is None
        mine = source == number
        reached = int(mine.sum())
        current = mine & (epoch == max(0, reached - 1) // plan.rows[number])
        assert entry.trained_tokens == int((current & trained).sum()) * seq_len
        assert entry.skipped_tokens == int((current & ~trained).sum()) * seq_len
        assert entry.completed_epochs == reached // plan.rows[number]
        assert 1 <= entry.tail_tokens <= seq_len
        assert entry.train_tokens == plan.datasets[number].split("train").tokens


def test_batches_are_disjoint_and_cover_an_epoch_when_there_is_one_dataset(dataset: Dataset) -> None:
    plan = _plan(dataset, batch=7)
    steps = plan.rows[0] // 7
    indices = np.concatenate([plan.batch_indices(step, SkipLedger()) for step in range(1, steps + 1)])
    assert indices.tolist() == list(range(steps * 7))


def test_batches_pass_over_skips_when_there_are_some(dataset: Dataset) -> None:
    plan = _plan(dataset)
    skips = SkipLedger().add(4, 8)
    assert plan.batch_indices(1, skips).tolist() == [0, 1, 2, 3]
    assert plan.position_after(1, skips) == 8
    assert plan.batch_indices(2, skips).tolist() == [8, 9, 10, 11]
    with pytest.raises(OrderError, match="Step 0 was asked for"):
        plan.batch_indices(0, skips)


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len": 64},
        {"document_mask": False},
        {"batch": 8},
        {"epochs": (3,)},
        {"shuffle_block_sequences": 8},
        {"shuffle_window_blocks": 2},
        {"stages": (StageConfig(sequences=10, weights=(1.0,)),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_differs_when_the_order_does(change: dict[str, object], dataset: Dataset) -> None:
    plan, other = _plan(dataset), _plan(dataset, **change)  # type: ignore[arg-type]
    assert plan.fingerprint != other.fingerprint
    before, after = plan.describe(), other.describe()
    assert sum(before[key] != after[key] for key in before) == 1


def test_fingerprint_stays_when_seed_or_directory_differ(
    dataset: Dataset, make_config: MakeConfig, tmp_path: Path
) -> None:
    build_dataset(make_config(tmp_path / "moved"))
    moved = Dataset.open(tmp_path / "moved")
    assert _plan(dataset).fingerprint == _plan(moved).fingerprint == _plan(dataset, seed=2).fingerprint


def test_weights_are_by_size_when_none_is_given(dataset: Dataset, second: Dataset) -> None:
    entries = tuple(MixtureEntry(path=str(item.directory)) for item in (dataset, second))
    plan = DataPlan([dataset, second], DataConfig(dataset=entries, seq_len=100), seed=0, global_batch_size=1)
    assert [source.weight for source in plan.order.sources] == list(plan.rows)


def test_plan_refuses_when_tokenizers_differ(dataset: Dataset, make_config: MakeConfig, tmp_path: Path) -> None:
    tokenizer = TokenizerConfig(train=TokenizerTrainingConfig(vocab_size=400))
    build_dataset(make_config(tmp_path / "other", tokenizer=tokenizer))
    other = Dataset.open(tmp_path / "other")
    with pytest.raises(OrderError, match=f"different tokenizers: .*{dataset.tokenizer_hash}.*{other.tokenizer_hash}"):
        _plan(dataset, other)


def test_plan_names_the_largest_length_when_seq_len_is_too_long(dataset: Dataset) -> None:
    tokens = dataset.split("train").tokens
    with pytest.raises(OrderError, match=f"The largest possible seq_len is {tokens - 1}"):
        _plan(dataset, seq_len=tokens)
    assert _plan(dataset, seq_len=tokens - 1).rows == (1,)


def test_check_steps_names_the_possible_steps_when_the_data_ends(dataset: Dataset) -> None:
    plan = _plan(dataset, epochs=(2,), batch=8)
    possible = plan.rows[0] * 2 // 8
    plan.check_steps(possible)
    with pytest.raises(OrderError, match=rf"train\.max_steps is {possible + 1} .*: {possible} steps are possible"):
        plan.check_steps(possible + 1)
    with pytest.raises(OrderError, match="steps are possible"):
        plan.check_steps(possible, SkipLedger().add(0, 9))
    _plan(dataset).check_steps(10**9)


def test_plan_refuses_when_datasets_are_not_those_of_the_config(dataset: Dataset) -> None:
    with pytest.raises(OrderError, match="2 datasets were opened for 1 entries"):
        DataPlan([dataset, dataset], DataConfig(dataset="x"), seed=0, global_batch_size=1)


def test_batches_take_the_sizes_of_their_steps_when_there_is_a_warm_up(dataset: Dataset) -> None:
    plan = _plan(dataset, warmup=WARMUP)
    skips = SkipLedger().add(4, 6)
    batches = [plan.batch_indices(step, skips).tolist() for step in range(1, 8)]
    assert batches == [
        [0],
        [1],
        [2, 3, 6],
        [7, 8, 9],
        [10, 11, 12],
        [13, 14, 15, 16],
        [17, 18, 19, 20],
    ]
    assert plan.position_after(3, skips) == 7


def test_possible_steps_count_the_smaller_ones_when_there_is_a_warm_up(dataset: Dataset) -> None:
    plan = _plan(dataset, warmup=WARMUP, epochs=(1,))
    assert plan.total_sequences is not None
    possible = 5 + (plan.total_sequences - 11) // 4
    plan.check_steps(possible)
    with pytest.raises(OrderError, match=rf"at 1, then 3, then 4 sequences a step, .*: {possible} steps are possible"):
        plan.check_steps(possible + 1)


def test_sizes_are_those_of_the_steps_when_the_data_begins_within_the_warm_up(dataset: Dataset) -> None:
    later = _plan(dataset, warmup=WARMUP, epochs=(1,), begins_after_step=3)
    batches = [later.batch_indices(step, SkipLedger()).tolist() for step in range(4, 7)]
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert later.total_sequences is not None
    possible = 5 + (later.total_sequences - 6) // 4
    later.check_steps(possible)
    with pytest.raises(OrderError, match=f": {possible} steps are possible"):
        later.check_steps(possible + 1)


def test_fingerprint_holds_the_warm_up_where_there_is_one(dataset: Dataset) -> None:
    assert "batch_size_warmup" not in _plan(dataset).describe()
    assert _plan(dataset, warmup=WARMUP).describe()["batch_size_warmup"] == [[2, 1], [5, 3]]
    assert _plan(dataset, warmup=WARMUP).fingerprint != _plan(dataset, warmup=WARMUP[:1]).fingerprint


def test_sequences_begin_at_the_first_when_the_data_begins_after_a_step(dataset: Dataset) -> None:
    plain, later = _plan(dataset), _plan(dataset, begins_after_step=10)
    skips = SkipLedger().add(2, 5)
    assert later.batch_indices(11, skips).tolist() == plain.batch_indices(1, skips).tolist()
    assert later.position_after(13, skips) == plain.position_after(3, skips)
    assert later.ledger(13, skips) == plain.ledger(3, skips)


def test_steps_are_refused_when_the_data_begins_after_them(dataset: Dataset) -> None:
    with pytest.raises(OrderError, match=r"this data begins after step 10 \(data.begins_after_step\)"):
        _plan(dataset, begins_after_step=10).batch_indices(10, SkipLedger())


def test_possible_steps_count_those_before_the_data_began(dataset: Dataset) -> None:
    plain = _plan(dataset, epochs=(1,))
    assert plain.total_sequences is not None
    possible = plain.total_sequences // plain.batch_sizes.final
    later = _plan(dataset, epochs=(1,), begins_after_step=10)
    later.check_steps(possible + 10)
    with pytest.raises(OrderError, match=f": {possible + 10} steps are possible"):
        later.check_steps(possible + 11)


def test_fingerprint_holds_where_the_data_begins(dataset: Dataset) -> None:
    assert "begins_after_step" not in _plan(dataset).describe()
    assert _plan(dataset, begins_after_step=10).fingerprint != _plan(dataset).fingerprint
