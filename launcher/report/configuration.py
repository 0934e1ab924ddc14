"""The resolved configs: which settings differ between runs, and each in full, folded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from launcher.errors import ConfigError
from launcher.report.markup import by_run, fold, section, side_by_side
from launcher.report.runs import ReportedRun
from launcher.report.words import flat
from launcher.yaml_file import parse_yaml

_YAML_LINE = re.compile(r"(\s*(?:- )?)([^\s:#][^:#]*)(:)(\s.*|)")


def configuration_section(runs: Sequence[ReportedRun]) -> str:
    """What differs where there are several runs, then the configs."""
    summary = _differences_table(runs) if len(runs) > 1 else ""
    bodies = [("config.yaml", _yaml(run.record.config_yaml)) for run in runs]
    if len(runs) == 1 and bodies[0][1]:
        return section("Configuration", fold("Resolved config.yaml", bodies[0][1]))
    return section("Configuration", summary + by_run(runs, bodies))


def differences(configs: Sequence[str]) -> list[tuple[str, list[str | None]]]:
    """The settings that are not the same in all configs.

    Args:
        configs: YAML texts; one that cannot be read counts as one without settings.

    Returns:
        The dotted key and its value in each config as written in YAML, None where a config lacks the key; in
        the order in which the configs name them.
    """
    settings = [_settings(config) for config in configs]
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = [(key, [one.get(key) for one in settings]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _differences_table(runs: Sequence[ReportedRun]) -> str:
    known = [run for run in runs if run.record.config_yaml]
    if len(known) < 2:
        return ""
    found = differences([run.record.config_yaml for run in known])
    if not found:
        return '<p class="empty">All settings are the same.</p>'
    return side_by_side(known, [(f"<code>{escape(key)}</code>", values) for key, values in found])


def _settings(config: str) -> dict[str, str]:
    try:
        tree = parse_yaml(config)
    except ConfigError:
        return {}
    return {key: _as_written(value) for key, value in flat(tree)} if isinstance(tree, dict) else {}


def _as_written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(_as_written(item) for item in value)}]"
    return str(value)


def _yaml(config: str) -> str:
    if not config:
        return ""
    lines = "\n".join(_yaml_line(line) for line in config.splitlines())
    return f"<pre>{lines}</pre>"


def _yaml_line(line: str) -> str:
    found = _YAML_LINE.fullmatch(line)
    if found is None:
        return escape(line)
    indent, key, colon, value = found.groups()
    return f'{escape(indent)}<span class="key">{escape(key)}</span>{colon}{escape(value)}'
