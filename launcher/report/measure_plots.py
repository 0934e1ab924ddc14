"""The plots of one set of measures: confusion, ROC, precision-recall, calibration, predicted against true."""

from __future__ import annotations

import math
from typing import Any

from launcher.report.plots import Plane, colour, heat, legend, padded, plot
from launcher.report.units import significant
from llm.metrics.measured import Curve, Measured

_UNIT = (0.0, 1.0)
_ROOMY = 5  # classes; more need the whole width


def measure_plots(measured: Measured) -> str:
    """Every plot that the measures have data for, as HTML."""
    drawn = [_confusion(measured), _roc(measured), _precision_recall(measured), _calibration(measured)]
    drawn += [_scatter(measured), _residuals(measured)]
    plots = "".join(part for part in drawn if part)
    return f'<div class="plots">{plots}</div>' if plots else ""


def _confusion(measured: Measured) -> str:
    table = measured.tables.get("confusion")
    if table is None:
        return ""
    names = table.columns[1:]
    counts = [[int(_number(cell)) for cell in row[1:]] for row in table.rows]
    return plot("Confusion", heat(names, counts), "wide" if len(names) > _ROOMY else "")


def _roc(measured: Measured) -> str:
    curves = measured.curves.get("roc", [])
    plane = Plane(x=_UNIT, y=_UNIT, x_label="false positive rate", y_label="true positive rate")
    chance = plane.line(_UNIT, _UNIT, "chance", "chance")
    return _areas(plane, "ROC", curves, chance)


def _precision_recall(measured: Measured) -> str:
    curves = measured.curves.get("precision_recall", [])
    plane = Plane(x=_UNIT, y=_UNIT, x_label="recall", y_label="precision")
    base = ""
    if len(curves) == 1 and isinstance(share := curves[0].get("base"), int | float):
        base = plane.line(_UNIT, (share, share), "chance", f"chance: {significant(share, 3)}")
    return _areas(plane, "Precision and recall", curves, base)


def _areas(plane: Plane, title: str, curves: list[Curve], reference: str) -> str:
    """Curves with their areas in the legend; nothing without curves."""
    if not curves:
        return ""
    entries = [(str(curve["name"]), significant(_number(curve.get("area")), 3)) for curve in curves]
    lines = [
        plane.line(curve["x"], curve["y"], colour(place), f"{name}: area {area}")
        for place, (curve, (name, area)) in enumerate(zip(curves, entries, strict=True))
    ]
    summary = f"{title}, areas: " + ", ".join(f"{name} {area}" for name, area in entries)
    return plane.figure(title, reference + "".join(lines), summary, legend(entries))


def _calibration(measured: Measured) -> str:
    """A dot a bin, the larger the more examples, joined to where it should be."""
    table = measured.tables.get("calibration")
    if table is None or not table.rows:
        return ""
    plane = Plane(x=_UNIT, y=_UNIT, x_label="confidence", y_label="accuracy")
    marks = [plane.line(_UNIT, _UNIT, "chance", "as confident as right")]
    most = max(_number(row[1]) for row in table.rows)
    for bounds, examples, confidence, accuracy in table.rows:
        x, y, size = _number(confidence), _number(accuracy), _number(examples)
        title = (
            f"confidence {bounds}: {significant(y, 3)} right, mean confidence {significant(x, 3)}, {size:,.0f} examples"
        )
        marks.append(plane.line((x, x), (x, y), "gap"))
        marks.append(plane.dot(x, y, 2.5 + 5 * math.sqrt(size / most), title))
    error = significant(measured.headline.get("calibration_error"), 3)
    note = f'<p class="note">Expected calibration error {error}. Dots grow with the examples of a bin.</p>'
    return plane.figure("Calibration", "".join(marks), f"Calibration: expected error {error}", note)


def _scatter(measured: Measured) -> str:
    curves = measured.curves.get("predicted_against_true", [])
    if not curves or not curves[0]["x"]:
        return ""
    x, y = curves[0]["x"], curves[0]["y"]
    span = padded([*x, *y])
    plane = Plane(x=span, y=span, x_label="true", y_label="predicted")
    dots = "".join(plane.dot(*pair, 2) for pair in zip(x, y, strict=True))
    pearson = significant(measured.headline.get("pearson"), 3)
    left = measured.examples - len(x)
    note = f'<p class="note">{len(x):,} of {measured.examples:,} examples, evenly spread.</p>' if left else ""
    marks = plane.line(span, span, "chance", "predicted as true") + f'<g class="cloud">{dots}</g>'
    return plane.figure("Predicted against true", marks, f"Predicted against true, correlation {pearson}", note)


def _residuals(measured: Measured) -> str:
    table = measured.tables.get("residual_histogram")
    if table is None or not table.rows:
        return ""
    bins = [(_number(begin), _number(end), _number(count)) for begin, end, count in table.rows]
    low, high = bins[0][0], bins[-1][1]
    plane = Plane(
        x=padded([low, high]),
        y=(0.0, 1.05 * max(1.0, *(count for _, _, count in bins))),
        x_label="predicted less true",
        y_label="examples",
    )
    bars = "".join(
        plane.bar(begin, end, count, f"{significant(begin, 3)} to {significant(end, 3)}: {count:,.0f} examples")
        for begin, end, count in bins
    )
    return plane.figure("Residuals", bars, f"Residuals from {significant(low, 3)} to {significant(high, 3)}")


def _number(value: Any) -> float:
    """A figure of a table or curve; 0 where it has none, so that a strange file still gives a page."""
    return float(value) if isinstance(value, int | float) else 0.0
