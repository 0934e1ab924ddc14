"use strict";

// Figures, durations and colours as the charts write them.

const palette = new Map();

/** A CSS variable's colour, light or dark as the page was when the palette was last cleared. */
function colour(name) {
  if (palette.has(name)) return palette.get(name);
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  palette.set(name, found);
  return found;
}

/** A short figure; `largest` of an axis decides the unit of all its ticks. */
function compact(value, largest = value) {
  const size = Math.abs(value), reach = Math.abs(largest);
  if (value === 0) return "0";
  for (const [unit, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (reach >= unit * 10 || (reach >= unit && unit > 1e3)) return `${+(value / unit).toPrecision(4)}${suffix}`;
  }
  if (size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return `${+value.toPrecision(4)}`;
}

function durationText(seconds) {
  const total = Math.round(seconds);
  const [days, hours, minutes] = [86400, 3600, 60].map((size) => Math.floor(total / size));
  if (days) return `${days} d` + (hours % 24 ? ` ${hours % 24} h` : "");
  if (hours) return `${hours} h` + (minutes % 60 ? ` ${minutes % 60} min` : "");
  if (minutes) return `${minutes} min` + (total % 60 ? ` ${total % 60} s` : "");
  return `${total} s`;
}

function placeText(axis, value) {
  if (axis === "seconds") return durationText(value);
  return axis === "tokens" ? `${compact(value)} tokens` : `step ${Math.round(value).toLocaleString("en")}`;
}
