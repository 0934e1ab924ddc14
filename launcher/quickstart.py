"""The first minutes: sample text to dataset to trained model to report, in one directory."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.storage.operations import StoragePath
from launcher.config_file import load_run_config
from launcher.samples import build_sample
from launcher.training import TrainingResult, train

SAMPLE = "austen"
PROMPT = "The morning after the ball,"
SAMPLE_TOKENS = 80
_FINISHED_BEFORE = (
    "The run had finished before, at step {step:,}: nothing was trained now. For another, give another --out."
)


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """What the quickstart has to show."""

    training: TrainingResult
    """The run."""
    dataset: Path
    """The dataset it was trained on."""
    perplexity: float
    """Validation perplexity of the model."""
    bigram_perplexity: float
    """The same tokens, predicted by an interpolated Kneser-Ney bigram counted on the training split."""
    text: str
    """The prompt and what the model wrote after it."""


def run_quickstart(out: Path, listener: Callable[[dict[str, Any]], None]) -> QuickstartResult | None:
    """Build the sample dataset, train the `quickstart` recipe on it, and try the model.

    Args:
        out: Directory that takes everything; what is already there is continued.
        listener: Receives progress messages.

    Returns:
        None where the training was stopped before its end.
    """
    dataset = build_sample(SAMPLE, out.resolve() / "datasets" / SAMPLE, listener)
    # A JSON string is a quoted YAML string, whatever the path contains.
    paths = {"storage": out.resolve() / "runs", "data.dataset": dataset}
    config = load_run_config("quickstart", [f"{key}={json.dumps(str(path))}" for key, path in paths.items()])
    training = train(config, fresh=False, listener=listener)
    if training.status == "stopped":
        return None
    listener({"type": "phase", "text": "counting the bigram baseline over the same tokens"})
    bigram_perplexity = _bigram_perplexity(dataset)
    listener({"type": "phase", "text": "writing a text sample"})
    result = QuickstartResult(
        training=training,
        dataset=dataset,
        perplexity=next(iter(training.validation.values()))["perplexity"] or math.inf,
        bigram_perplexity=bigram_perplexity,
        text=PROMPT + _sample_text(training.run_directory),
    )
    _show_in_report(result)
    return result


def _show_in_report(result: QuickstartResult) -> None:
    """Put the baseline into the run's record, and write its report again with it."""
    from cluster.run_directory import RunDirectory
    from launcher.report import write_report

    directory = result.training.run_directory
    baseline = {"name": "interpolated Kneser-Ney bigram", "perplexity": result.bigram_perplexity}
    RunDirectory(directory).update({"baseline": baseline})
    write_report(directory)


def summary(result: QuickstartResult, program: str) -> str:
    """The last page of the quickstart.

    Args:
        result: What came out.
        program: How the command line is called here, for the commands to try next.
    """
    run = str(result.training.run_directory)
    again = shlex.join([*program.split(), "generate", run, "--prompt", "It was not to be supposed"])
    before = [] if result.training.trained_now else [_FINISHED_BEFORE.format(step=result.training.step)]
    verdict = "below" if result.perplexity < result.bigram_perplexity else "NOT below"
    return "\n".join(
        [
            "",
            *before,
            f"validation perplexity  {result.perplexity:.2f}",
            f"bigram baseline        {result.bigram_perplexity:.2f}  (interpolated Kneser-Ney, same tokens)",
            f"The model is {verdict} the baseline.",
            "",
            result.text.strip(),
            "",
            f"run     {run}",
            f"report  {result.training.report}",
            "",
            "Next, let it write:",
            f"  {again}",
        ]
    )


def _bigram_perplexity(dataset: Path) -> float:
    """Fit on the training split, score on exactly the targets that the model's evaluation counts."""
    from data_pipeline.dataset import Dataset
    from data_pipeline.sequences import bigram_pairs
    from llm.ngram import KneserNeyBigram

    opened = Dataset.open(dataset)
    contexts, targets = bigram_pairs(opened.split("train"))
    bigram = KneserNeyBigram.fit(contexts, targets, opened.vocab_size)
    return bigram.perplexity(*bigram_pairs(opened.split("validation")))


def _sample_text(run_directory: StoragePath) -> str:
    from cluster.inference import load_run
    from launcher.prompt_file import TextPrompt
    from launcher.text_stream import continue_text
    from llm.sampling import SamplingConfig

    sampling = SamplingConfig(max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=0)
    return "".join(continue_text(load_run(str(run_directory)), TextPrompt(text=PROMPT), sampling))
