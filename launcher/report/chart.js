"use strict";

// One chart: its series out of the page's data, and what is drawn around them. Needs uPlot.

const NULL_EXPANDS = 2; // uPlot.join: a hole reaches to the curve's own neighbours, whatever other curves have between
const MARK_REACH = 6; // CSS pixels between pointer and event mark that still count as a hit
const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400]
  .concat([2, 5, 10, 20, 50, 100, 200, 500].map((days) => days * 86400));

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

/** Mean of what came before, weights falling by e every `tau` steps; `mean.count` logged values stand behind a point. */
function smoothed(mean, tau, geometric) {
  let sum = 0, weight = 0, before = mean.step[0];
  return mean.value.map((value, place) => {
    const decay = Math.exp(-(mean.step[place] - before) / tau);
    before = mean.step[place];
    sum = sum * decay + (geometric ? Math.log(value) : value) * mean.count[place];
    weight = weight * decay + mean.count[place];
    return geometric ? Math.exp(sum / weight) : sum / weight;
  });
}

/** uPlot wants x to ascend, which time does not where an evaluation came late. */
function ascending(xs, ys) {
  const order = xs.map((_, place) => place).sort((a, b) => xs[a] - xs[b]);
  return [order.map((place) => xs[place]), order.map((place) => ys[place])];
}

/** A curve with a hole where no attempt ran, which only the time axis can show. */
function withPauses([xs, ys], attempts, axis) {
  if (axis !== "seconds") return [xs, ys];
  const starts = attempts.slice(1).map((attempt) => attempt.first.seconds).filter((start) => start !== null);
  const whole = [[], []];
  xs.forEach((x, place) => {
    if (place && starts.some((start) => xs[place - 1] < start && start <= x)) {
      whole[0].push((xs[place - 1] + x) / 2);
      whole[1].push(null);
    }
    whole[0].push(x);
    whole[1].push(ys[place]);
  });
  return whole;
}

/** Places on the axis where a figure was not finite. */
function lostPlaces(spec, axis) {
  return spec.series.flatMap((series) => (series[axis] ?? []).filter((_, place) => series.value[place] === null));
}

/** The curves to draw: {label, table: [xs, ys], stroke, width, faint, dots}. */
function curvesOf(spec, state, attempts) {
  const curves = [];
  let evaluations = 0;
  const tableOf = (xs, ys) => withPauses(ascending(xs, ys), attempts, state.axis);
  for (const series of spec.series) {
    const xs = series[state.axis];
    const positive = (value) => (state.logarithmic && value !== null && value <= 0 ? undefined : value);
    if (series.role === "train") {
      const smooth = state.tau > 0 && series.mean && series.mean[state.axis] && series.mean.value.length > 2;
      if (xs) {
        const look = smooth ? { label: "as logged", stroke: colour("train-faint"), width: 1, faint: true }
          : { label: series.label, stroke: colour("train"), width: 1.5 };
        curves.push({ ...look, table: tableOf(xs, series.value.map(positive)) });
      }
      if (smooth) {
        const values = smoothed(series.mean, state.tau, spec.geometric).map(positive);
        curves.push({ label: series.label, stroke: colour("train"), width: 2, table: tableOf(series.mean[state.axis], values) });
      }
    } else {
      const stroke = colour(`eval-${evaluations++ % 4}`);
      if (xs) curves.push({ label: series.label, stroke, width: 1.75, dots: true, table: tableOf(xs, series.value.map(positive)) });
    }
  }
  return curves;
}

function lastOf(values) {
  for (let place = values.length - 1; place >= 0; place--) if (values[place] != null) return values[place];
  return null;
}

/** The place with a value that is nearest to the pointer: joined series have holes. */
function nearestPlace(plot, series, hovered, x) {
  const values = plot.data[series], xs = plot.data[0];
  if (series === 0 || values[hovered] != null) return hovered;
  let left = hovered, right = hovered;
  while (left >= 0 && values[left] == null) left--;
  while (right < values.length && values[right] == null) right++;
  if (left < 0) return right < values.length ? right : null;
  if (right >= values.length) return left;
  return x - xs[left] <= xs[right] - x ? left : right;
}

/** Round tick values for a logarithmic axis, which may be much shorter than a decade. */
function logarithmicTicks(plot, axis, low, high) {
  const decades = Math.log10(high / low);
  if (decades < 0.4) {
    const step = [1, 2, 2.5, 5, 10].map((mantissa) => mantissa * 10 ** Math.floor(Math.log10((high - low) / 5)))
      .find((size) => (high - low) / size <= 6);
    const ticks = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(+tick.toPrecision(6));
    return ticks;
  }
  const mantissas = decades < 1 ? [1, 1.5, 2, 3, 4, 5, 6, 8] : decades < 3 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const mantissa of mantissas) {
      const tick = mantissa * 10 ** power;
      if (tick >= low && tick <= high) ticks.push(+tick.toPrecision(6));
    }
  }
  return ticks;
}

