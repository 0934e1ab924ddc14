"""The command tree, and the edge at which every failure becomes a message and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from launcher.commands import (
    bench,
    branch,
    checkpoint,
    config,
    data,
    evaluate,
    finetune,
    generate,
    jobs,
    predict,
    pretrain,
    quickstart,
    report,
    submit,
)
from launcher.commands.arguments import examples, program
from launcher.errors import InterruptError, LauncherError

_PACKAGE_ERRORS = {
    "llm.errors": "ModelError",
    "data_pipeline.errors": "DataError",
    "cluster.errors": "ClusterError",
}


class _Edge(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run the verb; a failure that a person can act on ends it with one message and no traceback."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output has gone: typer ends the process quietly
        except KeyboardInterrupt:
            _fail(ctx, InterruptError("stopped."))
        except _failures_to_act_on() as error:
            _fail(ctx, error)


def _failures_to_act_on() -> tuple[type[Exception], ...]:
    """The root exception of every package; one that was never imported cannot have been raised."""
    roots = (getattr(sys.modules[module], name) for module, name in _PACKAGE_ERRORS.items() if module in sys.modules)
    return LauncherError, OSError, *roots


def _fail(ctx: Any, error: Exception) -> None:
    from launcher.console import say_error

    if ctx.params.get("debug"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    say_error(str(error).replace("`longhaul ", f"`{program(ctx)} "))  # advice as this person has to type it
    raise typer.Exit(getattr(error, "exit_code", 1))


app = typer.Typer(
    name="longhaul",
    cls=_Edge,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "longhaul quickstart",
        "longhaul pretrain smoke",
        "longhaul pretrain my-run.yaml train.max_steps=2000",
        "longhaul finetune dialogues initialize_from=longhaul-quickstart/runs/quickstart",
    ),
)


def _show_versions(asked: bool) -> None:
    if asked:
        from launcher.packages import versions

        for name, version in versions().items():
            typer.echo(f"{name:<10}{version}")
        raise typer.Exit


@app.callback()
def longhaul(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure as well.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the versions of Longhaul and of what it computes with.",
            callback=_show_versions,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Train language models from raw text, on a laptop or a Ray cluster, in runs that cannot be lost."""


quickstart.register(app)
app.add_typer(data.app, name="data")
pretrain.register(app)
finetune.register(app)
predict.register(app)
evaluate.register(app)
generate.register(app)
app.add_typer(checkpoint.app, name="checkpoint")
branch.register(app)
report.register(app)
app.add_typer(bench.app, name="bench")
app.add_typer(submit.app, name="submit")
app.add_typer(jobs.app, name="jobs")
app.add_typer(config.app, name="config")
