"""`longhaul data`: from corpora to a dataset, and what a dataset holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import AsJson, Config, Dataset, Overrides, examples, print_json

app = typer.Typer(help="Turn text into datasets of token shards, and look into them.", no_args_is_help=True)


@app.command(
    epilog=examples(
        "longhaul data tokenizer my-data.yaml",
        "longhaul data tokenizer my-data.yaml tokenizer.train.vocab_size=8000",
    )
)
def tokenizer(config: Config, overrides: Overrides = None) -> None:
    """Train the SentencePiece model of a dataset configuration, without building the dataset.

    Relative paths in the file count from the current directory.
    """
    from launcher.build_progress import ByteProgress
    from launcher.config_file import load_build_config
    from launcher.console import messages
    from launcher.environment import require_lasting_paths

    build_config = load_build_config(config, overrides or ())
    require_lasting_paths(build_config)

    from data_pipeline.build import train_tokenizer_for
    from data_pipeline.manifest import TOKENIZER_FILE

    with ByteProgress(messages(), "reading") as progress:
        trained = train_tokenizer_for(build_config, progress=progress.on_build)
    typer.echo(f"{Path(build_config.output) / TOKENIZER_FILE}  ({trained.vocab_size:,} pieces)")


@app.command(
    epilog=examples(
        "longhaul data build my-data.yaml",
        "longhaul data build my-data.yaml output=datasets/mine validation_fraction=0.02",
    )
)
def build(
    config: Config,
    overrides: Overrides = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Replace a dataset in the output that was built otherwise or is damaged."),
    ] = False,
) -> None:
    """Read, clean and tokenize corpora into a dataset: Arrow shards with a manifest.

    Relative paths in the file count from the current directory. A dataset that is up to date is left alone, and said
    to be.
    """
    from launcher.build_progress import ByteProgress
    from launcher.config_file import load_build_config
    from launcher.console import messages, results
    from launcher.dataset_pages import ledger_table, split_table, up_to_date
    from launcher.environment import require_lasting_paths
    from launcher.errors import InterruptError

    build_config = load_build_config(config, overrides or ())
    require_lasting_paths(build_config)

    from data_pipeline.build import UP_TO_DATE, build_dataset

    try:
        with ByteProgress(messages(), "reading") as progress:
            manifest = build_dataset(build_config, fresh=fresh, progress=progress.on_build)
    except KeyboardInterrupt as error:
        raise InterruptError("stopped. Nothing half-built can be found; the same command builds it.") from error
    out = results()
    out.print(ledger_table(manifest.ledger))
    out.print(split_table(manifest))
    out.print(f"dataset  {build_config.output}")
    if progress.stage == UP_TO_DATE:
        out.print(up_to_date(manifest, build_config.output))


@app.command(epilog=examples("longhaul data verify datasets/mine"))
def verify(dataset: Dataset) -> None:
    """Read every file of a dataset and compare it with its hash; exit 1 at the first that differs."""
    from data_pipeline.dataset import Dataset as OpenDataset
    from launcher.build_progress import ByteProgress
    from launcher.console import messages
    from launcher.directories import require_dataset
    from launcher.report.units import plural

    opened = OpenDataset.open(require_dataset(dataset))
    with ByteProgress(messages(), "verifying") as progress:
        opened.verify(progress)
    shards = plural(len(opened.manifest.shards), "shard")
    typer.echo(f"{dataset}: good ({shards}, {opened.manifest.tokens:,} tokens)")


@app.command(epilog=examples("longhaul data stats datasets/mine", "longhaul data stats datasets/mine --json"))
def stats(dataset: Dataset, as_json: AsJson = False) -> None:
    """Show what a dataset holds: documents, tokens and bytes by split and source, and what was dropped."""
    from data_pipeline.dataset import Dataset as OpenDataset
    from launcher.console import results
    from launcher.dataset_pages import ledger_table, length_table, source_table, split_table
    from launcher.directories import require_dataset

    opened = OpenDataset.open(require_dataset(dataset))
    facts = opened.stats()
    if as_json:
        print_json(facts)
        return
    out = results()
    out.print(f"{facts['name']}  fingerprint {facts['fingerprint']}  vocabulary {facts['vocab_size']:,}")
    if facts["bytes_per_token"] is not None:
        out.print(f"{facts['bytes_per_token']:.3f} UTF-8 bytes per token")
    for table in (
        split_table(opened.manifest),
        source_table(opened.manifest),
        ledger_table(opened.manifest.ledger),
        length_table(facts["document_length_histogram"]),
    ):
        out.print(table)
