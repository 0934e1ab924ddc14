"""What a rank's pulse says of a thread: real threads and frames, a clock that the test winds."""

from __future__ import annotations

import errno
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cluster
from cluster.checkpoint.writer import CheckpointWriter, WriterHooks
from cluster.config import CheckpointConfig
from cluster.evaluation import late as late_evaluations
from cluster.faults.pulse import Pulse
from cluster.storage.object_path import ObjectPath
from cluster.storage.operations import write_atomically
from cluster.storage.retry import Backoff, retried
from cluster.storage.source import ObjectSource
from cluster.storage.traffic import moved_bytes
from cluster.storage.transfer import writing


class Subject:
    """A thread with a pulse, that stands where the test wants it."""

    def __init__(self) -> None:
        self.now = 50.0
        self.step: int | None = None
        self.posted: list[dict[str, Any]] = []
        self._made = threading.Event()
        self._turn: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._arrived = threading.Semaphore(0)
        self._where: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        assert self._made.wait(10)

    def stand(self, where: Callable[[Callable[[], object]], object]) -> None:
        """Leave where it stands and go on into this function, which calls its argument and waits in there."""
        self._where = lambda: where(self._wait)
        self._turn.put(None)
        assert self._arrived.acquire(timeout=10)
        places = [self._place()]
        while len(places) < 3 or len(set(places[-3:])) > 1:  # on its way from there into the wait
            time.sleep(0.001)
            places.append(self._place())

    def _place(self) -> int:
        assert self._thread.ident is not None
        return sys._current_frames()[self._thread.ident].f_lasti

    def end(self) -> None:
        self._where = None
        self._turn.put(None)
        self._thread.join(10)

    def _live(self) -> None:
        self.pulse = Pulse(
            rank=1,
            world_size=2,
            node="10.0.0.1",
            node_id="ab",
            step=lambda: self.step,
            post=self.posted.append,
            clock=lambda: self.now,
        )
        self._made.set()
        self._turn.get()
        while self._where is not None:
            self._where()

    def _wait(self) -> None:
        self._arrived.release()
        self._turn.get()


@pytest.fixture
def subject() -> Iterator[Subject]:
    made = Subject()
    yield made
    made.end()


def here(wait: Callable[[], object]) -> None:
    wait()


def there(wait: Callable[[], object]) -> None:
    wait()


def function_in(path: str, name: str) -> Callable[..., Any]:
    """A function `name(inner)` that calls `inner`, as if written in a file."""
    space: dict[str, Any] = {}
    exec(compile(f"def {name}(inner):\n    return inner()\n", path, "exec"), space)
    function: Callable[..., Any] = space[name]
    return function


def of_cluster(name: str) -> str:
    """Path of one of our files."""
    (root,) = cluster.__path__
    return str(Path(root) / name)


def test_still_seconds_grow_when_the_thread_does_not_move(subject: Subject) -> None:
    subject.stand(here)
    subject.pulse.sample()
    subject.now += 40
    subject.pulse.sample()
    beat = subject.pulse.beat()
    assert beat.still_seconds == 40
    assert any("test_pulse.py" in line and line.endswith(" in here") for line in beat.stack)


def test_still_seconds_begin_anew_when_the_thread_moves(subject: Subject) -> None:
    subject.stand(here)
    subject.pulse.sample()
    subject.now += 40
    subject.stand(there)
    subject.pulse.sample()
    beat = subject.pulse.beat()
    assert (beat.still_seconds, beat.stack) == (0, ())


def test_still_seconds_begin_anew_when_the_same_place_is_met_in_the_next_step(subject: Subject) -> None:
    subject.stand(here)
    subject.pulse.sample()
    subject.now += 40
    subject.step = 7
    subject.pulse.sample()
    beat = subject.pulse.beat()
    assert (beat.step, beat.still_seconds) == (7, 0)


def test_rank_moves_when_one_call_reads_files(subject: Subject, tmp_path: Path) -> None:
    subject.stand(here)
    subject.pulse.sample()
    subject.pulse.beat()
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    subject.now += 40
    subject.pulse.sample()
    assert subject.pulse.beat().still_seconds == 0


def test_rank_moves_when_one_call_reads_an_object(subject: Subject, store: ObjectPath) -> None:
    write_atomically(store / "big", bytes(2 << 20))
    source = ObjectSource(store / "big")
    subject.stand(here)
    subject.pulse.sample()
    subject.pulse.beat()
    before = moved_bytes()
    source.read_into(memoryview(bytearray(2 << 20)), 0)
    assert moved_bytes() - before == 2 << 20
    subject.now += 40
    subject.pulse.sample()
    assert subject.pulse.beat().still_seconds == 0


def test_bytes_count_as_moved_when_an_object_is_written(store: ObjectPath) -> None:
    before = moved_bytes()
    with writing(store / "big", 2 << 20) as sink:
        sink.write(memoryview(bytes(2 << 20)))
    assert moved_bytes() - before == 2 << 20


