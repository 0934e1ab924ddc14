"""Text that the model writes at each evaluation: the same tokens on every rank, decided by rank 0.

Under ZeRO 3 each forward pass gathers parameters from all ranks, so all of them make the same passes: rank 0 chooses
the tokens and tells the others, and nothing that goes wrong on rank 0 alone may keep it from telling them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cluster.collectives import Collectives
from cluster.config import RunConfig
from cluster.engines.protocol import Forward
from cluster.run_directory import read_tokenizer
from cluster.storage.operations import StoragePath
from cluster.tasks import learns_labels
from cluster.topology import Topology
from data_pipeline.chat_template import ChatTemplate, Turn
from data_pipeline.chat_tokens import encode_prompt
from data_pipeline.errors import TokenizerError
from data_pipeline.tokenizer import Tokenizer
from llm.errors import GenerationError
from llm.generation import Choose, Continuation
from llm.sampling import SamplingConfig, TokenChooser

logger = logging.getLogger(__name__)

UNPROMPTED = "(beginning of a document)"
TEMPERATURE = 0.8
TOP_P = 0.95
_LABEL_CHARACTERS = 48
_ROWS = 16
"""Prompts continued together: each takes memory beside the training's."""


@dataclass(frozen=True, kw_only=True)
class TextSample:
    """What the model wrote after a prompt."""

    label: str
    """Name of the prompt in the record."""
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    label: str
    text: str
    tokens: tuple[int, ...]
    """The beginning-of-text token first."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What all ranks must know to make the same passes."""

    prompts: tuple[_Prompt, ...]
    stop_token: int
    vocab_size: int
    """Tokens that have text; the model may have more rows than that."""


class TextSampler:
    """Lets the model write in the course of its training; all ranks take part, and rank 0 has the text."""

    def __init__(
        self,
        config: RunConfig,
        *,
        tokenizer_path: StoragePath,
        topology: Topology,
        collectives: Collectives,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """Agree on the prompts; called on all ranks.

        A damaged tokenizer costs the samples and no more.

        Args:
            config: The run; `evaluation` has prompts and length.
            tokenizer_path: The run's tokenizer, read by rank 0.
            topology: Place of this rank.
            collectives: Small exchanges between ranks.
            chat_template: Of the run's conversations: where answers are learned, a prompt is a user's turn.
        """
        self._seed = config.seed
        self._model = config.model
        self._topology = topology
        self._collectives = collectives
        self._tokenizer: Tokenizer | None = None
        self._sampling: SamplingConfig | None = None
        wanted = config.evaluation
        if wanted.every_steps is not None and wanted.sample_tokens > 0 and not learns_labels(config.task):
            self._sampling = SamplingConfig(max_new_tokens=wanted.sample_tokens, temperature=TEMPERATURE, top_p=TOP_P)
            if topology.is_main:
                self._tokenizer = _load(tokenizer_path)
        plan = None
        if self._tokenizer is not None:
            plan = _plan(config, self._tokenizer, chat_template)
        self._plan = collectives.from_main(plan)

    def write(self, model: Forward, step: int) -> list[TextSample]:
        """Let the model continue every prompt; called on all ranks.

        Tokens are drawn from a generator of their own, keyed by seed, step and prompt: nothing else is disturbed, and a
        run that comes to a step again writes the same text.

        Returns:
            The samples, on rank 0; nothing elsewhere.
        """
        if self._plan is None or self._sampling is None:
            return []
        texts: list[list[int]] = []
        for start in range(0, len(self._plan.prompts), _ROWS):
            prompts = self._plan.prompts[start : start + _ROWS]
            texts += Continuation(
                self._model,
                [prompt.tokens for prompt in prompts],
                max_new_tokens=self._sampling.max_new_tokens,
                stop_tokens=[self._plan.stop_token],
                scores=model.next_logits,
                choose=self._choose(prompts, self._plan, self._sampling, step),
                device=self._topology.device,
            ).finish()
        if self._tokenizer is None:
            return []
        return [
            TextSample(label=prompt.label, prompt=prompt.text, text=self._tokenizer.decode(tokens))
            for prompt, tokens in zip(self._plan.prompts, texts, strict=True)
        ]

    def _choose(self, prompts: Sequence[_Prompt], plan: _Plan, sampling: SamplingConfig, step: int) -> Choose:
        keys = [_key(self._seed, step, prompt.text) for prompt in prompts]
        chooser = TokenChooser(sampling, [prompt.tokens for prompt in prompts], keys, plan.vocab_size)

        def choose(logits_BV: torch.Tensor, rows: list[int]) -> list[int]:
            tokens = [plan.stop_token] * len(rows)
            if self._topology.is_main:
                try:
                    tokens = chooser.choose(logits_BV, rows)
                except (GenerationError, torch.OutOfMemoryError) as error:
                    logger.warning("the text samples of step %d end early: %s", step, error)
            return self._collectives.from_main(tokens)

        return choose


def samples_are_written(config: RunConfig, tokenizer: Tokenizer, chat_template: ChatTemplate | None = None) -> bool:
    """Whether the model writes anything at an evaluation: samples are wanted, and some prompt fits."""
    wanted = config.evaluation
    if wanted.every_steps is None or wanted.sample_tokens == 0 or learns_labels(config.task):
        return False
    return bool(_plan(config, tokenizer, chat_template).prompts)


def prompt_labels(prompts: Sequence[str]) -> list[str]:
    """Names of different prompts: their beginnings; those that share one get the first letters of a hash too."""
    names = [" ".join(prompt.split())[:_LABEL_CHARACTERS] or UNPROMPTED for prompt in prompts]
    return [
        name if names.count(name) == 1 else f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}"
        for name, prompt in zip(names, prompts, strict=True)
    ]


