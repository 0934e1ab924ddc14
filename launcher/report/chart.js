// One chart: axes, scales, legend. Needs uPlot.

const NULL_EXPANDS = 2; // uPlot.join: a hole reaches to the curve's own neighbours, whatever other curves have between
const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400]
  .concat([2, 5, 10, 20, 50, 100, 200, 500].map((days) => days * 86400));

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

function summary(spec, curves) {
  const parts = curves.filter((curve) => !curve.faint).map((curve) => {
    const values = curve.table[1], last = lastOf(values);
    const first = values.find((value) => value != null) ?? 0;
    return `${curve.label} from ${compact(first)} to ${last === null ? "n/a" : compact(last)}`;
  });
  return `${spec.title}, ${spec.unit}: ${parts.join("; ")}`;
}

/**
 * Draws a chart into its figure and returns the plot.
 * state: {axis, tau (steps), role, visible (set of runs), showEvents, logarithmic, width, height, extent: [low, high]}.
 */
function drawChart(figure, spec, state, data) {
  const curves = curvesOf(spec, state, data);
  const alone = state.visible.size === 1;
  // Saved checkpoints and the bands of attempts would only blur a comparison.
  const events = data.events.filter((event) => state.showEvents && state.visible.has(event.run)
    && event[state.axis] !== null && (alone || event.tone !== "tick"));
  const attempts = alone ? data.attempts.filter((attempt) => state.visible.has(attempt.run)) : [];
  const lost = lostPlaces(spec, state);
  const levels = spec.levels.filter((level) => level.runs.some((run) => state.visible.has(run)));
  const text = colour("soft"), grid = { stroke: colour("grid"), width: 1 };
  const ticks = { stroke: colour("line"), width: 1, size: 5 };
  const font = "12px system-ui, sans-serif";
  const reach = levels.map((level) => level.value);
  const range = (plot, low, high) => {
    if (low === null) return [1, 10];
    const [least, most] = [Math.min(low, ...reach), Math.max(high, ...reach)];
    return state.logarithmic ? [least / 1.08, most * 1.12] : uPlot.rangeNum(least, most, 0.1, true);
  };
  // The extent rides along as an empty table, so that all charts span the same x.
  const tables = [[state.extent], ...curves.map((curve) => curve.table)];
  const plot = new uPlot({
    width: state.width,
    height: state.height,
    padding: [attempts.length ? 20 : 10, 24, 0, 0],
    scales: { x: { time: false }, y: { distr: state.logarithmic ? 3 : 1, range } },
    axes: [
      {
        stroke: text, grid: { show: false }, ticks, font, size: 34, space: 64,
        incrs: state.axis === "seconds" ? TIME_STEPS : undefined,
        values: (_, splits) => splits.map((split) => {
          return state.axis === "seconds" ? durationText(split) : compact(split, splits.at(-1));
        }),
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
        dash: curve.dash,
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
      drawClear: [(self) => drawAttempts(self, attempts, state.axis)],
      draw: [(self) => drawMarks(self, levels, state, events, lost)],
    },
  }, uPlot.join(tables, tables.map(() => [0, NULL_EXPANDS])), figure);
  const image = plot.root.querySelector(".u-wrap");
  image.setAttribute("role", "img");
  image.setAttribute("aria-label", summary(spec, curves));
  explainMarks(plot, figure, state, events, lost, data.runs);
  return plot;
}
