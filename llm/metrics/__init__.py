"""Measures of fine-tuning tasks, from numpy arrays, with scikit-learn's definitions. Imports no torch."""

from llm.metrics.measure import measure, selection
from llm.metrics.measured import Measured, Selection, Table, Task, from_json
from llm.metrics.measures import Outputs

__all__ = ["Measured", "Outputs", "Selection", "Table", "Task", "from_json", "measure", "selection"]
