"""Generated tokens as text: one prompt piece by piece, or several in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from launcher.errors import UsageError

if TYPE_CHECKING:
    from cluster.inference import LoadedModel
    from data_pipeline.tokenizer import Tokenizer
    from launcher.prompt_file import TextPrompt
    from llm.generation import Continuation
    from llm.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Stops:
    """What ends a text besides the end of a document; it is no part of the text."""

    texts: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if "" in self.texts:
            raise UsageError("--stop is empty: every text would end before it begins. Give some text, or leave it out.")


NO_STOPS = Stops()


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a model wrote after a prompt."""

    prompt: str
    text: str
    end: str
    """Why it ended: stop_token (a document's end among them), stop_text, max_new_tokens or max_position_embeddings."""
    prompt_tokens: int
    """With the one for the beginning of a document."""
    new_tokens: int
    """Those of a stop text among them."""
    seed: int


def continue_text(
    loaded: LoadedModel, prompt: TextPrompt, sampling: SamplingConfig, stops: Stops = NO_STOPS
) -> Iterator[str]:
    """Continue a prompt with a trained model.

    Args:
        loaded: Model and its tokenizer.
        prompt: What to continue, or to answer; empty text lets the model begin.
        sampling: How tokens are chosen.
        stops: What ends the text.

    Returns:
        An iterator over the new text in pieces, each whole characters. Text that may be the beginning of a stop is
        held back until that is known.
    """
    from llm.generation import generate

    tokenizer = loaded.tokenizer
    tokens = generate(
        loaded.model,
        _encoded(prompt, loaded),
        replace(sampling, seed=_seed(prompt, sampling)),
        stop_tokens=_stop_tokens(stops, tokenizer),
        vocab_size=tokenizer.vocab_size,
    )
    return before_stop(tokenizer.decode_stream(tokens), stops.texts)


def continue_texts(
    loaded: LoadedModel,
    prompts: Sequence[TextPrompt],
    sampling: SamplingConfig,
    stops: Stops = NO_STOPS,
    *,
    batch_size: int,
) -> Iterator[Written]:
    """Continue prompts in batches; each text is the one that `continue_text` gives, up to rounding.

    Args:
        loaded: Model and its tokenizer.
        prompts: Texts to continue.
        sampling: How tokens are chosen.
        stops: What ends a text.
        batch_size: Prompts at a time; their keys and values are in memory together.

    Returns:
        An iterator in the order of the prompts. All are checked before the first is continued.
    """
    from llm.generation import check_prompts

    encoded = [_encoded(prompt, loaded) for prompt in prompts]
    check_prompts(loaded.model.config, encoded)
    _stop_tokens(stops, loaded.tokenizer)
    return (
        written
        for start in range(0, len(prompts), batch_size)
        for written in _batch(
            loaded, prompts[start : start + batch_size], encoded[start : start + batch_size], sampling, stops
        )
    )


def before_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass text on up to the first stop; its pieces joined are `cut_at_stop` of theirs."""
    held = ""
    for piece in pieces:
        held += piece
        end = _first_stop(held, stops)
        if end is not None:
            if end:
                yield held[:end]
            return
        sure = len(held) - max((_begun(held, stop) for stop in stops), default=0)
        if sure:
            yield held[:sure]
            held = held[sure:]
    if held:
        yield held


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before its first stop."""
    return text[: _first_stop(text, stops)]


def write_batch(
    loaded: LoadedModel,
    encoded: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    stops: Stops,
    seeds: Sequence[int],
) -> Continuation:
    """Continue prompts in one batch until each has ended.

    Args:
        loaded: Model and its tokenizer.
        encoded: Token ids of each prompt.
        sampling: How tokens are chosen.
        stops: What ends a text; one that ended at a stop text has its tokens still.
        seeds: One for each prompt.
    """
    from llm.generation import continue_prompts

    tokenizer = loaded.tokenizer
    texts = continue_prompts(
        loaded.model,
        encoded,
        sampling,
        stop_tokens=_stop_tokens(stops, tokenizer),
        seeds=seeds,
        vocab_size=tokenizer.vocab_size,
    )
    while texts.rows:
        for row in texts.step():
            if _has_stopped(texts.written[row], stops.texts, tokenizer):
                texts.end(row, "stop_text")
    return texts


def _batch(
    loaded: LoadedModel,
    prompts: Sequence[TextPrompt],
    encoded: Sequence[list[int]],
    sampling: SamplingConfig,
    stops: Stops,
) -> Iterator[Written]:
    seeds = [_seed(prompt, sampling) for prompt in prompts]
    texts = write_batch(loaded, encoded, sampling, stops, seeds)
    for row, prompt in enumerate(prompts):
        yield Written(
            prompt=prompt.text,
            text=cut_at_stop(loaded.tokenizer.decode(texts.written[row]), stops.texts),
            end=str(texts.ends[row]),
            prompt_tokens=len(encoded[row]),
            new_tokens=len(texts.written[row]),
            seed=seeds[row],
        )


def _has_stopped(tokens: list[int], stops: Sequence[str], tokenizer: Tokenizer) -> bool:
    """Whether the newest token has completed a stop: a token has a byte or more, so no more than those are decoded."""
    if not stops:
        return False
    longest_bytes = max(len(stop.encode()) for stop in stops)
    return _first_stop(tokenizer.decode(tokens[-longest_bytes - 1 :]), stops) is not None


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def _begun(text: str, stop: str) -> int:
    """Characters at the end of a text with which a stop may have begun."""
    return next((length for length in range(len(stop) - 1, 0, -1) if text.endswith(stop[:length])), 0)


def _seed(prompt: TextPrompt, sampling: SamplingConfig) -> int:
    return sampling.seed if prompt.seed is None else prompt.seed


def _encoded(prompt: TextPrompt, loaded: LoadedModel) -> list[int]:
    tokenizer = loaded.tokenizer
    for text in (prompt.text, *(turn.content for turn in prompt.earlier)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the prompt {text!r} has half a UTF-16 pair at character {error.start}, and is no text. Remove it."
            ) from error
    if not prompt.chat:
        return [tokenizer.bos_id, *tokenizer.encode(prompt.text).tolist()]
    if loaded.chat_template is None:
        raise UsageError(
            f"--chat: {loaded.run_directory} was trained on no conversations, or on several kinds, and has no chat "
            "template to ask by. Leave --chat out, or name a run that `longhaul finetune` has trained."
        )
    from data_pipeline.chat_template import Turn
    from data_pipeline.chat_tokens import encode_prompt

    return encode_prompt(tokenizer, loaded.chat_template, [*prompt.earlier, Turn("user", prompt.text)])


def _stop_tokens(stops: Stops, tokenizer: Tokenizer) -> list[int]:
    for token in stops.tokens:
        if not 0 <= token < tokenizer.vocab_size:
            raise UsageError(
                f"--stop-token is {token}, and the run's tokenizer has {tokenizer.vocab_size} pieces: it never comes. "
                f"Use 0 to {tokenizer.vocab_size - 1}, or --stop with a text."
            )
    return [tokenizer.eos_id, *stops.tokens]
