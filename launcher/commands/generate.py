"""`longhaul generate`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.arguments import RunOrCheckpoint, examples

if TYPE_CHECKING:
    from launcher.prompt_file import TextPrompt
    from launcher.text_stream import Written


def register(app: typer.Typer) -> None:
    """Add the verb to the command tree."""
    app.command(
        epilog=examples(
            'longhaul generate longhaul-quickstart/runs/quickstart --prompt "It is a truth"',
            'longhaul generate runs/my-run --prompt "Emma" --temperature 0',
            'longhaul generate runs/my-run --prompt "Emma" --top-p 0.9 --seed 7',
            'longhaul generate runs/my-run --prompt "Emma" --min-p 0.1 --repetition-penalty 1.2 --stop "Chapter"',
            'longhaul generate runs/my-run --prompt "Emma" --prompt "Mr. Knightley"',
            "longhaul generate runs/my-run --prompts prompts.jsonl --json > texts.jsonl",
            'longhaul generate runs/my-chat --chat --prompt "Who was the first man on the moon?"',
        )
    )(generate)


def generate(
    run_or_checkpoint: RunOrCheckpoint,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text that the model continues; may be repeated.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='File with a prompt a line; in a .jsonl file an object with "prompt" or, with --chat, "messages".',
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Ask prompts as a user of the run's conversations does, by its chat template; the answer is printed.",
        ),
    ] = False,
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With --chat, what the system says before each prompt.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens after which a text ends at the latest.")] = 100,
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
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Draw from tokens of at least this fraction of the likeliest one's probability.", show_default="all"
        ),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1, tokens of the prompt and the text so far are less likely; 1.2 is usual.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End a text also before this one; may be repeated.", show_default=False),
    ] = None,
    stop_token: Annotated[
        list[int] | None,
        typer.Option(metavar="ID", help="End a text also before this token; may be repeated.", show_default=False),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Key of the random draws; the same seed and prompt give the same text.")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(help="Prompts continued together; more are quicker in all and take more memory.")
    ] = 8,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object a line for each prompt, with the text and why it ended.")
    ] = False,
) -> None:
    """Continue prompts with a trained model; a single one is printed as it comes."""
    from launcher.directories import require_run_or_checkpoint
    from launcher.errors import UsageError
    from launcher.text_stream import Stops, continue_text, continue_texts

    if batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}: no prompt would be continued. Use at least 1.")
    stops = Stops(texts=tuple(stop or ()), tokens=tuple(stop_token or ()))
    if system is not None and not chat:
        raise UsageError("--system is part of a chat. Give --chat too, or leave it out.")
    asked = [_in_chat(each, system) if chat else each for each in _asked(prompt, prompts)]
    if not chat and any(each.chat for each in asked):
        raise UsageError(f"--prompts {prompts}: messages are those of a chat. Give --chat too, or write prompts.")
    require_run_or_checkpoint(run_or_checkpoint)

    from llm.errors import GenerationError
    from llm.sampling import SamplingConfig

    try:
        sampling = SamplingConfig(
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
        )
    except GenerationError as error:
        raise UsageError(str(error)) from error

    from cluster.inference import load_run, require_text_model

    loaded = load_run(run_or_checkpoint)
    require_text_model(loaded)
    if as_json:
        _print_lines(continue_texts(loaded, asked, sampling, stops, batch_size=batch_size))
    elif len(asked) > 1:
        _print_texts(continue_texts(loaded, asked, sampling, stops, batch_size=batch_size), asked)
    else:
        _stream(continue_text(loaded, asked[0], sampling, stops), asked[0])


def _in_chat(prompt: TextPrompt, system: str | None) -> TextPrompt:
    """The prompt as a user's turn, after what the system says."""
    from data_pipeline.chat_template import Turn

    before = () if system is None else (Turn("system", system),)
    return replace(prompt, chat=True, earlier=(*before, *prompt.earlier))


def _asked(prompt: list[str] | None, prompts: Path | None) -> list[TextPrompt]:
    from launcher.errors import UsageError
    from launcher.prompt_file import TextPrompt, read_prompts

    asked = [TextPrompt(text=text) for text in prompt or ()]
    if prompts is not None:
        asked += read_prompts(prompts)
    if not asked:
        raise UsageError(
            'there is no prompt to continue. Give --prompt TEXT, where "" begins a text, or --prompts FILE.'
        )
    return asked


def _stream(pieces: Iterable[str], prompt: TextPrompt) -> None:
    if not prompt.chat:
        typer.echo(prompt.text, nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()


def _print_lines(texts: Iterable[Written]) -> None:
    for written in texts:
        typer.echo(json.dumps(asdict(written), ensure_ascii=False))


def _print_texts(texts: Iterable[Written], prompts: Sequence[TextPrompt]) -> None:
    for number, (written, prompt) in enumerate(zip(texts, prompts, strict=True), start=1):
        typer.echo(f"[{number} of {len(prompts)}, ended by {written.end}]")
        between = "\n" if prompt.chat else ""
        typer.echo(f"{written.prompt}{between}{written.text}\n")
