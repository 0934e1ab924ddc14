"""What `initialize_from` may name, whose weights they are, and with which run they do not go."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exports import write_export
from tiny import build_tiny_dataset, tiny_run

from cluster.checkpoint import list_checkpoints
from cluster.checkpoint.manifest import step_directory
from cluster.config import RunConfig
from cluster.driver import _open_plan
from cluster.errors import RunNotFoundError, RunRefusedError
from cluster.initial_weights import (
    INITIALIZED_FROM,
    check_initial_weights,
    contradictions,
    find_initial_weights,
)
from cluster.on_ray.preflight import answer_for_node
from cluster.resolution import open_plan
from data_pipeline.dataset import Dataset
from data_pipeline.publish import seal
from llm.config import ModelConfig
from llm.errors import HuggingFaceError


@pytest.fixture
def run(trained: RunConfig) -> Path:
    return Path(trained.storage) / trained.name


@pytest.fixture
def directory(trained: RunConfig, tmp_path: Path) -> Path:
    """The trained run as a Hugging Face directory."""
    return write_export(trained, tmp_path / "exported")


def beginning_run(storage: Path, dataset: Path, source: Path | str, **changes: Any) -> RunConfig:
    """A run that begins from somewhere, its model filled in as the launcher does."""
    config = replace(tiny_run(storage, dataset, name="new"), initialize_from=str(source))
    vocab_size = find_initial_weights(str(source)).model.vocab_size
    return replace(config, model=replace(config.model, vocab_size=vocab_size, **changes))


def refusal(config: RunConfig, facts: dict[str, Any] | None = None) -> str:
    with pytest.raises(RunRefusedError) as caught:
        check_initial_weights(config, open_plan(config), facts or {})
    return str(caught.value)


def test_a_run_gives_its_newest_checkpoint_and_a_checkpoint_itself(run: Path) -> None:
    newest, earlier = find_initial_weights(str(run)), find_initial_weights(str(step_directory(run, 2)))
    assert newest.directory == step_directory(run, 4)
    assert earlier.directory == step_directory(run, 2)
    assert newest.fingerprint != earlier.fingerprint
    assert newest.run_directory == run


def test_all_forms_of_a_run_are_of_one_model_and_one_tokenizer(run: Path, directory: Path, dataset: Path) -> None:
    ours, theirs = find_initial_weights(str(run)), find_initial_weights(str(directory))
    assert contradictions(ours.model, theirs.model) == []
    assert ours.model.vocab_size == 400
    assert ours.tokenizer_hash == theirs.tokenizer_hash == Dataset.open(dataset).tokenizer_hash


def test_lineage_says_whose_weights_they_are(run: Path, directory: Path, trained: RunConfig) -> None:
    ours = find_initial_weights(str(run)).lineage("../runs/trained")
    assert (ours["reference"], ours["directory"]) == ("../runs/trained", str(step_directory(run, 4)))
    assert (ours["name"], ours["step"], ours["wandb_id"]) == ("trained", 4, "test")
    theirs = find_initial_weights(str(directory)).lineage(str(directory))
    assert (theirs["name"], theirs["model_type"]) == ("exported", "llama")
    assert json.loads(json.dumps([ours, theirs])) == [ours, theirs]


@pytest.mark.parametrize("what", ["nothing", "empty", "unfinished run"])
def test_anything_else_is_refused(what: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if what != "nothing":
        place.mkdir()
    if what == "unfinished run":
        (place / "run.json").write_text("{}")
    expected = "no usable checkpoint" if what == "unfinished run" else f"initialize_from is {place}, which is no run"
    with pytest.raises(RunNotFoundError, match=expected):
        find_initial_weights(str(place))


def test_a_directory_of_a_model_that_is_not_computed_here_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(HuggingFaceError, match="model_type is 'mamba'"):
        find_initial_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "different"),
    [
        ({"hidden_size": 512}, ["hidden_size", "head_dim", "attention_multiplier"]),
        ({"rope_theta": 5e5}, ["rope_theta"]),
        ({"vocab_size": 101}, ["vocab_size"]),
        ({"tie_word_embeddings": False}, ["tie_word_embeddings"]),
        ({"num_key_value_heads": 8}, []),  # as null means
        ({"attention": "eager", "initializer_range": 0.5}, []),
        ({"embedding_dropout": 0.1, "attention_dropout": 0.1, "residual_dropout": 0.1}, []),
        ({"max_position_embeddings": 64}, []),
    ],
)
def test_contradictions_are_what_the_weights_would_mean_otherwise(change: dict[str, Any], different: list[str]) -> None:
    weights = ModelConfig(vocab_size=100)
    assert sorted(contradictions(weights, replace(weights, **change))) == sorted(different)


def test_the_longest_sequence_contradicts_when_positions_are_learned() -> None:
    weights = ModelConfig(vocab_size=100, position_embedding="learned", max_position_embeddings=32)
    assert contradictions(weights, replace(weights, max_position_embeddings=64)) == ["max_position_embeddings"]


@pytest.mark.parametrize("form", ["run", "directory"])
def test_weights_go_with_a_run_of_their_model_and_tokenizer(
    form: str, run: Path, directory: Path, dataset: Path, tmp_path: Path
) -> None:
    source = {"run": run, "directory": directory}[form]
    config = beginning_run(tmp_path, dataset, source)
    assert check_initial_weights(config, open_plan(config), {}).directory.is_dir()


@pytest.fixture(scope="module")
def other_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text in the tokens of a smaller vocabulary."""
    return build_tiny_dataset(tmp_path_factory.mktemp("data"), vocab_size=380, text_bytes=60_000)


