"""Names and facts as a reader says them, samples and events among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.report.events import describe, status, title, tone
from launcher.report.facts import fact_groups
from launcher.report.record import Event, Sample, read_record
from launcher.report.runs import reported_runs
from launcher.report.samples import samples_section
from launcher.report.words import fact, heading, label, topology_words


def _event(name: str, **details: Any) -> Event:
    return Event(name=name, step=1, time_unix_seconds=0.0, attempt=1, details=details)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("bytes", "size"),
        ("versions.deepspeed", "versions DeepSpeed"),
        ("write_seconds", "write"),
        ("datasets.1.fingerprint", "datasets 1 fingerprint"),
        ("trained_tokens", "trained"),
        ("gpu_count", "GPU count"),
        ("model.router_aux_loss_coef", "model weight of the routers' balance"),
        ("time/compilation_seconds", "compiling at the end"),
    ],
)
def test_label_says_a_key_in_words(key: str, words: str) -> None:
    assert label(key) == words


def test_heading_begins_with_a_capital_and_keeps_the_rest() -> None:
    assert [heading(key) for key in ("zero_stage", "document_mask")] == ["ZeRO stage", "Document mask"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("global_batch_size", 8, "8 sequences"),
        ("seq_len", 2048, "2,048 tokens"),
        ("trained_tokens", 655360, "655,360 tokens"),
        ("wait_seconds", 61, "1 min 1 s"),
        ("layout.peak_bytes", 2**30, "1.00 GiB"),
        ("rank", 1024, "1024"),
        ("nothing", None, "none"),
    ],
)
def test_fact_carries_the_unit_of_its_key(key: str, value: object, text: str) -> None:
    assert fact(key, value) == text


def test_topology_words_have_one_order_and_leave_library_versions_out() -> None:
    layout = {
        "versions": {"torch": "2"},
        "device": "cuda",
        "threads": 1,
        "world_size": 2,
        "zero_stage": 3,
        "extra": "x",
    }
    assert topology_words(layout) == "2 workers, ZeRO 3, cuda, 1 thread, extra x"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("driver_lost", "bad"),
        ("node_lost", "bad"),
        ("upload_failed", "bad"),
        ("batches_skipped", "warn"),
        ("stopped", "calm"),
        ("something_new", "calm"),
    ],
)
def test_tone_of_an_unknown_event_follows_the_end_of_its_name(name: str, expected: str) -> None:
    assert tone(_event(name)) == expected


def test_unknown_event_is_described_by_its_details() -> None:
    event = _event("node_drained", node="10.0.0.7", causes=[{"rank": 3, "error": "OOM"}], wait_seconds=90, bytes=2048)
    assert title(event) == "node drained"
    assert describe(event) == "node 10.0.0.7 · causes 1 rank 3 · causes 1 error OOM · wait 1 min 30 s · size 2.00 KiB"


def test_status_is_recovering_when_the_driver_was_lost() -> None:
    assert status([_event("started"), _event("driver_lost"), _event("something_new")]) == "recovering"


def test_fact_groups_say_once_what_the_record_says_twice() -> None:
    versions = {"python": "3.11.7", "torch": "2.13.0"}
    plan = {"seq_len": 128, "datasets": [{"fingerprint": "abc", "weight": 1.0}]}
    facts = {
        "name": "run",
        "id": "bf2d7724",
        "layout": {"device": "cpu", "world_size": 2, "versions": versions | {"ray": "2.60.0"}},
        "environment": {**versions, "device": "x86_64"},
        "data_plan": plan,
        "datasets": [{"name": "austen", "fingerprint": "abc"}],
        "token_ledger": [{"dataset": "austen", "trained_tokens": 5}],
        "resolved": ["precision fp32: the device is a cpu"],
        "lineage": {"parent": "runs/a"},
    }
    assert fact_groups(facts) == {
        "Ran on": {"Workers": "2", "Device": "cpu"},
        "Environment": {"Python": "3.11.7", "PyTorch": "2.13.0", "Ray": "2.60.0", "Hardware": "x86_64"},
        "Dataset": {"Name": "austen", "Trained": "5 tokens", "Fingerprint": "abc", "Weight": "1"},
        "Chosen for auto": {"Precision": "fp32: the device is a cpu"},
        "Data plan": {"Sequence length": "128 tokens"},
        "Lineage": {"Parent": "runs/a"},
        "Run": {"Name": "run", "Identity": "bf2d7724"},
    }


def test_fact_groups_keep_lists_apart_when_they_speak_of_different_datasets() -> None:
    facts = {"datasets": [{"name": "a"}, {"name": "b"}], "token_ledger": [{"dataset": "a"}]}
    assert set(fact_groups(facts)) == {"Datasets 1", "Datasets 2", "Token ledger 1"}


def test_fact_groups_lose_nothing_when_two_keys_read_alike() -> None:
    facts = {"ledger": {"train_tokens": 5, "train_documents": 2}}
    assert fact_groups(facts)["Ledger"] == {"Train tokens": "5 tokens", "Train documents": "2 documents"}


def _write_samples(directory: Path, *samples: dict[str, Any]) -> None:
    lines = [json.dumps({"kind": "sample", "time_unix_seconds": 1.0, "attempt": 1, **sample}) for sample in samples]
    (directory / "samples.jsonl").write_text("\n".join(lines) + "\n")


def test_samples_are_ordered_by_step_and_the_last_line_of_a_repeated_step_stands(tmp_path: Path) -> None:
    again = {"step": 20, "name": "ball", "prompt": "The ball", "text": " was over."}
    first = {"step": 10, "name": "ball", "prompt": "The ball", "text": "The ball the the"}
    _write_samples(tmp_path, again | {"text": " of of"}, first, again, {"step": 20, "name": "free", "text": "She"})
    assert read_record(tmp_path).samples == [
        Sample(step=10, name="ball", prompt="The ball", text=" the the"),
        Sample(step=20, name="ball", prompt="The ball", text=" was over."),
        Sample(step=20, name="free", prompt="", text="She"),
    ]


def test_samples_section_opens_the_newest_step_only(tmp_path: Path) -> None:
    _write_samples(
        tmp_path, *({"step": step, "name": "free", "prompt": "", "text": f"text {step}"} for step in (1, 2, 3))
    )
    section = samples_section(reported_runs([read_record(tmp_path)]))
    assert section.index("Step 3") < section.index("Step 2") < section.index("Step 1")
    assert section.count("<details") == 3
    assert section.index(" open>") < section.index("Step 3") < section.index("text 3")
    assert section.count(" open>") == 1
    assert "from the beginning of a document" in section


@pytest.mark.parametrize(
    ("event", "words", "graveness", "details"),
    [
        (
            _event("anomaly", kind="loss_spike", action="skip", loss=12.5, score=9.25),
            "loss spike",
            "warn",
            "action skip · loss 12.5 · score 9.25",
        ),
        (
            _event("anomaly", kind="non_finite_loss", action="rollback", loss=None, score=None),
            "loss not finite",
            "warn",
            "action rollback",
        ),
        (_event("anomaly", kind=["new"]), "anomaly", "warn", "kind new"),
        (_event("update_skipped", reason="it is high"), "update skipped", "warn", "reason it is high"),
        (_event("rolled_back", to_step=1400), "rolled back", "warn", "to step 1,400"),
        (_event("samples_skipped", start=47968, stop=48000), "samples skipped", "warn", "sequences 47,968 to 47,999"),
        (_event("samples_skipped", start=None), "samples skipped", "warn", ""),
        (_event("preempted", node="10.0.0.9", ranks=[4, 5]), "node taken back", "warn", "node 10.0.0.9 · ranks 4, 5"),
        (_event("worker_lost", kind="out_of_memory", rank=3), "worker lost: out of memory", "bad", "rank 3"),
        (_event("worker_lost", kind="preemption", rank=3), "worker lost: node taken back", "warn", "rank 3"),
        (_event("worker_lost", kind="something new"), "worker lost", "bad", "kind something new"),
        (
            _event("hang", rank=None, node=None, collective="all_reduce", seconds=31.2),
            "hang found",
            "bad",
            "collective all_reduce · for 31.2 s",
        ),
        (_event("straggler", rank=3, ratio=2.125), "straggler", "warn", "rank 3 · ratio 2.125"),
        (_event("regrouped", reason="there is room"), "workers regrouped", "calm", "reason there is room"),
        (_event("finished", **{"time/evaluation_seconds": 2.5}), "finished", "good", "evaluation at the end 2.50 s"),
        (_event("micro_batch_halved", failed=8, taken=4), "micro-batch halved", "warn", "failed 8 · taken 4"),
        (
            _event("resumed", branched_from={"run": "ab12", "name": "austen", "step": 1200}),
            "resumed",
            "calm",
            "branch of austen at step 1,200",
        ),
        (
            _event("started", initialized_from={"name": "austen", "step": 1200, "fingerprint": "ab12"}),
            "started",
            "calm",
            "weights of austen at step 1,200",
        ),
        (
            _event("started", initialized_from={"name": "Llama-3.2-1B", "model_type": "llama"}),
            "started",
            "calm",
            "weights of Llama-3.2-1B",
        ),
    ],
)
def test_events_of_faults_and_healing_have_words(event: Event, words: str, graveness: str, details: str) -> None:
    assert (title(event), tone(event), describe(event)) == (words, graveness, details)


@pytest.mark.parametrize(
    ("names", "state"),
    [
        (["started", "hang"], "recovering"),
        (["started", "preempted", "regrouped"], "running"),
        (["started", "anomaly", "rolled_back", "samples_skipped"], "running"),
    ],
)
def test_status_follows_faults_and_healing(names: list[str], state: str) -> None:
    assert status([_event(name) for name in names]) == state


def test_facts_tell_whose_weights_a_run_began_with() -> None:
    groups = fact_groups({"initialized_from": {"name": "austen", "step": 1200}})
    assert groups["Weights from"] == {"Name": "austen", "Step": "1,200"}


def test_facts_tell_what_a_run_branched_from_and_what_healing_decided() -> None:
    facts = {
        "parent": {"run": "ab12", "name": "austen", "step": 1200},
        "healing": {"skips": [[3, 5]], "withheld": [600], "rollbacks": []},
    }
    groups = fact_groups(facts)
    assert groups["Branched from"] == {"Run": "ab12", "Name": "austen", "Step": "1,200"}
    assert groups["Healing"] == {"Sequences left out": "[[3, 5]]", "Steps without update": "600", "Rollback": "none"}
