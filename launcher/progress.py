"""What a person sees of a training while it runs: a bar where someone watches, a line now and then elsewhere.

Messages are dicts, delivered in the driver's main thread:

    {"type": "phase", "text": str}                            something that takes a while has begun
    {"type": "train", "step": int, "max_steps": int, "max_tokens": int, ...}    a line of metrics.jsonl
    {"type": "eval", "step": int, "name": str, ...}           the same, of an evaluation
    {"type": "event", "event": str, "step": int | None, ...}  a line of events.jsonl
    {"type": "log", "level": int, "logger": str, "rank": int, "text": str}    a log record of a worker
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from launcher.console import is_interactive
from launcher.progress_lines import eval_line, event_line, figures, is_worth_showing, log_line, position

SPEED_WINDOW_SECONDS = 60.0
LINE_EVERY_SECONDS = 10.0
LINE_EVERY_FRACTION = 0.1
_REFRESHES_PER_SECOND = 4


class TrainingProgress:
    """Shows messages as they come; a context manager, called with each message.

    Args:
        console: Where to write.
        interactive: Draw a live bar; otherwise print lines, for steps at most one in ten seconds or in a
            tenth of the training.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        console: Console,
        *,
        interactive: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._interactive = is_interactive(console) if interactive is None else interactive
        self._clock = clock
        self._phase = ""
        self._spinner = Spinner("dots")  # one per phase: each turns from the moment at which it is first drawn
        self._train: Mapping[str, Any] | None = None
        self._validation: dict[str, dict[str, Any]] = {}
        self._pace: deque[tuple[float, int]] = deque()
        self._last_line: tuple[float, int] | None = None
        self._live: Live | None = None

    def __enter__(self) -> TrainingProgress:
        """Begin to draw."""
        if self._interactive:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Leave the last figures as a line, and the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            if self._train is not None:
                self._print(self._train_line(self._train))

    def __call__(self, message: Mapping[str, Any]) -> None:
        """Take in one message."""
        match message["type"]:
            case "phase":
                self._on_phase(str(message["text"]))
            case "train":
                self._on_train(message)
            case "eval":
                self._validation[message["name"]] = {
                    key.removeprefix("eval/"): value for key, value in message.items() if key.startswith("eval/")
                }
                self._print(eval_line(message))
            case "event":
                self._on_event(message)
            case "log":
                if is_worth_showing(message):
                    self._print(log_line(message))
            case other:
                raise ValueError(f"a progress message of the unknown type {other!r}: {dict(message)}")

    def _on_phase(self, text: str) -> None:
        if text != self._phase and not self._interactive:
            self._print(Text(text))
        if text != self._phase:
            self._spinner = Spinner("dots", Text(text))
        self._phase = text

    def _on_event(self, message: Mapping[str, Any]) -> None:
        if message["event"] in ("worker_lost", "rolled_back", "resumed"):
            self._pace.clear()  # the step count jumps, so the old pace says nothing
        self._print(event_line(message))

    def _on_train(self, message: Mapping[str, Any]) -> None:
        now, step = self._clock(), message["step"]
        self._phase, self._train = "", message
        self._pace.append((now, message["train/tokens"]))  # steps may grow, the time for a token stays
        while now - self._pace[0][0] > SPEED_WINDOW_SECONDS and len(self._pace) > 2:
            self._pace.popleft()
        if not self._interactive and self._line_is_due(now, step, message["max_steps"]):
            self._last_line = (now, step)
            self._print(self._train_line(message))

    def _line_is_due(self, now: float, step: int, max_steps: int) -> bool:
        if self._last_line is None or step >= max_steps:
            return True
        then, last_step = self._last_line
        enough_steps = step < last_step or step - last_step >= LINE_EVERY_FRACTION * max_steps
        return enough_steps or now - then >= LINE_EVERY_SECONDS

    def _seconds_left(self) -> float | None:
        if self._train is None or len(self._pace) < 2:
            return None
        (first_time, first_tokens), (last_time, last_tokens) = self._pace[0], self._pace[-1]
        if last_tokens <= first_tokens:
            return None
        remaining_tokens = int(self._train["max_tokens"]) - last_tokens
        return remaining_tokens * (last_time - first_time) / (last_tokens - first_tokens)

    def _train_line(self, message: Mapping[str, Any]) -> Text:
        return Text("  ".join([position(message, self._seconds_left()), figures(message, self._validation)]))

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._phase:
            parts.append(self._spinner)
        if self._train is not None:
            bar = ProgressBar(total=self._train["max_steps"], completed=self._train["step"])
            row = Table.grid(padding=(0, 1), expand=True)
            row.add_column(ratio=1)
            row.add_column(no_wrap=True)
            row.add_row(bar, position(self._train, self._seconds_left()))
            parts += [row, Text(figures(self._train, self._validation), overflow="ellipsis", no_wrap=True)]
        return Group(*parts)
