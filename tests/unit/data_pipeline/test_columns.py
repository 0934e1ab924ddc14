"""Columns over shards: any stretch is what the whole says there, and no damaged byte is handed out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetDamagedError


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 4000))
def test_rows_are_stretches_of_the_whole(chats: Dataset, places: list[float], length: int) -> None:
    stream = chats.split("train")
    starts = np.array([int(place * (stream.tokens - length)) for place in places], dtype=np.int64)
    tokens, answers = stream.read(0, stream.tokens), stream.read_answers(0, stream.tokens)
    for row, start in enumerate(starts.tolist()):
        assert np.array_equal(stream.rows(starts, length)[row], tokens[start : start + length])
        assert np.array_equal(stream.answer_rows(starts, length)[row], answers[start : start + length])


@pytest.mark.parametrize("column", ["tokens_position", "answer_mask_position"])
@pytest.mark.parametrize("shard", [0, 2])
def test_damage_is_found_when_other_shards_were_verified_before(
    column: str, shard: int, chats: Dataset, tmp_path: Path
) -> None:
    copy = shutil.copytree(chats.directory, tmp_path / "copy")
    record = [each for each in chats.manifest.shards if each.split == "train"][shard]
    content = bytearray((copy / record.file).read_bytes())
    content[getattr(record.segments[0], column) + 9] ^= 1
    (copy / record.file).write_bytes(content)
    stream = Dataset.open(copy).split("train")
    sizes = [each.tokens for each in chats.manifest.shards if each.split == "train"]
    begins = np.cumsum([0, *sizes])
    read = stream.rows if column == "tokens_position" else stream.answer_rows
    for number in range(len(sizes)):
        if number != shard:
            read(begins[number : number + 1], 20)
    with pytest.raises(DatasetDamagedError, match="is damaged in block 0"):
        read(begins[shard : shard + 1], 20)