@pytest.mark.parametrize("form", ["run", "directory"])
def test_weights_are_refused_when_the_dataset_has_another_tokenizer(
    form: str, run: Path, directory: Path, other_dataset: Path, tmp_path: Path
) -> None:
    source, tokenizer = {"run": (run, run), "directory": (directory, directory)}[form]
    told = refusal(beginning_run(tmp_path, other_dataset, source))
    assert "their token ids mean different text. Build the dataset with `tokenizer: {path: " in told
    assert str(tokenizer / "tokenizer.model") in told


def test_it_is_said_that_the_tokenizer_is_not_known_when_a_directory_has_none(
    directory: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "tokenizer.model").unlink()
    config = beginning_run(tmp_path, dataset, directory)
    with caplog.at_level(logging.WARNING):
        check_initial_weights(config, open_plan(config), {})
    assert "was trained with the dataset's tokenizer is not known" in caplog.text


def test_weights_are_refused_when_the_dataset_has_more_tokens_than_their_embedding(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    config = beginning_run(tmp_path, dataset, run)
    config = replace(config, model=replace(config.model, vocab_size=390))
    with pytest.raises(RunRefusedError, match="whose embedding holds 390 tokens, and the dataset's tokenizer has 400"):
        _open_plan(config, {})


def test_weights_are_refused_when_they_are_of_another_model(run: Path, dataset: Path, tmp_path: Path) -> None:
    told = refusal(beginning_run(tmp_path, dataset, run, hidden_size=64))
    assert "whose weights are of another model: model.hidden_size is 64 and 32 there. Leave" in told


def test_a_run_does_not_begin_from_itself(trained: RunConfig, run: Path) -> None:
    assert "which is the run itself" in refusal(replace(trained, initialize_from=str(run)))


@pytest.mark.parametrize("form", ["run", "directory"])
def test_weights_that_changed_since_the_run_began_are_refused(
    form: str, trained: RunConfig, run: Path, dataset: Path, tmp_path: Path
) -> None:
    copied = replace(trained, storage=str(tmp_path))
    shutil.copytree(run, tmp_path / "trained")
    source = tmp_path / "trained" if form == "run" else write_export(copied, tmp_path / "out", step=4)
    config = beginning_run(tmp_path / "runs", dataset, source)
    noted = find_initial_weights(str(source)).lineage(str(source))
    check_initial_weights(config, open_plan(config), {INITIALIZED_FROM: noted})
    if form == "run":
        path = step_directory(source, 4) / "MANIFEST.json"
        document = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "checksum"}
        path.write_bytes(seal({**document, "next_batch_loss": 1.0}))
    else:
        shutil.rmtree(source)
        write_export(copied, source, step=2)
    assert "when the run began, which has no checkpoint of its own yet" in refusal(config, {INITIALIZED_FROM: noted})


def test_the_checkpoint_that_a_run_began_with_stays_when_its_source_goes_on(
    run: Path, dataset: Path, tmp_path: Path
) -> None:
    config = beginning_run(tmp_path, dataset, run)
    noted = find_initial_weights(str(step_directory(run, 2))).lineage(str(run))
    assert check_initial_weights(config, open_plan(config), {INITIALIZED_FROM: noted}).directory.name == "step-00000002"
    renamed = {**noted, "reference": "/another"}
    assert (
        check_initial_weights(config, open_plan(config), {INITIALIZED_FROM: renamed}).directory.name == "step-00000004"
    )


def test_a_node_answers_whether_it_sees_the_weights(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "mark").write_bytes(b"")

    def problems(weights: dict[str, str]) -> dict[str, str]:
        return dict(answer_for_node(str(tmp_path), "mark", "n1", {}, weights).weights_problems)

    seen = {str(directory): find_initial_weights(str(directory)).fingerprint}
    assert problems({}) == problems(seen) == {}
    assert "which is no run" in problems({str(tmp_path / "none"): "f"})[str(tmp_path / "none")]
    assert "there, and another for the driver." in problems({str(directory): "another"})[str(directory)]


def test_the_newest_checkpoint_is_passed_over_when_it_was_rejected(run: Path, tmp_path: Path) -> None:
    from cluster.checkpoint import reject

    copy = shutil.copytree(run, tmp_path / "copy")
    reject(list_checkpoints(copy)[-1], "it gave another loss", kind="loss")
    assert find_initial_weights(str(copy)).directory.name == "step-00000002"
