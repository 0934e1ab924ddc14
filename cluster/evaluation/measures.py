"""Measures of a task's predictions in a run's directory, `measures/DATASET.json`: those of the newest evaluation."""

from __future__ import annotations

import json
import logging
from urllib.parse import quote

from cluster.evaluation.in_loop import Evaluated
from cluster.storage.check import account_of
from cluster.storage.operations import StoragePath, make_directory, write_atomically

logger = logging.getLogger(__name__)

MEASURES_NAME = "measures"


def write_measures(run_directory: StoragePath, evaluated: Evaluated, step: int) -> None:
    """Write what one dataset gave; where the storage refuses, the training goes on without.

    Args:
        run_directory: Of the run.
        evaluated: With its measures.
        step: Whose weights were measured.
    """
    assert evaluated.measured is not None
    name = str(evaluated.fields["name"])
    measured = evaluated.measured.about(dataset=name, split="validation", step=step)
    directory = run_directory / MEASURES_NAME
    path = directory / f"{quote(name, safe=' ')}.json"
    try:
        make_directory(directory)
        write_atomically(path, json.dumps(measured.to_json(), allow_nan=False).encode())
    except OSError as error:
        logger.warning("measures of step %d are not in %s: %s", step, path, account_of(path, error))
