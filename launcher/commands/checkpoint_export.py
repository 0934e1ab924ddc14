"""`longhaul checkpoint export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.commands.arguments import AsJson, CheckpointStep, Run, examples, print_json

if TYPE_CHECKING:
    from cluster.checkpoint import CheckpointInfo
    from cluster.export import ExportOptions, ProvenExport


class Numbers(StrEnum):
    """What the numbers of a file are."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def register(app: typer.Typer) -> None:
    """Add the verb to the commands about checkpoints."""
    app.command(
        epilog=examples(
            "longhaul checkpoint export runs/my-run --out my-model",
            "longhaul checkpoint export runs/my-run --step 200 --out my-model --dtype bfloat16",
            "longhaul checkpoint export s3://bucket/runs/my-run --out /models/mine --json",
        )
    )(export)


def export(
    run: Run,
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Directory to make; must not exist.", show_default=False)
    ],
    step: CheckpointStep = None,
    dtype: Annotated[Numbers, typer.Option("--dtype", help="Numbers of the files.")] = Numbers.float32,
    max_shard_bytes: Annotated[
        int, typer.Option("--max-shard-bytes", metavar="N", help="Weights beyond this are divided over files.")
    ] = 5_000_000_000,
    no_tokenizer: Annotated[
        bool,
        typer.Option(
            "--no-tokenizer",
            help="Write the special tokens alone, where no tokenizer of Hugging Face gives the run's ids.",
        ),
    ] = False,
    no_chat_template: Annotated[
        bool,
        typer.Option(
            "--no-chat-template", help="Leave out the chat template of a run that was trained on conversations."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as a Hugging Face directory, which appears once transformers gives the same logits and ids.

    The proof takes memory for the model twice in fp32. It is made on held-out text of the run's dataset or, where that
    is not at hand, on ids drawn at random.
    """
    from launcher.directories import is_uri
    from launcher.errors import UsageError

    if is_uri(out):
        raise UsageError(f"--out is {out}: an export is proven as files on a disk. Give a directory, and copy it.")

    from cluster.export import ExportOptions, require_transformers
    from launcher.checkpoint_choice import chosen_checkpoint
    from launcher.checkpoint_pages import export_table
    from launcher.console import results

    require_transformers()
    options = ExportOptions(
        dtype=dtype.value,
        max_shard_bytes=max_shard_bytes,
        with_tokenizer=not no_tokenizer,
        with_chat_template=not no_chat_template,
    )
    facts = _facts(_exported(run, chosen_checkpoint(run, step), Path(out), options), options)
    if as_json:
        print_json(facts)
    else:
        results().print(export_table(facts))


def _exported(run: str, info: CheckpointInfo, out: Path, options: ExportOptions) -> ProvenExport:
    from cluster.export import bytes_to_read, export_checkpoint
    from cluster.storage.operations import storage_path
    from launcher.build_progress import ByteProgress
    from launcher.console import messages

    console = messages()
    done, total = 0, bytes_to_read(info)
    with ByteProgress(console, "exporting") as progress:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        return export_checkpoint(info, storage_path(run), out, options, advance=advance, say=console.print)


def _facts(proven: ProvenExport, options: ExportOptions) -> dict[str, Any]:
    from dataclasses import asdict

    exported = proven.exported
    return {
        "directory": str(exported.directory),
        "step": proven.step,
        "model_type": exported.model_type,
        "dtype": options.dtype,
        "weight_files": list(exported.weight_files),
        "weight_bytes": exported.weight_bytes,
        "left_out": dict(exported.left_out),
        "proof": asdict(proven.proof),
        "proven_on": proven.proven_on,
        "tokens_compared": proven.tokens_compared,
        "conversations_compared": proven.conversations_compared,
    }
