"""The data of a run, opened again from what its run.json says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster.errors import StorageError
from data_pipeline.batch_sizes import BatchSizeStage
from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DatasetError
from data_pipeline.plan import DataPlan


def open_data(facts: Mapping[str, Any]) -> DataPlan:
    """The data plan that a run's batches come from.

    Args:
        facts: Content of run.json.

    Raises:
        StorageError: run.json does not say what the run was trained on.
        DatasetError: A dataset is gone, or is not the one that the run was trained on.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        config, fingerprint = facts["config"], facts["data_plan"]["fingerprint"]
        data = TypeAdapter(DataConfig).validate_json(json.dumps(config["data"]))
        seed, train = int(config["seed"]), config["train"]
        batch_size = int(train["global_batch_size"])
        stages = json.dumps(train.get("batch_size_warmup", []))  # older versions did not know the key
        warmup = TypeAdapter(tuple[BatchSizeStage, ...]).validate_json(stages)
    except (LookupError, TypeError, ValidationError) as error:
        raise StorageError(
            f"run.json does not say what the run was trained on ({type(error).__name__}: {error}). It is written when "
            "an attempt begins to train; restore it from a copy if it was edited."
        ) from error
    plan = DataPlan(
        [Dataset.open(entry.path) for entry in data.entries],
        data,
        seed=seed,
        global_batch_size=batch_size,
        batch_size_warmup=warmup,
        answers_only=config.get("task") == "instruction",
    )
    if plan.fingerprint != fingerprint:
        raise DatasetError(
            f"{', '.join(entry.path for entry in data.entries)}: the data plan there has the fingerprint "
            f"{plan.fingerprint}, the run was trained on {fingerprint}. Bring the datasets back that it was trained on."
        )
    return plan
