"""Text samples through training: the newest in full, the older ones folded, each showing how it begins."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from launcher.report.downsample import spread
from launcher.report.markup import by_run, fold, left_out, section
from launcher.report.record import RunRecord, Sample
from launcher.report.runs import ReportedRun
from launcher.report.units import plural

_STEPS = 40
_OF_A_STEP = 20
_CHARACTERS = 4000
_GLIMPSE_CHARACTERS = 110
_NO_PROMPT = "from the beginning of a document"


def samples_section(runs: Sequence[ReportedRun]) -> str:
    """What the model wrote, newest first."""
    bodies = [(_extent(run.record), _samples(run.record)) for run in runs]
    return section("Text samples", by_run(runs, bodies, is_open=True))


def _extent(record: RunRecord) -> str:
    steps = len({sample.step for sample in record.samples})
    return f"{plural(len(record.samples), 'sample')} at {plural(steps, 'step')}"


def _samples(record: RunRecord) -> str:
    by_step = [(step, list(group)) for step, group in groupby(record.samples, key=lambda sample: sample.step)]
    kept = spread(len(by_step), _STEPS)
    parts = [_step(*by_step[place], is_newest=place == len(by_step) - 1) for place in reversed(kept)]
    return f'<div class="samples">{"".join(parts)}</div>{left_out(len(by_step), kept)}' if parts else ""


def _step(step: int | None, samples: list[Sample], *, is_newest: bool) -> str:
    name = "Step not recorded" if step is None else f"Step {step:,}"
    glimpse = " ".join(samples[0].text.split())
    if len(glimpse) > _GLIMPSE_CHARACTERS:
        glimpse = f"{glimpse[:_GLIMPSE_CHARACTERS]} …"
    summary = f'{name}<span class="glimpse">{escape(glimpse)}</span>'
    figures = "".join(_figure(sample) for sample in samples[:_OF_A_STEP])
    note = left_out(len(samples), range(min(len(samples), _OF_A_STEP)))
    return fold(summary, figures + note, is_open=is_newest, style="sample-step")


def _figure(sample: Sample) -> str:
    text = sample.text if len(sample.text) <= _CHARACTERS else f"{sample.text[:_CHARACTERS]} …"
    prompt = f"<b>{escape(sample.prompt)}</b>" if sample.prompt else ""
    caption = escape(sample.name) + ("" if prompt else f"<small>{_NO_PROMPT}</small>")
    quote = f"<blockquote>{prompt}{escape(text)}</blockquote>"
    return f'<figure class="sample"><figcaption>{caption}</figcaption>{quote}</figure>'
