"""Generated tokens as text, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.inference import LoadedModel
    from llm.generation import SamplingConfig


def continue_text(loaded: LoadedModel, prompt: str, sampling: SamplingConfig) -> Iterator[str]:
    """Continue a prompt with a trained model.

    Args:
        loaded: Model and its tokenizer.
        prompt: Text to continue; empty text lets the model begin.
        sampling: How tokens are chosen.

    Returns:
        An iterator over the new text in pieces, each whole characters.
    """
    from llm.generation import generate

    tokenizer = loaded.tokenizer
    prompt_tokens = [tokenizer.bos_id, *tokenizer.encode(prompt).tolist()]
    return tokenizer.decode_stream(generate(loaded.model, prompt_tokens, sampling, stop_token=tokenizer.eos_id))
