"""The last page of the quickstart."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.quickstart import QuickstartResult, summary
from launcher.training import TrainingResult


def _result(*, trained_now: bool) -> QuickstartResult:
    training = TrainingResult(
        run_directory=Path("out/runs/quickstart"),
        step=640,
        status="finished",
        trained_now=trained_now,
        not_applied=(),
        validation={"austen": 55.0},
        ledger=(),
        report=Path("out/runs/quickstart/report.html"),
    )
    return QuickstartResult(
        training=training, dataset=Path("out"), perplexity=55.0, bigram_perplexity=64.0, text="Once, and again."
    )


@pytest.mark.parametrize("trained_now", [True, False])
def test_summary_says_so_when_the_run_had_finished_before(trained_now: bool) -> None:
    said = "The run had finished before, at step 640: nothing was trained now." in summary(
        _result(trained_now=trained_now), "longhaul"
    )
    assert said is not trained_now
