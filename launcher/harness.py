"""A trained model for EleutherAI's lm-evaluation-harness, version 0.4: its tasks, its prompts, its figures.

Everything is as the harness's own `hf` model does it with the exported directory, so that both give the same numbers:
the beginning-of-text token comes before every text, and where a text is scored as a whole (`loglikelihood_rolling`) it
is itself predicted once, from itself. Written against lm_eval 0.4.13, `lm_eval/models/huggingface.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window, make_table

from cluster.evaluation.language import score_continuations
from cluster.inference import LoadedModel
from launcher.errors import UsageError
from launcher.text_stream import Stops, cut_at_stop, write_batch
from llm.sampling import SamplingConfig

_MAX_NEW_TOKENS = 256
"""Where a task states none; the `hf` model's."""
_GENERATED_TOGETHER = 8
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts of context and continuation, for the harness's cache, and their token ids."""


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval may not be installed where types are checked
    """A loaded model, as the harness sees one.

    Args:
        loaded: Model and its tokenizer.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self._loaded = loaded
        self._begin = loaded.tokenizer.piece(loaded.tokenizer.bos_id)

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return self._loaded.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Token that is read where there is no context."""
        return self._loaded.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once; an export states the same."""
        return self._loaded.context_tokens

    @property
    def max_gen_toks(self) -> int:
        """New tokens where a task states none."""
        return _MAX_NEW_TOKENS

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text, begun by the beginning-of-text token unless told otherwise or spelled in the text."""
        begun = not string.startswith(self._begin) if add_special_tokens is None else add_special_tokens
        ids = [int(token) for token in self._loaded.tokenizer.encode(string)]
        return [self.prefix_token_id, *ids] if begun else ids

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scores = score_continuations(self._loaded, [(context, continuation) for _, context, continuation in requests])
        answers = [(score.log_probability, score.greedy) for score in scores]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows that the harness cuts."""
        texts = [request.args[0] for request in requests]
        windows = [self._rolling_windows(text) for text in texts]
        answers = iter(self._loglikelihood_tokens([(None, *each) for of_text in windows for each in of_text]))
        sums = [sum(next(answers)[0] for _ in of_text) for of_text in windows]
        for text, log_probability in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), log_probability)
        return sums

    def _rolling_windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        windows: Iterable[Any] = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts that continue contexts up to a stop; those of one way of generating are written together."""
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        for numbers in alike.values():
            sampling, stops = generation_settings(requests[numbers[0]].args[1], self.max_length)
            for start in range(0, len(numbers), _GENERATED_TOGETHER):
                part = numbers[start : start + _GENERATED_TOGETHER]
                written = self._write([requests[number].args[0] for number in part], sampling, stops)
                for number, text in zip(part, written, strict=True):
                    texts[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts

    def _write(self, contexts: Sequence[str], sampling: SamplingConfig, stops: Stops) -> list[str]:
        room = self.max_length - sampling.max_new_tokens
        encoded = [self.tok_encode(context)[-room:] for context in contexts]
        written = write_batch(self._loaded, encoded, sampling, stops, seeds=[sampling.seed] * len(encoded)).written
        return [cut_at_stop(self._loaded.tokenizer.decode(tokens), stops.texts) for tokens in written]


def generation_settings(stated: Mapping[str, Any], max_length: int) -> tuple[SamplingConfig, Stops]:
    """How to generate as a task's generation_kwargs say; greedily where these do not ask for draws.

    Args:
        stated: `until`, `max_gen_toks` or one of its other names, `do_sample`, and what `SamplingConfig` knows.
        max_length: Tokens that the model reads at once.

    Raises:
        UsageError: A key would be ignored, or no room is left for a context.
    """
    given = dict(normalize_gen_kwargs(dict(stated), _MAX_NEW_TOKENS))
    until, max_new_tokens = given.pop("until", None) or [], int(given.pop("max_gen_toks"))
    drawn = given.pop("do_sample", False)
    unknown = [key for key in given if key not in _SAMPLING]
    if unknown:
        raise UsageError(
            f"generation_kwargs of a task has the key {unknown[0]!r}, which would be ignored: known here are until, "
            f"max_gen_toks, do_sample, {', '.join(_SAMPLING)}. Remove it from a copy of the task."
        )
    if max_new_tokens >= max_length:
        raise UsageError(
            f"a task asks for {max_new_tokens} new tokens, and the model reads {max_length} at once: no room is left "
            f"for a context. Set max_gen_toks in the task's generation_kwargs to at most {max_length - 1}."
        )
    if not drawn:
        given = {"temperature": 0.0}
    stops = Stops(texts=tuple(text for text in ([until] if isinstance(until, str) else until) if text))
    return SamplingConfig(max_new_tokens=max_new_tokens, **given), stops


def run_harness(loaded: LoadedModel, tasks: Sequence[str], include_path: Path | None) -> tuple[dict[str, Any], str]:
    """Run tasks of the harness on a model.

    Args:
        loaded: Model and its tokenizer.
        tasks: Names of tasks, groups or tags, or patterns of them.
        include_path: Directory of more tasks than the harness brings.

    Returns:
        The harness's results, of what JSON can hold; and its table of them.

    Raises:
        UsageError: No task has that name.
    """
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UsageError(
                f"--harness {task}: lm-eval knows no task, group or tag of that name. `lm-eval ls tasks` lists those "
                "that it brings; tasks of your own are found below --include-path DIR."
            )
    results = simple_evaluate(
        model=HarnessModel(loaded), tasks=manager.match_tasks(list(tasks)), task_manager=manager, log_samples=False
    )
    table = make_table(results)
    if "groups" in results:
        table += "\n" + make_table(results, "groups")
    return json.loads(json.dumps(results, default=handle_non_serializable, ensure_ascii=False)), table
