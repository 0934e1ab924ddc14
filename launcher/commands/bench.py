"""`longhaul bench`: reproducible figures of speed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.commands.arguments import AsJson, Config, Overrides, examples, print_json

if TYPE_CHECKING:
    from cluster.config import RunConfig

app = typer.Typer(help="Measure speed, with hardware, settings and formula beside each figure.", no_args_is_help=True)

_VOCABULARY = 32_000


@app.callback()
def bench() -> None:
    """Measure speed, with hardware, settings and formula beside each figure."""


@app.command(
    epilog=examples(
        "longhaul bench model quickstart",
        "longhaul bench model llama-1b --length 2048 --length 8192 train.compile=true train.micro_batch_size=4",
        "longhaul bench model gpt2-125m --profile",
    )
)
def model(
    config: Config,
    overrides: Overrides = None,
    length: Annotated[
        list[int] | None,
        typer.Option(
            "--length",
            metavar="TOKENS",
            help="Sequence length; may be repeated, the shortest is first. Default: data.seq_len.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps that are measured.")] = 10,
    warmup: Annotated[int, typer.Option("--warmup", min=1, help="Steps before, in which it compiles.")] = 3,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: all cores.")] = None,
    document_tokens: Annotated[
        int,
        typer.Option("--document-tokens", min=1, help="Length of a document, where data.document_mask is on."),
    ] = 512,
    profile: Annotated[bool, typer.Option("--profile", help="Print what one step spends its time on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure training steps of a configuration's model on this machine's GPU, or on its CPU where there is none.

    One process without Ray or DeepSpeed trains on random tokens: micro_batch_size sequences a step, forward, backward,
    clipping and update.
    """
    import os

    from launcher.config_file import load_run_config
    from launcher.console import messages
    from launcher.errors import ConfigError

    try:
        run_config = load_run_config(config, overrides or ())
    except ConfigError:  # recipes for GPUs name no dataset, and tokens are random; anything else is wrong again here
        run_config = load_run_config(config, ["data.dataset=random", *(overrides or ())])
    run_config, vocabulary = _with_vocabulary(run_config)

    import torch

    from launcher import model_bench

    console = messages()
    setting = model_bench.Setting(
        config=run_config,
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=threads or os.cpu_count() or 1,
        steps=steps,
        warmup_steps=warmup,
        document_tokens=document_tokens,
    )
    head = model_bench.describe(setting)
    head["resolved"] = [vocabulary, *head["resolved"]]
    lengths = sorted(length or [run_config.data.seq_len])  # the peak of a process never falls
    with console.status("") as status:
        found = [model_bench.measure(setting, each, status.update) for each in lengths]
        tables = [model_bench.profile(setting, each) for each in lengths] if profile else []
    if as_json:
        print_json({**head, "measurements": [each.as_dict() for each in found], "profiles": tables})
        return
    _print(head, found)
    for table in tables:
        typer.echo(table)


def _with_vocabulary(config: RunConfig) -> tuple[RunConfig, str]:
    """The configuration with a vocabulary, and why that one: the dataset's, or a usual size where none is built."""
    from data_pipeline.dataset import Dataset
    from data_pipeline.errors import DataError

    if config.model.vocab_size is not None:
        return config, f"vocabulary {config.model.vocab_size}: asked for by name"
    path = config.data.entries[0].path
    try:
        size, reason = Dataset.open(path).vocab_size, f"that of dataset {path}"
    except (DataError, OSError):
        size, reason = _VOCABULARY, f"a usual size, since dataset {path} is not there to ask"
    return replace(config, model=replace(config.model, vocab_size=size)), f"vocabulary {size}: {reason}"


def _print(head: dict[str, Any], found: list[Any]) -> None:
    from statistics import median

    from rich.table import Table

    from launcher.console import results

    out = results()
    out.print(
        f"{head['device']}, {head['threads']} threads, torch {head['versions']['torch']}; "
        f"{head['parameters'] / 1e6:,.1f} M parameters, vocabulary {head['vocab_size']:,}"
    )
    for reason in head["resolved"]:
        out.print(reason)
    table = Table("seq", "tokens/step", "step s", "tokens/s", "MFU", "causal", "peak GiB", box=None)
    for each in found:
        table.add_row(
            f"{each.seq_len:,}",
            f"{each.tokens_per_step:,}",
            f"{median(each.step_seconds):.3f} ({min(each.step_seconds):.3f}-{max(each.step_seconds):.3f})",
            f"{each.tokens_per_second:,.0f}",
            _percent(each.mfu),
            _percent(each.causal_mfu),
            f"{each.peak_bytes / 2**30:.2f}",
        )
    out.print(table)
    out.print(f"{head['formula']}; causal: 6 L d T")


def _percent(fraction: float | None) -> str:
    return "n/a" if fraction is None else f"{fraction:.1%}"