@pytest.mark.parametrize(("between_tries", "still_seconds"), [(True, 0), (False, 40)])
def test_waiting_for_a_checkpoint_counts_as_moving_when_the_storage_is_tried_again(
    between_tries: bool, still_seconds: int, subject: Subject, tmp_path: Path
) -> None:
    goes_on: queue.SimpleQueue[None] = queue.SimpleQueue()  # whose `get` leaves no frame, as `time.sleep`
    failures = iter([OSError(errno.EREMOTEIO, "no answer")])

    def fail_once() -> None:
        for failure in failures:
            raise failure

    def hang() -> None:
        goes_on.get()

    try_again = partial(retried, fail_once, "writing", backoff=Backoff(sleep=goes_on.get))
    other = threading.Thread(target=try_again if between_tries else hang)
    other.start()
    awaited = (retried if between_tries else hang).__code__
    while (frame := sys._current_frames().get(other.ident or 0)) is None or frame.f_code is not awaited:
        time.sleep(0.001)
    subject.stand(settling(tmp_path))
    subject.pulse.sample()
    subject.now += 40
    subject.pulse.sample()
    still = subject.pulse.beat().still_seconds
    goes_on.put(None)
    other.join(10)
    assert still == still_seconds


def settling(directory: Path) -> Callable[[Callable[[], object]], None]:
    """Stands in the wait for a checkpoint that is being saved."""

    def stand(wait: Callable[[], object]) -> None:
        waits = iter([wait])

        def agree(problem: str | None) -> str | None:
            next(waits, lambda: None)()
            return problem

        writer = CheckpointWriter(
            directory, attempt=1, rank=1, world_size=2, policy=CheckpointConfig(), hooks=WriterHooks(agree=agree)
        )
        writer.save(4, [], {})
        writer.finish(last=False)

    return stand


def test_collective_is_named_by_the_function_that_was_called(subject: Subject) -> None:
    outer = function_in("/x/torch/distributed/distributed_c10d.py", "all_gather_object")
    inner = function_in("/x/torch/distributed/distributed_c10d.py", "all_gather")
    subject.stand(lambda wait: outer(lambda: inner(wait)))
    subject.pulse.sample()
    assert subject.pulse.beat().collective == "all_gather_object"


def test_no_collective_is_named_when_the_thread_is_elsewhere(subject: Subject) -> None:
    subject.stand(here)
    subject.pulse.sample()
    assert subject.pulse.beat().collective is None


@pytest.mark.parametrize(
    ("files", "counts"),
    [
        (("train_loop.py", "deepspeed_engine.py"), (1, 1)),
        (("train_loop.py", "/x/torch/distributed/distributed_c10d.py"), (1, 0)),
        (("attempt.py", "train_loop.py", "attempt.py"), (0, 0)),
        (("attempt.py",), (0, 0)),
    ],
    ids=["computing", "waiting", "saving", "before training"],
)
def test_sample_counts_towards_the_step_when_the_loop_itself_works(
    files: tuple[str, ...], counts: tuple[int, int], subject: Subject
) -> None:
    functions = [function_in(of_cluster(name), "work") for name in files]
    subject.stand(lambda wait: reduce(lambda inner, call: partial(call, inner), reversed(functions), wait)())
    subject.pulse.sample()
    beat = subject.pulse.beat()
    assert (beat.step_samples, beat.busy_samples) == counts


def test_waiting_for_wandb_counts_as_moving(subject: Subject) -> None:
    close = function_in(of_cluster("record/wandb_mirror.py"), "close")
    subject.stand(lambda wait: close(wait))
    subject.pulse.sample()
    subject.now += 59
    subject.pulse.sample()
    assert subject.pulse.beat().still_seconds == 0


def test_waiting_for_evaluations_counts_as_moving(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in_rest(wait: Callable[[], object]) -> None:
        monkeypatch.setattr(late_evaluations, "time", SimpleNamespace(sleep=lambda seconds: wait()))
        late_evaluations.rest()

    subject.stand(stand_in_rest)
    subject.pulse.sample()
    subject.now += 59
    subject.pulse.sample()
    assert subject.pulse.beat().still_seconds == 0


def test_last_heartbeat_says_so_when_the_pulse_is_closed(subject: Subject) -> None:
    subject.pulse.start()
    subject.pulse.close()
    assert subject.posted[-1]["type"] == "heartbeat"
    assert [message["ended"] for message in subject.posted][-1] is True


def test_training_goes_on_when_heartbeats_cannot_be_sent() -> None:
    def fail(message: dict[str, Any]) -> None:
        raise ConnectionError("the driver is gone")

    pulse = Pulse(rank=0, world_size=1, node="10.0.0.1", node_id="ab", step=lambda: 1, post=fail)
    pulse.start()
    pulse.close()
