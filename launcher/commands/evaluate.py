"""`longhaul evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import AsJson, RunOrCheckpoint, examples, print_json


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(
        epilog=examples(
            "longhaul evaluate longhaul-quickstart/runs/quickstart",
            "longhaul evaluate runs/my-run --dataset datasets/other",
            "longhaul evaluate runs/my-run --dataset datasets/dialogues --answers",
            "longhaul evaluate runs/my-run/checkpoints/step-00000400 --text chapter.txt --json",
        )
    )(evaluate)


def evaluate(
    run_or_checkpoint: RunOrCheckpoint,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score this UTF-8 text file instead of a dataset.")
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Score the validation split of this dataset instead of the run's own."),
    ] = None,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="Score only the answers of conversations, as is done anyway for a run that learned nothing else.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print loss and perplexity of a trained model on held-out documents or on a text of yours.

    A model that learned labels is measured on labelled documents, with 95 % intervals.
    """
    from launcher.directories import require_dataset, require_run_or_checkpoint
    from launcher.errors import UsageError

    if text is not None and dataset is not None:
        raise UsageError("--text and --dataset were both given. Choose one of them.")
    if text is not None and answers:
        raise UsageError("--text and --answers were both given: a text has no answers. Leave one of them out.")
    content = _read(text) if text is not None else None
    require_run_or_checkpoint(run_or_checkpoint)
    if dataset is not None:
        require_dataset(str(dataset))

    from cluster.inference import evaluate_dataset, evaluate_text, load_run

    loaded = load_run(run_or_checkpoint)
    if loaded.label_kind is not None and content is None:
        from launcher.measure_pages import print_measures

        print_measures(loaded, [str(dataset)] if dataset is not None else list(loaded.dataset_paths), as_json=as_json)
        return
    if content is not None:
        scored = {str(text): evaluate_text(loaded, content)}
    else:
        paths = [str(dataset)] if dataset is not None else loaded.dataset_paths
        scored = {path: evaluate_dataset(loaded, path, answers_only=answers or None) for path in paths}
    if as_json:
        results = [{"text" if content is not None else "dataset": path, **figures} for path, figures in scored.items()]
        print_json({"run_directory": str(loaded.run_directory), "step": loaded.step, "results": results})
        return
    typer.echo(f"step        {loaded.step:,}")
    for path, figures in scored.items():
        typer.echo(f"{'text' if content is not None else 'dataset':11s} {path}")
        by_document = content is not None or loaded.data.document_mask
        answers_only = bool(figures.get("answers_only"))
        typer.echo(f"tokens      {_scored(figures, by_document=by_document, answers_only=answers_only)}")
        typer.echo(f"loss        {figures['loss']:.4f} nats per token")
        typer.echo(f"perplexity  {figures['perplexity']:.2f}")


def _scored(figures: Mapping[str, float], *, by_document: bool, answers_only: bool) -> str:
    """How many tokens were scored of how many, and why not all of them."""
    if answers_only:
        return f"{figures['tokens']:,} scored of {figures['total_tokens']:,}: those of answers, and the end of each"
    whole = "each document" if by_document else "the split"
    reason = f"the first of {whole} has none before it to be predicted from"
    return f"{figures['tokens']:,} scored of {figures['total_tokens']:,}; {reason}"


def _read(path: Path) -> str:
    from launcher.errors import UsageError

    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start}). Convert it first.") from error
    if not content.strip():
        raise UsageError(f"{path}: the file has no text to score.")
    return content
