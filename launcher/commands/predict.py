"""`longhaul predict`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.arguments import RunOrCheckpoint, examples
from launcher.errors import LauncherError

if TYPE_CHECKING:
    from launcher.text_lines import TextLine


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(
        epilog=examples(
            "longhaul predict runs/sentiment reviews.jsonl > predicted.jsonl",
            "echo 'What a lovely film' | longhaul predict runs/sentiment",
            "longhaul predict runs/tagger sentences.txt --batch-size 1",
        )
    )(predict)


def predict(
    run_or_checkpoint: RunOrCheckpoint,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="UTF-8 text, one a line, or JSON lines (.jsonl) with a text each; - is standard input.",
            show_default=False,
        ),
    ] = Path("-"),
    text_field: Annotated[str, typer.Option(metavar="KEY", help="Key of the text in a JSON line.")] = "text",
    batch_size: Annotated[
        int, typer.Option(help="Texts predicted together; answers come when so many were read, so 1 answers at once.")
    ] = 16,
) -> None:
    """Print what a model that learned labels says of texts: a JSON object a line, with probabilities.

    What a JSON line holds besides is given back. Texts longer than the model was trained to read are cut, and marked.
    """
    from launcher.directories import require_run_or_checkpoint
    from launcher.errors import UsageError
    from launcher.text_lines import ANSWER, read_lines

    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}: no text would be read. Use at least 1.")
    require_run_or_checkpoint(run_or_checkpoint)

    from cluster.inference import load_run
    from cluster.labelling import head_of_loaded, predict_texts
    from launcher.console import messages
    from launcher.report.units import plural

    loaded = load_run(run_or_checkpoint)
    head_of_loaded(loaded)
    lines = read_lines(file, text_field, words=loaded.task == "token_classification")
    texts = cut = 0
    for group in _groups(lines, batch_size):
        predicted = predict_texts(loaded, [line.text for line in group])
        for line, prediction in zip(group, predicted, strict=True):
            marked = {"cut": True} if prediction.cut else {}
            typer.echo(json.dumps({**line.fields, ANSWER: {**prediction.outcome, **marked}}, ensure_ascii=False))
            texts, cut = texts + 1, cut + prediction.cut
    if not texts:
        raise UsageError(f"{file}: there is no text to predict for. Write one a line.")
    if cut:
        limit = loaded.data.seq_len
        messages().print(
            f"{cut:,} of {plural(texts, 'text')} longer than the {limit} tokens that the model reads, and cut"
        )


def _groups(lines: Iterator[TextLine], size: int) -> Iterator[list[TextLine]]:
    """Lines by so many; those before a line that is refused come before its refusal."""
    group: list[TextLine] = []
    try:
        for line in lines:
            group.append(line)
            if len(group) == size:
                yield group
                group = []
    except LauncherError:
        if group:
            yield group
        raise
    if group:
        yield group
