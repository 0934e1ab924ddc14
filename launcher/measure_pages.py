"""What a model that learned labels is measured by, for a terminal or for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.commands.arguments import print_json
from launcher.console import results
from launcher.report.figure_names import name_of
from launcher.report.units import significant

if TYPE_CHECKING:
    from cluster.inference import LoadedModel


def print_measures(loaded: LoadedModel, datasets: list[str], *, as_json: bool) -> None:
    """Measure a model on the validation splits of datasets, and print the figures with their intervals."""
    from rich.table import Table

    from cluster.labelling import evaluate_labels

    found = {path: evaluate_labels(loaded, path) for path in datasets}
    if as_json:
        measured = [{"dataset": path, **each.to_json()} for path, each in found.items()]
        print_json({"run_directory": str(loaded.run_directory), "step": loaded.step, "results": measured})
        return
    out = results()
    out.print(f"step        {loaded.step:,}")
    for path, each in found.items():
        out.print(f"dataset     {path}")
        out.print(f"examples    {each.examples:,}")
        share = "" if each.confidence is None else f"{100 * each.confidence:.0f} % interval"
        table = Table(box=None, pad_edge=False)
        for heading, justify in (("figure", "left"), ("value", "right"), (share, "right")):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]
        for name, value in each.headline.items():
            ends = each.intervals.get(name)
            interval = "" if ends is None else f"{significant(ends[0])} to {significant(ends[1])}"
            table.add_row(name_of(name), significant(value), interval)
        out.print(table)
