"""The driver's session over Ray Train, with Ray's part played by the test."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from cluster.config import ResourcesConfig, RunConfig
from cluster.on_ray import mailbox, room_watch
from cluster.on_ray import room as ray_room
from cluster.on_ray import worker as ray_worker
from cluster.on_ray.session import Desk, _Session
from cluster.record.logs import EventsLog
from cluster.record.wandb_mirror import TrackingSettings
from cluster.run_directory import RunDirectory
from data_pipeline.config import DataConfig


class Stage:
    """A session whose workers never come to train, and the messages that it gets."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[dict[str, Any]] = []
        self.killed: list[Any] = []
        self.heard: list[dict[str, Any]] = []
        self._gone = threading.Event()
        config = RunConfig(
            name="run",
            storage=str(directory),
            data=DataConfig(dataset="data"),
            resources=ResourcesConfig(workers=2, gpus_per_worker=0),
        )
        run = directory / "run"
        run.mkdir()
        RunDirectory(run).create(config, "name: run\n")
        exchange = SimpleNamespace(remote=lambda orders: self._messages())
        monkeypatch.setattr(mailbox, "start_mailbox", lambda: SimpleNamespace(exchange=exchange))
        monkeypatch.setattr(ray, "get", lambda value: value)
        monkeypatch.setattr(ray, "kill", self._kill)
        monkeypatch.setattr(ray_room, "counted_alive", lambda: {"a"})
        monkeypatch.setattr(room_watch, "draining_nodes", dict)
        monkeypatch.setattr(ray_worker, "fit", self._fit)
        desk = Desk(
            lease=SimpleNamespace(check=lambda: None, holder="me"),
            tracking=TrackingSettings(mode="disabled", project="p", run_id="i", name="run"),
            events=EventsLog(run, clock=time.time),
            listener=self.heard.append,
            private_cluster=False,
            job={},
        )
        self.session = _Session(config, desk, 0)

    def _messages(self) -> list[dict[str, Any]]:
        taken, self.messages = self.messages, []
        return taken

    def _kill(self, actor: Any) -> None:
        self.killed.append(actor)
        self._gone.set()

    def _fit(self, *arguments: Any, **named: Any) -> None:
        self.messages.append({"type": "controller", "actor": "controller"})
        self.session._stop._take(15, None)
        assert self._gone.wait(10)
        raise RayActorError


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_controller_has_ended_when_a_stop_comes_while_workers_start(stage: Stage) -> None:
    assert stage.session.run() == {"step": 0, "finished": False}
    assert stage.killed == ["controller"]
    assert not [thread for thread in threading.enumerate() if thread.name == "ray-train"]


def test_late_fatal_words_give_nothing_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.messages.append({"type": "fatal", "text": "the disk is full", "rank": 0, "pid": 10})
    stage.session._handle_messages()
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    assert not stage.session._gave_up()


def test_patience_with_ray_begins_anew_with_each_group(stage: Stage) -> None:
    stage.session._fatal_since = -1000.0
    assert stage.session._gave_up()
    assert stage.session._group_ended_the_run()
    assert not stage.session._gave_up()


def test_hung_node_is_left_out_once_what_workers_had_reserved_is_free(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, True]
    stage.session._hangs._avoided.add("b")
    monkeypatch.setattr(stage.session._room, "avoid", lambda nodes: answers.pop(0))
    stage.session._avoid_hung_nodes()
    assert (answers, stage.heard) == ([], [])