def _longest(config: RunConfig) -> int:
    """Tokens of a prompt at most: as many as the model is trained on, and room for one more where it has a limit."""
    limit = config.model.max_position_embeddings
    return config.data.seq_len if limit is None else min(config.data.seq_len, limit - 1)


def _plan(config: RunConfig, tokenizer: Tokenizer, chat_template: ChatTemplate | None) -> _Plan:
    """Encode the prompts; one that is longer than what the model is trained on is left out with a warning."""
    prompts, longest = config.evaluation.prompts, _longest(config)
    asked = chat_template if config.answers_only else None
    encoded = []
    for label, text in zip(prompt_labels(prompts), prompts, strict=True):
        tokens = _encoded(text, tokenizer, asked)
        if len(tokens) <= longest:
            encoded.append(_Prompt(label=label, text=text, tokens=tokens))
        else:
            logger.warning(
                "evaluation.prompts: %r has %d tokens, more than the %d that data.seq_len and "
                "model.max_position_embeddings allow: the model is not trained on that, and the prompt is left out. "
                "Shorten it.",
                label,
                len(tokens),
                longest,
            )
    return _Plan(prompts=tuple(encoded), stop_token=tokenizer.eos_id, vocab_size=tokenizer.vocab_size)


def _encoded(text: str, tokenizer: Tokenizer, chat_template: ChatTemplate | None) -> tuple[int, ...]:
    """A prompt as tokens: as a user's turn, up to where the answer begins, or as the beginning of a document."""
    if chat_template is not None and text:
        return tuple(encode_prompt(tokenizer, chat_template, [Turn("user", text)]))
    return (tokenizer.bos_id, *(int(token) for token in tokenizer.encode(text)))


def _load(path: StoragePath) -> Tokenizer | None:
    try:
        return read_tokenizer(path)
    except TokenizerError as error:
        logger.warning("no text samples are written: %s", error)
        return None


def _key(seed: int, step: int, prompt: str) -> int:
    digest = hashlib.sha256(f"{seed}/{step}/{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
