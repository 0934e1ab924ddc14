"""lm-evaluation-harness on a run and on its Hugging Face export: the same requests get the same log-probabilities."""

from __future__ import annotations

import gzip
import importlib.resources
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt_alone
from tiny import tiny_run
from typer.testing import CliRunner, Result

from cluster.inference import LoadedModel, load_run
from launcher.cli import app
from launcher.errors import UsageError
from llm.scoring import encode_pair

pytest.importorskip("transformers")
pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'longhaul[eval]')")
lm_eval_hf = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval's hf model needs accelerate and peft")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from launcher.harness import HarnessModel, generation_settings  # noqa: E402

TOLERANCE = 1e-3
"""Nats of a request: up to 700 tokens, each of 1e-6 in fp32, and the harness sums in single precision."""
QUESTIONS = 24
CHOICES = """
task: lh_choices
output_type: multiple_choice
test_split: test
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
"""
ROLLING = """
task: lh_rolling
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
GENERATED = """
task: lh_generated
output_type: generate_until
test_split: test
doc_to_text: "{{context}}"
doc_to_target: "x"
generation_kwargs: {until: ["mm", "ne", "a"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with weights wide apart: what it says depends on all that it reads."""
    config = tiny_run(
        tmp_path_factory.mktemp("run"),
        dataset,
        train__max_steps=24,
        checkpoint__every_steps=24,
        model__initializer_range=0.3,
    )
    attempt_alone(config)
    return Path(config.storage) / config.name


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedModel:
    return load_run(str(run))


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    result = command("checkpoint", "export", run, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tasks over data of our own: words to be joined to a context, texts shorter and longer than the model reads."""
    directory = tmp_path_factory.mktemp("tasks")
    words = ["Emma", "naïve", "红楼", "Mr.", "Knightley,", "<s>walked</s>", "\u2581to", "(Highbury)", "again;", "no"]
    rng = random.Random(5)

    def some(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    questions = [
        {
            "context": ["", some(1, 40), some(1, 5) + " ", some(2, 4) + "\n"][number % 4],
            "choices": [some(1, 3) for _ in range(2 + number % 3)],
            "answer": number % 2,
        }
        for number in range(QUESTIONS)
    ]
    write_lines(directory / "choices.jsonl", questions)
    write_lines(directory / "texts.jsonl", [{"text": some(size, size)} for size in (1, 3, 9, 30, 100)])
    for name, task, data in (("c", CHOICES, "choices"), ("r", ROLLING, "texts"), ("g", GENERATED, "choices")):
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {directory / data}.jsonl}}}}\n"
        (directory / f"{name}.yaml").write_text(task + source, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield directory


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def opening_of_emma() -> str:
    shipped = importlib.resources.files("data_pipeline.sample") / "emma.txt.gz"
    return gzip.decompress(shipped.read_bytes())[:100_000].decode()


def command(*arguments: object) -> Result:
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "300"}).invoke(app, [str(argument) for argument in arguments])


def evaluated(model: Any, tasks: Path, name: str) -> dict[str, Any]:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results: dict[str, Any] = simple_evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=10)
    return results


@pytest.fixture(scope="module")
def hf(exported: Path) -> Any:
    return lm_eval_hf.HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=4)


def answers(results: dict[str, Any], name: str) -> list[Any]:
    """What the model answered to every request, in order."""
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    return [answer for sample in samples for answers in sample["resps"] for answer in answers]


def figures(results: dict[str, Any], name: str) -> dict[str, float]:
    return {key: value for key, value in results["results"][name].items() if isinstance(value, float)}


def test_choices_score_as_those_of_the_export(loaded: LoadedModel, hf: Any, tasks: Path) -> None:
    ours, theirs = (evaluated(model, tasks, "lh_choices") for model in (HarnessModel(loaded), hf))
    pairs = list(zip(answers(ours, "lh_choices"), answers(theirs, "lh_choices"), strict=True))
    assert len(pairs) == sum(2 + number % 3 for number in range(QUESTIONS))
    worst = max(abs(mine[0] - other[0]) for mine, other in pairs)
    print(f"{len(pairs)} choices, log-likelihoods at most {worst:.2e} nats apart")
    assert worst < TOLERANCE
    assert [mine[1] for mine, _ in pairs] == [other[1] for _, other in pairs]
    assert figures(ours, "lh_choices") == figures(theirs, "lh_choices")
    assert 0 < figures(ours, "lh_choices")["acc,none"] < 1


def test_whole_texts_score_as_those_of_the_export(loaded: LoadedModel, hf: Any, tasks: Path) -> None:
    ours, theirs = (evaluated(model, tasks, "lh_rolling") for model in (HarnessModel(loaded), hf))
    pairs = list(zip(answers(ours, "lh_rolling"), answers(theirs, "lh_rolling"), strict=True))
    assert len(pairs) == 5
    worst = max(abs(mine - other) for mine, other in pairs)
    print(f"{len(pairs)} texts of {[round(mine) for mine, _ in pairs]} nats, at most {worst:.2e} apart")
    assert worst < TOLERANCE
    assert figures(ours, "lh_rolling") == pytest.approx(figures(theirs, "lh_rolling"), rel=1e-5)


