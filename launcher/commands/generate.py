"""`longhaul generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.commands.arguments import RunOrCheckpoint, examples


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(
        epilog=examples(
            'longhaul generate longhaul-quickstart/runs/quickstart --prompt "It is a truth"',
            'longhaul generate runs/my-run --prompt "Emma" --temperature 0',
            'longhaul generate runs/my-run --prompt "Emma" --top-p 0.9 --seed 7',
        )
    )(generate)


def generate(
    run_or_checkpoint: RunOrCheckpoint,
    prompt: Annotated[str, typer.Option(help="Text that the model continues.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens after which the text ends at the latest.")] = 100,
    temperature: Annotated[
        float, typer.Option(help="Divides the logits: lower is safer, 0 always takes the likeliest token.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the K likeliest tokens only.", show_default="all")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from the likeliest tokens that hold this probability, at most 1.", show_default="all"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Key of the random draws; the same seed gives the same text.")] = 0,
) -> None:
    """Continue a prompt with a trained model, printing the text as it comes."""
    from launcher.directories import require_run_or_checkpoint
    from launcher.errors import UsageError

    require_run_or_checkpoint(run_or_checkpoint)

    from llm.errors import GenerationError
    from llm.generation import SamplingConfig

    try:
        sampling = SamplingConfig(
            max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )
    except GenerationError as error:
        raise UsageError(str(error)) from error

    from cluster.inference import load_run
    from launcher.text_stream import continue_text

    loaded = load_run(run_or_checkpoint)
    typer.echo(prompt, nl=False)
    for piece in continue_text(loaded, prompt, sampling):
        typer.echo(piece, nl=False)
    typer.echo()
