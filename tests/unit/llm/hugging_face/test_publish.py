"""A directory appears whole or not at all, and what a killed writer left is removed by the next."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.errors import ExportError
from llm.hugging_face.publish import published_directory, write_durably

KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from llm.hugging_face.publish import published_directory, write_durably
with published_directory(Path(sys.argv[1])) as working:
    write_durably(working / "one", b"1")
    os.kill(os.getpid(), 9)
"""


def test_a_directory_is_hidden_until_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with published_directory(target) as working:
        write_durably(working / "one", b"1")
        assert not target.exists()
        assert working.name.startswith(".")
    assert (target / "one").read_bytes() == b"1"
    assert list(target.parent.iterdir()) == [target]


def test_nothing_is_left_when_the_writer_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), published_directory(tmp_path / "out") as working:
        (working / "one").write_bytes(bytes([1 // 0]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_target_is_refused_when_it_exists(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "out")
    message = r"out exists already, and an export never changes .* Give another directory"
    with pytest.raises(ExportError, match=message), published_directory(tmp_path / "out"):
        raise AssertionError


def test_a_target_is_refused_when_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"cannot be written \((Not a directory|File exists).* Give a directory on"
    with pytest.raises(ExportError, match=message), published_directory(tmp_path / "file" / "out"):
        raise AssertionError


def test_what_a_killed_writer_left_is_hidden_and_removed_by_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED.format(path=sys.path), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -9
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".out.exporting-")
    assert (left / "one").exists()
    with published_directory(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_living_writer_writes_is_left_alone(tmp_path: Path) -> None:
    with published_directory(tmp_path / "one") as first:
        write_durably(first / "file", b"1")
        with published_directory(tmp_path / "one.too") as second, published_directory(tmp_path / "two"):
            assert (first / "file").exists()
            assert second.exists()
    assert (tmp_path / "one" / "file").read_bytes() == b"1"


def test_the_second_of_two_writers_is_refused_at_the_end(tmp_path: Path) -> None:
    def both() -> None:
        with published_directory(tmp_path / "out") as first:
            write_durably(first / "one", b"1")
            with published_directory(tmp_path / "out") as second:
                assert first.exists()
                write_durably(second / "two", b"2")

    with pytest.raises(ExportError, match=r"out exists already: another export wrote it meanwhile"):
        both()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["two"]
