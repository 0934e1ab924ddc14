"""Instruction tuning: runs of task instruction from the weights of a pretrained one, by the laws that all runs obey."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attempts import attempt_alone, kill_attempt, losses_of, record_of
from gloo import run_ranks
from tiny import SilentLink, begin, build_tiny_chats, no_tracking, tiny_run
from typer.testing import CliRunner, Result

from cluster.attempt import Surroundings, run_attempt
from cluster.checkpoint import list_checkpoints
from cluster.config import RunConfig
from cluster.engines.builders import deepspeed_engine
from cluster.errors import RunRefusedError
from cluster.evaluation.language import evaluate_dataset
from cluster.evaluation.task import evaluate_checkpoint, identity_of
from cluster.inference import load_run
from cluster.record.run_data import open_data
from cluster.resolution import open_plan
from cluster.run_directory import RunDirectory
from cluster.topology import Topology
from data_pipeline.chat_template import ChatTemplate, Turn
from data_pipeline.chat_tokens import encode_prompt
from data_pipeline.plan import DataPlan
from data_pipeline.sequences import TrainingSequences
from data_pipeline.skip_ledger import SkipLedger
from launcher.cli import app
from launcher.config_file import resolved_yaml
from llm.transformer import Transformer

BY_HAND_TOLERANCE = 1e-5  # relative: fp32, each document by itself instead of a packed row
RANKS_LOSS_TOLERANCE = 1e-5  # Resume law: relative, any topology
EVALUATION_TOLERANCE = 1e-5  # relative: rows in other batches
STEPS = 10


def tuning(storage: Path | str, chats: Path, trunk: RunConfig | None, **changes: Any) -> RunConfig:
    """A run that learns answers, from the weights of another where one is given."""
    steps = {"train__max_steps": STEPS, "checkpoint__every_steps": 4, "evaluation__every_steps": 5}
    task = {"name": "tuned", "task": "instruction", "data__packing": "documents"}
    config = tiny_run(storage, chats, **{**task, **steps, **changes})
    if trunk is None:
        return config
    return replace(config, initialize_from=str(Path(trunk.storage) / trunk.name), model=trunk.model)


def directory_of(config: RunConfig) -> Path:
    return Path(config.storage) / config.name


@pytest.fixture(scope="module")
def chats(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_chats(tmp_path_factory.mktemp("chats"), dataset)


@pytest.fixture(scope="module")
def trunk(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A pretrained run."""
    config = tiny_run(tmp_path_factory.mktemp("trunk"), dataset, name="trunk", train__max_steps=8)
    attempt_alone(config)
    return config


