"""What an evaluation found, as lines and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from launcher.console import table
from launcher.report.figure_names import name_of
from launcher.report.units import MISSING, percentage, plural, significant
from llm.metrics.measured import Measured

_HEADINGS = {
    "accuracy": "accuracy",
    "accuracy_per_byte": "per byte",
}


def text_lines(figures: Mapping[str, Any], *, by_document: bool) -> list[str]:
    """What is said of text that was scored token by token.

    Args:
        figures: As `evaluate_text` and `evaluate_dataset` give them.
        by_document: Whether the first token of each document has nothing before it.
    """
    lines = [
        f"tokens      {_scored(figures, by_document=by_document)}",
        f"loss        {figures['loss']:.4f} nats per token",
        f"perplexity  {figures['perplexity']:.2f}",
    ]
    if "bytes" in figures:
        lines.append(f"bits/byte   {_number(figures['bits_per_byte'], 4)} over {figures['bytes']:,} UTF-8 bytes")
    lines.append(
        f"next token  the first guess in {percentage(figures['top1_accuracy'])}, "
        f"among the first five in {percentage(figures['top5_accuracy'])}"
    )
    if "stride_tokens" in figures:
        lines.append(f"windows     {figures['context_tokens']:,} tokens long, {figures['stride_tokens']:,} apart")
    return lines


def source_table(figures: Mapping[str, Any]) -> Table:
    """Figures of every source of a dataset; tokens, bytes and nats add up to those of the last line."""
    with_bytes = "bytes" in figures
    bytes_, bits = (["bytes"], ["bits/byte"]) if with_bytes else ([], [])
    rows = table("source", "tokens", *bytes_, "loss", "perplexity", *bits, "top-1", "top-5", numbers_from=1)
    for each in [*figures["sources"], {"source": "total", **figures}]:
        rows.add_row(
            each["source"],
            f"{each['tokens']:,}",
            *([f"{each['bytes']:,}"] if with_bytes else []),
            _number(each["loss"], 4),
            _number(each["perplexity"], 2),
            *([_number(each["bits_per_byte"], 4)] if with_bytes else []),
            percentage(each["top1_accuracy"]),
            percentage(each["top5_accuracy"]),
        )
    return rows


def question_table(figures: Mapping[str, Any]) -> Table:
    """Shares of right answers with their intervals, of each group where there are groups and of all."""
    counted = next(iter(figures))
    measures = [measure for measure in _HEADINGS if measure in figures]
    headings = [heading for measure in measures for heading in (_HEADINGS[measure], "95 % interval")]
    rows = table("group", counted, *headings, "chance", numbers_from=1)
    for each in [*figures.get("groups", ()), {"group": "total", **figures}]:
        cells = [
            cell for measure in measures for cell in (percentage(each[measure]), _interval(each[f"{measure}_interval"]))
        ]
        rows.add_row(each["group"] or MISSING, f"{each[counted]:,}", *cells, percentage(each["chance"]))
    return rows


def measure_table(measured: Measured) -> Table:
    """Figures of a model that learned labels, with their intervals."""
    share = "" if measured.confidence is None else f"{100 * measured.confidence:.0f} % interval"
    rows = table("figure", "value", share, numbers_from=1)
    for name, value in measured.headline.items():
        ends = measured.intervals.get(name)
        rows.add_row(
            name_of(name),
            significant(value),
            "" if ends is None else f"{significant(ends[0])} to {significant(ends[1])}",
        )
    return rows


def question_notes(figures: Mapping[str, Any]) -> list[str]:
    """What has to be known of the figures."""
    notes = ["Intervals are Wilson's of 95 %."]
    if figures.get("truncated"):
        notes.append(
            f"The context of {plural(figures['truncated'], 'question')} was longer than the model reads and lost its "
            "beginning."
        )
    return notes


def _scored(figures: Mapping[str, Any], *, by_document: bool) -> str:
    """How many tokens were scored of how many, and why not all of them."""
    if figures.get("answers_only"):
        return f"{figures['tokens']:,} scored of {figures['total_tokens']:,}: those of answers, and the end of each"
    whole = "each document" if by_document else "the split"
    reason = f"the first of {whole} has none before it to be predicted from"
    return f"{figures['tokens']:,} scored of {figures['total_tokens']:,}; {reason}"


def _number(value: float | None, decimals: int) -> str:
    return MISSING if value is None else f"{value:,.{decimals}f}"


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return MISSING
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"
