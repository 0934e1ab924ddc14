"""Text that the model writes at each evaluation: the same tokens on every rank, decided by rank 0.

Under ZeRO 3 each forward pass gathers parameters from all ranks, so all of them make the same passes: rank 0 chooses
each token and tells the others, and nothing that goes wrong on rank 0 alone may keep it from telling them.
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
from cluster.topology import Topology
from data_pipeline.errors import TokenizerError
from data_pipeline.tokenizer import Tokenizer
from llm.errors import GenerationError
from llm.generation import SamplingConfig, choose_token, continue_tokens
from llm.kv_cache import KeyValueCache

logger = logging.getLogger(__name__)

UNPROMPTED = "(beginning of a document)"
TEMPERATURE = 0.8
TOP_P = 0.95
_LABEL_CHARACTERS = 48


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
        layers: int,
        tokenizer_path: StoragePath,
        topology: Topology,
        collectives: Collectives,
    ) -> None:
        """Agree on the prompts; called on all ranks.

        A damaged tokenizer costs the samples and no more.

        Args:
            config: The run; `evaluation` has prompts and length.
            layers: Decoder blocks of the model.
            tokenizer_path: The run's tokenizer, read by rank 0.
            topology: Place of this rank.
            collectives: Small exchanges between ranks.
        """
        self._seed = config.seed
        self._layers = layers
        self._topology = topology
        self._collectives = collectives
        self._tokenizer: Tokenizer | None = None
        self._sampling: SamplingConfig | None = None
        wanted = config.evaluation
        if wanted.every_steps is not None and wanted.sample_tokens > 0:
            self._sampling = SamplingConfig(max_new_tokens=wanted.sample_tokens, temperature=TEMPERATURE, top_p=TOP_P)
            if topology.is_main:
                self._tokenizer = _load(tokenizer_path)
        plan = None
        if self._tokenizer is not None:
            plan = _plan(wanted.prompts, self._tokenizer, longest=config.data.seq_len)
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
        samples = []
        for prompt in self._plan.prompts:
            tokens = self._continue(model, self._plan, self._sampling, prompt, step)
            if self._tokenizer is not None:
                text = self._tokenizer.decode(tokens)
                samples.append(TextSample(label=prompt.label, prompt=prompt.text, text=text))
        return samples

    def _continue(self, model: Forward, plan: _Plan, sampling: SamplingConfig, prompt: _Prompt, step: int) -> list[int]:
        cache = KeyValueCache(self._layers)
        generator = torch.Generator(device="cpu").manual_seed(_key(self._seed, step, prompt.text))

        def scores(new_tokens: list[int]) -> torch.Tensor:
            logits_BTV = model.logits(torch.tensor([new_tokens], device=self._topology.device), cache)
            return logits_BTV[0, -1, : plan.vocab_size]

        def choose(logits_V: torch.Tensor) -> int:
            token = plan.stop_token
            if self._topology.is_main:
                try:
                    token = choose_token(logits_V, sampling, generator)
                except GenerationError as error:
                    logger.warning("the text sample of step %d for %r ends early: %s", step, prompt.label, error)
            return self._collectives.from_main(token)

        return list(
            continue_tokens(
                list(prompt.tokens),
                scores=scores,
                choose=choose,
                max_new_tokens=sampling.max_new_tokens,
                stop_token=plan.stop_token,
            )
        )


def samples_are_written(config: RunConfig, tokenizer: Tokenizer) -> bool:
    """Whether the model writes anything at an evaluation: samples are wanted, and some prompt fits."""
    wanted = config.evaluation
    if wanted.every_steps is None or wanted.sample_tokens == 0:
        return False
    return bool(_plan(wanted.prompts, tokenizer, longest=config.data.seq_len).prompts)


def prompt_labels(prompts: Sequence[str]) -> list[str]:
    """Names of different prompts: their beginnings; those that share one get the first letters of a hash too."""
    names = [" ".join(prompt.split())[:_LABEL_CHARACTERS] or UNPROMPTED for prompt in prompts]
    return [
        name if names.count(name) == 1 else f"{name}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}"
        for name, prompt in zip(names, prompts, strict=True)
    ]


def _plan(prompts: Sequence[str], tokenizer: Tokenizer, *, longest: int) -> _Plan:
    """Encode the prompts; one that is longer than what the model is trained on is left out with a warning."""
    encoded = []
    for label, text in zip(prompt_labels(prompts), prompts, strict=True):
        tokens = (tokenizer.bos_id, *(int(token) for token in tokenizer.encode(text)))
        if len(tokens) <= longest:
            encoded.append(_Prompt(label=label, text=text, tokens=tokens))
        else:
            logger.warning(
                "evaluation.prompts: %r has %d tokens, more than data.seq_len = %d: the model is not trained on that, "
                "and the prompt is left out. Shorten it.",
                label,
                len(tokens),
                longest,
            )
    return _Plan(prompts=tuple(encoded), stop_token=tokenizer.eos_id, vocab_size=tokenizer.vocab_size)


def _load(path: StoragePath) -> Tokenizer | None:
    try:
        return read_tokenizer(path)
    except TokenizerError as error:
        logger.warning("no text samples are written: %s", error)
        return None


def _key(seed: int, step: int, prompt: str) -> int:
    digest = hashlib.sha256(f"{seed}/{step}/{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
