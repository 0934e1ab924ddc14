"""What a labelled dataset gives without a neural network, on the same split as a run: what it has to beat.

    python -m tests.bench.baselines DATASET [RUN ...]

Texts: TF-IDF of words and pairs of words with logistic regression, or with ridge regression for numbers, and the
commonest class, or the mean. Words: the commonest tag of each word, of all words for new ones. The regularisation is
chosen by five-fold cross-validation on the training split. RUNs trained on the dataset are measured beside it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.pipeline import make_pipeline

from data_pipeline.dataset import Dataset
from data_pipeline.labels import NO_LABEL
from llm.metrics import Measured, Outputs, measure

_PENALTIES = np.logspace(-2, 2, 9)
_SHOWN = {
    "class": ("f1_macro", "accuracy", "roc_auc"),
    "number": ("mse", "r2", "pearson"),
    "token_class": ("accuracy", "f1_macro"),
}
_TASK = {"class": "sequence_classification", "number": "regression", "token_class": "token_classification"}


def texts_of(dataset: Dataset, split: str) -> list[str]:
    """The text of every document, as its tokens spell it."""
    stream, tokenizer = dataset.split(split), dataset.tokenizer()
    ends = np.cumsum(stream.document_lengths()).tolist()
    return [tokenizer.decode(stream.read(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def words_of(dataset: Dataset, split: str) -> list[list[tuple[str, int]]]:
    """The words of every document with their tags: the stretch of tokens that ends where a tag stands."""
    stream, tokenizer = dataset.split(split), dataset.tokenizer()
    ends = np.cumsum(stream.document_lengths()).tolist()
    found = []
    for start, end, tags in zip([0, *ends[:-1]], ends, stream.labels("token_class"), strict=True):
        tokens, begin, words = stream.read(start, end), 1, []
        for place in np.flatnonzero(tags != NO_LABEL).tolist():
            words.append((tokenizer.decode(tokens[begin : place + 1]).strip(), int(tags[place])))
            begin = place + 1
        found.append(words)
    return found


def of_texts(dataset: Dataset, kind: str) -> dict[str, Outputs]:
    """Outputs of the baselines for texts."""
    train, held_out = texts_of(dataset, "train"), texts_of(dataset, "validation")
    known, wanted = (dataset.split(split).labels(kind) for split in ("train", "validation"))
    features = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    if kind == "number":
        model = make_pipeline(features, RidgeCV(_PENALTIES)).fit(train, known)
        mean = np.full(len(wanted), known.mean())
        predicted = {"mean": mean, "TF-IDF, ridge": model.predict(held_out)}
        return {name: Outputs(labels=wanted, predictions=values) for name, values in predicted.items()}
    logistic = LogisticRegressionCV(
        Cs=_PENALTIES, cv=5, max_iter=1000, scoring="neg_log_loss", l1_ratios=(0.0,), use_legacy_attributes=False
    )
    model = make_pipeline(features, logistic).fit(train, known)
    shares = np.bincount(known, minlength=len(dataset.labels.names)) / len(known)
    probabilities = {
        "commonest class": np.tile(shares, (len(wanted), 1)),
        "TF-IDF, logistic": model.predict_proba(held_out),
    }
    return {name: Outputs(labels=wanted, probabilities=values) for name, values in probabilities.items()}


def of_words(dataset: Dataset) -> dict[str, Outputs]:
    """Outputs of the baselines for words."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for words in words_of(dataset, "train"):
        for word, tag in words:
            counts[word][tag] += 1
            counts[""][tag] += 1
    held_out = words_of(dataset, "validation")
    common = counts[""].most_common(1)[0][0]
    labels = np.array([tag for words in held_out for _, tag in words])
    tags = [counts[word].most_common(1)[0][0] if word in counts else common for words in held_out for word, _ in words]
    lengths = np.array([len(words) for words in held_out])
    predicted = {"commonest tag": np.full(len(labels), common), "commonest of word": np.array(tags)}
    return {name: Outputs(labels=labels, predictions=each, lengths=lengths) for name, each in predicted.items()}


def row(name: str, figures: dict[str, Any], intervals: dict[str, Any], keys: tuple[str, ...]) -> str:
    """One line of the table."""
    cells = []
    for key in keys:
        low, high = intervals.get(key) or (None, None)
        value = "     n/a" if figures[key] is None else f"{figures[key]:8.4f}"
        cells.append(value + (f" ({low:.4f} to {high:.4f})" if low is not None else " " * 19))
    return f"{name:<22}" + "  ".join(cells)


def main() -> None:
    """Print a line for each baseline and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("runs", nargs="*", metavar="RUN")
    options = parser.parse_args()
    dataset = Dataset.open(options.dataset)
    kind, names = dataset.labels.kind, dataset.labels.names
    keys = _SHOWN[kind]
    documents = {split: dataset.split(split).documents for split in ("train", "validation")}
    print(f"{dataset.name}: {documents['train']} documents, {documents['validation']} held out")
    print(f"{'':<22}" + "  ".join(f"{key:<27}" for key in keys))
    outputs = of_words(dataset) if kind == "token_class" else of_texts(dataset, kind)
    for name, each in outputs.items():
        measured: Measured = measure(_TASK[kind], each, names=names)  # type: ignore[arg-type]
        print(row(name, measured.headline, measured.intervals, keys))
    for run in options.runs:
        (path,) = (Path(run) / "measures").glob("*.json")
        facts = json.loads(path.read_text(encoding="utf-8"))
        print(row(Path(run).name, facts["headline"], facts["intervals"], keys))


if __name__ == "__main__":
    main()
