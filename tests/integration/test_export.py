"""`longhaul checkpoint export` of runs that were trained: what transformers and this program then read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attempts import attempt_alone
from tiny import tiny_run
from typer.testing import CliRunner, Result

from cluster.config import RunConfig
from cluster.inference import load_run
from launcher.cli import app
from llm.hugging_face.proof import LARGEST_DIFFERENCE

transformers = pytest.importorskip("transformers")


def export(*arguments: object) -> Result:
    words = ["checkpoint", "export", *map(str, arguments)]
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "300"}).invoke(app, words)


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = tiny_run(tmp_path_factory.mktemp("run"), dataset, train__max_steps=8)
    attempt_alone(config)
    return config


def test_transformers_writes_what_the_run_writes_when_it_was_exported(run: RunConfig, tmp_path: Path) -> None:
    directory = Path(run.storage) / run.name
    result = export(directory, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["step"], facts["model_type"], facts["dtype"]) == (8, "llama", "float32")
    assert facts["proof"]["relative_difference"] < LARGEST_DIFFERENCE
    ours = load_run(str(directory))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = tokenizer("Emma Woodhouse, handsome", return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [1, *ours.tokenizer.encode("Emma Woodhouse, handsome")]
    with torch.inference_mode():
        expected_TV = ours.model.logits(ids)[0]
        found_TV = theirs(input_ids=ids).logits[0]
    assert (found_TV - expected_TV).abs().max() < LARGEST_DIFFERENCE * expected_TV.abs().max()


def test_table_tells_family_size_and_proof_of_the_step_that_was_asked_for(run: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = export(Path(run.storage) / run.name, "--step", 4, "--out", out, "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    said = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert {"family llama", "checkpoint step 4", "numbers bfloat16", f"directory {out}"} <= set(said)
    assert any(line.startswith("logits proven: at 512 positions at most ") for line in said)
    assert any(line.startswith("tokenizer proven: ") for line in said)
    assert (
        f"comparing with transformers, on 16 x 32 tokens of the validation split of {run.data.dataset}" in result.stderr
    )


def test_run_in_an_object_store_is_exported(dataset: Path, bucket: str, tmp_path: Path) -> None:
    config = tiny_run(f"{bucket}/runs", dataset, train__max_steps=4)
    attempt_alone(config)
    result = export(f"{bucket}/runs/tiny", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_export_is_refused_when_it_is_to_go_to_an_object_store(run: RunConfig) -> None:
    result = export(Path(run.storage) / run.name, "--out", "s3://bucket/model")
    assert result.exit_code == 2
    assert "--out is s3://bucket/model: an export is proven as files on a disk." in " ".join(result.stderr.split())