@pytest.fixture(scope="module")
def tuned(chats: Path, trunk: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that was tuned from it, undisturbed."""
    config = tuning(tmp_path_factory.mktemp("tuned"), chats, trunk)
    attempt_alone(config)
    return config


def tune_on_rank(topology: Topology, config: RunConfig) -> None:
    run_attempt(
        config,
        topology,
        Surroundings(
            build_engine=deepspeed_engine,
            zero_stage=config.zero.stage,
            link=SilentLink(),
            tracking=no_tracking(),
        ),
    )


def mean_over_answers_by_hand(plan: DataPlan, model: Transformer, step: int) -> float:
    """Cross entropy over the answer tokens of a global batch, document by document, each without its neighbours."""
    stream = plan.datasets[0].split("train")
    _, row, _ = plan.order.locate(plan.batch_indices(step, SkipLedger()))
    starts, stops = plan.cuts[0].bounds(row)
    losses: list[float] = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        begins = [start, *[int(at) for at in stream.document_starts(start + 1, stop)], stop]
        for first, last in pairwise(begins):
            tokens = torch.from_numpy(stream.read(first, last).astype(np.int64))
            if len(tokens) < 2:
                continue
            with torch.inference_mode():
                scores = model.logits(tokens[None, :-1])[0].double().log_softmax(dim=-1)
            answers = stream.read_answers(first + 1, last)
            losses += [-float(scores[at, tokens[at + 1]]) for at in np.flatnonzero(answers)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("world_size", "packing"), [(1, "stream"), (1, "documents"), (2, "documents"), (3, "stream")])
def test_loss_of_a_step_is_the_mean_over_its_answer_tokens(
    world_size: int, packing: str, chats: Path, trunk: RunConfig, tmp_path: Path
) -> None:
    changes = {"train__max_steps": 1, "train__global_batch_size": 5, "data__packing": packing}
    config = tuning(tmp_path, chats, trunk, **changes)
    if world_size == 1:
        attempt_alone(config)
    else:
        begin(config)
        run_ranks(tune_on_rank, world_size, config)
    expected = mean_over_answers_by_hand(open_plan(config), load_run(str(directory_of(trunk))).model, 1)
    assert losses_of(config)[0] == pytest.approx(expected, rel=BY_HAND_TOLERANCE)


@pytest.mark.parametrize("kill_at", [3, 6, 9])
def test_resumed_record_is_bit_equal_when_killed(
    kill_at: int, tuned: RunConfig, chats: Path, trunk: RunConfig, tmp_path: Path
) -> None:
    config = tuning(tmp_path, chats, trunk)
    kill_attempt(config, kill_at)
    attempt_alone(config)
    assert record_of(config) == record_of(tuned)


def test_losses_on_ranks_are_those_of_one_process(
    tuned: RunConfig, chats: Path, trunk: RunConfig, tmp_path: Path
) -> None:
    config = tuning(tmp_path, chats, trunk)
    begin(config)
    run_ranks(tune_on_rank, 2, config)
    assert losses_of(config) == pytest.approx(losses_of(tuned), rel=RANKS_LOSS_TOLERANCE)


def test_training_goes_on_through_batches_without_an_answer(chats: Path, trunk: RunConfig, tmp_path: Path) -> None:
    changes = {"data__seq_len": 2, "train__global_batch_size": 2, "evaluation__sample_tokens": 0}
    config = tuning(tmp_path, chats, trunk, data__packing="stream", **changes)
    plan = open_plan(config)
    weights = [
        TrainingSequences(plan).read(plan.batch_indices(step, SkipLedger())).loss_weights.sum()
        for step in range(1, STEPS + 1)
    ]
    assert 0 in weights
    attempt_alone(config)
    losses = losses_of(config)
    assert np.isfinite(losses).all()
    assert [loss == 0 for loss in losses] == [weight == 0 for weight in weights]


def test_tuning_lowers_the_loss_over_held_out_answers(tuned: RunConfig, trunk: RunConfig, chats: Path) -> None:
    before = evaluate_dataset(load_run(str(directory_of(trunk))), str(chats), answers_only=True)
    after = evaluate_dataset(load_run(str(directory_of(tuned))), str(chats), answers_only=True)
    assert (
        before["tokens"] == after["tokens"] == open_plan(tuned).datasets[0].manifest.splits["validation"].answer_tokens
    )
    assert after["loss"] < before["loss"] - 0.1


def test_evaluation_in_the_training_scores_answers_alone(chats: Path, trunk: RunConfig, tmp_path: Path) -> None:
    config = tuning(tmp_path, chats, trunk, evaluation__max_sequences=None)
    attempt_alone(config)
    found = [row["eval/loss"] for row in record_of(config) if row["kind"] == "eval"]
    expected = evaluate_dataset(load_run(str(directory_of(config))), str(chats), answers_only=True)["loss"]
    assert found[-1] == pytest.approx(expected, rel=EVALUATION_TOLERANCE)
    info = list_checkpoints(directory_of(config))[-1]
    beside = evaluate_checkpoint(config, identity_of(info), Topology())
    assert beside is not None
    assert beside.rows[0]["eval/loss"] == pytest.approx(expected, rel=EVALUATION_TOLERANCE)


def test_pretraining_on_conversations_learns_every_token(chats: Path, trunk: RunConfig, tmp_path: Path) -> None:
    answers = tuning(tmp_path, chats, trunk, train__max_steps=1)
    whole = replace(answers, name="whole", task="pretrain")
    for config in (answers, whole):
        attempt_alone(config)
    assert losses_of(whole)[0] != losses_of(answers)[0]
    assert "answers_only" not in RunDirectory(directory_of(whole)).facts()["data_plan"]
    assert load_run(str(directory_of(whole))).chat_template == ChatTemplate()


def test_data_of_the_run_are_opened_again_as_they_were(tuned: RunConfig) -> None:
    facts = RunDirectory(directory_of(tuned)).facts()
    assert open_data(facts).fingerprint == open_plan(tuned).fingerprint
    assert open_data(facts).answers_only


def test_samples_answer_the_prompts(chats: Path, trunk: RunConfig, tmp_path: Path) -> None:
    config = tuning(tmp_path, chats, trunk, train__max_steps=1, evaluation__prompts=("Hello", ""))
    attempt_alone(config)
    samples = [row for row in record_of(config) if row["kind"] == "sample"]
    assert [row["prompt"] for row in samples] == ["Hello", ""]


def command(*arguments: object) -> Result:
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "300"}).invoke(app, [*map(str, arguments)])


def test_chat_is_answered_up_to_the_end_of_the_turn(tuned: RunConfig) -> None:
    loaded = load_run(str(directory_of(tuned)))
    asked = ["generate", directory_of(tuned), "--chat", "--prompt", "Can you move", "--max-new-tokens", "40", "--json"]
    result = command(*asked)
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    prompt = encode_prompt(loaded.tokenizer, ChatTemplate(), [Turn("user", "Can you move")])
    assert facts["prompt_tokens"] == len(prompt)
    assert facts["end"] in ("stop_token", "max_new_tokens")
    plain = command(*asked[:-1])
    assert plain.stdout == facts["text"] + "\n"
    with_system = json.loads(command(*asked, "--system", "Be brief.").stdout)
    assert with_system["prompt_tokens"] > len(prompt)


def test_chat_is_refused_of_a_run_that_knows_no_conversations(trunk: RunConfig) -> None:
    result = command("generate", directory_of(trunk), "--chat", "--prompt", "Hi")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: --chat: {directory_of(trunk)} was trained on no conversations")


def test_evaluate_scores_what_the_run_has_learned_or_is_asked_for(
    tuned: RunConfig, trunk: RunConfig, chats: Path, dataset: Path
) -> None:
    answers = open_plan(tuned).datasets[0].manifest.splits["validation"].answer_tokens
    own = json.loads(command("evaluate", directory_of(tuned), "--json").stdout)
    assert (own["results"][0]["answers_only"], own["results"][0]["tokens"]) == (True, answers)
    other = json.loads(command("evaluate", directory_of(trunk), "--dataset", chats, "--answers", "--json").stdout)
    assert (other["results"][0]["answers_only"], other["results"][0]["tokens"]) == (True, answers)
    whole = json.loads(command("evaluate", directory_of(trunk), "--dataset", chats, "--json").stdout)
    assert whole["results"][0]["tokens"] > 1.2 * (answers or 0)
    on_text = json.loads(command("evaluate", directory_of(tuned), "--dataset", dataset, "--json").stdout)
    assert on_text["results"][0]["answers_only"] is False
    refused = command("evaluate", directory_of(trunk), "--answers")
    assert refused.exit_code == 1
    assert "a dataset of text, in which nothing is an answer" in refused.stderr


def test_export_carries_a_template_that_gives_the_ids_of_training(tuned: RunConfig, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    result = command("checkpoint", "export", directory_of(tuned), "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["conversations_compared"] > 20
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    loaded = load_run(str(directory_of(tuned)))
    said = [Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello."), Turn("user", "Who are you?")]
    messages = [{"role": turn.role, "content": turn.content} for turn in said]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt(loaded.tokenizer, ChatTemplate(), said)


def test_export_leaves_the_template_out_when_asked(tuned: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "out"
    result = command("checkpoint", "export", directory_of(tuned), "--out", out, "--no-chat-template", "--json")
    assert json.loads(result.stdout)["conversations_compared"] is None
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert "chat_template" not in settings
    assert settings["split_special_tokens"] is True


def test_branch_keeps_the_template(tuned: RunConfig) -> None:
    (directory_of(tuned) / "config.yaml").write_text(resolved_yaml(tuned))
    result = command("branch", directory_of(tuned), "--from", "4", "annealed", "optimizer.learning_rate=1e-3")
    assert result.exit_code == 0, result.stderr
    child = directory_of(tuned).parent / "annealed"
    assert f"train it  longhaul finetune {child / 'config.yaml'}" in result.stdout
    assert load_run(str(child)).chat_template == ChatTemplate()


def test_another_task_is_refused_of_a_run_that_has_begun(tuned: RunConfig) -> None:
    with pytest.raises(RunRefusedError, match="task: 'instruction' -> 'pretrain'"):
        attempt_alone(replace(tuned, task="pretrain"))
