"""`predict` and `evaluate` of models that learned labels, by their own commands."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

import pytest
from attempts import attempt_alone
from labelled_runs import build_labelled, labelled_run, sentences_of
from typer.testing import CliRunner

from cluster.config import RunConfig
from cluster.inference import load_run
from cluster.labelling import predict_texts
from launcher.cli import app
from launcher.config_file import load_run_config

KINDS = ("class", "classes", "number", "token_class")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunConfig]:
    text = Path(str(importlib.resources.files("data_pipeline.sample") / "emma.txt.gz"))
    sentences = sentences_of(text, 60)
    made = {}
    for kind in KINDS:
        directory = tmp_path_factory.mktemp(kind)
        made[kind] = labelled_run(
            directory, build_labelled(directory / "data", kind, sentences), kind, train__max_steps=6
        )
        attempt_alone(made[kind])
    return made


def place(config: RunConfig) -> str:
    return str(Path(config.storage) / config.name)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("class", {"label", "probabilities"}),
        ("classes", {"labels", "probabilities"}),
        ("number", {"value"}),
        ("token_class", {"words", "labels", "probabilities"}),
    ],
)
def test_each_line_gets_an_answer(kind: str, keys: set[str], runs: dict[str, RunConfig], tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    lines = [{"text": f"Emma was number {number} here.", "id": number} for number in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = CliRunner().invoke(app, ["predict", place(runs[kind]), str(path), "--batch-size", "2"])
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert [answer["id"] for answer in answers] == list(range(5))
    for answer in answers:
        assert set(answer["prediction"]) == keys
        if kind == "class":
            assert sum(answer["prediction"]["probabilities"].values()) == pytest.approx(1)
        if kind == "token_class":
            assert len(answer["prediction"]["labels"]) == len(answer["prediction"]["words"]) == 5


def test_answers_do_not_depend_on_what_is_asked_beside(runs: dict[str, RunConfig]) -> None:
    loaded = load_run(place(runs["number"]))
    texts = ["Emma.", "A longer sentence, with a comma, and another.", "Short"]
    together = [prediction.outcome["value"] for prediction in predict_texts(loaded, texts)]
    alone = [next(predict_texts(loaded, [text])).outcome["value"] for text in texts]
    assert together == pytest.approx(alone, rel=1e-5)


def test_lines_before_a_refused_one_are_answered(runs: dict[str, RunConfig]) -> None:
    lines = [json.dumps({"text": f"text {number}"}) for number in range(5)]
    result = CliRunner().invoke(
        app, ["predict", place(runs["class"]), "--batch-size", "2"], input="\n".join([*lines, "", ""])
    )
    assert len(result.stdout.splitlines()) == 5
    assert result.exit_code == 2
    assert "standard input, line 6: there is no text to predict for. Remove the line." in " ".join(
        result.stderr.split()
    )


def test_text_beyond_the_limit_is_cut_marked_and_counted(runs: dict[str, RunConfig]) -> None:
    long = "word " * 200
    result = CliRunner().invoke(app, ["predict", place(runs["class"])], input=f"{long}\nshort\n")
    answers = [json.loads(line)["prediction"] for line in result.stdout.splitlines()]
    assert [answer.get("cut", False) for answer in answers] == [True, False]
    assert "1 of 2 texts longer than the 48 tokens that the model reads, and cut" in " ".join(result.stderr.split())


def test_words_beyond_the_limit_have_no_label(runs: dict[str, RunConfig]) -> None:
    loaded = load_run(place(runs["token_class"]))
    (prediction,) = predict_texts(loaded, [["word"] * 200])
    labels = prediction.outcome["labels"]
    assert prediction.cut
    assert len(labels) == 200
    assert labels[-1] is None
    assert labels[0] is not None


def test_evaluation_gives_the_measures_of_the_run_with_intervals(runs: dict[str, RunConfig]) -> None:
    config = runs["class"]
    result = CliRunner().invoke(app, ["evaluate", place(config), "--json"])
    (found,) = json.loads(result.stdout)["results"]
    recorded = json.loads((Path(place(config)) / "measures" / "sentences.json").read_text())
    assert found["headline"] == pytest.approx(recorded["headline"], rel=1e-5)
    assert found["intervals"].keys() == recorded["intervals"].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{run}", "--batch-size", "0"], "--batch-size is 0: no text would be read"),
        (["generate", "{run}", "--prompt", "a"], "predicts labels (task sequence_classification), not text"),
        (["evaluate", "{run}", "--text", "{text}"], "predicts labels (task sequence_classification), not text"),
        (["evaluate", "{run}", "--dataset", "{other}"], "its outputs mean something else"),
        (["evaluate", "{run}", "--answers"], "--answers was given, and"),
    ],
)
def test_what_such_a_model_cannot_do_is_refused(
    arguments: list[str], message: str, runs: dict[str, RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a text")
    names = {
        "run": place(runs["class"]),
        "text": str(tmp_path / "a.txt"),
        "other": str(runs["classes"].data.dataset),
    }
    result = CliRunner().invoke(app, [argument.format(**names) for argument in arguments])
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.split())


def test_run_begins_with_one_that_learned_the_same_labels(runs: dict[str, RunConfig], tmp_path: Path) -> None:
    path = tmp_path / "on.yaml"
    data = f"{{dataset: {runs['class'].data.dataset}, packing: examples}}"
    path.write_text(f"name: on\ntask: sequence_classification\ninitialize_from: {place(runs['class'])}\ndata: {data}\n")
    config = load_run_config(str(path))
    assert config.model.head is None
    assert config.model.hidden_size == runs["class"].model.hidden_size
