"""The headline of several runs: their figures side by side, and what makes figures incomparable."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from launcher.report.events import status
from launcher.report.headline import Card, counts_answers_only
from launcher.report.markup import Column, Row, swatch, table
from launcher.report.runs import ReportedRun

_RANKED = "Best validation perplexity"


def comparison_table(runs: Sequence[ReportedRun], figures: Sequence[Sequence[Card]]) -> str:
    """A row a run, a column a figure.

    Args:
        runs: The rows.
        figures: The cards of each run, the same ones in the same order.
    """
    columns = list(zip(*figures, strict=True))
    shared = [_shared_unit(column) for column in columns]
    headings = [_heading(cards[0].label, unit) for cards, unit in zip(columns, shared, strict=True)]
    head: list[Column] = [("Run", "words"), ("State", "tight"), *((name, "words") for name in headings)]
    best = _best(runs, columns)
    rows: list[Row] = []
    for run, cards in zip(runs, figures, strict=True):
        state = status(run.record.events)
        cells = [
            f"{swatch(run)}<b>{escape(run.label)}</b>",
            f'<b class="status {state}">{state}</b>',
            *(_cell(card, unit, best) for card, unit in zip(cards, shared, strict=True)),
        ]
        rows.append(("", cells))
    return f'<div class="headline">{table(head, rows)}</div>'


def _heading(label: str, unit: str) -> str:
    return label if not unit or unit in label.lower() else f"{label}, {unit}"


def _shared_unit(cards: Sequence[Card]) -> str:
    """The unit to be said in the heading, because all the figures have it."""
    units = {card.unit for card in cards if card.unit}
    return units.pop() if len(units) == 1 else ""


def _best(runs: Sequence[ReportedRun], columns: Sequence[Sequence[Card]]) -> float | None:
    """The lowest perplexity, where runs can be ranked by it and do not all share it."""
    amounts = [card.amount for cards in columns for card in cards if card.label == _RANKED and card.amount is not None]
    return min(amounts) if len(set(amounts)) > 1 and not cautions(runs) else None


def _cell(card: Card, shared_unit: str, best: float | None) -> str:
    is_best = best is not None and card.label == _RANKED and card.amount == best
    badge = ' <b class="badge good">best</b>' if is_best else ""
    unit = f' <span class="unit">{escape(card.unit)}</span>' if card.unit != shared_unit else ""
    note = f'<small class="note">{escape(card.note)}</small>' if card.note else ""
    return f"<b>{escape(card.value)}</b>{unit}{badge}{note}"


def cautions(runs: Sequence[ReportedRun]) -> list[str]:
    """Reasons against comparing loss and perplexity, in sentences."""
    plans = [run.record.facts.get("data_plan") for run in runs]
    found = []
    if _differ([plan.get("tokenizer") if isinstance(plan, dict) else None for plan in plans]):
        found.append(
            "The runs do not share a tokenizer: losses and perplexities per token are not comparable between them."
        )
    elif len({counts_answers_only(run.record) for run in runs}) > 1:
        found.append(
            "Of some runs only answers count, of the others every token: losses and perplexities are of other tokens."
        )
    elif _differ([_fingerprints(run) for run in runs]):
        found.append(
            "The runs were trained on different datasets: a validation set of the same name may be another text."
        )
    return found


def _fingerprints(run: ReportedRun) -> str | None:
    datasets = run.record.facts.get("datasets")
    if not isinstance(datasets, list):
        return None
    known = [str(one.get("fingerprint")) for one in datasets if isinstance(one, dict) and one.get("fingerprint")]
    return " ".join(sorted(known)) or None


def _differ(values: Sequence[Any]) -> bool:
    return len({str(value) for value in values if value is not None}) > 1
