"""From CONFIG and its overrides to frozen, validated configuration, and back to YAML."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cluster.config import RunConfig
from cluster.storage.operations import storage_path
from data_pipeline.config import DataBuildConfig
from launcher.config_problems import Problem, problems
from launcher.depth import with_depth
from launcher.errors import ConfigError
from launcher.initialization import with_initialization
from launcher.overrides import apply_overrides
from launcher.yaml_file import dump_yaml, parse_yaml

_YAML_SUFFIXES = (".yaml", ".yml")
_Config = TypeVar("_Config", RunConfig, DataBuildConfig)


def load_run_config(config: str, overrides: Sequence[str] = (), *, fresh: bool = False) -> RunConfig:
    """Read the configuration of a run.

    Args:
        config: Path of a YAML file, or the name of a shipped recipe.
        overrides: `key.sub=value` texts that replace what the file says.
        fresh: The run is to begin anew, whatever its directory holds.

    Raises:
        ConfigError: The file cannot be read, or something in it is not allowed; every problem is named.
    """
    source, tree = _read_tree(config, overrides)
    return _validate(RunConfig, with_initialization(tree, fresh=fresh), config, source, overrides)


def load_branch_config(parent: str, name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration of a branch: its parent's, under another name, beside it unless `storage` is set.

    Args:
        parent: The parent's config.yaml, in its directory.
        name: Name of the branch.
        overrides: As for `load_run_config`.

    Raises:
        ConfigError: As for `load_run_config`, or `name` is among the overrides.
    """
    for override in overrides:
        if override.partition("=")[0] == "name":
            raise ConfigError(f"override '{override}': the branch is called {name}, as its NAME says. Leave this out.")
    source, tree = _read_tree(parent, [f"storage={json.dumps(str(storage_path(parent).parent.parent))}", *overrides])
    tree["name"] = name
    return _validate(RunConfig, tree, parent, source, [*overrides, f"name={name}"])


def load_build_config(config: str, overrides: Sequence[str] = ()) -> DataBuildConfig:
    """Read the configuration of a dataset build; arguments and errors as for `load_run_config`."""
    source, tree = _read_tree(config, overrides)
    return _validate(DataBuildConfig, tree, config, source, overrides)


def load_config(config: str, overrides: Sequence[str] = ()) -> RunConfig | DataBuildConfig:
    """Read either: a configuration with `sources` is that of a dataset build, any other that of a run."""
    source, tree = _read_tree(config, overrides)
    if "sources" in tree:
        return _validate(DataBuildConfig, tree, config, source, overrides)
    return _validate(RunConfig, with_initialization(tree), config, source, overrides)


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    files = resources.files("launcher.recipes").iterdir()
    return sorted(Path(file.name).stem for file in files if Path(file.name).suffix in _YAML_SUFFIXES)


def read_config_text(config: str) -> tuple[str, str]:
    """Find CONFIG and read it.

    A name without `/` and without `.yaml` or `.yml` is a recipe, everything else a path, so that what stands
    in the current directory never changes what a name means.

    Returns:
        What to call it in messages, and its text.
    """
    if _names_a_recipe(config):
        if config not in recipe_names():
            raise ConfigError(_no_such_recipe(config))
        recipe = resources.files("launcher.recipes") / f"{config}.yaml"
        return f"recipe '{config}'", recipe.read_text(encoding="utf-8")
    try:
        return config, storage_path(config).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{config}: no such file. {_recipes_sentence()}") from error
    except OSError as error:
        raise ConfigError(f"{config}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{config}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


def resolved_yaml(config: RunConfig | DataBuildConfig) -> str:
    """Write a configuration with every field spelled out; it loads back to an equal one."""
    return dump_yaml(json.loads(json.dumps(asdict(config))))


def schema(root: type) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a configuration class, every key with its description."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(root).json_schema()}


def _names_a_recipe(config: str) -> bool:
    return "/" not in config and not config.endswith(_YAML_SUFFIXES)


def _read_tree(config: str, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    source, text = read_config_text(config)
    try:
        tree = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{source}, {error}" if str(error).startswith("line") else f"{source}: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        kind = "list" if isinstance(tree, list) else "single value"
        raise ConfigError(f"{source}: the file holds a {kind}, and must hold keys with values (`name: ...`).")
    return source, apply_overrides(tree, overrides)


def _validate(root: type[_Config], tree: dict[str, Any], config: str, source: str, overrides: Sequence[str]) -> _Config:
    if root is RunConfig:
        tree = with_depth(tree)
    try:
        # JSON in strict mode: lists become tuples, and nothing else is converted.
        return TypeAdapter(root).validate_json(json.dumps(tree))
    except ValidationError as error:
        found = problems(error, root, in_file=not _names_a_recipe(config))
        told = [(_origin(problem, source, overrides), problem.text) for problem in found]
        raise ConfigError(_complaint(told)) from error


def _origin(problem: Problem, source: str, overrides: Sequence[str]) -> str:
    """What brought the problem in: the last override that it comes from, or else the file."""
    guilty = [override for override in overrides if problem.comes_from(override.partition("=")[0])]
    return f"override '{guilty[-1]}'" if guilty else source


def _complaint(found: Sequence[tuple[str, str]]) -> str:
    """One message for all problems, which says of each where it comes from."""
    if len(found) == 1:
        return f"{found[0][0]}: {found[0][1]}"
    origins = {origin for origin, _ in found}
    lines = [text if len(origins) == 1 else f"{origin}: {text}" for origin, text in found]
    heading = f"{next(iter(origins))}: " if len(origins) == 1 else ""
    return "\n  - ".join([f"{heading}{len(found)} problems", *lines])


def _no_such_recipe(name: str) -> str:
    if any(Path(name + suffix).is_file() for suffix in ("", *_YAML_SUFFIXES)):
        suffix = next(suffix for suffix in ("", *_YAML_SUFFIXES) if Path(name + suffix).is_file())
        return f"no recipe is called '{name}'. For the file in this directory, write ./{name}{suffix}"
    close = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"no recipe is called '{name}'.{hint} {_recipes_sentence()} A configuration file is named with .yaml."


def _recipes_sentence() -> str:
    return f"Shipped recipes: {', '.join(recipe_names())}."
