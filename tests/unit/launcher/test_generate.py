"""`generate`: how texts are printed, and which command lines are refused before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data_pipeline.chat_template import Turn
from launcher.cli import app
from launcher.prompt_file import TextPrompt
from launcher.text_stream import Written


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked of a model, which is not loaded; it answers with the prompt's letters backwards."""
    calls: list[dict[str, Any]] = []

    def texts(loaded: Any, prompts: Any, sampling: Any, stops: Any, *, batch_size: int) -> Iterator[Written]:
        calls.append({"prompts": prompts, "sampling": sampling, "stops": stops, "batch_size": batch_size})
        for prompt in prompts:
            yield Written(
                prompt=prompt.text, text=prompt.text[::-1], end="stop_text", prompt_tokens=1, new_tokens=2, seed=3
            )

    def stream(loaded: Any, prompt: Any, sampling: Any, stops: Any) -> Iterator[str]:
        calls.append({"prompts": [prompt], "sampling": sampling, "stops": stops})
        yield from prompt.text[::-1]

    monkeypatch.setattr("cluster.inference.load_run", lambda _: None)
    monkeypatch.setattr("cluster.inference.require_text_model", lambda _: None)
    monkeypatch.setattr("launcher.text_stream.continue_texts", texts)
    monkeypatch.setattr("launcher.text_stream.continue_text", stream)
    return calls


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["generate", "run", *arguments])


def test_text_follows_its_prompt_when_there_is_one(asked: list[dict[str, Any]]) -> None:
    assert run("--prompt", "Emma").stdout == "EmmaammE\n"


def test_texts_follow_each_other_when_there_are_several_prompts(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("lot\nno\n")
    result = run("--prompt", "Emma", "--prompts", str(tmp_path / "more.txt"), "--batch-size", "2")
    assert result.stdout == (
        "[1 of 3, ended by stop_text]\nEmmaammE\n\n[2 of 3, ended by stop_text]\nlottol\n\n"
        "[3 of 3, ended by stop_text]\nnoon\n\n"
    )
    assert asked[0]["batch_size"] == 2


@pytest.mark.parametrize("prompts", [["é"], ["é", "no"]])
def test_each_text_is_an_object_on_a_line_when_json_is_asked_for(
    prompts: list[str], asked: list[dict[str, Any]]
) -> None:
    result = run(*(word for prompt in prompts for word in ("--prompt", prompt)), "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines == [
        {
            "prompt": prompt,
            "text": prompt[::-1],
            "end": "stop_text",
            "prompt_tokens": 1,
            "new_tokens": 2,
            "seed": 3,
        }
        for prompt in prompts
    ]


def test_every_option_reaches_the_model(asked: list[dict[str, Any]]) -> None:
    options = "--max-new-tokens 7 --temperature 0.5 --top-k 4 --top-p 0.75 --min-p 0.25 --repetition-penalty 1.5 "
    options += "--seed 9 --stop x --stop y --stop-token 5 --stop-token 6"
    assert run("--prompt", "", *options.split()).exit_code == 0
    sampling, stops = asked[0]["sampling"], asked[0]["stops"]
    assert (sampling.max_new_tokens, sampling.temperature, sampling.seed) == (7, 0.5, 9)
    assert (sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty) == (4, 0.75, 0.25, 1.5)
    assert (stops.texts, stops.tokens) == (("x", "y"), (5, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], 'there is no prompt to continue. Give --prompt TEXT, where "" begins a text, or --prompts FILE.'),
        (
            ["--prompt", "x", "--system", "Be brief."],
            "--system is part of a chat. Give --chat too, or leave it out.",
        ),
        (["--prompt", "x", "--batch-size", "0"], "--batch-size is 0: no prompt would be continued. Use at least 1."),
        (
            ["--prompt", "x", "--stop", ""],
            "--stop is empty: every text would end before it begins. Give some text, or leave it out.",
        ),
        (
            ["--prompt", "x", "--min-p", "2"],
            "min_p is 2.0: it is a fraction of the likeliest token's probability, above 0 and at most 1. "
            "Use null for all tokens.",
        ),
        (
            ["--prompt", "x", "--repetition-penalty", "0"],
            "repetition_penalty is 0.0: logits cannot be divided by it. Use a finite number above 0; 1 means no "
            "penalty.",
        ),
        (
            ["--prompts", "absent.txt"],
            "--prompts absent.txt: cannot be read: No such file or directory. Check the path.",
        ),
    ],
)
def test_command_line_is_refused_when_it_makes_no_sense(options: list[str], message: str) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert result.stderr == f"error: {message}\n"


def test_answer_alone_is_printed_when_it_is_a_chat(asked: list[dict[str, Any]]) -> None:
    assert run("--prompt", "Emma", "--chat").stdout == "ammE\n"
    assert asked[0]["prompts"] == [TextPrompt(text="Emma", chat=True)]


def test_question_and_answer_follow_each_other_when_there_are_several(asked: list[dict[str, Any]]) -> None:
    result = run("--prompt", "Emma", "--prompt", "no", "--chat", "--system", "Be brief.")
    assert result.stdout == "[1 of 2, ended by stop_text]\nEmma\nammE\n\n[2 of 2, ended by stop_text]\nno\non\n\n"
    assert asked[0]["prompts"][1] == TextPrompt(text="no", chat=True, earlier=(Turn("system", "Be brief."),))


def test_chat_of_a_file_is_answered_after_what_was_said(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    said = [("user", "Hi"), ("assistant", "Hello"), ("user", "Emma")]
    messages = [{"role": role, "content": content} for role, content in said]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}))
    assert run("--prompts", str(tmp_path / "chats.jsonl"), "--chat").stdout == "ammE\n"
    earlier = (Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert asked[0]["prompts"] == [TextPrompt(text="Emma", chat=True, earlier=earlier)]
    refused = run("--prompts", str(tmp_path / "chats.jsonl"))
    assert refused.exit_code == 2
    assert "messages are those of a chat. Give --chat too, or write prompts." in refused.stderr