/** Shades every second attempt and numbers them, above the plot where no curve runs. */
function drawAttempts(plot, attempts, axis) {
  const { ctx } = plot, { left, top, width, height } = plot.bbox, ratio = uPlot.pxRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, 0, width, top + height);
  ctx.clip();
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.textAlign = "left"; // uPlot leaves its own alignment behind
  ctx.textBaseline = "alphabetic";
  attempts.forEach((band, place) => {
    if (band.first[axis] === null) return;
    // Steps and tokens leave no room between attempts; only on the time axis there are gaps to see.
    const next = attempts[place + 1];
    const end = axis === "seconds" || !next ? band.last[axis] : next.first[axis];
    const from = plot.valToPos(band.first[axis], "x", true), to = plot.valToPos(end, "x", true);
    ctx.fillStyle = colour("band");
    if (place % 2) ctx.fillRect(from, top, to - from, height);
    ctx.fillStyle = colour("faint");
    const text = `attempt ${band.attempt}`;
    const start = Math.max(from, left);
    if (Math.min(to, left + width) - start > ctx.measureText(text).width + 8 * ratio) ctx.fillText(text, start, top - 6 * ratio);
  });
  ctx.restore();
}

/** Events as lines on the axis (saved checkpoints as ticks), levels as labelled lines, lost numbers as triangles. */
function drawMarks(plot, spec, state, events, lost) {
  const { ctx } = plot, { left, top, width, height } = plot.bbox, ratio = uPlot.pxRatio, bottom = top + height;
  const visible = (x) => x >= left - 1 && x <= left + width + 1;
  ctx.save();
  ctx.lineWidth = ratio;
  for (const event of state.showEvents ? events : []) {
    const x = Math.round(plot.valToPos(event[state.axis], "x", true));
    if (!visible(x)) continue;
    ctx.strokeStyle = ctx.fillStyle = colour(event.tone);
    ctx.setLineDash(event.tone === "tick" ? [] : [4 * ratio, 3 * ratio]);
    ctx.globalAlpha = event.tone === "calm" ? 0.6 : 1;
    ctx.beginPath();
    ctx.moveTo(x, event.tone === "tick" ? bottom - 7 * ratio : top);
    ctx.lineTo(x, bottom);
    ctx.stroke();
    if (event.tone === "tick") continue;
    ctx.beginPath();
    ctx.arc(x, bottom, 3.5 * ratio, 0, 2 * Math.PI);
    ctx.fill();
  }
  ctx.globalAlpha = 1;
  for (const level of spec.levels) {
    const y = Math.round(plot.valToPos(level.value, "y", true));
    if (y < top || y > bottom) continue;
    ctx.strokeStyle = ctx.fillStyle = colour("level");
    ctx.setLineDash([2 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(left, y);
    ctx.lineTo(left + width, y);
    ctx.stroke();
    ctx.font = `${11.5 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "left"; // where a curve that falls to the level is still far above it
    ctx.textBaseline = "alphabetic";
    ctx.setLineDash([]);
    ctx.lineWidth = 4 * ratio;
    ctx.lineJoin = "round";
    ctx.strokeStyle = colour("surface"); // a halo, so that curves behind the words do not cross them
    const words = [`${level.label}: ${compact(level.value)}`, left + 6 * ratio, y - 6 * ratio];
    ctx.strokeText(...words);
    ctx.fillText(...words);
  }
  ctx.fillStyle = colour("bad");
  for (const place of lost) {
    const x = plot.valToPos(place, "x", true);
    if (!visible(x)) continue;
    ctx.beginPath();
    ctx.moveTo(x - 5 * ratio, top);
    ctx.lineTo(x + 5 * ratio, top);
    ctx.lineTo(x, top + 8 * ratio);
    ctx.fill();
  }
  ctx.restore();
}

/** Shows what happened at the mark under the pointer. */
function explainMarks(plot, figure, state, events, lost) {
  const bubble = document.createElement("div");
  bubble.className = "bubble";
  bubble.hidden = true;
  figure.append(bubble);
  plot.over.addEventListener("mouseleave", () => (bubble.hidden = true));
  plot.over.addEventListener("mousemove", (pointer) => {
    const near = (x) => Math.abs(plot.valToPos(x, "x") - pointer.offsetX) <= MARK_REACH;
    const hits = state.showEvents ? events.filter((event) => near(event[state.axis])) : [];
    const lines = hits.map((event) => [`${event.title} · ${placeText(state.axis, event[state.axis])}`, event.detail]);
    if (pointer.offsetY < 12) {
      const place = lost.find(near);
      if (place !== undefined) lines.push([`not finite · ${placeText(state.axis, place)}`, ""]);
    }
    bubble.hidden = !lines.length;
    if (!lines.length) return;
    bubble.replaceChildren(...lines.slice(0, 4).flatMap(([head, text]) => {
      const bold = document.createElement("b");
      bold.textContent = head;
      return [bold, text];
    }));
    const room = figure.clientWidth - bubble.offsetWidth - 8;
    const edge = plot.over.getBoundingClientRect().left - figure.getBoundingClientRect().left;
    bubble.style.left = `${Math.max(8, Math.min(room, edge + pointer.offsetX + 14))}px`;
    bubble.style.top = `${plot.root.offsetTop + 18}px`;
  });
}

function summary(spec, curves) {
  const parts = curves.filter((curve) => !curve.faint).map((curve) => {
    const last = lastOf(curve.table[1]);
    return `${curve.label} from ${compact(curve.table[1].find((value) => value != null) ?? 0)} to ${last === null ? "n/a" : compact(last)}`;
  });
  return `${spec.title}, ${spec.unit}: ${parts.join("; ")}`;
}

/**
 * Draws a chart into its figure and returns the plot.
 * state: {axis, tau (steps), showEvents, logarithmic, width, height, extent: [low, high]}.
 */
function drawChart(figure, spec, state, data) {
  const curves = curvesOf(spec, state, data.attempts);
  const events = data.events.filter((event) => event[state.axis] !== null);
  const lost = lostPlaces(spec, state.axis);
  const text = colour("soft"), grid = { stroke: colour("grid"), width: 1 }, ticks = { stroke: colour("line"), width: 1, size: 5 };
  const font = "12px system-ui, sans-serif";
  const levels = spec.levels.map((level) => level.value);
  const range = (plot, low, high) => {
    if (low === null) return [0, 1];
    const [least, most] = [Math.min(low, ...levels), Math.max(high, ...levels)];
    return state.logarithmic ? [least / 1.08, most * 1.12] : uPlot.rangeNum(least, most, 0.1, true);
  };
  // The extent rides along as an empty table, so that all charts span the same x.
  const tables = [[state.extent], ...curves.map((curve) => curve.table)];
  const plot = new uPlot({
    width: state.width,
    height: state.height,
    padding: [data.attempts.length ? 20 : 10, 24, 0, 0],
    scales: { x: { time: false }, y: { distr: state.logarithmic ? 3 : 1, range } },
    axes: [
      {
        stroke: text, grid: { show: false }, ticks, font, size: 34, space: 64,
        incrs: state.axis === "seconds" ? TIME_STEPS : undefined,
        values: (_, splits) => splits.map((split) => (state.axis === "seconds" ? durationText(split) : compact(split, splits.at(-1)))),
      },
      {
        stroke: text, grid, ticks, font, size: 54,
        splits: state.logarithmic ? logarithmicTicks : undefined,
        filter: (_, splits) => splits,
        values: (_, splits) => splits.map((split) => compact(split, state.logarithmic ? split : splits.at(-1))),
      },
    ],
    series: [
      { label: "at", value: (_, value) => placeText(state.axis, value ?? state.extent[1]) },
      ...curves.map((curve) => ({
        label: curve.label,
        stroke: curve.stroke,
        width: curve.width,
        points: { show: curve.dots || curve.table[0].length < 2, size: 6, fill: curve.stroke },
        value: (self, value, place, index) => {
          const shown = index === null ? lastOf(self.data[place]) : value;
          return shown == null ? "n/a" : compact(shown);
        },
      })),
    ],
    cursor: {
      y: false,
      drag: { x: true, y: false },
      dataIdx: nearestPlace,
      points: { size: 7 },
      sync: { key: "run", scales: ["x", null] },
    },
    legend: { live: true },
    hooks: {
      drawClear: [(self) => drawAttempts(self, data.attempts, state.axis)],
      draw: [(self) => drawMarks(self, spec, state, events, lost)],
    },
  }, uPlot.join(tables, tables.map(() => [0, NULL_EXPANDS])), figure);
  const image = plot.root.querySelector(".u-wrap");
  image.setAttribute("role", "img");
  image.setAttribute("aria-label", summary(spec, curves));
  explainMarks(plot, figure, state, events, lost);
  return plot;
}