def test_generated_texts_are_those_of_the_export(loaded: LoadedModel, hf: Any, tasks: Path) -> None:
    ours, theirs = (evaluated(model, tasks, "lh_generated") for model in (HarnessModel(loaded), hf))
    pairs = list(zip(answers(ours, "lh_generated"), answers(theirs, "lh_generated"), strict=True))
    # where the bytes chosen are no UTF-8, SentencePiece saves what it can and Hugging Face's decoder gives the run up
    texts = [(mine, other) for mine, other in pairs if "\ufffd" not in other]
    assert [mine for mine, _ in texts] == [other for _, other in texts]
    assert len({mine for mine, _ in texts}) > QUESTIONS // 2


def test_ids_are_those_of_the_export(loaded: LoadedModel, hf: Any) -> None:
    ours = HarnessModel(loaded)
    assert (ours.max_length, ours.eot_token_id, ours.prefix_token_id) == (hf.max_length, hf.eot_token_id, 1)
    for text in ("", "Emma  was", " lead", "<s>Emma", "x</s> y", "\n\n\u2581 红楼", "a\u00a0b"):
        for special in (None, True, False):
            assert ours.tok_encode(text, special) == hf.tok_encode(text, special), (text, special)


def test_pairs_are_cut_as_those_of_the_export(loaded: LoadedModel, hf: Any) -> None:
    """At spaces, inside words, before newlines: wherever 500 random cuts fall."""
    rng, text = random.Random(11), opening_of_emma()
    ours, encode = HarnessModel(loaded), loaded.tokenizer.encode
    pairs = [("Emma ", "was"), ("Em", "ma"), ("a \n", "b"), ("x", " </s>")]
    for _ in range(500):
        start = rng.randrange(len(text) - 300)
        cut, end = start + rng.randrange(1, 200), rng.randrange(1, 60)
        pairs.append((text[start:cut], text[cut : cut + end]))
    for context, continuation in pairs:
        expected = hf._encode_pair(context, continuation)
        assert ours._encode_pair(context, continuation) == expected
        assert encode_pair(lambda text: encode(text).tolist(), context, continuation, bos=1) == expected


def test_verb_prints_the_table_and_writes_the_results(run: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    result = command("evaluate", run, "--harness", "lh_choices,lh_rolling", "--include-path", tasks, "--out", out)
    assert result.exit_code == 0, result.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines() if "|" in line]
    found = {(row[0], row[4]): row[6] for row in rows[2:] if row[4]}
    facts = json.loads(out.read_text())
    assert facts["step"] == 24
    assert set(facts["harness"]["results"]) == {"lh_choices", "lh_rolling"}
    assert float(found["lh_choices", "acc"]) == pytest.approx(
        facts["harness"]["results"]["lh_choices"]["acc,none"], abs=1e-4
    )


def test_questions_of_a_file_are_answered_as_in_the_harness(
    run: Path, loaded: LoadedModel, tasks: Path, tmp_path: Path
) -> None:
    theirs = figures(evaluated(HarnessModel(loaded), tasks, "lh_choices"), "lh_choices")
    result = command("evaluate", run, "--choices", tasks / "choices.jsonl", "--json")
    assert result.exit_code == 0, result.stderr
    (ours,) = json.loads(result.stdout)["results"]
    assert (ours["questions"], ours["accuracy"], ours["accuracy_per_byte"]) == (
        QUESTIONS,
        theirs["acc,none"],
        theirs["acc_bytes,none"],
    )
    assert ours["truncated"] > 0


def test_task_is_refused_when_nobody_knows_it(run: Path, tasks: Path) -> None:
    result = command("evaluate", run, "--harness", "lh_choices,lh_nothing", "--include-path", tasks)
    assert result.exit_code == 2
    assert "--harness lh_nothing: lm-eval knows no task, group or tag of that name." in result.stderr


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"num_beams": 4}, "generation_kwargs of a task has the key 'num_beams', which would be ignored: known here "),
        ({"max_gen_toks": 32}, "a task asks for 32 new tokens, and the model reads 32 at once: no room is left for a "),
    ],
)
def test_generation_is_refused_when_it_cannot_be_as_stated(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        generation_settings(stated, 32)


def test_generation_draws_when_the_task_asks_for_it() -> None:
    sampling, stops = generation_settings(
        {"until": ["\n"], "max_gen_toks": 5, "do_sample": True, "temperature": 0.7, "top_p": 0.9}, 32
    )
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p, stops.texts) == (5, 0.7, 0.9, ("\n",))
    assert generation_settings({"max_gen_toks": 5}, 32)[0].temperature == 0
