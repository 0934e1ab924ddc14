"""Run, model, data and environment: what run.json says, arranged by subject and said once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from launcher.report.json_facts import Facts
from launcher.report.markup import Fact, section, side_by_side
from launcher.report.runs import ReportedRun
from launcher.report.words import fact, flat, heading, in_layout_order, topology_of, without_topology

_SECTION = "Run, data and environment"
_FIRST = ("name", "task", "id", "created_unix_seconds", "attempt", "published_step")
_TITLES = {
    "wandb": "Weights & Biases",
    "environment": "Environment",
    "model": "Model",
    "baseline": "Baseline",
    "parent": "Branched from",
    "initialized_from": "Weights from",
}
_ORDER = (
    "Run",
    "Branched from",
    "Weights from",
    "Ran on",
    "Environment",
    "Model",
    "Data plan",
    "Dataset",
    "Baseline",
    "Chosen for auto",
)
Group = dict[str, str]


def facts_section(runs: Sequence[ReportedRun]) -> str:
    """For one run a table a subject; for several the same facts side by side."""
    groups = [fact_groups(run.record.facts) for run in runs]
    found = {title for group in groups for title in group}
    titles = sorted(found, key=_rank)
    if len(runs) == 1:
        tables = "".join(_table(title, groups[0][title]) for title in titles)
        return section(_SECTION, f'<div class="facts">{tables}</div>' if tables else "")
    rows: list[Fact] = []
    for title in titles:
        columns = [group.get(title, {}) for group in groups]
        names = dict.fromkeys(name for column in columns for name in column)
        rows += [(escape(title), ()), *((escape(name), [column.get(name) for column in columns]) for name in names)]
    return section(_SECTION, side_by_side(runs, rows))


def fact_groups(facts: Facts) -> dict[str, Group]:
    """run.json by subject: title to facts, each a name and a value in words.

    What stands in it twice (library versions, the datasets of the data plan) is said once.
    """
    rest = without_topology(facts)
    layout = topology_of(facts)
    groups: dict[str, dict[str, Any]] = {"Ran on": in_layout_order(layout)}
    groups["Environment"] = _environment(_object(layout.get("versions")), _object(rest.pop("environment", None)))
    groups |= _dataset_groups(rest)
    groups["Chosen for auto"] = _choices(rest)
    own = {}
    for key, value in rest.items():
        if isinstance(value, dict):
            groups[_TITLES.get(key, heading(key))] = value
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            named = [item for item in value if isinstance(item, dict)]
            groups |= {f"{heading(key)} {place}": item for place, item in enumerate(named, start=1)}
        else:
            own[key] = value
    groups["Run"] = {key: own[key] for key in (*(key for key in _FIRST if key in own), *own)} | groups.get("Run", {})
    return {title: _in_words(group) for title, group in groups.items() if group}


def _environment(versions: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """Libraries and hardware; `device` there is the name of the processor or accelerator, not cpu or cuda."""
    merged = {**versions, **environment}
    return {("hardware" if key == "device" else key): value for key, value in merged.items()}


def _dataset_groups(rest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each dataset with what the data plan and the token ledger say of it; taken out of `rest`."""
    plan = rest.get("data_plan")
    parts = [rest.get("datasets"), _object(plan).get("datasets"), rest.get("token_ledger")]
    lists = [part for part in parts if isinstance(part, list) and part and all(isinstance(one, dict) for one in part)]
    if not lists or len({len(part) for part in lists}) > 1:
        return {}  # they do not speak of the same datasets: each is shown as it stands
    if isinstance(plan, dict):
        rest["data_plan"] = {key: value for key, value in plan.items() if key != "datasets"}
    rest.pop("datasets", None)
    rest.pop("token_ledger", None)
    count = len(lists[0])
    groups = {}
    for place in range(count):
        merged = {key: value for part in reversed(lists) for key, value in part[place].items()}
        name = {"name": merged["name"]} if "name" in merged else {}
        if name:
            merged.pop("dataset", None)  # the ledger's word for the name
        groups["Dataset" if count == 1 else f"Dataset {place + 1}"] = {**name, **merged}
    return groups


def _choices(rest: dict[str, Any]) -> dict[str, Any]:
    """How `auto` was resolved: `precision fp32: device cpu …` names the setting in its first word."""
    resolved = rest.get("resolved")
    if not isinstance(resolved, list) or not all(isinstance(line, str) for line in resolved):
        return {}
    del rest["resolved"]
    return {line.partition(" ")[0]: line.partition(" ")[2] for line in resolved}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _in_words(group: dict[str, Any]) -> Group:
    rows = flat(group)
    counts = Counter(heading(key) for key, _ in rows)
    # Two figures of one thing in different units (tokens and documents of a split) keep their whole names.
    names = [heading(key) if counts[heading(key)] == 1 else key.replace("_", " ").capitalize() for key, _ in rows]
    return {name: fact(key, value) for name, (key, value) in zip(names, rows, strict=True)}


def _rank(title: str) -> tuple[int, str]:
    known = [place for place, name in enumerate(_ORDER) if title == name or title.startswith(f"{name} ")]
    return (known[0] if known else len(_ORDER)), title


def _table(title: str, group: Group) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in group.items()
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{lines}</tbody></table>"
