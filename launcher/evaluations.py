"""The ways of evaluating a trained model: what each found, for programs and as a page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.evaluation_pages import measure_table, question_notes, question_table, source_table, text_lines

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.inference import LoadedModel
    from launcher.question_file import ChoiceQuestion, TextPair


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found."""

    facts: Mapping[str, Any]
    """For programs."""
    page: Sequence[str | Table]
    """Lines and tables for people."""


def of_text(loaded: LoadedModel, path: Path, content: str, stride: int | None) -> Evaluation:
    """A text, token by token; see `evaluate_text`."""
    from cluster.evaluation.language import evaluate_text

    figures = evaluate_text(loaded, content, stride)
    page = [f"text        {path}", *text_lines(figures, by_document=True)]
    return Evaluation(facts={"results": [{"text": str(path), **figures}]}, page=page)


def of_datasets(loaded: LoadedModel, paths: Sequence[str], answers: bool = False) -> Evaluation:
    """Validation splits, token by token and by source; see `evaluate_dataset`.

    Args:
        loaded: The model.
        paths: Datasets.
        answers: Score answers of conversations alone, whatever the run learned.
    """
    from cluster.evaluation.language import evaluate_dataset

    results: list[dict[str, Any]] = []
    page: list[str | Table] = []
    for path in paths:
        figures = evaluate_dataset(loaded, path, answers_only=answers or None)
        results.append({"dataset": path, **figures})
        page += [f"dataset     {path}", *text_lines(figures, by_document=loaded.data.document_mask)]
        page.append(source_table(figures))
    return Evaluation(facts={"results": results}, page=page)


def of_labels(loaded: LoadedModel, paths: Sequence[str]) -> Evaluation:
    """Validation splits of labelled datasets; see `evaluate_labels`."""
    from cluster.labelling import evaluate_labels

    results: list[dict[str, Any]] = []
    page: list[str | Table] = []
    for path in paths:
        measured = evaluate_labels(loaded, path)
        results.append({"dataset": path, **measured.to_json()})
        page += [f"dataset     {path}", f"examples    {measured.examples:,}", measure_table(measured)]
    return Evaluation(facts={"results": results}, page=page)


def of_choices(loaded: LoadedModel, path: Path, questions: Sequence[ChoiceQuestion]) -> Evaluation:
    """Questions with choices; see `answer_choices`."""
    from launcher.questions import answer_choices

    return _of_questions("choices", path, answer_choices(loaded, questions))


def of_pairs(loaded: LoadedModel, path: Path, pairs: Sequence[TextPair]) -> Evaluation:
    """Minimal pairs; see `compare_pairs`."""
    from launcher.questions import compare_pairs

    return _of_questions("pairs", path, compare_pairs(loaded, pairs))


def of_harness(loaded: LoadedModel, tasks: Sequence[str], include_path: Path | None) -> Evaluation:
    """Tasks of lm-evaluation-harness; see `run_harness`."""
    from launcher.harness import run_harness

    results, table = run_harness(loaded, tasks, include_path)
    return Evaluation(facts={"harness": results}, page=[table])


def _of_questions(key: str, path: Path, figures: Mapping[str, Any]) -> Evaluation:
    page: list[str | Table] = [f"{key:11s} {path}", question_table(figures), *question_notes(figures)]
    return Evaluation(facts={"results": [{key: str(path), **figures}]}, page=page)
