"""`longhaul evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.commands.arguments import AsJson, RunOrCheckpoint, examples, print_json

if TYPE_CHECKING:
    from cluster.inference import LoadedModel
    from launcher.evaluations import Evaluation

    Way = Callable[[LoadedModel], Evaluation]


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(
        epilog=examples(
            "longhaul evaluate longhaul-quickstart/runs/quickstart",
            "longhaul evaluate runs/my-run --dataset datasets/other",
            "longhaul evaluate runs/my-run --dataset datasets/dialogues --answers",
            "longhaul evaluate runs/my-run/checkpoints/step-00000400 --text chapter.txt --json",
            "longhaul evaluate runs/my-run --text chapter.txt --stride 64",
            "longhaul evaluate runs/my-run --choices questions.jsonl",
            "longhaul evaluate runs/my-run --pairs pairs.jsonl --out pairs.json",
            "longhaul evaluate runs/my-run --harness my_task --include-path tasks",
        )
    )(evaluate)


def evaluate(
    run_or_checkpoint: RunOrCheckpoint,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score this UTF-8 text file instead of a dataset.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="With --text: read a window of the length trained with again every so many tokens, so that more "
            "tokens have a long context. Windows do not overlap where it is not given.",
            show_default=False,
        ),
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
    choices: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Answer questions: a line of JSON for each, with "context" or "question", "choices", "answer" (a '
            'number from 0) and, where wanted, "group" and "delimiter".',
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Compare minimal pairs: a line of JSON for each, with "good", "bad" and, where wanted, "group".',
            show_default=False,
        ),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(
            metavar="TASK[,TASK]",
            help="Run tasks of EleutherAI's lm-evaluation-harness (pip install 'longhaul\\[eval]').",
            show_default=False,
        ),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --harness: directory with tasks of your own.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what --json prints into this file as well.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how well a trained model predicts held-out documents, a text of yours, or the right answers to questions.

    A model that learned labels is measured on labelled documents, with 95 % intervals.
    """
    from launcher.console import results
    from launcher.directories import require_dataset, require_run_or_checkpoint
    from launcher.errors import UsageError

    ways = {"--text": text, "--choices": choices, "--pairs": pairs, "--harness": harness}
    _refuse_what_does_not_go_together(
        {**ways, "--dataset": dataset},
        {"--stride": (stride, "--text"), "--include-path": (include_path, "--harness")},
    )
    for way, value in ways.items():
        if answers and value is not None:
            raise UsageError(f"{way} and --answers were both given: only datasets have answers. Leave one of them out.")
    if text is not None:
        evaluation = _of_text(text, stride)
    elif choices is not None:
        evaluation = _of_choices(choices)
    elif pairs is not None:
        evaluation = _of_pairs(pairs)
    elif harness is not None:
        evaluation = _of_harness(harness, include_path)
    else:
        evaluation = _of_datasets(dataset, answers)
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no directory {out.parent}. Make it first, or name another.")
    require_run_or_checkpoint(run_or_checkpoint)
    if dataset is not None:
        require_dataset(str(dataset))

    from cluster.inference import load_run

    loaded = load_run(run_or_checkpoint)
    found = evaluation(loaded)
    facts = {"run_directory": str(loaded.run_directory), "step": loaded.step, **found.facts}
    if out is not None:
        _write(out, facts)
    if as_json:
        print_json(facts)
        return
    for part in (f"step        {loaded.step:,}", *found.page):
        results().print(part)


def _refuse_what_does_not_go_together(ways: Mapping[str, object], companions: Mapping[str, tuple[object, str]]) -> None:
    """Only one way of evaluating, and no option of another.

    Args:
        ways: Every way, by its option.
        companions: Options that belong to one of them, with its name.
    """
    from launcher.errors import UsageError

    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} were both given. Choose one of them.")
    for name, (value, way) in companions.items():
        if value is not None and way not in given:
            raise UsageError(f"{name} was given without {way}, and would be ignored. Add {way}, or leave {name} out.")


def _of_text(path: Path, stride: int | None) -> Way:
    from launcher.errors import UsageError
    from launcher.evaluations import of_text
    from launcher.line_file import read_text

    content = read_text(path, str(path))
    if not content.strip():
        raise UsageError(f"{path}: the file has no text to score.")
    return lambda loaded: of_text(loaded, path, content, stride)


def _of_datasets(path: Path | None, answers: bool) -> Way:
    from launcher.errors import UsageError
    from launcher.evaluations import of_datasets, of_labels

    def evaluate_paths(loaded: LoadedModel) -> Evaluation:
        paths = list(loaded.dataset_paths) if path is None else [str(path)]
        if loaded.label_kind is None:
            return of_datasets(loaded, paths, answers)
        if answers:
            raise UsageError(
                f"--answers was given, and {loaded.run_directory} predicts labels (task {loaded.task}): nothing is an "
                "answer to them. Leave it out."
            )
        return of_labels(loaded, paths)

    return evaluate_paths


def _of_choices(path: Path) -> Way:
    from launcher.evaluations import of_choices
    from launcher.question_file import read_choices

    questions = read_choices(path)
    return lambda loaded: of_choices(loaded, path, questions)


def _of_pairs(path: Path) -> Way:
    from launcher.evaluations import of_pairs
    from launcher.question_file import read_pairs

    pairs = read_pairs(path)
    return lambda loaded: of_pairs(loaded, path, pairs)


def _of_harness(tasks: str, include_path: Path | None) -> Way:
    from importlib.util import find_spec

    from launcher.errors import InstallationError, UsageError
    from launcher.evaluations import of_harness

    if find_spec("lm_eval") is None:
        raise InstallationError(
            "--harness runs tasks of lm-evaluation-harness, which is not installed here. Install it "
            "(python -m pip install 'longhaul[eval]')."
        )
    if include_path is not None and not include_path.is_dir():
        raise UsageError(f"--include-path {include_path}: there is no such directory. Name one with .yaml tasks.")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--harness is {tasks!r}: there is no task to run. Name one, or several with commas.")
    return lambda loaded: of_harness(loaded, names, include_path)


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    from data_pipeline.publish import write_atomically

    write_atomically(path, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
