"""The byte counter of builds and verifications, where nobody watches."""

from __future__ import annotations

import io

from rich.console import Console

from data_pipeline.survey import BuildProgress
from launcher.build_progress import ByteProgress

MIB = 2**20


def _console() -> Console:
    return Console(file=io.StringIO(), width=80, highlight=False)


def _lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_byte_progress_prints_every_tenth_and_the_end() -> None:
    console = _console()
    with ByteProgress(console, "verifying", interactive=False, clock=lambda: 0.0) as progress:
        for done in range(1, 31):
            progress(done * MIB, 30 * MIB)
    assert [line.split(":")[1].split(" of")[0].strip() for line in _lines(console)] == [
        *(f"{done}.00 MiB" if done < 10 else f"{done}.0 MiB" for done in range(1, 30, 3)),
        "30.0 MiB",
    ]


def test_byte_progress_names_each_stage_of_a_build() -> None:
    console = _console()
    with ByteProgress(console, "reading", interactive=False, clock=lambda: 0.0) as progress:
        progress.on_build(BuildProgress("reading", 3, MIB))
        progress.on_build(BuildProgress("reading", 4, 2 * MIB))
        progress.on_build(BuildProgress("encoding", 4, MIB, total_bytes=2 * MIB))
    assert _lines(console) == ["reading: 1.00 MiB", "encoding: 1.00 MiB of 2.00 MiB"]
