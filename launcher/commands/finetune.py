"""`longhaul finetune`."""

from __future__ import annotations

import typer

from launcher.commands.arguments import Config, FreshRun, Overrides, examples
from launcher.commands.pretrain import train_and_tell


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(
        epilog=examples(
            "longhaul finetune dialogues initialize_from=longhaul-quickstart/runs/quickstart",
            "longhaul finetune my-chat.yaml initialize_from=runs/my-run/checkpoints/step-00000400",
            "longhaul finetune sentiment.yaml initialize_from=runs/my-run train.label_smoothing=0.1",
        )
    )(finetune)


def finetune(
    config: Config,
    overrides: Overrides = None,
    fresh: FreshRun = False,
) -> None:
    """Teach a model a task: to answer, by conversations of which only the answers are learned, or to label texts.

    Tasks are instruction, sequence_classification, multi_label_classification, regression and token_classification.
    It begins with the weights of `initialize_from`, whose tokenizer the dataset must be built with, or with random
    ones; it goes on where the run has a checkpoint. All else is as with `pretrain`, the exit codes too.
    """
    train_and_tell("finetune", config, overrides, fresh=fresh)
