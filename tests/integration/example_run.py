"""A run directory as a real training leaves it, written at once: for the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

BEGIN = 1_760_000_000.0
_CONFIG = """# resolved
name: austen
data: {dataset: sample:austen, seq_len: 256}
model:
  hidden_size: 256
  num_hidden_layers: 6
train:
  max_steps: STEPS
  global_batch_size: 32
optimizer:
  learning_rate: 1.0e-3
"""
FACTS: dict[str, Any] = {
    "name": "austen",
    "created_unix_seconds": BEGIN,
    "wandb": {"id": "k3v9x2qa", "mode": "offline", "project": "longhaul"},
    "data_plan": {"fingerprint": "9f86d081884c7d65", "seq_len": 256, "seed": 1234, "packing": "stream"},
    "dataset": {"name": "austen", "tokens": 1_046_733, "documents": 391, "tokenizer": {"vocabulary": 4096}},
    "model": {"parameters": 6_034_688},
    "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "cpu", "hostname": "node-0"},
    "topology": {"world_size": 4, "zero_stage": 2, "precision": "fp32", "threads": 1},
    "baseline": {"name": "interpolated Kneser-Ney bigram", "perplexity": 68.3},
}


def write_example_run(directory: Path, *, steps: int = 2000, log_every: int = 10, last_event: str = "finished") -> Path:
    """A run that lost a worker after 60 % of its steps and went on with two workers instead of four."""
    rng = random.Random(7)
    directory.mkdir(parents=True, exist_ok=True)
    lost_at = steps * 6 // 10
    resumed_from = lost_at - steps // 20
    clock = BEGIN + 9.0
    metrics: list[dict[str, Any]] = []
    for step in [1, *range(log_every, steps + 1, log_every)]:
        attempt = 1 if step <= resumed_from else 2
        if attempt == 2 and metrics[-1]["attempt"] == 1:
            clock += 0.2 * (lost_at - resumed_from) + 48
        speed = 2048 * (10.5 if attempt == 1 else 6.1) * rng.uniform(0.93, 1.04)
        clock += (1 if step == 1 else log_every) * 2048 / speed
        loss = 3.35 + 4.9 * math.exp(-step / (steps * 0.09)) - 0.25 * step / steps + rng.gauss(0, 0.05)
        line: dict[str, Any] = {"kind": "train", "step": step, "time_unix_seconds": clock, "attempt": attempt}
        line |= {"train/loss": loss, "train/perplexity": math.exp(loss)}
        line |= {"train/grad_norm": 0.5 + 2 * math.exp(-step / (0.05 * steps)) + abs(rng.gauss(0, 0.12))}
        line |= {"train/learning_rate": _learning_rate(step, steps), "train/tokens": step * 2048}
        line |= {"speed/tokens_per_second": speed, "speed/mfu": None}
        line |= {"memory/peak_bytes": (1.31 if attempt == 1 else 1.78) * 2**30 + rng.uniform(0, 4e6)}
        metrics.append(line)
        if step % (steps // 20) == 0:
            loss = 3.5 + 4.7 * math.exp(-step / (steps * 0.1)) - 0.2 * step / steps + rng.gauss(0, 0.01)
            line = {"kind": "eval", "step": step, "time_unix_seconds": clock + 1, "attempt": attempt}
            metrics.append(line | {"name": "austen", "eval/loss": loss, "eval/perplexity": math.exp(loss)})
    write_lines(directory / "metrics.jsonl", metrics)
    write_lines(directory / "events.jsonl", _events(metrics, steps, lost_at, resumed_from, last_event))
    write_lines(directory / "samples.jsonl", _samples(steps))
    (directory / "config.yaml").write_text(_CONFIG.replace("STEPS", str(steps)))
    (directory / "run.json").write_text(json.dumps(FACTS))
    for step in (steps * 8 // 10, steps * 9 // 10, steps):
        place = directory / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True, exist_ok=True)
        files = [{"path": f"attempt-2/rank-{rank}.bin", "size_bytes": 38_402_112} for rank in range(2)]
        manifest = {"step": step, "data_position": step * 32, "files": files}
        manifest |= {"topology": {"world_size": 2, "zero_stage": 2, "precision": "fp32"}}
        (place / "MANIFEST.json").write_text(json.dumps(manifest))
    return directory


def _learning_rate(step: int, steps: int) -> float:
    warmup = steps // 20
    if step < warmup:
        return 1e-3 * step / warmup
    return 1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def _events(
    metrics: list[dict[str, Any]], steps: int, lost_at: int, resumed_from: int, last: str
) -> list[dict[str, Any]]:
    when = {line["step"]: line["time_unix_seconds"] for line in metrics}
    four = {"world_size": 4, "zero_stage": 2, "precision": "fp32"}
    lost_time = when[resumed_from] + 0.2 * (lost_at - resumed_from)
    events: list[dict[str, Any]] = [{"event": "started", "time_unix_seconds": BEGIN, "attempt": 1, "topology": four}]
    for step in range(steps // 20, steps + 1, steps // 20):
        if step == resumed_from + steps // 20:
            lost = {"event": "worker_lost", "time_unix_seconds": lost_time, "attempt": 1, "step": lost_at}
            rejected = {
                "event": "checkpoint_rejected",
                "time_unix_seconds": lost_time + 20,
                "attempt": 2,
                "step": step,
            }
            resumed = {"event": "resumed", "time_unix_seconds": lost_time + 31, "attempt": 2}
            events += [
                lost | {"rank": 3, "node": "10.0.0.7", "reason": "SIGKILL"},
                rejected | {"reason": "rank-2.bin has 1,024 bytes of 38,402,112"},
                resumed
                | {
                    "from_step": resumed_from,
                    "topology_before": four,
                    "topology_after": four | {"world_size": 2},
                },
            ]
        attempt = 1 if step <= resumed_from else 2
        saved = {
            "event": "checkpoint_saved",
            "time_unix_seconds": when[step] + 0.8,
            "attempt": attempt,
            "step": step,
        }
        events.append(saved | {"write_seconds": 0.41, "size_bytes": 76_804_224})
    return [*events, {"event": last, "time_unix_seconds": when[steps] + 3, "attempt": 2, "step": steps}]


def _samples(steps: int) -> list[dict[str, Any]]:
    texts = (
        "the the of and to. , a the was in her of",
        "she was not a very little, and the house of her sister in the morning of Bath.",
        "that a woman of her understanding could not be long in the room without feeling that he had come "
        "for no other reason than to see her sister.\n\nMr. Knightley said nothing; but his look was kind.",
    )
    prompt = "It is a truth universally acknowledged, "
    return [{"step": steps * (n + 1) // 3, "prompt": prompt, "text": prompt + text} for n, text in enumerate(texts)]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
