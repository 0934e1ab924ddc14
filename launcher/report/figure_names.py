"""What the figures of tasks are called, and tasks."""

from __future__ import annotations

from launcher.report.words import label

_NAMES = {
    "average_precision": "average precision",
    "calibration_error": "expected calibration error",
    "entity_f1": "F1 of entities",
    "entity_f1_macro": "F1 of entities, macro",
    "entity_precision": "precision of entities",
    "entity_recall": "recall of entities",
    "f1": "F1",
    "f1_macro": "F1, macro",
    "f1_micro": "F1, micro",
    "f1_weighted": "F1, weighted",
    "hamming_loss": "Hamming loss",
    "log_loss": "log loss, nats",
    "mae": "mean absolute error",
    "matthews_correlation": "Matthews correlation",
    "mse": "mean squared error",
    "multi_label_classification": "multi-label classification",
    "pearson": "Pearson correlation",
    "precision_macro": "precision, macro",
    "precision_micro": "precision, micro",
    "r2": "R²",
    "recall_macro": "recall, macro",
    "recall_micro": "recall, micro",
    "rmse": "root mean squared error",
    "roc_auc": "area under ROC",
    "share_of_label": "share of the label",
    "spearman": "Spearman correlation",
}


def name_of(key: str) -> str:
    """A figure or task in words: `f1_macro` is `F1, macro`."""
    return _NAMES.get(key, label(key))


def title_of(key: str) -> str:
    """The same as the beginning of a line."""
    words = name_of(key)
    return words[:1].upper() + words[1:]
