"""`longhaul config`: what a configuration comes to, and what may stand in one."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from launcher.commands.arguments import Config, Overrides, examples, print_json

app = typer.Typer(help="Show what a configuration comes to, and what may stand in one.", no_args_is_help=True)


class ConfigKind(StrEnum):
    """Which of the two configurations is meant."""

    pretrain = "pretrain"
    data = "data"


@app.command(
    epilog=examples(
        "longhaul config show quickstart",
        "longhaul config show quickstart train.max_steps=100 > my-run.yaml",
        "longhaul config show my-data.yaml",
    )
)
def show(config: Config, overrides: Overrides = None) -> None:
    """Print a configuration as it would be used: checked, every default written out.

    A configuration with `sources` is that of a dataset build, any other that of a run.
    """
    from launcher.config_file import load_config, resolved_yaml

    typer.echo(resolved_yaml(load_config(config, overrides or ())), nl=False)


@app.command(epilog=examples("longhaul config schema > run.schema.json", "longhaul config schema data"))
def schema(
    kind: Annotated[
        ConfigKind, typer.Argument(help="Schema of a run's configuration or of a dataset build's.")
    ] = ConfigKind.pretrain,
) -> None:
    """Print the JSON schema of a configuration, for editors that complete and check YAML."""
    from cluster.config import RunConfig
    from data_pipeline.config import DataBuildConfig
    from launcher.config_file import schema as json_schema

    print_json(json_schema(RunConfig if kind is ConfigKind.pretrain else DataBuildConfig))
