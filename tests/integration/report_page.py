"""The report's page as a reader gets it: its elements, texts and data."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from launcher.report import write_report


class Page(HTMLParser):
    """Elements by tag, text by headline label, and what the page would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text: str) -> None:
        if text.strip():
            self.texts.append(text.strip())

    def count(self, tag: str) -> int:
        """Elements of a tag."""
        return sum(name == tag for name, _ in self.elements)

    def after(self, label: str, count: int = 3) -> list[str]:
        """The texts that follow one."""
        place = self.texts.index(label)
        return self.texts[place + 1 : place + 1 + count]


def report_of(run: Path) -> str:
    """The page that is written for a run."""
    return write_report(run).read_text(encoding="utf-8")


def data_of(html: str) -> dict[str, Any]:
    """What the charts are drawn from."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>\n<script>\n', html, re.DOTALL)
    assert found is not None
    assert "<" not in found[1]
    data: dict[str, Any] = json.loads(found[1])
    return data


def words_of(html: str) -> str:
    """What a reader sees, blanks between the elements."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())
