"""What a checkpoint holds, and how two of them differ, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from launcher.console import table
from launcher.report.units import byte_size, moment, plural, significant

if TYPE_CHECKING:
    from cluster.checkpoint.comparison import Comparison

_MISSING = "-"


def headline_table(facts: Mapping[str, Any]) -> Table:
    """The checkpoint as a whole."""
    layout = facts["layout"]
    rows = table("checkpoint", "")
    rows.add_row("step", f"{facts['step']:,}")
    rows.add_row("directory", facts["directory"])
    rows.add_row("state", facts["problem"] or "complete; `checkpoint verify` reads its contents")
    rows.add_row("saved", f"{moment(facts['created_unix_seconds'])} by attempt {facts['attempt']}")
    rows.add_row("size", f"{byte_size(facts['size_bytes'])} in {plural(len(facts['files']), 'file')}")
    if layout:
        stage = layout.get("zero_stage")
        zero = "plain torch" if stage is None else f"ZeRO {stage}"
        where = f"{layout.get('device')}, {layout.get('threads')} threads each"
        rows.add_row("topology", f"{plural(layout.get('world_size', 0), 'worker')}, {zero}, {where}")
        rows.add_row("precision", str(facts["precision"]))
    rows.add_row("data position", _count(facts["data_position"], "sequence"))
    skipped = facts["skip_ledger"]
    rows.add_row("skipped", ", ".join(map(str, skipped)) if skipped else "nothing")
    rows.add_row("data plan", facts["data_plan_fingerprint"] or _MISSING)
    rows.add_row("loss of the next batch", significant(facts["next_batch_loss"], 8))
    return rows


def group_table(facts: Mapping[str, Any]) -> Table:
    """Parameters by optimizer group."""
    rows = table("group", "parameters", "elements", numbers_from=1)
    for name, group in facts["groups"].items():
        rows.add_row(name, f"{group['parameters']:,}", f"{group['elements']:,}")
    return rows


def parameter_table(facts: Mapping[str, Any]) -> Table:
    """Every parameter, and its values where they were read."""
    rows = table("parameter", "group", "shape", "states", "step")
    for item in facts["parameters"]:
        shape = " x ".join(map(str, item["shape"]))
        step = item["scalars"].get("step")
        rows.add_row(
            item["name"], item["group"], shape, ", ".join(item["states"]), _MISSING if step is None else f"{step:g}"
        )
    return rows


def value_table(facts: Mapping[str, Any]) -> Table:
    """Smallest, largest and norm of every tensor."""
    rows = table("parameter", "state", "min", "max", "norm", "not finite", numbers_from=2)
    for item in facts["parameters"]:
        for state, found in item["values"].items():
            figures = (significant(found[key]) for key in ("min", "max", "norm"))
            rows.add_row(item["name"], state, *figures, f"{found['not_finite']:,}")
    return rows


def file_table(facts: Mapping[str, Any]) -> Table:
    """Files with their sizes and hashes."""
    rows = table("file", "size", "xxh3_128")
    for file in facts["files"]:
        rows.add_row(file["path"], byte_size(file["size_bytes"]), file["hash"])
    return rows


def export_table(facts: Mapping[str, Any]) -> Table:
    """What an export holds, and how far it was proven."""
    proof, ids = facts["proof"], facts["tokens_compared"]
    rows = table("export", "")
    rows.add_row("directory", facts["directory"])
    rows.add_row("family", facts["model_type"])
    rows.add_row("checkpoint", f"step {facts['step']:,}")
    rows.add_row("weights", f"{byte_size(facts['weight_bytes'])} in {plural(len(facts['weight_files']), 'file')}")
    rows.add_row("numbers", facts["dtype"])
    rows.add_row("tokenizer", "not written" if ids is None else f"proven: {ids:,} ids are the same in transformers")
    if (chats := facts["conversations_compared"]) is not None:
        rows.add_row("chat template", f"proven: {plural(chats, 'conversation')} have the same ids in transformers")
    rows.add_row(
        "logits",
        f"proven: at {proof['positions']:,} positions at most {proof['relative_difference']:.1e} of their scale apart",
    )
    rows.add_row("compared on", facts["proven_on"])
    if facts["left_out"]:
        said = ", ".join(f"{name} {value:g}" for name, value in facts["left_out"].items())
        rows.add_row("left out", f"{said}: the family has no word for it, and it matters in training alone")
    return rows


def fact_table(comparison: Comparison) -> Table:
    """What the two were trained with, where that differs."""
    rows = table("key", "first", "second")
    for change in (*comparison.facts, *comparison.scalars):
        rows.add_row(change.key, _value(change.before), _value(change.after))
    return rows


def difference_table(comparison: Comparison) -> Table:
    """By state: how many tensors are equal bit for bit, and the largest differences with the parameters they are in."""
    rows = table("state", "tensors", "equal", "largest absolute", "largest relative")
    for state, count in comparison.compared.items():
        found = [item for item in comparison.tensors if item.state == state]
        absolute = max(found, key=lambda item: item.largest_absolute, default=None)
        relative = max(found, key=lambda item: item.largest_relative, default=None)
        rows.add_row(
            state,
            f"{count:,}",
            f"{count - len(found):,}",
            _MISSING if absolute is None else f"{_figure(absolute.largest_absolute)}  {absolute.parameter}",
            _MISSING if relative is None else f"{_figure(relative.largest_relative)}  {relative.parameter}",
        )
    return rows


def _figure(value: float) -> str:
    return f"{value:.3e}" if math.isfinite(value) else "not finite"


def _count(value: int | None, noun: str) -> str:
    return _MISSING if value is None else plural(value, noun)


def _value(value: Any) -> str:
    return _MISSING if value is None else str(value)
