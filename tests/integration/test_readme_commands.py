"""The README's walk from a person's own text to a model, as it stands there, in an empty directory."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^longhaul .*$", re.MULTILINE)


def shell_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [command for block in blocks for command in COMMAND.findall(block)]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_own_text_becomes_a_model(tmp_path: Path) -> None:
    files = re.findall(r"`(\w+\.yaml)`.*?```yaml\n(.*?)```", README, re.DOTALL)
    assert [name for name, _ in files] == ["mytext.yaml", "myrun.yaml"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "emma.md").write_text(opening_of_emma().replace("CHAPTER ", "# CHAPTER "))
    here = [each for each in shell_commands() if "s3://" not in each]  # those are test_ray_object_store.py's
    commands = [each for each in here if not each.startswith(("longhaul submit", "longhaul jobs"))]
    assert len(commands) == 10  # those for clusters are run by test_jobs.py
    outputs = {}
    for command in commands:
        done = subprocess.run(
            command.replace("longhaul ", f"{sys.executable} -m launcher ", 1),
            shell=True,
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        outputs[" ".join(command.split()[1:3])] = done.stdout
    assert (tmp_path / "mymodel" / "model.safetensors").exists()
    assert "tokens/s" in outputs["bench model"]
    assert "perplexity" in outputs["evaluate runs/mytext"]
    assert outputs["generate runs/mytext"].startswith("The")
    assert "complete" in outputs["checkpoint list"]
    assert "good" in outputs["checkpoint verify"]
    assert "step 50" in " ".join(outputs["checkpoint inspect"].split())
    assert (tmp_path / "runs" / "annealed" / "config.yaml").exists()
    assert (tmp_path / "runs" / "mytext" / "report.html").exists()


@pytest.mark.slow
def test_benchmark_prints_a_ratio() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.step_overhead", "--small", "--steps", "1", "--threads", "1"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"ZeRO 2 / torch: \d\.\d{3}", done.stdout)


def opening_of_emma() -> str:
    """Some 200 kB of English with a heading to every chapter."""
    shipped = ROOT / "data_pipeline" / "sample" / "emma.txt.gz"
    return gzip.decompress(shipped.read_bytes())[:200_000].decode()


def environment() -> dict[str, str]:
    """Without what the person running the tests has set; the checkout on the path, as an installation would."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "WANDB_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}
