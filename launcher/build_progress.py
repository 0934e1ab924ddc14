"""What a person sees of a dataset build or a verification: bytes done of all, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from launcher.console import is_interactive
from launcher.progress import LINE_EVERY_FRACTION, LINE_EVERY_SECONDS
from launcher.report.units import byte_size

if TYPE_CHECKING:
    from data_pipeline.build import BuildProgress


class ByteProgress:
    """A bar over bytes where someone watches, a line now and then elsewhere; a context manager.

    Args:
        console: Where to write.
        title: What is being done, as in "verifying".
        interactive: Draw a live bar; otherwise print lines, at most one in ten seconds or tenth of the work.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        *,
        interactive: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._title = title
        self._interactive = is_interactive(console) if interactive is None else interactive
        self._clock = clock
        self._last_line: tuple[float, int] | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self._interactive,
        )
        self._task = self._bar.add_task(title, total=None)

    def __enter__(self) -> ByteProgress:
        """Begin to draw."""
        self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        """Take in how far the work is; without a total it is only said that it goes on."""
        if self._interactive:
            self._bar.update(self._task, completed=done_bytes, total=total_bytes, description=self._title)
        elif self._line_is_due(done_bytes, total_bytes):
            self._last_line = (self._clock(), done_bytes)
            of_all = f" of {byte_size(total_bytes)}" if total_bytes is not None else ""
            self._console.print(Text(f"{self._title}: {byte_size(done_bytes)}{of_all}"))

    @property
    def stage(self) -> str:
        """What was being done last."""
        return self._title

    def on_build(self, state: BuildProgress) -> None:
        """Take in how far a dataset build is; that it is up to date is for the verb to say."""
        from data_pipeline.build import UP_TO_DATE

        if state.stage != self._title:
            self._title, self._last_line = state.stage, None
        if state.stage != UP_TO_DATE:
            self(state.bytes, state.total_bytes)

    def _line_is_due(self, done_bytes: int, total_bytes: int | None) -> bool:
        if self._last_line is None or done_bytes == total_bytes:
            return True
        then, last_bytes = self._last_line
        enough_bytes = total_bytes is not None and done_bytes - last_bytes >= LINE_EVERY_FRACTION * total_bytes
        return enough_bytes or self._clock() - then >= LINE_EVERY_SECONDS
